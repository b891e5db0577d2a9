"""A whole site in memory passes its audit, and one whose parts are put together wrongly does not."""

import numpy as np
import pytest

import cadp_fl.site.releases as releasing
import cadp_fl.site.site as site
from cadp_fl.errors import ConfigError
from cadp_fl.evaluation.audit import AuditSettings
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release import privatize as release_path
from cadp_fl.standalone.audit import SITE, audit_all, everything

SETTINGS = AuditSettings(1e-5, draws=40_000)


def audited():
    (finding,) = audit_all([SITE], [1.0], SETTINGS, noise=NoiseSource.from_seed(2))
    return finding


def seeded(honest):
    return lambda *arguments, noise, **rest: honest(*arguments, noise=NoiseSource.from_seed(0), **rest)


def test_an_honest_site_is_not_refuted():
    finding = audited()
    assert not finding.is_refuted
    assert 0 < finding.lower_bound <= finding.claim
    assert {"black-and-white", "privunit-pair", "one-place"} == {each.attack for each in finding.attacks}


@pytest.mark.parametrize(
    ("module", "name", "broken", "law"),
    [
        (releasing, "privatize", seeded, "noise of releases"),
        (site, "noised_counts", seeded, "counts: width of noise"),
        (site, "noised_moments", seeded, "moments: width of noise"),
        (site, "noised_evaluation", seeded, "evaluations: width of noise"),
        (
            site,
            "noised_counts",
            lambda honest: lambda counts, event, noise: counts.astype(float),
            "counts: width of noise",
        ),
        (releasing, "release_order", lambda _: lambda units, noise: np.arange(len(units)), "privunit: order and input"),
        (release_path, "randomize_labels", lambda _: lambda labels, *rest: labels, "privunit: label of class 1"),
    ],
)
def test_a_site_that_uses_noise_twice_or_keeps_an_order_or_leaves_noise_out_is_refuted(
    module, name, broken, law, monkeypatch
):
    monkeypatch.setattr(module, name, broken(getattr(module, name)))
    assert law in audited().broken_laws


def test_an_unknown_name_is_an_error_that_lists_all():
    assert SITE in everything()
    with pytest.raises(ConfigError, match=r"Unknown mechanism 'x'. Choose one of: .*site"):
        next(audit_all(["x"], [1.0], SETTINGS, noise=NoiseSource.from_seed(1)))

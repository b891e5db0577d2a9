"""Laws of what a run over real sites may claim."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cadp_fl.config import load_study
from cadp_fl.privacy.claims import CLASSIFIER_WEIGHTS
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.plan import Plan
from cadp_fl.report import run_claims
from cadp_fl.report.results import Account, Results, SiteEntry
from cadp_fl.report.run_claims import RunClaims
from cadp_fl.report.summary import privacy_json, summary_json

STEPS = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=10.0, sampling_rate=0.1, steps=1)
PROTECTED = Plan("dp-sgd", (STEPS,), 1e-5)
OPEN = Plan("fedavg", (CLASSIFIER_WEIGHTS,), 1e-5)
NOTHING = {"train": (), "test": ()}


def _results(beside=None, **known):
    study = load_study(Path(__file__).resolve().parents[2] / "configs" / "rehearsal.yaml")
    accounts = {"dp-sgd": {"north": Account(PROTECTED, PROTECTED.events)}}
    if beside is not None:
        accounts["fedavg"] = {"north": beside}
    return Results(study, datetime.now(UTC), **{"federation": "f", "accounts": accounts, **known})


@pytest.mark.parametrize(
    ("before", "guarantee"),
    [
        ({"north": NOTHING}, "end-to-end"),
        ({"north": NOTHING | {"test": (CLASSIFIER_WEIGHTS,)}}, "end-to-end"),
        ({"north": NOTHING | {"train": (CLASSIFIER_WEIGHTS,)}}, "none"),
        ({"east": NOTHING}, "none"),
        ({}, "none"),
    ],
    ids=["nothing left", "of test units", "something left", "another site reported", "nobody reported"],
)
def test_what_left_before_is_a_part_of_every_claim_and_so_is_silence_on_it(before, guarantee):
    results = _results(unprotected_before=before)
    assert RunClaims.of(results).training["dp-sgd"].by_site["north"].guarantee == guarantee


@pytest.mark.parametrize(
    ("spent", "failure", "guarantee"),
    [((), None, "end-to-end"), ((CLASSIFIER_WEIGHTS,), None, "none"), (None, None, "none"), ((), "it goes on", "none")],
    ids=["did not begin", "left", "did not say", "goes on"],
)
def test_a_method_beside_counts_as_carried_out_unless_it_is_known_that_it_was_not(spent, failure, guarantee):
    results = _results(Account(OPEN, spent), failure=failure, unprotected_before={"north": NOTHING})
    assert RunClaims.of(results).training["dp-sgd"].by_site["north"].guarantee == guarantee


def test_a_simulation_compares_methods_each_as_if_it_had_been_run_alone():
    results = _results(Account(OPEN, OPEN.events), federation="")
    assert RunClaims.of(results).training["dp-sgd"].by_site["north"].guarantee == "end-to-end"


def test_every_claim_of_a_run_is_computed_once(monkeypatch):
    computed, real = [], run_claims.claim_of
    monkeypatch.setattr(run_claims, "claim_of", lambda plan: computed.append(plan.key) or real(plan))
    results = _results(Account(OPEN, OPEN.events), unprotected_before={"north": NOTHING}, dataset="x")
    results.sites["north"] = SiteEntry(300, 0, None)
    claims = RunClaims.of(results)
    assert len(computed) == 2 * len(results.accounts)  # beside all that left, and by itself
    summary_json(results, claims)
    tree = privacy_json(results, claims)
    assert len(computed) == 2 * len(results.accounts)
    assert tree["methods"]["dp-sgd"]["guarantee"] == claims.training["dp-sgd"].worst.guarantee == "none"
    assert claims.training["dp-sgd"].own.guarantee == "end-to-end"
    assert claims.together["north"].epsilon is None
    assert claims.most_together == claims.together["north"]

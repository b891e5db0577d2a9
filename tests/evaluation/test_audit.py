"""Honest mechanisms pass, close to their claim; broken ones that claim the same are refuted.

Keys are fixed. With fresh ones, an honest mechanism would be refuted with a probability of at most FALSE_ALARM, and
fall short of 0.9 of its claim with one below 1e-4.
"""

import math
from dataclasses import replace

import pytest
import torch

from cadp_fl.errors import ConfigError
from cadp_fl.evaluation.attacks import attacks_on, draw_statistics
from cadp_fl.evaluation.audit import AuditSettings, audit, audit_mechanism, protecting_mechanisms
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.mechanisms import GaussianMechanism, LaplaceMechanism, NoMechanism, mechanism_type
from cadp_fl.privacy.noise import NoiseSource
from tests.evaluation.controls import (
    Control,
    clip_that_lets_nan_through,
    column_sum_clip,
    frobenius_clip,
    noise_for_sensitivity_c,
    noise_of_epsilon_ten,
    noise_repeated_by_releases,
    noise_shared_by_a_batch,
    spectral_clip,
)

FALSE_ALARM = 1e-6
DELTA = 1e-5
DRAWS = {1.0: 1_500_000, 3.0: 300_000}
CLAIMS = list(DRAWS)
QUICK = AuditSettings(DELTA, dims=4, draws=100_000, false_alarm=FALSE_ALARM)
BOTH = [GaussianMechanism, LaplaceMechanism]


@pytest.fixture(scope="module")
def findings():
    found = {}
    for epsilon, draws in DRAWS.items():
        settings = AuditSettings(DELTA, clip_norm=2.5, dims=3, draws=draws, false_alarm=FALSE_ALARM / len(DRAWS))
        for finding in audit(protecting_mechanisms(), [epsilon], settings, noise=NoiseSource.from_seed(1)):
            found[finding.mechanism, epsilon] = finding
    return found


@pytest.mark.parametrize("epsilon", CLAIMS)
@pytest.mark.parametrize("name", protecting_mechanisms())
def test_an_honest_mechanism_is_not_refuted_and_its_claim_is_nearly_reached(findings, name, epsilon):
    finding = findings[name, epsilon]
    assert finding.claim == epsilon_of([mechanism_type(name).calibrated(2.5, epsilon, DELTA).event()], DELTA)
    assert 0.9 * finding.claim <= finding.lower_bound <= finding.claim
    assert not finding.is_refuted
    assert finding.strongest.attack == "worst-pair"


def finding_of(honest, release, epsilon, settings):
    control = Control(honest.calibrated(settings.clip_norm, epsilon, DELTA), release)
    return audit_mechanism(control, settings, false_alarm=FALSE_ALARM, noise=NoiseSource.from_seed(2))


def refuting(finding):
    return [result.attack for result in finding.attacks if result.lower_bound > finding.claim]


@pytest.mark.parametrize("epsilon", CLAIMS)
@pytest.mark.parametrize("honest", BOTH)
@pytest.mark.parametrize(
    ("release", "attack"),
    [
        (noise_for_sensitivity_c, "worst-pair"),
        (noise_of_epsilon_ten, "worst-pair"),
        (noise_shared_by_a_batch, "neighbour"),
        (noise_repeated_by_releases, "second-release"),
        (clip_that_lets_nan_through, "not-finite"),
    ],
)
def test_broken_noise_or_clip_of_a_record_is_refuted(release, attack, honest, epsilon):
    finding = finding_of(honest, release, epsilon, QUICK)
    assert finding.is_refuted
    assert attack in refuting(finding)


@pytest.mark.parametrize("epsilon", CLAIMS)
@pytest.mark.parametrize(
    ("honest", "release", "attack"),
    [(LaplaceMechanism, column_sum_clip, "flat"), (GaussianMechanism, spectral_clip, "orthogonal")],
)
def test_the_clip_of_a_batch_as_a_matrix_is_refuted(honest, release, attack, epsilon):
    settings = AuditSettings(DELTA, dims=16, draws=1_000_000, false_alarm=FALSE_ALARM)
    finding = finding_of(honest, release, epsilon, settings)
    assert finding.is_refuted
    assert attack in refuting(finding)


def test_the_clip_of_a_batch_in_its_frobenius_norm_is_private_and_not_refuted():
    finding = finding_of(GaussianMechanism, frobenius_clip, 3.0, replace(QUICK, draws=400_000))
    assert 0.3 < finding.lower_bound <= finding.claim


@pytest.mark.parametrize(
    ("release", "attack", "order", "distance"),
    [
        (column_sum_clip, "flat", 1, 2 * 16),
        (spectral_clip, "orthogonal", 2, math.sqrt(16 + 3)),
        (frobenius_clip, "orthogonal", 2, 2),
        (frobenius_clip, "flat", 2, 2),
    ],
)
def test_a_clip_of_a_batch_moves_by_what_is_told_of_it_in_units_of_c(release, attack, order, distance):
    chosen = next(each for each in attacks_on(3.0, 16) if each.name == attack)
    silent = Control(GaussianMechanism(3.0, 1e-9), release)
    left, right = (silent(batch, noise=NoiseSource.from_seed(1)) for batch in (chosen.left, chosen.right))
    moved = torch.linalg.vector_norm((left - right).double(), ord=order).item() / 3.0
    assert moved == pytest.approx(distance, rel=1e-4) or (release is frobenius_clip and moved < distance)


@pytest.mark.parametrize("dims", [1, 4, 40])
@pytest.mark.parametrize("honest", BOTH)
def test_batches_differ_in_one_record_and_the_worst_pair_ends_two_c_apart(honest, dims):
    silent = honest(3.0, 1e-9)
    for attack in attacks_on(3.0, dims):
        assert attack.left.shape == attack.right.shape == attack.weights.shape
        differ = (attack.left != attack.right).any(dim=1)
        assert differ.sum() == 1
    left, right = draw_statistics(silent, attacks_on(3.0, dims)[0], 1000, noise=NoiseSource.from_seed(1))
    assert len(left) == len(right) >= 1000
    assert torch.cat([-left, right]).numpy() == pytest.approx(3.0, rel=2e-5)


def test_a_mechanism_that_ignores_its_record_certifies_nothing():
    finding = finding_of(GaussianMechanism, lambda honest, z, noise: torch.zeros_like(z), 1.0, QUICK)
    assert finding.lower_bound == 0.0


def test_more_audits_share_the_false_alarms():
    settings = AuditSettings(DELTA, dims=2, draws=100_000)
    one, *_ = audit(["laplace"], [3.0], settings, noise=NoiseSource.from_seed(3))
    first, second = audit(["laplace"], [3.0, 1.0], settings, noise=NoiseSource.from_seed(3))
    assert one.attacks[0].true_positives == first.attacks[0].true_positives
    assert first.lower_bound < one.lower_bound
    assert second.claim == pytest.approx(1.0)


def test_what_claims_nothing_is_not_audited():
    assert set(protecting_mechanisms()) >= {"gaussian", "laplace"}
    assert "none" not in protecting_mechanisms()
    with pytest.raises(ConfigError, match="The mechanism 'none' claims none; choose one of: gaussian, "):
        audit_mechanism(NoMechanism(), QUICK, false_alarm=FALSE_ALARM, noise=NoiseSource.from_seed(1))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"delta": 0.0}, "delta is above 0 and below 1. Found 0;"),
        ({"false_alarm": 1.0}, "false_alarm is above 0 and below 1. Found 1;"),
        ({"clip_norm": -1.0}, "clip_norm is from 1e-6 to 1e6. Found -1;"),
        ({"dims": 0}, "dims is at least 1. Found 0;"),
        ({"draws": 10}, "draws is at least 10000. Found 10;"),
    ],
)
def test_settings_that_certify_nothing_are_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AuditSettings(**{"delta": DELTA} | values)

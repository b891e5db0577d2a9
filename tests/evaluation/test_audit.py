"""Honest code passes, close to its claim; broken code that claims the same is refuted.

Keys are fixed. With fresh ones, honest code would be refuted with a probability of at most FALSE_ALARM, and fall short
of 0.9 of its claim with one below 1e-4.
"""

import importlib
import math
import secrets

import numpy as np
import pytest
import torch
from scipy.stats import norm

from cadp_fl.errors import ConfigError
from cadp_fl.evaluation import aggregates
from cadp_fl.evaluation.attacks import attacks_on, draw_statistics
from cadp_fl.evaluation.audit import (
    AuditSettings,
    attack_result,
    audit,
    audit_aggregate,
    audit_mechanism,
    auditable,
    protecting_mechanisms,
)
from cadp_fl.evaluation.bounds import gaussian_bound, sampled_noise
from cadp_fl.evaluation.probe import OVERFLOW, ZERO, Probe, ProbeFlow, spelled
from cadp_fl.evaluation.shuffled import SHUFFLED
from cadp_fl.privacy import per_record
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.mechanisms import GaussianMechanism, LaplaceMechanism, NoMechanism, mechanism_type
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release import privatize as release_path
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
from tests.evaluation.faults import blanks_encoded_like_records, bright_units_first, true_labels

FALSE_ALARM = 1e-6
DELTA = 1e-5
DRAWS = {1.0: 1_500_000, 3.0: 300_000}
CLAIMS = [1.0, 3.0]
QUICK = AuditSettings(DELTA, dims=4, draws=100_000, false_alarm=FALSE_ALARM)
BOTH = [GaussianMechanism, LaplaceMechanism]


@pytest.mark.parametrize("epsilon", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])
@pytest.mark.parametrize("name", protecting_mechanisms())
def test_an_honest_mechanism_is_not_refuted_and_its_claim_is_nearly_reached(name, epsilon):
    settings = AuditSettings(DELTA, clip_norm=2.5, dims=3, draws=DRAWS[epsilon], false_alarm=FALSE_ALARM)
    (finding,) = audit([name], [epsilon], settings, noise=NoiseSource.from_seed(1))
    assert finding.claim == epsilon_of([mechanism_type(name).calibrated(2.5, epsilon, DELTA).event()], DELTA)
    assert 0.9 * finding.claim <= finding.lower_bound <= finding.claim
    assert not finding.is_refuted
    assert finding.strongest.attack == "worst-pair"
    assert {result.attack for result in finding.attacks} >= {"patient", "labels", "untouched"}
    assert len(finding.laws) > 20


@pytest.mark.parametrize("name", aggregates.AGGREGATES)
@pytest.mark.slow
def test_what_leaves_beside_a_release_is_not_refuted_and_certified_above_half_its_claim(name):
    (finding,) = audit([name], [3.0], AuditSettings(DELTA, clip_norm=2.5), noise=NoiseSource.from_seed(1))
    assert finding.claim == pytest.approx(3.0, rel=1e-3)
    assert not finding.is_refuted
    assert finding.lower_bound > 0.5 * finding.claim


def finding_of(honest, release, epsilon, settings):
    control = Control(honest.calibrated(settings.clip_norm, epsilon, DELTA), release)
    return audit_mechanism(control, settings, false_alarm=FALSE_ALARM, noise=NoiseSource.from_seed(2))


def refuting(finding):
    return [result.attack for result in finding.attacks if result.is_refuting] + list(finding.broken_laws)


@pytest.mark.parametrize("epsilon", CLAIMS)
@pytest.mark.parametrize("honest", BOTH)
@pytest.mark.parametrize(
    ("release", "attack"),
    [
        (noise_for_sensitivity_c, "worst-pair"),
        (noise_of_epsilon_ten, "worst-pair"),
        (noise_shared_by_a_batch, "noise of neighbours"),
        (noise_repeated_by_releases, "noise of releases"),
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
    settings = AuditSettings(DELTA, dims=16, draws=200_000, false_alarm=FALSE_ALARM)
    finding = finding_of(honest, release, epsilon, settings)
    assert finding.is_refuted
    assert attack in refuting(finding)


def test_the_clip_of_a_batch_in_its_frobenius_norm_is_private_and_not_refuted():
    finding = finding_of(GaussianMechanism, frobenius_clip, 3.0, QUICK)
    assert 0.3 < finding.lower_bound <= finding.claim


@pytest.mark.parametrize("dims", [1, 4, 40])
@pytest.mark.parametrize("name", [name for name in protecting_mechanisms() if name != "privunit"])  # which has no C
def test_the_worst_pair_ends_two_c_apart_after_all_of_a_release(dims, name):
    settings = {"clip_norm": 3.0, "noise": NoiseSource.from_seed(1)}
    mechanism = mechanism_type(name).calibrated(3.0, 100.0, DELTA)
    left, right = draw_statistics(mechanism, attacks_on(dims)[0], 1000, **settings)
    assert len(left) == len(right) == 1000
    std = math.sqrt(mechanism.noise_variance / 1000)
    assert right.mean() == pytest.approx(3.0, abs=6 * std)
    assert left.mean() == pytest.approx(-3.0, abs=6 * std)


def test_a_probe_reads_back_what_it_wrote_and_a_release_carries_it_through():
    mechanism = GaussianMechanism(2.0, 1e-6)
    levels = spelled(np.array([[1, 0, 0], [0, -1, 0], [0, 0, 0]]))
    levels[2] = ZERO
    released = Probe(mechanism, 3, 1, clip_norm=2.0, numbers=3).release(levels, noise=NoiseSource.from_seed(1))
    noised = released.noised[np.argsort(released.units)]
    assert noised == pytest.approx(np.array([[2.0, 0, 0], [0, -2.0, 0], [0, 0, 0]]), abs=1e-4)
    levels[1] = OVERFLOW
    released = Probe(mechanism, 3, 1, clip_norm=2.0, numbers=3).release(levels, noise=NoiseSource.from_seed(1))
    assert released.noised[released.units == 1] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 2.0])
def test_the_rates_of_a_sampled_step_lead_back_to_its_noise(noise, threshold):
    true, false = (
        0.3 * norm.sf(threshold, centre, noise) + 0.7 * norm.sf(threshold, 0, noise) for centre in (1.0, -1.0)
    )
    assert sampled_noise(true, false, 0.3) == pytest.approx(noise, rel=1e-6)
    assert sampled_noise(false, true, 0.3) == math.inf


def test_a_mechanism_that_ignores_its_record_certifies_nothing():
    finding = finding_of(GaussianMechanism, lambda honest, z, noise: torch.zeros_like(z), 1.0, QUICK)
    of_latents = [attack for attack in finding.attacks if attack.attack != "labels"]
    assert max(attack.lower_bound for attack in of_latents) == 0.0


@pytest.mark.slow
def test_more_audits_share_the_false_alarms():
    settings = AuditSettings(DELTA, dims=2, draws=100_000)
    one, *_ = audit(["laplace"], [3.0], settings, noise=NoiseSource.from_seed(3))
    first, second = audit(["laplace"], [3.0, 1.0], settings, noise=NoiseSource.from_seed(3))
    assert one.attacks[0].true_positives == first.attacks[0].true_positives
    assert first.lower_bound < one.lower_bound
    assert second.claim == pytest.approx(1.0)


SMALL = AuditSettings(DELTA, dims=4, draws=40_000)


def no_clip_and_no_noise(patch):
    patch.setattr(GaussianMechanism, "__call__", lambda self, latents, *, noise: latents)


def with_streams(patch, **streams):
    honest = NoiseSource.child
    patch.setattr(NoiseSource, "child", lambda self, *names: streams.get(names[0], lambda: honest(self, *names))())


def noise_of_a_seed(patch):
    with_streams(patch, perturbation=lambda: NoiseSource.from_seed(0))


def fresh_latents_of_a_seed(patch):
    with_streams(patch, prior=lambda: NoiseSource.from_seed(0))


def with_the_key_of_the_noise(patch, stream):
    seeds = []

    def perturbation():
        seeds.append(secrets.randbits(64))
        return NoiseSource.from_seed(seeds[-1])

    with_streams(patch, **{"perturbation": perturbation, stream: lambda: NoiseSource.from_seed(seeds[-1])})


def fresh_latents_with_the_key_of_the_noise(patch):
    with_the_key_of_the_noise(patch, "prior")


def lies_with_the_key_of_the_noise(patch):
    with_the_key_of_the_noise(patch, "labels")


def lies_of_a_seed(patch):
    with_streams(patch, labels=lambda: NoiseSource.from_seed(0))


def noise_that_starts_again_in_each_batch(patch):
    honest = GaussianMechanism.__call__
    patch.setattr(
        GaussianMechanism,
        "__call__",
        lambda self, latents, *, noise: honest(self, latents, noise=NoiseSource.from_seed(0)),
    )


def untouched_latents_as_they_are(patch):
    perturb, encode, decode, seen = GaussianMechanism.__call__, ProbeFlow.encode, ProbeFlow.decode, {}

    def perturbed(self, latents, *, noise):
        seen["kept"] = latents.shape[1]
        return perturb(self, latents, noise=noise)

    def encoded(self, x, condition):
        seen["latents"], log_det = encode(self, x, condition)
        return seen["latents"], log_det

    def decoded(self, z, condition):
        kept = seen["kept"]
        return decode(self, torch.cat([z[:, :kept], seen["latents"][:, kept:]], dim=1), condition)

    patch.setattr(GaussianMechanism, "__call__", perturbed)
    patch.setattr(ProbeFlow, "encode", encoded)
    patch.setattr(ProbeFlow, "decode", decoded)


def decoding_under_the_true_label(patch):
    honest, seen = release_path.condition_of, []

    def condition_of(*arguments):
        seen.append(honest(*arguments))
        return seen[-1] if len(seen) % 2 else seen[-2]

    patch.setattr(release_path, "condition_of", condition_of)


def blanks_without_noise(patch):
    honest = GaussianMechanism.__call__
    patch.setattr(
        GaussianMechanism,
        "__call__",
        lambda self, latents, *, noise: torch.where(
            (latents == 0).all(dim=1)[:, None], latents, honest(self, latents, noise=noise)
        ),
    )


def changed_order(patch, change):
    honest = NoiseSource.permutation
    patch.setattr(NoiseSource, "permutation", lambda self, count: change(honest(self, count)))


def order_of_the_input(patch):
    changed_order(patch, np.sort)


def order_that_turns_the_input_round(patch):
    changed_order(patch, lambda order: np.roll(np.arange(len(order)), order[0]))


def the_same_order_in_every_release(patch):
    changed_order(patch, lambda order: np.random.default_rng(0).permutation(len(order)))


def a_unit_twice(patch):
    changed_order(patch, lambda order: np.where(order == 0, len(order) - 1, order) if len(order) > 1 else order)


BREAKS = {
    no_clip_and_no_noise: "worst-pair",
    true_labels: "labels",
    noise_of_a_seed: "noise of releases",
    fresh_latents_of_a_seed: "fresh latents of releases",
    fresh_latents_with_the_key_of_the_noise: "noise and fresh latents",
    lies_with_the_key_of_the_noise: "labels and noise",
    lies_of_a_seed: "labels of releases",
    noise_that_starts_again_in_each_batch: "noise of batches",
    untouched_latents_as_they_are: "untouched",
    decoding_under_the_true_label: "labels",
    blanks_encoded_like_records: "blanks",
    blanks_without_noise: "no noise twice",
    order_of_the_input: "order and input",
    order_that_turns_the_input_round: "order and input",
    the_same_order_in_every_release: "order of releases",
    a_unit_twice: "every unit once",
    bright_units_first: "order and content",
}


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_a_broken_release_path_is_refuted(broken, monkeypatch):
    broken(monkeypatch)
    (finding,) = audit(["gaussian"], [1.0], SMALL, noise=NoiseSource.from_seed(4))
    assert finding.is_refuted
    assert BREAKS[broken] in refuting(finding)


def half_the_noise(patch):
    for name in ("normal", "rounded_normal"):
        honest = getattr(NoiseSource, name)
        patch.setattr(
            NoiseSource, name, lambda self, shape, std, like, honest=honest: honest(self, shape, std / 2, like)
        )


def noise_of_calls_of_a_seed(patch):
    patch.setattr(aggregates, "noised_counts", seeded(aggregates.noised_counts))
    patch.setattr(aggregates, "clipped_sum", seeded(aggregates.clipped_sum))
    patch.setattr(aggregates, "joint_moments", seeded(aggregates.joint_moments))
    patch.setattr(aggregates, "train_dp_sgd", seeded(aggregates.train_dp_sgd))


def seeded(honest):
    return lambda *arguments, noise, **rest: honest(*arguments, noise=NoiseSource.from_seed(0), **rest)


@pytest.mark.parametrize("broken", [half_the_noise, noise_of_calls_of_a_seed])
@pytest.mark.parametrize("name", aggregates.AGGREGATES)
@pytest.mark.slow
def test_broken_noise_beside_a_release_is_refuted(name, broken, monkeypatch):
    aggregate = aggregates.AGGREGATES[name](3.0, DELTA, 1.0)
    broken(monkeypatch)
    settings = AuditSettings(DELTA, draws=400_000)
    assert audit_aggregate(name, aggregate, settings, false_alarm=1e-6, noise=NoiseSource.from_seed(4)).is_refuted


def test_a_sum_that_is_not_clipped_and_moments_that_are_clipped_to_twice_as_much_are_refuted(monkeypatch):
    moments = importlib.import_module("cadp_fl.privacy.moments")
    honest = moments.clip_l2
    monkeypatch.setattr(moments, "clip_l2", lambda vectors, clip_norm: honest(vectors, 2 * clip_norm))
    for name in ("sum", "moments"):
        (finding,) = audit([name], [3.0], AuditSettings(DELTA, draws=200_000), noise=NoiseSource.from_seed(4))
        assert finding.is_refuted, name


@pytest.mark.slow
def test_a_step_whose_layers_are_clipped_apart_or_whose_sample_is_fixed_is_refuted(monkeypatch):
    aggregate = aggregates.AGGREGATES["dp-sgd"](3.0, DELTA, 1.0)
    settings, noise = AuditSettings(DELTA, draws=100_000), NoiseSource.from_seed(4)
    with monkeypatch.context() as patch:
        clip = per_record.clip_factors
        patch.setattr(per_record, "clip_factors", lambda norms, clip_norm: clip(norms, clip_norm * math.sqrt(2)))
        finding = audit_aggregate("dp-sgd", aggregate, settings, false_alarm=1e-6, noise=noise.child(1))
        assert "sampled-canary" in refuting(finding)
    with monkeypatch.context() as patch:
        patch.setattr(NoiseSource, "poisson_sample", lambda self, population, rate: np.arange(population)[::2])
        finding = audit_aggregate("dp-sgd", aggregate, settings, false_alarm=1e-6, noise=noise.child(2))
        assert "samples of releases" in refuting(finding)


def test_honest_statistics_are_not_refuted_more_often_than_the_false_alarm():
    mu, claim, refuted = 1.0, epsilon_of([GaussianMechanism(0.5, 1.0).event()], DELTA), 0
    generator = np.random.default_rng(0)
    for run in range(400):
        result = attack_result(
            "x",
            lambda count, _: (generator.standard_normal(count), generator.standard_normal(count) + mu),
            2000,
            gaussian_bound,
            claim,
            DELTA,
            0.05,
            NoiseSource.from_seed(run),
        )
        refuted += result.is_refuting
    assert refuted <= 40  # 400 of at most .05 each give more with a probability below 1e-4


def test_what_claims_nothing_is_not_audited():
    assert set(auditable()) == {*protecting_mechanisms(), SHUFFLED, *aggregates.AGGREGATES}
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

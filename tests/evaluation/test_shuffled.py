"""A shuffled release passes its audit, near its claim; one that is broken and claims the same is refuted.

Keys are fixed. With fresh ones, honest code would be refuted with a probability of at most FALSE_ALARM.
"""

import math
from bisect import bisect_left
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.stats import binom, multivariate_normal, norm

from cadp_fl.evaluation.audit import AuditSettings, audit, audit_shuffled, guess_result, law_results
from cadp_fl.evaluation.bounds import shuffled_bound
from cadp_fl.evaluation.probe import ProbeFlow
from cadp_fl.evaluation.shuffled import (
    SHUFFLED,
    SHUFFLED_CLASSES,
    UNITS,
    Guesses,
    Messages,
    guesses_by_a_place,
    log_ratios,
    place_releases_for,
    profile_of,
    release_by_probe,
    shuffled_mechanism,
    worst_pair,
)
from cadp_fl.evaluation.shuffled_laws import shuffled_laws
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.privunit import PrivUnitMechanism
from cadp_fl.privacy.shuffling import Densities, shuffled_delta
from cadp_fl.release import privatize as release_path
from tests.evaluation.faults import blanks_encoded_like_records, bright_units_first, true_labels

DELTA, FALSE_ALARM = 1e-5, 1e-6
CLAIMS = [1.0, 3.0]
ALLOWED = {1.0: (0.0925, 0.103, 0.877, 0.852), 3.0: (0.304, 0.319, 2.869, 2.728)}
"""TPR - FPR of the best attacker and as the blanket allows, and the most that either bound certifies."""


def cells(mechanism):
    """Return the density of a message from x, x' and one of the others, over the prior, and the prior's mass: by cell.

    A cell is the side of x, of x' or neither; whether on the side of the others; and the label.
    """
    q, local, label = norm.sf(mechanism.threshold), mechanism.latent_epsilon, mechanism.label_epsilon
    high, low = np.array([math.exp(local), 1]) / (1 + q * math.expm1(local))
    told, lie = np.array([math.exp(label), 1]) * SHUFFLED_CLASSES / (math.exp(label) + SHUFFLED_CLASSES - 1)
    rows = [
        (
            (high if side == 0 else low) * (told if y == 0 else lie),
            (high if side == 1 else low) * (told if y == 1 else lie),
            (high if beside else low) * (told if y == 2 else lie),
            (q, q, 1 - 2 * q)[side] * (q if beside else 1 - q) / SHUFFLED_CLASSES,
        )
        for side in range(3)
        for beside in (False, True)
        for y in range(SHUFFLED_CLASSES)
    ]
    return np.array(rows).T


def simulated(mechanism, releases, generator):
    """Return log-likelihood ratios of releases with x and with x', drawn cell by cell."""
    ours, theirs, others, mass = cells(mechanism)
    ratios = []
    for own in (ours, theirs):
        counts = generator.multinomial(UNITS - 1, mass * others, size=releases)
        counts[np.arange(releases), generator.choice(len(mass), size=releases, p=mass * own)] += 1
        ratios.append(np.log(counts @ (theirs / others)) - np.log(counts @ (ours / others)))
    return ratios


@pytest.mark.parametrize("epsilon", CLAIMS)
def test_the_most_that_can_be_certified_is_near_the_claim_and_never_above(epsilon):
    mechanism = shuffled_mechanism(epsilon, DELTA)
    ours, theirs, others, mass = cells(mechanism)
    exact = Densities(ours / others, theirs / others, others * mass, 1.0)
    blanket, claim = profile_of(mechanism), epsilon_of([mechanism.event()], DELTA)
    epsilons = np.linspace(0, 3, 13)
    deltas = shuffled_delta(exact, UNITS, epsilons)
    assert (deltas <= [blanket.delta(each) + 1e-10 for each in epsilons]).all()
    (advantage,) = shuffled_delta(exact, UNITS, np.zeros(1))
    grid = ALLOWED[epsilon][3] + np.linspace(-0.01, 0.01, 9)
    pure = grid[shuffled_delta(exact, UNITS, grid) > DELTA].max()
    most = shuffled_bound(advantage, blanket, DELTA)
    assert (advantage, blanket.delta(0.0), most, pure) == pytest.approx(ALLOWED[epsilon], rel=5e-3)
    assert pure < most < claim
    left, right = simulated(mechanism, 20_000, np.random.default_rng(0))
    assert (right > 0).mean() - (left > 0).mean() == pytest.approx(advantage, abs=0.022)  # 4.4 standard deviations


def test_the_log_likelihood_ratio_is_that_of_all_orders_of_a_release():
    mechanism, units = shuffled_mechanism(3.0, DELTA), 4
    pair, generator = worst_pair(units), np.random.default_rng(1)
    latents, labels = generator.standard_normal((3, units, 2)) * 1.5, generator.integers(0, 3, (3, units))
    whole, _ = log_ratios(mechanism, Messages(latents, labels), pair)
    q, local, label = norm.sf(mechanism.threshold), mechanism.latent_epsilon, mechanism.label_epsilon

    def density(v, y, direction, true):
        high = math.exp(local) if v @ direction >= mechanism.threshold else 1.0
        told = (math.exp(label) if y == true else 1.0) / (math.exp(label) + SHUFFLED_CLASSES - 1)
        return multivariate_normal([0, 0]).pdf(v) * high / (1 + q * math.expm1(local)) * told

    for release in range(3):
        likelihoods = [
            sum(
                math.prod(
                    density(latents[release, order[i]], labels[release, order[i]], crowd.signs[i], crowd.labels[i])
                    for i in range(units)
                )
                for order in permutations(range(units))
            )
            for crowd in pair
        ]
        assert whole[release] == pytest.approx(math.log(likelihoods[1] / likelihoods[0]), rel=1e-9)


@pytest.mark.parametrize("epsilon", CLAIMS)
def test_the_bound_is_above_the_claim_only_where_the_claimed_trade_off_is_refuted(epsilon):
    mechanism = shuffled_mechanism(epsilon, DELTA)
    profile, claim = profile_of(mechanism), epsilon_of([mechanism.event()], DELTA)
    allowed = profile.delta(0.0)
    bounds = [shuffled_bound(each, profile, DELTA) for each in (-1.0, 0.0, allowed / 2, allowed, allowed * 1.1, 0.999)]
    assert bounds[:2] == [0.0, 0.0]
    assert 0.3 * claim < bounds[2] < 0.7 * claim
    assert 0.999 * claim < bounds[3] <= claim
    assert claim < bounds[4] < bounds[5]


def test_the_worst_release_that_keeps_its_claim_is_not_refuted_more_often_than_the_false_alarm():
    mechanism = shuffled_mechanism(1.0, DELTA)
    claim, rate = epsilon_of([mechanism.event()], DELTA), (1 + profile_of(mechanism).delta(0.0)) / 2

    def is_refuted(correct):
        guesses = Guesses("x", np.arange(2000) < correct, np.zeros(0, dtype=bool))
        return guess_result(guesses, mechanism, claim, DELTA, 0.05).is_refuting

    least = bisect_left(range(2001), True, key=is_refuted)
    assert 0.02 < binom.sf(least - 1, 2000, rate) <= 0.05


def test_honest_messages_units_and_order_keep_their_laws_and_the_order_tells_nothing():
    mechanism, pair = shuffled_mechanism(3.0, DELTA), worst_pair()
    laws = list(shuffled_laws(mechanism, noise=NoiseSource.from_seed(1)))
    assert len(laws) > 20
    assert min(law.p_value for law in laws) > 1e-4
    guesses = guesses_by_a_place(
        mechanism, release_by_probe(mechanism, pair, apart=True), pair, 120, NoiseSource.from_seed(2)
    )
    assert guess_result(guesses, mechanism, 3.0, DELTA, 1e-3).lower_bound == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", CLAIMS)
def test_an_honest_shuffle_is_not_refuted_and_half_of_its_claim_is_certified(epsilon):
    (finding,) = audit([SHUFFLED], [epsilon], AuditSettings(DELTA), noise=NoiseSource.from_seed(1))
    assert finding.mechanism == f"privunit, shuffled among {UNITS} units"
    assert finding.claim == epsilon_of([shuffled_mechanism(epsilon, DELTA).event()], DELTA)
    assert not finding.is_refuted
    assert finding.strongest.attack == "whole-release"
    assert 0.5 * epsilon < finding.lower_bound <= finding.claim <= epsilon


HONEST = PrivUnitMechanism.__call__
BATCH = vars(release_path)["_Batch"]


def the_direction_itself(patch):
    patch.setattr(
        PrivUnitMechanism, "__call__", lambda self, latents, *, noise: latents / latents.norm(dim=1, keepdim=True)
    )


def with_odds(patch, factor):
    def perturbed(self, latents, *, noise):
        return HONEST(replace(self, latent_epsilon=self.latent_epsilon + math.log(factor)), latents, noise=noise)

    patch.setattr(PrivUnitMechanism, "__call__", perturbed)


def accepted_half_as_often(patch):
    with_odds(patch, 2)


def accepted_twice_as_often(patch):
    with_odds(patch, 0.5)


def the_order_of_the_input(patch):
    patch.setattr(release_path, "release_order", lambda units, noise: np.arange(len(units.slots)))


def the_order_of_what_is_drawn(patch):
    patch.setattr(NoiseSource, "permutation", lambda self, count: np.arange(count))


def the_same_order_in_every_release(patch):
    patch.setattr(NoiseSource, "permutation", lambda self, count: np.random.default_rng(0).permutation(count))


def changed_order(patch, change):
    honest = release_path.release_order
    patch.setattr(release_path, "release_order", lambda units, noise: change(honest(units, noise)))


def a_unit_twice(patch):
    changed_order(patch, lambda order: np.where(order == 0, len(order) - 1, order))


def a_unit_left_out(patch):
    changed_order(patch, lambda order: order[order != 0])


def a_unit_twice_beside_all(patch):
    changed_order(patch, lambda order: np.append(order, order[0]))


def blanks_left_out(patch):
    honest = BATCH.privatize

    def privatize(self, records, blank):
        kept = np.flatnonzero(~blank)
        return honest(self, records.select(kept), blank[kept])

    patch.setattr(BATCH, "privatize", privatize)


def two_units_with_one_draw(patch):
    def perturbed(self, latents, *, noise):
        drawn = HONEST(self, latents, noise=noise)
        return torch.cat([drawn[:1], drawn[:1], drawn[2:]])

    patch.setattr(PrivUnitMechanism, "__call__", perturbed)


def noise_of_a_seed(patch):
    patch.setattr(
        PrivUnitMechanism,
        "__call__",
        lambda self, latents, *, noise: HONEST(self, latents, noise=NoiseSource.from_seed(0)),
    )


def the_other_half_space_for_a_class(patch):
    honest = ProbeFlow.encode

    def encode(self, x, condition):
        z, log_det = honest(self, x, condition)
        return torch.where(condition.argmax(dim=1, keepdim=True) == 1, -z, z), log_det

    patch.setattr(ProbeFlow, "encode", encode)


def a_half_space_that_follows_the_lie(patch):
    respond, perturb, seen = (*(vars(BATCH)[name] for name in ("_respond", "_perturb")), {})

    def responded(self, records):
        said = respond(self, records)
        seen["lies"] = torch.from_numpy(said.labels != records.labels)
        return said

    def perturbed(self, latents):
        lies, seen["lies"] = seen["lies"][: len(latents)], seen["lies"][len(latents) :]
        return perturb(self, torch.where(lies[:, None], -latents, latents))

    patch.setattr(BATCH, "_respond", responded)
    patch.setattr(BATCH, "_perturb", perturbed)


BREAKS = {
    the_direction_itself: "side of class 0",
    accepted_half_as_often: "side of class 0",
    accepted_twice_as_often: "side of class 0",
    true_labels: "label of class 0",
    the_order_of_the_input: "order and input",
    the_order_of_what_is_drawn: "order and input",
    the_same_order_in_every_release: "order of releases",
    bright_units_first: "order and content",
    a_unit_twice: "every unit once",
    a_unit_left_out: "every unit once",
    a_unit_twice_beside_all: "every unit once",
    blanks_left_out: "every unit once",
    blanks_encoded_like_records: "blanks",
    two_units_with_one_draw: "no noise twice",
    noise_of_a_seed: "no noise twice",
    the_other_half_space_for_a_class: "side of class 1",
    a_half_space_that_follows_the_lie: "side of class 0",
}


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_a_broken_shuffled_release_breaks_a_law(broken, monkeypatch):
    broken(monkeypatch)
    laws = law_results(shuffled_laws(shuffled_mechanism(1.0, DELTA), noise=NoiseSource.from_seed(4)), FALSE_ALARM / 80)
    assert BREAKS[broken] in [law.law for law in laws if law.is_broken]


@pytest.mark.parametrize("broken", [a_unit_left_out, true_labels])
def test_an_audit_of_a_broken_shuffled_release_ends_and_refutes_it(broken, monkeypatch):
    broken(monkeypatch)
    (finding,) = audit([SHUFFLED], [3.0], AuditSettings(DELTA, draws=10_000), noise=NoiseSource.from_seed(4))
    assert finding.is_refuted
    assert finding.mechanism == f"privunit, shuffled among {UNITS} units"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "epsilon", "draws"),
    [(accepted_half_as_often, 3.0, 1_000_000), (true_labels, 1.0, 100_000), (true_labels, 3.0, 100_000)],
)
def test_the_likelihood_ratio_of_all_messages_refutes_a_message_that_shows_more(broken, epsilon, draws, monkeypatch):
    broken(monkeypatch)
    finding = audit_shuffled(
        shuffled_mechanism(epsilon, DELTA),
        AuditSettings(DELTA, draws=draws),
        false_alarm=FALSE_ALARM / 40,
        noise=NoiseSource.from_seed(4),
    )
    assert "whole-release" in [result.attack for result in finding.attacks if result.is_refuting]


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", CLAIMS)
@pytest.mark.parametrize("broken", [the_order_of_the_input, the_same_order_in_every_release])
def test_a_message_in_one_place_refutes_an_order_that_is_known(broken, epsilon, monkeypatch):
    broken(monkeypatch)
    mechanism, pair = shuffled_mechanism(epsilon, DELTA), worst_pair()
    release = release_by_probe(mechanism, pair, apart=True)
    guesses = guesses_by_a_place(mechanism, release, pair, place_releases_for(1_000_000), NoiseSource.from_seed(2))
    claim = epsilon_of([mechanism.event()], DELTA)
    assert guess_result(guesses, mechanism, claim, DELTA, FALSE_ALARM / 80).is_refuting

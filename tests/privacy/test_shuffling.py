"""The privacy blanket's bound: never below the truth, close to it, and composed with what is beside it."""

import importlib.util
import math
from itertools import product

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import binom, multinomial

from cadp_fl.errors import BudgetError
from cadp_fl.privacy.accounting import check_workable, epsilon_of
from cadp_fl.privacy.cohort import Cohort
from cadp_fl.privacy.events import GaussianSum, LatentPrivUnit, PoissonGaussian
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.privunit import PrivUnitMechanism
from cadp_fl.privacy.shuffling import (
    Densities,
    ShuffledProfile,
    best_threshold,
    gain_of,
    half_spaces,
    joined,
    mass_beyond,
    responses,
    shuffled_delta,
)
from tests.conftest import ROOT

REPLACE, REMOVE = Relation.REPLACE_ONE, Relation.ADD_OR_REMOVE_ONE
DELTA = 1e-5
REFERENCE = ROOT.parent / "shared" / "bin" / "shuffle_reference.py"


def reference():
    """Return the independent reference, which lies beside a checkout and not in it."""
    if not REFERENCE.is_file():
        pytest.skip("the reference implementation is not at hand")
    spec = importlib.util.spec_from_file_location("shuffle_reference", REFERENCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bound(pair, units, *epsilons):
    return shuffled_delta(pair, units, np.array(epsilons))


def histograms(epsilon, classes, inputs):
    """Return the exact law of the histogram of randomized responses to some inputs."""
    other = 1 / (math.exp(epsilon) + classes - 1)
    laws = {(0,) * classes: 1.0}
    for value in inputs:
        answers = [other * (math.exp(epsilon) if k == value else 1) for k in range(classes)]
        grown = {}
        for counts, k in product(laws, range(classes)):
            key = (*counts[:k], counts[k] + 1, *counts[k + 1 :])
            grown[key] = grown.get(key, 0.0) + laws[counts] * answers[k]
        laws = grown
    return laws


@pytest.mark.parametrize(("classes", "local", "units"), [(3, 1.0, 5), (3, 2.0, 12), (4, 2.0, 6)])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.8])
def test_the_bound_is_never_below_exact_shuffled_histograms_and_close(classes, local, units, epsilon):
    worst = 0.0
    for others in range(classes):
        rest = [others] * (units - 1)
        ours, theirs = histograms(local, classes, [0, *rest]), histograms(local, classes, [1, *rest])
        worst = max(worst, sum(max(p - math.exp(epsilon) * theirs[c], 0) for c, p in ours.items()))
    (delta,) = bound(responses(local, classes, REPLACE), units, epsilon)
    assert worst <= delta <= worst + 0.0015


def summed(pair, units, epsilon):
    """Return the blanket bound by summing over how often each pair of values comes, one by one."""
    value = pair.ours - math.exp(epsilon) * pair.theirs
    total = 0.0
    for m in range(1, units + 1):
        law = multinomial(m, pair.probability)
        for counts in product(range(m + 1), repeat=len(value) - 1):
            if sum(counts) <= m:
                each = np.array([*counts, m - sum(counts)])
                total += binom.pmf(m, units, pair.gamma) * law.pmf(each) * max(each @ value, 0)
    return total / (pair.gamma * units)


@pytest.mark.parametrize("relation", [REPLACE, REMOVE])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.5])
def test_the_grid_adds_next_to_nothing_to_the_sum(relation, epsilon):
    pair = half_spaces(1.0, 2.5, relation)
    for each in (pair, pair.swapped()):
        exact = summed(each, 12, epsilon)
        (delta,) = bound(each, 12, epsilon)
        assert exact * (1 - 1e-9) <= delta <= exact * 1.001 + 1e-9


def test_the_bound_is_that_of_the_reference():
    other = reference()
    for local, label, units in ((3.0, 0.0, 480), (4.1, 0.0, 1500), (3.0, 2.0, 1500), (7.6, 0.0, 60000)):
        gamma, atoms = other.joined(other.latent_atoms(local), other.label_atoms(label, 10))
        pair = half_spaces(best_threshold(local), local, REPLACE)
        pair = joined(pair, responses(label, 10, REPLACE)) if label else pair
        for epsilon in (0.5, 1.0):
            rounded_up = other.blanket_delta(epsilon, units, gamma, atoms, points=1 << 22)
            (delta,) = bound(pair, units, epsilon)
            assert 0.9 * rounded_up < delta <= rounded_up  # every value is rounded up there


ALLOWED = [
    (480, 1.0, 0.0, 3.12),
    pytest.param(1500, 1.0, 0.0, 4.12, marks=pytest.mark.slow),
    pytest.param(2333, 1.0, 0.0, 4.52, marks=pytest.mark.slow),
    (60000, 1.0, 0.0, 7.63),
    pytest.param(480, 3.0, 0.0, 5.14, marks=pytest.mark.slow),
    (1500, 3.0, 0.0, 5.98),
    (1500, 1.0, 0.4, 5.01),
    (1500, 3.0, 0.4, 7.18),
]


@pytest.mark.parametrize(("units", "epsilon", "label_share", "local"), ALLOWED)
def test_local_epsilons_that_a_budget_allows(units, epsilon, label_share, local):
    cohort = Cohort(units, 10 if label_share else 0, label_share)
    event = PrivUnitMechanism.calibrated(1.0, epsilon, DELTA, cohort=cohort).event()
    assert event.local_epsilon == pytest.approx(local, rel=0.02)
    assert 0.97 * epsilon <= epsilon_of([event], DELTA) <= epsilon


@pytest.mark.parametrize("beside", [[], ["moments"], ["moments", "steps"]])
def test_a_calibrated_release_spends_its_budget_with_what_is_beside_it(beside):
    events = {
        "moments": GaussianSum(stage="moments", clip_norm=1.0, noise_std=6.0),
        "steps": PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=3.0, sampling_rate=0.05, steps=40),
    }
    others = [events[name] for name in beside]
    made = PrivUnitMechanism.calibrated(1.0, 3.0, DELTA, beside=others, cohort=Cohort(1500, 10, 0.4))
    assert 0.97 * 3 <= epsilon_of([*others, made.event()], DELTA) <= 3.0


def test_without_a_shuffle_the_local_epsilon_is_claimed():
    made = PrivUnitMechanism.calibrated(1.0, 2.0, DELTA, cohort=Cohort(label_share=0.4))
    assert made.event().shuffled_units == 0
    for relation in (REPLACE, REMOVE):
        assert epsilon_of([made.event()], DELTA, relation) == made.event().local_epsilon <= 2.0
    assert not made.event().has_delta
    assert made.latent_epsilon == pytest.approx(1.2, rel=1e-3)


def test_no_local_epsilon_meets_a_budget_that_is_spent_already():
    with pytest.raises(BudgetError, match="spend less beside it"):
        PrivUnitMechanism.calibrated(
            1.0, 1.0, DELTA, beside=[GaussianSum(stage="moments", clip_norm=1.0, noise_std=1.0)], cohort=Cohort(500)
        )


def event(units=1500, latent=3.0, label=2.0, m=1, **changes):
    fields = {"latent_epsilon": latent, "threshold": best_threshold(latent), "label_epsilon": label, "classes": 10}
    return LatentPrivUnit(stage="release", shuffled_units=units, records_per_unit=m, **(fields | changes))


def test_more_units_hide_more_and_never_less_than_none():
    costs = [epsilon_of([event(units)], DELTA) for units in (1, 10, 100, 1000, 10_000)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] <= event().local_epsilon + 1e-4
    assert costs[0] > 0.99 * event().local_epsilon


def test_a_patients_messages_cost_more_together_and_hide_among_patients():
    one, two, three = (epsilon_of([event(latent=1.0, label=0.8, m=m)], DELTA) for m in (1, 2, 3))
    assert one < two < three < 3 * 1.8
    pair = half_spaces(best_threshold(1.0), 1.0, REPLACE)
    twice = joined(pair, pair)
    exact = summed(Densities(twice.ours, twice.theirs, twice.probability, twice.gamma), 5, 0.4)
    assert exact <= bound(twice, 5, 0.4)[0] <= exact * 1.001


def test_add_or_remove_costs_less_than_replacing_and_some():
    replaced, removed = (epsilon_of([event()], DELTA, relation) for relation in (REPLACE, REMOVE))
    assert 0.5 * replaced < removed < replaced


def test_no_other_pair_costs_more_than_disjoint_half_spaces_with_different_labels():
    threshold, local = best_threshold(3.0), 3.0
    worst = half_spaces(threshold, local, REPLACE)
    q, (high, low) = mass_beyond(threshold), worst.ours[:2]
    epsilons = (0.0, 0.3, 0.6, 1.0, 2.0)
    label, same = responses(2.0, 10, REPLACE), responses(2.0, 10, REMOVE)
    alike = Densities(same.ours, same.ours, same.probability, same.gamma)  # both records have the label
    others = [Densities(np.array([high, low]), np.array([1.0, 1.0]), np.array([q, 1 - q]), worst.gamma)]  # a blank
    for shared in (0.25, 0.5, 1.0):
        mass = np.array([shared * q, (1 - shared) * q, (1 - shared) * q, 1 - (2 - shared) * q])
        others.append(Densities(np.array([high, high, low, low]), np.array([high, low, high, low]), mass, worst.gamma))
    most = bound(joined(worst, label), 300, *epsilons)
    for other in (*others, others[0].swapped()):
        for said in (label, alike):
            assert (bound(joined(other, said), 300, *epsilons) <= most * (1 + 1e-6) + 1e-12).all()


def losses_of_a_release(pair, units, count, generator):
    """Return privacy losses log(P / Q) drawn from P: one message has the density w, and the blanket hides it."""
    total = np.zeros((count, 2))
    ours = pair.ours * pair.probability
    first = generator.choice(len(ours), size=count, p=ours / ours.sum())
    total += np.stack([pair.ours[first], pair.theirs[first]], axis=1)
    others = generator.binomial(units - 1, pair.gamma, size=count)
    for m in np.unique(others):
        here = others == m
        counts = generator.multinomial(m, pair.probability, size=here.sum())
        total[here] += counts @ np.stack([pair.ours, pair.theirs], axis=1)
    return np.log(total[:, 0] / total[:, 1])


def test_a_whole_plan_costs_what_its_losses_drawn_one_by_one_say():
    release, moments = (
        event(units=1000, latent=4.0, label=2.5),
        GaussianSum(stage="moments", clip_norm=1.0, noise_std=5),
    )
    generator = np.random.default_rng(3)
    pair = joined(half_spaces(release.threshold, 4.0, REPLACE), responses(2.5, 10, REPLACE))
    mu = 2 / 5
    count = 1_000_000
    loss = losses_of_a_release(pair, 1000, count, generator) + generator.normal(mu**2 / 2, mu, count)
    for delta in (0.1, 0.01, 0.001):
        epsilon = epsilon_of([release, moments], delta)
        drawn = np.maximum(0, 1 - np.exp(epsilon - loss))
        assert drawn.mean() == pytest.approx(delta, abs=5 * drawn.std() / math.sqrt(count), rel=0.02)


@pytest.mark.parametrize("grid", [1e-2, 1e-3, 1e-4])
def test_what_is_composed_dominates_the_bound_on_every_grid(grid):
    profile = event(units=800).loss(REPLACE)
    made = profile.distribution(grid)
    for epsilon in np.arange(0.0, 3.0, 0.137):
        assert made.get_delta_for_epsilon(epsilon) >= profile.delta(epsilon) * (1 - 1e-9) - 1e-15
    found = made.get_epsilon_for_delta(DELTA)
    assert profile.delta(found) == pytest.approx(DELTA, rel=0.05)
    for epsilon in (-0.5, -2.0, -profile.local_epsilon - grid, -9.0):  # H_-eps = 1 - e^-eps (1 - H_eps)
        other = 1 - math.exp(epsilon) * (1 - profile.delta(-epsilon))
        assert made.get_delta_for_epsilon(epsilon) >= other - 1e-12


def test_the_threshold_is_the_best_one():
    for local in (0.1, 1.0, 3.0, 8.0):
        best = best_threshold(local)
        assert all(gain_of(best, local) >= gain_of(other, local) for other in (best - 0.01, best + 0.01, 0.0, 3.0))
        # At the best threshold E<v, u> is the threshold itself: the derivative of phi(g) (H - L) is zero there.
        assert gain_of(best, local) == pytest.approx(best, abs=1e-4)


def test_section_6_gains():
    for local, gain in ((1, 0.397), (2, 0.786), (3, 1.16), (4, 1.52), (6, 2.17), (8, 2.74)):
        assert gain_of(best_threshold(local), local) == pytest.approx(gain, abs=0.005)


def test_a_shuffle_of_labels_says_how_many_classes_there_are():
    with pytest.raises(ValidationError, match="two classes or more"):
        event(classes=0)
    with pytest.raises(ValidationError, match="at most 8 messages"):
        event(m=9)
    assert event(units=0, classes=0, m=9).loss(REPLACE).epsilon == 45.0


def test_a_profile_ends_at_its_local_epsilon():
    profile = ShuffledProfile(1.0, best_threshold(1.0), 0.0, 0, 50, 1, REPLACE)
    assert profile.delta(1.0) == 0.0
    assert profile.delta(0.999) >= 0.0


def test_a_plan_has_few_shuffled_releases_so_that_nobody_keeps_an_accountant_busy():
    check_workable([event(units=100 + n) for n in range(3)])
    with pytest.raises(BudgetError, match="at most 3 shuffled releases"):
        check_workable([event(units=100 + n) for n in range(4)])

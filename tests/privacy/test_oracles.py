"""What was worked out elsewhere, or by brute force, against every path on which this project prints an epsilon."""

import itertools
import math
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant
from opacus.accountants import RDPAccountant
from scipy.optimize import brentq

from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.claims import claim_of, format_epsilon
from cadp_fl.privacy.events import (
    DeclaredPublic,
    GaussianHistogram,
    LatentGaussian,
    LatentLaplace,
    PoissonGaussian,
    RandomizedResponse,
)
from cadp_fl.privacy.gaussian import gaussian_delta, gaussian_epsilon
from cadp_fl.privacy.labels import lie_probability
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.mechanisms import GaussianMechanism, LaplaceMechanism
from cadp_fl.privacy.plan import Plan

DELTA = 1e-5
REPLACE, ADD = Relation.REPLACE_ONE, Relation.ADD_OR_REMOVE_ONE
PINNED = LatentGaussian(stage="release", clip_norm=1.0, noise_std=7.4612)
PUBLIC = DeclaredPublic(stage="flow", what="the flow", sha256="0" * 64)


def dp_sgd(noise_std, rate, steps):
    return PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=noise_std, sampling_rate=rate, steps=steps)


def dp_accounting_epsilon(accountant, event, relation):
    return accountant(neighboring_relation=relation).compose(event).get_epsilon(DELTA)


@pytest.mark.parametrize(
    "path",
    [
        lambda: epsilon_of([PINNED], DELTA),
        lambda: epsilon_of([GaussianMechanism(1.0, 7.4612).event()], DELTA),
        lambda: epsilon_of([dp_sgd(7.4612, 1.0, 1)], DELTA),
        lambda: Plan("m", (PINNED,), DELTA).epsilon(),
        lambda: claim_of(Plan("m", (PUBLIC, PINNED), DELTA)).epsilon,
        lambda: gaussian_epsilon(2 / 7.4612, DELTA),
        lambda: pld.from_gaussian_mechanism(7.4612 / 2).get_epsilon_for_delta(DELTA),
        lambda: dp_accounting_epsilon(PLDAccountant, GaussianDpEvent(7.4612), NeighboringRelation.REPLACE_ONE),
        lambda: brentq(lambda epsilon: gaussian_delta(epsilon, 7.4612, 2.0) - DELTA, 0, 9),
    ],
)
def test_the_pinned_case_costs_one_on_every_path(path):
    assert path() == pytest.approx(1.000, abs=2e-4)


def test_the_pinned_case_is_what_a_mechanism_is_calibrated_to():
    assert GaussianMechanism.calibrated(1.0, 1.0, DELTA).noise_std == pytest.approx(7.4612, abs=2e-4)


def test_dp_accounting_doubles_the_sensitivity_by_pld_alone():
    event, replace = GaussianDpEvent(3.73), NeighboringRelation.REPLACE_ONE
    assert dp_accounting_epsilon(PLDAccountant, event, replace) == pytest.approx(2.155, abs=2e-3)
    assert dp_accounting_epsilon(RdpAccountant, event, replace) == pytest.approx(1.093, abs=2e-3)
    ours = LatentGaussian(stage="release", clip_norm=1.0, noise_std=3.73)
    assert epsilon_of([ours], DELTA) == pytest.approx(2.155, abs=2e-3)
    assert epsilon_of([ours], DELTA, ADD) == pytest.approx(1.000, abs=2e-3)


@pytest.mark.parametrize(
    ("event", "replace", "add_remove"), [(dp_sgd(2.0, 0.1, 1), 0.460, 0.369), (dp_sgd(1.1, 0.064, 500), 14.25, 8.31)]
)
def test_sampled_steps_cost_the_pinned_figures(event, replace, add_remove):
    assert epsilon_of([event], DELTA) == pytest.approx(replace, rel=1e-3)
    assert epsilon_of([event], DELTA, ADD) == pytest.approx(add_remove, rel=2e-3)
    sampled = PoissonSampledDpEvent(event.sampling_rate, GaussianDpEvent(event.noise_std))
    composed = SelfComposedDpEvent(sampled, event.steps)
    theirs = dp_accounting_epsilon(PLDAccountant, composed, NeighboringRelation.REPLACE_ONE)
    assert epsilon_of([event], DELTA) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.1, 0.064, 500), (2.0, 0.1, 200), (0.8, 0.01, 1000)])
def test_privacy_loss_distributions_are_below_renyi(sigma, rate, steps):
    accountant = RDPAccountant()
    accountant.history = [(sigma, rate, steps)]
    assert epsilon_of([dp_sgd(sigma, rate, steps)], DELTA, ADD) < accountant.get_epsilon(delta=DELTA)


@pytest.mark.parametrize(("m", "epsilon"), [(5, 2.44), (10, 3.62)])
def test_a_record_budget_of_one_costs_a_patient_more(m, epsilon):
    noise_std = GaussianMechanism.calibrated(1.0, 1.0, DELTA).noise_std
    assert epsilon_of([GaussianMechanism(1.0, noise_std, m).event()], DELTA) == pytest.approx(epsilon, abs=0.01)
    noise_scale = LaplaceMechanism.calibrated(1.0, 1.0, DELTA).noise_scale
    assert epsilon_of([LaplaceMechanism(1.0, noise_scale, m).event()], DELTA) == pytest.approx(m)
    label = RandomizedResponse(stage="labels", epsilon=0.3, records_per_unit=m)
    assert epsilon_of([label], DELTA) == pytest.approx(0.3 * m)


@pytest.mark.parametrize(
    ("m", "histograms", "bins"), [(1, 1, 3), (2, 1, 4), (3, 1, 3), (1, 2, 3), (2, 2, 2), (1, 3, 2)]
)
def test_no_pair_of_units_moves_a_table_further_than_the_accountant_says(m, histograms, bins):
    """By brute force: every record of a unit counts once in each histogram, in any of its bins."""
    record = list(itertools.product(range(bins), repeat=histograms))
    tables = [
        sum(np.eye(bins)[list(each)] for each in unit) for unit in itertools.combinations_with_replacement(record, m)
    ]
    event = GaussianHistogram(stage="counts", histograms=histograms, noise_std=4.0, records_per_unit=m)
    furthest = max(np.linalg.norm(a - b) for a, b in itertools.combinations(tables, 2))
    assert furthest == pytest.approx(m * math.sqrt(2 * histograms))
    assert epsilon_of([event], DELTA) == pytest.approx(gaussian_epsilon(furthest / 4.0, DELTA))
    removed = max(np.linalg.norm(table) for table in tables)
    assert removed == pytest.approx(m * math.sqrt(histograms))
    assert epsilon_of([event], DELTA, ADD) == pytest.approx(gaussian_epsilon(removed / 4.0, DELTA))


def test_tables_of_one_kind_cost_what_one_with_less_noise_does():
    four = GaussianHistogram(stage="counts", histograms=1, noise_std=8.0, times=4)
    one = GaussianHistogram(stage="counts", histograms=1, noise_std=4.0)
    assert epsilon_of([four], DELTA) == pytest.approx(epsilon_of([one], DELTA))


def gaussian_excess(epsilon, mu):
    """Return the hockey-stick divergence of N(mu, 1) from N(0, 1) at e^epsilon, for epsilons below zero too."""
    return gaussian_delta(epsilon, 1.0, mu)


def mixed_delta(epsilon, mu, answer, classes):
    """Return delta(epsilon) of Gaussian noise and one randomized response, summed over its answers."""
    other = 1 / (math.exp(answer) + classes - 1)
    return (
        math.exp(answer) * other * gaussian_excess(epsilon - answer, mu)
        + other * gaussian_excess(epsilon + answer, mu)
        + (classes - 2) * other * gaussian_excess(epsilon, mu)
    )


@pytest.mark.parametrize("relation", [REPLACE, ADD])
@pytest.mark.parametrize("answer", [0.05, 0.6, 3.0])
@pytest.mark.parametrize(("noise_std", "counts_std"), [(8.0, 20.0), (2.0, 5.0), (60.0, 300.0)])
def test_release_labels_and_counts_cost_what_summing_over_answers_says(relation, answer, noise_std, counts_std):
    events = [
        LatentGaussian(stage="release", clip_norm=1.0, noise_std=noise_std),
        RandomizedResponse(stage="labels", epsilon=answer),
        GaussianHistogram(stage="counts", histograms=1, noise_std=counts_std),
    ]
    two, root = (2, math.sqrt(2)) if relation is REPLACE else (1, 1)
    mu = math.hypot(two / noise_std, root / counts_std)
    exact = brentq(lambda epsilon: mixed_delta(epsilon, mu, answer, 2) - DELTA, 0, 60)
    claimed = epsilon_of(events, DELTA, relation)
    assert exact <= claimed <= exact * 1.003 + 1e-9
    # With more classes some answers reveal nothing, and the accountant's pair is above.
    assert brentq(lambda epsilon: mixed_delta(epsilon, mu, answer, 10) - DELTA, 0, 60) <= exact


def first_index(reaches):
    """Return the first of the 2^52 values of a uniform number at which something holds that holds from there on."""
    low, high = 0, 1 << 52
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(np.float64(middle) * 2.0**-52 + 2.0**-53) else (middle + 1, high)
    return low


@pytest.mark.parametrize("classes", [2, 3, 10, 1000, 10_000])
@pytest.mark.parametrize("epsilon", [1e-6, 0.01, 0.5, 3.0, 12.0, 20.0])
def test_randomized_response_never_exceeds_its_epsilon_over_all_uniform_numbers(epsilon, classes):
    """Exactly: by counting the 2^52 equally likely values that lead to each answer, in rational arithmetic."""
    getcontext().prec = 60
    lies = Fraction(first_index(lambda u: not u < lie_probability(epsilon, classes)), 1 << 52)

    def step(u):
        return min(int(u * (classes - 1)), classes - 2)

    starts = [first_index(lambda u, k=k: step(u) >= k) for k in range(classes - 1)] + [1 << 52]
    others = [lies * Fraction(end - start, 1 << 52) for start, end in itertools.pairwise(starts)]
    truth, bound = 1 - lies, Fraction(Decimal(epsilon).exp())
    assert truth + sum(others) == 1
    assert max(truth, *others) <= bound * min(truth, *others)
    assert float(truth / max(others)) >= math.exp(epsilon) * (1 - 1e-5)


@pytest.mark.parametrize("relation", [REPLACE, ADD])
@pytest.mark.parametrize(
    "events",
    [
        [LatentGaussian(stage="release", clip_norm=1e6, noise_std=1e-9, records_per_unit=1000)],
        [LatentGaussian(stage="release", clip_norm=1.0, noise_std=1e-3), RandomizedResponse(stage="labels", epsilon=1)],
        [dp_sgd(1e-9, 0.5, 1)],
        [dp_sgd(0.02, 0.01, 10**7)],
        [dp_sgd(0.05, 0.5, 1000)],
    ],
)
def test_next_to_no_noise_costs_more_than_any_budget_and_no_time(events, relation):
    assert epsilon_of(events, DELTA, relation) > 100
    assert format_epsilon(epsilon_of(events, DELTA, relation))


@pytest.mark.parametrize(
    "events",
    [
        [dp_sgd(3.0, 0.2, 40), RandomizedResponse(stage="labels", epsilon=0.1234567)],
        [LatentLaplace(stage="release", clip_norm=1, noise_scale=71.3), dp_sgd(50.0, 0.5, 7)],
        [LatentGaussian(stage="release", clip_norm=1, noise_std=900.0), RandomizedResponse(stage="l", epsilon=2e-4)],
    ],
)
def test_a_coarser_grid_is_never_smaller(events):
    by_grid = [epsilon_of(events, DELTA, grid=grid) for grid in (1e-2, 1e-3, 1e-4, 1e-5)]
    assert by_grid == sorted(by_grid, reverse=True)
    assert by_grid[0] <= 1.01 * by_grid[-1]


@pytest.mark.parametrize("mu", [1e-9, 1e-5, 1e-3, 0.2, 3.0, 40.0, 420.0, 500.0, 1e6])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-10])
def test_the_closed_form_is_the_least_epsilon_that_holds(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    if epsilon == 0:
        assert math.erf(mu / 2 / math.sqrt(2)) <= delta
    elif mu < 430:
        assert gaussian_delta(epsilon, 1.0, mu) <= delta < gaussian_delta(epsilon * (1 - 1e-4), 1.0, mu)
    else:
        assert mu**2 / 2 < epsilon < mu**2 / 2 + 7 * mu


@pytest.mark.parametrize("mu", [1.1e-9, 3e-9, 1e-6, 1e-3, 0.3, 5.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-10, 3.3e-10, 1e-5])
def test_the_closed_form_holds_in_fifty_digits(mu, delta):
    mpmath = pytest.importorskip("mpmath")
    epsilon = gaussian_epsilon(mu, delta)
    with mpmath.workdps(50):
        half, shift = mpmath.mpf(mu) / 2, mpmath.mpf(epsilon) / mpmath.mpf(mu)
        exact = mpmath.ncdf(half - shift) - mpmath.exp(mpmath.mpf(epsilon)) * mpmath.ncdf(-half - shift)
        assert exact <= delta

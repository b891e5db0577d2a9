"""Epsilons against oracles that share no code with the accountant: closed forms, quadrature, an FFT, Opacus."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from cadp_fl.errors import BudgetError
from cadp_fl.privacy import accounting
from cadp_fl.privacy.accounting import (
    calibrate_laplace,
    calibrate_noise,
    check_delta,
    check_workable,
    epsilon_of,
    largest_cohort,
)
from cadp_fl.privacy.events import (
    GaussianHistogram,
    GaussianMoments,
    GaussianSum,
    LatentGaussian,
    LatentGaussianGrid,
    LatentLaplace,
    PoissonGaussian,
    RandomizedResponse,
    Unprotected,
    events_from_json,
)
from cadp_fl.privacy.gaussian import gaussian_delta
from cadp_fl.privacy.losses import Relation

DELTA = 1e-5


def release(noise_std, clip_norm=1.0):
    return LatentGaussian(stage="release", clip_norm=clip_norm, noise_std=noise_std)


def laplace_release(noise_scale, clip_norm=1.0):
    return LatentLaplace(stage="release", clip_norm=clip_norm, noise_scale=noise_scale)


def dp_sgd(noise_std, rate, steps, clip_norm=1.0):
    return PoissonGaussian(
        stage="classifier", clip_norm=clip_norm, noise_std=noise_std, sampling_rate=rate, steps=steps
    )


@pytest.mark.parametrize("event", [release(7.4612), dp_sgd(7.4612, 1.0, 1)])
def test_the_pinned_case_costs_one_under_replace_one(event):
    """C = 1, sigma = 7.4612: the sensitivity is 2 C, so sigma / (2 C) = 3.7306."""
    assert epsilon_of([event], DELTA) == pytest.approx(1.000, abs=1e-3)


def test_the_same_noise_costs_more_than_twice_under_replace_one():
    assert epsilon_of([release(3.73)], DELTA) == pytest.approx(2.155, abs=2e-3)
    assert epsilon_of([release(3.73)], DELTA, Relation.ADD_OR_REMOVE_ONE) == pytest.approx(1.000, abs=2e-3)


@pytest.mark.parametrize("noise_std", [0.7, 1.3, 3.0, 9.0, 25.0])
@pytest.mark.parametrize(("relation", "factor"), [(Relation.REPLACE_ONE, 2), (Relation.ADD_OR_REMOVE_ONE, 1)])
def test_one_release_costs_what_the_closed_form_says(noise_std, relation, factor):
    claimed = epsilon_of([release(noise_std)], DELTA, relation)
    exact = brentq(lambda epsilon: gaussian_delta(epsilon, noise_std, factor) - DELTA, 0, 60)
    assert exact <= claimed <= exact + 1e-3


def test_only_the_ratio_of_noise_to_clip_matters():
    assert epsilon_of([release(30.0, 10.0)], DELTA) == pytest.approx(epsilon_of([release(3.0)], DELTA), abs=1e-6)


def test_gaussian_events_compose_by_adding_squares():
    both = epsilon_of([release(6.0), release(8.0)], DELTA)
    assert both == pytest.approx(epsilon_of([release(1 / math.hypot(1 / 6.0, 1 / 8.0))], DELTA), abs=2e-3)


def replaced_delta(epsilon, sigma, rate):
    """Return delta(epsilon) of one step by quadrature: (1-q) N(0) + q N(1) against (1-q) N(0) + q N(-1)."""

    def excess(x):
        ours = (1 - rate) * norm.pdf(x, 0, sigma) + rate * norm.pdf(x, 1, sigma)
        theirs = (1 - rate) * norm.pdf(x, 0, sigma) + rate * norm.pdf(x, -1, sigma)
        return max(0.0, ours - math.exp(epsilon) * theirs)

    return quad(excess, -12 * sigma, 12 * sigma + 1, limit=2000, epsabs=1e-12)[0]


@pytest.mark.parametrize(("rate", "sigma", "pinned"), [(0.1, 2.0, 0.460), (0.3, 1.5, None), (0.02, 1.0, None)])
def test_one_sampled_step_costs_what_quadrature_says(rate, sigma, pinned):
    claimed = epsilon_of([dp_sgd(sigma, rate, 1)], DELTA)
    exact = brentq(lambda epsilon: replaced_delta(epsilon, sigma, rate) - DELTA, 1e-3, 20)
    assert exact - 1e-4 <= claimed <= 1.01 * exact
    if pinned:
        assert claimed == pytest.approx(pinned, abs=1e-3)


def fft_epsilon(sigma, rate, steps):
    """Return epsilon of `steps` sampled steps under replace-one, from the privacy loss convolved by an FFT."""
    width, size = 60.0, 1 << 20
    x = np.linspace(-14 * sigma - 1, 14 * sigma + 1, 2_000_001)
    ours = (1 - rate) * norm.pdf(x, 0, sigma) + rate * norm.pdf(x, 1, sigma)
    theirs = (1 - rate) * norm.pdf(x, 0, sigma) + rate * norm.pdf(x, -1, sigma)
    loss = np.log(ours) - np.log(theirs)
    step = 2 * width / size
    mass = np.bincount(np.clip(np.round((loss + width) / step).astype(int), 0, size - 1), ours * (x[1] - x[0]), size)
    composed = np.fft.irfft(np.fft.rfft(np.roll(mass, -size // 2)) ** steps, size)
    composed, losses = np.roll(composed, size // 2), np.arange(size) * step - width

    def delta(epsilon):
        above = losses > epsilon
        return float((composed[above] * -np.expm1(epsilon - losses[above])).sum())

    return brentq(lambda epsilon: delta(epsilon) - DELTA, 0.01, 40)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "pinned"), [(1.1, 0.064, 500, 14.25), (2.0, 0.1, 100, None), (5.0, 0.5, 30, None)]
)
def test_many_sampled_steps_cost_what_an_independent_fft_says(sigma, rate, steps, pinned):
    claimed = epsilon_of([dp_sgd(sigma, rate, steps)], DELTA)
    assert claimed == pytest.approx(fft_epsilon(sigma, rate, steps), rel=0.01)
    if pinned:
        assert claimed == pytest.approx(pinned, abs=0.02)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.1, 0.064, 500), (2.0, 0.1, 200), (0.8, 0.01, 1000)])
def test_add_or_remove_agrees_with_opacus_prv(sigma, rate, steps):
    accountant = PRVAccountant()
    accountant.history = [(sigma, rate, steps)]
    theirs = accountant.get_epsilon(delta=DELTA)
    ours = epsilon_of([dp_sgd(sigma, rate, steps)], DELTA, Relation.ADD_OR_REMOVE_ONE)
    assert ours == pytest.approx(theirs, rel=0.02, abs=0.01)
    assert epsilon_of([dp_sgd(sigma, rate, steps)], DELTA) > 1.2 * ours


def laplace_delta(epsilon, scale, sensitivity):
    """Return delta(epsilon) of one Laplace variable, by quadrature of the excess of L(0) over e^epsilon L(D)."""

    def excess(x):
        ours, theirs = math.exp(-abs(x) / scale), math.exp(epsilon - abs(x - sensitivity) / scale)
        return max(0.0, ours - theirs) / (2 * scale)

    return quad(excess, -60 * scale, 60 * scale, points=[0, sensitivity], limit=2000, epsabs=1e-13)[0]


@pytest.mark.parametrize(("noise_scale", "clip_norm"), [(2.0, 1.0), (0.4, 1.0), (5.0, 3.0)])
@pytest.mark.parametrize(("relation", "factor"), [(Relation.REPLACE_ONE, 2), (Relation.ADD_OR_REMOVE_ONE, 1)])
def test_one_laplace_release_costs_its_sensitivity_over_its_scale_and_no_delta(
    noise_scale, clip_norm, relation, factor
):
    claimed = epsilon_of([laplace_release(noise_scale, clip_norm)], DELTA, relation)
    assert claimed == factor * clip_norm / noise_scale
    assert laplace_delta(claimed, noise_scale, factor * clip_norm) < 1e-12
    assert laplace_delta(0.99 * claimed, noise_scale, factor * clip_norm) > 1e-4


def test_add_or_remove_costs_half_of_replace_one_for_laplace_noise():
    events = [laplace_release(3.0), laplace_release(7.0)]
    assert epsilon_of(events, DELTA, Relation.ADD_OR_REMOVE_ONE) == pytest.approx(epsilon_of(events, DELTA) / 2)


def composed_pure_epsilon(each, times):
    """Return the epsilon at DELTA of `times` mechanisms of a pure epsilon: the closed form of the optimal composition.

    References:
        Kairouz, Oh, Viswanath, arXiv 1311.0776, theorem 3.3.
    """

    def delta(epsilon):
        terms = (
            math.comb(times, i) * max(0.0, math.exp(each * (times - i)) - math.exp(epsilon + each * i))
            for i in range(times + 1)
        )
        return math.fsum(terms) / (1 + math.exp(each)) ** times

    return brentq(lambda epsilon: delta(epsilon) - DELTA, 0, each * times)


@pytest.mark.parametrize(("noise_scale", "times"), [(20.0, 40), (4.0, 12), (1.0, 3)])
def test_laplace_releases_cost_the_optimal_composition_of_pure_mechanisms(noise_scale, times):
    claimed = epsilon_of([laplace_release(noise_scale)] * times, DELTA)
    exact = composed_pure_epsilon(2 / noise_scale, times)
    assert exact - 1e-9 <= claimed <= exact + times * 1e-4 + 1e-3
    assert claimed <= 2 / noise_scale * times


def test_laplace_and_gaussian_events_compose_below_the_sum_and_above_each():
    pure, steps = laplace_release(4.0), dp_sgd(2.0, 0.1, 50)
    both, alone = epsilon_of([pure, steps], DELTA), epsilon_of([steps], DELTA)
    assert max(0.5, alone) < both <= 0.5 + alone + 1e-3
    assert both == pytest.approx(epsilon_of([steps, pure], DELTA), abs=1e-6)
    # A Gaussian release of next to no cost adds next to nothing.
    assert epsilon_of([pure, release(1e6)], DELTA) == pytest.approx(0.5, abs=2e-3)


def test_a_laplace_release_beyond_any_budget_is_infinite_beside_others_and_not_an_error():
    assert epsilon_of([laplace_release(1e-9, 1e6)], DELTA) == 2e15
    assert epsilon_of([laplace_release(1e-9, 1e6), release(1.0)], DELTA) == math.inf


def test_splitting_steps_over_rounds_changes_nothing():
    whole = epsilon_of([dp_sgd(2.0, 0.1, 60)], DELTA)
    rounds = epsilon_of([dp_sgd(2.0, 0.1, 20)] * 3, DELTA)
    assert rounds == pytest.approx(whole, rel=1e-3)


def test_an_unprotected_event_costs_everything_and_nothing_costs_nothing():
    unprotected = Unprotected(stage="flow", what="weights")
    assert epsilon_of([release(100.0), unprotected], DELTA) == math.inf
    assert epsilon_of([], DELTA) == 0


@settings(max_examples=20, deadline=None)
@given(
    epsilon=st.floats(0.1, 12),
    clip_norm=st.floats(0.05, 20),
    rate=st.floats(0.02, 1.0),
    steps=st.integers(1, 60),
    exponent=st.floats(-7, -3),
)
def test_a_calibrated_plan_spends_no_more_than_its_budget_and_little_less(epsilon, clip_norm, rate, steps, exponent):
    delta = 10**exponent

    def events(noise_std):
        return [release(2 * noise_std, clip_norm), dp_sgd(noise_std, rate, steps, clip_norm)]

    noise_std = calibrate_noise(events, epsilon, delta, clip_norm=clip_norm)
    spent = epsilon_of(events(noise_std), delta, grid=1e-3)
    assert 0.98 * epsilon <= spent <= epsilon


@settings(max_examples=300)
@given(epsilon=st.floats(1e-3, 100), clip_norm=st.floats(1e-6, 1e5))
def test_a_calibrated_laplace_release_spends_its_budget_to_the_last_bit_and_no_more(epsilon, clip_norm):
    noise_scale = calibrate_laplace(epsilon, clip_norm=clip_norm)
    assert epsilon_of([laplace_release(noise_scale, clip_norm)], DELTA) <= epsilon
    assert noise_scale == pytest.approx(2 * clip_norm / epsilon, rel=1e-15)


@settings(max_examples=15, deadline=None)
@given(epsilon=st.floats(0.1, 12), clip_norm=st.floats(0.05, 20), rate=st.floats(0.02, 1.0), steps=st.integers(1, 60))
def test_a_calibrated_plan_with_laplace_noise_spends_no_more_than_its_budget(epsilon, clip_norm, rate, steps):
    def events(noise):
        return [laplace_release(3 * noise, clip_norm), dp_sgd(noise, rate, steps, clip_norm)]

    noise = calibrate_noise(events, epsilon, DELTA, clip_norm=clip_norm)
    assert 0.97 * epsilon <= epsilon_of(events(noise), DELTA, grid=1e-3) <= epsilon


@pytest.mark.parametrize(
    ("epsilon", "clip_norm"), [(1e-3, 1e6), (0.0, 1.0), (-1.0, 1.0), (101.0, 1.0), (math.nan, 1.0)]
)
def test_a_budget_that_no_laplace_noise_meets_is_refused_in_a_sentence(epsilon, clip_norm):
    with pytest.raises(BudgetError, match="use an epsilon from"):
        calibrate_laplace(epsilon, clip_norm=clip_norm)


def test_a_budget_calibrated_on_the_coarse_grid_holds_on_the_fine_one():
    noise_std = calibrate_noise(lambda std: [dp_sgd(std, 0.5, 30)], 3.0, DELTA, clip_norm=1.0)
    assert 0.99 * 3.0 <= epsilon_of([dp_sgd(noise_std, 0.5, 30)], DELTA) <= 3.0


@pytest.mark.parametrize(
    ("large", "delta", "n", "named"),
    [(True, 1e-4, 1000, "9.9e-5"), (False, 1e-5, 1000, "9.9e-6"), (False, 1e-6, 10_000, "9.9e-7")],
)
def test_delta_is_at_most_a_hundredth_or_if_so_said_a_tenth_of_one_over_n(large, delta, n, named):
    check_delta(delta, n, large=large)
    assert largest_cohort(delta, large=large) == n
    with pytest.raises(BudgetError, match=rf"Found {delta:g} for n = {n + 1}; use {named} or less"):
        check_delta(delta, n + 1, large=large)


def test_delta_is_at_most_n_to_the_minus_three_halves():
    """Which is less than 1 / (100 n) from n = 10,000 on."""
    check_delta(1e-9, 1_000_000)
    assert largest_cohort(1e-9) == 1_000_000
    with pytest.raises(BudgetError, match=r"n\^-1\.5"):
        check_delta(1.01e-9, 1_000_000)
    check_delta(1e-7, 1_000_000, large=True)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan])
def test_a_delta_is_above_zero(delta, large):
    with pytest.raises(BudgetError):
        check_delta(delta, 10, large=large)


@pytest.mark.parametrize(
    ("event", "multiplier"),
    [
        (LatentGaussian(stage="release", clip_norm=4.0, noise_std=2.0, records_per_unit=4), 0.25),
        (LatentGaussianGrid(stage="release", clip_norm=4.0, noise_std=2.0, grid=2.0**-6), 0.5),
        (LatentLaplace(stage="release", clip_norm=4.0, noise_scale=2.0, records_per_unit=2), math.sqrt(2) / 4),
        (PoissonGaussian(stage="flow", clip_norm=2.0, noise_std=1.0, sampling_rate=1e-5, steps=9), 0.5),
        (PoissonGaussian(stage="flow", clip_norm=2.0, noise_std=1.0, sampling_rate=1.0, steps=9), 0.5),
        (GaussianSum(stage="moments", clip_norm=1.0, noise_std=8.0, shares=16, records_per_unit=2), 1.0),
        (GaussianHistogram(stage="counts", histograms=2, noise_std=3.0, times=7, records_per_unit=3), 1.0),
        (RandomizedResponse(stage="labels", epsilon=1.0), math.inf),
    ],
)
def test_a_noise_multiplier_is_of_half_of_how_far_one_unit_moves_a_value(event, multiplier):
    """By hand: a unit moves it by 2 C sqrt(m), 2 C m in L1, 2 C, 2 C m, sqrt(2 h) m; a shared noise is one share."""
    assert event.noise_multiplier == pytest.approx(multiplier, rel=1e-9)


def test_a_noise_multiplier_of_moments_is_of_their_sensitivity():
    event = GaussianMoments(
        stage="moments", noise_std=6.0, clip_norm=3.0, count_weight=1.0, sum_weight=1.0, shared_weight=1.0,
        class_weight=1.0, shares=4, records_per_unit=2,
    )  # fmt: skip
    # Two records of different classes are sqrt(2 (1 + 1 + 1 + 1)) apart, which no two of one class are.
    assert event.noise_multiplier == pytest.approx(6.0 / 2 / (math.sqrt(8) * 2 / 2), rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.001, 100.0])
def test_the_ends_of_the_budgets_range_are_met(epsilon):
    noise_std = calibrate_noise(lambda std: [release(std)], epsilon, DELTA, clip_norm=1.0)
    assert 0.97 * epsilon <= epsilon_of([release(noise_std)], DELTA) <= epsilon


def test_a_budget_that_no_noise_meets_is_refused_in_a_sentence():
    with pytest.raises(BudgetError, match="use an epsilon from"):
        calibrate_noise(lambda std: [release(std)], 1e5, DELTA, clip_norm=1.0)


@pytest.mark.parametrize(
    "tree",
    [
        [{"kind": "free", "stage": "x"}],
        [{"kind": "latent-gaussian", "stage": "release", "clip_norm": 1.0, "noise_std": 0.0}],
        [{"kind": "latent-gaussian", "stage": "release", "clip_norm": math.inf, "noise_std": 1.0}],
        [{"kind": "latent-gaussian", "stage": "release", "clip_norm": 1e38, "noise_std": 3e38}],
        [{"kind": "latent-gaussian", "stage": "release", "clip_norm": 1e-7, "noise_std": 1.0}],
        [{"kind": "latent-laplace", "stage": "release", "clip_norm": 1.0, "noise_scale": 0.0}],
        [{"kind": "latent-laplace", "stage": "release", "clip_norm": 1.0, "noise_scale": 2e9}],
        [{"kind": "latent-laplace", "stage": "release", "clip_norm": 2e6, "noise_scale": 1.0}],
        [{"kind": "latent-laplace", "stage": "release", "clip_norm": 1.0, "noise_std": 1.0}],
        [{"kind": "poisson-gaussian", "stage": "c", "clip_norm": 1, "noise_std": 1, "sampling_rate": 2, "steps": 1}],
        [{"kind": "poisson-gaussian", "stage": "c", "clip_norm": 1, "noise_std": 1, "sampling_rate": 1, "steps": 0}],
    ],
)
def test_an_event_out_of_range_is_refused(tree):
    with pytest.raises(ValueError, match="validation error"):
        events_from_json(tree)


def test_events_survive_json():
    events = (release(1.0), laplace_release(1.0), dp_sgd(1.0, 0.5, 3), Unprotected(stage="flow", what="weights"))
    assert events_from_json([event.model_dump() for event in events]) == events


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("records", [403, 600, 1, 7, 99, 1467, 100_000])
def test_the_delta_that_a_refusal_names_is_accepted(records, large):
    with pytest.raises(BudgetError) as caught:
        check_delta(0.9, records, large=large)
    named = float(str(caught.value).rsplit("use ", 1)[1].split(" ")[0])
    check_delta(named, records, large=large)
    assert named > 0.9 * (1 / (10 * records) if large else min(1 / (100 * records), records**-1.5))


def test_a_step_whose_losses_reach_far_and_whose_epsilon_is_nothing_is_accounted_at_once():
    """A server may plan it: on the finest grid it would fill a site's memory."""
    event = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=0.02, sampling_rate=1e-7, steps=1)
    assert epsilon_of([event], 1e-5) == 0


def test_what_costs_nothing_at_a_delta_is_known_from_the_first_grid(monkeypatch):
    """A coarser grid never gives less, so that 0 is 0; a server must not keep a site's accountant busy with it."""
    made, real = [], accounting.pld.from_gaussian_mechanism
    monkeypatch.setattr(
        accounting.pld, "from_gaussian_mechanism", lambda *args, **kwargs: made.append(1) or real(*args, **kwargs)
    )
    kinds = [dp_sgd(sigma, 1e-7, 1) for sigma in (0.3, 0.31, 0.32)]
    assert epsilon_of(kinds, 1e-6) == 0
    assert len(made) == len(kinds)


def test_plans_that_are_asked_about_together_are_worked_out_in_time():
    plans = [[dp_sgd(0.3 + 0.001 * number, 1e-3, 10)] for number in range(10)]
    check_workable(*plans[:6])
    check_workable(*[[dp_sgd(1.0 + number, 0.01, 1000)] for number in range(32)])
    for plan in plans:
        check_workable(plan)
    with pytest.raises(BudgetError, match=r"these would take 1\.\d times as long; ask about fewer"):
        check_workable(*plans)

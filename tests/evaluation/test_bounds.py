import math

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom

from cadp_fl.evaluation.bounds import (
    canaries_needed,
    certified_gaussian_epsilon,
    clopper_pearson,
    gaussian_bound,
    linkage_bound,
    pure_bound,
)
from cadp_fl.privacy.gaussian import gaussian_delta
from cadp_fl.privacy.mechanisms import GaussianMechanism


@pytest.mark.parametrize(("successes", "trials"), [(0, 50), (1, 50), (20, 50), (50, 50), (30_000, 1_000_000)])
@pytest.mark.parametrize("false_alarm", [0.05, 1e-8])
def test_at_a_clopper_pearson_limit_the_count_is_as_rare_as_the_false_alarm(successes, trials, false_alarm):
    lower, upper = clopper_pearson(successes, trials, false_alarm)
    assert lower <= successes / trials <= upper
    if successes:
        assert binom.sf(successes - 1, trials, lower) == pytest.approx(false_alarm, rel=1e-6)
    if successes < trials:
        assert binom.cdf(successes, trials, upper) == pytest.approx(false_alarm, rel=1e-6)


def test_without_a_success_there_is_no_lower_limit_and_without_a_failure_no_upper_one():
    assert clopper_pearson(0, 10, 0.05)[0] == 0.0
    assert clopper_pearson(10, 10, 0.05)[1] == 1.0


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 10.0])
def test_randomized_response_meets_the_pure_bound(epsilon):
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert pure_bound(truth, 1 - truth, 0.0) == pytest.approx(epsilon)
    delta = 1e-3  # with probability delta the answer is shown as it is
    assert pure_bound(delta + (1 - delta) * truth, (1 - delta) * (1 - truth), delta) == pytest.approx(epsilon)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("threshold", [-3.0, 0.0, 2.0])
def test_any_threshold_on_a_gaussian_release_gives_its_epsilon_and_the_pure_bound_gives_less(epsilon, threshold):
    mechanism = GaussianMechanism.calibrated(1.0, epsilon, 1e-5)
    true, false = ndtr((1 - threshold) / mechanism.noise_std), ndtr((-1 - threshold) / mechanism.noise_std)
    assert gaussian_bound(true, false, 1e-5) == pytest.approx(epsilon, rel=1e-3)
    assert pure_bound(true, false, 1e-5) < epsilon


@pytest.mark.parametrize("mu", [0.01, 0.268, 1.0, 8.0, 30.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.1])
def test_the_epsilon_of_a_gaussian_trade_off_is_where_its_delta_is_met(mu, delta):
    epsilon = certified_gaussian_epsilon(mu, delta)
    assert gaussian_delta(epsilon, 1.0, mu) >= delta or epsilon == 0.0
    assert gaussian_delta(epsilon + 1e-6, 1.0, mu) <= delta


def test_a_stronger_test_certifies_no_less():
    rates = np.linspace(0.0, 1.0, 21)
    for bound in (gaussian_bound, pure_bound):
        bounds = [bound(rate, 0.3, 1e-5) for rate in rates[:-1]]
        assert bounds == sorted(bounds)
        assert bounds[0] == bounds[6] == 0.0 < bounds[-1]


@pytest.mark.parametrize(("epsilon", "canaries"), [(1.0, 10), (3.0, 62), (10.0, 65_987)])
def test_one_run_needs_so_many_canaries_even_if_every_guess_is_right(epsilon, canaries):
    assert canaries_needed(epsilon, 0.05) == canaries
    guessed = 1 / (1 + math.exp(-epsilon))
    assert guessed**canaries <= 0.05 < guessed ** (canaries - 1)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("candidates", [2, 10, 1000])
def test_randomized_response_among_the_candidates_meets_the_linkage_bound(epsilon, candidates):
    """With probability delta the record's number is shown; otherwise the truth is e^epsilon likelier than another."""
    truth = math.exp(epsilon) / (math.exp(epsilon) + candidates - 1)
    assert linkage_bound(epsilon, 0.0, candidates) == pytest.approx(truth)
    shown = 1e-4 + (1 - 1e-4) * truth
    assert linkage_bound(epsilon, 1e-4, candidates) == pytest.approx(shown)


def test_a_linkage_bound_is_a_probability():
    assert linkage_bound(1.0, 1e-5, 1) == 1.0
    assert linkage_bound(1000.0, 1e-5, 10) == 1.0
    assert linkage_bound(0.0, 1.0, 10) == 1.0

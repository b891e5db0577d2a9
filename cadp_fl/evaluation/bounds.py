"""Bounds on epsilon, from the true and false positives of a test, and what an epsilon allows an attacker.

What `gaussian_bound` certifies, and what not. Mechanisms under a Gaussian claim are mu-GDP: no test of left against
right, of whatever statistic and threshold, has Phi^-1(TPR) - Phi^-1(FPR) above mu = 2 C / sigma. With the probability
chosen, the two true rates of the test that was run lie within their Clopper-Pearson limits. So the mechanism is mu-GDP
for no mu below mu_lo = Phi^-1(TPR_lo) - Phi^-1(FPR_hi), and epsilon(mu_lo) at delta, which grows with mu, is a lower
bound on the epsilon of *any Gaussian trade-off that holds of the mechanism*. Above the claim, it refutes the trade-off
that the claim was composed from. It does not show that the mechanism fails (epsilon, delta)-DP at an epsilon below the
bound: one point of a trade-off that is not Gaussian says nothing of its other points. `pure_bound` shows that, with no
assumption, but of a Gaussian mechanism it reaches less than 0.8 with a million draws.

What `shuffled_bound` certifies is of the same kind. Where the local randomizer is (c eps_z, c eps_y) differentially
private, with the half-spaces, classes and cohort that are claimed, the privacy blanket bounds delta_c(epsilon) of the
shuffled release, and no test has TPR - FPR above delta_c(0). So a larger one refutes every c up to the first whose
delta_c(0) is as large. The epsilon of that c, by the accountant's own arithmetic, is a lower bound on the epsilon that
*any such shuffled release* would be accounted at; it is above the claim only where c = 1, what the claim was computed
from, is refuted. It assumes the family, and does not show that the release fails (epsilon, delta)-DP at an epsilon
below the bound. `pure_bound` would, but needs many times as many draws for as much.

References:
    Clopper, Pearson: The use of confidence or fiducial limits illustrated in the case of the binomial, Biometrika 1934.
    Kairouz, Oh, Viswanath: The composition theorem for differential privacy, arXiv 1311.0776.
    Dong, Roth, Su: Gaussian differential privacy, arXiv 1905.02383.
    Nasr, Hayes, Steinke, Balle, Tramèr, Jagielski, Carlini, Terzis: Tight auditing of differentially private machine
        learning, arXiv 2302.07956.
    Steinke, Nasr, Jagielski: Privacy auditing with one (1) training run, arXiv 2305.08846.
    Balle, Bell, Gascón, Nissim: The privacy blanket of the shuffle model, arXiv 1903.02837.
"""

import math
from dataclasses import replace

from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from cadp_fl.privacy.gaussian import gaussian_delta
from cadp_fl.privacy.shuffling import ShuffledProfile

__all__ = [
    "canaries_needed",
    "clopper_pearson",
    "gaussian_bound",
    "certified_gaussian_epsilon",
    "linkage_bound",
    "pure_bound",
    "sampled_noise",
    "shuffled_bound",
]


_LEAST_NOISE, _MOST_NOISE = 0.01, 1e6
"""In units of C, of a sampled step."""

_LEAST_SHARE, _MOST_LOCAL = 1e-3, 20.0
"""Of a local epsilon that is claimed, and a local epsilon: the ends of a search."""


def clopper_pearson(successes: int, trials: int, false_alarm: float) -> tuple[float, float]:
    """Return a lower and an upper limit of a binomial rate; each fails with at most `false_alarm`."""
    lower = beta.ppf(false_alarm, successes, trials - successes + 1) if successes else 0.0
    upper = beta.isf(false_alarm, successes + 1, trials - successes) if successes < trials else 1.0
    return float(lower), float(upper)


def pure_bound(true_positives: float, false_positives: float, delta: float) -> float:
    """Return max(0, log((TPR - delta) / FPR)): no (epsilon, delta)-DP mechanism with a smaller epsilon allows the two.

    Args:
        true_positives: TPR, at least.
        false_positives: FPR, at most, above zero.
        delta: of the claim.

    References:
        Kairouz, Oh, Viswanath, arXiv 1311.0776, theorem 2.1.
    """
    excess = true_positives - delta
    return max(0.0, math.log(excess / false_positives)) if excess > 0 else 0.0


def gaussian_bound(true_positives: float, false_positives: float, delta: float) -> float:
    """Return epsilon(mu) at delta for mu = Phi^-1(TPR) - Phi^-1(FPR): no Gaussian trade-off of less allows the two.

    Args:
        true_positives: TPR, at least.
        false_positives: FPR, at most.
        delta: of the claim.

    References:
        Dong, Roth, Su, arXiv 1905.02383, definition 2.6; Nasr et al., arXiv 2302.07956, section 4.
    """
    return certified_gaussian_epsilon(float(ndtri(true_positives) - ndtri(false_positives)), delta)


def sampled_noise(true_positives: float, false_positives: float, rate: float) -> float:
    """Return the largest noise sigma / C at which one Poisson-sampled Gaussian step allows both rates; inf if all do.

    Under replace-one the step is (1 - q) N(0, sigma^2) + q N(+-C, sigma^2) along the canary's gradient. Its likelihood
    ratio grows with the output, so that the best tests are thresholds t, which trace the trade-off

        FPR = (1 - q) Q(t / sigma) + q Q((t + C) / sigma)        TPR = (1 - q) Q(t / sigma) + q Q((t - C) / sigma)

    with Q = 1 - Phi. At a fixed FPR the best TPR falls with sigma. Rounded down, so that the epsilon is a lower bound.

    Args:
        true_positives: TPR, at least.
        false_positives: FPR, at most.
        rate: q.
    """

    def best(noise: float) -> float:
        def false(threshold: float) -> float:
            return float((1 - rate) * ndtr(-threshold) + rate * ndtr(-threshold - 1 / noise)) - false_positives

        edge = 40.0 + 1 / noise
        threshold = float(brentq(false, -edge, edge)) if false(-edge) > 0 > false(edge) else math.copysign(edge, -1)
        return float((1 - rate) * ndtr(-threshold) + rate * ndtr(-threshold + 1 / noise))

    if true_positives <= best(_MOST_NOISE):
        return math.inf
    if true_positives >= best(_LEAST_NOISE):
        return _LEAST_NOISE
    root = brentq(lambda power: best(math.exp(power)) - true_positives, math.log(_LEAST_NOISE), math.log(_MOST_NOISE))
    return math.exp(root) * (1 + 1e-9)


def certified_gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon >= 0 at which the mu-GDP trade-off is (epsilon, delta)-DP; 0 for a mu of at most 0.

    It solves delta(epsilon) = delta for the Gaussian mechanism of sensitivity mu and standard deviation 1, to 1e-9 and
    rounded down, as a lower bound is.

    References:
        Balle, Wang, arXiv 1805.06530, theorem 8.
    """
    if mu <= 0 or gaussian_delta(0.0, 1.0, mu) <= delta:
        return 0.0
    beyond = mu * mu / 2 + 40 * mu  # there delta(epsilon) is below Phi(-40)
    root = float(brentq(lambda epsilon: gaussian_delta(epsilon, 1.0, mu) - delta, 0.0, beyond, xtol=1e-10))
    return max(0.0, root - 1e-9)


def shuffled_bound(advantage: float, claimed: ShuffledProfile, delta: float) -> float:
    """Return the epsilon at `delta` of the smallest local epsilon whose shuffle allows an advantage; rounded down.

    Latents' and labels' epsilons are scaled alike; half-spaces, classes, units and their records stay.

    Args:
        advantage: TPR - FPR, at least.
        claimed: the profile that the claim was computed from.
        delta: of the claim.

    References:
        Balle, Bell, Gascón, Nissim, arXiv 1903.02837, lemma 5.3.
    """

    def scaled(share: float) -> ShuffledProfile:
        latent, label = share * claimed.latent_epsilon, share * claimed.label_epsilon
        return replace(claimed, latent_epsilon=latent, label_epsilon=label)

    def is_refuted(share: float) -> bool:
        return advantage > scaled(share).delta(0.0)

    most = max(1.0, _MOST_LOCAL / claimed.local_epsilon)
    lower, upper = (1.0, most) if is_refuted(1.0) else (_LEAST_SHARE, 1.0)
    if not is_refuted(lower):
        return 0.0
    while upper - lower > 1e-5 * lower:  # `lower` is refuted throughout, whether or not delta grows with it
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if is_refuted(middle) else (lower, middle)
    return max(0.0, scaled(lower).epsilon(delta) - 1e-6)


def canaries_needed(epsilon: float, false_alarm: float) -> int:
    """Return the least k with (e^epsilon / (1 + e^epsilon))^k <= false_alarm: the canaries that one run has to hold.

    In a single run that is epsilon-DP, each canary's coin is guessed right with at most e^epsilon / (1 + e^epsilon),
    whatever was guessed of the others. So with fewer canaries, not even an attacker who guesses every one of them right
    shows that epsilon is exceeded.

    References:
        Steinke, Nasr, Jagielski, arXiv 2305.08846, theorem 2.1.
    """
    return math.ceil(math.log(false_alarm) / -math.log1p(math.exp(-epsilon)))


def linkage_bound(epsilon: float, delta: float, candidates: int) -> float:
    """Return (e^epsilon + (N - 1) delta) / (e^epsilon + N - 1), at most 1.

    It bounds the probability to tell which of N equally likely candidates a released record is of: the mean over i of
    P_i(guess i), where P_i(guess i) <= e^epsilon P_j(guess i) + delta for every j. Summed over all pairs of i and j,
    since the guesses under one j add up to at most 1, that is the bound.

    Args:
        epsilon: under replace-one.
        delta: likewise.
        candidates: N, at least 1.
    """
    others = candidates - 1  # scaled by e^-epsilon, so that a large epsilon does not overflow
    shrunk = math.exp(-epsilon)
    return min(1.0, (1 + others * delta * shrunk) / (1 + others * shrunk))

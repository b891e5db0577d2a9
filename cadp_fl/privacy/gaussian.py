"""delta(epsilon) of Gaussian noise, in closed form.

References:
    Balle, Wang: Improving the Gaussian mechanism for differential privacy, arXiv 1805.06530, theorem 8.
"""

import math

from scipy.optimize import brentq
from scipy.special import log_ndtr

__all__ = ["gaussian_delta", "gaussian_epsilon"]


def gaussian_delta(epsilon: float, noise_std: float, sensitivity: float) -> float:
    """Return delta(epsilon) = Phi(D/2s - es/D) - e^epsilon Phi(-D/2s - es/D) of one Gaussian release, exactly."""
    half, shift = sensitivity / (2 * noise_std), epsilon * noise_std / sensitivity
    return float(math.exp(log_ndtr(half - shift)) - math.exp(epsilon + log_ndtr(-half - shift)))


def gaussian_epsilon(shift: float, delta: float) -> float:
    """Return the epsilon at `delta` of Gaussian noise with mu = sensitivity / sigma, rounded up.

    Where mu is so large that nothing is left to protect, it is the tail bound mu^2/2 + mu sqrt(2 log(1/delta)).
    """

    def excess(epsilon: float) -> float:
        # Some 50 rounding errors of the larger of two terms, which may nearly cancel, count as delta.
        rounding = 1e-14 * math.exp(log_ndtr(shift / 2 - epsilon / shift))
        return gaussian_delta(epsilon, 1.0, shift) + rounding - delta

    if shift == 0 or excess(0.0) <= 0:
        return 0.0
    bound = shift**2 / 2 + shift * math.sqrt(-2 * math.log(delta))
    if bound > 1e5:
        return bound
    epsilon = float(brentq(excess, 0.0, bound, xtol=1e-12 * bound, rtol=1e-12))
    while excess(epsilon) > 0:
        epsilon = min(bound, epsilon * (1 + 1e-12) + 1e-12 * bound)
    return epsilon

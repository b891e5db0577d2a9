"""Tables of counts under Gaussian noise: c -> c + round(N(0, sigma^2))."""

import numpy as np
import torch

from cadp_fl.privacy.events import GaussianHistogram
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["noised_counts"]


def noised_counts(counts: np.ndarray, event: GaussianHistogram, *, noise: NoiseSource) -> np.ndarray:
    """Return counts + round(N(0, sigma^2)), whole numbers in float64, of the shape of `counts`.

    A count is an integer, so that this is round(c + N): the Gaussian mechanism, rounded afterwards, at its cost. Every
    integer can come from every count, and no low bit distinguishes an empty cell from one that was not.

    What it costs is the event: the L2 sensitivity of the whole table is m sqrt(2 h) if one unit's m records count once
    each in h histograms.

    Args:
        counts: int64, of any number of dimensions.
        event: one table, with its noise standard deviation sigma.
        noise: of this table alone.

    References:
        Mironov: On significance of the least significant bits for differential privacy, CCS 2012.
    """
    exact = torch.from_numpy(counts)
    noised = exact + noise.rounded_normal(tuple(exact.shape), event.noise_std, like=exact)
    return noised.double().numpy()

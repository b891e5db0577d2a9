"""Tables of counts under Gaussian noise: c -> c + N(0, sigma^2), rounded to a public grid."""

import numpy as np
import torch

from cadp_fl.privacy.accounting import GaussianHistogram
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["GRID", "noised_counts"]

GRID = 2.0**-10
"""Noised counts are its multiples.

Unrounded, a float64 sum keeps fewer low bits the larger the count is, so that those of a small sum would tell an empty
cell from one that was not, whatever the noise. On the grid every value can come from every count.
"""


def noised_counts(counts: np.ndarray, event: GaussianHistogram, *, noise: NoiseSource) -> np.ndarray:
    """Return counts + N(0, sigma^2) to the nearest multiple of 2^-10, float64, of the shape of `counts`.

    What it costs is the event: the L2 sensitivity of the whole table is m sqrt(2 h) if one unit's m records count once
    each in h histograms.

    Args:
        counts: of any number of dimensions.
        event: one table, with its noise standard deviation sigma.
        noise: of this table alone.

    References:
        Mironov: On significance of the least significant bits for differential privacy, CCS 2012.
    """
    exact = torch.from_numpy(counts.astype(np.float64))
    noised = exact + noise.normal(tuple(exact.shape), event.noise_std, like=exact)
    return np.round(noised.numpy() / GRID) * GRID

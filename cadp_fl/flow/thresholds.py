"""Thresholds t_y of a flow of rows: what is added to x so that drawn categories are as frequent as the moments say.

A warm-started flow draws the numbers of a one-hot category from a normal distribution, and the largest one names the
category. That alone makes frequent categories too frequent. The class means of those numbers are the noised shares of
the categories, so with t_y added the largest one is each category as often as its share. It is worked out on fixed
draws from the flow: post-processing of its moments.

References:
    Albert, Chib: Bayesian analysis of binary and polychotomous response data, JASA 1993 (a category as the largest of
    normal numbers).
"""

import numpy as np
import torch

from cadp_fl.data.codec import RowShape

__all__ = ["thresholds_of"]

_DRAWS, _STEPS = 8192, 60
_LEAST_SHARE = 1e-3


def thresholds_of(shape: RowShape, means: np.ndarray, covariances: np.ndarray) -> torch.Tensor:
    """Return t, float32 (classes, numbers): 0 for numbers that are no categories.

    Args:
        shape: of x.
        means: of x by class, float64 (classes, numbers).
        covariances: of x by class, float64 (classes, numbers, numbers).
    """
    thresholds = np.zeros_like(means)
    generator = np.random.default_rng(0)
    for kind, place in shape.parts:
        if kind == "number-or-missing":
            place = slice(place.stop - 1, place.stop)
        if kind == "number":
            continue
        width = place.stop - place.start
        normal = generator.standard_normal((_DRAWS, width))
        for label, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
            own = np.linalg.cholesky(covariance[place, place] + 1e-9 * np.eye(width))
            drawn = mean[place] + normal @ own.T
            if width == 1:  # 0 and 1 are at 1/4 and 3/4, and 1/2 is between them
                share = np.clip(2 * (mean[place][0] - 0.25), _LEAST_SHARE, 1 - _LEAST_SHARE)
                thresholds[label, place] = 0.5 - np.quantile(drawn[:, 0], 1 - share)
            else:
                shares = np.clip(2 * (mean[place] - 0.25), _LEAST_SHARE, None)
                thresholds[label, place] = _levelled(drawn, shares / shares.sum())
    return torch.from_numpy(thresholds).float()


def _levelled(drawn: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return t with which the largest of drawn + t is each column as often as its share, float64 (columns,)."""
    added = np.zeros(len(shares))
    step = float(drawn.std(axis=0).mean())
    for number in range(_STEPS):
        found = np.bincount((drawn + added).argmax(axis=1), minlength=len(shares)) / len(drawn)
        added += step * (0.97**number) * np.log(shares / np.maximum(found, 0.5 / len(drawn)))
        added -= added.mean()
    return added

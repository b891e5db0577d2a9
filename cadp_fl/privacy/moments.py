"""(n_y, sum u, sum u u^T) of every class under Gaussian noise: what a flow's affine layer is made of.

    u = clip(v - c; R) / R,   phi(u, y) = (a e_y, b e_y u, s u u^T, w e_y u u^T),   sum phi(u_i, y_i) + N(0, sigma^2 I)

with the centre c from a noised sum before it. Everything is exact on integers: u is rounded to a multiple of gamma, a
power of two, without leaving the unit ball, so that counts and sums are whole multiples of gamma, second moments of
gamma^2, and float64 adds them up without rounding, in whatever order. A weight does not scale a part; it divides its
noise, which is the same mechanism and keeps integers whole. The noise is a Gaussian rounded exactly, and an integer
plus rounded noise is the rounded sum: so what leaves is the Gaussian mechanism on vectors phi of such u, whose norm is
at most 1, rounded afterwards. It costs what that does, with nothing added for rounding.

Where K sites' values are added before anyone but an aggregator sees one, each adds noise of sigma / sqrt(K), rounded.
The sum of K rounded normals is not a rounded normal of all their variance: up to an error below, it is what rounding
gives after K - 1 independent uniform numbers of a step's width were added. That is post-processing of the Gaussian
mechanism at sigma, so the claim at sigma holds for the sum. For, the law of one is h = (normal density) * (box) taken
at integers, and by Poisson's summation formula that of the sum is h * ... * h taken at integers but for products of
Fourier transforms at two different aliases. Those are at most exp(-2 pi^2 s^2 (x^2 + (1 - x)^2)) <= exp(-pi^2 s^2) at
a standard deviation of s steps, so that no probability is off by more than K^2 exp(-pi^2 s^2); with 2^6 steps or more,
as events ask for, and 2^6 / sqrt(2) off a diagonal, it is below 10^-8700.

References:
    Dwork, Roth: The algorithmic foundations of differential privacy, 2014 (the Gaussian mechanism).
    Mironov: On significance of the least significant bits for differential privacy, CCS 2012.
    Kairouz, Liu, Steinke: The distributed discrete Gaussian mechanism for federated learning with secure aggregation,
    arXiv 2102.06387 (where each site's noise is a discrete Gaussian).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from cadp_fl.errors import ExchangeError, PrivacyError
from cadp_fl.privacy.clipping import clip_l2
from cadp_fl.privacy.events import GaussianMoments, GaussianSum
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["Moments", "clipped_sum", "joint_moments", "packed", "unpacked"]

_EXACT = 2.0**52
"""Whole numbers whose sums float64 holds; those of the noise have as much room again."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Noised moments of centred records u of norm at most 1; a part of weight 0 is None.

    Attributes:
        counts: n_y, float64 (classes,).
        sums: sum of u, float64 (classes, d).
        shared: sum of u u^T over all classes, float64 (d, d), symmetric.
        second: sum of u u^T, float64 (classes, d, d), symmetric.
        noise: standard deviation of the noise on each part by its name; of `shared` and `second` on the diagonal, with
            1 / sqrt(2) of it elsewhere.
    """

    counts: np.ndarray | None
    sums: np.ndarray | None
    shared: np.ndarray | None
    second: np.ndarray | None
    noise: Mapping[str, float]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the parts by name, float64: symmetric matrices as their packed upper triangles (..., d (d + 1) / 2).

        They are multiples of the event's grid, whose sums over sites are exact.
        """
        parts = {"counts": self.counts, "sums": self.sums}
        parts |= {name: packed(each) for name, each in (("shared", self.shared), ("second", self.second))
                  if each is not None}  # fmt: skip
        return {name: part for name, part in parts.items() if part is not None}

    @staticmethod
    def shapes(event: GaussianMoments, *, classes: int, dims: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of an event's moments, by name."""
        triangle = dims * (dims + 1) // 2
        shapes = {"counts": (classes,), "sums": (classes, dims), "shared": (triangle,), "second": (classes, triangle)}
        return {name: shapes[name] for name in event.part_stds}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], event: GaussianMoments, *, classes: int, dims: int) -> Self:
        """Return the moments of one site that `arrays` wrote, with the noise that the event says it adds.

        Raises:
            ExchangeError: a part is missing or not asked for, or has another shape or type, or is not finite.
        """
        asked = cls.shapes(event, classes=classes, dims=dims)
        if set(arrays) != set(asked):
            raise ExchangeError(
                f"Moments have the parts that their event weighs: {', '.join(asked)}. Found {', '.join(arrays)}."
            )
        for name, shape in asked.items():
            part = arrays[name]
            if part.shape != shape or part.dtype != np.float64 or not np.isfinite(part).all():
                raise ExchangeError(
                    f"Moments are finite float64. Found {name} of {part.dtype} {part.shape}, not {shape}."
                )
        return cls(
            counts=arrays.get("counts"),
            sums=arrays.get("sums"),
            shared=unpacked(arrays["shared"], dims) if "shared" in asked else None,
            second=unpacked(arrays["second"], dims) if "second" in asked else None,
            noise=event.part_stds,
        )

    @classmethod
    def total(cls, sites: Sequence[Self]) -> Self:
        """Return the moments of several sites together: values add, and so do the variances of their noise.

        Raises:
            ExchangeError: there is none, or they differ in parts or shapes.
        """
        arrays = [moments.arrays() for moments in sites]
        shapes = [{name: part.shape for name, part in each.items()} for each in arrays]
        if not shapes or any(each != shapes[0] for each in shapes):
            raise ExchangeError(f"Moments that are added up have the same parts and shapes. Found {shapes}.")
        parts = {name: [getattr(moments, name) for moments in sites] for name in shapes[0]}
        sums = {name: np.sum(each, axis=0) for name, each in parts.items()}
        return cls(
            counts=sums.get("counts"),
            sums=sums.get("sums"),
            shared=sums.get("shared"),
            second=sums.get("second"),
            noise={name: math.hypot(*(moments.noise[name] for moments in sites)) for name in shapes[0]},
        )


def packed(matrices: np.ndarray) -> np.ndarray:
    """Return the upper triangles of symmetric (..., d, d) row by row, (..., d (d + 1) / 2)."""
    rows, columns = np.triu_indices(matrices.shape[-1])
    return matrices[..., rows, columns]


def unpacked(triangles: np.ndarray, dims: int) -> np.ndarray:
    """Return the symmetric (..., d, d) of packed upper triangles (..., d (d + 1) / 2)."""
    rows, columns = np.triu_indices(dims)
    matrices = np.empty((*triangles.shape[:-1], dims, dims), dtype=triangles.dtype)
    matrices[..., rows, columns] = triangles
    matrices[..., columns, rows] = triangles
    return matrices


def clipped_sum(
    features: np.ndarray, event: GaussianSum, *, noise: NoiseSource, blank: np.ndarray | None = None
) -> np.ndarray:
    """Return gamma (sum trunc(clip(v_i; C) / gamma) + round(N(0, (sigma / gamma)^2 I))), float64 (d,).

    Truncation towards zero lengthens no vector, so that replacing a record moves the sum by at most 2 C.

    Args:
        features: v, float64 (places, d), m places for each privacy unit; a row that is not finite counts as zero.
        event: what the sum costs.
        noise: of this sum alone.
        blank: bool (places,), of places that no record fills; they add nothing.

    Raises:
        PrivacyError: there are more places than float64 adds up without rounding.
    """
    grid = event.grid
    _check_exact(len(features), event.clip_norm / grid)
    clipped = clip_l2(_without_blanks(features, blank), event.clip_norm)
    total = clipped.mul_(1 / grid).trunc_().sum(dim=0).numpy()
    return _noised(total, event.share_std / grid, noise) * grid


def joint_moments(
    features: np.ndarray,
    labels: np.ndarray,
    event: GaussianMoments,
    *,
    classes: int,
    centre: np.ndarray,
    noise: NoiseSource,
    blank: np.ndarray | None = None,
) -> Moments:
    """Return sum phi(u_i, y_i) + N(0, sigma^2 I), in its parts and with their weights divided out.

    Args:
        features: v, float64 (places, d), m places for each privacy unit; a row that is not finite counts as u = 0.
        labels: y, int64 (places,).
        event: what the moments cost.
        classes: number of classes.
        centre: c, float64 (d,), any vector that no record had a part in but by an accounted event.
        noise: of these moments alone.
        blank: bool (places,), of places that no record fills; they add nothing, to no class.

    Raises:
        PrivacyError: there are more places than float64 adds up without rounding.
    """
    grid, stds = event.grid, event.part_stds
    _check_exact(len(features), 1 / grid**2)
    steps = _unit_steps(_without_blanks(features, blank) - torch.from_numpy(centre), event).numpy()
    kept = labels if blank is None else labels[~blank]
    by_class = [steps[kept == label] for label in range(classes)]
    totals = {"counts": np.array([len(rows) / grid for rows in by_class])}
    totals["sums"] = np.stack([rows.sum(axis=0) for rows in by_class])
    noised = {name: _noised(totals[name], stds[name] / grid, noise) * grid for name in totals if name in stds}
    if "shared" in stds or "second" in stds:
        squares = np.stack([rows.T @ rows for rows in by_class])
        totals = {"shared": squares.sum(axis=0), "second": squares}
        noised |= {
            name: _noised_squares(totals[name], stds[name] / grid**2, noise) * grid**2
            for name in totals
            if name in stds
        }
    return Moments(
        counts=noised.get("counts"),
        sums=noised.get("sums"),
        shared=noised.get("shared"),
        second=noised.get("second"),
        noise=stds,
    )


def _without_blanks(features: np.ndarray, blank: np.ndarray | None) -> torch.Tensor:
    """Return a copy of the rows that are no blank, float64 (records, d)."""
    return torch.from_numpy(features if blank is None else features[~blank]).to(torch.float64, copy=True)


def _unit_steps(centred: torch.Tensor, event: GaussianMoments) -> torch.Tensor:
    """Return round(clip(v; R (1 - sqrt(d) gamma / 2)) / (R gamma)), float64 (records, d): whole, of norm <= 1 / gamma.

    Rounding to the nearest, which unlike truncation does not draw all records towards zero, lengthens a vector by
    sqrt(d) / 2 steps at most: the clip leaves room for them. `clip_l2` has a margin for what float64 rounds besides.
    """
    room = math.sqrt(centred.shape[1]) / 2 * event.grid
    clipped = clip_l2(centred, event.clip_norm * max(1 - room, event.grid / 4))  # at a quarter of a step all round to 0
    return clipped.mul_(1 / (event.clip_norm * event.grid)).round_()


def _noised(totals: np.ndarray, std: float, noise: NoiseSource) -> np.ndarray:
    """Return whole numbers plus round(N(0, std^2)), float64."""
    exact = torch.from_numpy(totals)
    return (exact + noise.rounded_normal(tuple(exact.shape), std, like=exact)).numpy()


def _noised_squares(totals: np.ndarray, std: float, noise: NoiseSource) -> np.ndarray:
    """Return symmetric (..., d, d) plus noise: of std on the diagonal, of std / sqrt(2), rounded up, off it."""
    dims = totals.shape[-1]
    rows, columns = np.triu_indices(dims)
    triangle, diagonal = totals[..., rows, columns], rows == columns
    noised = np.empty_like(triangle)
    for chosen, deviation in ((diagonal, std), (~diagonal, std / math.sqrt(2) * (1 + 2.0**-50))):
        noised[..., chosen] = _noised(np.ascontiguousarray(triangle[..., chosen]), deviation, noise)
    return unpacked(noised, dims)


def _check_exact(places: int, largest: float) -> None:
    if places * largest > _EXACT:
        raise PrivacyError(
            f"Sums stay below 2^52 steps of their grid, so that none is rounded. {places} records of {largest:g} steps "
            "may reach further; ask for more noise, or split the site."
        )

"""From noised moments to a flow's affine layer: empirical Bayes, with nothing but what was released.

The noise of every number is known, so each estimate is drawn towards a smooth one by as much as its noise makes likely:
class means towards the mean of all, the covariance within classes towards a diagonal that falls with frequency, that of
each class towards the one of all. How much the true ones differ from the smooth ones is estimated from the same
numbers. All of it is post-processing.

References:
    Efron, Morris: Stein's estimation rule and its competitors, an empirical Bayes approach, JASA 1973.
    Ledoit, Wolf: A well-conditioned estimator for large-dimensional covariance matrices, 2004.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from cadp_fl.data.codec import RowShape
from cadp_fl.errors import ConfigError, DataError, ExchangeError, FlowOriginError
from cadp_fl.features.front_end import FrontEnd
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.thresholds import thresholds_of
from cadp_fl.privacy.events import GaussianMoments
from cadp_fl.privacy.moments import Moments
from cadp_fl.storage import load_weights, read_description, save_weights
from cadp_fl.weights import get_weights

__all__ = [
    "Classes",
    "NoisedMoments",
    "check_is_made_of",
    "check_parts",
    "fit_affine",
    "fit_classes",
    "load_moments",
    "save_moments",
]

MEAN_POWER = 0.75
"""q: class means are expected to differ by (1 + f)^-q at frequency f."""

_LEAST_SHARE = 0.02
"""Of all records that a class is taken to have, however few its noised count says."""

_LEAST_OF_THE_MEAN = 0.05
"""Variance that is added in every direction, in units of the mean one, so that none is all but zero by chance."""

_LOGS_OF_SCALE, _SCALES = (-8.0, 60.0), 512
"""Values of a scale that a mean is taken over: logarithms, in units of the noise."""

_LEAST_VARIANCE = 0.05
"""Of a record around its class, all directions together, where |u| <= 1."""

_FARTHEST = 20.0
"""Standard deviations that no noise reaches."""


@dataclass(frozen=True, eq=False)
class NoisedMoments:
    """What the sites released together.

    Attributes:
        centre: c, float64 (dims,), that the records were seen from.
        moments: noised, of coordinates u with |u| <= 1.
        records: public number of records that they are of.
        sites: number of sites that they are of.
    """

    centre: np.ndarray
    moments: Moments
    records: int
    sites: int = 1

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all numbers by name, float64, as `of` takes them."""
        return {"centre": self.centre, **self.moments.arrays()}

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, np.ndarray],
        event: GaussianMoments,
        *,
        classes: int,
        dims: int,
        records: int,
        sites: int,
    ) -> Self:
        """Return what `arrays` wrote, of sites that each added the noise of an event.

        Raises:
            ExchangeError: a part is missing or not asked for, or has another shape or type, or is not finite.
        """
        centre = arrays.get("centre")
        if centre is None or centre.shape != (dims,) or centre.dtype != np.float64 or not np.isfinite(centre).all():
            raise ExchangeError(f"Moments have a centre of {dims} finite numbers, float64. Found none.")
        parts = {name: array for name, array in arrays.items() if name != "centre"}
        one = Moments.of(parts, event, classes=classes, dims=dims)
        noise = {name: std * math.sqrt(sites) for name, std in one.noise.items()}
        return cls(centre, replace(one, noise=noise), records, sites)


_FIT_TOLERANCE = 1e-3
"""Relative to a tensor's largest value: linear-algebra libraries differ by much less."""


def save_moments(path: Path, noised: NoisedMoments) -> None:
    """Write what the sites released together, for a run that goes on later."""
    save_weights(
        path, noised.arrays(), kind="moments", description={"records": str(noised.records), "sites": str(noised.sites)}
    )


def load_moments(path: Path, event: GaussianMoments, *, classes: int, dims: int) -> NoisedMoments:
    """Return what `save_moments` wrote.

    Raises:
        DataError: the file is missing or damaged, or holds other moments.
    """
    described = read_description(path, kind="moments")
    expected = {"centre": (dims,), **Moments.shapes(event, classes=classes, dims=dims)}
    arrays = load_weights(path, {name: np.empty(shape) for name, shape in expected.items()})
    try:
        records, sites = int(described["records"]), int(described["sites"])
    except (KeyError, ValueError) as error:
        raise DataError(f"Stored moments say how many records they are of. '{path}' does not; run it again.") from error
    return NoisedMoments.of(arrays, event, classes=classes, dims=dims, records=records, sites=sites)


def check_is_made_of(flow: ConditionalFlow, new: ConditionalFlow, noised: NoisedMoments, *, trained: bool) -> None:
    """Check that a flow is the one that moments make.

    It is a check of a server's word at a site: a flow that holds anything but what these numbers give, as one that was
    trained on the records besides, is refused. That the other sites' part of the sum is theirs, it cannot show.

    Args:
        flow: as it came.
        new: the same flow before anything was done to it; it is fitted here.
        noised: what the flow is said to be made of.
        trained: whether the blocks were trained by DP-SGD above it, so that only what lies below them can be compared.

    Raises:
        FlowOriginError: it is another one.
    """
    fit_affine(new, noised)
    made = get_weights(new)
    for name, found in get_weights(flow).items():
        if trained and not name.startswith(("coordinates.", "affine.")):
            continue
        scale = max(1e-6, float(np.abs(made[name]).max(initial=0.0)))
        if not np.allclose(found, made[name], rtol=0, atol=_FIT_TOLERANCE * scale):
            raise FlowOriginError(
                "A release's flow is the one that the moments make which come with it. The one that came differs in "
                f"'{name}'; send the flow as it was fitted."
            )


@dataclass(frozen=True, eq=False)
class Classes:
    """A normal distribution of u for every class: means (classes, dims), covariances (classes, dims, dims), shares."""

    means: np.ndarray
    covariances: np.ndarray
    shares: np.ndarray


def fit_affine(flow: ConditionalFlow, noised: NoisedMoments) -> None:
    """Set a warm-started flow's centre, spread and affine layer, in place, by the classes' normal distributions.

    Args:
        flow: its blocks are the identity.
        noised: what the sites released together.
    """
    assert flow.coordinates is not None, "a warm-started flow has them"
    assert flow.affine is not None, "a warm-started flow has one"
    front, radius = flow.coordinates.front, flow.coordinates.radius
    fitted = fit_classes(noised, front.frequencies.numpy(), front.kinds.numpy())
    factors = np.linalg.cholesky(fitted.covariances)
    spread = radius
    if front.is_on_sphere:  # then |v - c|^2 is about 1 - |c|^2
        spread = math.sqrt(max(1 - float(noised.centre @ noised.centre), radius**2))
    with torch.no_grad():
        flow.coordinates.centre.copy_(torch.from_numpy(noised.centre))
        flow.coordinates.spread.fill_(spread)
        flow.affine.mean.copy_(torch.from_numpy(fitted.means))
        flow.affine.whitening.copy_(torch.from_numpy(np.linalg.inv(factors)).tril())
        if isinstance(flow.shape, RowShape):
            assert flow.affine.thresholds is not None, "a flow of rows has them"
            assert flow.affine.shares is not None, "a flow of rows has them"
            flow.affine.thresholds.copy_(thresholds_of(flow.shape, *_of_rows(front, noised.centre, radius, fitted)))
            flow.affine.shares.copy_(torch.from_numpy(fitted.shares))


def _of_rows(front: FrontEnd, centre: np.ndarray, radius: float, fitted: Classes) -> tuple[np.ndarray, np.ndarray]:
    """Return means and covariances of a row's numbers x by class, of those of u = (v(x) - c) / R: x is affine in u."""
    eye = torch.from_numpy(np.concatenate([np.zeros((1, front.dims)), np.eye(front.dims)]))
    start, *units = front.record(eye, torch.ones(len(eye)), eye[:, :0]).numpy()
    scale = np.array([unit[place] - start[place] for place, unit in enumerate(units)])
    factor = radius * scale
    return start + scale * (centre + radius * fitted.means), factor[:, None] * fitted.covariances * factor


def check_parts(parts: Collection[str]) -> None:
    """Check that moments have the parts that a flow is made of.

    Args:
        parts: names of those whose weight is not 0.

    Raises:
        ConfigError: counts, sums or all second moments were left out.
    """
    if not ({"counts", "sums"} <= set(parts) and {"shared", "second"} & set(parts)):
        raise ConfigError(
            "A warm start needs counts, sums and a second moment. A weight is 0; give flow.moments.count_weight, "
            "sum_weight and one of shared_weight and class_weight a value."
        )


def fit_classes(noised: NoisedMoments, frequencies: np.ndarray, kinds: np.ndarray) -> Classes:
    """Return a normal distribution for every class, whatever was released: a broken site spoils a flow, and no run.

    Args:
        frequencies: of every dimension, float64 (dims,).
        kinds: which kind every dimension is of, int64 (dims,): each has a scale of its own.

    Raises:
        ConfigError: counts, sums or all second moments were left out.
    """
    check_parts(noised.moments.arrays())
    moments, records = _possible(noised.moments, noised.records), noised.records
    assert moments.counts is not None, "a part that was checked"
    assert moments.sums is not None, "a part that was checked"
    counts = np.maximum(moments.counts, _LEAST_SHARE * records)
    counts *= records / counts.sum()
    means = _means(moments.sums, moments.noise["sums"], counts, frequencies, kinds)
    within = _within(moments, means, counts, frequencies, kinds)
    level = max(float(np.trace(within[1])), _LEAST_VARIANCE) / len(frequencies)
    covariances = _by_class(moments, means, within[0], counts)
    covariances += _LEAST_OF_THE_MEAN * level * np.eye(len(frequencies))
    return Classes(means, covariances, counts / records)


def _possible(moments: Moments, records: int) -> Moments:
    """Return moments without what no records and no noise could make: their squares stay finite."""
    parts = {}
    for name, noise in moments.noise.items():
        bound = records + _FARTHEST * noise
        parts[name] = np.clip(getattr(moments, name), -bound, bound)
    return replace(moments, **parts)


def _means(
    sums: np.ndarray, noise: float, counts: np.ndarray, frequencies: np.ndarray, kinds: np.ndarray
) -> np.ndarray:
    """Return class means, each drawn towards the mean of all: their differences fall with frequency."""
    overall, raw = sums.sum(axis=0) / counts.sum(), sums / counts[:, None]
    variance = np.repeat(((noise / counts) ** 2)[:, None], len(frequencies), axis=1)
    apart = np.zeros_like(raw)
    for kind in np.unique(kinds):
        own = kinds == kind
        prior = np.repeat(((1 + frequencies[own]) ** (-2 * MEAN_POWER))[None], len(counts), axis=0)
        apart[:, own] = _averaged((raw - overall)[:, own], prior, variance[:, own])
    result: np.ndarray = overall + apart
    return result


def _within(
    moments: Moments, means: np.ndarray, counts: np.ndarray, frequencies: np.ndarray, kinds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance within classes, drawn towards a diagonal that falls with frequency; and as observed."""
    records, dims = counts.sum(), len(frequencies)
    total, variance = _second_moment(moments)
    observed = total / records - (means.T * (counts / records)) @ means
    noise = variance / records**2 * _noise_pattern(dims)
    diagonal = np.zeros(dims)
    for kind in np.unique(kinds):
        own = kinds == kind
        diagonal[own] = _power_law(np.diag(observed)[own], frequencies[own], variance / records**2)
    prior, found = np.outer(diagonal, diagonal), observed - np.diag(diagonal)
    off = ~np.eye(dims, dtype=bool)
    scales = np.where(
        off, _scale(found[off], prior[off], noise[off]), _scale(np.diag(found), np.diag(prior), np.diag(noise))
    )
    return _positive(np.diag(diagonal) + _shrunk(found, scales * prior, noise)), observed


def _second_moment(moments: Moments) -> tuple[np.ndarray, float]:
    """Return the second moment of all classes together, and the variance of its noise on the diagonal.

    It was released once for all and once by class; this is the mean of both, each weighed by how sure it is.
    """
    estimates: list[tuple[np.ndarray, float]] = []
    if moments.shared is not None:
        estimates.append((moments.shared, moments.noise["shared"] ** 2))
    if moments.second is not None:
        estimates.append((moments.second.sum(axis=0), len(moments.second) * moments.noise["second"] ** 2))
    precision = sum(1 / variance for _, variance in estimates)
    return sum((matrix / variance for matrix, variance in estimates), np.zeros(())) / precision, 1 / precision


def _by_class(moments: Moments, means: np.ndarray, within: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return each class's covariance, drawn towards that within all classes, in the directions of the latter."""
    if moments.second is None:
        return np.repeat(within[None], len(counts), axis=0)
    values, directions = np.linalg.eigh(within)
    prior = np.outer(*[np.maximum(values, 1e-6)] * 2) * 2 * _noise_pattern(len(values))
    noise = (moments.noise["second"] / counts[:, None, None]) ** 2 * _noise_pattern(len(values))
    difference = moments.second / counts[:, None, None] - means[:, :, None] * means[:, None, :] - within
    found = directions.T @ difference @ directions
    scale = _scale(found, np.broadcast_to(prior, found.shape), noise)
    apart = directions @ _shrunk(found, scale * prior, noise) @ directions.T
    return np.stack([_positive(within + each) for each in apart])


def _power_law(diagonal: np.ndarray, frequencies: np.ndarray, variance: float) -> np.ndarray:
    """Return A (1 + f)^-q, with A by least squares and q from 0 to 4 by likelihood."""
    candidates = []
    for power in np.arange(0, 4.01, 0.25):
        shape = (1 + frequencies) ** -power
        law = max(float(diagonal @ shape / (shape @ shape)), 1e-9) * shape
        spread = variance + (law / 2) ** 2  # the law itself is right to a half, say
        candidates.append((float(((diagonal - law) ** 2 / spread + np.log(spread)).sum()), law))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _scale(found: np.ndarray, prior: np.ndarray, noise: np.ndarray, *, start: float = 0.1, steps: int = 8) -> float:
    """Return t with found ~ N(0, t prior + noise), about the likeliest: moments, weighed again in every step."""
    scale = start
    for _ in range(steps):
        weights = prior / (scale * prior + noise) ** 2
        scale = max(1e-4, float((weights * (found**2 - noise)).sum() / (weights * prior).sum()))
    return scale


def _averaged(found: np.ndarray, prior: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the mean of what was found with noise, where N(0, t prior) is expected and t is not known.

    The mean is over the posterior of t, with noise / (t prior + noise) uniform before: where noise is most of what was
    found, one likeliest t would often be 0, and nothing would be left of it.

    References:
        Strawderman: Proper Bayes minimax estimators of the multivariate normal mean, 1971 (that prior).
    """
    logs_of_scale = np.linspace(*_LOGS_OF_SCALE, _SCALES)
    scales = noise.mean() / prior.mean() * np.exp(logs_of_scale)
    signals = scales[:, None] * prior.reshape(1, -1)
    totals = signals + noise.reshape(1, -1)
    logs = -0.5 * (found.reshape(1, -1) ** 2 / totals + np.log(totals)).sum(axis=1)
    logs += logs_of_scale - 2 * np.logaddexp(0, logs_of_scale)  # uniform noise / (t prior + noise), by log t
    weights = np.exp(logs - logs.max())
    factors = (weights / weights.sum()) @ (signals / totals)
    averaged: np.ndarray = factors.reshape(found.shape) * found
    return averaged


def _shrunk(found: np.ndarray, prior: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return prior / (prior + noise) * found: the mean of what was found with noise, where N(0, prior) is expected."""
    shrunk: np.ndarray = prior / (prior + noise) * found
    return shrunk


def _noise_pattern(dims: int) -> np.ndarray:
    """Return the variance of a symmetric matrix's noise in units of that on its diagonal: half of it elsewhere."""
    return (1 + np.eye(dims)) / 2


def _positive(matrix: np.ndarray, least: float = 1e-9) -> np.ndarray:
    """Return the nearest symmetric matrix whose eigenvalues are at least `least`, and as small a part of the largest.

    A smaller part than float64 can tell from zero would make it singular.
    """
    values, directions = np.linalg.eigh(matrix)
    nearest: np.ndarray = (directions * np.maximum(values, least * max(1.0, values.max()))) @ directions.T
    return nearest

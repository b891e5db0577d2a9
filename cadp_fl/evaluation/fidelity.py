"""What a release keeps of its records: measured on originals, so for a simulation's or a steward's eyes alone.

Each figure is about pairs of an original and its own released record, or about all of both. None is covered by an
epsilon: an original has a part in every one.

References:
    Naeem, Oh, Uh, Choi, Yoo: Reliable fidelity and diversity metrics for generative models, arXiv 2002.09797.
    Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter: GANs trained by a two time-scale update rule, arXiv 1706.08500.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.neighbors import NearestNeighbors

from cadp_fl.classifier.training import as_input
from cadp_fl.data.codec import codec_of, input_shape
from cadp_fl.data.schema import Dataset
from cadp_fl.evaluation.bounds import linkage_bound
from cadp_fl.evaluation.pairs import Pairs, pooled
from cadp_fl.features.linear import BlockGradients
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.events import Event

__all__ = ["correlation_within_classes", "fidelity_of", "message_of"]

CANDIDATES = 10
"""Records among which a release is to be linked to its own."""

MOST_COMPARED = 1000
"""Records of each kind whose distances are taken: a distance for every two of them."""

_COMPONENTS = 32
_NEIGHBOURS = 5


def correlation_within_classes(
    ours: np.ndarray, own_labels: np.ndarray, theirs: np.ndarray, their_labels: np.ndarray
) -> float:
    """Return the correlation of paired vectors without the mean of each one's class; 0 where nothing varies.

    What a class has in common, the flow knows of all: it says nothing of a record.

    Args:
        ours, theirs: float (records, dims).
        own_labels, their_labels: int64 (records,).
    """
    a, b = _without_means(ours, own_labels), _without_means(theirs, their_labels)
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm if norm else 0.0


def fidelity_of(
    sites: Sequence[Pairs], held_out: Dataset, *, message: tuple[float, float], seed: int = 0
) -> dict[str, Any]:
    """Return what the releases of a method keep of their records, as JSON values.

    Args:
        sites: pairs of every site, blanks left out.
        held_out: real test records, of all sites together.
        message: (epsilon, delta) of one unit's message by itself: what bounds linkage.
        seed: of what is compared, where not all are.
    """
    generator = np.random.default_rng(seed)
    originals, released = (pooled([getattr(each, name) for each in sites]) for name in ("originals", "released"))
    latents = [
        np.concatenate([getattr(each, f"{name}_latents") for each in sites]) for name in ("original", "released")
    ]
    labels = originals.labels, released.labels
    pixels = [_flat(each) for each in (originals, released, held_out)]
    figures: dict[str, Any] = {
        "image_correlation": correlation_within_classes(pixels[0], labels[0], pixels[1], labels[1]),
        "latent_correlation": correlation_within_classes(latents[0], labels[0], latents[1], labels[1]),
        "label_agreement": float((labels[0] == labels[1]).mean()),
        "linear_released": _trained_on(pixels[1], labels[1], pixels[2], held_out.labels, _linear),
        "quadratic_released": _trained_on(pixels[1], labels[1], pixels[2], held_out.labels, _quadratic),
        "linkage": _linkage(pixels[0], pixels[1], message, generator),
    }
    if len(held_out):
        figures["nearest"] = _nearest(pixels[0], pixels[1], pixels[2], generator)
    figures["distributions"] = _distributions(originals, released, generator)
    return figures


def message_of(events: Sequence[Event], delta: float) -> tuple[float, float]:
    """Return (epsilon, delta) of what one unit sends by itself in a release, its label with it.

    Args:
        events: of a plan, of which those of the release and its labels count.
        delta: of the plan.
    """
    sent = [event for event in events if event.stage in ("release", "labels")]
    local = [event.local_epsilon for event in sent if event.local_epsilon is not None]
    return (sum(local), 0.0) if local else (epsilon_of(sent, delta), delta)


def _flat(records: Dataset) -> np.ndarray:
    """Return numbers in [0, 1], float64 (records, numbers)."""
    inputs = (
        codec_of(records.schema).inputs(records.records).reshape(len(records), math.prod(input_shape(records.schema)))
    )
    numbers: np.ndarray = inputs.double().numpy()
    return numbers / 255 if inputs.dtype == torch.uint8 else numbers + 0.5


def _without_means(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    apart = values.astype(np.float64)
    for label in np.unique(labels):
        here = labels == label
        apart[here] -= apart[here].mean(axis=0)
    return apart


def _linear(_: int) -> LinearDiscriminantAnalysis:
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")


def _quadratic(classes: int) -> QuadraticDiscriminantAnalysis:
    return QuadraticDiscriminantAnalysis(reg_param=0.1, priors=np.full(classes, 1 / classes))


def _trained_on(
    x: np.ndarray, y: np.ndarray, real: np.ndarray, truth: np.ndarray, make: Callable[[int], Any]
) -> dict[str, float | None]:
    """Return accuracy and balanced accuracy on real records of a discriminant that knows released ones alone.

    None where there is nothing to test on, or the release holds one class.
    """
    classes, counts = np.unique(y, return_counts=True)
    if not len(real) or len(classes) < 2 or counts.min() < 2:
        return {"accuracy": None, "balanced_accuracy": None}
    components = PCA(min(_COMPONENTS, x.shape[1], counts.min() - 1), svd_solver="full").fit(x)
    said = make(len(classes)).fit(components.transform(x), y).predict(components.transform(real))
    return {
        "accuracy": float(accuracy_score(truth, said)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, said)),
    }


def _some(values: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    return values if len(values) <= most else values[generator.permutation(len(values))[:most]]


def _nearest(
    originals: np.ndarray, released: np.ndarray, held_out: np.ndarray, generator: np.random.Generator
) -> dict[str, float]:
    """Return the distance of a release to the nearest of as many training and held-out records, and which is nearer.

    Distances are root mean squares over pixels in [0, 1]. A release that is nearer to training records much more often
    than half the time shows who was in it.
    """
    count = min(len(originals), len(held_out), MOST_COMPARED)
    drawn = _some(released, MOST_COMPARED, generator)
    near = [
        NearestNeighbors(n_neighbors=1, algorithm="brute").fit(_some(each, count, generator)).kneighbors(drawn)[0][:, 0]
        for each in (originals, held_out)
    ]
    scale = math.sqrt(originals.shape[1])
    return {
        "to_training": float(np.median(near[0])) / scale,
        "to_held_out": float(np.median(near[1])) / scale,
        "nearer_to_training": float((near[0] < near[1]).mean()),
    }


def _linkage(
    originals: np.ndarray, released: np.ndarray, message: tuple[float, float], generator: np.random.Generator
) -> dict[str, float]:
    """Return how often the candidate most alike is a release's own record, by chance, and at most under its epsilon."""
    count = min(len(originals), MOST_COMPARED)
    candidates = min(CANDIDATES, len(originals))
    chosen = generator.permutation(len(originals))[:count]
    a, b = (each - each.mean(axis=0) for each in (originals, released))
    others = generator.integers(1, max(2, len(originals)), size=(count, candidates - 1))
    asked = np.concatenate([chosen[:, None], (chosen[:, None] + others) % len(originals)], axis=1)
    alike = np.stack([(a[column] * b[chosen]).sum(axis=1) - 0.5 * (a[column] ** 2).sum(axis=1) for column in asked.T])
    return {
        "candidates": float(candidates),
        "linked": float((alike.argmax(axis=0) == 0).mean()),
        "by_chance": 1 / candidates,
        "at_most": linkage_bound(*message, candidates),
    }


def _distributions(originals: Dataset, released: Dataset, generator: np.random.Generator) -> dict[str, float]:
    """Return Frechet distance, precision, recall, density and coverage of released records against originals.

    In block gradients of images, or in the numbers of rows, brought to their first components.
    """
    real, made = (_some(_features(each), MOST_COMPARED, generator) for each in (originals, released))
    components = PCA(min(_COMPONENTS, len(real) - 1, real.shape[1]), svd_solver="full").fit(real)
    real, made = components.transform(real), components.transform(made)
    mean, cross = real.mean(axis=0) - made.mean(axis=0), np.cov(real.T) @ np.cov(made.T)
    root = np.real(sqrtm(cross))
    k = min(_NEIGHBOURS, len(real) - 1)
    radii = {
        name: NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(values).kneighbors(values)[0][:, k]
        for name, values in (("real", real), ("made", made))
    }
    apart = cdist(real, made)
    inside = apart < radii["real"][:, None]
    return {
        "frechet": float(mean @ mean + np.trace(np.cov(real.T)) + np.trace(np.cov(made.T)) - 2 * np.trace(root)),
        "precision": float(inside.any(axis=0).mean()),
        "recall": float((apart < radii["made"][None]).any(axis=1).mean()),
        "density": float(inside.sum() / (k * len(made))),
        "coverage": float(inside.any(axis=1).mean()),
    }


@torch.no_grad()
def _features(records: Dataset) -> np.ndarray:
    """Return what distributions are compared in, float64 (records, dims)."""
    if records.schema.kind == "row":
        return _flat(records)
    features = BlockGradients()
    parts = codec_of(records.schema).inputs(records.records).split(512)
    return np.concatenate([features(as_input(part)).numpy() for part in parts]).astype(np.float64)

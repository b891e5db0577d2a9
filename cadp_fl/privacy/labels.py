"""y -> y': randomized response, the label that a record leaves with.

    P(y' = y) = e^epsilon / (e^epsilon + k - 1), and each of the other k - 1 classes alike.

It is drawn once for a record, before decoding: whatever else leaves with the record is made from y' alone.

References:
    Warner: Randomized response, JASA 1965.
    Kairouz, Oh, Viswanath: Extremal mechanisms for local differential privacy, arXiv 1407.1338.
"""

import math

import numpy as np

from cadp_fl.privacy.events import RandomizedResponse
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["class_counts_of", "lie_probability", "randomize_labels"]

_RESOLUTION = 2.0**-50
"""Four steps of a uniform number."""


def lie_probability(epsilon: float, classes: int) -> float:
    """Return P(y' != y) = (k - 1) / (e^epsilon + k - 1), rounded up by 4 k steps of a uniform number.

    A uniform number has 2^52 values, so that each of the other classes may be drawn up to two steps too rarely; the
    truth is then that much rarer too, and no answer is e^epsilon times as likely as under another label.
    """
    return (classes - 1) / (math.exp(epsilon) + classes - 1) + classes * _RESOLUTION


def randomize_labels(labels: np.ndarray, classes: int, event: RandomizedResponse, noise: NoiseSource) -> np.ndarray:
    """Return one drawn label for each, int64 (records,).

    Args:
        labels: true ones, int64 (records,).
        classes: k.
        event: what each label costs.
        noise: of this draw alone.
    """
    lies = noise.uniform(len(labels)) < lie_probability(event.epsilon, classes)
    steps = 1 + np.minimum((noise.uniform(len(labels)) * (classes - 1)).astype(np.int64), classes - 2)
    return np.where(lies, (labels + steps) % classes, labels)


def class_counts_of(released: np.ndarray, event: RandomizedResponse) -> np.ndarray:
    """Return an unbiased estimate of how many records each class had, float64 (classes,), from released labels alone.

    Args:
        released: number of records by released label, (classes,).
    """
    classes, total = len(released), released.sum()
    lie = lie_probability(event.epsilon, classes)
    truth, each_other = 1 - lie, lie / (classes - 1)
    estimate: np.ndarray = (released - each_other * total) / (truth - each_other)
    return estimate

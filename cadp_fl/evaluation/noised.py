"""How good a classifier is, from noised counts: what a site tells of its test units at a budget, once.

The table holds h histograms in which each test record counts once: the confusion counts, and a histogram of scores for
each class, of class 1 alone where there are two. Replacing a unit of m records moves it by at most m sqrt(2 h) in L2
norm, which is what the event `GaussianHistogram` costs. All that is made of the noised table here is post-processing.

A score s is the log-odds of a class in 20 public bins between -1,000 and 1,000 that are equally wide in asinh(s / 0.1);
fewer bins than an exact evaluation has, since each one carries noise.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from cadp_fl.errors import ExchangeError
from cadp_fl.evaluation.utility import Metrics, ScoreBins, count, figures_of
from cadp_fl.privacy.accounting import GaussianHistogram, calibrate_noise

__all__ = [
    "NOISED_BINS",
    "NoisedEvaluation",
    "clipped_to_total",
    "evaluation_event",
    "histograms_in",
    "noised_metrics_of",
    "pool_noised",
    "table_of",
]

NOISED_BINS = ScoreBins(number=20, limit=1e3, linear=0.1)


def histograms_in(classes: int) -> int:
    """Return h, the number of histograms of a table in which each record counts once."""
    return 1 + _scored(classes)


def _scored(classes: int) -> int:
    """Return the number of classes that have a histogram of scores; of two, the second stands for both."""
    return 1 if classes == 2 else classes


def evaluation_event(epsilon: float, delta: float, classes: int, records_per_unit: int = 1) -> GaussianHistogram:
    """Return the event of one evaluation, with the least noise that an (epsilon, delta) allows under replace-one.

    Args:
        classes: K.
        records_per_unit: m; a unit contributes up to m test records.
    """

    def table(noise_std: float) -> GaussianHistogram:
        return GaussianHistogram(
            stage="evaluation",
            histograms=histograms_in(classes),
            noise_std=noise_std,
            records_per_unit=records_per_unit,
        )

    return table(calibrate_noise(lambda std: [table(std)], epsilon, delta, clip_norm=float(records_per_unit)))


def table_of(log_odds: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact table, before its noise: confusion counts and score histograms, both int64.

    Args:
        log_odds: log p(y | x) / (1 - p(y | x)), float64 (records, classes).
        labels: int64, (records,).

    Returns:
        (classes, classes), true classes in rows; and (scored classes, 2, 20), scores over [own records, all others].
    """
    confusion, histograms = count(log_odds, labels, NOISED_BINS)
    return confusion, histograms[-_scored(log_odds.shape[1]) :]


@dataclass(frozen=True)
class NoisedEvaluation:
    """What sites tell of a classifier on their test units, with noise.

    Attributes:
        confusion: float64 (classes, classes); rows are true classes, columns predicted ones.
        histograms: float64 (scored classes, 2, 20); scores over [own records, all others].
        variance: of the noise of each count; over several sites, the sum of theirs.
        records: number of test records, where that is public; None where it is known by the noised counts alone.
    """

    confusion: np.ndarray
    histograms: np.ndarray
    variance: float
    records: int | None

    def __post_init__(self) -> None:
        if any(array.dtype != np.float64 or not array.ndim for array in (self.confusion, self.histograms)):
            raise ExchangeError("A noised evaluation's counts are float64 arrays. Found something else.")
        classes = len(self.confusion)
        expected = (classes, classes), (_scored(classes), 2, NOISED_BINS.number)
        if (self.confusion.shape, self.histograms.shape) != expected:
            raise ExchangeError(
                f"A noised evaluation has counts {expected[0]} and {expected[1]}. Found {self.confusion.shape} and "
                f"{self.histograms.shape}."
            )
        if not (np.isfinite(self.confusion).all() and np.isfinite(self.histograms).all()):
            raise ExchangeError("Noised counts are finite. Found one that is not.")


def pool_noised(evaluations: list[NoisedEvaluation]) -> NoisedEvaluation:
    """Return the evaluation on all test units of several sites together; the variances of their noise add."""
    records = [each.records for each in evaluations]
    return NoisedEvaluation(
        np.sum([each.confusion for each in evaluations], axis=0),
        np.sum([each.histograms for each in evaluations], axis=0),
        math.fsum(each.variance for each in evaluations),
        None if None in records else sum(each for each in records if each is not None),
    )


def noised_metrics_of(evaluation: NoisedEvaluation, classes: tuple[str, ...]) -> Metrics:
    """Return the figures of noised counts, marked as such, with the accuracy's standard error.

    Accuracy is linear in the noised counts, so that it is right on average and its noise has a known variance; only
    then it is clipped to [0, 1]. The other figures come from counts that are clipped at 0 by `clipped_to_total`, and
    have no standard error: where noise is large beside the counts of a class, they say little.
    """
    total = float(evaluation.confusion.sum()) if evaluation.records is None else float(evaluation.records)
    if total < 1:
        reason = "no test record" if evaluation.records == 0 else "the noise outweighs the test records"
        return replace(Metrics.without(reason), noised=True)
    confusion = clipped_to_total(evaluation.confusion, total)
    histograms = np.stack([clipped_to_total(histogram, total) for histogram in evaluation.histograms])
    accuracy, error = _accuracy(evaluation, total)
    figures = figures_of(confusion, histograms, classes)
    undefined = dict.fromkeys(figures.undefined, "the noise outweighs the test records of a class")
    return replace(figures, accuracy=accuracy, accuracy_standard_error=error, undefined=undefined, noised=True)


def _accuracy(evaluation: NoisedEvaluation, total: float) -> tuple[float, float]:
    """Return the accuracy and its standard error, of sampling the test records and of the noise.

    With D the sum of the K diagonal counts and O that of the K (K - 1) others, each with noise of variance s^2:
    where the number n of records is public, the accuracy is ((1 - 1/K) D + (n - O)/K) / n, the estimate of least
    variance, whose noise has the variance (K - 1) s^2 / n^2. Where it is not, the accuracy is a = D / (D + O), whose
    noise has to first order the variance (K (1 - a)^2 + K (K - 1) a^2) s^2 / (D + O)^2. Sampling adds a (1 - a) / n, as
    of independent records.
    """
    classes = len(evaluation.confusion)
    right = float(np.trace(evaluation.confusion))
    wrong = float(evaluation.confusion.sum()) - right
    if evaluation.records is None:
        accuracy = min(max(right / total, 0.0), 1.0)
        weight = classes * (1 - accuracy) ** 2 + classes * (classes - 1) * accuracy**2
    else:
        estimate = (right * (classes - 1) + total - wrong) / (classes * total)
        accuracy, weight = min(max(estimate, 0.0), 1.0), classes - 1.0
    noise = weight * evaluation.variance / total**2
    return accuracy, math.sqrt(accuracy * (1 - accuracy) / total + noise)


def clipped_to_total(counts: np.ndarray, total: float) -> np.ndarray:
    """Return max(counts - t, 0) with the t at which they sum to `total`: the closest counts that are not negative.

    Clipping alone would leave the positive half of every empty cell's noise, which adds up over many cells.

    Args:
        counts: of any shape.
        total: positive.

    References:
        Duchi, Shalev-Shwartz, Singer, Chandra: Efficient projections onto the l1-ball, ICML 2008.
    """
    falling = np.sort(counts, axis=None)[::-1]
    shifts = (np.cumsum(falling) - total) / np.arange(1, len(falling) + 1)
    shift = shifts[np.flatnonzero(falling > shifts)[-1]]
    clipped: np.ndarray = np.maximum(counts - shift, 0.0)
    return clipped

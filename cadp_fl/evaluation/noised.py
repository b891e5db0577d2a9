"""How good a classifier is, from noised counts: what a site gives out about its test units at a budget, once.

The table holds h histograms in which each test record counts once: the confusion counts, and a histogram of scores for
each class, of class 1 alone where there are two. Replacing a unit of m records moves it by at most m sqrt(2 h) in L2
norm, which is what the event `GaussianHistogram` costs. All that is made of the noised table here is post-processing.

A score s is the log-odds of a class in 30 public bins between -1,000 and 1,000 that are equally wide in asinh(s / 0.1);
fewer bins than an exact evaluation has, since each carries noise. Ties within a bin draw AUROC towards .5: by .004 to
.017 where it was tried, for classifiers of two to ten classes whose scores were of the order of 0.3 to 30.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from cadp_fl.errors import ExchangeError
from cadp_fl.evaluation.utility import Metrics, ScoreBins, count
from cadp_fl.privacy.accounting import calibrate_noise
from cadp_fl.privacy.events import GaussianHistogram

__all__ = [
    "NOISED_BINS",
    "NoisedEvaluation",
    "evaluation_event",
    "histograms_in",
    "noised_metrics_of",
    "pool_noised",
    "table_of",
]

NOISED_BINS = ScoreBins(number=30, limit=1e3, linear=0.1)


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
        (classes, classes), true classes in rows; and (scored classes, 2, 30), scores over [own records, all others].
    """
    confusion, histograms = count(log_odds, labels, NOISED_BINS)
    return confusion, histograms[-_scored(log_odds.shape[1]) :]


@dataclass(frozen=True)
class NoisedEvaluation:
    """What sites report of a classifier on their test units, with noise.

    Attributes:
        confusion: float64 (classes, classes); rows are true classes, columns predicted ones.
        histograms: float64 (scored classes, 2, 30); scores over [own records, all others].
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
    """Return the figures of noised counts, marked as such, each with its standard error.

    Sums and ratios of sums, of counts as they are released, so that empty cells add nothing on average; clipping counts
    at 0 would add the positive half of the noise of each. It is the figures that are clipped, to [0, 1].

    A figure is undefined where the noise outweighs what it is divided by: the test records, or those of some class.
    Unlike in an exact evaluation, no one can tell a class without test records from one with few.
    """
    total = evaluation.confusion.sum() if evaluation.records is None else float(evaluation.records)
    noise_of_total = evaluation.confusion.size * evaluation.variance if evaluation.records is None else 0.0
    if total < max(1.0, 2 * math.sqrt(noise_of_total)):
        reason = "no test record" if evaluation.records == 0 else _OUTWEIGHED.format("records")
        return replace(Metrics.without(reason), noised=True)
    found = {"accuracy": _accuracy(evaluation, float(total))}
    undefined: dict[str, str] = {}
    rows = evaluation.confusion.sum(axis=1)
    if (rows > 2 * math.sqrt(len(rows) * evaluation.variance)).all():
        found |= {"balanced_accuracy": _balanced_accuracy(evaluation), "macro_f1": _macro_f1(evaluation)}
    else:
        undefined = dict.fromkeys(("balanced_accuracy", "macro_f1"), _OUTWEIGHED.format("records of some class"))
    sides = evaluation.histograms.sum(axis=2)
    if (sides > 2 * math.sqrt(NOISED_BINS.number * evaluation.variance)).all():
        found["auroc"] = _auroc(evaluation)
    else:
        undefined["auroc"] = _OUTWEIGHED.format("records of some class")
    values = {name: min(max(value, 0.0), 1.0) for name, (value, _) in found.items()}
    return Metrics(
        accuracy=values["accuracy"],
        balanced_accuracy=values.get("balanced_accuracy"),
        auroc=values.get("auroc"),
        macro_f1=values.get("macro_f1"),
        undefined=undefined,
        noised=True,
        standard_errors={name: error for name, (_, error) in found.items()},
    )


_OUTWEIGHED = "the noise outweighs the test {}"


def _accuracy(evaluation: NoisedEvaluation, total: float) -> tuple[float, float]:
    """Return the accuracy and its standard error.

    With D the sum of the K diagonal counts and O that of all others: where the number n of records is public, it is
    ((1 - 1/K) D + (n - O)/K) / n, the linear estimate of least variance, (K - 1) s^2 / n^2 for noise of variance s^2.
    Where it is not, it is D / (D + O).
    """
    classes = len(evaluation.confusion)
    right = float(np.trace(evaluation.confusion))
    wrong = float(evaluation.confusion.sum()) - right
    if evaluation.records is None:
        accuracy = right / total
        gradient = (np.eye(classes) - accuracy) / total
    else:
        accuracy = (right * (classes - 1) + total - wrong) / (classes * total)
        gradient = (np.eye(classes) - 1 / classes) / total
    return accuracy, _standard_error(evaluation, gradient)


def _balanced_accuracy(evaluation: NoisedEvaluation) -> tuple[float, float]:
    """Return the mean recall of all classes, C_kk / sum_j C_kj, and its standard error."""
    confusion = evaluation.confusion
    rows = confusion.sum(axis=1)
    recall = np.diag(confusion) / rows
    gradient = (np.eye(len(rows)) - recall[:, None]) / rows[:, None] / len(rows)
    return float(recall.mean()), _standard_error(evaluation, gradient)


def _macro_f1(evaluation: NoisedEvaluation) -> tuple[float, float]:
    """Return the mean F1 of all classes, 2 C_kk / (sum_j C_kj + sum_i C_ik), and its standard error."""
    confusion = evaluation.confusion
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    both = true + np.maximum(predicted, 0.0)  # a class may be predicted for none
    f1 = 2 * np.diag(confusion) / both
    share = f1 / both
    gradient = (np.diag(2 / both) - share[:, None] - share[None, :]) / len(f1)
    return float(f1.mean()), _standard_error(evaluation, gradient)


def _standard_error(evaluation: NoisedEvaluation, gradient: np.ndarray) -> float:
    """Return the standard error of a figure f of the confusion counts c, to first order.

    The noise adds s^2 |grad f|^2, and the draw of n test records, multinomial if they are independent, adds
    sum c (df/dc)^2 - (sum c df/dc)^2 / n.
    """
    counts = evaluation.confusion
    sampling = float((counts * gradient**2).sum() - (counts * gradient).sum() ** 2 / counts.sum())
    return math.sqrt(evaluation.variance * float((gradient**2).sum()) + max(sampling, 0.0))


def _auroc(evaluation: NoisedEvaluation) -> tuple[float, float]:
    """Return the area under the ROC curve, the mean over scored classes, and its standard error.

    Of one class it is A = u^T W v / (P Q) with the counts u and v of its own records and of others by bin, their sums P
    and Q, and W_ij = 1, 1/2 or 0 where bin i is above, at or below bin j. The noise of u and v is independent, so that
    that of u^T W v has mean 0. To first order it adds s^2 (|W v / Q - A|^2 / P^2 + |W^T u / P - A|^2 / Q^2) to the
    variance of A, and to second s^4 |W|^2 / (P Q)^2. The draw of test records adds at most A (1 - A) / min(P, Q).

    References:
        Birnbaum, Klose: Bounds for the variance of the Mann-Whitney statistic, Annals of Mathematical Statistics 1957.
    """
    bins = NOISED_BINS.number
    above = np.tril(np.ones((bins, bins)), -1) + np.eye(bins) / 2
    areas, noise, sampling = [], [], []
    for own, others in evaluation.histograms:
        p, q = float(own.sum()), float(others.sum())
        by_own, by_others = above @ others / q, own @ above / p
        area = float(own @ by_own) / p
        first = ((by_own - area) ** 2).sum() / p**2 + ((by_others - area) ** 2).sum() / q**2
        second = evaluation.variance * (above**2).sum() / (p * q) ** 2
        areas.append(area)
        noise.append(evaluation.variance * float(first + second))
        sampling.append(math.sqrt(max(area * (1 - area), 0.0) / min(p, q)))
    drawn = math.fsum(sampling) / len(areas)  # as if the classes' errors all had one sign
    return math.fsum(areas) / len(areas), math.sqrt(math.fsum(noise) / len(areas) ** 2 + drawn**2)

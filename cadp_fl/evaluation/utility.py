"""How good a classifier is, from what may cross: confusion counts and histograms of scores, never scores.

A score s is the log-odds of a class, log p / (1 - p), in 1,000 public bins between -10,000 and 10,000 that are
equally wide in asinh(s / 0.01): 0.0003 wide around zero and 3 % of the score far from it, so that a classifier that
learned next to nothing, or whose logits exploded under noise, still has its ranking.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from cadp_fl.errors import ExchangeError

__all__ = ["BINS", "Evaluation", "Metrics", "ScoreBins", "count", "evaluate", "metrics_of", "pool"]


@dataclass(frozen=True)
class ScoreBins:
    """Public bins of scores, equally wide in asinh(s / linear) between -limit and limit; the outer ones hold the rest.

    Attributes:
        number: of bins.
        limit: score at which the outer bins end.
        linear: score below which bins are about equally wide in the score itself.
    """

    number: int
    limit: float
    linear: float

    def of(self, scores: np.ndarray) -> np.ndarray:
        """Return the bin of each score, int64; scores are no NaN."""
        inside = np.clip(scores, -self.limit, self.limit)
        positions = (np.arcsinh(inside / self.linear) / np.arcsinh(self.limit / self.linear) + 1) / 2
        bins: np.ndarray = (positions * self.number).astype(np.int64).clip(0, self.number - 1)
        return bins


BINS = 1000
EXACT_BINS = ScoreBins(BINS, 1e4, 0.01)
_LOWEST = -1e300


@dataclass(frozen=True)
class Evaluation:
    """What a site reports of a classifier on its test records.

    Attributes:
        confusion: int64 (classes, classes); rows are true classes, columns predicted ones.
        histograms: int64 (classes, 2, BINS); scores of every class over [its own records, all others].
    """

    confusion: np.ndarray
    histograms: np.ndarray

    def __post_init__(self) -> None:
        if any(array.dtype != np.int64 or not array.ndim for array in (self.confusion, self.histograms)):
            raise ExchangeError("An evaluation's counts are int64 arrays. Found something else.")
        classes = len(self.confusion)
        if self.confusion.shape != (classes, classes) or self.histograms.shape != (classes, 2, BINS):
            raise ExchangeError(
                f"An evaluation has counts (classes, classes) and (classes, 2, {BINS}). Found {self.confusion.shape} "
                f"and {self.histograms.shape}."
            )
        total = self.confusion.sum()
        if min(self.confusion.min(), self.histograms.min()) < 0 or (self.histograms.sum(axis=(1, 2)) != total).any():
            raise ExchangeError("An evaluation's counts are not negative, and its histograms count every record once.")


@dataclass(frozen=True)
class Metrics:
    """Figures of one classifier on some test records; None where a figure is undefined, with the reason.

    Attributes:
        undefined: reason by figure.
        noised: whether they were made of noised counts, so that none of them is exact.
        standard_errors: of each figure, by its name, that of the noise included; none where the counts are exact.
    """

    accuracy: float | None
    balanced_accuracy: float | None
    auroc: float | None
    macro_f1: float | None
    undefined: dict[str, str]
    noised: bool = False
    standard_errors: dict[str, float] = field(default_factory=dict)

    @classmethod
    def without(cls, reason: str) -> "Metrics":
        """Return no figure at all, for a reason."""
        names = ("accuracy", "balanced_accuracy", "auroc", "macro_f1")
        return cls(None, None, None, None, dict.fromkeys(names, reason))

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values.

        `undefined` only where there is something to explain, `noised` and standard errors only with noised counts.
        """
        figures: dict[str, Any] = {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "auroc": self.auroc,
            "macro_f1": self.macro_f1,
        }
        noise = {"noised": True, "standard_errors": self.standard_errors} if self.noised else {}
        return figures | noise | ({"undefined": self.undefined} if self.undefined else {})


def evaluate(log_odds: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Return confusion counts and score histograms.

    Args:
        log_odds: log p(y | x) / (1 - p(y | x)), float64 (records, classes); NaN, from a broken model, counts as the
            lowest score.
        labels: int64, (records,).
    """
    return Evaluation(*count(log_odds, labels, EXACT_BINS))


def count(log_odds: np.ndarray, labels: np.ndarray, scores_in: ScoreBins) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each class was predicted for each, and how often each score fell into each bin.

    Every record counts once among the confusion counts, and once among the scores of each class.

    Returns:
        int64 (classes, classes), true classes in rows; and int64 (classes, 2, bins), over [own records, all others].
    """
    scores = np.nan_to_num(log_odds, nan=_LOWEST, neginf=_LOWEST, posinf=-_LOWEST)
    classes = scores.shape[1]
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, scores.argmax(axis=1)), 1)
    bins = scores_in.of(scores)
    histograms = np.zeros((classes, 2, scores_in.number), dtype=np.int64)
    for label in range(classes):
        others = (labels != label).astype(np.int64)
        np.add.at(histograms[label], (others, bins[:, label]), 1)
    return confusion, histograms


def pool(evaluations: list[Evaluation]) -> Evaluation:
    """Return the evaluation on all records of several sites together."""
    return Evaluation(
        np.sum([each.confusion for each in evaluations], axis=0),
        np.sum([each.histograms for each in evaluations], axis=0),
    )


def metrics_of(evaluation: Evaluation, classes: tuple[str, ...]) -> Metrics:
    """Return accuracy, balanced accuracy, macro F1 and AUROC, the last macro one-vs-rest beyond two classes.

    Balanced accuracy and macro F1 are means over the classes that have test records. AUROC needs, for every class
    that it averages, test records of the class and of others.
    """
    confusion = evaluation.confusion.astype(np.float64)
    total = confusion.sum()
    if total == 0:
        return Metrics.without("no test record")
    correct, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    held = true > 0
    recall = correct[held] / true[held]
    f1 = 2 * correct[held] / (true[held] + predicted[held])
    auroc, reason = _auroc(evaluation.histograms, held, classes)
    return Metrics(
        accuracy=float(correct.sum() / total),
        balanced_accuracy=float(recall.mean()),
        auroc=auroc,
        macro_f1=float(f1.mean()),
        undefined={} if reason is None else {"auroc": reason},
    )


def _auroc(histograms: np.ndarray, held: np.ndarray, classes: tuple[str, ...]) -> tuple[float | None, str | None]:
    missing = [name for name, has in zip(classes, held, strict=True) if not has]
    if missing:
        return None, f"no test record of class {', '.join(missing)}"
    chosen = [1] if len(classes) == 2 else range(len(classes))
    return float(np.mean([_binned_auroc(*histograms[label]) for label in chosen])), None


def _binned_auroc(own: np.ndarray, others: np.ndarray) -> float:
    """Return the area under the ROC curve of binned scores; records in one bin are tied."""
    scores = np.tile(np.arange(BINS), 2)
    return float(
        roc_auc_score(np.repeat([1, 0], BINS), scores, sample_weight=np.concatenate([own, others]).astype(np.float64))
    )

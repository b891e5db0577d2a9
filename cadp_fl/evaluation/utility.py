"""How good a classifier is, from what may cross: confusion counts and histograms of scores, never scores.

A score is the log-odds of a class, log p / (1 - p), in 1,000 public bins that are equally wide from -15 to 15.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from cadp_fl.errors import ExchangeError

__all__ = ["BINS", "Evaluation", "Metrics", "evaluate", "metrics_of", "pool"]

BINS = 1000
LIMIT = 15.0


@dataclass(frozen=True)
class Evaluation:
    """What a site tells of a classifier on its test records.

    Attributes:
        confusion: int64 (classes, classes); rows are true classes, columns predicted ones.
        histograms: int64 (classes, 2, BINS); scores of every class over [its own records, all others].
    """

    confusion: np.ndarray
    histograms: np.ndarray

    def __post_init__(self) -> None:
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
    """Figures of one classifier on some test records; None where a figure is undefined, with the reason."""

    accuracy: float | None
    balanced_accuracy: float | None
    auroc: float | None
    macro_f1: float | None
    undefined: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values; `undefined` only where there is something to explain."""
        figures: dict[str, Any] = {
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "auroc": self.auroc,
            "macro_f1": self.macro_f1,
        }
        return figures | ({"undefined": self.undefined} if self.undefined else {})


def evaluate(log_probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Return confusion counts and score histograms.

    Args:
        log_probabilities: log p(y | x), (records, classes).
        labels: int64, (records,).
    """
    classes = log_probabilities.shape[1]
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, log_probabilities.argmax(axis=1)), 1)
    log_p = np.minimum(log_probabilities.astype(np.float64), -1e-300)
    log_odds = log_p - np.log1p(-np.minimum(np.exp(log_p), 1 - 1e-16))
    bins = np.clip(((log_odds + LIMIT) * (BINS / (2 * LIMIT))).astype(np.int64), 0, BINS - 1)
    histograms = np.zeros((classes, 2, BINS), dtype=np.int64)
    for label in range(classes):
        others = (labels != label).astype(np.int64)
        np.add.at(histograms[label], (others, bins[:, label]), 1)
    return Evaluation(confusion, histograms)


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
        names = ("accuracy", "balanced_accuracy", "auroc", "macro_f1")
        return Metrics(None, None, None, None, dict.fromkeys(names, "no test record"))
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

"""What a site reports of a classifier on its test units, and how often it may."""

from collections.abc import Iterable

import numpy as np
import torch

from cadp_fl.classifier.training import log_odds
from cadp_fl.data.codec import codec_of
from cadp_fl.data.schema import Dataset
from cadp_fl.data.units import Units
from cadp_fl.errors import BudgetError
from cadp_fl.evaluation.noised import histograms_in, table_of
from cadp_fl.evaluation.utility import evaluate
from cadp_fl.privacy.claims import EXACT_TEST_RESULTS
from cadp_fl.privacy.events import GaussianHistogram
from cadp_fl.privacy.histogram import noised_counts
from cadp_fl.privacy.ledger import Ledger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Plan

__all__ = ["check_table", "exact_counts", "number_of_evaluations", "noised_evaluation"]


def check_table(event: GaussianHistogram, classes: int) -> None:
    """Check that an event pays for the table of one evaluation.

    Raises:
        BudgetError: it pays for another one.
    """
    histograms = histograms_in(classes)
    if (event.stage, event.histograms, event.times) != (EXACT_TEST_RESULTS.stage, histograms, 1):
        raise BudgetError(
            f"An evaluation is one table of {histograms} histograms, in stage '{EXACT_TEST_RESULTS.stage}'. Found "
            f"{event.times} of {event.histograms}, in stage '{event.stage}'; ask for that table."
        )


def number_of_evaluations(ledger: Ledger, plans: Iterable[Plan]) -> int:
    """Return how many evaluations some plans on test units hold: noised ones as planned, exact ones as given out."""
    total = 0
    for plan in plans:
        planned = sum(event.times for event in plan.events if isinstance(event, GaussianHistogram))
        spent = ledger.spent(plan.key)
        exact = sum(event == EXACT_TEST_RESULTS for event in spent)
        total += max(planned, len(spent) - exact) + exact  # retries of a noised one are more than was planned
    return total


def exact_counts(model: torch.nn.Module, test: Dataset) -> dict[str, np.ndarray]:
    """Return the confusion counts and score histograms of a classifier on all test records, int64."""
    exact = evaluate(_log_odds(model, test), test.labels)
    return {"confusion": exact.confusion, "histograms": exact.histograms}


def noised_evaluation(
    model: torch.nn.Module, test: Dataset, units: Units, event: GaussianHistogram, *, noise: NoiseSource
) -> dict[str, np.ndarray]:
    """Return the confusion counts and score histograms on what each test unit contributes, with noise, float64.

    Blanks are scored like records and then left out, so that how records are batched depends on the number of units
    alone, and no unit moves the rounding of another one's scores.

    Args:
        units: of the test records; each contributes up to m.
        event: one table, with its noise.
        noise: of this table alone.
    """
    records, blank = units.take(test, np.arange(len(units.slots)))
    confusion, histograms = table_of(_log_odds(model, records)[~blank], records.labels[~blank])
    noised = noised_counts(np.concatenate([confusion.ravel(), histograms.ravel()]), event, noise=noise)
    return {
        "confusion": noised[: confusion.size].reshape(confusion.shape),
        "histograms": noised[confusion.size :].reshape(histograms.shape),
    }


def _log_odds(model: torch.nn.Module, test: Dataset) -> np.ndarray:
    if not len(test):
        return np.zeros((0, len(test.schema.classes)))
    scores: np.ndarray = log_odds(model, codec_of(test.schema).inputs(test.records)).cpu().numpy()
    return scores

"""How much a figure varies from run to run: a mean, and its confidence interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t

__all__ = ["Interval", "t_interval"]


@dataclass(frozen=True)
class Interval:
    """The mean of a figure over runs, and its confidence interval mean +- half_width.

    Attributes:
        mean: of the runs.
        half_width: None where there is one run, which says nothing about another.
        runs: number of runs that the mean is over.
    """

    mean: float
    half_width: float | None
    runs: int


def t_interval(values: Sequence[float], confidence: float) -> Interval:
    """Return mean +- t s / sqrt(n), with t the (1 + confidence) / 2 quantile of Student's law of n - 1 degrees.

    It has its confidence where the n values are independent draws of a normal law.

    Args:
        values: one a run, at least one.
        confidence: between 0 and 1.

    References:
        Student: The probable error of a mean, Biometrika 1908.
    """
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Interval(mean, None, 1)
    quantile = float(t.ppf((1 + confidence) / 2, n - 1))
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(n), n)

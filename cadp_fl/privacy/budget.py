"""One budget, over all stages of a method: what is set aside for each, before anything runs.

Labels and counts cost, each by itself, its share of epsilon. The main stage, a release or a classifier, gets the least
noise with which everything composes to the budget, so that nothing of it is left over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from cadp_fl.config import BudgetConfig
from cadp_fl.errors import ConfigError
from cadp_fl.privacy.accounting import (
    DeclaredPublic,
    Event,
    GaussianHistogram,
    RandomizedResponse,
    Unprotected,
    calibrate_noise,
)
from cadp_fl.privacy.plan import Allowance, Labels, Plan, Unit

__all__ = ["SPLIT", "Budget"]

SPLIT = {"labels": 0.2, "counts": 0.05}
"""Shares of epsilon of the stages beside a method's main one, where the study names none."""


@dataclass(frozen=True)
class Budget:
    """What one method may spend at a site.

    Attributes:
        total: of all events together, under replace-one, and of what is set aside for retries.
        retry: set aside for events whose result a crash lost.
        unit: what one neighbouring data set may change.
        records_per_unit: m, the records that one unit contributes.
        labels: whether a record's label is public by declaration, or covered by the claim.
        split: share of epsilon of the stages beside the main one.
    """

    total: Allowance
    retry: Allowance
    unit: Unit
    records_per_unit: int
    labels: Labels
    split: dict[str, float]

    @classmethod
    def of(cls, config: BudgetConfig, labels: Labels) -> "Budget":
        """Return the budget that a study gives each of its methods.

        Raises:
            ConfigError: the split names no stage, or leaves nothing for the main one.
        """
        if unknown := sorted(set(config.split) - set(SPLIT)):
            raise ConfigError(f"budget.split names stages: {', '.join(SPLIT)}. Found '{unknown[0]}'.")
        split = SPLIT | config.split
        if sum(split.values()) >= 1:
            raise ConfigError(
                f"budget.split leaves a share to the release or the classifier. Found {split}; let them add up to less "
                "than 1."
            )
        reserve = config.retry_reserve
        return cls(
            Allowance(config.epsilon, config.delta),
            Allowance(_product(config.epsilon, reserve), _product(config.delta, reserve)),
            config.unit,
            config.records_per_unit,
            labels,
            split,
        )

    @property
    def epsilon(self) -> float:
        """Epsilon of all events together: with that of retries no more than the total, to the last bit."""
        epsilon = self.total.epsilon - self.retry.epsilon
        while epsilon + self.retry.epsilon > self.total.epsilon:
            epsilon = math.nextafter(epsilon, 0.0)
        return epsilon

    @property
    def delta(self) -> float:
        """Delta of all events together, as a plan works it out."""
        return self.total.delta - self.retry.delta

    def plan(self, method: str, events: Sequence[Event], *, run: str = "") -> Plan:
        """Return the plan of a method with these events; what leaves unprotected needs no reserve to leave again."""
        protected = any(not isinstance(event, (Unprotected, DeclaredPublic)) for event in events)
        return Plan(
            method,
            tuple(events),
            self.total.delta,
            unit=self.unit,
            labels=self.labels,
            retry=self.retry if protected else Allowance(0.0, 0.0),
            run=run,
        )

    def count_events(self) -> tuple[GaussianHistogram] | tuple[()]:
        """Return what noised class counts cost; nothing where labels, and so their counts, are public."""
        return () if self.labels == "public" else (self._counts,)

    def label_events(self) -> tuple[RandomizedResponse] | tuple[()]:
        """Return what the released labels cost; nothing where they are public."""
        if self.labels == "public":
            return ()
        epsilon = min(self.split["labels"] * self.epsilon / self.records_per_unit, 20.0)
        return (RandomizedResponse(stage="labels", epsilon=epsilon, records_per_unit=self.records_per_unit),)

    @property
    def _counts(self) -> GaussianHistogram:
        def counts(noise_std: float) -> GaussianHistogram:
            return GaussianHistogram(
                stage="counts", histograms=1, noise_std=noise_std, records_per_unit=self.records_per_unit
            )

        share = self.split["counts"] * self.epsilon
        return counts(
            calibrate_noise(lambda std: [counts(std)], share, self.delta, clip_norm=float(self.records_per_unit))
        )


def _product(amount: float, share: float) -> float:
    """Return a share as it would be worked out on paper, so that a tenth of 3 is printed as 0.30."""
    return float(Decimal(repr(amount)) * Decimal(repr(share)))

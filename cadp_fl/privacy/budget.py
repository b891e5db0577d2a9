"""One budget, over all stages of a method: what is set aside for each, before anything runs.

Labels and counts cost, each by itself, its share of epsilon; a flow's moments and its training, each by itself, a share
of what those leave. The main stage, a release, a classifier or the moments themselves, gets the least noise with which
everything composes to the budget, so that nothing of it is left over.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from cadp_fl.config import BudgetConfig, MomentsConfig
from cadp_fl.config.names import Labels, Unit
from cadp_fl.errors import ConfigError
from cadp_fl.privacy.accounting import calibrate_noise
from cadp_fl.privacy.events import (
    Event,
    GaussianHistogram,
    GaussianMoments,
    GaussianSum,
    ProtectedEvent,
    RandomizedResponse,
)
from cadp_fl.privacy.plan import Allowance, Plan
from cadp_fl.privacy.sensitivity import moments_sensitivity

__all__ = ["CENTRE_SHARE", "LABELLED_SPLIT", "SPLIT", "Budget"]

_FIRST, _OF_THE_REST = {"labels": 0.2, "counts": 0.05}, {"moments": 0.95, "flow": 0.25}
SPLIT = _FIRST | _OF_THE_REST
"""Shares of the stages beside a method's main one, where the study names none: of epsilon for labels and counts, and of
what those leave of it for a flow's moments and its training."""

LABELLED_SPLIT = {"labels": 0.4, "moments": 0.9}
"""Shares beside a release whose message holds the label: of the message's own epsilon for labels; and more of the
budget for the release, whose records carry something of themselves. docs/results.md shows what other shares give."""

CENTRE_SHARE = 0.05
"""Of mu^2 of the moments: what the sum takes that records are centred by."""


@dataclass(frozen=True)
class Budget:
    """What one method may spend at a site.

    Attributes:
        total: of all events together, under replace-one, and of what is set aside for retries.
        retry: set aside for events whose result a crash lost.
        unit: what one neighbouring data set may change.
        records_per_unit: m, the records that one unit contributes.
        labels: whether a record's label is public by declaration, or covered by the claim.
        split: share of the stages beside the main one.
        is_labelled: whether a label is a part of the release's own message: the share of labels is then one of that
            message's epsilon, and takes nothing from the other stages.
    """

    total: Allowance
    retry: Allowance
    unit: Unit
    records_per_unit: int
    labels: Labels
    split: dict[str, float]
    is_labelled: bool = False

    @classmethod
    def of(
        cls,
        config: BudgetConfig,
        labels: Labels,
        defaults: Mapping[str, float] | None = None,
        *,
        is_labelled: bool = False,
    ) -> "Budget":
        """Return the budget that a study gives each of its methods.

        Args:
            defaults: shares of stages where the method's defaults are others than `SPLIT`.
            is_labelled: whether a label is a part of the release's own message.

        Raises:
            ConfigError: the split names no stage, or leaves nothing for the main one.
        """
        if unknown := sorted(set(config.split) - set(SPLIT)):
            raise ConfigError(f"budget.split names stages: {', '.join(SPLIT)}. Found '{unknown[0]}'.")
        own = LABELLED_SPLIT if is_labelled else {}
        split = SPLIT | dict(defaults or {}) | own | config.split
        firsts = [split["labels"], split["counts"]] if is_labelled else [split["labels"] + split["counts"]]
        if max(firsts) >= 1 or sum(split[stage] ** 2 for stage in _OF_THE_REST) >= 1:
            raise ConfigError(
                f"budget.split leaves a share to a method's last stage. With defaults it is {split}; let labels and "
                "counts add up to less than 1, and moments and flow in their squares, as Gaussian noise does."
            )
        reserve = config.retry_reserve
        return cls(
            total=Allowance(config.epsilon, config.delta),
            retry=Allowance(_product(config.epsilon, reserve), _product(config.delta, reserve)),
            unit=config.unit,
            records_per_unit=config.records_per_unit,
            labels=labels,
            split=split,
            is_labelled=is_labelled,
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
        protected = any(event.is_protected for event in events)
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
        epsilon = min(self.share("labels") / self.records_per_unit, 20.0)
        return (RandomizedResponse(stage="labels", epsilon=epsilon, records_per_unit=self.records_per_unit),)

    def share(self, stage: str) -> float:
        """Return the epsilon that a stage costs by itself."""
        if stage in _FIRST or self.labels == "public":
            return self.split[stage] * self.epsilon
        first = ("counts",) if self.is_labelled else _FIRST
        return self.split[stage] * (1 - sum(self.split[each] for each in first)) * self.epsilon

    def moments_events(
        self,
        settings: MomentsConfig,
        radius: float,
        *,
        sharers: int = 1,
        beside: Sequence[ProtectedEvent] | None = None,
    ) -> tuple[GaussianSum, GaussianMoments]:
        """Return what the centre and the moments around it cost, the centre `CENTRE_SHARE` of both in mu^2.

        Args:
            settings: weights.
            radius: R, of the ball around the centre. That of the sum is 1, which no record's features are longer than.
            sharers: K, sites whose values an aggregator adds up; each adds its part of the noise alone.
            beside: the other events of the plan, where moments get all that those leave; without it, both cost the
                moments' share by themselves.

        Raises:
            BudgetError: no noise meets the budget.
        """
        m, weights = self.records_per_unit, settings.weights
        sensitivity = moments_sensitivity(*weights.values(), replaces=True)

        def both(noise: float) -> tuple[GaussianSum, GaussianMoments]:
            """Return the events of 1 / mu = noise."""
            centre = GaussianSum(
                stage="moments",
                clip_norm=1.0,
                noise_std=2 * m * noise / math.sqrt(CENTRE_SHARE),
                shares=sharers,
                records_per_unit=m,
            )
            moments = GaussianMoments(
                stage="moments",
                noise_std=sensitivity * m * noise / math.sqrt(1 - CENTRE_SHARE),
                clip_norm=radius,
                shares=sharers,
                records_per_unit=m,
                **weights,
            )
            return centre, moments

        epsilon = self.share("moments") if beside is None else self.epsilon
        others = tuple(beside or ())
        return both(calibrate_noise(lambda noise: [*others, *both(noise)], epsilon, self.delta, clip_norm=1.0))

    @property
    def _counts(self) -> GaussianHistogram:
        def counts(noise_std: float) -> GaussianHistogram:
            return GaussianHistogram(
                stage="counts", histograms=1, noise_std=noise_std, records_per_unit=self.records_per_unit
            )

        return counts(
            calibrate_noise(
                lambda std: [counts(std)], self.share("counts"), self.delta, clip_norm=float(self.records_per_unit)
            )
        )


def _product(amount: float, share: float) -> float:
    """Return a share as it would be worked out on paper, so that a tenth of 3 is printed as 0.30."""
    return float(Decimal(repr(amount)) * Decimal(repr(share)))

"""Whom a release hides a unit among: public numbers that the cost of a shuffled message depends on."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cadp_fl.privacy.events import ProtectedEvent, RandomizedResponse

__all__ = ["ALONE", "Cohort", "Labelled"]


@dataclass(frozen=True)
class Cohort:
    """What a release's message and its shuffle depend on beside the mechanism.

    Attributes:
        units: n, units that are shuffled together, at least; 0 where no amplification is claimed.
        classes: K, classes that a covered label is one of; 0 where labels are public, or K is not known yet.
        label_share: of a message's epsilon, what its label gets; 0 where labels are public.
    """

    units: int = 0
    classes: int = 0
    label_share: float = 0.0


ALONE = Cohort()
"""Nobody to hide among, and no label."""


class Labelled(ABC):
    """A mechanism whose message holds the record's label too: one event covers both."""

    @classmethod
    @abstractmethod
    def calibrated(
        cls,
        clip_norm: float,
        epsilon: float,
        delta: float,
        *,
        records_per_unit: int = 1,
        beside: Sequence[ProtectedEvent] = (),
        cohort: Cohort = ALONE,
    ) -> Self:
        """Return the mechanism that shows most and costs, with all beside it, at most (epsilon, delta).

        Args:
            cohort: whom a unit is hidden among, and what of its message's epsilon its label gets.
        """

    @property
    @abstractmethod
    def labels(self) -> RandomizedResponse | None:
        """How the label in a message is drawn; None where labels are public."""

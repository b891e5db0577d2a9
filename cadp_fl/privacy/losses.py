"""What an event costs, in the few closed forms that the accountant composes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["Free", "Gaussian", "Loss", "Profile", "Pure", "Relation", "SampledGaussian", "Unbounded"]


class Relation(Enum):
    """What two neighbouring data sets may differ in.

    Of what has one output for each record, a release or its labels, the outputs' number is public, and a record that is
    removed leaves an output that no record had a part in: noise around zero, any label.
    """

    REPLACE_ONE = "replace-one"
    ADD_OR_REMOVE_ONE = "add-or-remove-one"


@dataclass(frozen=True)
class Gaussian:
    """N(0, 1) against N(mu, 1), with mu = L2 sensitivity / sigma.

    Attributes:
        squared_shift: mu^2, which adds up over events.
    """

    squared_shift: float


@dataclass(frozen=True)
class Pure:
    """Any mechanism that is epsilon differentially private, with no delta."""

    epsilon: float


@dataclass(frozen=True)
class SampledGaussian:
    """Steps of Gaussian noise, each on a Poisson sample of the records.

    Attributes:
        noise: sigma / C, whatever the relation: the accountant knows how far a record moves a sampled sum.
        sampling_rate: q, below 1.
        steps: number of samples.
    """

    noise: float
    sampling_rate: float
    steps: int


class Profile(ABC):
    """A loss without one of the forms above, of which the event knows a distribution that dominates it."""

    @property
    @abstractmethod
    def mean(self) -> float:
        """About the mean privacy loss: it bounds the time that a composition takes, and no epsilon."""

    @property
    @abstractmethod
    def reach(self) -> float:
        """About the largest privacy loss that matters: it bounds the memory that a composition takes, likewise."""

    @abstractmethod
    def distribution(self, grid: float) -> Any:
        """Return a `dp_accounting` privacy loss distribution that dominates the loss, rounded up to a grid."""

    def epsilon(self, delta: float) -> float:
        """Return the epsilon at `delta` of the loss by itself; rounded up."""
        return float(self.distribution(1e-4).get_epsilon_for_delta(delta))


@dataclass(frozen=True)
class Unbounded:
    """No bound at all: what it is computed from leaves unprotected."""


@dataclass(frozen=True)
class Free:
    """Nothing: no private record has a part in it."""


Loss = Gaussian | Pure | SampledGaussian | Profile | Unbounded | Free

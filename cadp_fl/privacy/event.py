"""What every kind of event says of itself, so that none costs nothing by being silent."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import Field

from cadp_fl.config.settings import Settings
from cadp_fl.privacy.losses import Free, Loss, Pure, Relation, Unbounded

__all__ = ["LATENT_EPSILON", "BaseEvent", "Notation"]

LATENT_EPSILON = "latent-epsilon"
"""The parameter of a kind of event that a budget is to make as large as it allows, and no noise."""


@dataclass(frozen=True)
class Notation:
    """How a kind of event is written on a command line, `<name>:<parameter>=<number>,...`.

    Attributes:
        name: of the kind.
        stage: what a method calls it.
        needed: parameters that have no default.
        optional: the others.
        defaults: returns what the event has beside, given its parameters as fields.
    """

    name: str
    stage: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ("records-per-patient",)
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: {}

    @property
    def noise(self) -> str | None:
        """The parameter that is an amount of noise, or a latent's own epsilon; None where there is none."""
        return next((name for name in self.needed if name.startswith("noise-") or name == LATENT_EPSILON), None)


class BaseEvent(Settings, ABC):
    """What every kind of event says of itself. One that leaves something out cannot be defined.

    Class attributes:
        left: what left the site, in words, as reports print it.
        releases_latents: whether it releases records through a flow, so that its plan has to say where that is from.
        notation: how it is written on a command line; None where it is not.
    """

    left: ClassVar[str]
    releases_latents: ClassVar[bool]
    notation: ClassVar[Notation | None]

    stage: str = Field(pattern=r"^[a-z0-9]{1,30}$", description="the part of a method that spent it")

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "kind" not in cls.model_fields:
            return  # what several kinds share
        silent = [name for name in ("left", "releases_latents", "notation") if not hasattr(cls, name)]
        if silent or cls.__abstractmethods__:
            missing = ", ".join([*silent, *sorted(cls.__abstractmethods__)])
            raise TypeError(f"Every kind of event says what it is and what it costs. {cls.__name__} lacks {missing}.")

    @abstractmethod
    def loss(self, relation: Relation) -> Loss:
        """Return what the event costs under a neighbouring relation."""

    @property
    @abstractmethod
    def noise_multiplier(self) -> float:
        """The noise's standard deviation over half of how far one unit moves what one site noises at once.

        It is sigma / C of a step of DP-SGD, whatever the sampling rate, and sigma / (C sqrt(m)) of a latent's release.
        Of a shared noise it is that of the site's own share. Infinite where there is no noise to look at.
        """

    @property
    def is_protected(self) -> bool:
        """Whether noise bounds what it costs: neither is it unprotected, nor is there nothing to protect."""
        return not isinstance(self.loss(Relation.REPLACE_ONE), (Unbounded, Free))

    @property
    def has_delta(self) -> bool:
        """Whether its epsilon is at a delta."""
        return not isinstance(self.loss(Relation.REPLACE_ONE), (Pure, Unbounded, Free))

    @property
    def names_flow(self) -> bool:
        """Whether it says where the flow of a release is from: public, unprotected, or made of what it noised."""
        return False

    @property
    def covers_labels(self) -> bool:
        """Whether it draws released labels at random, so that they are covered."""
        return False

    @property
    def local_epsilon(self) -> float | None:
        """Epsilon of what one unit sends by itself, whatever the order; None where no other has a say in it."""
        return None

    @property
    def hidden_among(self) -> int:
        """n, the units that a shuffle hides a unit among, where what it costs rests on that; 0 where it does not."""
        return 0

    @property
    def sharers(self) -> int:
        """K, the sites whose noise adds up before anyone but an aggregator sees a value; 1: the site adds all of it."""
        return 1

    @property
    def own_message(self) -> Self:
        """The event as the aggregator sees it, with the site's own share of the noise alone."""
        return self

    @property
    def contribution(self) -> int | None:
        """m, the records that one unit contributes, where what it costs depends on it."""
        return None

    @property
    def amount(self) -> int:
        """How much of it there is: steps of DP-SGD, else 1."""
        return 1

    @property
    def once(self) -> Self:
        """The event with an amount of 1."""
        return self

"""Mechanisms: clip a latent, add noise, and say what it cost.

To add one, write a class with the members of `Mechanism` and put it into `MECHANISMS`; if no event says what it costs,
add one to `cadp_fl.privacy.events`.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

import torch

from cadp_fl.errors import ConfigError
from cadp_fl.privacy.clipped_normal import ClippedNormal
from cadp_fl.privacy.cohort import Labelled
from cadp_fl.privacy.continuous import RELEASED_RECORDS, GaussianMechanism, LaplaceMechanism, NoMechanism
from cadp_fl.privacy.events import ProtectedEvent, ReleaseEvent
from cadp_fl.privacy.grid import GridGaussianMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.privunit import PrivUnitMechanism

__all__ = [
    "MECHANISMS",
    "RELEASED_RECORDS",
    "GaussianMechanism",
    "GridGaussianMechanism",
    "LaplaceMechanism",
    "Mechanism",
    "NoMechanism",
    "PrivUnitMechanism",
    "is_labelled",
    "mechanism_of",
    "mechanism_type",
]


class Mechanism(Protocol):
    """M(z) = clip(z; C) + noise, with what it costs."""

    name: ClassVar[str]

    @classmethod
    def calibrated(
        cls,
        clip_norm: float,
        epsilon: float,
        delta: float,
        *,
        records_per_unit: int = 1,
        beside: Sequence[ProtectedEvent] = (),
    ) -> Self:
        """Return the mechanism with the least noise that costs at most (epsilon, delta) under replace-one.

        Args:
            clip_norm: C.
            epsilon: of the mechanism and all that is beside it.
            delta: likewise.
            records_per_unit: m, the records that one privacy unit contributes.
            beside: other events of the same plan.

        Raises:
            BudgetError: no noise meets the budget.
        """
        ...

    @classmethod
    def from_event(cls, event: ReleaseEvent) -> Self | None:
        """Return the mechanism whose event this is, or None if it has no event of this kind."""
        ...

    def event(self) -> ReleaseEvent:
        """Return what one release of every record costs."""
        ...

    def parameters(self) -> dict[str, float | None]:
        """Return `clip_norm`, `noise_std`, `noise_scale` and `records_per_unit`, as manifests and reports print them.

        `noise_std` is the noise's standard deviation in each dimension, whatever its distribution. What the mechanism
        does not have is None, and m may be left out where it is 1. One that releases multiples of a public step adds
        it as `grid`.
        """
        ...

    @property
    def noise_variance(self) -> float:
        """Variance of the noise in each dimension."""
        ...

    def clipped_normal(self, dims: int) -> ClippedNormal:
        """Return what the clip leaves of a standard normal latent of `dims` dimensions."""
        ...

    def __call__(self, latents: torch.Tensor, /, *, noise: NoiseSource) -> torch.Tensor:
        """Return noised latents (records, dims), each of its own record alone."""
        ...


_KINDS: tuple[type[Mechanism], ...] = (
    GaussianMechanism,
    GridGaussianMechanism,
    LaplaceMechanism,
    PrivUnitMechanism,
    NoMechanism,
)
MECHANISMS: dict[str, type[Mechanism]] = {kind.name: kind for kind in _KINDS}


def mechanism_type(name: str) -> type[Mechanism]:
    """Return the mechanism of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in MECHANISMS:
        raise ConfigError(f"Unknown mechanism '{name}'. Choose one of: {', '.join(sorted(MECHANISMS))}.")
    return MECHANISMS[name]


def is_labelled(name: str) -> bool:
    """Return whether a mechanism's message holds the record's label too.

    Raises:
        ConfigError: there is no mechanism of that name.
    """
    return issubclass(mechanism_type(name), Labelled)


def mechanism_of(name: str, event: ReleaseEvent) -> Mechanism:
    """Return the mechanism of a name with the parameters of an event, so that it costs exactly that event.

    Raises:
        ConfigError: the name is unknown, or the event is another mechanism's.
    """
    mechanism = mechanism_type(name).from_event(event)
    if mechanism is None or mechanism.event() != event:
        raise ConfigError(
            f"A release's event is that of its mechanism. Found '{event.kind}' of stage '{event.stage}' for the "
            f"mechanism '{name}'; send the event that the mechanism gives."
        )
    return mechanism

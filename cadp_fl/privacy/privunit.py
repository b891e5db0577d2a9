"""PrivUnit: a latent that lies on its record's side of a half-space more often than not, and noise in all else.

    v ~ N(0, I_k), kept with probability 1 where <v, u> >= g, and e^-epsilon where not; drawn again until one is kept

u is the direction of the record's latent. Over the flow's prior, v has the density H on the record's half-space and L
off it, with H / L = e^epsilon: epsilon differentially private for any two latents, with neither clip nor delta.

For a record that follows the flow, v points in every direction alike, but is a little longer than the prior's latents:
E<v, u>^2 = 1 + g phi(g) (H - L), and across u it is standard normal. Public numbers alone bring it back.

What is drawn never sees the record; only whether it is kept depends on it. So no low bit of v does, whatever flow a
server sent.

References:
    Bhowmick, Duchi, Freudiger, Kapoor, Rogers: Protection against reconstruction and its applications in private
    federated learning, arXiv 1812.00984.
    Asi, Feldman, Talwar: Optimal algorithms for mean estimation under local differential privacy, arXiv 2205.02466.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
import torch
from scipy.optimize import brentq

from cadp_fl.errors import BudgetError
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.clipped_normal import ClippedNormal
from cadp_fl.privacy.cohort import ALONE, Cohort, Labelled
from cadp_fl.privacy.events import LatentPrivUnit, ProtectedEvent, RandomizedResponse, ReleaseEvent
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.shuffling import best_threshold, gain_of, mass_beyond

__all__ = ["PrivUnitMechanism", "largest_without"]

LEAST_EPSILON = 1e-5
MOST_EPSILON = 10.0
"""Of a message by itself: beyond it, a latent takes more than 1,500 draws."""

_GRID = 1e-3
"""Of privacy losses during the search; it errs on the private side."""

_VALUES = 1 << 21
"""Drawn at once."""

_ROUNDING = 1 + 2.0**-30
"""More of what is off the record's side is kept, so that rounding of directions and products adds no epsilon: it moves
the mass of a half-space by less than 1e-10 for any 10,000 dimensions."""


@dataclass(frozen=True)
class PrivUnitMechanism(Labelled):
    """M(z) = v with the density H where <v, z / |z|> >= g, and L elsewhere, over N(0, I_k).

    Attributes:
        latent_epsilon: log(H / L).
        threshold: g.
        label_epsilon: of the label in the same message; 0 where labels are public.
        classes: K, where labels are covered and shuffled.
        shuffled_units: n, units that are shuffled together at least; 0 where no amplification is claimed.
        records_per_unit: m.
    """

    name: ClassVar[str] = "privunit"
    latent_epsilon: float
    threshold: float
    label_epsilon: float = 0.0
    classes: int = 0
    shuffled_units: int = 0
    records_per_unit: int = 1

    @classmethod
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
        """Return the mechanism with the largest local epsilon that costs, with all beside it, at most (epsilon, delta).

        Raises:
            BudgetError: none meets the budget.
        """
        local = _largest_local(epsilon, delta, records_per_unit, tuple(beside), cohort)
        return cls(*_shared_out(local, records_per_unit, cohort))

    @classmethod
    def from_event(cls, event: ReleaseEvent) -> Self | None:
        """Return the mechanism whose event this is, or None if it has no event of this kind."""
        if not isinstance(event, LatentPrivUnit):
            return None
        return cls(
            event.latent_epsilon,
            event.threshold,
            event.label_epsilon,
            event.classes,
            event.shuffled_units,
            event.records_per_unit,
        )

    def event(self) -> LatentPrivUnit:
        """Return what one release of every record and label costs."""
        return LatentPrivUnit(stage="release", **vars(self))

    @property
    def labels(self) -> RandomizedResponse | None:
        """How the label in a message is drawn; None where it is public."""
        if not self.label_epsilon:
            return None
        return RandomizedResponse(stage="labels", epsilon=self.label_epsilon, records_per_unit=self.records_per_unit)

    def parameters(self) -> dict[str, float | None]:
        """Return what a manifest states: there is no clip and no added noise."""
        return {
            "clip_norm": None,
            "noise_std": None,
            "noise_scale": None,
            "latent_epsilon": self.latent_epsilon,
            "threshold": self.threshold,
            "shuffled_units": self.shuffled_units,
            "records_per_unit": self.records_per_unit,
        }

    @property
    def noise_variance(self) -> float:
        """0: a released latent is one draw, and its moments are those that `clipped_normal` returns."""
        return 0.0

    def clipped_normal(self, dims: int) -> ClippedNormal:
        """Return E|v|^2 / k and E<z, v> / k of a released latent: 1 + g E<v, u> / k, and E<v, u> E|z| / k."""
        gain = gain_of(self.threshold, self.latent_epsilon)
        length = math.sqrt(2) * math.exp(math.lgamma((dims + 1) / 2) - math.lgamma(dims / 2))
        return ClippedNormal(power=1 + self.threshold * gain / dims, overlap=gain * length / dims)

    @property
    def draws(self) -> float:
        """Expected number of draws for each latent: 1 / (q + (1 - q) e^-epsilon)."""
        q = mass_beyond(self.threshold)
        return 1 / (q + (1 - q) * math.exp(-self.latent_epsilon))

    def __call__(self, latents: torch.Tensor, *, noise: NoiseSource) -> torch.Tensor:
        """Return released latents (records, dims), each of its own record alone.

        One that is zero, or not finite, has no direction and gets a draw from the prior. All is computed in float64 on
        the processor, so that every device releases the same.
        """
        directions, dims = _directions(latents), latents.shape[1]
        released = torch.empty(latents.shape, dtype=torch.float64)
        waiting = np.arange(len(latents))
        block = max(1, min(math.ceil(self.draws / 4), _VALUES // dims))
        while len(waiting):
            rows = waiting[: max(1, _VALUES // (block * dims))]
            drawn = noise.normal((len(rows), block, dims), 1.0, like=released)
            own = directions[rows]
            along = torch.einsum("rbk,rk->rb", drawn, own)
            off_side = noise.uniform(len(rows) * block).reshape(len(rows), block)
            kept = (along.numpy() >= self.threshold) | (off_side < math.exp(-self.latent_epsilon) * _ROUNDING)
            kept |= (own == 0).all(dim=1).numpy()[:, None]
            done = kept.any(axis=1)
            first = kept.argmax(axis=1)
            released[rows[done]] = drawn[np.flatnonzero(done), first[done]]
            waiting = np.concatenate([rows[~done], waiting[len(rows) :]])
        return released.to(latents)


def _directions(latents: torch.Tensor) -> torch.Tensor:
    """Return u = z / |z|, float64 (records, dims) on the processor; 0 where a latent is zero or not finite."""
    z = latents.detach().to("cpu", torch.float64)
    largest = z.abs().amax(dim=1, keepdim=True)
    has_one = torch.isfinite(z).all(dim=1, keepdim=True) & (largest > 0)
    scaled = torch.where(has_one, z, 1.0) / torch.where(has_one, largest, 1.0)  # squares neither overflow nor vanish
    return torch.where(has_one, scaled / scaled.norm(dim=1, keepdim=True), 0.0)


def _shared_out(local: float, records_per_unit: int, cohort: Cohort) -> tuple[float, float, float, int, int, int]:
    """Return a mechanism's fields for a local epsilon of a unit."""
    each = local / records_per_unit
    label = each * cohort.label_share
    return (each - label, best_threshold(each - label), label, cohort.classes, cohort.units, records_per_unit)


@lru_cache(maxsize=128)
def _largest_local(
    epsilon: float, delta: float, records_per_unit: int, beside: tuple[ProtectedEvent, ...], cohort: Cohort
) -> float:
    """Return the largest local epsilon of a unit with which everything costs at most (epsilon, delta).

    Raises:
        BudgetError: there is none.
    """

    def events(local: float) -> list[ProtectedEvent]:
        return [*beside, PrivUnitMechanism(*_shared_out(local, records_per_unit, cohort)).event()]

    def excess(local: float) -> float:
        return min(epsilon_of(events(local), delta, grid=_GRID), 10 * epsilon) - epsilon

    most = MOST_EPSILON * records_per_unit
    if not cohort.units:
        most = min(most, epsilon)
    elif beside:  # alone, it is found quickly, and nothing beside it leaves more
        most = _largest_local(epsilon, delta, records_per_unit, (), cohort)
    return largest_without(excess, most=most)


def largest_without(excess: Callable[[float], float], *, most: float = MOST_EPSILON) -> float:
    """Return about the largest local epsilon, up to `most`, with no excess of a budget, on the side without.

    Args:
        excess: over the budget; grows with a local epsilon.

    Raises:
        BudgetError: the smallest one has some.
    """
    lower, upper = LEAST_EPSILON, most
    if excess(lower) > 0:
        raise BudgetError(
            "Some local epsilon must meet the budget. None does with what is beside the release; spend less beside it."
        )
    if excess(upper) <= 0:
        return upper
    root = float(brentq(excess, lower, upper, xtol=1e-4 * upper, rtol=1e-4))
    step = 1e-4 * root
    while root > lower and excess(root) > 0:
        root -= step
    return max(root, lower)

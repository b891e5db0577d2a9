"""What events cost under both relations, each alone and all as one plan; and the least noise that a budget allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cadp_fl.errors import BudgetError, InputError
from cadp_fl.privacy.accounting import calibrate_laplace, calibrate_noise, check_workable, epsilon_of, has_delta
from cadp_fl.privacy.event import LATENT_EPSILON
from cadp_fl.privacy.events import Event, LatentLaplace, ProtectedEvent
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.notation import Noiseless
from cadp_fl.privacy.privunit import largest_without

__all__ = ["Cost", "Costs", "Epsilons", "check_delta_is_given", "costs_of", "epsilons_of", "least_noise"]


@dataclass(frozen=True)
class Epsilons:
    """One cost under both relations; infinite without protection."""

    replace_one: float
    add_remove: float

    def to_json(self) -> dict[str, float | None]:
        """Return the figures as plain JSON values: None where they are infinite."""
        named = {"epsilon": self.replace_one, "epsilon_add_remove": self.add_remove}
        return {name: value if math.isfinite(value) else None for name, value in named.items()}

    def __add__(self, other: "Epsilons") -> "Epsilons":
        return Epsilons(self.replace_one + other.replace_one, self.add_remove + other.add_remove)


@dataclass(frozen=True)
class Cost:
    """One event, and what it costs by itself."""

    event: Event
    alone: Epsilons

    def to_json(self) -> dict[str, Any]:
        """Return the event with its parameters, and its cost, as plain JSON values."""
        return {**self.event.model_dump(), **self.alone.to_json()}


@dataclass(frozen=True)
class Costs:
    """Events of one plan: each alone, and all together.

    Attributes:
        delta: of every figure; None where no event has one.
        events: in order.
        together: what they compose to.
    """

    delta: float | None
    events: tuple[Cost, ...]
    together: Epsilons

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {"delta": self.delta, "events": [cost.to_json() for cost in self.events], **self.together.to_json()}


def epsilons_of(events: Sequence[Event], delta: float) -> Epsilons:
    """Return what events cost together at a delta, under both relations."""
    return Epsilons(epsilon_of(events, delta), epsilon_of(events, delta, Relation.ADD_OR_REMOVE_ONE))


def costs_of(events: Sequence[Event], delta: float | None) -> Costs:
    """Return what events cost, each alone and all as one plan.

    Raises:
        InputError: delta is needed and not given, or not between 0 and 1; or working it out would take too long.
    """
    check_delta_is_given(events, delta)
    try:
        check_workable(events)
    except BudgetError as error:
        raise InputError(str(error)) from error
    at = delta or 0.0
    return Costs(delta, tuple(Cost(event, epsilons_of([event], at)) for event in events), epsilons_of(events, at))


def check_delta_is_given(events: Sequence[Event], delta: float | None) -> None:
    """Check that there is a delta for events that have one: all but Laplace noise and randomized response.

    Raises:
        InputError: there is not, or it is not between 0 and 1.
    """
    if delta is not None and not 0 < delta < 1:
        raise InputError(
            f"delta is between 0 and 1, and at most 1 / (10 n) for n units. Found {delta:g}; use 1e-5, say."
        )
    if delta is None and has_delta(events):
        raise InputError(
            "The epsilon of Gaussian noise is at a delta. Found none; give --delta, at most 1 / (10 n) for n units."
        )


def least_noise(
    asked: Noiseless, epsilon: float, delta: float | None, beside: Sequence[ProtectedEvent] = ()
) -> tuple[float, Costs]:
    """Return the least noise of an event that costs, with all beside it, at most a budget; and what that then costs.

    Of PrivUnit it is the largest epsilon of a latent.

    Raises:
        InputError: no noise meets the budget, or delta is needed and not given.
    """
    first = asked.at(asked.clip_norm)
    check_delta_is_given([*beside, first], delta)
    try:
        if isinstance(first, LatentLaplace) and not beside:
            m = first.records_per_unit
            noise = calibrate_laplace(epsilon, clip_norm=asked.clip_norm, records_per_unit=m)
        elif asked.noise == LATENT_EPSILON:
            noise = largest_without(
                lambda amount: epsilon_of([*beside, asked.at(amount)], delta or 0.0, grid=1e-3) - epsilon
            )
        else:
            noise = calibrate_noise(
                lambda amount: [*beside, asked.at(amount)], epsilon, delta or 0.0, clip_norm=asked.clip_norm
            )
    except BudgetError as error:
        raise InputError(str(error)) from error
    return noise, costs_of([*beside, asked.at(noise)], delta)

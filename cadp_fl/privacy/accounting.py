"""Events, and what they compose to.

An event says what was done, as data: a noise standard deviation, a clip norm, a sampling rate; never a bare
multiplier, since what a multiplier means depends on the neighbouring relation. One function hands events to
`dp-accounting`, whose PLD accountant doubles the sensitivity itself under replace-one, so that it is passed
sigma / C in both relations.

References:
    Koskela, Jälkö, Honkela: Computing tight differential privacy guarantees using FFT, arXiv 1906.03049.
    Doroshenko, Ghazi, Kamath, Kumar, Manurangsi: Connect the dots: tighter discrete approximations of privacy
    loss distributions, arXiv 2207.04380.
    Balle, Wang: Improving the Gaussian mechanism for differential privacy, arXiv 1805.06530.
"""

import math
from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Literal

import dp_accounting
from dp_accounting.pld import PLDAccountant
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from scipy.special import log_ndtr

from cadp_fl.errors import BudgetError

__all__ = [
    "Event",
    "LatentGaussian",
    "PoissonGaussian",
    "Relation",
    "Unprotected",
    "calibrate_noise",
    "check_delta",
    "epsilon_of",
    "events_from_json",
    "gaussian_delta",
]

_ClipNorm = Annotated[float, Field(ge=1e-6, le=1e6, description="C")]
_NoiseStd = Annotated[float, Field(ge=1e-9, le=1e9, description="sigma")]
"""Ranges in which float32 neither overflows nor loses digits: beyond them an epsilon would not hold."""


class Relation(Enum):
    """What two neighbouring data sets may differ in."""

    REPLACE_ONE = "replace-one"
    ADD_OR_REMOVE_ONE = "add-or-remove-one"


class _EventModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str = Field(min_length=1, max_length=40, description="the part of a method that spent it")


class LatentGaussian(_EventModel):
    """One release of every record's latent: N(clip(z; C), sigma^2 I), each record once.

    Records are disjoint, so the release of all of them costs what the release of one does.
    """

    kind: Literal["latent-gaussian"] = "latent-gaussian"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd


class PoissonGaussian(_EventModel):
    """DP-SGD: `steps` noised sums, sum clip(g_i; C) + N(0, sigma^2 I), each over a fresh Poisson sample."""

    kind: Literal["poisson-gaussian"] = "poisson-gaussian"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd
    sampling_rate: float = Field(gt=0, le=1, description="q")
    steps: int = Field(ge=1, le=10**7)


class Unprotected(_EventModel):
    """Something computed from training records that left without any protection."""

    kind: Literal["unprotected"] = "unprotected"
    what: str = Field(min_length=1, max_length=200)


Event = LatentGaussian | PoissonGaussian | Unprotected

_EVENTS: TypeAdapter[tuple[Event, ...]] = TypeAdapter(tuple[Annotated[Event, Field(discriminator="kind")], ...])


def events_from_json(tree: Any) -> tuple[Event, ...]:
    """Return the events that `event.model_dump()` wrote.

    Raises:
        pydantic.ValidationError: a kind is unknown, or a parameter is out of range.
    """
    return _EVENTS.validate_python(tree)


def epsilon_of(
    events: Sequence[Event], delta: float, relation: Relation = Relation.REPLACE_ONE, *, grid: float = 1e-4
) -> float:
    """Return the epsilon at `delta` of all events together; infinite if one is unprotected, 0 if there is none.

    Args:
        grid: discretization of the privacy loss; coarser is faster and never smaller.
    """
    return _epsilon(tuple(events), delta, relation, grid)


@lru_cache(maxsize=1024)
def _epsilon(events: tuple[Event, ...], delta: float, relation: Relation, grid: float) -> float:
    accountant = _accountant(relation, grid)
    for event in events:
        if isinstance(event, Unprotected):
            return math.inf
        accountant.compose(_to_dp_event(event))
    return float(accountant.get_epsilon(delta))


def _accountant(relation: Relation, grid: float) -> PLDAccountant:
    neighbours = {
        Relation.REPLACE_ONE: dp_accounting.NeighboringRelation.REPLACE_ONE,
        Relation.ADD_OR_REMOVE_ONE: dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    }[relation]
    return PLDAccountant(neighbours, value_discretization_interval=grid)


def _to_dp_event(event: LatentGaussian | PoissonGaussian) -> dp_accounting.DpEvent:
    """Hand an event to dp-accounting: sigma / C, whose meaning the PLD accountant takes from the relation."""
    gaussian = dp_accounting.GaussianDpEvent(event.noise_std / event.clip_norm)
    if isinstance(event, LatentGaussian):
        return gaussian
    step = gaussian if event.sampling_rate == 1 else dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(step, event.steps)


def calibrate_noise(
    events_at: Callable[[float], Sequence[LatentGaussian | PoissonGaussian]],
    epsilon: float,
    delta: float,
    *,
    clip_norm: float,
    grid: float = 1e-3,
) -> float:
    """Return the smallest noise standard deviation whose events cost at most `epsilon` under replace-one.

    The search ends on the private side: `epsilon_of(events_at(result)) <= epsilon`.

    Args:
        events_at: the events at a noise standard deviation.
        clip_norm: C; the search is in units of it, to a precision of 1e-5.
        epsilon: the budget.
        delta: of the budget.
        grid: discretization of the privacy loss during the search. A tenth of the accountant's own resolution
            takes a tenth of the time, errs on the private side, and moved sigma by 1e-5 where it was tried.

    Raises:
        BudgetError: no noise meets the budget.
    """

    def event_at(multiplier: float) -> dp_accounting.DpEvent:
        return dp_accounting.ComposedDpEvent([_to_dp_event(event) for event in events_at(multiplier * clip_norm)])

    try:
        multiplier = dp_accounting.calibrate_dp_mechanism(
            lambda: _accountant(Relation.REPLACE_ONE, grid),
            event_at,
            epsilon,
            delta,
            dp_accounting.LowerEndpointAndGuess(0.1, 1.0 + 2.0 / epsilon),
            tol=1e-5,
        )
    except (dp_accounting.mechanism_calibration.NoBracketIntervalFoundError, ValidationError) as error:
        raise BudgetError(
            f"Some noise must meet the budget. None does for epsilon {epsilon:g} at delta {delta:g}; use an epsilon "
            "from 0.001 to 100."
        ) from error
    return float(multiplier) * clip_norm


def gaussian_delta(epsilon: float, noise_std: float, sensitivity: float) -> float:
    """Return delta(epsilon) = Phi(D/2s - es/D) - e^epsilon Phi(-D/2s - es/D) of one Gaussian release, exactly.

    References:
        Balle, Wang, arXiv 1805.06530, theorem 8.
    """
    half, shift = sensitivity / (2 * noise_std), epsilon * noise_std / sensitivity
    return float(math.exp(log_ndtr(half - shift)) - math.exp(epsilon + log_ndtr(-half - shift)))


def check_delta(delta: float, records: int) -> None:
    """Check that delta is at most 1 / (10 n).

    Raises:
        BudgetError: it is not; a larger delta would allow the disclosure of single records.
    """
    if not 0 < delta * 10 * records <= 1 + 1e-9:
        raise BudgetError(
            f"delta is above zero and at most 1 / (10 n). Found {delta:g} for n = {records}; use "
            f"{1 / (10 * records):.1e} or less."
        )

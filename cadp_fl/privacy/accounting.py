"""Events, and what they compose to.

An event says what was done, as data: a noise standard deviation, a clip norm, a sampling rate; never a bare
multiplier, since what a multiplier means depends on the neighbouring relation. One function turns an event into a
privacy loss distribution of `dp-accounting`; those of a plan are composed. For Gaussian noise `dp-accounting` doubles
the sensitivity itself under replace-one, so that it is passed sigma / C in both relations. For Laplace noise it knows
no replace-one, so that the doubling is done here: any two latents clipped to C are within 2 C.

References:
    Koskela, Jälkö, Honkela: Computing tight differential privacy guarantees using FFT, arXiv 1906.03049.
    Doroshenko, Ghazi, Kamath, Kumar, Manurangsi: Connect the dots: tighter discrete approximations of privacy
    loss distributions, arXiv 2207.04380.
    Balle, Wang: Improving the Gaussian mechanism for differential privacy, arXiv 1805.06530.
    Kairouz, Oh, Viswanath: The composition theorem for differential privacy, arXiv 1311.0776.
    Dwork, McSherry, Nissim, Smith: Calibrating noise to sensitivity in private data analysis, TCC 2006.
"""

import math
from collections.abc import Callable, Sequence
from decimal import ROUND_FLOOR, Context
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.common import DifferentialPrivacyParameters
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from scipy.optimize import brentq
from scipy.special import log_ndtr

from cadp_fl.errors import BudgetError

__all__ = [
    "DeclaredPublic",
    "Event",
    "LatentGaussian",
    "LatentGaussianGrid",
    "LatentLaplace",
    "PoissonGaussian",
    "Relation",
    "ReleaseEvent",
    "Unprotected",
    "calibrate_laplace",
    "calibrate_noise",
    "check_delta",
    "epsilon_of",
    "events_from_json",
    "gaussian_delta",
]

_LARGEST_NOISE = 1e9
_ClipNorm = Annotated[float, Field(ge=1e-6, le=1e6, description="C")]
_NoiseStd = Annotated[float, Field(ge=1e-9, le=_LARGEST_NOISE, description="sigma")]
_NoiseScale = Annotated[float, Field(ge=1e-9, le=_LARGEST_NOISE, description="b")]
"""Ranges in which float32 neither overflows nor loses digits: beyond them an epsilon would not hold."""

_FINEST_GRID, _MOST_STEPS = 2.0**20, 2.0**50
"""Grids in a noise's standard deviation, and in a clip norm, at most: their integers and sums stay below 2^53."""


class Relation(Enum):
    """What two neighbouring data sets may differ in."""

    REPLACE_ONE = "replace-one"
    ADD_OR_REMOVE_ONE = "add-or-remove-one"


class _EventModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,29}$", description="the part of a method that spent it")


class LatentGaussian(_EventModel):
    """One release of every record's latent: N(clip(z; C), sigma^2 I), each record once.

    Records are disjoint, so the release of all of them costs what the release of one does.
    """

    kind: Literal["latent-gaussian"] = "latent-gaussian"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd


class LatentGaussianGrid(_EventModel):
    """One release of every record's latent: round(n + N(0, (sigma / gamma)^2 I)) gamma, n integers within C / gamma.

    That is the Gaussian mechanism on n gamma, of norm at most C, rounded afterwards: it costs exactly what that does,
    whatever the grid gamma. Records are disjoint, so the release of all of them costs what the release of one does.
    """

    kind: Literal["latent-gaussian-grid"] = "latent-gaussian-grid"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd
    grid: float = Field(gt=0, description="gamma, a power of two")

    @model_validator(mode="after")
    def _is_exact(self) -> Self:
        if math.frexp(self.grid)[0] != 0.5:
            raise ValueError(f"grid is a power of two, so that scaling by it rounds nothing. Found {self.grid:g}")
        if not self.noise_std / _FINEST_GRID <= self.grid <= self.noise_std:
            raise ValueError(f"grid is from noise_std / 2^20 to noise_std = {self.noise_std:g}. Found {self.grid:g}")
        if self.clip_norm / self.grid > _MOST_STEPS:
            raise ValueError(
                f"clip_norm is at most 2^50 grids, so that float64 holds every integer. Found {self.clip_norm:g} on a "
                f"grid of {self.grid:g}; add noise or clip to less"
            )
        return self


class LatentLaplace(_EventModel):
    """One release of every record's latent: clip_1(z; C) plus Laplace noise of scale b in each dimension.

    Records are disjoint, so the release of all of them costs what the release of one does: 2 C / b, with no delta.
    """

    kind: Literal["latent-laplace"] = "latent-laplace"
    clip_norm: _ClipNorm
    noise_scale: _NoiseScale


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


class DeclaredPublic(_EventModel):
    """Something that no private record had a part in, by declaration. It costs nothing, and claims repeat it."""

    kind: Literal["declared-public"] = "declared-public"
    what: str = Field(max_length=200, pattern=r"^[^\p{C}]+$", description="printed with every claim that rests on it")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="hash of its weights")
    dataset: str = Field(
        "", max_length=80, description="name of the records that it was trained on, where one is known"
    )


ReleaseEvent = LatentGaussian | LatentGaussianGrid | LatentLaplace | Unprotected
Event = ReleaseEvent | PoissonGaussian | DeclaredPublic

_EVENTS: TypeAdapter[tuple[Event, ...]] = TypeAdapter(tuple[Annotated[Event, Field(discriminator="kind")], ...])


def events_from_json(tree: Any) -> tuple[Event, ...]:
    """Return the events that `event.model_dump()` wrote.

    Raises:
        pydantic.ValidationError: a kind is unknown, or a parameter is out of range.
    """
    return _EVENTS.validate_python(tree)


_NEIGHBOURS = {
    Relation.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    Relation.ADD_OR_REMOVE_ONE: NeighboringRelation.ADD_OR_REMOVE_ONE,
}

_LARGEST_PURE_EPSILON = 500.0
"""Beyond it exp(epsilon) nears the end of float64; beside Gaussian events it then counts as infinite."""

_PRECISION = 1e-5
"""Of a search for noise, in units of C."""


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
    if any(isinstance(event, Unprotected) for event in events):
        return math.inf
    protected = [event for event in events if not isinstance(event, (Unprotected, DeclaredPublic))]
    pure = [_pure_epsilon(event, relation) for event in protected if isinstance(event, LatentLaplace)]
    # Epsilons without a delta add up: a bound as good as the composed one, and for a single release without its grid.
    added = math.fsum(pure) if len(pure) == len(protected) else math.inf
    if len(protected) <= 1 and added < math.inf:
        return added
    if any(epsilon > _LARGEST_PURE_EPSILON for epsilon in pure):
        return added
    composed = pld.identity(grid)
    for event in protected:
        composed = composed.compose(_privacy_loss(event, relation, grid))
    return min(float(composed.get_epsilon_for_delta(delta)), added)


def _pure_epsilon(event: LatentLaplace, relation: Relation) -> float:
    """Return 2 C / b under replace-one and C / b under add-or-remove: the L1 sensitivity over the scale."""
    sensitivity = 2 * event.clip_norm if relation is Relation.REPLACE_ONE else event.clip_norm
    return sensitivity / event.noise_scale


def _privacy_loss(
    event: LatentGaussian | LatentGaussianGrid | LatentLaplace | PoissonGaussian, relation: Relation, grid: float
) -> Any:
    """Return a privacy loss distribution that dominates an event's, rounded up to the grid.

    A Laplace release stands for any mechanism of its epsilon and no delta: randomized response dominates them all,
    in every dimension (Kairouz, Oh, Viswanath, theorem 3.1). That of one Laplace variable would be smaller, but that
    it dominates a vector's is not proven here.
    """
    if isinstance(event, LatentLaplace):
        return pld.from_privacy_parameters(DifferentialPrivacyParameters(_pure_epsilon(event, relation), 0.0), grid)
    noise_std, rate, steps = event.noise_std / event.clip_norm, 1.0, 1
    if isinstance(event, PoissonGaussian):
        rate, steps = event.sampling_rate, event.steps
    if rate == 1:  # steps of everyone add up to one of less noise, exactly
        noise_std, steps = noise_std / math.sqrt(steps), 1
    step = pld.from_gaussian_mechanism(
        noise_std,
        value_discretization_interval=grid,
        sampling_prob=rate,
        neighboring_relation=_NEIGHBOURS[relation],
    )
    return step.self_compose(steps) if rate < 1 else step


def calibrate_noise(
    events_at: Callable[[float], Sequence[LatentGaussian | LatentGaussianGrid | LatentLaplace | PoissonGaussian]],
    epsilon: float,
    delta: float,
    *,
    clip_norm: float,
    grid: float = 1e-3,
) -> float:
    """Return the smallest noise whose events cost at most `epsilon` under replace-one.

    The search ends on the private side: `epsilon_of(events_at(result)) <= epsilon`.

    Args:
        events_at: the events at an amount of noise: a standard deviation, or a scale.
        clip_norm: C; the search is in units of it, to a precision of 1e-5.
        epsilon: the budget.
        delta: of the budget.
        grid: discretization of the privacy loss during the search. A tenth of the accountant's own resolution
            takes a tenth of the time, errs on the private side, and moved sigma by 1e-5 where it was tried.

    Raises:
        BudgetError: no noise meets the budget.
    """
    if not 1e-3 <= epsilon <= 100:
        raise _no_noise(epsilon, clip_norm)

    def excess(multiplier: float) -> float:
        return epsilon_of(events_at(multiplier * clip_norm), delta, grid=grid) - epsilon

    try:
        lower = upper = 1.0 + 2.0 / epsilon
        while excess(upper) > 0:
            lower, upper = upper, 2 * upper
        while excess(lower) <= 0:
            lower, upper = lower / 2, lower
        multiplier = float(brentq(excess, lower, upper, xtol=_PRECISION))
        while excess(multiplier) > 0:  # the root may lie on its other side; the upper end meets the budget
            multiplier = min(multiplier + _PRECISION, upper)
    except ValidationError as error:
        raise _no_noise(epsilon, clip_norm) from error
    return multiplier * clip_norm


def calibrate_laplace(epsilon: float, *, clip_norm: float) -> float:
    """Return b = 2 C / epsilon, the smallest scale at which one Laplace release costs at most `epsilon`.

    Under replace-one. Rounded towards more noise: `epsilon_of` of the release is at most `epsilon`, to the last bit.

    Raises:
        BudgetError: no noise meets the budget.
    """
    if not 1e-3 <= epsilon <= 100 or 2 * clip_norm / epsilon > _LARGEST_NOISE:
        raise _no_noise(epsilon, clip_norm)
    noise_scale = 2 * clip_norm / epsilon
    while 2 * clip_norm / noise_scale > epsilon:
        noise_scale = math.nextafter(noise_scale, math.inf)
    return noise_scale


def _no_noise(epsilon: float, clip_norm: float) -> BudgetError:
    return BudgetError(
        f"Some noise must meet the budget. None does for epsilon {epsilon:g} and clip norm {clip_norm:g}; use an "
        "epsilon from 0.001 to 100, or a smaller clip norm."
    )


def gaussian_delta(epsilon: float, noise_std: float, sensitivity: float) -> float:
    """Return delta(epsilon) = Phi(D/2s - es/D) - e^epsilon Phi(-D/2s - es/D) of one Gaussian release, exactly.

    References:
        Balle, Wang, arXiv 1805.06530, theorem 8.
    """
    half, shift = sensitivity / (2 * noise_std), epsilon * noise_std / sensitivity
    return float(math.exp(log_ndtr(half - shift)) - math.exp(epsilon + log_ndtr(-half - shift)))


def _rounded_down(value: float) -> str:
    """Return a number with two digits, no larger than it is."""
    return f"{Context(prec=2, rounding=ROUND_FLOOR).create_decimal_from_float(value):.1e}"


def check_delta(delta: float, records: int) -> None:
    """Check that delta is at most 1 / (10 n).

    Raises:
        BudgetError: it is not; a larger delta would allow the disclosure of single records.
    """
    if not 0 < delta * 10 * records <= 1 + 1e-9:
        raise BudgetError(
            f"delta is above zero and at most 1 / (10 n). Found {delta:g} for n = {records}; use "
            f"{_rounded_down(1 / (10 * records))} or less."
        )

"""Events, and what they compose to.

An event says what was done, as data: a noise standard deviation, a clip norm, a sampling rate; never a bare
multiplier, since what a multiplier means depends on the neighbouring relation. Events become privacy loss
distributions of `dp-accounting`, which are composed. Sensitivities under replace-one are worked out here: any two
latents clipped to C are within 2 C. Only where records are sampled does `dp-accounting` double C itself.

References:
    Koskela, Jälkö, Honkela: Computing tight differential privacy guarantees using FFT, arXiv 1906.03049.
    Doroshenko, Ghazi, Kamath, Kumar, Manurangsi: Connect the dots: tighter discrete approximations of privacy
    loss distributions, arXiv 2207.04380.
    Balle, Wang: Improving the Gaussian mechanism for differential privacy, arXiv 1805.06530.
    Kairouz, Oh, Viswanath: The composition theorem for differential privacy, arXiv 1311.0776.
    Dwork, McSherry, Nissim, Smith: Calibrating noise to sensitivity in private data analysis, TCC 2006.
"""

import math
from collections.abc import Callable, Iterator, Sequence
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
    "GaussianHistogram",
    "LatentGaussian",
    "LatentGaussianGrid",
    "LatentLaplace",
    "PoissonGaussian",
    "ProtectedEvent",
    "RandomizedResponse",
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

_RecordsPerUnit = Annotated[int, Field(ge=1, le=1000, description="m: records that one privacy unit contributes")]

_FINEST_GRID, _MOST_STEPS = 2.0**20, 2.0**50
"""Grids in a noise's standard deviation, and in a clip norm, at most: their integers and sums stay below 2^53."""


class Relation(Enum):
    """What two neighbouring data sets may differ in."""

    REPLACE_ONE = "replace-one"
    ADD_OR_REMOVE_ONE = "add-or-remove-one"


class _EventModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str = Field(pattern=r"^[a-z0-9]{1,30}$", description="the part of a method that spent it")


class LatentGaussian(_EventModel):
    """One release of every record's latent: N(clip(z; C), sigma^2 I), each record once.

    Units are disjoint, so the release of all of them costs what that of the m records of one does: they are within
    2 C sqrt(m) of any others.
    """

    kind: Literal["latent-gaussian"] = "latent-gaussian"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd
    records_per_unit: _RecordsPerUnit = 1


class LatentGaussianGrid(_EventModel):
    """One release of every record's latent: round(n + N(0, (sigma / gamma)^2 I)) gamma, n integers within C / gamma.

    That is the Gaussian mechanism on n gamma, of norm at most C, rounded afterwards: it costs exactly what that does,
    whatever the grid gamma. Units are disjoint, so the release of all of them costs what that of the m records of one
    does.
    """

    kind: Literal["latent-gaussian-grid"] = "latent-gaussian-grid"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd
    grid: float = Field(gt=0, description="gamma, a power of two")
    records_per_unit: _RecordsPerUnit = 1

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

    Units are disjoint, so the release of all of them costs what that of the m records of one does: 2 C m / b, with no
    delta.
    """

    kind: Literal["latent-laplace"] = "latent-laplace"
    clip_norm: _ClipNorm
    noise_scale: _NoiseScale
    records_per_unit: _RecordsPerUnit = 1


class RandomizedResponse(_EventModel):
    """One label of every record: the true one with probability e^epsilon / (e^epsilon + k - 1), else one of the others.

    Each is epsilon differentially private, so those of the m records of a unit cost m epsilon.

    References:
        Warner: Randomized response, JASA 1965.
        Kairouz, Oh, Viswanath: Extremal mechanisms for local differential privacy, arXiv 1407.1338.
    """

    kind: Literal["randomized-response"] = "randomized-response"
    epsilon: float = Field(gt=0, le=20, description="of each record's label; beyond 20, a lie is rarer than 1e-8")
    records_per_unit: _RecordsPerUnit = 1


class GaussianHistogram(_EventModel):
    """`times` tables of counts, each count with N(0, sigma^2) added; a record counts once in `histograms` of a table.

    Replacing a record takes one from a count of each histogram and adds one to another: it moves a table by up to
    sqrt(2 h), and replacing the m records of a unit by up to m sqrt(2 h).
    """

    kind: Literal["gaussian-histogram"] = "gaussian-histogram"
    histograms: int = Field(ge=1, le=100_000, description="h, in which each record counts once")
    noise_std: _NoiseStd
    times: int = Field(1, ge=1, le=10_000)
    records_per_unit: _RecordsPerUnit = 1


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
ProtectedEvent = (
    LatentGaussian | LatentGaussianGrid | LatentLaplace | PoissonGaussian | RandomizedResponse | GaussianHistogram
)
Event = ProtectedEvent | Unprotected | DeclaredPublic

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
    pure = [_pure_epsilon(event, relation) for event in protected if isinstance(event, _PURE)]
    # Epsilons without a delta add up: a bound as good as the composed one, and for a single release without its grid.
    added = math.fsum(pure) if len(pure) == len(protected) else math.inf
    if len(protected) <= 1 and added < math.inf:
        return added
    if any(epsilon > _LARGEST_PURE_EPSILON for epsilon in pure):
        return added
    composed = pld.identity(grid)
    for loss in _privacy_losses(protected, relation, grid):
        composed = composed.compose(loss)
    return min(float(composed.get_epsilon_for_delta(delta)), added)


_PURE = (LatentLaplace, RandomizedResponse)


def _pure_epsilon(event: LatentLaplace | RandomizedResponse, relation: Relation) -> float:
    """Return the epsilon of an event that has no delta.

    Of Laplace noise it is the L1 sensitivity over the scale, 2 C m / b under replace-one and C m / b under
    add-or-remove. Of randomized response it is m epsilon, under add-or-remove too: a removed label is one more answer.
    """
    if isinstance(event, RandomizedResponse):
        return event.epsilon * event.records_per_unit
    sensitivity = 2 * event.clip_norm if relation is Relation.REPLACE_ONE else event.clip_norm
    return sensitivity * event.records_per_unit / event.noise_scale


def _squared_shift(event: ProtectedEvent, relation: Relation) -> float:
    """Return mu^2 = sum (L2 sensitivity / sigma)^2 of an event that is Gaussian noise on everyone; else 0."""
    replaces = relation is Relation.REPLACE_ONE
    if isinstance(event, (LatentGaussian, LatentGaussianGrid)):
        sensitivity = event.clip_norm * math.sqrt(event.records_per_unit) * (2 if replaces else 1)
        return (sensitivity / event.noise_std) ** 2
    if isinstance(event, GaussianHistogram):
        sensitivity = event.records_per_unit * math.sqrt(event.histograms * (2 if replaces else 1))
        return event.times * (sensitivity / event.noise_std) ** 2
    if isinstance(event, PoissonGaussian) and event.sampling_rate == 1:
        return event.steps * ((2 if replaces else 1) * event.clip_norm / event.noise_std) ** 2
    return 0.0


def _privacy_losses(events: Sequence[ProtectedEvent], relation: Relation, grid: float) -> Iterator[Any]:
    """Yield privacy loss distributions that dominate those of the events together, rounded up to the grid.

    All Gaussian events without sampling are one, exactly: their mu^2 add. A pure event stands for any mechanism of its
    epsilon and no delta: randomized response between two answers dominates them all, in every dimension (Kairouz, Oh,
    Viswanath, theorem 3.1). That of one Laplace variable would be smaller, but that it dominates a vector's is not
    proven here.
    """
    if shift := math.fsum(_squared_shift(event, relation) for event in events):
        yield pld.from_gaussian_mechanism(1 / math.sqrt(shift), value_discretization_interval=grid)
    for event in events:
        if isinstance(event, _PURE):
            pure = DifferentialPrivacyParameters(_pure_epsilon(event, relation), 0.0)
            yield pld.from_privacy_parameters(pure, grid)
        elif isinstance(event, PoissonGaussian) and event.sampling_rate < 1:
            step = pld.from_gaussian_mechanism(
                event.noise_std / event.clip_norm,
                value_discretization_interval=grid,
                sampling_prob=event.sampling_rate,
                neighboring_relation=_NEIGHBOURS[relation],
            )
            yield step.self_compose(event.steps)


def calibrate_noise(
    events_at: Callable[[float], Sequence[ProtectedEvent]],
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


def calibrate_laplace(epsilon: float, *, clip_norm: float, records_per_unit: int = 1) -> float:
    """Return b = 2 C m / epsilon, the smallest scale at which one Laplace release costs at most `epsilon`.

    Under replace-one. Rounded towards more noise: `epsilon_of` of the release is at most `epsilon`, to the last bit.

    Raises:
        BudgetError: no noise meets the budget.
    """
    sensitivity = 2 * clip_norm * records_per_unit
    if not 1e-3 <= epsilon <= 100 or sensitivity / epsilon > _LARGEST_NOISE:
        raise _no_noise(epsilon, clip_norm)
    noise_scale = sensitivity / epsilon
    while sensitivity / noise_scale > epsilon:
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

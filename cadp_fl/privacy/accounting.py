"""What events compose to: epsilon at a delta, under a neighbouring relation.

Each event says what it costs (`cadp_fl.privacy.losses`). Losses become privacy loss distributions of `dp-accounting`,
which are composed; Gaussian ones by themselves have a closed form. Events work out their sensitivities under
replace-one themselves; only where records are sampled does `dp-accounting` double C itself.

References:
    Koskela, Jälkö, Honkela: Computing tight differential privacy guarantees using FFT, arXiv 1906.03049.
    Doroshenko, Ghazi, Kamath, Kumar, Manurangsi: Connect the dots: tighter discrete approximations of privacy
    loss distributions, arXiv 2207.04380.
    Balle, Wang: Improving the Gaussian mechanism for differential privacy, arXiv 1805.06530.
    Kairouz, Oh, Viswanath: The composition theorem for differential privacy, arXiv 1311.0776.
    Dwork, McSherry, Nissim, Smith: Calibrating noise to sensitivity in private data analysis, TCC 2006.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context
from functools import lru_cache
from typing import Any

import numpy as np
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.common import DifferentialPrivacyParameters
from pydantic import ValidationError
from scipy.optimize import brentq

from cadp_fl.errors import BudgetError
from cadp_fl.privacy.events import (
    LARGEST_NOISE,
    DeclaredPublic,
    Event,
    GaussianHistogram,
    GaussianMoments,
    GaussianSum,
    LatentGaussian,
    LatentGaussianGrid,
    LatentLaplace,
    PoissonGaussian,
    ProtectedEvent,
    RandomizedResponse,
    ReleaseEvent,
    Unprotected,
    events_from_json,
)
from cadp_fl.privacy.gaussian import gaussian_epsilon
from cadp_fl.privacy.losses import Free, Gaussian, Loss, Profile, Pure, Relation, SampledGaussian, Unbounded

__all__ = [
    "DeclaredPublic",
    "Event",
    "GaussianHistogram",
    "GaussianMoments",
    "GaussianSum",
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
    "check_workable",
    "epsilon_of",
    "events_from_json",
    "has_delta",
    "largest_cohort",
    "largest_delta",
]


_NEIGHBOURS = {
    Relation.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    Relation.ADD_OR_REMOVE_ONE: NeighboringRelation.ADD_OR_REMOVE_ONE,
}

_LARGEST_COMPOSED = 500.0
"""Beyond it exp(epsilon) nears the end of float64, and distributions the end of memory: it counts as infinite."""

_COARSEST = 0.1
"""The grid that composition begins with."""

_FINE, _FINE_ENOUGH = 500, 100_000
"""Steps of a grid up to an epsilon: it is refined until there are at least so many, and not beyond so many."""

_MOST_POINTS = 1e6
"""Of a grid, about: losses that reach far, where noise is small beside C, would else fill the memory for an epsilon
that is next to 0. A coarser grid gives no smaller one."""

_SMALLEST_SHARE = 1e-6
"""A budget has an epsilon of 0.001 or more; that of a stage may be a small share of it."""

_PRECISION = 1e-5
"""Of a search for noise, relative to it."""

MOST_SAMPLED_KINDS, MOST_SAMPLED_STEPS = 3, 10**6
"""Of a plan: each kind of sampled step takes the accountant up to half a minute, and so do a million steps of one."""

MOST_PROFILES = 3
"""Of a plan: each takes the accountant about a second."""

MOST_WORK = 200.0
"""Of the plans of one request: how far the losses of all kinds of their sampled steps reach; 1 takes some .4 s."""


def epsilon_of(
    events: Sequence[Event], delta: float, relation: Relation = Relation.REPLACE_ONE, *, grid: float = 1e-4
) -> float:
    """Return the epsilon at `delta` of all events together; infinite if one is unprotected, 0 if there is none.

    Args:
        delta: 0 is possible for events that have none, Laplace noise and randomized response.
        grid: discretization of the privacy loss, a power of ten; coarser is faster and never smaller. Small epsilons
            take a finer one, in any case, and large ones a coarser one.
    """
    return _epsilon(tuple(events), delta, relation, grid)


@lru_cache(maxsize=1024)
def _epsilon(events: tuple[Event, ...], delta: float, relation: Relation, grid: float) -> float:
    total = _Total.of(event.loss(relation) for event in events)
    if total.is_unbounded:
        return math.inf
    # Epsilons without a delta add up: a bound as good as the composed one, and for a single release without its grid.
    added = math.fsum(total.pure) if len(total.pure) == total.number else math.inf
    if delta == 0 or (total.number <= 1 and added < math.inf):
        return added
    if total.number == len(total.profiles) == 1:
        return total.profiles[0].epsilon(delta)
    if not total.pure and not total.sampled and not total.profiles:
        return gaussian_epsilon(math.sqrt(total.squared_shift), delta)
    if total.mean > _LARGEST_COMPOSED or any(epsilon > _LARGEST_COMPOSED for epsilon in total.pure):
        return added
    return min(added, _composed(total, delta, relation, grid))


@dataclass(frozen=True)
class _Total:
    """The losses of all events of a plan, by their form.

    Attributes:
        number: of losses that noise bounds.
        squared_shift: mu^2 of all Gaussian losses, which are one Gaussian loss together.
        pure: epsilons of the losses that have no delta.
        sampled: number of steps by sigma / C and sampling rate.
        profiles: losses of another form.
        is_unbounded: whether one has no bound.
    """

    number: int
    squared_shift: float
    pure: tuple[float, ...]
    sampled: Counter[tuple[float, float]]
    profiles: tuple[Profile, ...]
    is_unbounded: bool

    @classmethod
    def of(cls, losses: Iterable[Loss]) -> "_Total":
        """Sort losses by their form.

        Raises:
            TypeError: one has a form that nobody composes.
        """
        shifts, pure, profiles, is_unbounded, number = [], [], [], False, 0
        sampled: Counter[tuple[float, float]] = Counter()
        for loss in losses:
            match loss:
                case Free():
                    continue
                case Unbounded():
                    is_unbounded = True
                    continue
                case Gaussian(squared_shift):
                    shifts.append(squared_shift)
                case Pure(epsilon):
                    pure.append(epsilon)
                case SampledGaussian(noise, sampling_rate, steps):
                    sampled[noise, sampling_rate] += steps
                case Profile():
                    profiles.append(loss)
                case _:
                    raise TypeError(f"a privacy loss has one of the forms in cadp_fl.privacy.losses. Found {loss!r}.")
            number += 1
        return cls(
            number=number,
            squared_shift=math.fsum(shifts),
            pure=tuple(pure),
            sampled=sampled,
            profiles=tuple(profiles),
            is_unbounded=is_unbounded,
        )

    @property
    def mean(self) -> float:
        """About the mean privacy loss of what has a delta."""
        of_steps = (steps * _mean_loss(*kind) for kind, steps in self.sampled.items())
        return math.fsum([self.squared_shift / 2, *of_steps, *(profile.mean for profile in self.profiles)])

    @property
    def widest(self) -> float:
        """About how far losses reach that are composed on one grid."""
        of_steps = max((2 / noise**2 for noise, _ in self.sampled), default=0.0)
        of_profiles = max((profile.reach for profile in self.profiles), default=0.0)
        return self.squared_shift + math.fsum(self.pure) + max(of_steps, of_profiles)


def has_delta(events: Sequence[Event]) -> bool:
    """Return whether a delta bounds anything of what events protect: not of Laplace noise and randomized response."""
    return any(event.has_delta for event in events)


def _mean_loss(noise: float, rate: float) -> float:
    """Return the mean privacy loss of one sampled step under replace-one; infinite below a hundredth of C of noise.

    It bounds the time and memory that a composition takes, and no epsilon.
    """
    if noise < 0.01:
        return math.inf
    x = np.linspace(-10 * noise, 1 + 10 * noise, 20_001)
    kept, ours, theirs = (-((x - mean) ** 2) / (2 * noise**2) for mean in (0, 1, -1))
    p, q = (np.logaddexp(np.log1p(-rate) + kept, np.log(rate) + each) for each in (ours, theirs))
    return float((np.exp(p) * (p - q)).sum() * (x[1] - x[0]) / (noise * math.sqrt(2 * math.pi)))


def _composed(total: _Total, delta: float, relation: Relation, grid: float) -> float:
    """Return the epsilon of privacy loss distributions composed on finer and finer grids, the smallest of them all.

    Each grid holds the coarser ones' points, so none gives a larger epsilon but for the last digits. The grid follows
    epsilon: one of 1e-4 alone would be a tenth of an epsilon of 0.001, and fill the memory for one of 500.
    """
    widest, smallest, step = total.widest, math.inf, _COARSEST
    while True:
        composed = pld.identity(step)
        for loss in _privacy_losses(total, relation, step):
            composed = composed.compose(loss)
        smallest = min(smallest, float(composed.get_epsilon_for_delta(delta)))
        is_fine = (step <= grid * 1.01 and smallest >= _FINE * step) or smallest == 0
        if is_fine or smallest >= _FINE_ENOUGH * step or step < 1e-8 or widest > _MOST_POINTS * step / 10:
            return smallest
        step = round(step / 10, 12)


def _privacy_losses(total: _Total, relation: Relation, grid: float) -> Iterator[Any]:
    """Yield privacy loss distributions that dominate those of the events together, rounded up to the grid.

    All Gaussian events without sampling are one, exactly: their mu^2 add. A pure event stands for any mechanism of its
    epsilon and no delta: randomized response between two answers dominates them all, in every dimension (Kairouz, Oh,
    Viswanath, theorem 3.1). That of one Laplace variable would be smaller, but that it dominates a vector's is not
    proven here.
    """
    if total.squared_shift:
        yield pld.from_gaussian_mechanism(1 / math.sqrt(total.squared_shift), value_discretization_interval=grid)
    for epsilon in total.pure:
        yield pld.from_privacy_parameters(DifferentialPrivacyParameters(epsilon, 0.0), grid)
    for profile in total.profiles:
        yield profile.distribution(grid)
    for (noise, rate), steps in total.sampled.items():
        step = pld.from_gaussian_mechanism(
            noise, value_discretization_interval=grid, sampling_prob=rate, neighboring_relation=_NEIGHBOURS[relation]
        )
        yield step.self_compose(steps)


def check_workable(*plans: Sequence[Event]) -> None:
    """Check that the epsilons of plans' events are worked out in a minute or two, before they are.

    Args:
        plans: the events of each.

    Raises:
        BudgetError: it may take much longer.
    """
    work = 0.0
    for events in plans:
        total = _Total.of(event.loss(Relation.REPLACE_ONE) for event in events)
        sampled = total.sampled
        if len(total.profiles) > MOST_PROFILES:
            raise BudgetError(
                f"A plan has at most {MOST_PROFILES} shuffled releases, so that its epsilon is worked out in time. "
                f"Found {len(total.profiles)}; plan fewer."
            )
        if len(sampled) > MOST_SAMPLED_KINDS or sampled.total() > MOST_SAMPLED_STEPS:
            raise BudgetError(
                f"A plan has at most {MOST_SAMPLED_STEPS:,} sampled steps of DP-SGD, of at most {MOST_SAMPLED_KINDS} "
                "kinds (noise over clip norm, sampling rate), so that its epsilon is worked out in time. Found "
                f"{sampled.total():,} steps of {len(sampled)} kind(s); take fewer, larger samples, or the same noise "
                "and rate in more rounds."
            )
        work += math.fsum(_losses_reach(noise) for noise, _ in sampled)
    if len(plans) > 1 and work > MOST_WORK:
        raise BudgetError(
            "The epsilons of plans that are asked about together are worked out in a minute or two. Sampled steps with "
            f"little noise take long: these would take {work / MOST_WORK:.1f} times as long; ask about fewer plans at "
            "once, or plan more noise."
        )


def _losses_reach(noise: float) -> float:
    """Return how far the privacy loss of one sampled step reaches, about: the work that its distribution takes."""
    return 1 + 2 / noise**2


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
        clip_norm: C; the search is in units of it, to a relative precision of 1e-5.
        epsilon: the budget.
        delta: of the budget.
        grid: discretization of the privacy loss during the search. A tenth of the accountant's own resolution
            takes a tenth of the time, errs on the private side, and moved sigma by 1e-5 where it was tried.

    Raises:
        BudgetError: no noise meets the budget.
    """
    if not _SMALLEST_SHARE <= epsilon <= 100:
        raise _no_noise(epsilon, clip_norm)

    try:
        check_workable(events_at(clip_norm))
    except ValidationError as error:
        raise _no_noise(epsilon, clip_norm) from error

    def excess(multiplier: float) -> float:
        # Capped, since the search interpolates: far from the budget its sign is all that matters.
        return min(epsilon_of(events_at(multiplier * clip_norm), delta, grid=grid), 100 * epsilon) - epsilon

    try:
        lower = upper = 1.0 + 2.0 / epsilon
        while excess(upper) > 0:
            lower, upper = upper, 2 * upper
        while excess(lower) <= 0:
            lower, upper = lower / 2, lower
        multiplier = float(brentq(excess, lower, upper, xtol=_PRECISION * lower))
        while excess(multiplier) > 0:  # the root may lie on its other side; the upper end meets the budget
            multiplier = min(multiplier + _PRECISION * lower, upper)
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
    if not _SMALLEST_SHARE <= epsilon <= 100 or sensitivity / epsilon > LARGEST_NOISE:
        raise _no_noise(epsilon, clip_norm)
    noise_scale = sensitivity / epsilon
    while sensitivity / noise_scale > epsilon:
        noise_scale = math.nextafter(noise_scale, math.inf)
    return noise_scale


def _no_noise(epsilon: float, clip_norm: float) -> BudgetError:
    return BudgetError(
        f"Some noise must meet the budget. None does for epsilon {epsilon:g} and clip norm {clip_norm:g}; use an "
        "epsilon from 0.001 to 100, a smaller clip norm, or less beside it."
    )


def _rounded_down(value: float) -> str:
    """Return a number with two digits, no larger than it is."""
    return f"{Context(prec=2, rounding=ROUND_FLOOR).create_decimal_from_float(value):.1e}"


def largest_delta(units: int, *, large: bool = False) -> str:
    """Return the largest delta for n units with two digits, rounded down, as text; see `check_delta`."""
    return _rounded_down(_largest_delta(units, large=large))


def _largest_delta(units: int, *, large: bool) -> float:
    n = max(1, units)
    return 1 / (10 * n) if large else min(1 / (100 * n), n**-1.5)


def largest_cohort(delta: float, *, large: bool = False) -> int:
    """Return the largest number of units for which a delta is small enough; see `check_delta`."""
    bounds = [1 / (10 * delta)] if large else [1 / (100 * delta), delta ** (-2 / 3)]
    return math.floor(min(bounds) * (1 + 1e-9))


def check_delta(delta: float, units: int, *, large: bool = False, name: str = "delta") -> None:
    """Check that delta is at most 1 / (100 n) and n^-1.5; or 1 / (10 n), where a large one is allowed.

    A mechanism that gives each record away with a chance of delta has epsilon 0 at delta: n delta is the chance that it
    gives one away.

    Args:
        name: what the delta is called where it was given.

    Raises:
        BudgetError: it is not.
    """
    if not 0 < delta <= _largest_delta(units, large=large) * (1 + 1e-9):
        rule = "at most 1 / (10 n)" if large else "at most 1 / (100 n) and n^-1.5 (1 / (10 n) with policy: large_delta)"
        raise BudgetError(
            f"{name} is above zero and {rule}. Found {delta:g} for n = {units}; use "
            f"{largest_delta(units, large=large)} or less."
        )

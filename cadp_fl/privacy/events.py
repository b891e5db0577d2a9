"""Events: what was done, as data.

An event is a noise standard deviation, a clip norm, a sampling rate; never a bare multiplier, since what a multiplier
means depends on the neighbouring relation. What events cost, `accounting` says.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

__all__ = [
    "LARGEST_NOISE",
    "DeclaredPublic",
    "Event",
    "GaussianHistogram",
    "LatentGaussian",
    "LatentGaussianGrid",
    "LatentLaplace",
    "PoissonGaussian",
    "ProtectedEvent",
    "RandomizedResponse",
    "ReleaseEvent",
    "Unprotected",
    "events_from_json",
]

LARGEST_NOISE = 1e9
_ClipNorm = Annotated[float, Field(ge=1e-6, le=1e6, description="C")]
_NoiseStd = Annotated[float, Field(ge=1e-9, le=LARGEST_NOISE, description="sigma")]
_NoiseScale = Annotated[float, Field(ge=1e-9, le=LARGEST_NOISE, description="b")]
"""Ranges in which float32 neither overflows nor loses digits: beyond them an epsilon would not hold."""

_RecordsPerUnit = Annotated[int, Field(ge=1, le=1000, description="m: records that one privacy unit contributes")]


_FINEST_GRID, _MOST_STEPS = 2.0**20, 2.0**50
"""Grids in a noise's standard deviation, and in a clip norm, at most: their integers and sums stay below 2^53."""


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

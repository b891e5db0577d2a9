"""Events: what was done, as data, and what each costs by itself.

An event is a noise standard deviation, a clip norm, a sampling rate; never a bare multiplier, since what a multiplier
means depends on the neighbouring relation. Each kind says in its `loss` what it costs; `accounting` composes that. A
kind that is silent on something cannot be defined: see `cadp_fl.privacy.event`.
"""

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, TypeAdapter, model_validator

from cadp_fl.config import FrontEndConfig, MomentsConfig
from cadp_fl.privacy.event import BaseEvent, Notation
from cadp_fl.privacy.losses import Free, Gaussian, Pure, Relation, SampledGaussian, Unbounded
from cadp_fl.privacy.sensitivity import moments_sensitivity
from cadp_fl.privacy.shuffling import ShuffledProfile, best_threshold

__all__ = [
    "EVENTS",
    "LARGEST_NOISE",
    "DeclaredPublic",
    "Event",
    "GaussianHistogram",
    "GaussianMoments",
    "GaussianSum",
    "LatentGaussian",
    "LatentGaussianGrid",
    "LatentLaplace",
    "LatentPrivUnit",
    "PoissonGaussian",
    "ProtectedEvent",
    "RandomizedResponse",
    "ReleaseEvent",
    "Unprotected",
    "events_from_json",
    "grid_of",
]

LARGEST_NOISE = 1e9
_ClipNorm = Annotated[float, Field(ge=1e-6, le=1e6, description="C")]
_NoiseStd = Annotated[float, Field(ge=1e-9, le=LARGEST_NOISE, description="sigma")]
_NoiseScale = Annotated[float, Field(ge=1e-9, le=LARGEST_NOISE, description="b")]
"""Ranges in which float32 neither overflows nor loses digits: beyond them an epsilon would not hold."""

_RecordsPerUnit = Annotated[int, Field(ge=1, le=1000, description="m: records that one privacy unit contributes")]


_FINEST_GRID, _MOST_STEPS = 2.0**20, 2.0**50
"""Grids in a noise's standard deviation, and in a clip norm, at most: their integers and sums stay below 2^53."""

_ROUNDED_UP = 1 + 2.0**-50
"""A few rounding errors more than the two that a share of noise has, so that it is never below what is claimed."""


_Shares = Annotated[
    int,
    Field(ge=1, le=10_000, description="K: sites whose noise adds up before anyone but the aggregator sees a value"),
]


def _share(noise_std: float, shares: int) -> float:
    return noise_std if shares == 1 else noise_std / math.sqrt(shares) * _ROUNDED_UP


class _OfUnits(BaseEvent):
    """An event that counts m records of each unit."""

    if TYPE_CHECKING:  # a field of each kind, the last one
        records_per_unit: int

    @property
    def contribution(self) -> int:
        """The m records that one unit contributes."""
        return self.records_per_unit


def _multiplier(shift: float) -> float:
    """Return the noise multiplier of mu^2 under replace-one: sigma over half the sensitivity, 2 / mu."""
    return 2 / math.sqrt(shift)


class _GaussianRelease(_OfUnits):
    """Gaussian noise on clipped latents.

    A unit's m latents are in m different places of a release, each moved by up to 2 C under replace-one and C under
    add-or-remove: sqrt(m) times as far together.
    """

    left: ClassVar[str] = "privatized records"
    releases_latents: ClassVar[bool] = True

    if TYPE_CHECKING:
        clip_norm: float
        noise_std: float

    def loss(self, relation: Relation) -> Gaussian:
        """Return mu^2 = m (2 C / sigma)^2, or m (C / sigma)^2 under add-or-remove."""
        moved = self.clip_norm * math.sqrt(self.records_per_unit) * (2 if relation is Relation.REPLACE_ONE else 1)
        return Gaussian((moved / self.noise_std) ** 2)

    @property
    def noise_multiplier(self) -> float:
        """The standard deviation sigma over C sqrt(m)."""
        return _multiplier(self.loss(Relation.REPLACE_ONE).squared_shift)


class LatentGaussian(_GaussianRelease):
    """One release of every record's latent: N(clip(z; C), sigma^2 I), each record once.

    Units are disjoint, so the release of all of them costs what that of the m records of one does: they are within
    2 C sqrt(m) of any others.
    """

    notation: ClassVar[Notation | None] = Notation("gaussian", "release", ("clip-norm", "noise-std"))

    kind: Literal["latent-gaussian"] = "latent-gaussian"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd
    records_per_unit: _RecordsPerUnit = 1


_GRID_BITS = 12


def grid_of(noise_std: float) -> float:
    """Return gamma = 2^(floor(log2 sigma) - 12): from 4096 to 8192 steps in a standard deviation, whatever the data."""
    return math.ldexp(1.0, math.frexp(noise_std)[1] - 1 - _GRID_BITS)


class LatentGaussianGrid(_GaussianRelease):
    """One release of every record's latent: round(n + N(0, (sigma / gamma)^2 I)) gamma, n integers within C / gamma.

    That is the Gaussian mechanism on n gamma, of norm at most C, rounded afterwards: it costs exactly what that does,
    whatever the grid gamma. Units are disjoint, so the release of all of them costs what that of the m records of one
    does.
    """

    notation: ClassVar[Notation | None] = Notation(
        "grid-gaussian",
        "release",
        ("clip-norm", "noise-std"),
        ("grid", "records-per-patient"),
        lambda given: {"grid": grid_of(given["noise_std"])} if given.get("noise_std", 0) > 0 else {},
    )

    kind: Literal["latent-gaussian-grid"] = "latent-gaussian-grid"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd
    grid: float = Field(gt=0, le=LARGEST_NOISE, description="gamma, a power of two")
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


class LatentLaplace(_OfUnits):
    """One release of every record's latent: clip_1(z; C) plus Laplace noise of scale b in each dimension.

    Units are disjoint, so the release of all of them costs what that of the m records of one does: 2 C m / b, with no
    delta.
    """

    left: ClassVar[str] = "privatized records"
    releases_latents: ClassVar[bool] = True
    notation: ClassVar[Notation | None] = Notation("laplace", "release", ("clip-norm", "noise-scale"))

    kind: Literal["latent-laplace"] = "latent-laplace"
    clip_norm: _ClipNorm
    noise_scale: _NoiseScale
    records_per_unit: _RecordsPerUnit = 1

    def loss(self, relation: Relation) -> Pure:
        """Return epsilon = 2 C m / b, the L1 sensitivity over the scale, or C m / b under add-or-remove."""
        sensitivity = 2 * self.clip_norm if relation is Relation.REPLACE_ONE else self.clip_norm
        return Pure(sensitivity * self.records_per_unit / self.noise_scale)

    @property
    def noise_multiplier(self) -> float:
        """The standard deviation sqrt(2) b over C m."""
        return 2 * math.sqrt(2) / self.loss(Relation.REPLACE_ONE).epsilon


MOST_SHUFFLED_RECORDS = 8
"""Of a unit whose messages are shuffled: with more, their blanket is so thin that the shuffle hides next to nothing."""


class LatentPrivUnit(_OfUnits):
    """One release of every record's latent by PrivUnit, and of its label by randomized response in the same message.

    A unit's m messages are m (eps_z + eps_y) differentially private by themselves, with no delta. Where n units send
    such messages through one randomizer, and they leave in a secret uniform order, the release costs what the privacy
    blanket bounds: see `cadp_fl.privacy.shuffling`. The site checks that it is so, and shuffles.

    References:
        Bhowmick, Duchi, Freudiger, Kapoor, Rogers: Protection against reconstruction, arXiv 1812.00984.
        Asi, Feldman, Talwar: Optimal algorithms for mean estimation under local differential privacy, arXiv 2205.02466.
    """

    left: ClassVar[str] = "privatized records"
    releases_latents: ClassVar[bool] = True
    notation: ClassVar[Notation | None] = Notation(
        "privunit",
        "release",
        ("latent-epsilon",),
        ("label-epsilon", "classes", "shuffled-units", "threshold", "records-per-patient"),
        lambda given: {"threshold": best_threshold(given["latent_epsilon"])} if given.get("latent_epsilon") else {},
    )

    kind: Literal["latent-privunit"] = "latent-privunit"
    latent_epsilon: float = Field(gt=0, le=20, description="log of a record's half-space's density over that off it")
    threshold: float = Field(ge=0, le=8, description="g: a half-space is where <v, u> >= g")
    label_epsilon: float = Field(0.0, ge=0, le=20, description="of each record's label; 0 where labels are public")
    classes: int = Field(0, ge=0, le=10**6, description="K, of labels that are covered and shuffled")
    shuffled_units: int = Field(
        0, ge=0, le=10**9, description="n: units of the site that are shuffled together, at least; 0: none is claimed"
    )
    records_per_unit: _RecordsPerUnit = 1

    @model_validator(mode="after")
    def _is_shuffled_whole(self) -> Self:
        if self.shuffled_units and self.label_epsilon and self.classes < 2:
            raise ValueError("shuffled labels are of two classes or more, as many as the records have. Found none")
        if self.shuffled_units and self.records_per_unit > MOST_SHUFFLED_RECORDS:
            raise ValueError(
                f"a unit has at most {MOST_SHUFFLED_RECORDS} messages that are shuffled. Found {self.records_per_unit}"
            )
        return self

    @property
    def hidden_among(self) -> int:
        """n, where the shuffle is counted on."""
        return self.shuffled_units

    @property
    def covers_labels(self) -> bool:
        """Whether labels are a part of the messages."""
        return self.label_epsilon > 0

    @property
    def local_epsilon(self) -> float:
        """Epsilon of what one unit sends by itself, whatever the order: m (eps_z + eps_y)."""
        return self.records_per_unit * (self.latent_epsilon + self.label_epsilon)

    def loss(self, relation: Relation) -> Pure | ShuffledProfile:
        """Return the blanket's bound, or the local epsilon where no shuffle is claimed."""
        if not self.shuffled_units:
            return Pure(self.local_epsilon)
        return ShuffledProfile(
            latent_epsilon=self.latent_epsilon,
            threshold=self.threshold,
            label_epsilon=self.label_epsilon,
            classes=self.classes if self.label_epsilon else 0,
            units=self.shuffled_units,
            records_per_unit=self.records_per_unit,
            relation=relation,
        )

    @property
    def noise_multiplier(self) -> float:
        """Infinite: there is no noise to add. The local epsilon says how little a message shows."""
        return math.inf


class RandomizedResponse(_OfUnits):
    """One label of every record: the true one with probability e^epsilon / (e^epsilon + k - 1), else one of the others.

    Each is epsilon differentially private, so those of the m records of a unit cost m epsilon.

    References:
        Warner: Randomized response, JASA 1965.
        Kairouz, Oh, Viswanath: Extremal mechanisms for local differential privacy, arXiv 1407.1338.
    """

    left: ClassVar[str] = "labels by randomized response"
    releases_latents: ClassVar[bool] = False
    notation: ClassVar[Notation | None] = Notation("randomized-response", "labels", ("epsilon",))

    kind: Literal["randomized-response"] = "randomized-response"
    epsilon: float = Field(gt=0, le=20, description="of each record's label; beyond 20, a lie is rarer than 1e-8")
    records_per_unit: _RecordsPerUnit = 1

    @property
    def covers_labels(self) -> bool:
        """True: the label that leaves is drawn."""
        return True

    def loss(self, relation: Relation) -> Pure:
        """Return m epsilon, under add-or-remove too: a removed label is one more answer."""
        return Pure(self.epsilon * self.records_per_unit)

    @property
    def noise_multiplier(self) -> float:
        """Infinite: an answer is one of a few."""
        return math.inf


class GaussianHistogram(_OfUnits):
    """`times` tables of counts, each count with N(0, sigma^2) added; a record counts once in `histograms` of a table.

    Replacing a record takes one from a count of each histogram and adds one to another: it moves a table by up to
    sqrt(2 h), and replacing the m records of a unit by up to m sqrt(2 h): they may all move from one count to the same
    other one of each histogram, (-m, +m), and no unit moves it further. A removed unit moves h counts by m.
    """

    left: ClassVar[str] = "noised counts"
    releases_latents: ClassVar[bool] = False
    notation: ClassVar[Notation | None] = Notation(
        "histogram",
        "counts",
        ("noise-std",),
        ("histograms", "times", "records-per-patient"),
        lambda given: {"histograms": 1},
    )

    kind: Literal["gaussian-histogram"] = "gaussian-histogram"
    histograms: int = Field(ge=1, le=100_000, description="h, in which each record counts once")
    noise_std: _NoiseStd
    times: int = Field(1, ge=1, le=10_000)
    records_per_unit: _RecordsPerUnit = 1

    def loss(self, relation: Relation) -> Gaussian:
        """Return mu^2 = t 2 h (m / sigma)^2, or t h (m / sigma)^2 under add-or-remove."""
        return Gaussian(self.times * self._squared_shift(relation))

    @property
    def noise_multiplier(self) -> float:
        """Of one table: sigma / (m sqrt(h / 2))."""
        return _multiplier(self._squared_shift(Relation.REPLACE_ONE))

    def _squared_shift(self, relation: Relation) -> float:
        """Return mu^2 of one table."""
        moved = self.histograms * (2 if relation is Relation.REPLACE_ONE else 1)
        return (self.records_per_unit * math.sqrt(moved) / self.noise_std) ** 2


_SUM_BITS = 20
"""Of a step in a sum's noise: from 2^20 to 2^21 steps are a standard deviation."""


class _SharedGaussian(_OfUnits):
    """Gaussian noise on a sum over records, of which each of K sites may add a share."""

    releases_latents: ClassVar[bool] = False

    if TYPE_CHECKING:
        noise_std: float
        shares: int

    @abstractmethod
    def _squared_shift(self, relation: Relation) -> float:
        """Return mu^2."""

    def loss(self, relation: Relation) -> Gaussian:
        """Return mu^2 = (D m / sigma)^2, with D how far a record moves the sum: a unit's m may all move it alike."""
        return Gaussian(self._squared_shift(relation))

    @property
    def noise_multiplier(self) -> float:
        """Of the site's own share: 2 sigma / (D m sqrt(K))."""
        return _multiplier(self._squared_shift(Relation.REPLACE_ONE) * self.sharers)

    @property
    def sharers(self) -> int:
        """K, the sites whose noise adds up before anyone but an aggregator sees a value."""
        return self.shares

    @property
    def share_std(self) -> float:
        """Standard deviation of the noise that one site adds: sigma / sqrt(K), rounded up."""
        return _share(self.noise_std, self.shares)

    @property
    def own_message(self) -> Self:
        """The event as the aggregator sees it, with the site's own share of the noise alone."""
        return self.model_copy(update={"noise_std": self.share_std, "shares": 1})


class GaussianSum(_SharedGaussian):
    """The sum of every record's vector: sum clip(v_i; C) + N(0, sigma^2 I), each record once.

    Replacing a record moves it by up to 2 C, and replacing the m records of a unit, all alike, by up to 2 C m.

    Where sites' sums are added before anyone but an aggregator sees them, each adds sigma / sqrt(K): sigma is the noise
    of K sites together, and what holds, holds against those who see the sum alone. A site knows its own share of the
    noise, so where sites see the sum, it is over K + 1 of them at least: three, if noise is shared at all.
    """

    left: ClassVar[str] = "noised sums"
    notation: ClassVar[Notation | None] = Notation(
        "sum", "moments", ("clip-norm", "noise-std"), ("shares", "records-per-patient")
    )

    kind: Literal["gaussian-sum"] = "gaussian-sum"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd
    shares: _Shares = 1
    records_per_unit: _RecordsPerUnit = 1

    def _squared_shift(self, relation: Relation) -> float:
        moved = self.clip_norm * (2 if relation is Relation.REPLACE_ONE else 1)
        return (self.records_per_unit * moved / self.noise_std) ** 2

    @property
    def grid(self) -> float:
        """The step of the grid that a sum is released on, a power of two that the noise alone sets."""
        return math.ldexp(1.0, math.frexp(self.share_std)[1] - 1 - _SUM_BITS)


_Weight = Annotated[float, Field(ge=0, le=16, description="0, or from 1/16 to 16; a part of weight 0 is left out")]
_LEAST_WEIGHT = 1 / 16
_NOISE_BITS, _COARSEST_BITS, _FINEST_BITS = 28, 4, 16
_LEAST_STEPS, _LARGEST_STEPS = 2.0**6, 2.0**30

_MOMENTS = MomentsConfig().weights | {"clip_norm": FrontEndConfig().radius}
"""A study's own weights and radius, where it names none; the latter moves no cost."""


class GaussianMoments(_SharedGaussian):
    """Counts, sums and second moments of every class as one vector, noised: sum phi(u_i, y_i) + N(0, sigma^2 I).

    u = clip(v - c; R) / R has a norm of at most 1, c is public or was released before, and

        phi(u, y) = (a e_y, b e_y u, s u u^T, w e_y u u^T)

    with e_y the unit vector of the class y: its count, its sum, the second moment that all classes share, and its own.
    How far a unit moves the sum, `sensitivity.moments_sensitivity` says; R scales out of it. `shares` are as of a sum.
    """

    left: ClassVar[str] = "noised moments"
    notation: ClassVar[Notation | None] = Notation(
        "moments",
        "moments",
        ("noise-std",),
        (*(name.replace("_", "-") for name in _MOMENTS), "shares", "records-per-patient"),
        lambda given: _MOMENTS,
    )

    kind: Literal["gaussian-moments"] = "gaussian-moments"
    noise_std: _NoiseStd = Field(description="sigma, of the joint vector of records of norm 1")
    clip_norm: _ClipNorm = Field(description="R, which a record's vector is clipped to and divided by")
    count_weight: _Weight = Field(description="a")
    sum_weight: _Weight = Field(description="b")
    shared_weight: _Weight = Field(description="s")
    class_weight: _Weight = Field(description="w")
    shares: _Shares = 1
    records_per_unit: _RecordsPerUnit = 1

    def _squared_shift(self, relation: Relation) -> float:
        sensitivity = moments_sensitivity(
            self.count_weight,
            self.sum_weight,
            self.shared_weight,
            self.class_weight,
            replaces=relation is Relation.REPLACE_ONE,
        )
        return (self.records_per_unit * sensitivity / self.noise_std) ** 2

    @property
    def names_flow(self) -> bool:
        """Whether a flow is made of it: in the stage `moments`."""
        return self.stage == "moments"

    @property
    def part_stds(self) -> dict[str, float]:
        """Standard deviation of one site's noise on each part that there is, its weight divided out, rounded up.

        Of `shared` and `second` it is that of the diagonal. An entry off the diagonal stands in the joint vector twice,
        or once times sqrt(2), so that its noise is 1 / sqrt(2) of that.
        """
        weights = {
            "counts": self.count_weight,
            "sums": self.sum_weight,
            "shared": self.shared_weight,
            "second": self.class_weight,
        }
        return {name: self.share_std / weight * _ROUNDED_UP for name, weight in weights.items() if weight}

    @property
    def grid(self) -> float:
        """gamma: u is rounded to its multiples, so that counts and sums are multiples of it, second moments of gamma^2.

        A power of two that the noise alone sets, as fine as noise on integers can be drawn for quickly.
        """
        stds = self.part_stds
        squares = [stds[name] for name in ("shared", "second") if name in stds]
        exponent = math.frexp(max(squares or stds.values()))[1]
        bits = (_NOISE_BITS - exponent) // 2 if squares else _NOISE_BITS - exponent
        return math.ldexp(1.0, -min(max(bits, _COARSEST_BITS), _FINEST_BITS))

    @model_validator(mode="after")
    def _is_on_a_grid(self) -> Self:
        weights = (self.count_weight, self.sum_weight, self.shared_weight, self.class_weight)
        if not any(weights) or any(0 < weight < _LEAST_WEIGHT for weight in weights):
            raise ValueError(f"weights are 0 or from 1/16 to 16, and one at least is not 0. Found {weights}")
        for name, std in self.part_stds.items():
            steps = std / (self.grid if name in ("counts", "sums") else self.grid**2)
            if not _LEAST_STEPS <= steps <= _LARGEST_STEPS:
                raise ValueError(
                    "noise is from 2^6 to 2^30 steps of its grid, which integers hold and hide behind. Found "
                    f"{steps:g} on {name}; choose weights closer to each other, or another amount of noise"
                )
        return self


class PoissonGaussian(BaseEvent):
    """DP-SGD: `steps` noised sums, sum clip(g_i; C) + N(0, sigma^2 I), each over a fresh Poisson sample."""

    left: ClassVar[str] = "weights after noised steps of DP-SGD"
    releases_latents: ClassVar[bool] = False
    notation: ClassVar[Notation | None] = Notation(
        "dp-sgd", "classifier", ("clip-norm", "noise-std", "sampling-rate", "steps"), ()
    )

    kind: Literal["poisson-gaussian"] = "poisson-gaussian"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd
    sampling_rate: float = Field(gt=0, le=1, description="q")
    steps: int = Field(ge=1, le=10**7)

    def loss(self, relation: Relation) -> Gaussian | SampledGaussian:
        """Return the loss of sampled steps, or mu^2 = t (2 C / sigma)^2 where each step is of all records."""
        if self.sampling_rate < 1:
            return SampledGaussian(self.noise_std / self.clip_norm, self.sampling_rate, self.steps)
        moved = (2 if relation is Relation.REPLACE_ONE else 1) * self.clip_norm
        return Gaussian(self.steps * (moved / self.noise_std) ** 2)

    @property
    def noise_multiplier(self) -> float:
        """The standard deviation sigma over C, whatever the sampling rate."""
        return self.noise_std / self.clip_norm

    @property
    def names_flow(self) -> bool:
        """Whether a flow is trained by it: in the stage `flow`."""
        return self.stage == "flow"

    @property
    def amount(self) -> int:
        """Steps."""
        return self.steps

    @property
    def once(self) -> Self:
        """One step."""
        return self.model_copy(update={"steps": 1})


class Unprotected(BaseEvent):
    """Something computed from training records that left without any protection."""

    left: ClassVar[str] = "something without protection"
    releases_latents: ClassVar[bool] = False
    notation: ClassVar[Notation | None] = None

    kind: Literal["unprotected"] = "unprotected"
    what: str = Field(min_length=1, max_length=200)

    def loss(self, relation: Relation) -> Unbounded:
        """Return that it has no bound."""
        return Unbounded()

    @property
    def noise_multiplier(self) -> float:
        """0: there is no noise."""
        return 0.0

    @property
    def names_flow(self) -> bool:
        """Whether it is a flow."""
        return self.stage == "flow"


class DeclaredPublic(BaseEvent):
    """Something that no private record had a part in, by declaration. It costs nothing, and claims repeat it."""

    left: ClassVar[str] = "nothing of records"
    releases_latents: ClassVar[bool] = False
    notation: ClassVar[Notation | None] = None

    kind: Literal["declared-public"] = "declared-public"
    what: str = Field(max_length=200, pattern=r"^[^\p{C}]+$", description="printed with every claim that rests on it")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="hash of its weights")
    dataset: str = Field(
        "", max_length=80, description="name of the records that it was trained on, where one is known"
    )

    def loss(self, relation: Relation) -> Free:
        """Return that it costs nothing."""
        return Free()

    @property
    def noise_multiplier(self) -> float:
        """Infinite: there is nothing to noise."""
        return math.inf

    @property
    def names_flow(self) -> bool:
        """Whether it is a flow."""
        return self.stage == "flow"


ReleaseEvent = LatentGaussian | LatentGaussianGrid | LatentLaplace | LatentPrivUnit | Unprotected
ProtectedEvent = (
    LatentGaussian
    | LatentGaussianGrid
    | LatentLaplace
    | LatentPrivUnit
    | PoissonGaussian
    | RandomizedResponse
    | GaussianHistogram
    | GaussianSum
    | GaussianMoments
)
Event = ProtectedEvent | Unprotected | DeclaredPublic

EVENTS: dict[str, type[Event]] = {kind.model_fields["kind"].default: kind for kind in get_args(Event)}
"""Every kind of event."""

_EVENTS: TypeAdapter[tuple[Event, ...]] = TypeAdapter(tuple[Annotated[Event, Field(discriminator="kind")], ...])


def events_from_json(tree: Any) -> tuple[Event, ...]:
    """Return the events that `event.model_dump()` wrote.

    Raises:
        pydantic.ValidationError: a kind is unknown, or a parameter is out of range.
    """
    return _EVENTS.validate_python(tree)

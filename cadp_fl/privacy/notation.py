"""Events in one line of text, `gaussian:clip-norm=1,noise-std=7.4612`, as a person types them.

gaussian             clip-norm, noise-std, [records-per-patient]      a release, L2 clip
laplace              clip-norm, noise-scale, [records-per-patient]    a release, L1 clip
dp-sgd               clip-norm, noise-std, sampling-rate, steps
randomized-response  epsilon, [records-per-patient]                   of each label
histogram            noise-std, [histograms], [times], [records-per-patient]
sum                  clip-norm, noise-std, [shares], [records-per-patient]
moments              noise-std, [count-weight], [sum-weight], [shared-weight], [class-weight], [clip-norm], [shares],
                     [records-per-patient]                            weights as a study's, noise of records of norm 1
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cadp_fl.config import FrontEndConfig, MomentsConfig, plain_value
from cadp_fl.config.settings import parse
from cadp_fl.errors import InputError
from cadp_fl.privacy.accounting import (
    GaussianHistogram,
    GaussianMoments,
    GaussianSum,
    LatentGaussian,
    LatentLaplace,
    PoissonGaussian,
    ProtectedEvent,
    RandomizedResponse,
)

__all__ = ["KINDS", "Kind", "Noiseless", "parse_event", "parse_noiseless"]


@dataclass(frozen=True)
class Kind:
    """One kind of event, as it is written.

    Attributes:
        model: the event.
        stage: what a method calls it.
        needed: parameters that have no default.
        optional: the others.
    """

    model: type[ProtectedEvent]
    stage: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ("records-per-patient",)

    @property
    def noise(self) -> str | None:
        """The parameter that is an amount of noise; None where there is none."""
        return next((name for name in self.needed if name.startswith("noise-")), None)


_MOMENTS = MomentsConfig().weights | {"clip_norm": FrontEndConfig().radius}
"""A study's own weights and radius, where it names none; the latter moves no cost."""

KINDS = {
    "gaussian": Kind(LatentGaussian, "release", ("clip-norm", "noise-std")),
    "laplace": Kind(LatentLaplace, "release", ("clip-norm", "noise-scale")),
    "dp-sgd": Kind(PoissonGaussian, "classifier", ("clip-norm", "noise-std", "sampling-rate", "steps"), ()),
    "randomized-response": Kind(RandomizedResponse, "labels", ("epsilon",)),
    "histogram": Kind(GaussianHistogram, "counts", ("noise-std",), ("histograms", "times", "records-per-patient")),
    "sum": Kind(GaussianSum, "moments", ("clip-norm", "noise-std"), ("shares", "records-per-patient")),
    "moments": Kind(
        GaussianMoments,
        "moments",
        ("noise-std",),
        (*(name.replace("_", "-") for name in _MOMENTS), "shares", "records-per-patient"),
    ),
}

_ALSO = {kind.model.model_fields["kind"].default: name for name, kind in KINDS.items()}
"""What ledgers and tables call a kind, as a person copies it."""

_FIELDS = {"records-per-patient": "records_per_unit"}
_DEFAULTS: dict[str, dict[str, Any]] = {"histogram": {"histograms": 1}, "moments": _MOMENTS}


@dataclass(frozen=True)
class Noiseless:
    """An event whose noise is asked for.

    Attributes:
        text: as it was written.
        noise: name of the parameter that is to be found.
        at: the event with an amount of noise.
        clip_norm: what the noise is in proportion to: C, or m for counts and moments.
    """

    text: str
    noise: str
    at: Callable[[float], ProtectedEvent]
    clip_norm: float


def parse_event(text: str) -> ProtectedEvent:
    """Return the event of a line.

    Raises:
        InputError: it is none.
    """
    name, kind, parameters = _parameters(text)
    return _event(text, name, kind, parameters)


def parse_noiseless(text: str) -> Noiseless:
    """Return the event of a line that leaves its noise out.

    Raises:
        InputError: it is none, it gives a noise, or events of its kind have no noise.
    """
    name, kind, parameters = _parameters(text)
    noise = kind.noise
    if noise is None:
        raise InputError(
            f"Noise is found for an event that adds some. '{name}' has none; its epsilon is what it costs."
        )
    if noise in parameters:
        raise InputError(f"The noise is what is asked for. Found {noise} in '{text}'; leave it out.")
    sample = _event(text, name, kind, parameters | {noise: "1"})
    fixed = sample.model_dump()
    by_clip = "clip-norm" in kind.needed
    clip_norm = float(fixed["clip_norm"] if by_clip else fixed.get("records_per_unit", 1))

    def at(amount: float) -> ProtectedEvent:
        return kind.model.model_validate(fixed | {noise.replace("-", "_"): amount})

    return Noiseless(text, noise, at, clip_norm)


def _parameters(text: str) -> tuple[str, Kind, dict[str, str]]:
    """Return the kind of a line, and the parameters that it gives."""
    name, _, rest = text.strip().partition(":")
    name = _ALSO.get(name, name)
    if name not in KINDS:
        raise InputError(f"Unknown event '{name}'. Choose one of: {', '.join(KINDS)}.")
    kind, parameters = KINDS[name], {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = "records-per-patient" if key == "records-per-unit" else key
        if not equals or key in parameters:
            raise InputError(f"An event is 'kind:name=number,name=number'. Found '{part}' in '{text}'; give each once.")
        if key not in (*kind.needed, *kind.optional):
            known = ", ".join((*kind.needed, *kind.optional))
            raise InputError(f"An event '{name}' has no parameter '{key}'. It has: {known}.")
        parameters[key] = value
    return name, kind, parameters


def _event(text: str, name: str, kind: Kind, parameters: dict[str, str]) -> ProtectedEvent:
    if missing := [key for key in kind.needed if key not in parameters]:
        raise InputError(f"An event '{name}' gives {', '.join(kind.needed)}. '{text}' lacks {missing[0]}; add it.")
    given = {_FIELDS.get(key, key.replace("-", "_")): _number(key, value) for key, value in parameters.items()}
    return parse(kind.model, {"stage": kind.stage, **_DEFAULTS.get(name, {}), **given}, where=name)


def _number(key: str, text: str) -> int | float:
    """Return a parameter's value."""
    value = plain_value(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"'{key}' of an event is a number. Found '{text}'; write it in digits, as 0.5 or 1e-5.")
    return value

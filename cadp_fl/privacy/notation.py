"""Events in one line of text, `gaussian:clip-norm=1,noise-std=7.4612`, as a person types them.

gaussian             clip-norm, noise-std, [records-per-patient]      a release, L2 clip
grid-gaussian        clip-norm, noise-std, [records-per-patient]      the same, on a grid
laplace              clip-norm, noise-scale, [records-per-patient]    a release, L1 clip
privunit             latent-epsilon, [label-epsilon], [classes], [shuffled-units], [threshold], [records-per-patient]
dp-sgd               clip-norm, noise-std, sampling-rate, steps
randomized-response  epsilon, [records-per-patient]                   of each label
histogram            noise-std, [histograms], [times], [records-per-patient]
sum                  clip-norm, noise-std, [shares], [records-per-patient]
moments              noise-std, [count-weight], [sum-weight], [shared-weight], [class-weight], [clip-norm], [shares],
                     [records-per-patient]                            weights as a study's, noise of records of norm 1

Each kind of event says how it is written: see `Notation`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from cadp_fl.config import plain_value
from cadp_fl.config.settings import parse
from cadp_fl.errors import InputError
from cadp_fl.privacy.event import Notation
from cadp_fl.privacy.events import ProtectedEvent

__all__ = ["KINDS", "Noiseless", "parse_event", "parse_noiseless"]

KINDS: dict[str, type[ProtectedEvent]] = {
    kind.notation.name: kind for kind in get_args(ProtectedEvent) if kind.notation is not None
}
"""Every kind of event that is written, by its name."""

_ALSO = {kind.model_fields["kind"].default: name for name, kind in KINDS.items()}
"""What ledgers and tables call a kind, as a person copies it."""

_FIELDS = {"records-per-patient": "records_per_unit"}


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
    kind, fields = _written(text)
    return _event(kind, fields)


def parse_noiseless(text: str) -> Noiseless:
    """Return the event of a line that leaves its noise out.

    Raises:
        InputError: it is none, it gives a noise, or events of its kind have no noise.
    """
    name = _name_of(text)
    noise = _notation(KINDS[name]).noise
    if noise is None:
        raise InputError(
            f"Noise is found for an event that adds some. '{name}' has none; its epsilon is what it costs."
        )
    kind, fields = _written(text, leaves_out=noise)
    amount_field, by_clip = noise.replace("-", "_"), "clip-norm" in _notation(kind).needed
    sample = _event(kind, fields | {amount_field: 1})
    clip_norm = float(fields["clip_norm"] if by_clip else sample.contribution or 1)

    def at(amount: float) -> ProtectedEvent:
        return kind.model_validate(_tree(kind, fields | {amount_field: amount}))

    return Noiseless(text, noise, at, clip_norm)


def _notation(kind: type[ProtectedEvent]) -> Notation:
    assert kind.notation is not None, "a kind that is written"
    return kind.notation


def _name_of(text: str) -> str:
    """Return the name of the kind that a line begins with."""
    written = text.strip().partition(":")[0]
    name = _ALSO.get(written, written)
    if name not in KINDS:
        raise InputError(f"Unknown event '{written}'. Choose one of: {', '.join(KINDS)}.")
    return name


def _written(text: str, *, leaves_out: str = "") -> tuple[type[ProtectedEvent], dict[str, int | float]]:
    """Return the kind of a line, and the fields that it gives.

    Args:
        leaves_out: a needed parameter that is not given.
    """
    name = _name_of(text)
    notation, fields = _notation(KINDS[name]), {}
    for part in filter(None, (part.strip() for part in text.strip().partition(":")[2].split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = "records-per-patient" if key == "records-per-unit" else key
        field = _FIELDS.get(key, key.replace("-", "_"))
        if not equals or field in fields:
            raise InputError(f"An event is 'kind:name=number,name=number'. Found '{part}' in '{text}'; give each once.")
        if key not in (*notation.needed, *notation.optional):
            known = ", ".join((*notation.needed, *notation.optional))
            raise InputError(f"An event '{name}' has no parameter '{key}'. It has: {known}.")
        if key == leaves_out:
            raise InputError(f"The noise is what is asked for. Found {key} in '{text}'; leave it out.")
        fields[field] = _number(key, value)
    needed = [key for key in notation.needed if key != leaves_out]
    if missing := [key for key in needed if key.replace("-", "_") not in fields]:
        raise InputError(f"An event '{name}' gives {', '.join(notation.needed)}. '{text}' lacks {missing[0]}; add it.")
    return KINDS[name], fields


def _event(kind: type[ProtectedEvent], fields: dict[str, int | float]) -> ProtectedEvent:
    return parse(kind, _tree(kind, fields), where=_notation(kind).name)


def _tree(kind: type[ProtectedEvent], fields: dict[str, int | float]) -> dict[str, Any]:
    """Return all fields of an event, those included that were not given."""
    notation = _notation(kind)
    return {"stage": notation.stage, **notation.defaults(fields), **fields}


def _number(key: str, text: str) -> int | float:
    """Return a parameter's value."""
    value = plain_value(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"'{key}' of an event is a number. Found '{text}'; write it in digits, as 0.5 or 1e-5.")
    return value

"""Fitting values to the types of fields: text as it is written, numbers that are numbers, true and false alone.

Pydantic converts where it can: true to 1.0, "yes" to true, "1_0" to 10. A config means none of that.
"""

import math
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from cadp_fl.config.written import Place, WrittenList, WrittenMap

__all__ = ["Misfit", "fitted"]

_UNIONS = (Union, types.UnionType)


class Misfit:
    """A value that no field takes, in place of one that pydantic would convert.

    Attributes:
        value: that was found.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


def fitted(annotation: Any, value: Any, place: Place | None = None) -> Any:
    """Return a value as pydantic has to find it in a field of a type.

    Args:
        annotation: the field's type.
        place: of the value, if it was written.
    """
    kinds = _kinds(annotation)
    if isinstance(value, (dict, list, tuple)):
        return _fitted_collection(kinds, value)
    if any(_is_one(kind, value) for kind in kinds):
        if isinstance(value, int) and not isinstance(value, bool) and int not in kinds:
            return _float(value)
        return value
    if _takes_text(kinds):
        return place.written if place is not None and place.written is not None else value
    if any(kind in (bool, int, float) for kind in kinds):
        return Misfit(value)
    return value


def _fitted_collection(kinds: list[Any], value: Any) -> Any:
    """Return a mapping or list with each of its values as a field of their type finds it."""
    for kind in kinds:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is dict and isinstance(value, dict) and arguments[1] is not Any:
            places = value.of_values if isinstance(value, WrittenMap) else {}
            return {key: fitted(arguments[1], each, places.get(key)) for key, each in value.items()}
        if origin in (tuple, list) and isinstance(value, (list, tuple)):
            one = arguments[0] if origin is list or arguments[-1] is Ellipsis else None
            types_ = [one] * len(value) if one is not None else list(arguments)
            of_values = value.of_values if isinstance(value, WrittenList) else [None] * len(value)
            if len(types_) == len(value):
                return [fitted(*each) for each in zip(types_, value, of_values, strict=True)]
    return value


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that a type is a union of, without what narrows them."""
    if typing.get_origin(annotation) is Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in _UNIONS:
        return [kind for member in typing.get_args(annotation) for kind in _kinds(member)]
    return [annotation]


def _is_one(kind: Any, value: Any) -> bool:
    """Return whether a value is of a type, as YAML and JSON have them: a whole number is a number, and true is none."""
    if kind is float or kind is int:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is bool:
        return isinstance(value, bool)
    if kind is None or kind is types.NoneType:
        return value is None
    return kind is Any or (kind is str and isinstance(value, str))


def _takes_text(kinds: list[Any]) -> bool:
    return any(
        kind in (str, Path) or (typing.get_origin(kind) is Literal and isinstance(typing.get_args(kind)[0], str))
        for kind in kinds
    )


def _float(value: int) -> float:
    """Return a whole number as a float; one beyond floats is infinite, which no field takes."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf

"""What is wrong with a config, as one sentence: the rule, what was found, and the way out."""

import difflib
import re
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from cadp_fl.config.fitting import Misfit
from cadp_fl.config.written import Place, place_of, printable

__all__ = ["sentence_of", "sentence_on"]

_Location = tuple[str | int, ...]

_RULES = {
    "greater_than": "is above {gt}",
    "greater_than_equal": "is at least {ge}",
    "less_than": "is below {lt}",
    "less_than_equal": "is at most {le}",
    "finite_number": "is a finite number",
    "literal_error": "is {expected}",
    "string_too_short": "has at least {min_length} letters",
    "string_too_long": "has at most {max_length} letters",
    "string_pattern_mismatch": "has the form {pattern}",
    "too_short": "holds at least {min_length}",
    "too_long": "holds at most {max_length}",
    "union_tag_invalid": "says by its {discriminator} that it is {expected_tags}",
    "union_tag_not_found": "says by its {discriminator} what it is",
    "invalid_key": "has text as keys",
}
"""Of pydantic's kinds of error, those of a value of the right type."""

_TYPES = {
    "int": ("is a whole number", "write it in digits, as 30, without quotes"),
    "float": ("is a number", "write it in digits, as 0.5 or 1e-5, without quotes"),
    "bool": ("is true or false", "write one of the two"),
    "string": ("is text", "put it in quotes"),
    "path": ("is a path", "put it in quotes"),
    "tuple": ("is a list", "write it as [a, b]"),
    "list": ("is a list", "write it as [a, b]"),
    "dict": ("is a mapping", "write it as {key: value}"),
    "mapping": ("is a mapping", "write it as {key: value}"),
    "model": ("is a mapping", "write it as {key: value}"),
}
"""Of a type, what a value of it is, and how to write one."""


def sentence_of(model: type[BaseModel], tree: Any, problems: Sequence[Any], where: str) -> str:
    """Return the sentence of the first of a model's errors; a key that is unknown comes before all others.

    Args:
        model: that the tree was validated against.
        problems: pydantic's errors.
        where: dotted key of the tree in its file.
    """
    problem = min(problems, key=lambda each: each["type"] != "extra_forbidden")
    location: _Location = tuple(part for part in problem["loc"] if part != "[key]")
    unknown = problem["type"] == "extra_forbidden"
    place = place_of(tree, location, of_key=unknown or "[key]" in problem["loc"])
    key = printable(".".join([*([where] if where else []), *map(str, location)]))[:200]
    sentence = _unknown(model, location, key) if unknown else sentence_on(problem, key, place)
    return sentence if place is None else f"{sentence} See {place}"


def _unknown(model: type[BaseModel], location: _Location, key: str) -> str:
    known = _keys_at(model, location[:-1])
    near = difflib.get_close_matches(str(location[-1])[:80], known, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(known)}."
    return f"Unknown key '{key}'. {hint}"


def sentence_on(problem: Any, key: str, place: Place | None = None) -> str:
    """Return the sentence of one of pydantic's errors, at a dotted key."""
    kind = problem["type"]
    if kind == "missing":
        return f"'{key}' is required and has no default. Add it to the config."
    if kind == "value_error":
        rule = str(problem["msg"]).removeprefix("Value error, ").removesuffix(".")
        return f"{f'{key}: ' if key else ''}{rule}."
    found = str(problem["ctx"]["actual_length"]) if kind.startswith("too_") else _found(problem["input"], place)
    if kind in _RULES:
        rule = re.sub(r"\b1 (letter)s", r"1 \1", _RULES[kind].format(**_plainly(problem.get("ctx", {}))))
        return f"'{key}' {rule}. Found {found}."
    rule, way_out = _TYPES.get(kind.partition("_")[0], ("", ""))
    if not rule:
        return f"'{key}': {problem['msg']}. Found {found}."
    return f"'{key}' {rule}. Found {found}; {way_out}."


def _plainly(context: dict[str, Any]) -> dict[str, Any]:
    """Return what an error says of its rule, with whole numbers as such."""
    return {
        name: int(each) if isinstance(each, float) and each.is_integer() else each for name, each in context.items()
    }


def _found(value: Any, place: Place | None) -> str:
    """Return a value as it was written, or as a config would have it."""
    value = value.value if isinstance(value, Misfit) else value
    if isinstance(value, str):
        return f"{value!r:.80}"
    if isinstance(value, (dict, BaseModel)):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if place is not None and place.written:
        return f"{printable(place.written):.80}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!r:.80}"


def _keys_at(model: type[BaseModel], location: _Location) -> list[str]:
    """Return the keys that are known at a location below a model."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # an index into a sequence: its members share one model
        nested = [kind for kind in _types_in(field.annotation) if issubclass(kind, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _types_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation]
    return [kind for argument in typing.get_args(annotation) for kind in _types_in(argument)]

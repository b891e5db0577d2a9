"""What every config is made of: frozen, typed models, whose unknown keys are errors that name the nearest one."""

import difflib
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cadp_fl.errors import ConfigError

__all__ = [
    "AttributeName",
    "Count",
    "Fraction",
    "Name",
    "Positive",
    "PrivacyUnit",
    "Settings",
    "Width",
    "parse",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=4096)]
"""Of a network's layer: a site builds it as a server asks."""
Name = Annotated[str, Field(min_length=1, max_length=80)]
AttributeName = Annotated[str, Field(min_length=1, max_length=64)]


class Settings(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class PrivacyUnit(Settings):
    """What one neighbouring data set may change: a record, or a patient with m records."""

    unit: Literal["record", "patient"] = Field(description="what one neighbouring data set may change")
    records_per_patient: Count | None = Field(
        None, le=1000, description="m, for the unit patient: records that each one contributes, no more and no fewer"
    )

    @model_validator(mode="after")
    def _says_records_of_a_patient(self) -> Self:
        if (self.unit == "patient") != (self.records_per_patient is not None):
            raise ValueError(
                f"records_per_patient is given for the unit patient, and only then. Found unit {self.unit} and "
                f"records_per_patient {self.records_per_patient}"
            )
        return self

    @property
    def records_per_unit(self) -> int:
        """m: records that one unit contributes, exactly."""
        return self.records_per_patient or 1


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], tree: Mapping[str, Any], *, where: str = "") -> Model:
    """Validate a mapping against a model; `where` is the dotted key of the mapping in its file.

    Raises:
        ConfigError: one sentence on the first key that is wrong.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = [str(part) for part in first["loc"] if part != "[key]"]
        raise ConfigError(_sentence(model, first, location, where)) from error


def _sentence(model: type[BaseModel], problem: Any, location: list[str], where: str) -> str:
    key = ".".join(([where] if where else []) + location)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(known)}."
        return f"Unknown key '{key}'. {hint}"
    if problem["type"] == "missing":
        return f"'{key}' is required and has no default. Add it to the config."
    rule = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{f'{key}: ' if key else ''}{rule}."
    return f"'{key}': {rule}. Found {problem['input']!r}."


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys that are known at a dotted location below a model."""
    for part in location:
        field = model.model_fields.get(part)
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

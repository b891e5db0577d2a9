"""What every config is made of: frozen, typed models, whose unknown keys are errors that name the nearest one."""

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cadp_fl.config.fitting import fitted
from cadp_fl.config.names import Unit
from cadp_fl.config.sentences import sentence_of
from cadp_fl.config.written import WrittenMap
from cadp_fl.errors import ConfigError

__all__ = [
    "AttributeName",
    "Count",
    "Decay",
    "Fraction",
    "LocalSteps",
    "Name",
    "Passes",
    "Positive",
    "PrivacyUnit",
    "Seed",
    "Settings",
    "Threads",
    "Width",
    "parse",
]

Positive = Annotated[float, Field(ge=1e-9, le=1e9)]
"""In a range in which float32 neither overflows nor loses digits."""
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Passes = Annotated[int, Field(ge=1, le=10_000)]
"""Rounds, or epochs."""
LocalSteps = Annotated[int, Field(ge=1, le=1000)]
"""Of a site in one round: with the most rounds, as many as an event counts."""
Threads = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Decay = Annotated[float, Field(ge=0, le=1000)]
Width = Annotated[int, Field(ge=1, le=4096)]
"""Of a network's layer: a site builds it as a server asks."""
Name = Annotated[str, Field(min_length=1, max_length=80)]
AttributeName = Annotated[str, Field(min_length=1, max_length=64)]


class Settings(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        places = tree.of_values if isinstance(tree, WrittenMap) else {}
        return {
            key: fitted(cls.model_fields[key].annotation, value, places.get(key)) if key in cls.model_fields else value
            for key, value in tree.items()
        }


class PrivacyUnit(Settings):
    """What one neighbouring data set may change: a record, or a patient with m records."""

    unit: Unit = Field(description="what one neighbouring data set may change")
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
        ConfigError: one sentence on the first key that is wrong, with its place if it was read from YAML.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(sentence_of(model, tree, error.errors(include_url=False), where)) from error

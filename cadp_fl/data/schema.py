"""What a data set is: a public schema, the records that follow it, and the splits that a source has."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from cadp_fl.errors import DataError

__all__ = ["MAX_ATTRIBUTES", "MAX_CLASSES", "MAX_SIDE", "Dataset", "Schema", "Source"]

MAX_SIDE = 4096
MAX_CLASSES = 10_000
MAX_ATTRIBUTES = 1000

_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Attribute = Annotated[str, Field(min_length=1, max_length=64)]


class Schema(BaseModel):
    """The public shape of a data set. Nothing in it depends on a record.

    Attributes:
        name: name of the data set.
        shape: (channels, height, width) of an image.
        classes: one name a class; a label is an index into them.
        levels: number of grey levels of a pixel; level v is stored as round(255 v / (levels - 1)).
        attributes: names of what a record has or lacks, public as its label is; none where records have a label alone.

    Raises:
        pydantic.ValidationError: a value is out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1, max_length=80)
    shape: tuple[Literal[1, 3], _Side, _Side]
    classes: tuple[str, ...] = Field(min_length=2, max_length=MAX_CLASSES)
    levels: int = Field(256, ge=2, le=256)
    attributes: tuple[_Attribute, ...] = Field((), max_length=MAX_ATTRIBUTES)

    @property
    def conditions(self) -> int:
        """Length of the condition that a flow is given: multi-hot of the attributes, else one-hot of the classes."""
        return len(self.attributes) or len(self.classes)

    @field_validator("name", "classes", "attributes")
    @classmethod
    def _can_be_printed(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not all(name.isprintable() for name in ([names] if isinstance(names, str) else names)):
            raise ValueError("names are printable text")
        return names

    @field_validator("attributes")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("every attribute has a name of its own")
        return names

    @model_serializer(mode="wrap")
    def _as_before_attributes(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave attributes out where there are none, so that such a schema is written as it always was."""
        tree: dict[str, Any] = handler(self)
        if not self.attributes:
            tree.pop("attributes", None)
        return tree


@dataclass(frozen=True)
class Dataset:
    """Records of one schema.

    Attributes:
        images: uint8, (records, channels, height, width).
        labels: int64, (records,), each below the number of classes.
        patients: int64, (records,): which patient a record is of. None: every record is of another patient.
        attributes: uint8, (records, attributes): 1 where a record has one, else 0. None if the schema has none.
        ids: int64, (records,): which record it is, the same in every export; no two are alike. None: it is not known.
    """

    schema: Schema
    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray | None = None
    attributes: np.ndarray | None = None
    ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        expected = (len(self.labels), *self.schema.shape)
        if self.images.dtype != np.uint8 or self.images.shape != expected:
            raise DataError(
                f"Images are uint8 of shape {expected}. Found {self.images.dtype} of shape {self.images.shape}."
            )
        if self.labels.dtype != np.int64 or self.labels.ndim != 1:
            raise DataError(f"Labels are int64 of shape (records,). Found {self.labels.dtype} {self.labels.shape}.")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.schema.classes)):
            raise DataError(
                f"A label is 0 to {len(self.schema.classes) - 1}. Found {self.labels.min()} to {self.labels.max()}."
            )
        for what, codes in (("Patients", self.patients), ("Ids", self.ids)):
            if codes is not None and (codes.dtype != np.int64 or codes.shape != self.labels.shape):
                raise DataError(f"{what} are int64 of shape {self.labels.shape}. Found {codes.dtype} {codes.shape}.")
        if self.ids is not None and (repeated := len(self.ids) - len(np.unique(self.ids))):
            raise DataError(f"Every record has an id of its own. Found {repeated} again; give each record its own.")
        self._check_attributes()

    def _check_attributes(self) -> None:
        names, values = self.schema.attributes, self.attributes
        if values is None and not names:
            return
        if values is None or not names:
            raise DataError(
                f"Records have the attributes that their schema names. It names {len(names)}, and the records have "
                f"{'none' if values is None else 'some'}."
            )
        if values.dtype != np.uint8 or values.shape != (len(self), len(names)):
            raise DataError(
                f"Attributes are uint8 of shape {(len(self), len(names))}. Found {values.dtype} {values.shape}."
            )
        if values.size and values.max() > 1:
            raise DataError(f"An attribute is 0 or 1. Found up to {values.max()}.")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> "Dataset":
        """Return the records at `indices`, int64 (count,), in that order."""
        patients = None if self.patients is None else self.patients[indices]
        attributes = None if self.attributes is None else self.attributes[indices]
        ids = None if self.ids is None else self.ids[indices]
        return Dataset(
            schema=self.schema,
            images=self.images[indices],
            labels=self.labels[indices],
            patients=patients,
            attributes=attributes,
            ids=ids,
        )

    @property
    def condition(self) -> np.ndarray:
        """What a flow is given of each record: its attributes if it has some, else its label; for `condition_of`."""
        return self.labels if self.attributes is None else self.attributes

    def class_counts(self) -> np.ndarray:
        """Return the number of records of every class, int64 (classes,)."""
        return np.bincount(self.labels, minlength=len(self.schema.classes))


@dataclass(frozen=True)
class Source:
    """What a source holds.

    Attributes:
        train: records to train on.
        test: records that the source holds out itself, of the same schema; None where it leaves that to the reader.
            A patient, and a record, is in one of the two.
    """

    train: Dataset
    test: Dataset | None = None

    def __post_init__(self) -> None:
        if self.test is None:
            return
        if self.test.schema != self.train.schema:
            raise DataError(
                "The splits of a source have one schema. Training and test records differ; correct the source."
            )
        train, test = self.train, self.test
        for who, trained, tested in (("patient", train.patients, test.patients), ("record", train.ids, test.ids)):
            if (trained is None) != (tested is None):
                raise DataError(f"Each {who} is known in both splits or in none. Found ids in one; add or remove them.")
            if trained is not None and tested is not None and (both := len(np.intersect1d(trained, tested))):
                raise DataError(
                    f"A {who} is trained on or tested on, not both. {both} are in both splits; move each to one of "
                    "them."
                )

    @property
    def schema(self) -> Schema:
        """The public shape of both splits."""
        return self.train.schema

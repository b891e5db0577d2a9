"""What a data set is: a public schema, the records that follow it, and the splits that a source has."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from cadp_fl.data.columns import MAX_COLUMNS, Column
from cadp_fl.errors import DataError

__all__ = ["MAX_ATTRIBUTES", "MAX_CLASSES", "MAX_NUMBERS", "MAX_SIDE", "Dataset", "Schema", "Source"]

MAX_SIDE = 4096
MAX_CLASSES = 10_000
MAX_ATTRIBUTES = 1000
MAX_NUMBERS = 4096
"""Of a row as a flow is given it: a flow's size grows with the square."""

_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
_Columns = Annotated[int, Field(ge=1, le=MAX_COLUMNS)]
_Attribute = Annotated[str, Field(min_length=1, max_length=64)]


class Schema(BaseModel):
    """The public shape of a data set. Nothing in it depends on a record.

    Attributes:
        name: name of the data set.
        shape: of one record as it is stored: (channels, height, width) of an image, (columns,) of a row.
        classes: one name a class; a label is an index into them.
        levels: number of grey levels of a pixel; level v is stored as round(255 v / (levels - 1)).
        columns: of a table; none of images.
        label_column: name of the column of classes, where a table is written; `label` if nothing is said.
        attributes: names of what a record has or lacks, public as its label is; none where records have a label alone.

    Raises:
        pydantic.ValidationError: a value is out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1, max_length=80)
    shape: tuple[Literal[1, 3], _Side, _Side] | tuple[_Columns]
    classes: tuple[str, ...] = Field(min_length=2, max_length=MAX_CLASSES)
    levels: int = Field(256, ge=2, le=256)
    attributes: tuple[_Attribute, ...] = Field((), max_length=MAX_ATTRIBUTES)
    columns: tuple[Column, ...] = Field((), max_length=MAX_COLUMNS)
    label_column: str = Field("", max_length=200)

    @property
    def kind(self) -> Literal["image", "row"]:
        """What a record is."""
        return "row" if self.columns else "image"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width).

        Raises:
            DataError: records are no images.
        """
        if len(self.shape) != 3:
            raise DataError(f"An image has channels, a height and a width. A record of '{self.name}' is a row.")
        return self.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """How a record is stored: the bytes of an image, or a row's codes."""
        return np.dtype(np.int32 if self.columns else np.uint8)

    @property
    def conditions(self) -> int:
        """Length of the condition that a flow is given: multi-hot of the attributes, else one-hot of the classes."""
        return len(self.attributes) or len(self.classes)

    @field_validator("name", "classes", "attributes", "label_column")
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

    @model_validator(mode="after")
    def _has_the_shape_of_its_kind(self) -> "Schema":
        if self.columns and self.shape != (len(self.columns),):
            raise ValueError(f"a row has a value for each of its {len(self.columns)} columns")
        if not self.columns and len(self.shape) != 3:
            raise ValueError("an image has channels, a height and a width")
        if len({self.label_column, *(column.name for column in self.columns)}) <= len(self.columns):
            raise ValueError("every column has a name of its own")
        numbers = sum(column.block[1] for column in self.columns)
        if numbers > MAX_NUMBERS:
            raise ValueError(f"a row is at most {MAX_NUMBERS} numbers, one for each category. Found {numbers}")
        return self

    @model_serializer(mode="wrap")
    def _as_before_attributes(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what images lack, so that their schema is written as it always was."""
        tree: dict[str, Any] = handler(self)
        for name in ("attributes", "columns", "label_column"):
            if not getattr(self, name):
                tree.pop(name, None)
        return tree


@dataclass(frozen=True)
class Dataset:
    """Records of one schema.

    Attributes:
        records: as the schema stores them: images, uint8 (records, channels, height, width), or codes of rows, int32
            (records, columns).
        labels: int64, (records,), each below the number of classes.
        patients: int64, (records,): which patient a record is of. None: every record is of another patient.
        attributes: uint8, (records, attributes): 1 where a record has one, else 0. None if the schema has none.
        ids: int64, (records,): which record it is, the same in every export; no two are alike. None: it is not known.
        sites: int64, (records,): of which site each record is, an index into the source's names. None: it is not known.
    """

    schema: Schema
    records: np.ndarray
    labels: np.ndarray
    patients: np.ndarray | None = None
    attributes: np.ndarray | None = None
    ids: np.ndarray | None = None
    sites: np.ndarray | None = None

    def __post_init__(self) -> None:
        expected = (len(self.labels), *self.schema.shape)
        if self.records.dtype != self.schema.dtype or self.records.shape != expected:
            raise DataError(
                f"{self.schema.kind.capitalize()}s are {self.schema.dtype} of shape {expected}. Found "
                f"{self.records.dtype} of shape {self.records.shape}."
            )
        self._check_codes()
        if self.labels.dtype != np.int64 or self.labels.ndim != 1:
            raise DataError(f"Labels are int64 of shape (records,). Found {self.labels.dtype} {self.labels.shape}.")
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.schema.classes)):
            raise DataError(
                f"A label is 0 to {len(self.schema.classes) - 1}. Found {self.labels.min()} to {self.labels.max()}."
            )
        for what, codes in (("Patients", self.patients), ("Ids", self.ids), ("Sites", self.sites)):
            if codes is not None and (codes.dtype != np.int64 or codes.shape != self.labels.shape):
                raise DataError(f"{what} are int64 of shape {self.labels.shape}. Found {codes.dtype} {codes.shape}.")
        if self.ids is not None and (repeated := len(self.ids) - len(np.unique(self.ids))):
            raise DataError(f"Every record has an id of its own. Found {repeated} again; give each record its own.")
        self._check_attributes()

    def _check_codes(self) -> None:
        for column, codes in zip(self.schema.columns, self.records.T, strict=False):
            if codes.size and not (codes.min() >= 0 and codes.max() < column.codes):
                raise DataError(
                    f"A value of column '{column.name}' has a code from 0 to {column.codes - 1}. Found {codes.min()} "
                    f"to {codes.max()}."
                )

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

    @property
    def images(self) -> np.ndarray:
        """The records, by the name that they had when all were images."""
        return self.records

    def select(self, indices: np.ndarray) -> "Dataset":
        """Return the records at `indices`, int64 (count,), in that order."""
        beside = {name: getattr(self, name) for name in ("patients", "attributes", "ids", "sites")}
        return Dataset(
            schema=self.schema,
            records=self.records[indices],
            labels=self.labels[indices],
            **{name: None if values is None else values[indices] for name, values in beside.items()},
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
        site_names: of the sites that records are of; none where that is not known.
        notes: what a person should know of how it was read, such as what was left out; a sentence each.
    """

    train: Dataset
    test: Dataset | None = None
    site_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for records in (self.train, self.test):
            sites = None if records is None else records.sites
            if records is not None and (sites is None) != (not self.site_names):
                raise DataError("Records say of which site they are where the source names sites. Found one alone.")
            if sites is not None and sites.size and not (sites.min() >= 0 and sites.max() < len(self.site_names)):
                raise DataError(f"A site is 0 to {len(self.site_names) - 1}. Found {sites.min()} to {sites.max()}.")
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

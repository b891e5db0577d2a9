"""What a data set is: a public schema, the records that follow it, and the splits that a source has."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cadp_fl.errors import DataError

__all__ = ["MAX_CLASSES", "MAX_SIDE", "Dataset", "Schema", "Source"]

MAX_SIDE = 4096
MAX_CLASSES = 10_000

_Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class Schema(BaseModel):
    """The public shape of a data set. Nothing in it depends on a record.

    Attributes:
        name: name of the data set.
        shape: (channels, height, width) of an image.
        classes: one name a class; a label is an index into them.
        levels: number of grey levels of a pixel; level v is stored as round(255 v / (levels - 1)).

    Raises:
        pydantic.ValidationError: a value is out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1, max_length=80)
    shape: tuple[Literal[1, 3], _Side, _Side]
    classes: tuple[str, ...] = Field(min_length=2, max_length=MAX_CLASSES)
    levels: int = Field(256, ge=2, le=256)


@dataclass(frozen=True)
class Dataset:
    """Records of one schema.

    Attributes:
        images: uint8, (records, channels, height, width).
        labels: int64, (records,), each below the number of classes.
        patients: int64, (records,): which patient a record is of. None: every record is of another patient.
    """

    schema: Schema
    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray | None = None

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
        if self.patients is not None and (self.patients.dtype != np.int64 or self.patients.shape != self.labels.shape):
            raise DataError(
                f"Patients are int64 of shape {self.labels.shape}. Found {self.patients.dtype} {self.patients.shape}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> "Dataset":
        """Return the records at `indices`, int64 (count,), in that order."""
        patients = None if self.patients is None else self.patients[indices]
        return Dataset(self.schema, self.images[indices], self.labels[indices], patients)

    def class_counts(self) -> np.ndarray:
        """Return the number of records of every class, int64 (classes,)."""
        return np.bincount(self.labels, minlength=len(self.schema.classes))


@dataclass(frozen=True)
class Source:
    """What a source holds.

    Attributes:
        train: records to train on.
        test: records that the source holds out itself, of the same schema; None where it leaves that to the reader.
            A patient is in one of the two.
    """

    train: Dataset
    test: Dataset | None = None

    def __post_init__(self) -> None:
        if self.test is None:
            return
        if self.test.schema != self.train.schema:
            raise DataError(
                "The splits of a source have one schema. Training and test records differ; mend the source."
            )
        trained, tested = self.train.patients, self.test.patients
        if (trained is None) != (tested is None):
            raise DataError("Patients are known in both splits or in none. Found them in one; add or remove them.")
        if trained is not None and tested is not None and (both := len(np.intersect1d(trained, tested))):
            raise DataError(
                f"A patient is trained on or tested on, not both. {both} are in both splits; move each to one of them."
            )

    @property
    def schema(self) -> Schema:
        """The public shape of both splits."""
        return self.train.schema

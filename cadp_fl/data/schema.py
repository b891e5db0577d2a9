"""What a data set is: a public schema, and the records that follow it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cadp_fl.errors import DataError

__all__ = ["Dataset", "Schema"]

_Side = Annotated[int, Field(ge=1, le=4096)]


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
    classes: tuple[str, ...] = Field(min_length=2, max_length=10_000)
    levels: int = Field(256, ge=2, le=256)


@dataclass(frozen=True)
class Dataset:
    """Records of one schema.

    Attributes:
        images: uint8, (records, channels, height, width).
        labels: int64, (records,), each below the number of classes.
    """

    schema: Schema
    images: np.ndarray
    labels: np.ndarray

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

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: np.ndarray) -> "Dataset":
        """Return the records at `indices`, int64 (count,), in that order."""
        return Dataset(self.schema, self.images[indices], self.labels[indices])

    def class_counts(self) -> np.ndarray:
        """Return the number of records of every class, int64 (classes,)."""
        return np.bincount(self.labels, minlength=len(self.schema.classes))

"""Codecs: how records of a kind become what a flow or a classifier is given, and come back.

    x = (v + u) / L        v = floor(L x)

with v one of L levels: a grey level, a step of a number, or 0 and 1 of a category that is one-hot. With u uniform in
[0, 1), x has a density on [0, 1]. A codec follows from a public schema alone.

To add a kind of records, write a codec and let `codec_of` choose it; nothing above asks what a record is.
"""

import math
from typing import Protocol

import numpy as np
import torch

from cadp_fl.data.columns import Block, Column
from cadp_fl.data.schema import Schema

__all__ = ["Codec", "Pixels", "RowShape", "Rows", "codec_of", "input_shape"]


class Codec(Protocol):
    """What is known of records of one kind.

    Attributes:
        bits: log2(L), of one number of x; 0 where they differ.
    """

    bits: float

    def to_unit(self, records: torch.Tensor, offset: torch.Tensor | float = 0.5) -> torch.Tensor:
        """Return x, float (batch, *input_shape), of records as they are stored.

        Args:
            offset: u in [0, 1), of the shape of x; 1/2 for the middle of each level.
        """

    def from_unit(self, x: torch.Tensor) -> torch.Tensor:
        """Return the records of any x, as they are stored: what is outside of [0, 1] is clamped, and NaN is 0."""

    def inputs(self, records: np.ndarray) -> torch.Tensor:
        """Return what a classifier is trained on: v / (L - 1) - 1/2, or bytes that `as_input` makes that of."""

    def of_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return x, in the middle of each level, of v / (L - 1) - 1/2."""


class Pixels:
    """Images, uint8 (records, channels, height, width), of 2 to 256 grey levels.

    Args:
        levels: L; level v is stored as round(255 v / (L - 1)).
    """

    def __init__(self, levels: int) -> None:
        self._levels, self.bits = levels, math.log2(levels)

    def to_unit(self, records: torch.Tensor, offset: torch.Tensor | float = 0.5) -> torch.Tensor:
        """Return x = (v + u) / L."""
        values = torch.round(records.float() * ((self._levels - 1) / 255))
        return (values + offset) / self._levels

    def from_unit(self, x: torch.Tensor) -> torch.Tensor:
        """Return the nearest images."""
        values = torch.floor(torch.nan_to_num(x, nan=0.0) * self._levels).clamp(0, self._levels - 1)
        return torch.round(values * (255 / (self._levels - 1))).to(torch.uint8)

    def inputs(self, records: np.ndarray) -> torch.Tensor:
        """Return the bytes as they are: as floats they would take four times the memory."""
        return torch.from_numpy(records)

    def of_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return x of pixels in [-0.5, 0.5]."""
        return (torch.round((inputs + 0.5) * (self._levels - 1)) + 0.5) / self._levels


class RowShape(tuple[int, ...]):
    """The shape of a row's x, (numbers,), which knows what column each number belongs to.

    Attributes:
        blocks: of every column, in order.
    """

    blocks: tuple[Block, ...]

    def __new__(cls, blocks: tuple[Block, ...]) -> "RowShape":
        """Return the shape of rows whose columns are `blocks`."""
        self = super().__new__(cls, (sum(width for _, width in blocks),))
        self.blocks = blocks
        return self

    def __reduce__(self) -> tuple[type["RowShape"], tuple[tuple[Block, ...]]]:
        """Let copies know their columns."""
        return RowShape, (self.blocks,)

    @property
    def parts(self) -> list[tuple[str, slice]]:
        """Kind and place of every column's numbers."""
        ends = np.cumsum([width for _, width in self.blocks]).tolist()
        return [(kind, slice(end - width, end)) for (kind, width), end in zip(self.blocks, ends, strict=True)]


class Rows:
    """Rows of a table, int32 codes (records, columns); see `cadp_fl.data.columns`.

    Args:
        columns: in order.
    """

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self._columns = columns
        self._shape = RowShape(tuple(column.block for column in columns))
        self.bits = 0.0
        levels: list[int] = []
        for column in columns:
            kind, width = column.block
            levels += [2] * width if kind == "category" else [column.steps, 2][:width]
        self._levels = torch.tensor(levels, dtype=torch.float32)

    def to_unit(self, records: torch.Tensor, offset: torch.Tensor | float = 0.5) -> torch.Tensor:
        """Return x = (v + u) / L."""
        return (self._level_values(records) + offset) / self._levels.to(records.device)

    def from_unit(self, x: torch.Tensor) -> torch.Tensor:
        """Return the nearest rows: of a category that is one-hot, the one with the largest number."""
        levels = self._levels.to(x)
        x = torch.nan_to_num(x, nan=0.0)
        values = torch.minimum(torch.floor(x * levels), levels - 1).clamp_min(0)
        codes = []
        for column, (kind, place) in zip(self._columns, self._shape.parts, strict=True):
            own = values[:, place]
            if kind == "category" and own.shape[1] > 1:
                codes.append(x[:, place].argmax(dim=1))
            elif kind == "number-or-missing":
                codes.append(torch.where(own[:, 1] > 0, column.steps, own[:, 0]))
            else:
                codes.append(own[:, 0])
        return torch.stack([each.to(torch.int32) for each in codes], dim=1)

    def inputs(self, records: np.ndarray) -> torch.Tensor:
        """Return v / (L - 1) - 1/2."""
        return self._level_values(torch.from_numpy(records)) / (self._levels - 1) - 0.5

    def of_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return x of v / (L - 1) - 1/2."""
        levels = self._levels.to(inputs)
        return (torch.round((inputs + 0.5) * (levels - 1)) + 0.5) / levels

    def _level_values(self, records: torch.Tensor) -> torch.Tensor:
        """Return v, float32 (batch, numbers). A missing number is in the middle."""
        values = torch.zeros((len(records), *self._shape), dtype=torch.float32, device=records.device)
        for number, (column, (kind, place)) in enumerate(zip(self._columns, self._shape.parts, strict=True)):
            codes = records[:, number]
            own = values[:, place]
            if kind == "category" and own.shape[1] > 1:
                own.scatter_(1, codes.long()[:, None], 1.0)
            elif kind == "number-or-missing":
                own[:, 0] = torch.where(codes == column.steps, (column.steps - 1) / 2, codes.float())
                own[:, 1] = codes == column.steps
            else:
                own[:, 0] = codes
        return values


def codec_of(schema: Schema) -> Codec:
    """Return the codec of records of a schema."""
    return Rows(schema.columns) if schema.columns else Pixels(schema.levels)


def input_shape(schema: Schema) -> tuple[int, ...]:
    """Return the shape of x of one record: (channels, height, width) of an image, a `RowShape` of a row."""
    return RowShape(tuple(column.block for column in schema.columns)) if schema.columns else schema.shape

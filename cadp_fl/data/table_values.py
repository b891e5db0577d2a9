"""Values of a table as they are written, and the codes that a schema gives them.

What a schema does not allow is refused, brought to the nearest bound or missing, as its column says, and counted by
column. No sentence holds a record's value.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cadp_fl.config.scalars import NUMBER
from cadp_fl.data.columns import Column
from cadp_fl.data.images import printable
from cadp_fl.data.table_files import Piece
from cadp_fl.data.table_schema import TableColumn, TableSchema, as_compared
from cadp_fl.errors import DataError

__all__ = ["BadRows", "Features", "labels_of", "names_of"]

NAMED = 3
"""Columns that a sentence names."""


@dataclass
class BadRows:
    """Rows that break a schema.

    Attributes:
        rows: that have been read.
        refused: how many of them.
    """

    rows: int = 0
    refused: int = 0
    _counts: Counter[str] = field(default_factory=Counter)
    _first: dict[str, tuple[str, int]] = field(default_factory=dict)

    def note(self, what: str, refused: np.ndarray, file: str, start: int) -> None:
        """Count values that are refused, bool (rows,).

        Args:
            start: number of the first row.
        """
        if count := int(refused.sum()):
            self._counts[what] += count
            self._first.setdefault(what, (file, start + int(refused.argmax())))

    def count(self, refused: np.ndarray) -> None:
        """Count rows, bool (rows,): which are refused."""
        self.rows += len(refused)
        self.refused += int(refused.sum())

    @property
    def counted(self) -> str:
        """How many there are, and why."""
        reasons = [f"{what}: {count}" for what, count in self._counts.most_common(NAMED)]
        more = "" if len(self._counts) <= NAMED else f"; and {len(self._counts) - NAMED} further columns"
        return f"{self.refused} of {self.rows} rows break the schema ({'; '.join(reasons)}{more})"

    def refusal(self, way_out: str) -> DataError:
        """Return the error that refuses them."""
        what, _ = self._counts.most_common(1)[0]
        file, row = self._first[what]
        return DataError(
            f"A value is one that the schema file allows. {self.counted}; the first with {what} is row {row} of "
            f"'{file}'. Correct it or the schema (bounds, categories, missing: true, outside: clip or missing)"
            f"{way_out}."
        )


class Features:
    """Columns of a table that become codes.

    Args:
        columns: some of the schema's.

    Attributes:
        bad: rows that break the schema.
        changed: values by column that were brought to a bound, or made missing.
    """

    def __init__(self, columns: Sequence[TableColumn], schema: TableSchema) -> None:
        self._columns = columns
        self._values = [_Values(column, schema) for column in columns]
        self.bad = BadRows()
        self.changed: Counter[str] = Counter()

    def read(self, file: str, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Return codes, int32 (rows, columns), and which rows are refused, bool (rows,)."""
        codes = np.empty((piece.rows, len(self._values)), dtype=np.int32)
        any_refused = np.zeros(piece.rows, dtype=bool)
        for number, (column, values) in enumerate(zip(self._columns, self._values, strict=True)):
            codes[:, number], refused, changed = values.read(piece.columns[column.name])
            self.bad.note(f"column '{printable(column.name)}'", refused, file, piece.start)
            self.changed[column.name] += int(changed.sum())
            any_refused |= refused
        return codes, any_refused

    @property
    def notes(self) -> list[str]:
        """What became of values outside the schema, a sentence a column."""
        sentences = []
        for column in self._columns:
            if count := self.changed[column.name]:
                what = "brought to the nearest bound" if column.outside == "clip" else "made missing"
                values = "1 value outside the schema was" if count == 1 else f"{count} values outside the schema were"
                sentences.append(f"Column '{printable(column.name)}': {values} {what}.")
        return sentences


class _Values:
    """The values of one column of features."""

    def __init__(self, column: TableColumn, schema: TableSchema) -> None:
        self._column: Column = column.public
        self._decimal = schema.decimal
        self._names = {as_compared(name): name for name in column.categories}
        own = {as_compared(each) for each in (*schema.missing_values, *column.missing_values)}
        self._missing = own - self._names.keys()

    def read(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return codes, int32, which are refused, and which are changed, bool; each (rows,).

        Each text is looked at once, however often it is there.
        """
        distinct = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(distinct)}
        places = np.fromiter(map(place.__getitem__, texts), dtype=np.int64, count=len(texts))
        codes, refused, changed = self._read([None if text is None else self._known(text) for text in distinct])
        return codes[places], refused[places], changed[places]

    def _known(self, text: str) -> str | None:
        text = as_compared(text)
        return None if text in self._missing else text

    def _read(self, texts: list[str | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        column = self._column
        gone = np.array([text is None for text in texts], dtype=bool)
        odd = np.zeros_like(gone)
        values: np.ndarray
        if column.has_bounds:
            numbers = [None if text is None else _number(text, self._decimal) for text in texts]
            values = np.array([np.nan if number is None else number for number in numbers])
            odd = np.isnan(values) & ~gone
        else:
            values = np.array([None if text is None else self._names.get(text, text) for text in texts], dtype=object)
        codes, outside = column.codes_of(values)
        outside |= odd
        refused = {"refuse": outside, "clip": odd, "missing": np.zeros_like(odd)}[column.outside]
        refused = refused | (gone & (not column.missing))
        return codes, refused, outside & ~refused


def labels_of(texts: Sequence[str | None], schema: TableSchema) -> np.ndarray:
    """Return the label of every value, int64 (rows,); -1 for one that means no class."""
    rule = schema.label
    values: Mapping[str, int] = rule.values
    known: dict[str | None, int] = {None: -1}
    for text in dict.fromkeys(texts):
        if text is None:
            continue
        if rule.above is None:
            known[text] = values.get(as_compared(text), -1)
        else:
            number = _number(as_compared(text), schema.decimal)
            known[text] = -1 if number is None else int(number > rule.above)
    return np.fromiter(map(known.__getitem__, texts), dtype=np.int64, count=len(texts))


def names_of(texts: Sequence[str | None], schema: TableSchema) -> list[str]:
    """Return names as they are compared; an empty one for a missing one."""
    missing = {as_compared(each) for each in schema.missing_values}
    names = ["" if text is None else as_compared(text) for text in texts]
    return ["" if name in missing else name for name in names]


def _number(text: str, decimal: str) -> float | None:
    """Return the number that a text is; None if it is none."""
    text = text if decimal == "." else text.replace(".", " ").replace(decimal, ".")
    return float(text) if re.fullmatch(NUMBER, text) else None

"""Files of tables as pieces of text: CSV by Python's reader, Parquet by polars.

A CSV has a header, values between separators, quoted by " where need be, and is UTF-8. Nothing is guessed, and no size
is believed: a row of another length, or a quote that is not closed, is refused with its number. Parquet is told by its
first bytes, whatever the file is called. Both are read in pieces, so that memory holds one piece as text.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from cadp_fl.data.images import printable
from cadp_fl.errors import ConfigError, DataError

__all__ = ["MAX_ROWS", "Piece", "TableFile", "open_table", "polars_of"]

MAX_ROWS = 20_000_000
MAX_FILE_BYTES = 64 << 30
MAX_LINE = 1 << 20
MAX_FILE_COLUMNS = 20_000
VALUES_OF_A_PIECE = 2_000_000

_KINDS = {
    b"PK\x03\x04": "a zip file, such as a workbook of Excel; save the table as CSV (UTF-8)",
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"\xd0\xcf\x11\xe0": "an old workbook of Excel; save the table as CSV (UTF-8)",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
}


@dataclass(frozen=True)
class Piece:
    """Some rows of a file.

    Attributes:
        start: number of the first of them, as a person counts: the header of a CSV is row 1.
        columns: values by column; None where a Parquet file has none.
    """

    start: int
    columns: dict[str, Sequence[str | None]]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True)
class TableFile:
    """A file that holds a table.

    Attributes:
        name: of the file, to print.
        columns: names, in order.
        is_parquet: or a CSV.
    """

    path: Path
    name: str
    columns: tuple[str, ...]
    is_parquet: bool
    separator: str

    def pieces(self, columns: Sequence[str]) -> Iterator[Piece]:
        """Yield all rows, some columns of them.

        Raises:
            DataError: the file breaks the format, or is too large.
        """
        return self._parquet_pieces(columns) if self.is_parquet else self._csv_pieces(columns)

    def _csv_pieces(self, columns: Sequence[str]) -> Iterator[Piece]:
        places = [(name, self.columns.index(name)) for name in columns]
        size = max(1, VALUES_OF_A_PIECE // len(self.columns))
        with _opened(self.path, self.name) as file:
            rows = _rows(file, self.name, self.separator)
            next(rows)
            start = 2
            while piece := list(islice(rows, size)):
                self._check_count(start + len(piece) - 2)
                yield Piece(start, {name: [row[place] for row in piece] for name, place in places})
                start += len(piece)

    def _parquet_pieces(self, columns: Sequence[str]) -> Iterator[Piece]:
        pl = polars_of(self.name)
        size = max(1, VALUES_OF_A_PIECE // len(columns))
        with _parquet_errors(pl, self.name):
            lazy = pl.scan_parquet(self.path, glob=False)
            rows = int(lazy.select(pl.len()).collect().item())
            self._check_count(rows)
            for start in range(0, rows, size):
                frame = lazy.select(columns).slice(start, size).collect()
                yield Piece(start + 1, {name: _texts(pl, frame[name], self.name) for name in columns})

    def _check_count(self, rows: int) -> None:
        if rows > MAX_ROWS:
            raise DataError(f"A table has at most {MAX_ROWS} rows. '{self.name}' has more; give a part of it.")


def open_table(path: Path, separator: str) -> TableFile:
    """Return a file whose header, or whose metadata, has been read.

    Raises:
        DataError: it is no CSV and no Parquet file, or its columns have no names of their own.
        ConfigError: a Parquet file needs polars, and it is not installed.
    """
    name = printable(path.name)
    try:
        with path.open("rb") as opened:
            head = opened.read(4)
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"A table's file can be read. '{name}' cannot: {error.strerror}; check it.") from error
    if size > MAX_FILE_BYTES:
        raise DataError(f"A table's file has at most {MAX_FILE_BYTES >> 30} GiB. '{name}' has more; give a part of it.")
    if not size:
        raise DataError(f"A table is a CSV with a header, or a Parquet file. '{name}' is empty; get it again.")
    for mark, found in _KINDS.items():
        if head.startswith(mark):
            raise DataError(f"A table is a CSV in UTF-8 or a Parquet file. '{name}' is {found}.")
    is_parquet = head == b"PAR1"
    columns = _parquet_columns(path, name) if is_parquet else _csv_columns(path, name, separator)
    _check_names(columns, name)
    return TableFile(path, name, columns, is_parquet, separator)


def polars_of(name: str) -> ModuleType:
    """Return polars.

    Args:
        name: of the file that needs it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import polars  # imported here: an extra, and a tenth of a second
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Parquet is read and written by polars. '{name}' is Parquet, and polars is not installed; run "
            "pip install 'cadp-fl[tables]', or use CSV."
        ) from error
    return polars


def _check_names(columns: tuple[str, ...], name: str) -> None:
    if len(columns) > MAX_FILE_COLUMNS:
        raise DataError(f"A table has at most {MAX_FILE_COLUMNS} columns. '{name}' has {len(columns)}; leave some out.")
    if "" in columns:
        raise DataError(
            f"Every column has a name. Column {columns.index('') + 1} of '{name}' has none; name it in the header "
            "(pandas writes its index so: index=False leaves it out)."
        )
    if len(set(columns)) < len(columns):
        again = Counter(columns).most_common(1)[0][0]
        raise DataError(f"Every column has a name of its own. '{name}' has '{printable(again):.80}' twice; rename one.")


@contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[str]]:
    """Open a CSV; what its bytes and quotes break is said by row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise DataError(f"A table's file can be read. '{name}' cannot: {error.strerror}; check it.") from error


def _csv_columns(path: Path, name: str, separator: str) -> tuple[str, ...]:
    with _opened(path, name) as file:
        return tuple(next(_rows(file, name, separator)))


def _lines(file: IO[str], name: str) -> Iterator[str]:
    """Yield the lines of a CSV, each of bounded length."""
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(MAX_LINE + 1)
        except UnicodeDecodeError as error:
            byte = error.object[error.start : error.start + 1].hex()
            raise DataError(
                f"A CSV is text in UTF-8. '{name}' has the byte 0x{byte} in or soon after line {number}, which is none "
                "there; save it as UTF-8."
            ) from error
        if not line:
            return
        if len(line) > MAX_LINE:
            raise DataError(
                f"A line of a CSV has at most {MAX_LINE} letters. Line {number} of '{name}' has more; check that lines "
                "end, and that it is a CSV."
            )
        if "\0" in line:
            raise DataError(f"A CSV is text. Line {number} of '{name}' has a NUL byte; export it again, as UTF-8.")
        yield line


def _rows(file: IO[str], name: str, separator: str) -> Iterator[list[str]]:
    """Yield the header of a CSV, without spaces around names, and then every row; all have its length."""
    reader = csv.reader(_lines(file, name), delimiter=separator, strict=True)
    columns, number, blank = 0, 0, 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"A value of a CSV with quotes or separators in it stands in quotes, and quotes in it twice. Row "
                f"{number + 1} of '{name}' breaks that ({error}); export it again."
            ) from error
        if row is None:
            if not columns:
                raise DataError(f"A CSV begins with the names of its columns. '{name}' has blank lines; get it again.")
            return
        number += 1
        if not row:
            blank = blank or number
        elif blank or (columns and len(row) != columns):
            found = blank or number
            raise DataError(
                f"Every row of a CSV has a value for each of its columns. The header of '{name}' names "
                f"{columns}, and row {found} has {0 if blank else len(row)}; correct it, and check data.columns' "
                "separator."
            )
        elif columns:
            yield row
        else:
            columns = len(row)
            yield [column.strip() for column in row]


@contextmanager
def _parquet_errors(pl: ModuleType, name: str) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"A Parquet file is whole. '{name}' is cut short, damaged or of a kind that polars does not read; get the "
            "file again."
        ) from error


def _parquet_columns(path: Path, name: str) -> tuple[str, ...]:
    pl = polars_of(name)
    with _parquet_errors(pl, name):
        return tuple(pl.scan_parquet(path, glob=False).collect_schema().names())


def _texts(pl: ModuleType, series: Any, name: str) -> list[str | None]:
    """Return the values of a Parquet file's column as a CSV would write them."""
    if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
        raise DataError(
            f"A value of a table is a number or a text. Column '{printable(series.name):.80}' of '{name}' holds "
            f"{series.dtype}; write one value each, or leave the column out."
        )
    if series.dtype.is_float():
        series = series.fill_nan(None)
    texts = series.cast(pl.String)
    if (longest := texts.str.len_bytes().max() or 0) > csv.field_size_limit():
        raise DataError(
            f"A value of a table has at most {csv.field_size_limit()} letters. One of column "
            f"'{printable(series.name):.80}' of '{name}' has {longest}; leave the column out."
        )
    values: list[str | None] = texts.to_list()
    return values

"""Tables: rows of a CSV or Parquet file, as codes that a public schema file gives them.

A file's rows become int32 codes (rows, columns), see `cadp_fl.data.columns`. Values are compared as text, so that a CSV
file and a Parquet file of the same table are the same records. Nothing in an error is a value of a record.

Files are read by polars: https://docs.pola.rs.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.data.columns import Column
from cadp_fl.data.identities import codes_of, sites_of
from cadp_fl.data.schema import Dataset, Source
from cadp_fl.data.table_schema import LabelColumn, TableSchema, as_text, load_table_schema
from cadp_fl.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars

__all__ = ["PARQUET", "read_table"]

MAX_FILE_BYTES = 8 << 30
MAX_ROWS = 20_000_000
NAMED = 5
"""Rows that a sentence names."""

PARQUET = (".parquet", ".pq")
_SPLITS = {"train": False, "training": False, "validation": False, "val": False, "valid": False, "test": True}
"""Names of splits, and whether each is tested on."""


def read_table(config: DataConfig) -> Source:
    """Return the rows of the file `data.path`, or of the files of a folder, by the schema file `data.columns`.

    Raises:
        ConfigError: there is no schema file, or it breaks a rule.
        DataError: a file cannot be read, or does not follow its schema.
    """
    if config.columns is None:
        raise ConfigError(
            "A table is read by a schema file that says what everybody may know of its columns. Found none; name it "
            "with data.columns, and let cadp-fl data schema draft it from a public sample."
        )
    assert config.path is not None, "check_source asks for it"
    schema = load_table_schema(config.columns)
    frames = [_Frame(path, _frame_of(path, schema), schema) for path in _files(config.path, schema)]
    sites = [_site_in(frame.path, schema) for frame in frames]
    return _source(schema, frames, sites, config)


def _files(path: Path, schema: TableSchema) -> list[Path]:
    """Return the files of a table, in order."""
    if path.is_file():
        return [path]
    if schema.files is None:
        raise DataError(
            f"A table is a file. '{path}' is a folder; name a file in it with data.path, or say in the schema file how "
            "its files are called, files: '{site}.csv' for example."
        )
    found = sorted(each for each in path.iterdir() if _site_in(each, schema) and each.is_file())
    if not found:
        raise DataError(f"The schema file says that files are called '{schema.files}'. '{path}' has none; check both.")
    return found


def _site_in(path: Path, schema: TableSchema) -> str | None:
    """Return the name of the site in a file's name; None where it has none."""
    if schema.files is None:
        return None
    before, after = (re.escape(part) for part in schema.files.split("{site}"))
    matched = re.fullmatch(f"{before}(.+){after}", path.name)
    return matched.group(1) if matched else None


def _frame_of(path: Path, schema: TableSchema) -> "polars.DataFrame":
    """Return all that a file holds; a CSV file's values are text."""
    try:
        import polars
    except ImportError as error:
        raise DataError("Tables are read by polars. It is not installed; run pip install 'cadp-fl[tables]'.") from error
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise DataError(f"A table's file has at most {MAX_FILE_BYTES >> 30} GiB. '{path}' has {size} bytes; cut it.")
    try:
        if path.suffix.lower() in PARQUET:
            return polars.read_parquet(path, memory_map=False, glob=False)
        return polars.read_csv(
            path, separator=schema.separator, infer_schema=False, glob=False, truncate_ragged_lines=False
        )
    except (polars.exceptions.PolarsError, OSError, UnicodeDecodeError, ValueError) as error:
        kind = "Parquet" if path.suffix.lower() in PARQUET else f"CSV (UTF-8, separated by '{schema.separator}')"
        raise DataError(f"A table is a {kind} file. '{path}' is not: {_reason(error)}; get the file again.") from error


def _reason(error: BaseException) -> str:
    """Return what a reader found, without anything that a cell holds."""
    text = str(error)
    for pattern, said in (
        (r"found more fields", "a row has more values than the header"),
        (r"no data|empty CSV", "it is empty"),
        (r"utf-?8", "it is no UTF-8 text"),
        (r"duplicate", "two columns have one name"),
        (r"[Pp]arquet|magic|footer|thrift", "it is damaged, or of another kind"),
    ):
        if re.search(pattern, text):
            return said
    return "it cannot be read"


class _Frame:
    """One file's rows.

    Args:
        path: of the file.
        frame: its columns.
        schema: of the table.

    Raises:
        DataError: the file lacks a column, or has one that the schema does not name.
    """

    def __init__(self, path: Path, frame: "polars.DataFrame", schema: TableSchema) -> None:
        self.path, self._frame, self._schema = path, frame, schema
        wanted = [column.name for column in schema.columns] + [schema.label.column, *schema.roles.given.values()]
        if lacking := [name for name in wanted if name not in frame.columns]:
            raise DataError(
                f"A table has the columns that its schema file names. '{path}' lacks {_listed(lacking)} among "
                f"{_listed(frame.columns)}; correct the schema file, or the separator in it."
            )
        unknown = [name for name in frame.columns if name not in {*wanted, *schema.ignore}]
        if unknown and schema.ignore != "rest":
            raise DataError(
                f"A schema file names every column. '{path}' has {_listed(unknown)} besides; add them to its columns, "
                "or to its ignore (ignore: rest leaves out all that it does not name)."
            )
        if not 0 < len(frame) <= MAX_ROWS:
            raise DataError(f"A table has 1 to {MAX_ROWS} rows. '{path}' has {len(frame)}; get the file again.")
        self._missing = {as_text(text) for text in schema.missing_values}

    def __len__(self) -> int:
        return len(self._frame)

    def texts(self, name: str) -> np.ndarray:
        """Return a column's values as text, None where they are missing, dtype object (rows,)."""
        values = self._frame.get_column(name).to_list()
        written = (None if value is None else as_text(value) for value in values)
        return np.array([None if text is None or text in self._missing else text for text in written], dtype=object)

    def codes(self, column: Column) -> tuple[np.ndarray, np.ndarray]:
        """Return a column's codes, int32 (rows,), and which are outside of the schema, bool (rows,)."""
        texts = self.texts(column.name)
        if not column.has_bounds:
            return column.codes_of(texts)
        numbers = np.array([_number(text) for text in texts], dtype=np.float64)
        is_text = np.isposinf(numbers)
        codes, outside = column.codes_of(np.where(is_text, np.nan, numbers))
        return codes, outside | is_text

    def labels(self, label: LabelColumn) -> tuple[np.ndarray, np.ndarray]:
        """Return labels, int64 (rows,), and which values mean no class, bool (rows,)."""
        texts = self.texts(label.column)
        if label.above is not None:
            numbers = np.array([_number(text) for text in texts], dtype=np.float64)
            bad = ~np.isfinite(numbers)
            return (np.where(bad, 0, numbers) > label.above).astype(np.int64), bad
        of_value = {value: number for number, values in enumerate(label.values.values()) for value in values}
        found = np.array([of_value.get(text, -1) for text in texts], dtype=np.int64)
        return np.maximum(found, 0), found < 0


def _number(text: str | None) -> float:
    """Return a number; NaN of None, and infinity of what is none."""
    if text is None:
        return float("nan")
    try:
        number = float(text)
    except ValueError:
        return float("inf")
    return number if np.isfinite(number) else float("inf")


def _source(schema: TableSchema, frames: list[_Frame], sites: list[str | None], config: DataConfig) -> Source:
    notes: list[str] = []
    bad = [np.zeros(len(frame), dtype=bool) for frame in frames]
    found: list[str] = []
    columns = []
    for column in schema.columns:
        codes, outside = zip(*(frame.codes(column) for frame in frames), strict=True)
        columns.append(np.concatenate(codes))
        if count := int(sum(each.sum() for each in outside)):
            if column.outside == "refuse":
                found.append(_sentence(f"column '{column.name}'", count, frames, outside))
                bad = [before | now for before, now in zip(bad, outside, strict=True)]
            else:
                became = "brought to their bounds" if column.outside == "clip" else "made missing"
                notes.append(f"{count} values of column '{column.name}' were outside of the schema and {became}.")
    labels, nameless = zip(*(frame.labels(schema.label) for frame in frames), strict=True)
    if count := int(sum(each.sum() for each in nameless)):
        found.append(_sentence(f"the label '{schema.label.column}'", count, frames, nameless))
        bad = [before | now for before, now in zip(bad, nameless, strict=True)]
    if found and config.on_bad_record == "refuse":
        raise DataError(
            f"Every value of a table is one that its schema file allows. {'; '.join(found)}. Correct the rows or the "
            "schema file (missing: true, outside: clip or missing), or leave such rows out (data.on_bad_record: skip)."
        )
    kept = np.flatnonzero(~np.concatenate(bad))
    if skipped := sum(len(frame) for frame in frames) - len(kept):
        notes.append(f"{skipped} rows were left out: {'; '.join(found)}.")
    if not len(kept):
        raise DataError("A table has rows that follow its schema file. None does; correct the schema file.")
    of_records = schema.schema_of_records()
    names, of_site = _sites(schema, frames, sites)
    whole = Dataset(
        of_records,
        np.stack(columns, axis=1),
        np.concatenate(labels),
        _identities(schema.roles.patient, "patient", frames),
        None,
        _identities(schema.roles.id, "record", frames),
        of_site,
    )
    return _split(schema, frames, whole, kept, names, tuple(notes))


def _split(
    schema: TableSchema,
    frames: list[_Frame],
    whole: Dataset,
    kept: np.ndarray,
    names: tuple[str, ...],
    notes: tuple[str, ...],
) -> Source:
    if schema.roles.split is None:
        return Source(whole.select(kept), None, names, notes)
    texts = _column(schema.roles.split, frames)
    known = [_SPLITS.get(str(text).lower()) for text in texts]
    if None in known:
        raise DataError(
            f"A split is train, validation or test. {known.count(None)} rows have another in column "
            f"'{schema.roles.split}'; correct them."
        )
    tested = np.array(known, dtype=bool)[kept]
    if not tested.any() or tested.all():
        return Source(whole.select(kept), None, names, notes)
    return Source(whole.select(kept[~tested]), whole.select(kept[tested]), names, notes)


def _column(name: str, frames: list[_Frame]) -> np.ndarray:
    return np.concatenate([frame.texts(name) for frame in frames])


def _identities(name: str | None, of: str, frames: list[_Frame]) -> np.ndarray | None:
    """Return the code of every row's patient or id, int64 (rows,); None where no column says it."""
    if name is None:
        return None
    texts = _column(name, frames)
    if lacking := int(sum(text is None for text in texts)):
        raise DataError(f"Every row has a {of}. Column '{name}' lacks it in {lacking} rows; fill it in.")
    return codes_of([str(text) for text in texts], of)


def _sites(
    schema: TableSchema, frames: list[_Frame], sites: list[str | None]
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return the names of sites, and of which every row is: by a column, or by its file's name."""
    if schema.roles.site is not None:
        texts = _column(schema.roles.site, frames)
        if lacking := int(sum(text is None for text in texts)):
            raise DataError(
                f"Every row has a site. Column '{schema.roles.site}' lacks it in {lacking} rows; fill it in."
            )
        return sites_of([str(text) for text in texts])
    if len(frames) < 2 or None in sites:
        return (), None
    return sites_of([str(site) for site, frame in zip(sites, frames, strict=True) for _ in range(len(frame))])


def _sentence(what: str, count: int, frames: list[_Frame], flags: Iterable[np.ndarray]) -> str:
    """Return how many values are outside of a schema, and in which rows of which file the first are."""
    rows = [
        f"{row + 1}{f' of {frame.path.name}' if len(frames) > 1 else ''}"
        for frame, flag in zip(frames, flags, strict=True)
        for row in np.flatnonzero(flag)[:NAMED]
    ]
    more = ", ..." if count > NAMED else ""
    return f"{count} of {what} in {'row' if count == 1 else 'rows'} {', '.join(rows[:NAMED])}{more}"


def _listed(names: list[str]) -> str:
    return f"{', '.join(repr(name) for name in names[:NAMED])}{', ...' if len(names) > NAMED else ''}"

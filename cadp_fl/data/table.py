"""Rows of a table: CSV or Parquet, by a public schema file.

Every value becomes a code of its column; see `cadp_fl.data.columns`. What a schema does not allow is refused, brought
to the nearest bound or missing, as its column says, and counted by column. No error and no note holds a record's value.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.config.scalars import NUMBER
from cadp_fl.data.columns import Column
from cadp_fl.data.identities import codes_of, sites_of
from cadp_fl.data.images import printable
from cadp_fl.data.schema import Dataset, Source
from cadp_fl.data.table_files import Piece, open_table
from cadp_fl.data.table_schema import LabelRule, TableColumn, TableSchema, as_compared, load_table_schema
from cadp_fl.errors import ConfigError, DataError

__all__ = ["check_columns", "read_table"]

_SPLITS = {"train": 0, "training": 0, "val": 0, "valid": 0, "validation": 0, "test": 1, "testing": 1}
NAMED = 3
"""Files, rows or columns that a sentence names."""


def read_table(config: DataConfig) -> Source:
    """Return the rows of the file, or of the files of the folder, `data.path`, by the schema file `data.columns`.

    Raises:
        ConfigError: there is no schema file, or it breaks a rule.
        DataError: a file cannot be read, or its rows break the schema.
    """
    schema = _schema_of(config)
    assert config.path is not None, "check_source asks for it"
    files, left_out = _files(config.path, schema)
    tables = [(open_table(path, schema.separator), site) for path, site in files]
    for table, _ in tables:
        check_columns(table.name, table.columns, schema)
    rows = _Rows(schema, skip=config.on_bad_record == "skip")
    for table, site in tables:
        for piece in table.pieces(schema.read):
            rows.add(table.name, site, piece)
    return rows.source(left_out)


def _schema_of(config: DataConfig) -> TableSchema:
    """Return what the schema file of a config says.

    Raises:
        ConfigError: none is given, or it breaks a rule.
    """
    if config.columns is None:
        raise ConfigError(
            "A table has a public schema file, which says what its columns are. data.columns is missing; name the file "
            "(cadp-fl data schema drafts one from a public sample)."
        )
    return load_table_schema(config.columns)


@dataclass
class _Found:
    """What became of some values of a column.

    Attributes:
        codes: int32, (rows,).
        refused: bool, (rows,).
        changed: how many were brought to a bound, or made missing.
    """

    codes: np.ndarray
    refused: np.ndarray
    changed: int = 0


class _Values:
    """The values of one column of features."""

    def __init__(self, column: TableColumn, schema: TableSchema) -> None:
        self._column, self._public, self._decimal = column, column.public, schema.decimal
        self._missing = {as_compared(each) for each in (*schema.missing_values, *column.missing_values)}
        self._names = {as_compared(name): name for name in column.categories}

    def read(self, texts: Sequence[str | None]) -> _Found:
        """Return the codes of values as they are written; each text that is found is looked at once."""
        distinct = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(distinct)}
        places = np.fromiter(map(place.__getitem__, texts), dtype=np.int64, count=len(texts))
        found = self._read([None if text is None else self._known(as_compared(text)) for text in distinct])
        changed = int((found[2])[places].sum())
        return _Found(found[0][places], found[1][places], changed)

    def _known(self, text: str) -> str | None:
        return None if text in self._missing else text

    def _read(self, texts: list[str | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return codes, which are refused, and which are changed, each (texts,)."""
        column: Column = self._public
        gone = np.array([text is None for text in texts], dtype=bool)
        values: np.ndarray
        if column.has_bounds:
            numbers = [None if text is None else _number(text, self._decimal) for text in texts]
            values = np.array([np.nan if number is None else number for number in numbers])
            odd = np.array([number is None for number in numbers], dtype=bool) & ~gone
        else:
            values = np.array([None if text is None else self._names.get(text, text) for text in texts], dtype=object)
            odd = np.zeros_like(gone)
        codes, outside = column.codes_of(values)
        outside |= odd
        refused = outside if column.outside == "refuse" else odd if column.outside == "clip" else np.zeros_like(odd)
        refused = refused | (gone & (not column.missing))
        return codes, refused, outside & ~refused


def _number(text: str, decimal: str) -> float | None:
    """Return the number that a text is; None if it is none."""
    text = text if decimal == "." else text.replace(".", " ").replace(decimal, ".")
    return float(text) if re.fullmatch(NUMBER, text) else None


class _Rows:
    """Rows that have been read, and what was wrong with others."""

    def __init__(self, schema: TableSchema, *, skip: bool) -> None:
        self._schema, self._skip = schema, skip
        self._values = [_Values(column, schema) for column in schema.columns]
        self._missing = {as_compared(each) for each in schema.missing_values}
        self._codes: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._names: dict[str, list[str]] = {role: [] for role in ("patient", "id", "site", "split")}
        self._changed: Counter[str] = Counter()
        self._bad = _BadRows()
        self._rows = 0

    def add(self, file: str, site: str | None, piece: Piece) -> None:
        """Read a piece."""
        schema = self._schema
        refused = np.zeros(piece.rows, dtype=bool)
        codes = np.empty((piece.rows, len(schema.columns)), dtype=np.int32)
        for number, (column, values) in enumerate(zip(schema.columns, self._values, strict=True)):
            found = values.read(piece.columns[column.name])
            codes[:, number] = found.codes
            self._bad.note(f"column '{printable(column.name)}'", found.refused, file, piece.start)
            refused |= found.refused
            self._changed[column.name] += found.changed
        labels = self._labels_of(piece.columns[schema.label.column])
        self._bad.note(f"label '{printable(schema.label.column)}'", labels < 0, file, piece.start)
        refused |= labels < 0
        names = {role: self._texts(piece.columns[column]) for role, column in schema.roles.given.items()}
        if site is not None:
            names["site"] = [site] * piece.rows
        for role, each in names.items():
            lacking = np.array([not name or (role == "split" and name.lower() not in _SPLITS) for name in each], bool)
            self._bad.note(f"{role} '{printable(getattr(schema.roles, role) or role)}'", lacking, file, piece.start)
            refused |= lacking
        kept = np.flatnonzero(~refused)
        self._bad.rows += piece.rows - len(kept)
        self._rows += piece.rows
        self._codes.append(codes[kept])
        self._labels.append(labels[kept])
        for role, each in names.items():
            self._names[role] += [each[row] for row in kept.tolist()]

    def _texts(self, texts: Sequence[str | None]) -> list[str]:
        """Return names as they are compared; an empty one for a missing one."""
        names = ["" if text is None else as_compared(text) for text in texts]
        return ["" if name in self._missing else name for name in names]

    def _labels_of(self, texts: Sequence[str | None]) -> np.ndarray:
        """Return the label of every value, int64 (rows,); -1 for none."""
        rule: LabelRule = self._schema.label
        values, known = rule.values, {}
        for text in dict.fromkeys(texts):
            if rule.above is None:
                known[text] = -1 if text is None else values.get(as_compared(text), -1)
            else:
                number = None if text is None else _number(as_compared(text), self._schema.decimal)
                known[text] = -1 if number is None else int(number > rule.above)
        return np.fromiter(map(known.__getitem__, texts), dtype=np.int64, count=len(texts))

    def source(self, notes: Sequence[str]) -> Source:
        """Return the rows, and what was noted."""
        if self._bad.rows and not self._skip:
            raise DataError(self._bad.refusal(self._rows))
        labels = np.concatenate([np.empty(0, np.int64), *self._labels])
        if not len(labels):
            raise DataError(
                "A table has rows. Found a header and none after it, or none that follows the schema; check the file."
                if not self._bad.rows
                else f"A table has rows that follow the schema. {self._bad.counted(self._rows)}; correct the schema."
            )
        beside = {role: self._names[role] for role in self._names if self._names[role]}
        site_names, sites = sites_of(beside["site"]) if "site" in beside else ((), None)
        dataset = Dataset(
            self._schema.public,
            np.concatenate(self._codes),
            labels,
            patients=codes_of(beside["patient"], "patient") if "patient" in beside else None,
            ids=codes_of(beside["id"], "record") if "id" in beside else None,
            sites=sites,
        )
        tested = np.array([_SPLITS[name.lower()] for name in beside.get("split", [])], dtype=bool)
        test = dataset.select(np.flatnonzero(tested)) if tested.any() else None
        if test is not None and tested.all():
            raise DataError(
                f"A table has rows to train on. All {len(tested)} are of the test split; correct the column of splits."
            )
        train = dataset if test is None else dataset.select(np.flatnonzero(~tested))
        return Source(train, test, site_names, (*notes, *self._notes()))

    def _notes(self) -> list[str]:
        sentences = []
        for column in self._schema.columns:
            if count := self._changed[column.name]:
                what = "brought to the nearest bound" if column.outside == "clip" else "made missing"
                sentences.append(f"Column '{printable(column.name)}': {count} values outside the schema were {what}.")
        if self._bad.rows:
            sentences.append(f"Left out: {self._bad.counted(self._rows)}.")
        return sentences


@dataclass
class _BadRows:
    """Rows that break the schema.

    Attributes:
        rows: how many.
    """

    rows: int = 0
    _counts: Counter[str] = field(default_factory=Counter)
    _first: dict[str, tuple[str, int]] = field(default_factory=dict)

    def note(self, what: str, refused: np.ndarray, file: str, start: int) -> None:
        """Count values that are refused, bool (rows,)."""
        if count := int(refused.sum()):
            self._counts[what] += count
            self._first.setdefault(what, (file, start + int(refused.argmax())))

    def counted(self, rows: int) -> str:
        """Return how many there are, and why."""
        reasons = [f"{what}: {count}" for what, count in self._counts.most_common(NAMED)]
        more = "" if len(self._counts) <= NAMED else f"; and {len(self._counts) - NAMED} further columns"
        return f"{self.rows} of {rows} rows break the schema ({'; '.join(reasons)}{more})"

    def refusal(self, rows: int) -> str:
        """Return the sentence that refuses them."""
        what, _ = self._counts.most_common(1)[0]
        file, row = self._first[what]
        return (
            f"A value is one that the schema file allows. {self.counted(rows)}; the first with {what} is row {row} of "
            f"'{file}'. Correct it or the schema (bounds, categories, missing: true, outside: clip or missing), or "
            "leave such rows out with data.on_bad_record: skip."
        )


def _files(path: Path, schema: TableSchema) -> tuple[list[tuple[Path, str | None]], list[str]]:
    """Return every file and the name of its site, if its name says it; and what was left out, in a sentence.

    Raises:
        ConfigError: a folder's files are not named.
        DataError: a folder has none.
    """
    pattern = schema.files
    if not path.is_dir():
        return [(path, None if pattern is None else _site(path.name, pattern))], []
    if pattern is None:
        raise ConfigError(
            f"A schema file says which files of a folder are its tables. '{printable(path)}' is a folder; add files, "
            "such as files: '*.csv', or files: 'extract-{site}.csv' where a name holds the site's, or name one file."
        )
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file() and not entry.is_symlink())
    fitting = [name for name in names if _fits(name, pattern)]
    if not fitting:
        raise DataError(
            f"A folder has files named as the schema file says, {pattern}. '{printable(path)}' has none; correct files."
        )
    others = [printable(name) for name in names if not _fits(name, pattern)]
    listed = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    notes = [f"Left out of '{printable(path)}': {len(others)} not named {pattern} ({listed})."] if others else []
    return [(path / name, _site(name, pattern)) for name in fitting], notes


def _fits(name: str, pattern: str) -> re.Match[str] | None:
    """Return how a file's name fits what a schema file says, if it does."""
    return re.fullmatch(re.escape(pattern).replace(r"\{site\}", "(?P<site>.+)").replace(r"\*", ".*"), name)


def _site(name: str, pattern: str) -> str | None:
    """Return what stands in a file's name for the site; None if nothing does."""
    match = _fits(name, pattern)
    return match["site"] if match and "{site}" in pattern else None


def check_columns(file: str, columns: Sequence[str], schema: TableSchema) -> None:
    """Check that a file has the columns of its schema, and no others.

    Raises:
        DataError: it lacks one, or has one that the schema does not name.
    """
    if lacking := [name for name in schema.read if name not in columns]:
        if len(columns) == 1:
            way_out = "the file has one column, so correct the separator in the schema file"
        elif near := get_close_matches(lacking[0], columns, n=1):
            way_out = (
                f"the nearest is '{printable(near[0]):.80}', so correct the name in the schema file, or the header"
            )
        else:
            way_out = "correct the name in the schema file, or the header"
        raise DataError(
            f"A table has every column that its schema file names. '{file}' has no '{printable(lacking[0]):.80}'"
            f"{f' (and lacks {len(lacking) - 1} more)' if len(lacking) > 1 else ''}; {way_out}."
        )
    ignore = schema.ignore
    unnamed = [] if ignore == "rest" else [name for name in columns if name not in {*schema.read, *ignore}]
    if unnamed:
        listed = ", ".join(f"'{printable(name):.80}'" for name in unnamed[:NAMED])
        raise DataError(
            f"A schema file says what every column is. '{file}' has {listed}"
            f"{f' and {len(unnamed) - NAMED} others' if len(unnamed) > NAMED else ''}; describe them under columns, or "
            "list them under ignore (ignore: rest for all)."
        )

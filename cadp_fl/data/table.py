"""Rows of a table: CSV or Parquet, by a public schema file.

Every value becomes a code of its column; see `cadp_fl.data.columns`. No error and no note holds a record's value.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.data.identities import codes_of, sites_of
from cadp_fl.data.images import printable
from cadp_fl.data.schema import Dataset, Source
from cadp_fl.data.table_files import Piece, open_table
from cadp_fl.data.table_schema import TableSchema, load_table_schema
from cadp_fl.data.table_values import Features, labels_of, names_of
from cadp_fl.errors import ConfigError, DataError

__all__ = ["read_features", "read_rows", "read_table"]

_SPLITS = {"train": 0, "training": 0, "val": 0, "valid": 0, "validation": 0, "test": 1, "testing": 1}
_IDENTITIES = {"patient": "patient", "id": "record"}
NAMED = 3
"""Files or columns that a sentence names."""


def read_table(config: DataConfig) -> Source:
    """Return the rows of the file, or of the files of the folder, `data.path`, by the schema file `data.columns`.

    Raises:
        ConfigError: there is no schema file, or it breaks a rule.
        DataError: a file cannot be read, or its rows break the schema.
    """
    if config.columns is None:
        raise ConfigError(
            "A table has a public schema file, which says what its columns are. data.columns is missing; name the file "
            "(cadp-fl data schema drafts one from a public sample)."
        )
    assert config.path is not None, "check_source asks for it"
    return read_rows(config.path, load_table_schema(config.columns), skip=config.on_bad_record == "skip")


def read_rows(path: Path, schema: TableSchema, *, skip: bool = False) -> Source:
    """Return the rows of a file, or of the files of a folder.

    Args:
        skip: whether a row that breaks the schema is left out and counted, or refused.

    Raises:
        ConfigError: a folder's files are not named.
        DataError: a file cannot be read, or its rows break the schema.
    """
    files, left_out = _files(path, schema)
    tables = [(open_table(path, schema.separator), site) for path, site in files]
    for table, _ in tables:
        _check_columns(table.name, table.columns, schema)
    rows = _Rows(schema)
    for table, site in tables:
        for piece in table.pieces(schema.read):
            rows.add(table.name, site, piece)
    bad = rows.features.bad
    if bad.refused and not skip:
        raise bad.refusal(", or leave such rows out with data.on_bad_record: skip")
    return rows.source(left_out)


def read_features(path: Path, schema: TableSchema) -> Iterator[np.ndarray]:
    """Yield the codes of a file's rows, int32 (rows, columns); of columns that are no features nothing is read.

    Raises:
        DataError: the file cannot be read, lacks a feature, or has a row that breaks the schema.
    """
    table = open_table(path, schema.separator)
    names = [column.name for column in schema.features]
    _check_named(table.name, table.columns, names)
    features = Features(schema.features, schema)
    for piece in table.pieces(names):
        codes, refused = features.read(table.name, piece)
        features.bad.count(refused)
        if refused.any():
            raise features.bad.refusal("")
        yield codes


class _Rows:
    """Rows that have been read."""

    def __init__(self, schema: TableSchema) -> None:
        self._schema, self.features = schema, Features((*schema.features, *schema.conditions), schema)
        self._codes: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._identities: dict[str, list[np.ndarray]] = {}
        self._sites: list[str] = []
        self._tested: list[np.ndarray] = []

    def add(self, file: str, site: str | None, piece: Piece) -> None:
        """Read a piece.

        Args:
            site: that all of the file is of, if its name says so.
        """
        schema, bad = self._schema, self.features.bad
        codes, refused = self.features.read(file, piece)
        labels = labels_of(piece.columns[schema.label.column], schema)
        bad.note(f"label '{printable(schema.label.column)}'", labels < 0, file, piece.start)
        refused |= labels < 0
        names = {role: names_of(piece.columns[column], schema) for role, column in schema.roles.given.items()}
        for role, each in names.items():
            lacking = np.array([not name or (role == "split" and name.lower() not in _SPLITS) for name in each], bool)
            bad.note(f"{role} '{printable(schema.roles.given[role])}'", lacking, file, piece.start)
            refused |= lacking
        bad.count(refused)
        kept = np.flatnonzero(~refused)
        self._codes.append(codes[kept])
        self._labels.append(labels[kept])
        for role, each in names.items():
            own = [each[row] for row in kept.tolist()]
            if role in _IDENTITIES:
                self._identities.setdefault(role, []).append(codes_of(own, _IDENTITIES[role]))
            elif role == "site":
                self._sites += own
            else:
                self._tested.append(np.array([_SPLITS[name.lower()] for name in own], dtype=bool))
        if site is not None:
            self._sites += [site] * len(kept)

    def source(self, notes: Sequence[str]) -> Source:
        """Return the rows that are left, and what was noted."""
        bad = self.features.bad
        labels = np.concatenate([np.empty(0, np.int64), *self._labels])
        if not len(labels):
            raise DataError(
                f"A table has rows that follow the schema. {bad.counted}; correct the schema."
                if bad.refused
                else "A table has rows. Found a header and none after it; get the file again."
            )
        site_names, sites = sites_of(self._sites) if self._sites else ((), None)
        identities = {role: np.concatenate(codes) for role, codes in self._identities.items()}
        codes, schema = np.concatenate(self._codes), self._schema.public
        conditions = codes[:, len(schema.columns) :]
        dataset = Dataset(
            schema,
            np.ascontiguousarray(codes[:, : len(schema.columns)]),
            labels,
            attributes=np.column_stack([labels, conditions]).astype(np.uint8) if schema.attributes else None,
            patients=identities.get("patient"),
            ids=identities.get("id"),
            sites=sites,
        )
        tested = np.concatenate([np.zeros(0, dtype=bool), *self._tested])
        notes = [*notes, *self.features.notes, *([f"Left out: {bad.counted}."] if bad.refused else [])]
        if not tested.any():
            return Source(dataset, None, site_names, tuple(notes))
        if tested.all():
            raise DataError(
                f"A table has rows to train on. All {len(tested)} are of the test split; correct the column of splits."
            )
        train, test = dataset.select(np.flatnonzero(~tested)), dataset.select(np.flatnonzero(tested))
        return Source(train, test, site_names, tuple(notes))


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
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise DataError(
            f"A folder of tables can be listed. '{printable(path)}' cannot: {error.strerror}; check its permissions."
        ) from error
    fitting = [each.name for each in entries if _fits(each.name, pattern) and each.is_file() and not each.is_symlink()]
    if not fitting:
        raise DataError(
            f"A folder has files named as the schema file says, {pattern}. '{printable(path)}' has none; correct files."
        )
    taken = set(fitting)
    others = [printable(each.name) for each in entries if each.name not in taken]
    listed = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    what = f"{len(others)} that {'is' if len(others) == 1 else 'are'} hidden, a link or not named {pattern}"
    notes = [f"Left out of '{printable(path)}': {what} ({listed})."] if others else []
    return [(path / name, _site(name, pattern)) for name in fitting], notes


def _fits(name: str, pattern: str) -> re.Match[str] | None:
    """Return how a file's name fits what a schema file says, if it does; a hidden file's never does."""
    if name.startswith("."):
        return None
    return re.fullmatch(re.escape(pattern).replace(r"\{site\}", "(?P<site>.+)").replace(r"\*", ".*"), name)


def _site(name: str, pattern: str) -> str | None:
    """Return what stands in a file's name for the site; None if nothing does."""
    match = _fits(name, pattern)
    return match["site"] if match and "{site}" in pattern else None


def _check_columns(file: str, columns: Sequence[str], schema: TableSchema) -> None:
    """Check that a file has the columns of its schema, and no others.

    Raises:
        DataError: it lacks one, or has one that the schema does not name.
    """
    _check_named(file, columns, schema.read)
    ignore = schema.ignore
    unnamed = [] if ignore == "rest" else [name for name in columns if name not in {*schema.read, *ignore}]
    if unnamed:
        listed = ", ".join(f"'{printable(name):.80}'" for name in unnamed[:NAMED])
        raise DataError(
            f"A schema file says what every column is. '{file}' has {listed}"
            f"{f' and {len(unnamed) - NAMED} others' if len(unnamed) > NAMED else ''}; describe them under columns, or "
            "list them under ignore (ignore: rest for all)."
        )


def _check_named(file: str, columns: Sequence[str], wanted: Sequence[str]) -> None:
    """Check that a file has some columns.

    Raises:
        DataError: it lacks one.
    """
    lacking = [name for name in wanted if name not in columns]
    if not lacking:
        return
    if len(columns) == 1:
        way_out = "the file has one column, so correct the separator in the schema file"
    elif near := get_close_matches(lacking[0], columns, n=1):
        way_out = f"the nearest is '{printable(near[0]):.80}', so correct one of the two"
    else:
        way_out = "correct the name in the schema file, or the header"
    raise DataError(
        f"A table has every column that its schema file names. '{file}' has no '{printable(lacking[0]):.80}'"
        f"{f' (and lacks {len(lacking) - 1} more)' if len(lacking) > 1 else ''}; {way_out}."
    )

"""Rows as CSV and Parquet, and the schema file that reads them back.

number      as many decimals as its column has, or as its steps need
integer     digits
category, ordinal, label    as text
missing     an empty value of a CSV, null in Parquet
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cadp_fl.data.columns import Column
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.table_draft import Draft
from cadp_fl.data.table_files import polars_of
from cadp_fl.data.table_schema import TableSchema

__all__ = ["schema_text", "write_csv", "write_parquet"]


def write_csv(path: Path, schema: Schema, parts: Iterable[Dataset]) -> None:
    """Write rows, part by part, and the name of each one's class."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TableSchema.of(schema).read)
        for part in parts:
            writer.writerows(zip(*_columns(part), strict=True))


def write_parquet(path: Path, schema: Schema, parts: Iterable[Dataset]) -> None:
    """Write rows, which are all held in memory, and the name of each one's class.

    Raises:
        ConfigError: polars is not installed.
    """
    pl = polars_of(path.name)
    kinds = {"number": pl.Float64, "integer": pl.Int64}
    written = TableSchema.of(schema)
    types = {column.name: kinds.get(column.type, pl.String) for column in written.columns}
    types[written.label.column] = pl.String
    frames = [pl.DataFrame(schema=types), *(pl.DataFrame(_columns(part), schema=types) for part in parts)]
    pl.concat(frames).write_parquet(path)


def schema_text(schema: Schema) -> str:
    """Return the schema file of rows that were written here, YAML."""
    return Draft(TableSchema.of(schema).model_dump(mode="json", exclude_defaults=True)).text()


def _columns(part: Dataset) -> list[list[float | int | str | None]]:
    """Return what stands in a file, column by column: features, conditions, and the name of each row's class."""
    schema = part.schema
    values = [_values(column, codes) for column, codes in zip(schema.columns, part.records.T, strict=True)]
    for name, has in zip(schema.attributes, [] if part.attributes is None else part.attributes.T, strict=True):
        if name != schema.classes[-1]:
            values.append(["1" if each else "0" for each in has.tolist()])
    return [*values, np.array(schema.classes, dtype=object)[part.labels].tolist()]


def _values(column: Column, codes: np.ndarray) -> list[float | int | str | None]:
    """Return what stands in a file, None where a value is missing."""
    values = column.values_of(codes)
    if not column.has_bounds:
        return list(values)
    is_whole = column.type == "integer"
    return [None if value != value else int(value) if is_whole else value for value in values.tolist()]

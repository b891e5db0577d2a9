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

from cadp_fl.config import dump_tree
from cadp_fl.data.columns import Column
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.table_files import polars_of
from cadp_fl.data.table_schema import TableSchema

__all__ = ["schema_text", "write_csv", "write_parquet"]


def write_csv(path: Path, schema: Schema, parts: Iterable[Dataset]) -> None:
    """Write rows, part by part, and the name of each one's class."""
    classes = np.array(schema.classes, dtype=object)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(column.name for column in schema.columns), TableSchema.of(schema).label.column])
        for part in parts:
            values = [_values(column, codes) for column, codes in zip(schema.columns, part.records.T, strict=True)]
            writer.writerows(zip(*values, classes[part.labels].tolist(), strict=True))


def write_parquet(path: Path, schema: Schema, parts: Iterable[Dataset]) -> None:
    """Write rows, which are all held in memory, and the name of each one's class.

    Raises:
        ConfigError: polars is not installed.
    """
    pl = polars_of(path.name)
    kinds = {"number": pl.Float64, "integer": pl.Int64}
    types = {column.name: kinds.get(column.type, pl.String) for column in schema.columns}
    types[TableSchema.of(schema).label.column] = pl.String
    classes = np.array(schema.classes, dtype=object)
    frames = [pl.DataFrame(schema=types)]
    for part in parts:
        values = [_values(column, codes) for column, codes in zip(schema.columns, part.records.T, strict=True)]
        frames.append(pl.DataFrame([*values, classes[part.labels].tolist()], schema=types))
    pl.concat(frames).write_parquet(path)


def schema_text(schema: Schema) -> str:
    """Return the schema file of rows that were written here, YAML."""
    return dump_tree(TableSchema.of(schema).model_dump(mode="json", exclude_defaults=True))


def _values(column: Column, codes: np.ndarray) -> list[float | int | str | None]:
    """Return what stands in a file, None where a value is missing."""
    values = column.values_of(codes)
    if not column.has_bounds:
        return list(values)
    is_whole = column.type == "integer"
    return [None if value != value else int(value) if is_whole else value for value in values.tolist()]

"""What is written of rows is valid under its schema file, and is read back as the same codes."""

import csv

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cadp_fl.config import DataConfig
from cadp_fl.data.columns import Column
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.sources import load_source
from cadp_fl.data.table_writer import schema_text, write_csv, write_parquet

COLUMNS = (
    Column(name="age", type="integer", lower=18, upper=90, missing=True),
    Column(name="dose, mg", type="number", lower=0, upper=10),
    Column(name="tiny", type="number", lower=-1e-9, upper=1e-9, missing=True),
    Column(name="cost", type="number", lower=1, upper=1e6, scale="log"),
    Column(name="people", type="integer", lower=0, upper=10**9),
    Column(name="ward", type="category", categories=("NA", 'say "a"', "01", "1"), missing=True),
    Column(name="stage", type="ordinal", categories=("low", "high")),
)
SCHEMA = Schema(name="t", shape=(7,), classes=("no", "yes, or so"), columns=COLUMNS)


def rows(count, seed):
    generator = np.random.default_rng(seed)
    codes = np.stack([generator.integers(0, column.codes, count, dtype=np.int32) for column in COLUMNS], axis=1)
    return Dataset(SCHEMA, codes, generator.integers(0, 2, count))


def written(folder, kind, *parts, schema=SCHEMA):
    path = folder / f"records.{kind}"
    {"csv": write_csv, "parquet": write_parquet}[kind](path, schema, parts)
    (folder / "columns.yaml").write_text(schema_text(schema))
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_within_a_step_and_exactly_where_a_value_has_a_code_of_its_own(tmp_path, kind, seed):
    parts = rows(20, seed), rows(7, seed + 1)
    path = written(tmp_path, kind, *parts)
    source = load_source(DataConfig(source="table", path=path, columns=tmp_path / "columns.yaml"))
    assert (source.schema.columns, source.schema.classes, source.notes) == (SCHEMA.columns, SCHEMA.classes, ())
    np.testing.assert_array_equal(source.train.labels, np.concatenate([part.labels for part in parts]))
    stored = np.concatenate([part.records for part in parts])
    for column, before, after in zip(COLUMNS, stored.T, source.train.records.T, strict=True):
        width = 1 if column.name in ("dose, mg", "tiny", "people") else 0
        if column.name == "cost":  # decimals are those of a linear step, so that low values of a log scale share some
            np.testing.assert_allclose(column.values_of(after), column.values_of(before), atol=10)
        else:
            assert np.abs(before - after).max() <= width, column.name
        np.testing.assert_array_equal(before == column.steps, after == column.steps)


def test_a_csv_and_a_parquet_file_hold_what_other_readers_find(tmp_path):
    part = rows(50, 0)
    with written(tmp_path, "csv", part).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    frame = pl.read_parquet(written(tmp_path, "parquet", part))
    assert frame.columns == [*(column.name for column in COLUMNS), "label"] == list(found[0])
    assert frame.schema["age"] == pl.Int64
    for column, codes in zip(COLUMNS, part.records.T, strict=True):
        texts, values = [row[column.name] for row in found], frame[column.name].to_list()
        expected = column.values_of(codes).tolist()
        for text, value, right in zip(texts, values, expected, strict=True):
            if right is None or right != right:
                assert (text, value) == ("", None)
            else:
                assert value == right
                assert (float(text) if column.has_bounds else text) == right
    assert frame["label"].to_list() == [row["label"] for row in found] == [SCHEMA.classes[k] for k in part.labels]


def test_the_column_of_classes_keeps_its_name_and_never_another_columns(tmp_path):
    named = SCHEMA.model_copy(update={"label_column": "outcome"})
    assert "column: outcome" in schema_text(named)
    columns = (Column(name="label", type="integer", lower=0, upper=3),)
    taken = Schema(name="t", shape=(1,), classes=("a", "b"), columns=columns)
    part = Dataset(taken, np.array([[1], [2]], dtype=np.int32), np.array([0, 1]))
    path = written(tmp_path, "csv", part, schema=taken)
    assert path.read_text() == "label,label_\n1,a\n2,b\n"
    again = load_source(DataConfig(source="table", path=path, columns=tmp_path / "columns.yaml"))
    np.testing.assert_array_equal(again.train.records, part.records)
    with pytest.raises(ValueError, match="a name of its own"):
        Schema(name="t", shape=(1,), classes=("a", "b"), columns=columns, label_column="label")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_conditions_are_columns_of_a_file_and_come_back_as_attributes(tmp_path, kind):
    schema = SCHEMA.model_copy(update={"attributes": ("yes, or so", "sex=m", "smokes")})
    plain = rows(20, 0)
    attributes = np.random.default_rng(0).integers(0, 2, (20, 3), dtype=np.uint8)
    attributes[:, 0] = plain.labels
    part = Dataset(schema, plain.records, plain.labels, attributes=attributes)
    path = written(tmp_path, kind, part, schema=schema)
    source = load_source(DataConfig(source="table", path=path, columns=tmp_path / "columns.yaml"))
    assert source.schema.attributes == schema.attributes
    assert len(source.schema.columns) == len(COLUMNS)
    np.testing.assert_array_equal(source.train.attributes, attributes)

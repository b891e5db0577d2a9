"""A draft of a schema file accepts the sample that it was made from, and says what it is."""

import json

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cadp_fl.cli.main import app
from cadp_fl.config import DataConfig
from cadp_fl.data.sources import load_source
from cadp_fl.data.table_draft import draft_of_sample
from cadp_fl.data.table_metadata import from_frictionless, from_sdv, to_frictionless, to_sdv
from cadp_fl.data.table_schema import load_table_schema
from cadp_fl.errors import CadpError, ConfigError, DataError, InputError
from tests.conftest import ROOT

TABLES = ROOT / "configs" / "tables"


def run(*arguments):
    result = CliRunner().invoke(app, ["data", "schema", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def sample(folder, **columns):
    path = folder / "sample.csv"
    pl.DataFrame(columns).write_csv(path)
    return path


@given(
    whole=st.lists(st.integers(-(10**9), 10**9), min_size=14, max_size=14, unique=True),
    numbers=st.lists(st.floats(-1e6, 1e6).map(lambda value: round(value, 3)), min_size=14, max_size=14),
    texts=st.lists(st.sampled_from(["a", "b c", "yes", "no", "ü"]), min_size=14, max_size=14),
    missing=st.integers(0, 13),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sample_is_valid_under_its_own_draft(tmp_path, whole, numbers, texts, missing):
    numbers[missing] = None
    path = sample(tmp_path, whole=whole, numbers=numbers, texts=texts, label=[0, 1] * 7)
    (tmp_path / "columns.yaml").write_text(draft_of_sample(path, None).text())
    source = load_source(DataConfig(source="table", path=path, columns=tmp_path / "columns.yaml"))
    assert len(source.train) == 14
    assert source.notes == ()
    for column in source.schema.columns:
        if column.name == "whole":
            values = column.values_of(source.train.records[:, 0])
            assert np.abs(values - whole).max() <= (column.upper - column.lower) / 2**16 + 1


def test_what_columns_are_is_told_from_their_values_and_names(tmp_path):
    path = sample(
        tmp_path,
        patient_id=[f"p{n}" for n in range(20)],
        age=list(range(21, 41)),
        score=[n / 4 for n in range(20)],
        stage=[1, 2, 3, 4] * 5,
        sex=["m", "f"] * 10,
        remark=[f"text {n}" for n in range(20)],
        always=["x"] * 20,
        outcome=["well", "ill"] * 10,
    )
    (tmp_path / "columns.yaml").write_text(draft_of_sample(path, None).text())
    schema = load_table_schema(tmp_path / "columns.yaml")
    kinds = {column.name: (column.type, column.lower, column.upper) for column in schema.columns}
    assert kinds["age"] == ("integer", 20, 40)
    assert kinds["score"] == ("number", 0, 5)
    assert schema.columns[2].categories == ("1", "2", "3", "4")
    assert schema.columns[3].categories == ("f", "m")
    assert "remark" in kinds  # twenty texts may be categories: for a person to say
    assert schema.ignore == ("always",)
    assert schema.roles.patient == "patient_id"
    assert schema.label.names == ("ill", "well")
    assert draft_of_sample(path, "sex").tree["label"] == {"column": "sex", "classes": ["f", "m"]}


def test_a_label_of_many_numbers_is_cut_in_the_middle_and_one_of_names_is_refused(tmp_path):
    path = sample(tmp_path, age=list(range(200)), progress=list(range(0, 400, 2)))
    assert draft_of_sample(path, None).tree["label"] == {"column": "progress", "above": 199}
    path = sample(tmp_path, age=list(range(200)), name=[f"n{number}" for number in range(200)])
    with pytest.raises(DataError, match="Column 'name' is neither"):
        draft_of_sample(path, None)
    with pytest.raises(InputError, match="has no 'nam'; choose one of: age, name"):
        draft_of_sample(path, "nam")


def test_the_command_says_what_a_draft_leaks_on_stderr_and_in_the_file(tmp_path):
    path = sample(tmp_path, age=list(range(20, 40)), y=[0, 1] * 10)
    result = run(path, "--output", tmp_path / "columns.yaml")
    assert "this file is a LEAK" in result.stderr
    text = (tmp_path / "columns.yaml").read_text()
    assert text.startswith(
        "# A DRAFT, from the values of a sample. If the sample is of private records, this file is a"
    )
    assert load_table_schema(tmp_path / "columns.yaml").columns[0].name == "age"
    with pytest.raises(InputError, match=r"columns\.yaml"):
        run(path, "--output", tmp_path / "columns.yaml")  # nothing is written over
    printed = run(path, "--quiet")
    assert printed.stderr == ""
    assert printed.stdout == text


@pytest.mark.parametrize("name", ["adult", "heart-disease"])
def test_what_frictionless_keeps_comes_back(tmp_path, name):
    schema = load_table_schema(TABLES / f"{name}.yaml")
    result = run(TABLES / f"{name}.yaml", "--to-frictionless", "--output", tmp_path / "table.json")
    assert result.exit_code == 0
    draft = from_frictionless(tmp_path / "table.json", schema.label.column)
    (tmp_path / "again.yaml").write_text(draft.text())
    again = load_table_schema(tmp_path / "again.yaml")
    assert again.missing_values == schema.missing_values
    for mine, theirs in zip(again.columns, schema.columns, strict=True):
        for key in ("name", "type", "lower", "upper", "categories", "missing"):
            assert getattr(mine, key) == getattr(theirs, key)
    assert sorted(again.label.values) == sorted(schema.label.values)


def test_sdv_metadata_keeps_names_and_kinds_and_a_draft_names_what_is_left_to_say(tmp_path):
    result = run(TABLES / "heart-disease.yaml", "--to-sdv")
    metadata = json.loads(result.stdout)
    (table,) = metadata["tables"].values()
    assert table["columns"]["oldpeak"] == {"sdtype": "numerical", "computer_representation": "Float"}
    assert table["columns"]["cp"] == {"sdtype": "categorical"}
    (tmp_path / "metadata.json").write_text(result.stdout)
    draft = from_sdv(tmp_path / "metadata.json", "target")
    assert "Fill in lower and upper of: age, trestbps, chol, thalach, oldpeak." in draft.remarks
    assert "Fill in categories of: sex, cp, fbs, restecg, exang." in draft.remarks
    (tmp_path / "columns.yaml").write_text(draft.text())
    with pytest.raises(ConfigError, match=r"give label\.classes"):
        load_table_schema(tmp_path / "columns.yaml")
    (tmp_path / "columns.yaml").write_text(draft.text().replace("{column: target}", "{column: target, above: 0}"))
    with pytest.raises(ConfigError, match="column 'age' has bounds"):
        load_table_schema(tmp_path / "columns.yaml")


def test_metadata_of_other_tools_may_be_of_one_table_or_of_the_older_form(tmp_path):
    columns = {
        "who": {"sdtype": "id", "regex_format": "P[0-9]+"},
        "age": {"sdtype": "numerical", "computer_representation": "Int64"},
        "born": {"sdtype": "datetime", "datetime_format": "%Y"},
        "smokes": {"sdtype": "boolean"},
    }
    older = {"METADATA_SPEC_VERSION": "SINGLE_TABLE_V1", "primary_key": "who", "columns": columns}
    newer = {"METADATA_SPEC_VERSION": "V1", "tables": {"t": {"primary_key": "who", "columns": columns}}}
    for tree in (older, newer):
        (tmp_path / "m.json").write_text(json.dumps(tree))
        draft = from_sdv(tmp_path / "m.json", None)
        assert draft.tree["roles"] == {"id": "who"}
        assert draft.tree["ignore"] == ["born"]
        assert draft.tree["label"] == {"column": "smokes", "classes": ["false", "true"]}
        assert yaml.safe_load(draft.text())["columns"] == [{"name": "age", "type": "integer"}]
    newer["tables"]["u"] = newer["tables"]["t"]
    (tmp_path / "m.json").write_text(json.dumps(newer))
    with pytest.raises(InputError, match="is of 2; give one of them"):
        from_sdv(tmp_path / "m.json", None)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["tables", "columns", "fields", "name", "constraints", "enum", "resources", "schema", "x"]),
            inner,
            max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_a_draft_or_a_sentence(tmp_path, tree):
    (tmp_path / "m.json").write_text(json.dumps(tree))
    for read in (from_sdv, from_frictionless):
        try:
            outcome = "\n".join(read(tmp_path / "m.json", None).text().splitlines()[:1])
        except CadpError as error:
            outcome = str(error)
        assert outcome.isprintable()


def test_a_condition_of_both_directions_is_refused(tmp_path):
    for arguments in ([], ["--to-sdv"], [TABLES / "adult.yaml", "--to-sdv", "--to-frictionless"]):
        with pytest.raises(InputError, match="drafted from one file"):
            run(*arguments)
    (tmp_path / "m.json").write_text("{")
    with pytest.raises(InputError, match="is JSON"):
        run("--from-sdv", tmp_path / "m.json")


def test_a_table_whose_label_is_above_a_number_has_numbers_as_labels_elsewhere():
    schema = load_table_schema(TABLES / "adult.yaml")
    number = schema.model_copy(update={"label": type(schema.label)(column="y", above=3)})
    assert to_sdv(number)["tables"]["adult"]["columns"]["y"] == {"sdtype": "numerical"}
    assert to_frictionless(number)["fields"][-1]["type"] == "number"

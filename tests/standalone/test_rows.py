"""Rows by hand: privatized from a CSV, exported, learned from and predicted, and nothing of the way is an image."""

import csv
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from cadp_fl.classifier.storage import load_classifier
from cadp_fl.cli.main import app
from cadp_fl.config import DataConfig, FlowConfig, dump_tree
from cadp_fl.data.codec import codec_of
from cadp_fl.data.sources import load_source
from cadp_fl.errors import DataError, InputError
from cadp_fl.flow.storage import FlowCard, save_flow
from cadp_fl.release.dataset import load_release
from cadp_fl.standalone.central import ClassifierOptions, train_central
from cadp_fl.standalone.export import export
from cadp_fl.standalone.predict import predict
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions

SCHEMA = {
    "name": "ward",
    "label": {"column": "ill", "classes": {"no": [0], "yes": [1]}},
    "columns": [
        {"name": "age", "type": "integer", "lower": 18, "upper": 90},
        {"name": "dose", "type": "number", "lower": 0, "upper": 10, "decimals": 1, "missing": True},
        {"name": "sex", "type": "category", "categories": ["f", "m"]},
        {"name": "stage", "type": "category", "categories": ["a", "b", "c"], "outside": "refuse"},
    ],
    "roles": {"split": "part"},
    "separator": ";",
    "missing_values": ["unknown"],
    "ignore": ["remark"],
}
FLOW = FlowConfig(scales=[], dense={"blocks": 1, "width": 8})
OPTIONS = ReleaseOptions(epsilon=3.0, delta=1e-4, clip_norm=4.0, noise="seeded", seed=1)


@pytest.fixture
def ward(tmp_path):
    """A table of 80 rows to train on and 20 to test on, whose label follows age and sex."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(100):
        age, sex = int(generator.integers(18, 91)), "fm"[number % 2]
        dose = "unknown" if number % 7 == 0 else f"{generator.uniform(0, 10):.1f}"
        ill = int(age > 55) if sex == "f" else int(age > 40)
        rows.append([age, dose, sex, "abc"[generator.integers(3)], ill, "test" if number >= 80 else "train", "x"])
    with (tmp_path / "ward.csv").open("w", newline="") as file:
        names = ["age", "dose", "sex", "stage", "ill", "part", "remark"]
        csv.writer(file, delimiter=";").writerows([names, *rows])
    (tmp_path / "columns.yaml").write_text(dump_tree(SCHEMA))
    return tmp_path


def source(folder):
    return load_source(DataConfig(source="table", path=folder / "ward.csv", columns=folder / "columns.yaml"))


def flow(folder):
    card = FlowCard(FLOW, source(folder).schema, 3, "public")
    save_flow(folder / "flow.safetensors", card.build(), card)
    return folder / "flow.safetensors"


def trained(folder):
    options = ClassifierOptions(epochs=2)
    train_central([folder / "release"], folder / "m.safetensors", options, study=None, test=None, watch=print)


@pytest.fixture
def release(ward):
    options = replace(OPTIONS, columns=ward / "columns.yaml")
    return make_release(flow(ward), ward / "ward.csv", ward / "release", options)


def test_a_release_of_a_table_is_of_its_training_rows_and_valid(ward, release):
    assert release.manifest.records == 80
    released = load_release(ward / "release")
    assert released.schema == source(ward).schema
    assert export([ward / "release"], "csv", ward / "out") == 80
    frame = pl.read_csv(ward / "out" / "records.csv")
    assert frame.columns == ["age", "dose", "sex", "stage", "ill"]
    assert frame["age"].is_between(18, 90).all()
    assert set(frame["ill"]) <= {"no", "yes"}
    assert set(frame["stage"]) <= {"a", "b", "c"}


def test_a_classifier_of_rows_is_logistic_and_is_tested_on_a_table(ward, release):
    made = train_central(
        [ward / "release"],
        ward / "m.safetensors",
        ClassifierOptions(epochs=2),
        study=None,
        test=ward / "ward.csv",
        columns=ward / "columns.yaml",
        watch=lambda step: None,
    )
    assert made["model"] == "logistic"
    assert made["test"]["records"] == 20


def test_a_prediction_is_that_of_the_row_whatever_else_its_table_holds(ward, release):
    model = ward / "m.safetensors"
    train_central(
        [ward / "release"], model, ClassifierOptions(epochs=2), study=None, test=None, watch=lambda step: None
    )
    found = predict(model, [ward / "ward.csv"], resize=False, device="cpu", columns=ward / "columns.yaml")
    assert [(each.file, each.index) for each in found] == [(ward / "ward.csv", row) for row in range(100)]
    rows = source(ward)
    network, card = load_classifier(model)
    inputs = codec_of(card.dataset).inputs(np.concatenate([rows.train.records, rows.test.records]))
    with torch.no_grad():
        expected = network(inputs).softmax(dim=1).max(dim=1)
    assert [each.label for each in found] == [card.dataset.classes[label] for label in expected.indices]
    np.testing.assert_allclose([each.probability for each in found], expected.values, rtol=1e-5)
    plain = [column["name"] for column in SCHEMA["columns"]]
    frame = pl.read_csv(ward / "ward.csv", separator=";", null_values="unknown").select(reversed(plain))
    frame.write_parquet(ward / "plain.parquet")
    frame.write_csv(ward / "plain.csv")
    for name in ("plain.parquet", "plain.csv"):
        again = predict(model, [ward / name], resize=False, device="cpu")
        assert [each.probability for each in again] == [each.probability for each in found]


def test_the_command_predicts_a_table_and_names_what_is_wrong_with_another(ward, release):
    model = ward / "m.safetensors"
    train_central(
        [ward / "release"], model, ClassifierOptions(epochs=1), study=None, test=None, watch=lambda step: None
    )
    arguments = ["predict", str(model), str(ward / "ward.csv"), "--columns", str(ward / "columns.yaml")]
    done = CliRunner().invoke(app, [*arguments, "--output", str(ward / "p.csv")])
    assert done.exit_code == 0, done.output
    with (ward / "p.csv").open(newline="") as file:
        (first, *others) = csv.DictReader(file)
    assert (len(others), first["index"]) == (99, "0")
    assert first["class"] in ("no", "yes")
    with pytest.raises(DataError, match="has no 'age'"):
        predict(model, [ward / "ward.csv"], resize=False, device="cpu")  # by commas
    (ward / "bad.csv").write_text("age,dose,sex,stage\n20,1,f,a\n20,1,x,a\n")
    with pytest.raises(DataError, match=r"column 'sex': 1\); the first with column 'sex' is row 3 of 'bad.csv'"):
        predict(model, [ward / "bad.csv"], resize=False, device="cpu")
    other = SCHEMA | {"columns": SCHEMA["columns"][:3], "ignore": "rest"}
    (ward / "other.yaml").write_text(dump_tree(other))
    with pytest.raises(DataError, match="other columns; name the schema file of that training"):
        predict(model, [ward / "ward.csv"], resize=False, device="cpu", columns=ward / "other.yaml")


def test_a_schema_file_is_refused_where_nothing_is_a_table(ward):
    with pytest.raises(InputError, match="leave --columns out"):
        make_release(flow(ward), ward, ward / "x", replace(OPTIONS, columns=ward / "columns.yaml"))


def test_rows_with_a_condition_are_released_and_exported_with_it(ward):
    (ward / "columns.yaml").write_text(dump_tree(SCHEMA | {"roles": {"split": "part", "conditions": ["sex"]}}))
    made = make_release(
        flow(ward), ward / "ward.csv", ward / "release", replace(OPTIONS, columns=ward / "columns.yaml")
    )
    assert made.manifest.dataset.attributes == ("yes", "sex=m")
    export([ward / "release"], "csv", ward / "out")
    frame = pl.read_csv(ward / "out" / "records.csv")
    assert frame.columns == ["age", "dose", "stage", "sex=m", "ill"]
    assert sorted(frame["sex=m"].to_list()) == [0] * 40 + [1] * 40  # kept as they are
    assert "conditions are columns" in (ward / "out" / "README.md").read_text()

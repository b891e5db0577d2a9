"""The paper's tables: a flow of rows is given a condition beside the label, and a release draws it anew."""

import numpy as np
import polars as pl
import pytest

from cadp_fl.config import dump_tree
from cadp_fl.release.dataset import load_release
from cadp_fl.standalone.export import export
from cadp_fl.study.run import check_study
from tests.federated.test_workflow import Run

STUDY = """
name: ward
seed: 7
data: {source: table, path: ward.csv, columns: columns.yaml}
sites: {count: 3, names: [north, east, south], partition: {min_records: 20}}
noise: seeded
device: cpu
flow: {scales: [], dense: {blocks: 1, width: 8}, warm_start: none, training: {rounds: 1, local_epochs: 1}}
release: {mechanism: grid-gaussian, clip_norm: 4.0, labels: public, attributes: {randomize: [sex=2]}}
classifier: {model: logistic, central: {epochs: 1}}
methods: [cadp-given-flow]
budget: {epsilon: 3.0, delta: 1.0e-4}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    rows = [f"{20 + n % 50},{n % 7},1,{n % 2}" for n in range(300)]  # every patient is of sex 1
    (folder / "ward.csv").write_text("\n".join(["age,bmi,sex,y", *rows]))
    columns = [
        {"name": "age", "type": "integer", "lower": 18, "upper": 90},
        {"name": "bmi", "type": "number", "lower": 0, "upper": 10},
        {"name": "sex", "type": "category", "categories": [1, 2]},
    ]
    tree = {"name": "ward", "label": {"column": "y", "classes": {"slow": [0], "fast": [1]}}, "columns": columns}
    (folder / "columns.yaml").write_text(dump_tree({**tree, "roles": {"conditions": ["sex"]}}))
    (folder / "study.yaml").write_text(STUDY)
    run = Run({"config": str(folder / "study.yaml"), "output-dir": str(folder / "out"), "set": "seed=7"})
    check_study(run.study)
    assert run.go() == "complete"
    return run


def test_the_condition_is_public_beside_the_label_and_no_column_of_a_record(run):
    assert run.json("summary.json")["public_attributes"] == ["fast", "sex=2"]
    assert run.json("summary.json")["relation"] == "replace one record, keep its label and attributes"


def test_a_randomized_condition_is_drawn_whatever_the_patient_has(run, tmp_path):
    folders = sorted((run.folder / "releases").iterdir())
    released = load_release(*folders)
    share = float(released.attributes[:, 1].float().mean())
    assert abs(share - 0.5) < 5 * np.sqrt(0.25 / len(released))  # false alarm below 1e-6; no original has it
    np.testing.assert_array_equal(released.attributes[:, 0], released.labels)
    export(folders, "csv", tmp_path / "out")
    frame = pl.read_csv(tmp_path / "out" / "records.csv")
    assert frame.columns == ["age", "bmi", "sex=2", "y"]
    assert frame["sex=2"].to_list() == released.attributes[:, 1].tolist()

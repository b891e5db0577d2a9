"""A study of rows before it runs: what its source left out is said, and what it will take is estimated."""

import json

import pytest
from rich.console import Console

from cadp_fl.cli.progress import progress_to
from cadp_fl.config import dump_tree, load_study
from cadp_fl.federated.recorder import describe_step
from cadp_fl.study import run
from cadp_fl.study.estimate import estimate_study
from cadp_fl.study.run import check_study
from tests.conftest import ROOT

STUDY = """
name: ward
data: {source: table, path: ward.csv, columns: columns.yaml, on_bad_record: skip}
sites: {count: 2, partition: {min_records: 5}}
noise: seeded
flow: {warm_start: moments, dense: {blocks: 0}}
release: {clip_norm: 4.0, labels: public}
methods: [moments]
budget: {epsilon: 3.0, delta: 1.0e-4}
"""


@pytest.fixture
def study(tmp_path):
    rows = ["age,sex,y", *(f"{20 + n % 50},{n % 3 // 2},{n % 2}" for n in range(80)), "old,1,1"]
    (tmp_path / "ward.csv").write_text("\n".join(rows))
    columns = [{"name": "age", "type": "integer", "lower": 18, "upper": 60, "outside": "clip"}]
    columns.append({"name": "sex", "type": "category", "categories": [0, 1]})
    tree = {"name": "ward", "label": {"column": "y", "classes": ["0", "1"]}, "columns": columns}
    (tmp_path / "columns.yaml").write_text(dump_tree(tree))
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


def test_a_study_says_what_its_source_left_out_before_it_starts(study, tmp_path, monkeypatch, capsys):
    def stop(_study, _config, output, **_):
        (output / "summary.json").write_text(json.dumps({}))

    monkeypatch.setattr(run, "check_engine", lambda _: None)
    monkeypatch.setattr(run, "simulate", stop)
    monkeypatch.setattr(run, "add_fidelity", lambda *_: None)
    steps = []
    run.run_study(study, tmp_path / "run", [], watch=steps.append)
    assert [step["step"] for step in steps] == ["note", "note", "start"]
    texts = [describe_step(step) for step in steps[:2]]
    assert texts[0].startswith("Column 'age': ")
    assert texts[1] == "Left out: 1 of 81 rows break the schema (column 'age': 1)."

    with progress_to(Console(width=200, force_terminal=True, no_color=True, highlight=False), silent=False) as watch:
        watch(steps[1])
    assert texts[1] in capsys.readouterr().out


def test_what_a_study_of_rows_will_take_is_estimated_by_doing_a_little_of_each_kind_of_work(study):
    estimate = estimate_study(study, ["methods=[cadp, flow-samples, flow-bayes, moments, dp-sgd, fedavg, local]"])
    methods = {phase.phase.partition("/")[0] for phase in estimate.phases}
    assert methods >= {"cadp", "flow-samples", "moments", "dp-sgd", "fedavg", "local"}
    assert all(phase.seconds >= 0 for phase in estimate.phases)


def test_few_numbers_of_rows_are_all_but_the_second_moments_of_each_class():
    study = load_study(ROOT / "configs" / "heart-disease.yaml", ["budget.epsilon=1", "methods=[moments]"])
    asked = check_study(study).study.flow.moments
    assert asked.ask == "few"
    weights = (asked.count_weight, asked.sum_weight, asked.shared_weight, asked.class_weight)
    assert weights == (0.5, 1.0, 0.3, 0.0)

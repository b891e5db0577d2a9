"""What runs, what goes on after an interruption, and what is refused. A fake runs the cells, but in the last tests."""

import contextlib
import json
import math
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cadp_fl.config import dump_study, load_study
from cadp_fl.data import sources
from cadp_fl.data.partition import deal
from cadp_fl.data.schema import Dataset, Source
from cadp_fl.data.sources import load_source
from cadp_fl.errors import FederationError, InputError, PolicyError
from cadp_fl.federated import basis
from cadp_fl.study.compare import compare_study, constant_metrics
from cadp_fl.study.run import settled
from tests.checkpoints import leave_checkpoint
from tests.conftest import ROOT
from tests.report.test_comparison import row, summary

CONFIG = ROOT / "configs" / "quickstart.yaml"
CELLS = ["seed-7", "eps-1-seed-7", "eps-3-seed-7", "seed-8", "eps-1-seed-8", "eps-3-seed-8"]


class Runs:
    """Stands for `run_study`: notes what it is asked for, and ends as it is told."""

    def __init__(self, ends=None):
        self.asked = {}
        self.resumed = []
        self.ends = ends or {}

    def __call__(self, config, output, overrides, *, watch, resume):
        study = settled(load_study(config, overrides))
        self.asked[output.name] = study
        if resume:
            self.resumed.append(output.name)
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(dump_study(study))
        if not resume:
            leave_checkpoint(study, output)
        watch({"step": "start"})
        end = self.ends.get(output.name)
        if isinstance(end, BaseException):
            raise end
        rows = {name: row(0.5 + study.seed / 100, epsilon=study.budget.epsilon) for name in study.methods}
        result = summary(rows) | {"status": "complete", "missing": [], "seed": study.seed}
        if end:
            result |= {"status": "incomplete", "missing": [end]}
        (output / "summary.json").write_text(json.dumps(result))
        return result


@pytest.fixture
def compare(tiny_overrides, tmp_path):
    def run(runs=None, *, turns=None, **named):
        @contextmanager
        def watching(turn):
            (turns if turns is not None else []).append(turn)
            yield lambda step: None

        named = {"epsilons": (3.0, 1.0), "seeds": 2, "overrides": tiny_overrides, "output": tmp_path / "c"} | named
        return compare_study(CONFIG, watching=watching, run_cell=runs or Runs(), **named)

    return run


def test_what_depends_on_epsilon_runs_at_each_and_what_does_not_once_a_seed(compare, tmp_path):
    runs, turns = Runs(), []
    tree = compare(runs, turns=turns)
    assert [turn.cell.name for turn in turns] == list(runs.asked) == CELLS
    assert [(turn.number, turn.of) for turn in turns] == [(number, 6) for number in range(1, 7)]
    for name, study in runs.asked.items():
        bound = name.startswith("eps-")
        assert list(study.methods) == (["cadp-given-flow", "dp-sgd"] if bound else ["fedavg"])
        assert name.endswith(f"seed-{study.seed}")
        assert not bound or name.startswith(f"eps-{study.budget.epsilon:g}-")
    assert (tree["status"], tree["epsilons"], tree["seeds"]) == ("complete", [1.0, 3.0], [7, 8])
    assert json.loads((tmp_path / "c" / "comparison.json").read_text()) == tree


def test_a_cell_differs_from_the_study_in_epsilon_seed_and_methods_alone(compare, tiny, tiny_overrides):
    runs = Runs()
    compare(runs, overrides=[*tiny_overrides, "methods.dp-sgd.learning_rate=1.0e-05"])
    for study in runs.asked.values():
        same = {"budget": tiny.budget, "seed": tiny.seed, "methods": tiny.methods}
        assert study.model_copy(update=same) == tiny
        for name, settings in study.methods.items():
            assert settings == tiny.methods[name] | ({"learning_rate": 1e-5} if name == "dp-sgd" else {})


def test_without_epsilons_it_is_at_the_studys_own(compare):
    tree = compare(epsilons=(), seeds=1)
    assert (tree["epsilons"], tree["seeds"]) == ([3.0], [7])


def test_each_seed_and_epsilon_counts_once(compare):
    tree = compare(epsilons=(1, 1.0), seeds=[11, 2, 11])
    assert (tree["epsilons"], tree["seeds"]) == ([1.0], [2, 11])


def test_an_interrupted_comparison_goes_on_from_its_last_finished_cell(compare, tmp_path):
    first = Runs({"eps-1-seed-8": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        compare(first)
    left = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [each["status"] for each in left["cells"]] == ["complete"] * 4 + ["pending"] * 2
    assert left["status"] == "incomplete"
    then, turns = Runs(), []
    tree = compare(then, turns=turns, resume=True)
    assert list(then.asked) == CELLS[4:]
    assert then.resumed == ["eps-1-seed-8"], "the cell that was interrupted goes on, the one after it begins"
    assert [turn.number for turn in turns] == [5, 6]
    assert tree["status"] == "complete"
    never = compare(output=tmp_path / "never-interrupted")
    assert tree == never


def test_a_finished_comparison_runs_nothing_again(compare):
    compare()
    again = Runs()
    assert compare(again, resume=True)["status"] == "complete"
    assert not again.asked


def test_a_cell_that_fails_does_not_stop_the_others_and_is_tried_again(compare):
    tree = compare(Runs({"eps-3-seed-7": FederationError("2 of 3 answered")}))
    ends = {each["cell"]: (each["status"], each.get("reason")) for each in tree["cells"]}
    assert ends.pop("eps-3-seed-7") == ("failed", "2 of 3 answered")
    assert set(ends.values()) == {("complete", None)}
    assert [table["methods"]["dp-sgd"]["seeds"] for table in tree["tables"]] == [[7, 8], [8]]
    again = Runs()
    assert compare(again, resume=True)["status"] == "complete"
    assert again.resumed == list(again.asked) == ["eps-3-seed-7"]


def test_a_cell_that_lost_a_site_is_no_complete_one(compare):
    gap = {"site": "north", "phase": "dp-sgd/train", "reason": "late"}
    tree = compare(Runs({"eps-1-seed-7": gap}))
    ended = next(each for each in tree["cells"] if each["cell"] == "eps-1-seed-7")
    assert (ended["status"], ended["reason"]) == ("incomplete", "north was missing in dp-sgd/train: late")
    assert tree["tables"][0]["methods"]["dp-sgd"]["seeds"] == [8]


def test_a_summary_that_lacks_a_method_is_no_finished_cell(compare, tmp_path):
    compare()
    path = tmp_path / "c" / "cells" / "eps-1-seed-7" / "summary.json"
    stored = json.loads(path.read_text())
    del stored["methods"]["dp-sgd"]
    path.write_text(json.dumps(stored))
    again = Runs()
    compare(again, resume=True)
    assert list(again.asked) == ["eps-1-seed-7"]


def test_a_wrong_input_in_a_cell_stops_the_comparison(compare):
    with pytest.raises(InputError, match="another one now"):
        compare(runs := Runs({"eps-1-seed-7": InputError("That of 'cadp' is another one now.")}))
    assert list(runs.asked) == CELLS[:2]


def test_a_comparison_may_get_more_epsilons_and_seeds_and_keeps_what_it_has(compare, tmp_path):
    compare(epsilons=[3.0], seeds=[7])
    more = Runs()
    tree = compare(more, epsilons=[1.0, 3.0], seeds=[7, 8], resume=True)
    assert list(more.asked) == [name for name in CELLS if name not in ("seed-7", "eps-3-seed-7")]
    assert tree["status"] == "complete"
    for fewer in ({"epsilons": [1.0]}, {"seeds": [8]}):
        with pytest.raises(InputError, match="keeps its"):
            compare(Runs(), resume=True, **fewer)


def test_what_records_settle_is_the_same_study_when_a_cell_is_checked(compare):
    """A cell's stored study says how many units are shuffled together, and asks for few numbers at epsilon 1."""
    runs = Runs()
    tree = compare(runs, overrides=["methods=[cadp]"], seeds=1)
    assert tree["status"] == "complete"
    tight, roomy = (runs.asked[f"eps-{epsilon}-seed-7"] for epsilon in (1, 3))
    assert tight.release.shuffled_units == roomy.release.shuffled_units > 300
    assert (tight.flow.moments.ask, roomy.flow.moments.ask) == ("few", "auto")


def test_another_study_is_not_resumed(compare, tiny_overrides):
    compare()
    with pytest.raises(InputError, match=r"'flow.training.rounds' is 3 now and was 2"):
        compare(runs := Runs(), overrides=[*tiny_overrides, "flow.training.rounds=3"], resume=True)
    assert not runs.asked


def _swap_two_labels(monkeypatch):
    """Let the export be another one from now on: of the same name and size, with two records' labels swapped."""
    source = sources.read_digits(None).train
    labels = source.labels.copy()
    labels[[0, 1]] = labels[[1, 0]]
    other = Source(Dataset(source.schema, source.images, labels))
    monkeypatch.setitem(sources.SOURCES, "digits", sources.Reader(lambda config: other))


@pytest.mark.parametrize("ended", [{}, {"eps-1-seed-7": KeyboardInterrupt()}])
def test_cells_of_other_records_never_stand_in_one_table(compare, monkeypatch, tmp_path, ended):
    with contextlib.suppress(KeyboardInterrupt):
        compare(Runs(ended))
    before = (tmp_path / "c" / "comparison.json").read_bytes()
    _swap_two_labels(monkeypatch)
    with pytest.raises(InputError, match=r"Cell seed-7: .* of '\w+' .* with other values\)"):
        compare(runs := Runs(), resume=True)
    assert not runs.asked
    assert (tmp_path / "c" / "comparison.json").read_bytes() == before


def test_records_that_are_replaced_while_a_comparison_runs_stop_it(compare, monkeypatch, tmp_path):
    class Replaced(Runs):
        def __call__(self, config, output, *rest, **named):
            if output.name == "seed-8":
                _swap_two_labels(monkeypatch)
            return super().__call__(config, output, *rest, **named)

    with pytest.raises(InputError, match="Cell seed-8: "):
        compare(runs := Replaced())
    assert list(runs.asked) == CELLS[:4]
    left = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [each["status"] for each in left["cells"]] == ["complete"] * 3 + ["pending"] * 3


def test_cells_of_other_software_never_stand_in_one_table(compare, monkeypatch):
    compare(seeds=[7])
    versions = basis.installed_versions()
    monkeypatch.setattr(basis, "installed_versions", lambda: versions | {"torch": "1.0.0", "numpy": "1.1.0"})
    with pytest.raises(InputError, match=r"Cell seed-7: .* torch is 1\.0\.0 now and was .*, numpy is 1\.1\.0 now"):
        compare(runs := Runs(), seeds=[7, 8], resume=True)
    assert not runs.asked


def test_a_finished_cell_that_cannot_say_what_it_rests_on_is_not_taken(compare, tmp_path):
    compare()
    (tmp_path / "c" / "cells" / "seed-8" / "checkpoint.json").unlink()
    with pytest.raises(InputError, match=r"Cell seed-8: A run is resumed from its checkpoint\.json"):
        compare(Runs(), resume=True)


def test_a_folder_that_holds_no_comparison_is_not_resumed(compare, tiny, tmp_path):
    with pytest.raises(InputError, match=r"left its config\.yaml"):
        compare(resume=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text(dump_study(tiny))
    with pytest.raises(InputError, match=r"left its comparison\.json"):
        compare(resume=True)


def test_a_folder_in_use_is_refused_and_kept(compare, tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="new or empty"):
        compare(runs := Runs())
    assert not runs.asked
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("named", "error", "sentence"),
    [
        ({"epsilons": [1.0, 0.0]}, InputError, r"budget\.epsilon"),
        ({"epsilons": [1.0, math.nan]}, InputError, r"budget\.epsilon"),
        ({"seeds": [-1]}, InputError, "'seed'"),
        ({"overrides": ["methods=[nothing]"]}, InputError, "Unknown method"),
        ({"overrides": ["sites.policy={population: p, unit: record, epsilon: 3, delta: 1.0e-5, labels: covered, "
                        "unprotected: true, review: false, seeded_noise: true}"], "epsilons": [1.0, 10.0]},
         PolicyError, "at most 3"),
    ],
)  # fmt: skip
def test_every_cell_is_checked_before_the_first_runs(compare, tmp_path, named, error, sentence):
    with pytest.raises(error, match=sentence):
        compare(runs := Runs(), **named)
    assert not runs.asked
    assert not (tmp_path / "c").exists()


def test_the_time_left_is_what_cells_of_their_kind_took(compare):
    turns = []
    compare(turns=turns)
    free, bound = (15.0 + sum(summary(methods)["seconds"].values()) for methods in (["fedavg"], ["cadp", "dp-sgd"]))
    assert [turn.left for turn in turns] == pytest.approx(
        [None, 5 * free, free + 3 * bound, free + 2 * bound, 2 * bound, bound]
    )


def test_the_constant_classifier_has_the_figures_of_its_closed_form(tiny):
    sites = deal(load_source(tiny.data), 3, tiny.sites.partition, 0.2, seed=7)
    labels = np.concatenate([site.test.labels for site in sites])
    share = max(np.mean(labels == label) for label in range(10))
    found = constant_metrics(sites)
    assert found.accuracy == pytest.approx(share)
    assert (found.balanced_accuracy, found.auroc) == (pytest.approx(0.1), 0.5)
    assert found.macro_f1 == pytest.approx(2 * share / (1 + share) / 10)


@pytest.mark.slow
@pytest.mark.ray
def test_a_comparison_runs_through_flower_and_is_resumed(tmp_path, tiny_overrides):
    settings = [part for override in tiny_overrides for part in ("--set", override)]
    arguments = ["compare", str(CONFIG), "--output", str(tmp_path / "c"), "--epsilon", "1", "--epsilon", "3"]
    command = [str(Path(sys.executable).parent / "cadp-fl"), *arguments, "--seeds", "2", "--json", *settings]
    printed = [
        json.loads(subprocess.run([*command, *more], capture_output=True, text=True, check=True, timeout=1500).stdout)
        for more in ([], ["--resume"])
    ]
    assert printed[0] == printed[1]
    tree = printed[0]
    assert [each["cell"] for each in tree["cells"]] == CELLS
    assert tree["status"] == "complete"
    runs = {name: json.loads((tmp_path / "c" / "cells" / name / "summary.json").read_text()) for name in CELLS}
    for seed in (7, 8):
        one, three, free = (runs[f"{name}seed-{seed}"] for name in ("eps-1-", "eps-3-", ""))
        assert one["sites"] == three["sites"] == free["sites"], "a seed has one split"
    assert runs["seed-7"]["sites"] != runs["seed-8"]["sites"]
    for table in tree["tables"]:
        bound = table["methods"]["dp-sgd"]
        assert 0.9 * table["epsilon"] < bound["epsilon"] <= table["epsilon"]
        for seed, value in bound["figures"]["accuracy"]["values"].items():
            found = runs[f"eps-{table['epsilon']:g}-seed-{seed}"]["methods"]["dp-sgd"]
            assert (value, bound["epsilon"]) == (found["accuracy"], found["epsilon"])
        assert table["methods"]["fedavg"]["guarantee"] == "none"
        assert table["methods"]["cadp-given-flow"]["epsilon"] is None

"""What a user of `cadp-fl compare` sees. Nothing here starts Flower."""

import json

import pytest

from cadp_fl.config import load_study
from cadp_fl.errors import FederationError
from tests.checkpoints import leave_checkpoint
from tests.cli.test_cli import call
from tests.report.test_comparison import row, summary


@pytest.fixture
def arguments(quickstart, tiny_overrides, tmp_path):
    settings = [part for override in tiny_overrides for part in ("--set", override)]
    return ["compare", quickstart, "--output", tmp_path / "c", "--seeds", "2", *settings]


@pytest.fixture
def simulated(monkeypatch):
    """Let cells end at once: as an error where the list names one for them, and well otherwise."""
    ends = {}

    def simulate(study, config, output, *, watch, resume):
        leave_checkpoint(study, output)
        if error := ends.get(output.name):
            raise error
        rows = {name: row(0.8, epsilon=study.budget.epsilon) for name in load_study(config).methods}
        result = summary(rows, noise=study.noise) | {"status": "complete", "missing": []}
        (output / "summary.json").write_text(json.dumps(result))

    monkeypatch.setattr("cadp_fl.study.run.simulate", simulate)
    return ends


def test_it_shows_which_cell_runs_and_the_tables(monkeypatch, capsys, arguments, simulated, tmp_path):
    code, out, _ = call(monkeypatch, capsys, *arguments)
    assert code == 0
    assert "cell 1 of 4: seed-7 (fedavg); elapsed 0:00\n" in out
    assert "cell 4 of 4: eps-3-seed-8 (cadp-given-flow, dp-sgd)" in out
    assert " left\n" in out
    for part in ("quickstart at epsilon 3", "majority class", "end-to-end", "paired by seed", "protect nothing"):
        assert part in out
    assert str((tmp_path / "c" / "comparison.html").resolve()) in out


def test_json_is_the_comparison_and_nothing_else(monkeypatch, capsys, arguments, simulated, tmp_path):
    code, out, _ = call(monkeypatch, capsys, *arguments, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "c" / "comparison.json").read_text())


def test_a_cell_that_failed_is_in_the_exit_status(monkeypatch, capsys, arguments, simulated):
    simulated["eps-3-seed-8"] = FederationError("too few")
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 1
    assert err.startswith(
        "cadp-fl: A comparison has every cell. 1 of 4 are not complete, and in no mean: eps-3-seed-8."
    )
    assert err.count("\n") == 1
    assert "(1 of 2" in out
    simulated.clear()
    assert call(monkeypatch, capsys, *arguments, "--resume")[0] == 0


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, arguments, simulated):
    simulated["seed-8"] = KeyboardInterrupt()
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 130
    assert "go on with --resume" in err
    simulated.clear()
    code, out, _ = call(monkeypatch, capsys, *arguments, "--resume")
    assert code == 0
    assert "cell 3 of 4: seed-8" in out
    assert "cell 2 of 4" not in out


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--seed", "3"], "Found --seeds and --seed"),
        (["--epsilon", "0"], "'budget.epsilon'"),
        (["--set", "methods=[capd]"], "Unknown method 'capd'"),
        (["--resume"], "left its config.yaml"),
    ],
)
def test_a_wrong_input_is_one_sentence_and_writes_nothing(monkeypatch, capsys, arguments, tmp_path, more, sentence):
    code, _, err = call(monkeypatch, capsys, *arguments, *more)
    assert (code, err.count("\n")) == (2, 1)
    assert sentence in err
    assert not (tmp_path / "c").exists()


def test_the_terminal_never_hides_a_guarantee(monkeypatch, capsys, arguments, simulated):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call(monkeypatch, capsys, *arguments, "--quiet")
    assert "end-to-end" in next(line for line in out.splitlines() if "dp-sgd" in line)
    assert "cell 1" not in out

"""What a user sees: one sentence, the right exit status, nothing half-written. Nothing here starts Flower."""

import json
from pathlib import Path

import pytest
from rich.console import Console

import cadp_fl
from cadp_fl.cli import main as cli
from cadp_fl.cli.progress import progress_to, results_table
from cadp_fl.errors import CadpError, FederationError
from tests.checkpoints import leave_checkpoint


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["cadp-fl", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    printed = capsys.readouterr()
    return exited.value.code, printed.out, printed.err


@pytest.fixture
def no_flower(monkeypatch):
    def launched(*arguments, **named):
        raise AssertionError("a wrong input reached Flower")

    monkeypatch.setattr("cadp_fl.study.run.simulate", launched)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("flow.training.ronds=3", "Did you mean 'rounds'?"),
        ("flow.training.rounds=0", "Found flow.training.rounds 0 and no flow.pretrained"),
        ("sites.count=1", "'sites.count'"),
        (
            "data.source=digitz",
            "Found 'digitz'; choose one of them.",
        ),
        ("data.path=/nowhere.npz", "takes no path"),
        ("sites.partition.kind=random", "Unknown partition 'random'"),
        ("sites.partition.min_records=5000", "use fewer sites"),
        ("flow.downsampling=wavelet", "Unknown downsampling 'wavelet'"),
        ("flow.scales=[{}, {}, {}, {}]", "use at most 3 of flow.scales"),
        ("release.mechanism=laplacian", "Unknown mechanism 'laplacian'"),
        ("release.shrinkage=x", "Unknown shrinkage 'x'"),
        ("release.latent_dims=65", "at most the flow's 64 dimensions. Found 65; lower it"),
        ("classifier.model=vgg", "Unknown classifier 'vgg'"),
        ("methods=[capd]", "Unknown method 'capd'"),
        ("flow={dense: {blocks: 1}}", "takes a flow that no private record had a part in"),
        ("methods.dp-sgd.sampling=0.1", "Unknown key 'methods.dp-sgd.sampling'"),
        ("methods.dp-sgd.model=vgg", "Unknown classifier 'vgg'"),
        ("methods.fedavg.rounds=0", "'methods.fedavg.rounds'"),
        ("budget.delta=0.01", "at most 1 / (10 n)"),
        ("device=gpu", "device must be auto, cpu, cuda"),
        ("device=cuda:99", "This process sees"),
    ],
)
def test_a_wrong_value_is_one_sentence_and_writes_nothing(
    monkeypatch, capsys, tmp_path, quickstart, no_flower, override, sentence
):
    code, _, err = call(monkeypatch, capsys, "simulate", quickstart, "--output", tmp_path / "run", "--set", override)
    assert code == 2
    assert err.startswith("cadp-fl: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_missing_config_is_one_sentence(monkeypatch, capsys, tmp_path, no_flower):
    code, _, err = call(monkeypatch, capsys, "simulate", tmp_path / "none.yaml", "--output", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "Found none at" in err


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_in_use_is_refused_and_kept(monkeypatch, capsys, tmp_path, quickstart, no_flower, kind):
    output = tmp_path / "run"
    kept = output if kind == "file" else output / "kept.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    if kind == "folder":
        (output / "report.html").write_text("an older run")
    code, out, err = call(monkeypatch, capsys, "simulate", quickstart, "--output", output)
    assert code == 2
    assert "Report" not in out
    assert "A run folder is new or empty" in err
    assert kept.read_text() == "mine"


def test_an_output_that_cannot_be_made_is_refused(monkeypatch, capsys, tmp_path, quickstart, no_flower):
    (tmp_path / "file").write_text("mine")
    code, _, err = call(monkeypatch, capsys, "simulate", quickstart, "--output", tmp_path / "file" / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "A run folder can be made" in err


def test_a_dry_run_shows_epsilon_bytes_memory_and_time_and_writes_nothing(
    monkeypatch, capsys, tmp_path, quickstart, tiny_overrides, no_flower
):
    monkeypatch.chdir(tmp_path)
    sets = [part for each in tiny_overrides for part in ("--set", each)]
    code, out, _ = call(monkeypatch, capsys, "simulate", quickstart, "--dry-run", "--json", *sets)
    assert code == 0
    estimate = json.loads(out)
    stages = {(name, each["stage"]): each["epsilon"] for name, stages in estimate["stages"].items() for each in stages}
    assert stages["cadp-given-flow", "flow"] is stages["fedavg", "classifier"] is None
    assert 2.9 < stages["cadp-given-flow", "release"] <= 3.0
    assert 2.9 < estimate["totals"]["dp-sgd"] <= 3.0
    assert estimate["totals"]["cadp-given-flow"] is estimate["totals"]["fedavg"] is None
    phases = {phase["phase"]: phase for phase in estimate["phases"]}
    assert phases["cadp-given-flow/flow"]["down"] == phases["cadp-given-flow/flow"]["up"] > 0
    assert all(phase["seconds"] > 0 for phase in estimate["phases"])
    assert estimate["memory_bytes"] > 1 << 30
    code, out, _ = call(monkeypatch, capsys, "simulate", quickstart, "--dry-run", *sets)
    assert code == 0
    assert "NOT protected" in out
    assert "Nothing was run or written" in out
    assert list(tmp_path.iterdir()) == []


def test_a_run_needs_a_folder(monkeypatch, capsys, quickstart, no_flower):
    code, _, err = call(monkeypatch, capsys, "simulate", quickstart)
    assert (code, err.count("\n")) == (2, 1)
    assert "give --output FOLDER" in err


def test_another_study_is_not_resumed(monkeypatch, capsys, tmp_path, quickstart, no_flower):
    from cadp_fl.config import dump_study, load_study

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_study(load_study(quickstart)))
    arguments = ("simulate", quickstart, "--output", tmp_path / "run", "--resume", "--set", "seed=8")
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "'seed' is 8 now and was 7" in err
    code, _, err = call(monkeypatch, capsys, "simulate", quickstart, "--output", tmp_path / "none", "--resume")
    assert code == 2
    assert "has none; start a new run" in err


def test_a_run_is_not_resumed_with_other_records(monkeypatch, capsys, tmp_path, quickstart, no_flower, tiny_overrides):
    from cadp_fl.config import dump_study, load_study
    from cadp_fl.data import sources
    from cadp_fl.data.schema import Dataset, Source

    study = load_study(quickstart, tiny_overrides)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dump_study(study))
    leave_checkpoint(study, tmp_path / "run")
    left = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    source = sources.read_digits(None).train
    other = Source(Dataset(source.schema, source.images, (source.labels + 1) % 10))
    monkeypatch.setitem(sources.SOURCES, "digits", sources.Reader(lambda config: other))
    sets = [part for override in tiny_overrides for part in ("--set", override)]
    code, _, err = call(monkeypatch, capsys, "simulate", quickstart, "--output", tmp_path / "run", "--resume", *sets)
    assert (code, err.count("\n")) == (2, 1)
    assert "with the records that it began with. 'digits' holds others now. They differ in: of 'north' training" in err
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == left


def test_a_failed_run_exits_with_one(monkeypatch, capsys, tmp_path, quickstart):
    gap = {"site": "east", "phase": "m/flow", "reason": "did not answer in time"}

    def fail(study, config, output, *, watch, resume):
        failed = SUMMARY | {"status": "incomplete", "failure": "too few", "missing": [gap], "methods": {}}
        (output / "summary.json").write_text(json.dumps(failed))
        (output / "report.html").write_text("page")
        raise FederationError("Phase 'x' needs 2 sites (sites.quorum). 1 of 3 answered. east: late")

    monkeypatch.setattr("cadp_fl.study.run.simulate", fail)
    code, out, err = call(monkeypatch, capsys, "simulate", quickstart, "--output", tmp_path / "run")
    assert code == 1
    assert "needs 2 sites" in err
    assert "INCOMPLETE: too few" in out
    assert "east in m/flow" in out
    assert "report.html" in out
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["cadp-fl", "--debug", "simulate", str(tmp_path / "x"), "--output", str(tmp_path)])
    with pytest.raises(CadpError):
        cli.main()


def test_the_version_is_the_packages(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "--version")
    assert (code, out) == (0, f"cadp-fl {cadp_fl.__version__}\n")


@pytest.mark.parametrize("command", ["simulate", "report", "compare"])
def test_every_command_helps_with_an_example(monkeypatch, capsys, command):
    code, out, _ = call(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert f"Example: cadp-fl {command}" in out


def test_a_folder_without_a_run_has_no_report(monkeypatch, capsys, tmp_path):
    code, _, err = call(monkeypatch, capsys, "report", tmp_path)
    assert code == 2
    assert "A run folder holds summary.json" in err


def row(guarantee, epsilon=None, conditional=None, against="server"):
    figures = dict.fromkeys(("accuracy", "balanced_accuracy", "auroc"), 0.9) | {"against": against}
    return figures | {"guarantee": guarantee, "epsilon": epsilon, "epsilon_if_flow_were_fixed": conditional}


SUMMARY = {
    "name": "s",
    "status": "complete",
    "noise": "seeded",
    "missing": [],
    "relation": "replace one record, keep its label",
    "budget": {"epsilon": 3.0, "delta": 1e-5},
    "sites": [{}, {}],
    "methods": {
        "cadp-given-flow": row("given-flow", conditional=2.99999),
        "dp-sgd": row("end-to-end", 2.991),
        "fedavg": row("none"),
    },
}


def shown(summary):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        results_table(console, summary, Path("run"))
    return console.export_text()


def test_the_table_never_shows_a_conditional_epsilon_as_one():
    text = shown(SUMMARY)
    line = next(line for line in text.splitlines() if "cadp-given-flow" in line)
    assert line.count("3.00") == 1
    assert "flow NOT covered (3.00 if it were fixed)" in line
    assert "3.00" in next(line for line in text.splitlines() if "dp-sgd" in line)
    assert "none: no privacy" in text
    assert "SEEDED: this run protects nothing" in text


def test_the_table_says_where_a_guarantee_does_not_hold_against_the_aggregator():
    text = shown(SUMMARY)
    assert "aggregator" not in text
    methods = {"m": row("end-to-end", 2.0, against="recipients"), "n": row("given-flow", None, 2.0, "recipients")}
    text = " ".join(shown(SUMMARY | {"methods": methods}).split())
    assert text.count("(not against the aggregator") == 2


def test_an_incomplete_run_says_so_and_who():
    gap = {"site": "east", "phase": "cadp-given-flow/release", "reason": "did not answer in time"}
    text = shown(SUMMARY | {"status": "incomplete", "missing": [gap]})
    assert "INCOMPLETE" in text
    assert "east in cadp-given-flow/release: did not answer in time" in text


STEPS = [
    {"step": "start"},
    {"step": "phases", "phases": {"m/flow": 2, "m/central": 1}, "sites": 2},
    {"step": "answer", "phase": "m/flow", "round": 1, "of": 2, "site": "a", "figures": {"bits_per_dim": 2.5}},
    {"step": "answer", "phase": "m/flow", "round": 1, "of": 2, "site": "b", "failed": "did [not] answer"},
    {"step": "round", "phase": "m/flow", "round": 1, "of": 2, "bits_per_dim": 2.5, "at_seconds": 1.0},
    {"step": "round", "phase": "m/evaluate", "round": 1, "of": 1, "accuracy": 0.91, "at_seconds": 2.0},
    {"step": "done", "status": "incomplete"},
]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_phase_round_loss_and_who_is_missing(terminal, capsys):
    console = Console(force_terminal=terminal, width=140, highlight=False)
    with progress_to(console, silent=False) as watch:
        for step in STEPS:
            watch(step)
    out = capsys.readouterr().out
    for part in ("starting Flower", "m/flow", "2.5", "did [not] answer", "0.91"):
        assert part in out


def test_quiet_progress_prints_nothing(capsys):
    with progress_to(Console(), silent=True) as watch:
        for step in STEPS:
            watch(step)
    assert capsys.readouterr().out == ""


def test_a_summary_is_printed_as_json(monkeypatch, capsys, tmp_path, quickstart):
    monkeypatch.setattr("cadp_fl.study.run.run_study", lambda *arguments, **named: SUMMARY)
    code, out, _ = call(monkeypatch, capsys, "simulate", quickstart, "--output", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out) == SUMMARY

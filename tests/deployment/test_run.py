"""`cadp-fl run` without a SuperLink: a `flwr` in its place answers as Flower does."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from cadp_fl.config import load_study
from cadp_fl.deployment import flower as of_superlink
from cadp_fl.deployment import run as deployment
from cadp_fl.deployment.run import run_deployed
from cadp_fl.deployment.started_run import run_status, stop_run
from cadp_fl.errors import CadpError, ConfigError, InputError
from cadp_fl.federated import basis
from cadp_fl.federated.basis import Basis
from cadp_fl.federated.checkpoint import Checkpoint
from cadp_fl.study import flower
from tests.conftest import ROOT, TINY

FLWR = """#!{python}
import json, sys, tomllib
from pathlib import Path
here = Path({folder!r})
said = json.loads((here / "says.json").read_text())
arguments = sys.argv[1:]
with (here / "called.jsonl").open("a") as file:
    file.write(json.dumps(arguments) + "\\n")
if arguments[0] == "run":
    settings = tomllib.loads(Path(arguments[arguments.index("-c") + 1]).read_text())
    (here / "settings.json").write_text(json.dumps(settings))
    for step in said.get("steps", []):
        with open(settings["progress"], "a") as file:
            file.write(json.dumps(step) + "\\n")
    if "summary" in said:
        Path(settings["output-dir"], "summary.json").write_text(json.dumps(said["summary"]))
    print(json.dumps({{"success": True, "run-id": "7"}}))
elif arguments[0] == "ls":
    print(json.dumps(said["ls"]))
elif arguments[0] == "stop":
    print(json.dumps({{"success": True, "run-id": "7"}}))
"""
ENTROPY = "noise=entropy"


def runs(status, details="N/A"):
    return {"success": True, "runs": [{"run-id": "7", "status": status, "status-details": details}]}


class Federation:
    """A coordinator's folder whose SuperLink says what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.root, self.folder, self.output = folder, folder / "coordinator", folder / "out"
        (self.folder / "flower").mkdir(parents=True)
        config = {"federation": "lungs", "host": "localhost", "port": 8443, "superlink_port": 8000}
        (self.folder / "coordinator.yaml").write_text(yaml.safe_dump(config))
        command = folder / "bin" / "flwr"
        command.parent.mkdir()
        command.write_text(FLWR.format(python=sys.executable, folder=str(folder)))
        command.chmod(0o755)
        self.steps: list[dict] = []

    def says(self, **what) -> None:
        (self.root / "says.json").write_text(json.dumps(what))

    def run(self, *overrides, resume=False):
        return run_deployed(
            ROOT / "configs" / "quickstart.yaml",
            self.folder,
            self.output,
            [f"{key}={value}" for key, value in TINY.items()] + [ENTROPY, *overrides],
            watch=self.steps.append,
            resume=resume,
        )

    def called(self):
        return [json.loads(line)[0] for line in (self.root / "called.jsonl").read_text().splitlines()]


@pytest.fixture
def federation(tmp_path, monkeypatch):
    made = Federation(tmp_path)
    original = of_superlink.flower_environment

    def environment(home):
        quiet = original(home)
        return quiet | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{quiet['PATH']}"}

    monkeypatch.setattr(of_superlink, "flower_environment", environment)
    monkeypatch.setattr(deployment, "LOOK_SECONDS", 0.1)
    # `subprocess` finds a command by this process's PATH
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return made


DONE = {"step": "done", "status": "complete"}
SUMMARY = {"status": "complete", "methods": {"cadp-given-flow": {}, "dp-sgd": {}, "fedavg": {}}}


def test_a_run_names_the_federation_and_keeps_its_progress_in_its_folder(federation):
    federation.says(ls={"success": True, "runs": []}, steps=[DONE], summary=SUMMARY)
    assert federation.run() == SUMMARY
    settings = json.loads((federation.root / "settings.json").read_text())
    assert settings == {
        "config": str(federation.output / "config.yaml"),
        "output-dir": str(federation.output),
        "progress": str(federation.output / "progress.jsonl"),
        "federation": "lungs",
        "resume": False,
    }
    assert load_study(federation.output / "config.yaml").noise == "entropy"
    assert federation.steps[-1] == DONE
    assert json.loads((federation.output / "run.json").read_text())["flower_run"] == 7


def test_a_superlink_that_does_not_answer_is_one_sentence(federation):
    federation.says(ls={"success": False, "error-message": "Connection refused"})
    with pytest.raises(
        CadpError, match=r"It does not answer \(Connection refused\); start it with cadp-fl coordinator"
    ):
        federation.run()
    assert not federation.output.exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [("sites.names=null", r"Found no sites\.names"),
     ("methods={cadp: {}}", "takes a flow that no private record")],
)  # fmt: skip
def test_what_real_sites_would_refuse_is_refused_before_anything_starts(federation, override, said):
    federation.says(ls=runs("running"))
    with pytest.raises(ConfigError, match=said):
        federation.run(override)
    assert not federation.output.exists()


def test_a_folder_that_no_coordinator_made_is_refused(federation):
    (federation.folder / "coordinator.yaml").unlink()
    with pytest.raises(InputError, match=r"holds no coordinator\.yaml"):
        federation.run()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_goes_on_is_not_started_again(federation, resume):
    federation.says(ls={"success": True, "runs": []}, steps=[DONE], summary=SUMMARY | {"failure": "x"})
    federation.run()
    federation.says(ls=runs("running"))
    with pytest.raises(InputError, match="A folder has one run at a time"):
        federation.run(resume=resume)


def test_a_run_is_not_resumed_with_other_software_and_no_site_is_asked(federation, monkeypatch):
    federation.says(ls={"success": True, "runs": []}, steps=[DONE], summary=SUMMARY | {"failure": "x"})
    federation.run()
    Checkpoint.begin(federation.output, {}, Basis.of(load_study(federation.output / "config.yaml")), federation="lungs")
    versions = basis.installed_versions()
    monkeypatch.setattr(basis, "installed_versions", lambda: versions | {"torch": "1.0.0"})
    with pytest.raises(InputError, match=r"torch is 1\.0\.0 now and was .*pip install"):
        federation.run(resume=True)
    assert federation.called().count("run") == 1


def test_a_server_app_that_died_is_named_in_what_it_left(federation):
    summary = SUMMARY | {"status": "incomplete", "failure": "The run is going on, or stopped, after 'cadp'."}
    answer = {"step": "answer", "phase": "dp-sgd/train", "round": 1, "of": 2, "site": "north", "figures": {}}
    federation.says(ls=runs("finished:failed", "No heartbeat received"), steps=[answer], summary=summary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flower, "write_report", lambda folder: folder)
        with pytest.raises(
            CadpError, match="The server app died: Flower says 'finished:failed, No heartbeat received'"
        ):
            federation.run()
    left = json.loads((federation.output / "summary.json").read_text())
    assert left["failure"] == "The server app died: Flower says 'finished:failed, No heartbeat received'."
    assert federation.called().count("run") == 1


def test_a_server_app_that_dies_before_its_first_step_is_started_again(federation):
    federation.says(ls=runs("finished:failed"))
    with pytest.raises(CadpError, match="The server app died"):
        federation.run()
    assert federation.called().count("run") == deployment.STARTS


def test_the_status_says_which_sites_answered_wait_and_are_missing(federation):
    here = {"phase": "cadp/fetch", "round": 1, "of": 3}
    federation.says(
        ls={"success": True, "runs": []},
        steps=[
            {"step": "phases", "phases": {"cadp/fetch": 3}, "sites": 3},
            {"step": "answer", **here, "site": "north", "figures": {}},
            {"step": "wait", **here, "site": "east", "reason": "waits for its steward's approval"},
            {"step": "answer", **here, "site": "south", "failed": "its SuperNode is gone or offline"},
            {"step": "failed", "reason": "Phase 'cadp/fetch' needs 2 sites."},
        ],
    )
    with pytest.raises(CadpError, match="needs 2 sites"):
        federation.run()
    status = run_status(federation.output)
    assert (status["phase"], status["round"], status["of"]) == ("cadp/fetch", 1, 3)
    assert status["answered"] == ["north"]
    assert status["waiting"] == [{"site": "east", "reason": "waits for its steward's approval"}]
    assert [gap["site"] for gap in status["missing"]] == ["south"]
    assert status["end"] == {"status": "failed", "reason": "Phase 'cadp/fetch' needs 2 sites."}


def test_a_run_is_stopped_while_it_goes_on(federation):
    federation.says(ls={"success": True, "runs": []}, steps=[DONE], summary=SUMMARY)
    federation.run()
    federation.says(ls=runs("finished:completed"))
    with pytest.raises(InputError, match="is over"):
        stop_run(federation.output)
    federation.says(ls=runs("running"))
    stop_run(federation.output)
    assert federation.called()[-1] == "stop"
    with pytest.raises(InputError, match=r"left its run\.json"):
        stop_run(federation.root)

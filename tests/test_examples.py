"""The examples: a Flower app of someone else, before and after CADP was added to it."""

import difflib
import importlib
import json
import sys
import tempfile

import pytest
import torch
from flwr.app import Context, RecordDict

from cadp_fl.config import load_study
from cadp_fl.release.dataset import load_release
from cadp_fl.site.protocol import ACTIONS
from tests.conftest import ROOT
from tests.local_grid import LocalGrid

PLUGIN = ROOT / "examples" / "plugin"
APPS = ("client_app.py", "server_app.py")
MAX_LINES = 15

TINY = [
    "flow.scales=[{blocks: 1, channels: 4}]",
    "flow.training={rounds: 1, local_epochs: 1}",
    "classifier={width: 4, central: {epochs: 1}}",
    "methods={cadp-given-flow: {}, dp-sgd: {model: linear, rounds: 1}}",
]


def changed_lines() -> list[str]:
    """Return every line that is added or taken away, blank ones too."""
    lines = []
    for name in APPS:
        before, after = ((PLUGIN / side / "digits_app" / name).read_text().splitlines() for side in ("before", "after"))
        difference = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
        lines += [line for line in difference if line.startswith(("+", "-"))]
    return lines


def test_adding_cadp_to_an_app_takes_under_fifteen_lines():
    assert len(changed_lines()) < MAX_LINES
    assert not [line for line in changed_lines() if line.startswith("-")]


def test_nothing_else_of_the_app_differs():
    before, after = (
        {path.relative_to(PLUGIN / side): path.read_text() for path in (PLUGIN / side).rglob("*") if path.is_file()}
        for side in ("before", "after")
    )
    before, after = (
        {path: text for path, text in texts.items() if "__pycache__" not in path.parts} for texts in (before, after)
    )
    assert {path.name for path in after.keys() - before.keys()} == {"study.yaml"}
    different = {path.name for path in before if before[path] != after[path]}
    assert different == {*APPS, "pyproject.toml"}
    project = next(path for path in before if path.name == "pyproject.toml")
    assert after[project] == before[project].replace('"scikit-learn"]', '"scikit-learn", "cadp-fl"]')


@pytest.fixture(params=["before", "after"])
def host(request, monkeypatch):
    """Import one of the two apps, and forget it afterwards."""
    monkeypatch.syspath_prepend(PLUGIN / request.param)
    yield request.param
    for name in [name for name in sys.modules if name.split(".")[0] == "digits_app"]:
        del sys.modules[name]


def test_the_host_app_does_its_own_work_and_then_ours(host, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    client, server = (importlib.import_module(f"digits_app.{name.removesuffix('.py')}") for name in APPS)
    if host == "after":
        monkeypatch.setattr(server, "load_study", lambda path: load_study(path, TINY))
    grid = LocalGrid(client.app, 2, {})
    run_config = {"num-server-rounds": 2, "output-dir": str(tmp_path / "run")}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
    server.app(grid, context)
    kinds = [message.metadata.message_type for message in grid.sent]
    assert kinds[:8] == ["train"] * 2 + ["evaluate"] * 2 + ["train"] * 2 + ["evaluate"] * 2
    assert not any(reply.has_error() for reply in grid.replies)
    assert torch.load(tmp_path / "run" / "net.pt")["layers.1.weight"].shape == (32, 64)
    if host == "before":
        assert len(kinds) == 8
        return
    assert set(kinds[8:]) == set(ACTIONS.values()) - {
        ACTIONS[action] for action in ("train_local", "count", "moments", "train_private_flow")
    }
    summary = json.loads((tmp_path / "run" / "cadp" / "summary.json").read_text())
    assert (summary["status"], summary["noise"], summary["dataset"]) == ("complete", "entropy", "records")
    assert list(summary["methods"]) == ["cadp-given-flow", "dp-sgd"]
    assert [site["site"] for site in summary["sites"]] == ["site-1", "site-2"]
    released = load_release(*(tmp_path / "run" / "cadp" / "releases").iterdir())
    assert len(released) == sum(site["train"] for site in summary["sites"])

"""Laws of a roll call: every connected node is asked once, nothing is spent, and whoever is silent is named."""

import json

import pytest
from flwr.clientapp import ClientApp

import cadp_fl
from cadp_fl.doctor.round import attendance
from cadp_fl.errors import AgentError
from cadp_fl.federated.federation import Node
from cadp_fl.federated.flower_client import register
from cadp_fl.federated.flower_server import ROLL_CALL, describe_all
from cadp_fl.federated.roll_call import call_roll
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.site.client import AgentClient
from cadp_fl.site.protocol import Reply
from tests.local_grid import LocalGrid
from tests.site.agents import make, served


@pytest.fixture
def grid(tmp_path):
    folders = [make(tmp_path / name, name=name) for name in ("north", "east")]
    app = ClientApp()
    register(app, lambda context: AgentClient(folders[context.node_id - 10].socket))
    grid = LocalGrid(app, 2, {}, names=["north", "east"])
    grid.folders = folders
    return grid


def _called(grid, tmp_path):
    describe_all(grid, tmp_path)
    return json.loads((tmp_path / ROLL_CALL).read_text())


def test_every_site_says_what_it_is_and_spends_nothing(grid, tmp_path):
    before = [DurableLedger.as_found(folder.ledger).carried_out() for folder in grid.folders]
    with served(grid.folders[0]), served(grid.folders[1]):
        called = _called(grid, tmp_path)
    assert [(node["name"], node["site"], node["dataset"]) for node in called["nodes"]] == [
        ("east", "east", "digits"),
        ("north", "north", "digits"),
    ]
    assert called["library"] == cadp_fl.__version__
    assert [DurableLedger.as_found(folder.ledger).carried_out() for folder in grid.folders] == before
    assert {message.metadata.message_type for message in grid.sent} == {"query.cadp_describe"}
    assert "class_counts" not in json.dumps(called)
    assert [finding.state for finding in attendance(called, ["east", "north"])] == ["ok", "ok"]


def test_a_site_whose_agent_is_down_is_named_with_the_way_out(grid, tmp_path):
    with served(grid.folders[0]):
        called = _called(grid, tmp_path)
    east, north = called["nodes"]
    assert (east["code"], "error" in north) == (AgentError.code, False)
    finding = next(finding for finding in attendance(called, ["east", "north"]) if finding.state == "fault")
    assert finding.found.startswith("east:")
    assert "cadp-fl site serve" in finding.fix


def test_a_site_that_is_silent_is_named(grid, tmp_path, monkeypatch):
    monkeypatch.setattr("cadp_fl.federated.flower_server.ROLL_CALL_SECONDS", 0.2)
    grid.fail = {(10, "query.cadp_describe"): "silent", (11, "query.cadp_describe"): "crash"}
    called = _called(grid, tmp_path)
    found = list(attendance(called, ["east", "north"]))
    assert [finding.state for finding in found] == ["fault", "fault"]
    assert "did not answer in time" in found[1].found
    assert "secret 42" not in json.dumps(called)


def test_what_a_site_answers_is_not_trusted():
    class Transport:
        def nodes(self, expected):
            return [Node(1, "north")]

        def exchange(self, requests, *, group, on_answer):
            on_answer(1, Reply({"site": "north", "train": -4}))
            return frozenset()

    (node,) = call_roll(Transport())["nodes"]
    assert "another schema" in node["error"]


def _node(name, **other):
    described = {
        "site": name,
        "library": "0.1.0",
        "dataset": "digits",
        "classes": 10,
        "unit": "record",
        "train": 9,
        "test": 1,
        "noise": "entropy",
    }
    return {"name": name, "node": 1, **described, **other}


@pytest.mark.parametrize(
    ("nodes", "state", "said"),
    [
        ([_node("north")], "ok", "10 classes, 9 training"),
        ([_node("north", library="0.2.0")], "fault", "0.2.0"),
        ([_node("north", library="0.1.7")], "ok", "0.1.7"),
        ([_node("north", site="east")], "fault", "calls itself 'east'"),
        ([_node("north"), _node("east", dataset="xrays")], "warning", "different data sets"),
        ([_node("north", noise="seeded")], "warning", "from a seed"),
        ([], "fault", "Not connected, so not asked: north"),
    ],
    ids=["well", "other version", "other patch", "other name", "other data", "seeded", "away"],
)
def test_what_does_not_fit_is_named(nodes, state, said):
    found = list(attendance({"library": "0.1.0", "nodes": nodes}, ["north"]))
    assert any(finding.state == state and said in finding.found for finding in found)

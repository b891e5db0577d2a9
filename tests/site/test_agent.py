"""Laws of the agent: what a server's client code can obtain through its socket, and what it cannot."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from cadp_fl.config import FrontEndConfig
from cadp_fl.errors import (
    AgentError,
    BudgetError,
    CadpError,
    EditedPolicyError,
    ExchangeError,
    ReviewError,
    SeededNoiseError,
    TotalBudgetError,
    UnprotectedModelError,
)
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.events import GaussianSum, PoissonGaussian, Unprotected
from cadp_fl.privacy.plan import Plan
from cadp_fl.site.agent import command
from cadp_fl.site.audit_log import AuditLog
from cadp_fl.site.client import AgentClient
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import MomentsRequest, ReserveRequest
from tests.site.agents import make, served, start

FRONT = FrontEndConfig()
SUM = GaussianSum(stage="moments", clip_norm=FRONT.radius, noise_std=20.0)


def _plan(*events, method="cadp", run="run-1", delta=1e-5):
    return Plan(method, events, delta, run=run)


def _reserve(plan):
    return Request(
        "reserve", ReserveRequest(plans=(plan.to_json(),)).model_dump(mode="json"), run=plan.run, id="r/reserve"
    )


def _sum(request_id="run-1/cadp/moments/1", run="run-1"):
    settings = MomentsRequest(method="cadp", front_end=FRONT, event=SUM)
    return Request("moments", settings.model_dump(mode="json"), run=run, id=request_id)


def _log(folder):
    return [json.loads(line) for line in folder.audit.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "north")


def test_the_agent_answers_as_the_site_would(folder):
    with served(folder):
        client = AgentClient(folder.socket)
        described = client.call(Request("describe")).content
        assert described["site"] == "north"
        assert described["noise"] == "entropy"
        client.call(_reserve(_plan(SUM)))
        reply = client.call(_sum())
        assert reply.arrays
        assert "simulation_only" not in reply.content


def test_a_repeated_request_returns_the_stored_answer_and_spends_nothing(folder):
    with served(folder):
        client = AgentClient(folder.socket)
        client.call(_reserve(_plan(SUM)))
        first, again = client.call(_sum()), client.call(_sum())
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert [line["outcome"] for line in _log(folder) if line.get("action") == "moments"] == ["answered", "repeated"]
    assert len(_ledger(folder).spent("run-1/cadp")) == 1


def test_a_restarted_agent_goes_on_with_its_ledger_and_spends_nothing_twice(folder):
    with served(folder):
        client = AgentClient(folder.socket)
        client.call(_reserve(_plan(SUM)))
        first = client.call(_sum())
    with served(folder):
        again = AgentClient(folder.socket).call(_sum())
        with pytest.raises(BudgetError):
            AgentClient(folder.socket).call(_sum("run-1/cadp/moments/other"))
    assert all(np.array_equal(first.arrays[name], again.arrays[name]) for name in first.arrays)
    assert len(_ledger(folder).spent("run-1/cadp")) == 1


def test_an_agent_that_is_killed_starts_again(folder):
    process = start(folder)
    process.kill()
    process.wait()
    process.stdout.close()
    assert folder.socket.exists()
    with served(folder):
        AgentClient(folder.socket).call(Request("describe"))


def test_the_agent_ends_on_request_after_the_answer_at_hand(folder):
    process = start(folder)
    AgentClient(folder.socket).call(Request("describe"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 0
    process.stdout.close()
    assert not folder.socket.exists()
    assert [line["what"] for line in _log(folder)] == ["start", "request", "stop"]


def test_a_site_has_one_agent(folder):
    with served(folder), pytest.raises(AgentError, match="Another one serves"), served(folder):
        pass


@pytest.mark.parametrize(
    ("plan", "refusal"),
    [
        (_plan(SUM.model_copy(update={"noise_std": 0.4 * SUM.clip_norm})), TotalBudgetError),
        (_plan(Unprotected(stage="flow", what="flow weights")), UnprotectedModelError),
    ],
    ids=["over budget", "without privacy"],
)
def test_what_the_policy_does_not_allow_is_refused_by_number_and_without_a_detail(folder, plan, refusal):
    with served(folder):
        with pytest.raises(refusal) as error:
            AgentClient(folder.socket).call(_reserve(plan))
        assert str(error.value) == f"{refusal.meaning} (code {refusal.code})"
    line = _log(folder)[-2]
    assert (line["outcome"], line["code"], line["run"]) == ("refused", refusal.code, "run-1")
    assert line["text"]
    assert _ledger(folder).plans() == ()


def test_seeded_noise_needs_a_policy_that_allows_it(tmp_path, folder):
    with pytest.raises(SeededNoiseError), served(folder, seeded_noise=7):
        pass
    tests_only = make(tmp_path / "east", name="east", seeded_noise=True)
    with served(tests_only, seeded_noise=7):
        assert AgentClient(tests_only.socket).call(Request("describe")).content["noise"] == "seeded"


def test_no_request_chooses_the_noise_or_its_seed(folder):
    with served(folder):
        client = AgentClient(folder.socket)
        client.call(_reserve(_plan(SUM)))
        asked = _sum()
        for extra in ({"noise": "seeded"}, {"noise_seed": 7}, {"seed": 7}):
            with pytest.raises(CadpError) as error:
                client.call(Request("moments", {**asked.settings, **extra}, run="run-1", id=asked.id))
            assert error.value.code == 201
        weaker = {**asked.settings, "event": {**asked.settings["event"], "noise_std": 0.5}}
        with pytest.raises(BudgetError):
            client.call(Request("moments", weaker, run="run-1", id="run-1/cadp/moments/2"))
        wider = {**asked.settings, "front_end": {**asked.settings["front_end"], "radius": 9.0}}
        with pytest.raises(CadpError):
            client.call(Request("moments", wider, run="run-1", id="run-1/cadp/moments/3"))
    assert _ledger(folder).spent("run-1/cadp") == ()


def test_an_edited_policy_refuses_all_until_the_steward_reloads_it(folder):
    with served(folder):
        client = AgentClient(folder.socket)
        policy = yaml.safe_load(folder.policy.read_text())
        folder.policy.write_text(yaml.safe_dump({**policy, "epsilon": 90.0}))
        with pytest.raises(EditedPolicyError):
            client.call(_reserve(_plan(SUM)))
        with pytest.raises(CadpError):
            client.call(Request("describe"))
        assert command(folder, "status")["policy_in_force"] is False
        reloaded = command(folder, "reload")
        assert reloaded["changed"]
        client.call(_reserve(_plan(SUM)))
    reload = next(line for line in _log(folder) if line["what"] == "reload")
    assert (reload["before"], reload["policy"]) == (reloaded["before"], reloaded["policy"])


def test_an_edited_policy_that_was_put_back_holds_again(folder):
    text = folder.policy.read_text()
    with served(folder):
        folder.policy.write_text(text + "\n# a thought\n")
        with pytest.raises(EditedPolicyError):
            AgentClient(folder.socket).call(Request("describe"))
        folder.policy.write_text(text)
        AgentClient(folder.socket).call(Request("describe"))


@pytest.mark.parametrize("edit", ["epsilon: [", "epsilon: -1", "population: others"])
def test_a_policy_that_does_not_fit_is_not_put_into_force(folder, edit):
    with served(folder):
        kept = [line for line in folder.policy.read_text().splitlines() if not line.startswith(edit.split(":")[0])]
        folder.policy.write_text("\n".join([*kept, edit]))
        with pytest.raises(CadpError):
            command(folder, "reload")
        with pytest.raises(EditedPolicyError):
            AgentClient(folder.socket).call(Request("describe"))


def test_the_requests_socket_takes_no_commands(folder):
    from cadp_fl.site.client import ask
    from cadp_fl.site.wire import pack

    with served(folder), pytest.raises(ExchangeError):
        ask(folder.socket, pack({"command": "reload"}, {}, limit=1000))


def test_garbage_is_refused_and_logged_and_the_agent_goes_on(folder):
    with served(folder):
        for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", (5).to_bytes(8, "big") + b"hello", b"\xff" * 8):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(str(folder.socket))
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    connection.recv(1 << 16)
        AgentClient(folder.socket).call(Request("describe"))


def test_silent_connections_do_not_keep_the_steward_from_the_agent(folder):
    with served(folder):
        silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(12)]
        try:
            for connection in silent[:8]:
                connection.connect(str(folder.socket))
            assert command(folder, "status")["site"] == "north"
        finally:
            for connection in silent:
                connection.close()


def test_an_unforeseen_failure_crosses_as_a_number_and_is_logged_without_its_text(folder, monkeypatch):
    def broken(*_arguments, **_named):
        raise RuntimeError("pixel 17 of patient 4711")

    monkeypatch.setattr("cadp_fl.site.site.noised_moments", broken)
    with served(folder):
        client = AgentClient(folder.socket)
        client.call(_reserve(_plan(SUM)))
        with pytest.raises(CadpError) as error:
            client.call(_sum())
    assert "4711" not in str(error.value)
    assert "4711" not in folder.audit.read_text()
    line = next(line for line in _log(folder) if line.get("outcome") == "failed")
    assert (line["code"], line["error"]) == (100, "RuntimeError")
    assert line["at"].startswith("site/site.py")


def test_nothing_leaves_if_it_cannot_be_logged(folder):
    with served(folder):
        client = AgentClient(folder.socket)
        folder.audit.unlink()
        folder.audit.mkdir()
        with pytest.raises(AgentError):
            client.call(Request("describe"))
        folder.audit.rmdir()
        client.call(Request("describe"))


def test_the_log_shows_who_asked_for_what_and_holds_no_key(folder):
    with served(folder):
        AgentClient(folder.socket).call(Request("describe"))
    line = next(line for line in _log(folder) if line["what"] == "request")
    assert line["peer"]["uid"] == os.getuid()
    assert {"time", "action", "run", "id", "outcome", "bytes_in", "bytes_out", "seconds"} <= set(line)
    assert "PRIVATE" not in folder.audit.read_text()
    assert stat.S_IMODE(folder.audit.stat().st_mode) == 0o600


def _fetch(folder, run="r", event="cadp-release-1"):
    settings = {"event_id": event, "shard": "shards/00000.npz"}
    with contextlib.suppress(ReviewError):
        AgentClient(folder.socket).call(Request("fetch", settings, run=run, id=f"{run}/fetch/1"))


def test_a_release_that_waits_is_one_line_until_something_changes(folder, monkeypatch):
    from cadp_fl.site.protocol import Reply
    from cadp_fl.site.site import Site

    state = {"cadp-release-1": "waits", "cadp-release-2": "waits"}

    def answer(site, request):
        event = request.settings["event_id"]
        if state[event] != "approved":
            raise ReviewError(f"Records leave when the steward has approved. '{event}' {state[event]}; ask.")
        return Reply({})

    monkeypatch.setattr(Site, "answer", answer)
    lines = []
    with served(folder, announce=lines.append):
        for _ in range(5):
            _fetch(folder)
        _fetch(folder, event="cadp-release-2")
        for _ in range(3):
            _fetch(folder, event="cadp-release-2")
        _fetch(folder)
        state["cadp-release-1"] = "was denied"
        _fetch(folder)
        _fetch(folder)
        _fetch(folder, run="other")
        state["cadp-release-1"] = "approved"
        _fetch(folder)
        _fetch(folder)
    outcomes = [
        (each["event"], each.get("outcome"), each.get("repeats_before"))
        for each in _log(folder)
        if each["what"] in ("request", "repeats")
    ]
    assert outcomes == [
        ("cadp-release-1", "refused", None),
        ("cadp-release-2", "refused", None),
        ("cadp-release-1", "refused", 5),
        ("cadp-release-1", "refused", 1),
        ("cadp-release-1", "answered", None),
        ("cadp-release-1", "answered", None),
        ("cadp-release-2", None, 3),
    ], "the first wait, each change with what was repeated before, and at the end what no line has given"
    assert sum("fetch" in line for line in lines) == 6


def test_the_steward_reads_why_plans_would_be_refused_and_the_server_a_number(folder):
    plans = (_plan(Unprotected(stage="flow", what="weights")).to_json(),)
    with served(folder):
        content = AgentClient(folder.socket).call(Request("describe", {"plans": plans}, run="run-1")).content
        AgentClient(folder.socket).call(Request("describe"))
    assert content["refuses"] == UnprotectedModelError.code
    first, second = (line for line in _log(folder) if line.get("action") == "describe")
    assert "(policy: unprotected)" in first["would_refuse"]
    assert "would_refuse" not in second
    assert DurableLedger.as_found(folder.ledger).plans() == ()


def test_refusals_of_other_kinds_are_a_line_each(folder):
    with served(folder):
        for _ in range(3):
            with pytest.raises(CadpError):
                AgentClient(folder.socket).call(Request("fetch", {"event_id": "x-release-1", "shard": "00000.npz"}))
    assert sum(each.get("action") == "fetch" for each in _log(folder)) == 3


def test_one_request_at_a_time_and_the_others_wait(folder, monkeypatch):
    from cadp_fl.site.site import Site

    at_once, most = 0, 0
    answer = Site.answer

    def slow(site, request):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.05)
        at_once -= 1
        return answer(site, request)

    monkeypatch.setattr(Site, "answer", slow)
    with served(folder):
        threads = [
            threading.Thread(target=AgentClient(folder.socket).call, args=(Request("describe"),)) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1


def test_the_folder_is_its_users_alone(folder):
    for path in (folder.path, folder.config, folder.policy, folder.ledger, folder.outbox, folder.answers):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE(folder.node.key.stat().st_mode) == 0o600
    with served(folder):
        for path in (folder.socket, folder.control):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_where_no_agent_answers_the_error_says_so(tmp_path):
    with pytest.raises(AgentError, match="cadp-fl site serve"):
        AgentClient(tmp_path / "agent.sock").call(Request("describe"))


def test_client_code_brings_neither_torch_nor_data_code():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import clients.client_app\n"
        "bad = [n for n in sys.modules if n.split('.')[0] in ('torch', 'sklearn', 'FrEIA', 'opacus', 'scipy')\n"
        "       or n.startswith(('cadp_fl.data', 'cadp_fl.flow', 'cadp_fl.privacy', 'cadp_fl.study'))]\n"
        "print(bad)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def _ledger(folder):
    return DurableLedger.as_found(folder.ledger)


def test_a_lowered_delta_stops_what_was_reserved_before(folder):
    with served(folder):
        client = AgentClient(folder.socket)
        client.call(_reserve(_plan(SUM)))
        folder.policy.write_text(folder.policy.read_text().replace("delta: 0.0001", "delta: 1.0e-07"))
        command(folder, "reload")
        with pytest.raises(TotalBudgetError):
            client.call(_sum())


def test_a_plan_of_nothing_and_one_of_too_much_are_refused_at_once(folder):
    steps = PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=50.0, sampling_rate=1e-3, steps=1)
    many = [steps.model_copy(update={"noise_std": 50.0 + number}) for number in range(20)]
    with served(folder):
        client = AgentClient(folder.socket)
        with pytest.raises(BudgetError):
            client.call(_reserve(_plan()))
        for plan in (_plan(*many), _plan(*[SUM] * 2000)):
            with pytest.raises((ExchangeError, BudgetError)):
                client.call(_reserve(plan))


@pytest.mark.parametrize("action", ["evaluate", "train_classifier", "train_flow", "train_private_flow", "train_local"])
def test_nothing_is_built_for_who_reserved_nothing(folder, action, monkeypatch):
    def built(*_arguments, **_named):
        raise AssertionError("a server sized this, and had reserved nothing")

    monkeypatch.setattr("cadp_fl.site.context.build_classifier", built)
    monkeypatch.setattr("cadp_fl.site.context.ConditionalFlow", built)
    classifier, epochs = (
        {"model": "cnn", "width": 512},
        {"epochs": 1, "batch_size": 1, "learning_rate": 1, "momentum": 0},
    )
    steps = PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=50.0, sampling_rate=0.1, steps=1).model_dump()
    settings = {
        "evaluate": {"classifier": classifier},
        "train_classifier": {"classifier": classifier, "round": 1, "training": {"kind": "epochs", **epochs}},
        "train_local": {"classifier": classifier, "training": epochs},
        "train_flow": {"flow": {}, "round": 1},
        "train_private_flow": {
            **{"flow": {}, "round": 1, "rounds": 1, "event": steps},
            **{"copies": 1, "learning_rate": 0.1},
        },
    }[action]
    with served(folder), pytest.raises(BudgetError):
        AgentClient(folder.socket).call(Request(action, {"method": "m", "seed": 1, **settings}, run="r", id="r/1"))


def test_no_request_writes_to_the_stewards_terminal(folder):
    said = []
    with served(folder, announce=said.append):
        for action in ("x\n\x1b[2Jreload : answered", "A", "x" * 41):
            with pytest.raises(ExchangeError):
                AgentClient(folder.socket).call(Request(action))
    assert all(line.isprintable() for line in said)


def test_an_agent_that_is_told_twice_to_end_does_so_at_once(folder):
    process = start(folder)
    os.kill(process.pid, signal.SIGSTOP)
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait(timeout=20) in (0, 1)
    process.stdout.close()


def test_a_line_of_the_log_that_was_cut_off_is_no_line(tmp_path, monkeypatch):
    monkeypatch.setattr("cadp_fl.site.audit_log.os.write", lambda handle, data: len(data) - 1)
    with pytest.raises(CadpError, match="audit log first"):
        AuditLog(tmp_path / "audit.jsonl").write("request")

"""Laws of a site's doctor: each check finds its fault, and nothing where all is well."""

import contextlib
import datetime
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest
import yaml

from cadp_fl.config import Invitation, PolicyConfig, SiteConfig, parse
from cadp_fl.deployment.site_setup import make_site
from cadp_fl.doctor.diagnosis import diagnose
from cadp_fl.doctor.finding import examine
from cadp_fl.doctor.node import NODE_CHECKS, Node
from cadp_fl.doctor.site import SITE_CHECKS, Site
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.events import GaussianSum, Unprotected
from cadp_fl.privacy.plan import Allowance, Plan
from cadp_fl.site.client import AgentClient
from cadp_fl.site.keys import new_key_pair
from cadp_fl.site.protocol import Request
from tests.doctor.servers import serving
from tests.site.agents import POLICY, STUDY, served

SUM = GaussianSum(stage="moments", clip_norm=1.0, noise_std=2.0)
CAREFUL = {"review": True, "evaluation": None}


@pytest.fixture
def folder(tmp_path):
    return _made(tmp_path / "north")


def _made(path, address="localhost:9443", certificate=None, **policy):
    study = path.parent / "study.yaml"
    study.write_text(STUDY)
    config = parse(SiteConfig, {"site": "north", "rehearsal": str(study), "device": "cpu"})
    invitation = parse(Invitation, {"federation": "test", "address": address, "certificate": certificate})
    return make_site(path, config, parse(PolicyConfig, {**POLICY, **CAREFUL, **policy}), invitation).folder


def _look(folder, name, checks=SITE_CHECKS, subject=Site):
    found = examine([check for check in checks if check.name == name], subject(folder))
    assert found, name
    return found


def _worst(findings):
    order = ["ok", "skipped", "warning", "fault"]
    return max(findings, key=lambda finding: order.index(finding.state))


def _connection(folder, **other):
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    said = {"state": "connected", "since": now, "pid": os.getpid(), "reason": ""} | other
    (folder.node.flower / "connection.json").write_text(json.dumps(said))


def _edit(path, **changes):
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_a_site_where_all_is_well_has_no_fault_and_no_warning(tmp_path):
    with serving(tmp_path / "coordinator") as (address, authority):
        folder = _made(tmp_path / "north", address, authority.read_text())
        _connection(folder)
        before = DurableLedger.as_found(folder.ledger).carried_out()
        with served(folder):
            diagnosis = diagnose(folder.path)
            as_node = diagnose(folder.node.path)
    assert not diagnosis.is_faulty
    assert {finding.name for finding in diagnosis.findings if finding.state != "ok"} <= {"memory", "disk"}
    assert (diagnosis.side, as_node.side) == ("site", "node")
    assert not as_node.is_faulty
    assert DurableLedger.as_found(folder.ledger).carried_out() == before
    said = json.dumps(diagnosis.to_json())
    assert "481 training and 118 test units" in said
    assert "PRIVATE" not in said


def test_settings_that_cannot_be_read_are_a_fault_and_what_needs_them_is_skipped(folder):
    _edit(folder.config, colour="blue")
    assert "Unknown key 'colour'" in _worst(_look(folder, "site.yaml")).found
    for name in ("device", "files", "ledger", "records"):
        assert [finding.state for finding in _look(folder, name)] == ["skipped"]


def test_a_policy_that_cannot_be_read_is_a_fault(folder):
    folder.policy.write_text("epsilon: [")
    assert _worst(_look(folder, "policy")).state == "fault"
    assert [finding.state for finding in _look(folder, "ledger")] == ["skipped"]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"review": False}, "without anybody's look"),
        ({"unprotected": True}, "no privacy at all"),
        ({"seeded_noise": True}, "for tests alone"),
        ({"evaluation": {"exact": True, "epsilon": 10, "delta": 5e-4}}, "Exact results"),
        ({"aggregator": "trusted"}, "aggregator"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_policy_gives_up_is_a_warning_in_words(tmp_path, policy, said):
    folder = _made(tmp_path / "north", **policy)
    warnings = [finding for finding in _look(folder, "policy") if finding.state == "warning"]
    assert [said in finding.found for finding in warnings] == [True]
    assert all(finding.fix for finding in warnings)


def test_a_policy_for_too_few_units_is_a_fault(folder):
    _edit(folder.policy, delta=1e-3, min_units=5000)
    found = [finding for finding in _look(folder, "records") if finding.name == "policy"]
    assert [finding.state for finding in found] == ["fault", "fault"]
    assert "at most 1 / (10 n)" in found[0].found
    assert "481 training units, and takes part with 5000" in found[1].found


def test_a_class_below_the_policys_minimum_is_reported_where_labels_are_public(folder):
    _edit(folder.policy, min_class_units=400)
    assert any("min_class_units" in finding.found for finding in _look(folder, "records"))
    _edit(folder.policy, labels="covered")
    assert _worst(_look(folder, "records")).state == "ok"


@pytest.mark.parametrize("name", ["policy", "config", "ledger", "audit", "outbox"])
def test_what_others_may_read_is_a_fault(folder, name):
    path = getattr(folder, name)
    if not path.exists():
        path.touch(0o600)
    assert _worst(_look(folder, "files")).state == "ok"
    path.chmod(path.stat().st_mode | 0o040)
    finding = _worst(_look(folder, "files"))
    assert finding.state == "fault"
    assert str(path) in finding.found
    assert "chmod go-rwx" in finding.fix


def test_a_key_that_others_may_read_is_a_fault(folder):
    folder.node.key.chmod(0o644)
    assert str(folder.node.key) in _worst(_look(folder, "files")).found


def test_the_supernodes_group_has_its_part_and_no_more(tmp_path):
    from tests.site.agents import make

    folder = make(tmp_path / "north", group=str(os.getgid()))
    assert _worst(_look(folder, "files")).state == "ok"
    folder.node.path.chmod(0o770)
    assert "chmod o-rwx,g-w" in _worst(_look(folder, "files")).fix
    folder.node.path.chmod(0o750)
    folder.path.chmod(0o750)
    assert _worst(_look(folder, "files")).state == "fault"


def test_an_edited_ledger_is_a_fault(folder):
    with contextlib.closing(sqlite3.connect(folder.ledger)) as database:
        database.execute("PRAGMA trusted_schema=OFF")
        for (trigger,) in database.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            database.execute(f"DROP TRIGGER {trigger}")
        database.execute("UPDATE entries SET entry = replace(entry, 'digits', 'others')")
        database.commit()
    assert _worst(_look(folder, "ledger")).state == "fault"


def test_a_lost_mark_is_a_fault(folder):
    folder.ledger.with_name("ledger.db.mark").unlink()
    assert "mark" in _worst(_look(folder, "ledger")).found


def test_a_ledger_of_another_population_is_a_fault(folder):
    _edit(folder.policy, population="others")
    assert "one population" in _worst(_look(folder, "ledger")).found


def _reserve(folder, *events):
    ledger = DurableLedger.as_found(folder.ledger)
    ledger.reserve(Plan("cadp", events, 1e-5, run="r"), Allowance(100.0, 0.5))


@pytest.mark.parametrize(("kind", "state"), [("nfs4", "warning"), ("cifs", "warning"), ("ext4", "ok"), ("tmpfs", "ok")])
def test_a_ledger_on_a_file_system_of_the_network_is_a_warning(folder, monkeypatch, kind, state):
    mount = SimpleNamespace(mountpoint=str(folder.path), fstype=kind)
    monkeypatch.setattr("psutil.disk_partitions", lambda all: [mount])
    worst = _worst(_look(folder, "ledger"))
    assert worst.state == state
    assert (kind in worst.found) == (state == "warning")


def test_a_ledger_that_is_nearly_full_is_a_warning(folder):
    _reserve(folder, SUM)
    assert _worst(_look(folder, "ledger")).state == "ok"
    _edit(folder.policy, most_plans=1, most_entries=2)
    said = [finding.found for finding in _look(folder, "ledger") if finding.state == "warning"]
    assert said == ["It has 1 of the 1 plans that it takes.", "It has 2 of the 2 entries that it takes."]


def test_a_mark_that_a_crash_left_behind_is_a_warning(folder):
    mark = folder.ledger.with_name("ledger.db.mark")
    before = mark.read_bytes()
    _reserve(folder, SUM)
    assert _worst(_look(folder, "ledger")).state == "ok"
    mark.write_bytes(before)
    assert "remembers entry 0 of 1" in _worst(_look(folder, "ledger")).found


def test_a_budget_shows_what_is_promised_and_when_nothing_is_left(folder):
    _reserve(folder, SUM)
    (budget,) = [finding for finding in _look(folder, "ledger") if finding.name == "budget"]
    assert (budget.state, "of 10 is promised" in budget.found, "epsilon 0.00" in budget.found) == ("ok", True, False)
    _edit(folder.policy, epsilon=0.01)
    assert "nothing is left" in _worst(_look(folder, "ledger")).found


def test_what_left_without_privacy_is_reported(folder):
    _reserve(folder, Unprotected(stage="flow", what="flow weights"))
    assert "Something without privacy" in _worst(_look(folder, "ledger")).found


def test_records_that_cannot_be_read_are_a_fault(tmp_path, folder):
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    data = {"source": "medmnist", "path": str(tmp_path / "broken.npz"), "classes": ["a", "b"]}
    folder.config.write_text(yaml.safe_dump({"site": "north", "dataset": "x", "data": data}))
    assert _worst(_look(folder, "records")).state == "fault"
    (tmp_path / "broken.npz").chmod(0o644)
    warnings = [finding.found for finding in _look(folder, "files") if finding.state == "warning"]
    assert ["no user of its own" in warnings[0], "Everybody on this machine" in warnings[1]] == [True, True]


def test_a_device_that_is_not_there_is_a_fault(folder):
    _edit(folder.config, device="cuda:63")
    finding = _worst(_look(folder, "device"))
    assert (finding.state, "GPU 63" in finding.found) == ("fault", True)


def test_an_agent_that_does_not_run_is_a_fault(folder):
    finding = _worst(_look(folder, "agent"))
    assert finding.state == "fault"
    assert "cadp-fl site serve" in finding.fix


@pytest.mark.parametrize("name", ["control", "socket"])
def test_a_socket_that_a_killed_agent_left_is_a_fault(folder, name):
    path = getattr(folder, name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    checks, subject = ((SITE_CHECKS, folder), (NODE_CHECKS, folder.node))[name == "socket"]
    kind = Node if name == "socket" else Site
    finding = _worst(_look(subject, "agent", checks, kind))
    assert (finding.state, "refused" in finding.found) == ("fault", True)


def test_an_agent_without_its_policy_is_a_fault(folder):
    with served(folder):
        assert _worst(_look(folder, "agent")).state == "ok"
        _edit(folder.policy, epsilon=9)
        finding = _worst(_look(folder, "agent"))
    assert finding.state == "fault"
    assert "cadp-fl site reload" in finding.fix


def test_an_agent_at_work_is_not_asked_for_a_round(folder, monkeypatch):
    from cadp_fl.site.site import Site as TheSite

    goes_on, began, answer = threading.Event(), threading.Event(), TheSite.answer

    def slow(site, request):
        began.set()
        assert goes_on.wait(30)
        return answer(site, request)

    monkeypatch.setattr(TheSite, "answer", slow)
    with served(folder):
        busy = threading.Thread(target=AgentClient(folder.socket).call, args=(Request("describe"),))
        busy.start()
        try:
            assert began.wait(30)
            (finding,) = _look(folder, "agent")
        finally:
            goes_on.set()
            busy.join()
    assert (finding.state, "is at 'describe'" in finding.found) == ("ok", True)


def test_an_agent_of_another_version_is_a_fault(folder, monkeypatch):
    with served(folder):
        monkeypatch.setattr("cadp_fl.doctor.node.cadp_fl.__version__", "9.9.9")
        monkeypatch.setattr("cadp_fl.site.site.cadp_fl", type("Old", (), {"__version__": "0.0.1"}))
        finding = _worst(_look(folder, "agent"))
    assert (finding.state, "0.0.1" in finding.found) == ("fault", True)


def test_an_agent_with_seeded_noise_is_a_warning(tmp_path):
    folder = _made(tmp_path / "north", seeded_noise=True)
    with served(folder, seeded_noise=7):
        assert _worst(_look(folder, "agent")).state == "warning"


def test_a_key_that_does_not_fit_its_public_key_is_a_fault(folder):
    assert _worst(_look(folder, "key")).state == "ok"
    folder.node.public_key("north").write_bytes(new_key_pair("north")[1])
    assert "is not the public key" in _worst(_look(folder, "key")).found


def test_a_key_of_another_kind_is_a_fault(folder):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    folder.node.key.write_bytes(other)
    assert "EC P-384" in _worst(_look(folder, "key")).found
    folder.node.key.write_text("no key")
    assert _worst(_look(folder, "key")).state == "fault"


def test_a_folder_that_was_moved_is_reported(folder):
    folder.path.rename(folder.path.with_name("moved"))
    moved = type(folder)(folder.path.with_name("moved"))
    assert _worst(_look(moved, "node settings")).state == "warning"


@pytest.mark.parametrize(
    ("said", "found", "fix"),
    [
        ({"state": "stopped", "pid": None}, "does not run", "cadp-fl site connect"),
        (
            {"state": "refused", "reason": "The coordinator has not admitted this site's key; send it north.pub."},
            "not admitted",
            "Send it north.pub.",
        ),
        ({"state": "connecting", "reason": "Nobody answers."}, "Nobody answers", "Fix"),
        ({"pid": 1 << 30}, "gone without a word", "cadp-fl site connect"),
        ({"since": "2001-01-01T00:00:00+00:00"}, "gone without a word", "cadp-fl site connect"),
        ({"since": "yesterday"}, "damaged", "cadp-fl site connect"),
    ],
    ids=["stopped", "refused", "connecting", "killed", "before a restart", "damaged"],
)
def test_a_supernode_that_is_not_connected_is_a_fault(folder, said, found, fix):
    _connection(folder, **said)
    (finding,) = _look(folder, "SuperNode")
    assert (finding.state, found in finding.found, fix in finding.fix) == ("fault", True, True)


def test_a_supernode_that_was_never_started_is_a_fault(folder):
    assert "never started" in _worst(_look(folder, "SuperNode")).found
    _connection(folder, state="connecting")
    assert _worst(_look(folder, "SuperNode")).state == "warning"
    _connection(folder)
    assert psutil.pid_exists(os.getpid())
    assert _worst(_look(folder, "SuperNode")).state == "ok"


def test_the_command_says_what_is_wrong_and_exits_by_it(folder):
    folder.policy.chmod(0o640)
    command = [sys.executable, "-m", "cadp_fl.cli.main", "doctor", str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "policy.yaml" in line and line.startswith("fault"))
    assert "Others may reach" in line
    assert "Fix: Run chmod go-rwx" in done.stdout
    diagnosis = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True).stdout)
    assert (diagnosis["side"], diagnosis["faulty"]) == ("site", True)
    assert {"check", "state", "found", "fix"} == set(diagnosis["findings"][0])


def test_a_folder_of_nobodys_is_refused_in_one_sentence(tmp_path):
    command = [sys.executable, "-m", "cadp_fl.cli.main", "doctor", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1

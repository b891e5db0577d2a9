"""The laws of every ledger, and what only one that lasts must keep: no crash, race or restored copy forgets a spend."""

import json
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cadp_fl import outputs
from cadp_fl.errors import BudgetError, CadpError, ConfigError, ExchangeError, LedgerError, TotalBudgetError, UnitError
from cadp_fl.privacy import chain
from cadp_fl.privacy import plan as plan_module
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.plan import Allowance, Plan
from tests.conftest import ROOT
from tests.privacy.ledger_events import CENTRE, LAPLACE, LIMIT, MOMENTS, STEP, WEIGHTS

TERMS = {"population": "chest", "unit": "record"}
TWO = Plan("m", (LAPLACE,) * 2, 1e-6, run="first")
SHA = "a" * 64


def reopened(tmp_path, **named):
    return DurableLedger.open(tmp_path / "ledger.db", **{**TERMS, **named})


@pytest.fixture
def ledger(tmp_path):
    return DurableLedger.create(tmp_path / "ledger.db", **TERMS)


@pytest.fixture(params=["memory", "durable"])
def any_ledger(request, tmp_path):
    return MemoryLedger() if request.param == "memory" else DurableLedger.create(tmp_path / "ledger.db", **TERMS)


class TestEveryLedger:
    def test_a_plan_is_spent_in_parts_and_no_further(self, any_ledger):
        plan = Plan("dp-sgd", (STEP.model_copy(update={"steps": 3}),), 1e-6)
        any_ledger.reserve(plan, Allowance(10, 1e-5))
        for _ in range(3):
            any_ledger.spend("dp-sgd", STEP)
        with pytest.raises(BudgetError, match="An event must be in the plan"):
            any_ledger.spend("dp-sgd", STEP)
        assert any_ledger.spent("dp-sgd") == (STEP,) * 3
        assert any_ledger.plans() == (plan,)

    def test_a_centre_and_the_moments_around_it_are_spent_once_each(self, any_ledger):
        any_ledger.reserve(Plan("m", (CENTRE, MOMENTS), 1e-6), LIMIT)
        ids = set()
        for event in (CENTRE, MOMENTS):
            with pytest.raises(BudgetError):
                any_ledger.spend("m", event.model_copy(update={"shares": 3}))
            ids.add(any_ledger.spend("m", event))
            with pytest.raises(BudgetError):
                any_ledger.spend("m", event)
        assert len(ids) == 2
        assert any_ledger.spent("m") == (CENTRE, MOMENTS)
        assert any_ledger.plans() == (Plan("m", (CENTRE, MOMENTS), 1e-6),)

    def test_nothing_is_spent_without_a_plan(self, any_ledger):
        with pytest.raises(BudgetError, match="'m' has none"):
            any_ledger.spend("m", LAPLACE)
        assert any_ledger.plans() == ()

    def test_the_same_plan_is_reserved_once_and_another_under_its_name_never(self, any_ledger):
        any_ledger.reserve(TWO, LIMIT)
        any_ledger.reserve(TWO, LIMIT)
        with pytest.raises(BudgetError, match="reserves one plan"):
            any_ledger.reserve(replace(TWO, events=(LAPLACE,)), LIMIT)
        assert any_ledger.plans() == (TWO,)

    def test_a_plan_beyond_the_limit_is_not_written_down(self, any_ledger):
        for plan in (replace(TWO, events=(LAPLACE,) * 5), replace(TWO, delta=1.1e-5)):
            with pytest.raises(TotalBudgetError):
                any_ledger.reserve(plan, LIMIT)
        assert any_ledger.plans() == ()

    def test_a_request_with_another_body_is_refused(self, any_ledger):
        any_ledger.reserve(TWO, LIMIT)
        any_ledger.spend(TWO.key, LAPLACE, request="q", body="b")
        with pytest.raises(ExchangeError):
            any_ledger.answered("q", "other")
        with pytest.raises(ExchangeError):
            any_ledger.spend(TWO.key, LAPLACE, request="q", body="other")
        assert any_ledger.answered("q", "b") is None

    def test_a_retry_is_paid_for_by_the_reserve_alone(self, any_ledger):
        cost = epsilon_of([STEP], 1e-7)
        plan = Plan("m", (STEP,), 2e-6, retry=Allowance(1.2 * cost, 1e-6))
        any_ledger.reserve(plan, Allowance(10, 1e-5))
        for _ in range(2):
            any_ledger.spend("m", STEP, request="q", body="b")
        with pytest.raises(BudgetError, match="retry reserve"):
            any_ledger.spend("m", STEP, request="q", body="b")
        assert any_ledger.spent("m") == (STEP, STEP)

    def test_a_retry_spends_the_event_of_its_request_and_no_other(self, any_ledger):
        plan = Plan("m", (STEP,), 2e-6, retry=Allowance(3.0, 1e-6))
        any_ledger.reserve(plan, Allowance(10, 1e-5))
        any_ledger.reserve(replace(plan, run="second"), Allowance(10, 1e-5))
        any_ledger.spend("m", STEP, request="q", body="b")
        for key, event in (("m", WEIGHTS), ("m", LAPLACE), ("second/m", LAPLACE)):
            with pytest.raises(BudgetError, match=r"events that it was spent on|must be in the plan"):
                any_ledger.spend(key, event, request="q", body="b")

    @pytest.mark.parametrize("number", [10**400, float("nan"), float("inf"), "1", None])
    def test_a_plan_of_numbers_that_are_none_is_no_plan(self, any_ledger, number):
        for change in ({"delta": number}, {"retry": {"epsilon": number, "delta": 1e-9}}):
            with pytest.raises(ValueError, match=r"a number|delta is|retry reserve"):
                Plan.from_json(TWO.to_json() | change)


def test_plans_add_up_over_runs_and_processes_that_come_and_go(ledger, tmp_path):
    ledger.reserve(TWO, LIMIT)
    reopened(tmp_path).reserve(replace(TWO, run="second"), LIMIT)
    with pytest.raises(TotalBudgetError):
        reopened(tmp_path).reserve(Plan("m", (LAPLACE,), 1e-6, run="third"), LIMIT)
    ledger.reserve(Plan("m", (LAPLACE,), 1e-6, run="third", split="test"), LIMIT)


def test_an_id_never_comes_twice(ledger):
    ledger.reserve(TWO, LIMIT)
    ledger.reserve(replace(TWO, run="second"), LIMIT)
    assert [ledger.spend(key, LAPLACE) for key in ("first/m", "second/m", "first/m")] == [
        "m-release-1",
        "m-release-2",
        "m-release-3",
    ]


def test_ids_count_as_those_of_a_simulation_do(ledger):
    memory = MemoryLedger()
    for each in (ledger, memory):
        each.reserve(TWO, LIMIT)
    assert [ledger.spend(TWO.key, LAPLACE) for _ in range(2)] == [memory.spend(TWO.key, LAPLACE) for _ in range(2)]


def test_a_stored_answer_is_given_and_never_replaced(ledger, tmp_path):
    with pytest.raises(ExchangeError, match="paid for"):
        ledger.store("q", SHA)
    ledger.reserve(TWO, LIMIT)
    ledger.spend(TWO.key, LAPLACE, request="q", body="b")
    ledger.store("q", SHA)
    ledger.store("q", SHA)
    assert reopened(tmp_path).answered("q", "b") == SHA
    with pytest.raises(ExchangeError, match="answered once"):
        ledger.store("q", "b" * 64)
    with pytest.raises(ExchangeError, match="answered once"):
        ledger.spend(TWO.key, LAPLACE, request="q", body="b")
    with pytest.raises(ExchangeError, match="sha256"):
        ledger.store("q", "no hash")
    assert len(ledger.links()) == 4


def test_an_entry_is_parsed_once_however_often_a_ledger_is_read(ledger, monkeypatch):
    """A server may reserve plans of hundreds of events each that cost next to nothing: reading them again is cheap."""
    parsed, real = [], plan_module.events_from_json
    monkeypatch.setattr(plan_module, "events_from_json", lambda tree: parsed.append(1) or real(tree))
    for run in range(20):
        ledger.reserve(replace(TWO, run=f"r{run}"), Allowance(1000, 1e-3))
    before = len(parsed)
    assert before <= 4 * 20
    assert len(ledger.plans()) == 20
    ledger.committed("train")
    assert len(parsed) == before + 1  # the entry that was just written


def test_what_is_written_is_bounded_and_can_be_read_again(ledger):
    with pytest.raises(LedgerError, match="give the limit"):
        ledger.reserve(TWO)
    with pytest.raises(UnitError):
        ledger.reserve(replace(TWO, unit="patient"), LIMIT)
    for plan in (replace(TWO, method="../m"), replace(TWO, method="m" * 41), replace(TWO, run="r" * 201)):
        with pytest.raises(ExchangeError, match="names its method"):
            ledger.reserve(plan, LIMIT)
    with pytest.raises(ExchangeError, match="retry reserve"):
        ledger.reserve(replace(TWO, retry=Allowance(0.0, -1e-7)), LIMIT)
    with pytest.raises(LedgerError, match="bytes"):
        ledger.reserve(replace(TWO, events=(WEIGHTS,) * 20_000), LIMIT)
    ledger.reserve(TWO, LIMIT)
    with pytest.raises(ExchangeError, match="200 characters"):
        ledger.spend(TWO.key, LAPLACE, request="q" * 201)
    assert ledger.plans() == (TWO,)
    assert len(ledger.links()) == 2


def test_a_ledger_is_of_one_population_and_unit(tmp_path):
    terms = {"population": "chest", "unit": "patient", "records_per_unit": 3}
    DurableLedger.create(tmp_path / "ledger.db", **terms)
    assert DurableLedger.open(tmp_path / "ledger.db", **terms).terms.records_per_unit == 3
    for other in ({"population": "heart"}, {"unit": "record"}, {"records_per_unit": 2}):
        with pytest.raises(LedgerError, match="one population and one unit"):
            DurableLedger.open(tmp_path / "ledger.db", **{**terms, **other})
    for wrong in ({"population": "Chest X"}, {"unit": "image"}, {"records_per_unit": 0}):
        with pytest.raises(ConfigError):
            DurableLedger.create(tmp_path / "other.db", **{**terms, **wrong})
    assert not (tmp_path / "other.db").exists()


def test_a_ledger_is_never_made_over_another_nor_beside_the_mark_of_one(ledger, tmp_path):
    ledger.reserve(TWO, LIMIT)
    for missing in ("none", "ledger.db.mark", "ledger.db"):
        aside = tmp_path / "aside"
        if missing != "none":
            (tmp_path / missing).rename(aside)
        with pytest.raises(LedgerError, match="never over another"):
            DurableLedger.create(tmp_path / "ledger.db", **TERMS)
        if missing != "none":
            aside.rename(tmp_path / missing)
    assert reopened(tmp_path).plans() == (TWO,)


def test_a_mark_may_lie_elsewhere_but_not_in_the_ledger(tmp_path):
    mark = tmp_path / "witness" / "mark"
    with pytest.raises(LedgerError, match="lies in a folder that is there"):
        DurableLedger.create(tmp_path / "ledger.db", mark=mark, **TERMS)
    assert list(tmp_path.iterdir()) == []
    mark.parent.mkdir()
    DurableLedger.create(tmp_path / "ledger.db", mark=mark, **TERMS).reserve(TWO, LIMIT)
    assert reopened(tmp_path, mark=mark).plans() == (TWO,)
    assert json.loads(mark.read_text())["number"] == 1
    with pytest.raises(LedgerError, match="Found none"):
        reopened(tmp_path)
    for name in ("other.db", "other.db-wal"):
        with pytest.raises(LedgerError, match="another file"):
            DurableLedger.create(tmp_path / "other.db", mark=tmp_path / name, **TERMS)


def test_files_are_the_owners_alone(ledger, tmp_path):
    ledger.reserve(TWO, LIMIT)
    for name in ("ledger.db", "ledger.db.mark"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        (tmp_path / name).chmod(0o602)
        with pytest.raises(LedgerError, match="not for everyone"):
            reopened(tmp_path)
        (tmp_path / name).chmod(0o600)


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db.mark"])
@pytest.mark.parametrize("kind", ["symbolic", "hard", "folder"])
def test_a_link_is_no_ledger_and_no_mark(ledger, tmp_path, name, kind):
    elsewhere = tmp_path / "elsewhere"
    if kind == "hard":
        elsewhere.hardlink_to(tmp_path / name)
    else:
        (tmp_path / name).rename(elsewhere)
        (tmp_path / name).symlink_to(elsewhere) if kind == "symbolic" else (tmp_path / name).mkdir()
    for use in (lambda: reopened(tmp_path), lambda: ledger.reserve(TWO, LIMIT)):
        with pytest.raises(LedgerError, match="without links"):
            use()


def edit(tmp_path, *statements):
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        for statement in statements:
            database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET entry = '{}'",
        "DELETE FROM entries",
        "DELETE FROM entries WHERE number = 2",
        "INSERT INTO entries VALUES (7, '', '', '', '')",
        "REPLACE INTO entries VALUES (1, '', '', '', '')",
    ],
)
def test_the_database_itself_only_appends(ledger, tmp_path, statement):
    ledger.reserve(TWO, LIMIT)
    ledger.spend(TWO.key, LAPLACE)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        edit(tmp_path, statement)
    assert len(reopened(tmp_path).links()) == 3


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (["DROP TRIGGER no_update"], "table or triggers"),
        (["CREATE TABLE notes (text)"], "table or triggers"),
        (["UPDATE entries SET entry = replace(entry, '4.0', '9.0')"], "does not have its hash"),
        (["UPDATE entries SET time = '1970' WHERE number = 0"], "does not have its hash"),
        (["UPDATE entries SET hash = upper(hash) WHERE number = 1"], "does not have its hash"),
        (["UPDATE entries SET entry = x'00' WHERE number = 1"], "does not follow"),
        (["UPDATE entries SET entry = CAST(x'ff' AS TEXT) WHERE number = 1"], "cannot be used"),
        (["UPDATE entries SET entry = printf('%.*c', 3000000, 'x') WHERE number = 1"], "cannot be used"),
        (["UPDATE entries SET previous = hash WHERE number = 2"], "does not follow"),
        (["UPDATE entries SET number = number + 1 WHERE number = 2"], "does not follow"),
        (["DELETE FROM entries WHERE number = 1"], "does not follow"),
        (["DELETE FROM entries WHERE number = 2"], "older than its mark"),
        (["DELETE FROM entries"], "no entry"),
    ],
)
@pytest.mark.parametrize("when", ["open", "append", "read"])
def test_an_edited_ledger_is_refused_even_in_mid_flight(ledger, tmp_path, statements, reason, when):
    ledger.reserve(TWO, LIMIT)
    ledger.spend(TWO.key, LAPLACE)
    triggers = [] if "table or" in reason else ["no_update", "no_delete", "only_next"]
    edit(
        tmp_path,
        *(f"DROP TRIGGER {name}" for name in triggers),
        *statements,
        *(chain.SCHEMA[name] for name in triggers),
    )
    use = {"open": lambda: reopened(tmp_path), "append": lambda: ledger.spend(TWO.key, LAPLACE), "read": ledger.plans}
    with pytest.raises(LedgerError, match=reason):
        use[when]()


@pytest.mark.parametrize(
    "entry",
    [
        "[]",
        "{",
        "1",
        "{}",
        '{"reserve": {"method": "m"}}',
        '{"spend": 1}',
        '{"spend": {"plan": "first/m"}}',
        '{"answer": {"request": 1, "sha256": ""}}',
        '{"terms": {}}',
        '{"later": {}}',
        '{"sides": {"sha256": "1234"}}',
        '{"spend": {"plan": "m", "event": {}, "request": "", "body": ""}}',
        "[" * 100_000,
        "1" * 10_000,
    ],
    ids=lambda entry: entry[:20],
)
def test_an_entry_that_is_none_is_refused_whatever_its_hash(ledger, tmp_path, entry):
    previous = ledger.links()[0].hash
    forged = (1, previous, chain.entry_hash(previous, 1, "now", entry), "now", entry)
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", forged)
    database.close()
    for use in (ledger.plans, lambda: reopened(tmp_path)):
        with pytest.raises(LedgerError):
            use()


@pytest.mark.parametrize("data", [b"", b"SQLite format 3\0" + b"\0" * 5000, b"x" * 9000])
def test_a_file_that_is_no_database_is_refused(ledger, tmp_path, data):
    (tmp_path / "ledger.db").write_bytes(data)
    with pytest.raises(LedgerError):
        reopened(tmp_path)
    assert (tmp_path / "ledger.db").read_bytes()[:20] == data[:20]


@pytest.mark.parametrize(
    "mark",
    [
        b"",
        b"{",
        b"[1]",
        b'{"ledger": "a", "number": 1}',
        b'{"ledger": "a", "number": true, "hash": "b"}',
        b'{"ledger": 1, "number": 1, "hash": "b"}',
        b'{"ledger": "a", "number": -1, "hash": "b"}',
        b"[" * 5000,
    ],
)
def test_a_damaged_mark_is_refused_with_a_way_out(ledger, tmp_path, mark):
    kept = (tmp_path / "ledger.db.mark").read_bytes()
    (tmp_path / "ledger.db.mark").write_bytes(mark)
    with pytest.raises(LedgerError, match="an older one will do"):
        reopened(tmp_path)
    (tmp_path / "ledger.db.mark").write_bytes(kept)
    assert reopened(tmp_path).plans() == ()


def test_a_mark_of_another_ledger_or_of_another_entry_is_refused(ledger, tmp_path):
    other = DurableLedger.create(tmp_path / "other.db", **TERMS)
    mark = tmp_path / "ledger.db.mark"
    with pytest.raises(LedgerError, match="belongs to one ledger"):
        reopened(tmp_path, mark=other.mark)
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "hash": "0" * 64}))
    with pytest.raises(LedgerError, match="is not the one that"):
        reopened(tmp_path)


def test_an_older_mark_will_do_and_is_brought_up_to_date_before_anything_is_added(ledger, tmp_path):
    ledger.reserve(TWO, LIMIT)
    older = ledger.mark.read_bytes()
    ledger.spend(TWO.key, LAPLACE)
    ledger.mark.write_bytes(older)
    with pytest.raises(BudgetError):
        reopened(tmp_path).spend("none", LAPLACE)
    ledger.reserve(TWO, LIMIT)
    assert json.loads(ledger.mark.read_text())["number"] == 2


@pytest.mark.parametrize("in_flight", [False, True], ids=["closed", "open elsewhere"])
@pytest.mark.parametrize("how", ["copied over", "renamed over", "without its log"])
def test_a_restored_backup_is_refused(ledger, tmp_path, how, in_flight):
    ledger.reserve(TWO, LIMIT)
    holder = sqlite3.connect(tmp_path / "ledger.db")
    if in_flight:  # then the log of the database outlives every writer
        holder.execute("SELECT count(*) FROM entries").fetchall()
    backup = tmp_path / "backup"
    backup.mkdir()
    for path in tmp_path.glob("ledger.db*"):
        shutil.copy(path, backup / path.name)
    ledger.spend(TWO.key, LAPLACE)
    aside = tmp_path / "aside"
    aside.mkdir()
    for path in tmp_path.glob("ledger.db*"):
        if path != ledger.mark:
            shutil.copy(path, aside / path.name)
    for path in [tmp_path / f"ledger.db{suffix}" for suffix in ("-wal", "-shm")]:
        path.unlink(missing_ok=True)
    for path in backup.iterdir():
        target = tmp_path / path.name
        if target == ledger.mark or (how == "without its log" and path.name != "ledger.db"):
            continue
        path.replace(target) if how == "renamed over" else shutil.copyfile(path, target)
    for use in (lambda: reopened(tmp_path), ledger.plans, lambda: ledger.spend(TWO.key, LAPLACE)):
        with pytest.raises(LedgerError):
            use()
    holder.close()
    for path in tmp_path.glob("ledger.db*"):
        if path != ledger.mark:
            path.unlink()
    for path in aside.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    assert reopened(tmp_path).spent(TWO.key) == (LAPLACE,)


def test_a_log_that_was_taken_away_is_missed(ledger, tmp_path):
    holder = sqlite3.connect(tmp_path / "ledger.db")
    holder.execute("SELECT count(*) FROM entries").fetchall()
    ledger.reserve(TWO, LIMIT)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("ledger.db", "ledger.db.mark"):
        shutil.copy(tmp_path / name, copy / name)
    holder.close()
    with pytest.raises(LedgerError):
        reopened(copy)


def test_a_missing_ledger_is_not_made_anew(ledger, tmp_path):
    for path in tmp_path.glob("ledger.db*"):
        path.unlink()
    for use in (lambda: reopened(tmp_path), ledger.plans, lambda: ledger.reserve(TWO, LIMIT)):
        with pytest.raises(LedgerError, match=r"Found none at .*ledger.db'"):
            use()
    assert not list(tmp_path.iterdir())


def test_a_locked_ledger_refuses_in_time(ledger, tmp_path):
    holder = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(LedgerError, match="wait for the process"):
        reopened(tmp_path, timeout=0.2).reserve(TWO, LIMIT)
    assert time.monotonic() - start < 5
    holder.execute("ROLLBACK")
    holder.close()
    ledger.reserve(TWO, LIMIT)


def in_child(work):
    """Run a function in a child process, and return what it raised."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            work()
            os.write(writer, b"nothing")
        except CadpError as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("room", [0, 100, 4096, 8192, 9000])
def test_a_full_disk_refuses_and_loses_nothing(ledger, tmp_path, room):
    ledger.reserve(TWO, LIMIT)

    def spend():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        for _ in range(2):
            ledger.spend(TWO.key, LAPLACE)

    assert in_child(spend).startswith("LedgerError: A ledger is written and synced before anything is computed.")
    after = reopened(tmp_path)
    assert after.plans() == (TWO,)
    assert len(after.spent(TWO.key)) <= 2
    after.links()


@pytest.mark.parametrize("room", [0, 100, 4096])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_ledger_that_cannot_be_made_leaves_nothing(tmp_path, room):
    def make():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        DurableLedger.create(tmp_path / "ledger.db", **TERMS)

    assert in_child(make).startswith("LedgerError: A ledger is written")
    assert not list(tmp_path.iterdir())
    DurableLedger.create(tmp_path / "ledger.db", **TERMS)


def test_a_read_only_database_is_refused(ledger, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(
        chain.sqlite3, "connect", lambda name, **named: connect(name.replace("mode=rw", "mode=ro"), **named)
    )
    with pytest.raises(LedgerError, match="let the site's user write"):
        ledger.reserve(TWO, LIMIT)


def test_a_mark_that_cannot_be_written_refuses_and_costs_one_event_at_most(ledger, tmp_path, monkeypatch):
    ledger.reserve(TWO, LIMIT)

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(outputs.os, "fsync", full)
        for _ in range(3):
            with pytest.raises(LedgerError, match=r"No space left on device.*make room"):
                ledger.spend(TWO.key, LAPLACE)
    assert len(reopened(tmp_path).spent(TWO.key)) == 1
    ledger.spend(TWO.key, LAPLACE)


def test_the_entry_is_committed_and_synced_before_the_mark_and_the_mark_before_the_return(ledger, monkeypatch):
    seen, connect, fsync, replaced = [], sqlite3.connect, os.fsync, os.replace

    def traced(*arguments, **named):
        database = connect(*arguments, **named)
        database.set_trace_callback(lambda statement: seen.append(statement.split(" (")[0].split(" VALUES")[0]))
        return database

    def synced(handle):
        seen.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        fsync(handle)

    def renamed(*arguments, **named):
        seen.append("rename")
        replaced(*arguments, **named)

    monkeypatch.setattr(chain.sqlite3, "connect", traced)
    monkeypatch.setattr(outputs.os, "fsync", synced)
    monkeypatch.setattr(outputs.os, "replace", renamed)
    ledger.reserve(TWO, LIMIT)
    order = ["PRAGMA synchronous=EXTRA", "BEGIN IMMEDIATE", "INSERT INTO entries", "COMMIT"]
    order += ["BEGIN IMMEDIATE", "sync file", "rename", "sync folder", "COMMIT"]
    rest = iter(seen[seen.index("BEGIN IMMEDIATE") - 4 :])
    assert all(step in rest for step in order), seen
    assert seen.count("rename") == 1
    with sqlite3.connect(ledger.chain.path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_nothing_depends_on_the_clock(ledger, tmp_path, monkeypatch):
    ledger.reserve(TWO, LIMIT)
    monkeypatch.setattr(chain.time, "gmtime", lambda: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    first = ledger.spend(TWO.key, LAPLACE)
    second = reopened(tmp_path).spend(TWO.key, LAPLACE)
    assert first != second
    assert [link.time for link in ledger.links()[2:]] == ["1970-01-01T00:00:00Z"] * 2
    with pytest.raises(BudgetError):
        ledger.spend(TWO.key, LAPLACE)


def test_threads_share_a_ledger(ledger):
    ledger.reserve(Plan("m", (LAPLACE,) * 4, 1e-6), LIMIT)
    ids, refused = [], []

    def work():
        try:
            ids.append(ledger.spend("m", LAPLACE))
        except BudgetError as error:
            refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(set(ids)), len(refused)) == (4, 4)


def crashed(tmp_path, *script):
    subprocess.run([sys.executable, "-m", "tests.privacy.crashes", tmp_path, *script], cwd=ROOT, check=True)
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert len(outcomes) > 30
    return outcomes


def test_a_ledger_that_was_killed_while_it_was_made_is_whole_or_refused(tmp_path):
    for outcome in crashed(tmp_path, "create"):
        path = Path(outcome["folder"]) / "ledger.db"
        try:
            DurableLedger.create(path, **TERMS)
            assert not outcome["said"]
        except LedgerError:
            assert path.exists()  # refused since something is there: it opens, or says what is missing
            try:
                assert len(DurableLedger.open(path, **TERMS).links()) == 1
            except LedgerError:
                assert not outcome["said"]


@pytest.mark.parametrize("how", ["every point", "random"])
def test_nothing_acknowledged_is_lost_wherever_a_process_is_killed(tmp_path, how):
    counts = set()
    for outcome in crashed(tmp_path, "work", *(["random"] if how == "random" else [])):
        ledger = DurableLedger.open(Path(outcome["folder"]) / "ledger.db", **TERMS)
        links = ledger.links()
        said = {key: value for line in outcome["said"] for key, value in line.items()}
        counts.add((len(said), len(links)))
        assert ledger.spent("first/m") == (LAPLACE,)
        assert len(links) - 3 - len(said) in (0, 1)  # one event at most was written, and never heard of
        if "reserve" in said:
            assert said["reserve"] in [plan.key for plan in ledger.plans()]
        if "spend" in said:
            assert ledger.spent("second/m") == (LAPLACE,)
        assert ledger.answered("q", "b") in ({SHA} if "store" in said else {None, SHA})
        ledger.reserve(Plan("m", (LAPLACE,) * 2, 1e-6, run="second"), LIMIT)
        with pytest.raises(TotalBudgetError):
            ledger.reserve(Plan("m", (LAPLACE,), 1e-6, run="third"), LIMIT)
        left = 2 - len(ledger.spent("second/m"))
        for _ in range(left):
            ledger.spend("second/m", LAPLACE)
        with pytest.raises(BudgetError):
            ledger.spend("second/m", LAPLACE)
    if how == "every point":
        assert {(0, 3), (0, 4), (1, 4), (1, 5), (2, 5), (2, 6), (3, 6)} == counts


COMPETITOR = """
import sys
from pathlib import Path
from cadp_fl.errors import BudgetError, TotalBudgetError
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.ledger import Plan
from tests.privacy.ledger_events import LAPLACE, LIMIT
ledger = DurableLedger.open(Path(sys.argv[1]), population="chest", unit="record")
print("ready", flush=True)
sys.stdin.readline()
for turn in range(3):
    plan = Plan("m", (LAPLACE,), 1e-6, run=f"{sys.argv[2]}-{turn}")
    try:
        ledger.reserve(plan, LIMIT)
        print("reserved", plan.key, flush=True)
        print("spent", ledger.spend(plan.key, LAPLACE), flush=True)
    except TotalBudgetError:
        pass
    try:
        print("spent", ledger.spend("common/m", LAPLACE), flush=True)
    except BudgetError:
        pass
"""


def test_eight_processes_do_not_overspend_together(tmp_path):
    ledger = DurableLedger.create(tmp_path / "ledger.db", **TERMS)
    ledger.reserve(Plan("m", (LAPLACE,), 1e-6, run="common"), LIMIT)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", COMPETITOR, ledger.chain.path, str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        said += process.communicate(timeout=50)[0].splitlines()
        assert process.returncode == 0
    reserved = {line.split()[1] for line in said if line.startswith("reserved")}
    spent = [line.split()[1] for line in said if line.startswith("spent")]
    assert len(reserved) == 3  # of epsilon 1/2 each, with that which is common: the limit of 2
    assert {plan.key for plan in ledger.plans()} == reserved | {"common/m"}
    assert len(spent) == len(set(spent)) == 4
    assert all(len(ledger.spent(key)) == 1 for key in reserved | {"common/m"})
    assert len(ledger.links()) == 1 + 4 + 4
    assert json.loads(ledger.mark.read_text())["number"] == 8


ACTS = ("reserve", "spend", "ask", "store", "reopen", "mark fails", "back up", "put back")


@given(acts=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 1), st.integers(0, 2)), max_size=14))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_sequence_undercounts_or_overspends(tmp_path_factory, acts):
    folder = tmp_path_factory.mktemp("sequence")
    path, backup = folder / "ledger.db", folder / "backup"
    handles = [DurableLedger.create(path, **TERMS), DurableLedger.open(path, **TERMS)]
    heard, backed_up = [], 0  # what callers heard of is there
    shutil.copyfile(path, backup)

    def act(ledger, name, number):
        plan = Plan("m", (LAPLACE,) * 2, 1e-6, run=str(number))
        if name == "reserve":
            ledger.reserve(plan, LIMIT)
            return ("plan", plan.key)
        if name == "store":
            ledger.store(f"q{number}", SHA)
            return ("answer", f"q{number}")
        asked = {"request": f"q{number}", "body": "b"} if name == "ask" else {}
        return ("spend", plan.key, ledger.spend(plan.key, LAPLACE, **asked))

    for name, handle, number in acts:
        if name == "reopen":
            handles[handle] = DurableLedger.open(path, **TERMS)
        elif name == "back up":
            shutil.copyfile(path, backup)
            backed_up = len(handles[0].links())
        elif name == "put back":
            newest, count = path.read_bytes(), len(handles[0].links())
            shutil.copyfile(backup, path)
            marked = json.loads(handles[0].mark.read_text())["number"] + 1
            if (backed_up or 1) < marked:
                with pytest.raises(LedgerError, match="older copy was put back"):
                    act(handles[handle], "reserve", number)
            path.write_bytes(newest)
            assert len(handles[0].links()) == count
        elif name == "mark fails":
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(outputs.os, "fsync", _fail)
                with pytest.raises(CadpError):
                    act(handles[handle], "spend", number)
        else:
            try:
                heard.append(act(handles[handle], name, number))
            except (BudgetError, ExchangeError, TotalBudgetError):
                continue
        rules = handles[1 - handle].rules()
        assert rules.committed("train").epsilon <= LIMIT.epsilon
        for plan in rules.plans():
            answered = {each[2] for each in heard if each[0] == "spend" and each[1] == plan.key}
            assert len(answered) <= len(rules.spent(plan.key)) <= 2
        assert {each[1] for each in heard if each[0] == "plan"} <= {plan.key for plan in rules.plans()}
        assert all(rules.answered(each[1], "b") == SHA for each in heard if each[0] == "answer")
    ids = [each[2] for each in heard if each[0] == "spend"]
    assert len(ids) == len(set(ids))
    DurableLedger.open(path, **TERMS).links()


def _fail(_handle):
    raise OSError(5, "Input/output error")

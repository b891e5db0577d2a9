import subprocess
import sys
import time

import psutil
import pytest

from cadp_fl.errors import CadpError
from cadp_fl.study.processes import ProcessTracker

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}], env={{}})"


def start(tracker, code):
    process = subprocess.Popen([sys.executable, "-c", code], env=tracker.environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"on\n"
    return process


def test_what_was_started_is_found_and_stopped_even_if_it_does_not_want_to(monkeypatch):
    monkeypatch.setattr("cadp_fl.study.processes.GRACE_SECONDS", 0.5)
    tracker = ProcessTracker()
    with start(tracker, STUBBORN) as process:
        assert [each.pid for each in tracker.alive()] == [process.pid]
        tracker.stop()
        process.wait(timeout=5)
    assert tracker.alive() == []


def test_an_orphan_that_lost_the_mark_is_remembered(monkeypatch):
    monkeypatch.setattr("cadp_fl.study.processes.GRACE_SECONDS", 0.5)
    tracker = ProcessTracker()
    with start(tracker, PARENT) as parent:
        found = tracker.alive()
        assert len(found) == 2
        orphan = next(each for each in found if each.pid != parent.pid)
        parent.kill()
        parent.wait()
        assert tracker.alive() == [orphan]
        tracker.stop()
    deadline = time.monotonic() + 5
    while orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline


def test_other_processes_are_left_alone():
    mine, other = ProcessTracker(), ProcessTracker()
    with start(other, STUBBORN) as process:
        mine.stop()
        assert process.poll() is None
        process.kill()


GUARDED = f"""
import subprocess, sys, time
from pathlib import Path
from cadp_fl.study.processes import ProcessTracker
tracker = ProcessTracker()
tracker.guard([Path(sys.argv[1])])
subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], env=tracker.environment, start_new_session=True)
print(tracker.environment["CADP_FL_SIMULATION"], flush=True)
time.sleep(60)
"""


def test_what_was_started_ends_even_with_a_process_that_is_killed(tmp_path):
    folder = tmp_path / "temporary"
    (folder / "inside").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", GUARDED, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        tracker = ProcessTracker(process.stdout.readline().strip())
        assert process.stdout.readline() == "on\n"
        assert len(tracker.alive()) == 1
        process.kill()
    deadline = time.monotonic() + 40  # of which the stubborn one takes a grace period
    while tracker.alive() or folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_guard_is_dismissed_when_all_is_done(tmp_path):
    tracker = ProcessTracker()
    tracker.guard([tmp_path])
    guard = psutil.Process(tracker.guardian.pid)
    tracker.stop()
    assert not guard.is_running()
    assert tmp_path.is_dir()
    tracker.stop()


def test_what_does_not_end_is_named_and_nobody_waits_for_ever(monkeypatch):
    monkeypatch.setattr("cadp_fl.study.processes.GRACE_SECONDS", 0.05)
    monkeypatch.setattr("cadp_fl.study.processes.STOP_SECONDS", 0.3)
    monkeypatch.setattr(psutil.Process, "terminate", lambda process: None)
    monkeypatch.setattr(psutil.Process, "kill", lambda process: None)
    tracker = ProcessTracker()
    process = start(tracker, STUBBORN)
    try:
        with pytest.raises(CadpError, match=rf"even when they were killed: {process.pid}; .* kill -9 them"):
            tracker.stop()
    finally:
        monkeypatch.undo()
        process.kill()
        process.communicate()

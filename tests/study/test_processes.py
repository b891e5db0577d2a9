import subprocess
import sys
import time

import psutil

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

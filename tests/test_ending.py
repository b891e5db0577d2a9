"""Laws of being asked to end: a wish takes no lock, what was ignored stays so, and a clean-up is never interrupted."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cadp_fl import ending
from cadp_fl.ending import Ending, asked_to_end, handling, interrupted, interruptible, uninterrupted
from cadp_fl.stopping import SIGNALS
from tests.conftest import ROOT


def test_a_wish_ends_the_wait_and_its_absence_does_not():
    ending = Ending()
    assert not ending.wait(0.01)
    ending.set()
    assert ending.is_set()
    assert ending.wait()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_a_handler_may_wish_while_the_main_thread_waits():
    """Sixty times, so that the handler comes at many places of the wait."""
    before = signal.getsignal(signal.SIGALRM)
    try:
        for number in range(60):
            ending = Ending()
            signal.signal(signal.SIGALRM, lambda *_, ending=ending: ending.set())
            signal.setitimer(signal.ITIMER_REAL, 1e-4 + 2e-5 * number)
            start = time.monotonic()
            assert ending.wait(10)
            assert time.monotonic() - start < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def fresh(monkeypatch):
    """Let this process be one that was never interrupted, and that was started to ignore nothing."""
    monkeypatch.setattr(ending, "interrupts", ending.Interrupts())
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "around", [asked_to_end, interruptible, ending.stopping_at_once, lambda: handling(lambda *_: pytest.fail("called"))]
)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(fresh, number, around):
    signal.signal(number, signal.SIG_IGN)
    with around():
        assert signal.getsignal(number) is signal.SIG_IGN
        signal.raise_signal(number)
        assert all(signal.getsignal(other) is not signal.SIG_IGN for other in SIGNALS if other is not number)
    assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.parametrize("number", SIGNALS)
def test_every_request_to_end_does_what_ctrl_c_does_once(fresh, number):
    cleaned = []

    def clean_up():
        for other in SIGNALS:
            signal.raise_signal(other)
        cleaned.append("whole")

    with interruptible():
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            try:
                assert not interrupted()
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)  # the second of a nervous user, before the clean-up begins
                uninterrupted(clean_up)
        signal.raise_signal(number)
    assert cleaned == ["whole"]
    assert interrupted()


def test_an_interrupt_that_comes_in_a_clean_up_takes_effect_after_it(fresh):
    cleaned = []
    with interruptible(), pytest.raises(KeyboardInterrupt):
        uninterrupted(lambda: (signal.raise_signal(signal.SIGINT), cleaned.append("whole")))
    assert cleaned == ["whole"]


def test_an_interrupt_that_some_code_swallowed_can_be_repeated(fresh, monkeypatch):
    monkeypatch.setattr(ending, "AGAIN_SECONDS", 0.05)
    with interruptible():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.06)


STORM = """
import json, os, random, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from cadp_fl import ending

random.seed(7)
outcomes = []
for turn in range(150):
    ending.interrupts = ending.Interrupts()
    done, is_closed = [], False

    def clean_up():
        global is_closed
        if is_closed:
            return
        is_closed = True
        for _ in range(20):
            time.sleep(1e-4)
        done.append(turn)

    def storm(first=random.uniform(0, 4e-3), gaps=[random.uniform(0, 1e-3) for _ in range(6)]):
        time.sleep(first)
        for gap in gaps:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(gap)

    stormy = threading.Thread(target=storm)
    with ending.interruptible():
        try:
            try:
                try:
                    stormy.start()  # in here, since a busy machine may return from it after the first interrupt
                    time.sleep(2e-3)
                finally:
                    ending.uninterrupted(clean_up)
            finally:
                ending.uninterrupted(clean_up)
        except KeyboardInterrupt:
            pass
        while stormy.is_alive():
            try:
                stormy.join()
            except KeyboardInterrupt:
                pass
        outcomes.append(len(done))
print(json.dumps(outcomes))
"""


def test_a_storm_of_interrupts_never_cuts_a_clean_up_short():
    """At moments that a seed draws: before, at the edges of, and in the clean-up."""
    finished = subprocess.run([sys.executable, "-c", STORM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert json.loads(finished.stdout) == [1] * 150


LOADING = """
import builtins, os, signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
from cadp_fl.cli import entry
load = builtins.__import__

def slowly(name, *rest, **named):
    if name == "cadp_fl.cli.main":
        os.kill(os.getpid(), {number})
    return load(name, *rest, **named)

builtins.__import__ = slowly
entry.main()
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_to_end_while_modules_load_is_one_sentence(number):
    code = LOADING.format(number=int(number))
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 130
    assert finished.stderr == "cadp-fl: Stopped. Nothing was started.\n"


def test_the_command_begins_where_signals_are_answered_first():
    """What is loaded before that is next to nothing."""
    code = "import sys; before = set(sys.modules); import cadp_fl.cli.entry; print(len(set(sys.modules) - before))"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert int(finished.stdout) < 25, finished.stderr
    assert 'cadp-fl = "cadp_fl.cli.entry:main"' in (ROOT / "pyproject.toml").read_text()
    assert os.path.getsize(ROOT / "cadp_fl" / "cli" / "__init__.py") < 200

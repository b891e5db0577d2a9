"""Laws of being asked to end."""

import signal
import time

import pytest

from cadp_fl.ending import Ending


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

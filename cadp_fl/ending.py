"""How a process is asked to end (Ctrl-C, SIGTERM, a closed terminal), and how it ends: once, and not in its clean-up.

A handler runs in the main thread, wherever that is, so it takes no lock: `threading.Event.set` there waits for ever for
the lock that `Event.wait` may hold just then. A signal that this process was started to ignore, by `nohup` or as a
background job, stays ignored.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cadp_fl.stopping import heeded, stop_at_once

__all__ = [
    "Ending",
    "Interrupts",
    "asked_to_end",
    "handling",
    "interrupted",
    "interruptible",
    "stopping_at_once",
    "uninterrupted",
]

LOOK_SECONDS = 0.05

AGAIN_SECONDS = 5.0
"""After an interrupt, in which another one changes nothing. It may have been lost, in code that swallows all errors."""


class Ending:
    """A wish that can be set from a signal handler, and waited for."""

    def __init__(self) -> None:
        self._wished = False

    def set(self) -> None:
        """Wish it."""
        self._wished = True

    def is_set(self) -> bool:
        """Return whether it was wished."""
        return self._wished

    def wait(self, seconds: float = float("inf")) -> bool:
        """Return whether it was wished, at once or before some seconds have passed."""
        deadline = time.monotonic() + seconds
        while not self._wished and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK_SECONDS, left))
        return self._wished


@contextmanager
def handling(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Have a handler called when this process is asked to end, except by a signal that it was started to ignore."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread, and whoever runs this in another one handles them there
        return
    before = {number: signal.signal(number, handler) for number in heeded()}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


@contextmanager
def asked_to_end() -> Iterator[Ending]:
    """Yield what is set when this process is asked to end."""
    asked = Ending()
    with handling(lambda *_: asked.set()):
        yield asked


class Interrupts:
    """Interrupts of this process, of which each takes effect once."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.shields = 0
        self.is_missed = False

    def handle(self, _number: int, _frame: Any) -> None:
        """Raise KeyboardInterrupt, unless something is shielded or one was raised moments ago."""
        if self.shields:
            self.is_missed = True
        elif self.last is None or time.monotonic() - self.last > AGAIN_SECONDS:
            self.last = time.monotonic()
            raise KeyboardInterrupt


interrupts = Interrupts()


@contextmanager
def interruptible() -> Iterator[None]:
    """Let every request to end raise KeyboardInterrupt, as Ctrl-C does, but never in what is uninterrupted.

    Those that follow within moments, while errors are on their way up, do nothing.
    """
    with handling(interrupts.handle):
        yield


def interrupted() -> bool:
    """Return whether this process was ever interrupted."""
    return interrupts.last is not None


def uninterrupted(clean_up: Callable[[], None]) -> None:
    """Clean up, whatever this process is asked meanwhile.

    The first interrupt of all may come just before this begins. What has to be cleaned up calls this in two `finally`
    blocks, one around the other, and cleans up once.

    Raises:
        KeyboardInterrupt: this process was asked to end meanwhile for the first time.
    """
    interrupts.shields += 1
    try:
        clean_up()
    finally:
        interrupts.shields -= 1
        is_first = interrupts.is_missed and interrupts.last is None
        if interrupts.is_missed or interrupts.last is not None:
            interrupts.last = time.monotonic()
    if is_first and not interrupts.shields:
        raise KeyboardInterrupt


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Let this process be ended at once by every request to end."""
    with handling(stop_at_once):
        yield

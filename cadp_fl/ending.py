"""Whether a process that stays was asked to end: by a signal, whose handler must take no lock.

A handler runs in the main thread, wherever that is. `threading.Event.set` there waits for ever for the lock that
`Event.wait` may hold just then.
"""

import time

__all__ = ["Ending"]

LOOK_SECONDS = 0.05


class Ending:
    """A wish that can be set from a signal handler, and waited for."""

    def __init__(self) -> None:
        self._wished = False

    def set(self) -> None:
        """Wish it."""
        self._wished = True

    def is_set(self) -> bool:
        """Tell whether it was wished."""
        return self._wished

    def wait(self, seconds: float = float("inf")) -> bool:
        """Return whether it was wished, at once or before some seconds have passed."""
        deadline = time.monotonic() + seconds
        while not self._wished and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK_SECONDS, left))
        return self._wished

"""Ending a process at once, when it is asked to and holds nothing yet. It loads next to nothing, since it is first."""

import os
import signal

__all__ = ["STOPPED", "heeded", "stop_at_once"]

STOPPED = 130
"""The exit status of a process that was asked to end."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded() -> list[signal.Signals]:
    """Return the signals by which this process is asked to end, but for those that it was started to ignore."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def stop_at_once(_number: int, _frame: object) -> None:
    """End this process as it is, with a sentence: a handler for a while in which it holds nothing yet.

    An error that is raised in the midst of loading a module in C may end the process otherwise.
    """
    os.write(2, b"cadp-fl: Stopped. Nothing was started.\n")
    os._exit(STOPPED)

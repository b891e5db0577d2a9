"""Finding and stopping every process of one simulation.

Flower and Ray detach what they start, so neither a process group nor a tree holds it all. Each process inherits
the environment, so a mark there finds most; some overwrite theirs with a title, and are found as children of those
that have the mark. Whatever was seen once is stopped at the end, by process id and start time.
"""

import os
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress

import psutil

from cadp_fl.errors import CadpError

__all__ = ["ProcessTracker", "bound_to_us"]

MARK = "CADP_FL_SIMULATION"
GRACE_SECONDS = 5.0
STOP_SECONDS = 30.0
"""In which every process is stopped, or is named."""

_BOUND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Has Linux end a process with its parent (PR_SET_PDEATHSIG), unless that is gone already, and runs a command in it."""


class ProcessTracker:
    """Knows the processes that were started with its environment.

    Attributes:
        environment: this process's environment with a mark of its own; start processes with it.
    """

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self.environment = os.environ | {MARK: self._mark}
        self._seen: set[psutil.Process] = set()

    def alive(self) -> list[psutil.Process]:
        """Look for processes, and return all that were ever seen and still run."""
        for process in psutil.process_iter():
            with _ignoring_vanished():
                if process.pid != os.getpid() and process.environ().get(MARK) == self._mark:
                    self._seen |= {process, *process.children(recursive=True)}
        return [process for process in self._seen if _runs(process)]

    def stop(self) -> None:
        """Ask every process to end, and kill those that have not after a grace period, and those that came meanwhile.

        Raises:
            CadpError: some still run, after a time that is limited.
        """
        deadline, end = time.monotonic() + STOP_SECONDS, psutil.Process.terminate
        while processes := self.alive():
            if time.monotonic() > deadline:
                pids = " ".join(str(process.pid) for process in processes)
                raise CadpError(
                    f"No process is left behind. {len(processes)} did not end within {STOP_SECONDS:.0f} s, even when "
                    f"they were killed: {pids}; see what they wait for (ps -p '{pids}'), and kill -9 them."
                )
            for process in processes:
                with _ignoring_vanished():
                    end(process)
            psutil.wait_procs(processes, timeout=GRACE_SECONDS)
            end = psutil.Process.kill


def bound_to_us(command: Sequence[str]) -> list[str]:
    """Return a command that ends when this process does, however that ends; where the system is not Linux, as it is."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), *command]


def _runs(process: psutil.Process) -> bool:
    with _ignoring_vanished():
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _ignoring_vanished() -> AbstractContextManager[None]:
    return suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)

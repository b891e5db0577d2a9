"""Finding and stopping every process of one simulation.

Flower and Ray detach what they start, so neither a process group nor a tree holds it all. Each process inherits
the environment, so a mark there finds most; some overwrite theirs with a title, and are found as children of those
that have the mark. Whatever was seen once is stopped at the end, by process id and start time.
"""

import os
import uuid
from contextlib import AbstractContextManager, suppress

import psutil

__all__ = ["ProcessTracker"]

MARK = "CADP_FL_SIMULATION"
GRACE_SECONDS = 5.0


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
        """Ask every process to end, and kill those that have not after a grace period."""
        for signal in (psutil.Process.terminate, psutil.Process.kill):
            processes = self.alive()
            for process in processes:
                with _ignoring_vanished():
                    signal(process)
            psutil.wait_procs(processes, timeout=GRACE_SECONDS)


def _runs(process: psutil.Process) -> bool:
    with _ignoring_vanished():
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _ignoring_vanished() -> AbstractContextManager[None]:
    return suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)

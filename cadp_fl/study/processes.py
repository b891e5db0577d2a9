"""Finding and stopping every process that was started for one purpose, even by a process that was killed.

Flower and Ray detach what they start, so neither a process group nor a tree holds it all. Each process inherits
the environment, so a mark there finds most; some overwrite theirs with a title, and are found as children of those
that have the mark. Whatever was seen once is stopped at the end, by process id and start time.
"""

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import psutil

from cadp_fl.errors import CadpError

__all__ = ["ProcessTracker", "ask_to_end"]

MARK = "CADP_FL_SIMULATION"
GRACE_SECONDS = 5.0
STOP_SECONDS = 30.0
"""In which every process is stopped, or is named."""

DONE = b"done"


class ProcessTracker:
    """Knows the processes that were started with its environment.

    Attributes:
        environment: this process's environment with a mark of its own; start processes with it.
    """

    def __init__(self, mark: str = "") -> None:
        self._mark = mark or uuid.uuid4().hex
        self.environment = os.environ | {MARK: self._mark}
        self._seen: set[psutil.Process] = set()
        self.guardian: subprocess.Popen[bytes] | None = None

    def guard(self, folders: Iterable[Path] = ()) -> None:
        """Start a process that does our work if we are killed: it stops all others, and removes some folders."""
        self.guardian = subprocess.Popen(
            [sys.executable, "-P", "-m", "cadp_fl.study.processes", self._mark, *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        folder: Path | None = None,
        log: Path | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a command in a session of its own: Ctrl-C reaches this process alone, which then ends it in order.

        Args:
            environment: beside that of this process.
            folder: where it starts; here by default.
            log: the file that what it prints is added to; a pipe by default.
        """
        with nullcontext(subprocess.PIPE) if log is None else log.open("ab") as stream:
            return subprocess.Popen(
                command,
                cwd=folder,
                env=self.environment | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

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
        try:
            self._stop()
        finally:
            self._dismiss_guard()

    def _stop(self) -> None:
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

    def _dismiss_guard(self) -> None:
        if self.guardian is None:
            return
        with suppress(OSError, subprocess.TimeoutExpired):
            self.guardian.communicate(DONE, timeout=GRACE_SECONDS)
        self.guardian.kill()  # which has no effect where it has ended
        self.guardian.wait()
        self.guardian = None


def ask_to_end(*processes: "subprocess.Popen[bytes]", seconds: float) -> None:
    """Ask processes to end, the last one first, and give each a while to say good-bye."""
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def _runs(process: psutil.Process) -> bool:
    with _ignoring_vanished():
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _ignoring_vanished() -> AbstractContextManager[None]:
    return suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def _keep_guard(mark: str, folders: Iterable[str]) -> None:
    """Wait for the end of the process that holds our standard input, and do its work if it has not."""
    if sys.stdin.buffer.read() == DONE:
        return
    with suppress(CadpError):
        ProcessTracker(mark).stop()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _keep_guard(sys.argv[1], sys.argv[2:])

"""What every command that serves a real federation has around it: an environment, a lock, and a way to end."""

import fcntl
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cadp_fl.ending import Ending
from cadp_fl.errors import CadpError

__all__ = ["asked_to_end", "flower_environment", "free_port", "locked", "printed"]


def flower_environment(home: Path) -> dict[str, str]:
    """Return what is set for Flower's commands: a home, quiet, nothing installed, this installation's commands first.

    Args:
        home: Flower's own files.
    """
    scripts = str(Path(sys.executable).parent)
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


def printed(environment: Mapping[str, str]) -> list[str]:
    """Return an environment as lines that a shell reads."""
    return [f"{name}={shlex.quote(value)}" for name, value in environment.items()]


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock, which ends with this process at the latest.

    Args:
        refusal: a sentence on who holds it, and the way out.

    Raises:
        CadpError: another holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CadpError(refusal) from error
        yield
    finally:
        os.close(handle)


@contextmanager
def asked_to_end() -> Iterator[Ending]:
    """Yield what is set when this process is asked to end: by Ctrl-C, by SIGTERM, or by a terminal that is closed."""
    asked = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals belong to the main thread
        return
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

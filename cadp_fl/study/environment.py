"""What every command that starts Flower has around it: an environment, a free port, and a lock."""

import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cadp_fl.errors import CadpError
from cadp_fl.study.proxies import direct_environment

__all__ = ["flower_environment", "free_port", "locked", "printed"]


def flower_environment(home: Path) -> dict[str, str]:
    """Return what is set for Flower's commands: a home, quiet, nothing installed, this installation's commands first.

    No proxy comes between processes on this machine.

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
        **direct_environment(),
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

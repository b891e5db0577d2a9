"""What every command that starts Flower has around it: an environment, and a free port."""

import os
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from cadp_fl.study.proxies import direct_environment

__all__ = ["flower_environment", "free_port", "printed"]


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

"""A federation's SuperLink, and nginx before it, as two children that live and end together.

The SuperLink has no accounts: whoever reaches its port may submit code to every site. So it listens on this machine
alone, and nginx passes the fleet API on and nothing else. Every user of this machine reaches it all the same: it is a
machine of the coordinator's own.
"""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from cadp_fl.deployment.coordinator import CoordinatorFolder
from cadp_fl.deployment.registration import is_up, synchronise
from cadp_fl.ending import Ending, asked_to_end
from cadp_fl.errors import CadpError
from cadp_fl.locks import locked
from cadp_fl.study.environment import flower_environment, printed
from cadp_fl.study.processes import ProcessTracker, ask_to_end

__all__ = ["Program", "is_listening", "print_programs", "programs", "purge", "serve"]

START_SECONDS = 60.0
STOP_SECONDS = 15.0
PAUSE_SECONDS = 0.2
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")
"""Where nginx is, beside the PATH of an ordinary user."""


class Program(NamedTuple):
    """A program to run.

    Attributes:
        name: for people.
        command: with its arguments.
        log: the file that what it prints is added to.
    """

    name: str
    command: list[str]
    log: Path


def programs(folder: CoordinatorFolder) -> list[Program]:
    """Return what serves a federation, in the order of starting.

    Raises:
        CadpError: nginx is missing.
    """
    config, certificates = folder.load(), folder.certificates
    superlink = [
        *("flower-superlink", "--host", "127.0.0.1", "--port", str(config.superlink_port)),
        *("--ssl-ca-certfile", str(folder.authority), "--ssl-certfile", str(certificates / "superlink.crt")),
        *("--ssl-keyfile", str(certificates / "superlink.key"), "--enable-supernode-auth"),
        *("--database", str(folder.state / "superlink.db"), "--disable-runtime-dependency-installation"),
    ]
    found = [Program("SuperLink", superlink, folder.logs / "superlink.log")]
    if config.proxy == "nginx":
        nginx = [_nginx(), "-p", str(folder.path), "-c", str(folder.nginx), "-e", str(folder.logs / "nginx.log")]
        if os.geteuid() == 0:
            nginx += ["-g", "user root;"]  # its workers would be another user, who cannot enter the folder
        found.append(Program("nginx", nginx, folder.logs / "nginx.log"))
    return found


def print_programs(folder: CoordinatorFolder) -> str:
    """Return the environment and the commands that serve a federation, for units of one's own."""
    lines = printed(flower_environment(folder.flower))
    for program in programs(folder):
        lines += ["", f"# {program.name}", shlex.join(program.command)]
    return "\n".join(lines)


def serve(folder: CoordinatorFolder, *, announce: Callable[[str], None]) -> None:
    """Serve a federation until this process is asked to end (SIGTERM, SIGINT or SIGHUP), and leave no process behind.

    Args:
        announce: is called with each sentence for whoever started it; the last one says that sites can connect.

    Raises:
        CadpError: the folder is served already, a program does not start, or one ended by itself.
    """
    refusal = f"A folder is served once. '{folder.path}' is by another process; leave that one, or end it first."
    with asked_to_end() as asked, locked(folder.lock, refusal):
        config = folder.load()
        for sentence in folder.renew():
            announce(sentence)
        folder.write_connection()
        planned = programs(folder)
        _check_free(folder)
        tracker = ProcessTracker()
        environment = flower_environment(folder.flower)
        running: list[tuple[Program, subprocess.Popen[bytes]]] = []
        try:
            tracker.guard()
            checks = (lambda: is_up(folder), lambda: is_listening(config.port))
            for program, answers in zip(planned, checks, strict=False):
                process = tracker.start(program.command, environment, folder=folder.flower, log=program.log)
                running.append((program, process))
                _wait(running, answers, asked)
            if not asked.is_set():
                changes = synchronise(folder)
                for sentence in changes.refused.values():
                    announce(sentence)
                admitted = [name for name in folder.key_files() if name not in changes.refused]
                announce(
                    f"The federation '{config.federation}' is served at {config.address}, to {len(admitted)} admitted "
                    f"sites ({', '.join(admitted) or 'none'}; {len(changes.added)} newly registered). "
                    f"Logs: {folder.logs}"
                )
            while not asked.wait(PAUSE_SECONDS):
                _check_alive(running)
        finally:
            ask_to_end(*(process for _, process in running), seconds=STOP_SECONDS)
            tracker.stop()


def purge(folder: CoordinatorFolder) -> None:
    """Delete the SuperLink's database with the releases in it; admitted keys are registered afresh at the next start.

    Raises:
        CadpError: the SuperLink runs.
    """
    refusal = f"A database is deleted that nobody uses. '{folder.path}' is served; stop that first."
    with locked(folder.lock, refusal):
        if is_up(folder):
            raise CadpError(refusal)
        for path in folder.state.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _nginx() -> str:
    path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS])
    if (found := shutil.which("nginx", path=path)) is None:
        raise CadpError(
            "Sites reach the coordinator through nginx. Found none on this machine; install it (apt install nginx), or "
            "make a folder with --no-proxy for a federation on one machine alone."
        )
    return found


def _check_free(folder: CoordinatorFolder) -> None:
    config = folder.load()
    for port in {config.port, config.superlink_port}:
        if is_listening(port):
            raise CadpError(
                f"A federation has its ports to itself. Port {port} is taken on this machine{_who_listens(port)}; end "
                f"what listens there, or change it in '{folder.config}' and '{folder.nginx}'."
            )


def _who_listens(port: int) -> str:
    """Return which process listens at a port, in words; nothing where this user may not know."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid is not None:
                return f", by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def is_listening(port: int) -> bool:
    """Return whether anything answers at a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(running: list[tuple[Program, subprocess.Popen[bytes]]], answers: Callable[[], bool], asked: Ending) -> None:
    """Return when the last program that was started answers, or when this process is asked to end."""
    deadline = time.monotonic() + START_SECONDS
    while not asked.is_set() and not answers():
        _check_alive(running)
        if time.monotonic() > deadline:
            program = running[-1][0]
            raise CadpError(f"{program.name} did not answer within {START_SECONDS:.0f} s; see '{program.log}'.")
        asked.wait(PAUSE_SECONDS)


def _check_alive(running: list[tuple[Program, subprocess.Popen[bytes]]]) -> None:
    for program, process in running:
        if (status := process.poll()) is not None:
            raise CadpError(
                f"A federation is served by all of its programs. {program.name} ended with status {status}; see "
                f"'{program.log}'."
            )

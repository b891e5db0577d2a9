"""What a coordinator has: its files and certificates, the door, the SuperLink behind it, and the sites."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import psutil

import cadp_fl
from cadp_fl.config import CoordinatorConfig
from cadp_fl.deployment.certificates import check_server_files
from cadp_fl.deployment.coordinator import SUPERLINK_HOSTS, CoordinatorFolder
from cadp_fl.deployment.probe import system_authorities
from cadp_fl.deployment.registration import is_up, node_states
from cadp_fl.deployment.superlink import programs
from cadp_fl.doctor.connection import certificate_life, way_to
from cadp_fl.doctor.finding import Check, Finding, UnmetError, fault, needed, ok, warning
from cadp_fl.doctor.machine import memory, permissions_of, room

__all__ = ["COORDINATOR_CHECKS", "Coordinator"]

FLOWER = "1.41."
"""Of Flower, the releases whose commands this one knows."""

SERVE = "Start it: cadp-fl coordinator serve."
COMMAND_SECONDS = 10.0
LOOPBACK_ADDRESSES = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class Coordinator:
    """A coordinator's folder.

    Args:
        folder: that is looked at.
    """

    def __init__(self, folder: CoordinatorFolder) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> CoordinatorConfig:
        """Its settings.

        Raises:
            UnmetError: there are none.
        """
        return needed(self.folder.load, "coordinator.yaml")

    @cached_property
    def is_up(self) -> bool:
        """Whether the SuperLink answers."""
        return bool(self.config) and is_up(self.folder)

    @contextmanager
    def authorities(self) -> Iterator[Path]:
        """Yield the file of the authorities that sites are invited with.

        Raises:
            UnmetError: there is no invitation.
        """
        said = needed(self.folder.invitation, "invitation.yaml").certificate
        if said is None:
            yield system_authorities()
            return
        with tempfile.NamedTemporaryFile("w", suffix=".crt") as file:
            file.write(said)
            file.flush()
            yield Path(file.name)


def _settings(coordinator: Coordinator) -> Iterator[Finding]:
    """Look whether the settings and the invitation can be read, and agree."""
    config, invited = coordinator.folder.load(), coordinator.folder.invitation()
    if (invited.federation, invited.address) != (config.federation, config.address):
        yield fault(
            f"The invitation is to '{invited.federation}' at {invited.address}, and the settings are of "
            f"'{config.federation}' at {config.address}.",
            "Put back what was changed, or make a new folder and invite the sites again.",
        )
    else:
        yield ok(f"Federation '{config.federation}' at {config.address}; the invitation is {invited.fingerprint}.")


def _versions(_coordinator: Coordinator) -> Iterator[Finding]:
    """Look which versions are installed."""
    flower = version("flwr")
    if not flower.startswith(FLOWER):
        yield fault(f"Flower {flower} is installed, and {FLOWER}x is needed.", f"pip install 'flwr=={FLOWER}*'.")
    else:
        yield ok(f"cadp-fl {cadp_fl.__version__}, Flower {flower}.")


def _files(coordinator: Coordinator) -> Iterator[Finding]:
    """Look who may reach what: this user alone."""
    folder = coordinator.folder
    private = [folder.path, folder.state, folder.flower, folder.certificates, *folder.certificates.glob("*.key")]
    loose = [path for path in private if path.exists() and permissions_of(path) & 0o077]
    if loose:
        named = ", ".join(f"'{path}'" for path in loose[:4])
        yield fault(
            f"Others may reach {named}.",
            "Run chmod go-rwx on each. A key that others may have read is no secret: make a new folder.",
        )
    else:
        yield ok("Nobody but this user reaches them.")


def _certificates(coordinator: Coordinator) -> Iterator[Finding]:
    """Look whether clients would take each certificate, and how long."""
    folder, config = coordinator.folder, coordinator.config
    with coordinator.authorities() as authorities_of_sites:
        servers = [("superlink", SUPERLINK_HOSTS[0], folder.authority)]
        if config.proxy == "nginx":
            servers.append(("proxy", config.host, authorities_of_sites))
        for name, host, authorities in servers:
            file = folder.certificates / f"{name}.crt"
            check_server_files(file, file.with_suffix(".key"), host, authorities)
            yield certificate_life(file.read_bytes(), f"{name}, for {host}", "certificates")


def _door(coordinator: Coordinator) -> Iterator[Finding]:
    """Look whether nginx is there, and takes its settings."""
    if coordinator.config.proxy == "none":
        yield ok("None: the federation is on this machine alone.")
        return
    nginx = programs(coordinator.folder)[-1].command[0]
    with tempfile.TemporaryDirectory() as temporary:  # a test of settings writes into the folder that it is given
        for name in ("state", "logs", "temporary"):
            (Path(temporary) / name).mkdir()
        command = [nginx, "-t", "-q", "-p", temporary, "-c", str(coordinator.folder.nginx), "-e", f"{temporary}/log"]
        if os.geteuid() == 0:
            command += ["-g", "user root;"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "[emerg]" in line), done.stderr)[:300]
        yield fault(f"nginx does not take its settings: {first.strip()}", f"Correct '{coordinator.folder.nginx}'.")
    else:
        yield ok(f"{nginx} takes '{coordinator.folder.nginx}'.")


def _superlink(coordinator: Coordinator) -> Iterator[Finding]:
    """Look whether the SuperLink answers, and on this machine alone."""
    port = coordinator.config.superlink_port
    if not coordinator.is_up:
        yield fault(f"The SuperLink does not answer at 127.0.0.1:{port}.", SERVE)
        return
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    }
    if outside := sorted(listening - set(LOOPBACK_ADDRESSES)):
        yield fault(
            f"The SuperLink's port is open to others, at {outside[0]}:{port}: whoever reaches it can submit code to "
            "every site.",
            "End it, and start it with --host 127.0.0.1, as cadp-fl coordinator serve does.",
        )
    else:
        yield ok(f"It answers at 127.0.0.1:{port}, to this machine alone.")


def _outside(coordinator: Coordinator) -> Iterator[Finding]:
    """Look at the way that sites have."""
    if not coordinator.is_up:
        raise UnmetError("It needs the SuperLink.")
    with coordinator.authorities() as authorities:
        yield from way_to(coordinator.config.address, authorities)


def _database(coordinator: Coordinator) -> Iterator[Finding]:
    """Look how large the database is, and what room it has."""
    size = sum(path.stat().st_size for path in coordinator.folder.state.glob("superlink.db*"))
    yield ok(f"{size / (1 << 20):.0f} MiB, with the releases in it; cadp-fl coordinator purge empties it.")
    yield from room(coordinator.folder.state, used=size)


def _sites(coordinator: Coordinator) -> Iterator[Finding]:
    """Look whether every admitted key is registered, and which sites are connected."""
    admitted = coordinator.folder.fingerprints()
    if not admitted:
        yield warning("No site is admitted.", "Admit them by their keys: cadp-fl coordinator admit.")
        return
    if not coordinator.is_up:
        raise UnmetError("It needs the SuperLink.")
    states = node_states(coordinator.folder)
    if unknown := [name for name in admitted if name not in states]:
        yield fault(
            f"Admitted and not registered: {', '.join(unknown)}.", "Register them: cadp-fl coordinator admit FOLDER."
        )
    online = [name for name in admitted if states.get(name) == "online"]
    if away := [name for name in admitted if name in states and name not in online]:
        yield warning(f"Not connected: {', '.join(away)}.", "Ask them to look: cadp-fl doctor, at the site, says why.")
    if online:
        yield ok(f"Connected: {', '.join(online)}.")


COORDINATOR_CHECKS = (
    Check("versions", _versions),
    Check("memory", lambda _coordinator: memory()),
    Check("coordinator.yaml", _settings),
    Check("files", _files),
    Check("certificates", _certificates),
    Check("door", _door),
    Check("SuperLink", _superlink),
    Check("coordinator", _outside),
    Check("database", _database),
    Check("sites", _sites),
)
"""What the coordinator's user can look at."""

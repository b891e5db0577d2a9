"""What a site's SuperNode has: whom it calls, its key, the way to the agent, and whether it is connected."""

import datetime
import os
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import psutil
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import cadp_fl
from cadp_fl.config import NodeConfig, load_node
from cadp_fl.deployment.probe import system_authorities
from cadp_fl.doctor.connection import way_to
from cadp_fl.doctor.finding import Check, Finding, fault, needed, ok, skipped, warning
from cadp_fl.doctor.machine import memory, room
from cadp_fl.json_text import parse_json
from cadp_fl.site.client import AgentClient
from cadp_fl.site.folder import NodeFolder
from cadp_fl.site.keys import fingerprint
from cadp_fl.site.protocol import Request

__all__ = ["MANY_BYTES", "NODE_CHECKS", "SHARED_CHECKS", "Node", "answering"]

AGENT_SECONDS = 10.0
PATIENCE_SECONDS = 60.0
MANY_BYTES = 1 << 20
"""More than any file has that is read here."""

CONNECT = "Start it: cadp-fl site connect, as the SuperNode's user."


class Node:
    """The part of a site's folder that its SuperNode's user can read.

    Args:
        folder: that part.
    """

    def __init__(self, folder: NodeFolder) -> None:
        self.folder = folder

    @cached_property
    def config(self) -> NodeConfig:
        """Whom the SuperNode calls.

        Raises:
            UnmetError: there is none.
        """
        return needed(lambda: load_node(self.folder.config), "node.yaml")


def _settings(node: Node) -> Iterator[Finding]:
    """Look whether the node's settings can be read, and are of where they lie."""
    config = load_node(node.folder.config)
    usual = node.folder.path.absolute().parent / "run" / "agent.sock"
    if config.socket != usual:
        yield warning(
            f"node.yaml looks for the agent at '{config.socket}', and this folder's is at '{usual}'.",
            "Change socket in node.yaml, if the folder was moved.",
        )
    else:
        yield ok(f"Site '{config.site}' of federation '{config.federation}', at {config.address}.")


def _key(node: Node) -> Iterator[Finding]:
    """Look whether the key pair is one, of the kind that Flower takes."""
    config, folder = node.config, node.folder
    public_file = folder.public_key(config.site)
    fix = "Bring both files back, or make a new folder of the site and have the new key admitted."
    if not os.access(folder.key, os.R_OK):
        yield fault(
            f"This user cannot read '{folder.key}'.",
            "Look as the SuperNode's user, or put this one into the group of site.yaml.",
        )
        return
    try:
        private = serialization.load_ssh_private_key(_read(folder.key), password=None)
        public = _read(public_file)
    except (ValueError, TypeError, UnsupportedAlgorithm, OSError):
        yield fault("The site's key pair cannot be read as one in OpenSSH's format.", fix)
        return
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name != "secp384r1":
        yield fault("The SuperNode's key is none of EC P-384, which is what Flower takes.", fix)
        return
    own = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    if own.split()[:2] != public.split()[:2]:
        yield fault(f"'{public_file}' is not the public key of '{folder.key}'.", fix)
    else:
        yield ok(f"EC P-384, {fingerprint(public)}.")


def _agent(node: Node) -> Iterator[Finding]:
    """Ask the agent what its site is, by the socket that the SuperNode uses."""
    if not node.config.socket.exists():
        yield fault(f"There is no socket at '{node.config.socket}'.", "Start the agent: cadp-fl site serve.")
    else:
        yield answering(node)


def answering(node: Node) -> Finding:
    """Return what the agent says of its site, which costs nothing.

    Raises:
        CadpError: it does not answer, or refuses.
    """
    description: dict[str, Any] = dict(
        AgentClient(node.config.socket, timeout=AGENT_SECONDS).call(Request("describe")).content
    )
    if description["library"] != cadp_fl.__version__:
        return fault(
            f"The agent runs cadp-fl {description['library']}, and {cadp_fl.__version__} is installed.",
            "Start the agent again.",
        )
    if description["site"] != node.config.site:
        return fault(
            f"The agent is of site '{description['site']}', and the node of '{node.config.site}'.",
            "Give both one name, in site.yaml and node.yaml.",
        )
    if description["noise"] != "entropy":
        return warning(
            "The agent draws its noise from a seed, which protects nothing.", "Start it without, but for tests."
        )
    return ok(
        f"'{description['site']}' answers as it will a server: data set '{description['dataset']['name']}', "
        f"{description['train']} training and {description['test']} test units ({description['unit']}), labels "
        f"{description['labels']}."
    )


def _coordinator(node: Node) -> Iterator[Finding]:
    """Look at the way to the coordinator."""
    own = node.folder.certificates
    yield from way_to(node.config.address, own if own.is_file() else system_authorities())


def _supernode(node: Node) -> Iterator[Finding]:
    """Look what the SuperNode last said, and whether it is still there."""
    path = node.folder.flower / "connection.json"
    if not os.access(node.folder.flower, os.X_OK):
        yield skipped("This user cannot see it; look as the SuperNode's user.")
        return
    if not path.is_file():
        yield fault("The SuperNode was never started here.", CONNECT)
        return
    try:
        said = parse_json(_read(path))
        state, pid, reason = str(said["state"]), said["pid"], str(said["reason"])
        since = datetime.datetime.fromisoformat(said["since"])
    except (ValueError, KeyError, TypeError):
        yield fault(f"'{path}' is damaged.", "Start the SuperNode again: cadp-fl site connect.")
        return
    when = f"since {since:%Y-%m-%d %H:%M} UTC"
    if state == "stopped":
        yield fault(f"The SuperNode does not run, {when}.", CONNECT)
    elif state == "refused":
        found, _, fix = reason.rpartition("; ")
        yield fault(f"The SuperNode was refused, {when}: {found or reason}.", fix[:1].upper() + fix[1:] or CONNECT)
    elif not isinstance(pid, int) or since.timestamp() < psutil.boot_time() or not psutil.pid_exists(pid):
        yield fault(f"The SuperNode was {state} {when}, and is gone without a word.", f"Wait a minute. {CONNECT}")
    elif state == "connected":
        yield ok(f"Admitted, and connected {when} (process {pid}).")
    elif not reason and time.time() - since.timestamp() < PATIENCE_SECONDS:
        yield warning("The SuperNode is about to connect.", "Look again in a minute.")
    else:
        yield fault(f"The SuperNode tries to connect, {when}. {reason}", "Fix what the lines above say.")


def _read(path: os.PathLike[str]) -> bytes:
    """Return a small file's bytes."""
    with open(path, "rb") as file:
        return file.read(MANY_BYTES)


SHARED_CHECKS = (
    Check("node settings", _settings),
    Check("key", _key),
    Check("coordinator", _coordinator),
    Check("SuperNode", _supernode),
)
"""Whoever looks."""

NODE_CHECKS = (
    Check("memory", lambda _node: memory()),
    Check("disk", lambda node: room(node.folder.flower)),
    Check("agent", _agent),
    *SHARED_CHECKS,
)
"""What the SuperNode's user can look at."""

"""Which sites the SuperLink lets in: those whose keys the coordinator's folder admits, and no others.

Flower names a node by a number that it draws. It is remembered beside the database, whose own list has no names.
"""

import fcntl
import json
import os
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from cadp_fl.errors import CadpError, InputError
from cadp_fl.federated.certificates import verifying
from cadp_fl.federated.coordinator import CONNECTION, CoordinatorFolder
from cadp_fl.outputs import write_durably
from cadp_fl.study.environment import flower_environment

__all__ = ["Registered", "admit", "is_up", "node_states", "synchronise"]

COMMAND_SECONDS = 60.0
KNOWN_KEY = 23
"""Flower's code for a key that its database has, registered or removed."""


class Registered(NamedTuple):
    """What changed.

    Attributes:
        added: names of sites that may connect from now on.
        removed: names of sites that may no longer.
        refused: why a site's key was not taken, by its name.
    """

    added: list[str]
    removed: list[str]
    refused: dict[str, str]


def is_up(folder: CoordinatorFolder) -> bool:
    """Tell whether the folder's SuperLink answers."""
    url = f"https://127.0.0.1:{folder.load().superlink_port}/health"
    try:
        return httpx.get(url, verify=verifying(folder.authority), timeout=2, trust_env=False).is_success
    except (httpx.HTTPError, ssl.SSLError):
        return False


def synchronise(folder: CoordinatorFolder) -> Registered:
    """Register every admitted key with the SuperLink that is not, and remove what was registered and no longer is.

    Raises:
        CadpError: the SuperLink does not answer, or refuses.
    """
    with _alone(folder):
        known, active = _read(folder), _active(folder)
        admitted = folder.fingerprints()
        added: list[str] = []
        removed: list[str] = []
        refused: dict[str, str] = {}
        for name, node in list(known.items()):
            if node["id"] and (node["key"] != admitted.get(name) or node["id"] not in active):
                if node["id"] in active:
                    _flwr(folder, "supernode", "unregister", node["id"], CONNECTION)
                    removed.append(name)
                del known[name]
                _write(folder, known)
        for name, key in admitted.items():
            if not known.get(name, {}).get("id"):
                unfinished = name in known  # a crash may have come after Flower's answer and before it was written down
                known[name] = {"id": "", "key": key}
                _write(folder, known)
                others = {node["id"] for node in known.values()}
                try:
                    known[name]["id"] = _register(folder, name, sorted(set(active) - others) if unfinished else [])
                    added.append(name)
                except InputError as error:
                    refused[name] = str(error)
                    del known[name]
                _write(folder, known)
    return Registered(added, removed, refused)


def admit(folder: CoordinatorFolder, files: Sequence[Path]) -> tuple[dict[str, str], list[str] | None]:
    """Admit sites by their public keys, and register what is not, if the SuperLink runs.

    Returns:
        each new key's fingerprint by its site's name, and the names that were registered; none where the SuperLink
        does not run, which registers them at its start.

    Raises:
        InputError: a name or key cannot be a site's, is admitted already, or was removed before; it is not admitted.
        CadpError: the SuperLink refuses.
    """
    fresh = folder.admit(files)
    if not is_up(folder):
        return fresh, None
    changes = synchronise(folder)
    if changes.refused:
        for name in changes.refused.keys() & fresh.keys():
            folder.expel(name)
        raise InputError(next(iter(changes.refused.values())))
    return fresh, changes.added


def node_states(folder: CoordinatorFolder) -> dict[str, str]:
    """Return what Flower says of each registered site: registered, online or offline.

    Raises:
        CadpError: the SuperLink does not answer.
    """
    active = _active(folder)
    return {name: active[node["id"]] for name, node in _read(folder).items() if node["id"] in active}


def _register(folder: CoordinatorFolder, name: str, unclaimed: list[str]) -> str:
    """Register a site's key, and return its node's id; an unclaimed one is its own where Flower knows the key."""
    answer = _ask(folder, "supernode", "register", str(folder.key_files()[name]), CONNECTION, "--name", name)
    if answer.get("success"):
        return str(answer["node-id"])
    if f"code: {KNOWN_KEY}]" not in str(answer.get("error-message")):
        raise CadpError(f"Flower did not register '{name}': {_said(answer)}")
    if len(unclaimed) == 1:
        return unclaimed[0]
    raise InputError(
        f"Flower's database remembers every key, removed ones too. It knows that of '{name}'; ask the site for a new "
        "key, or forget them all with cadp-fl coordinator purge."
    )


def _active(folder: CoordinatorFolder) -> dict[str, str]:
    """Return the state of each node that is registered, by its id."""
    nodes = _flwr(folder, "supernode", "list", CONNECTION)["nodes"]
    return {str(node["node-id"]): str(node["status"]) for node in nodes if node["status"] != "unregistered"}


def _flwr(folder: CoordinatorFolder, *arguments: str) -> dict[str, Any]:
    """Call Flower's command line, and return the JSON that it prints.

    Raises:
        CadpError: it failed.
    """
    answer = _ask(folder, *arguments)
    if not answer.get("success"):
        raise CadpError(f"Flower refused '{' '.join(arguments[:2])}': {_said(answer)}")
    return answer


def _ask(folder: CoordinatorFolder, *arguments: str) -> dict[str, Any]:
    finished = subprocess.run(
        ["flwr", *arguments, "--format", "json"],
        cwd=folder.flower,  # a folder that is named like the connection would be taken for an app
        env=os.environ | flower_environment(folder.flower),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    start = finished.stdout.find("{")
    try:
        return dict(json.loads(finished.stdout[start:]))
    except ValueError:
        return {"success": False, "error-message": finished.stderr or finished.stdout}


def _said(answer: dict[str, Any]) -> str:
    lines = str(answer.get("error-message") or "").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _read(folder: CoordinatorFolder) -> dict[str, dict[str, str]]:
    file = folder.state / "nodes.json"
    if not file.exists():
        return {}
    try:
        nodes = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): {"id": str(node["id"]), "key": str(node["key"])} for name, node in nodes.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CadpError(
            f"What is registered is remembered as JSON. '{file}' is damaged; stop the SuperLink, and run cadp-fl "
            "coordinator purge, after which all keys are registered afresh."
        ) from error


def _write(folder: CoordinatorFolder, nodes: dict[str, dict[str, str]]) -> None:
    write_durably(folder.state / "nodes.json", json.dumps(nodes, indent=2).encode())


@contextmanager
def _alone(folder: CoordinatorFolder) -> Iterator[None]:
    """Wait for whoever registers at the moment."""
    handle = os.open(folder.state / "nodes.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

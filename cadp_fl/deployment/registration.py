"""Which sites the SuperLink lets in: those whose keys the coordinator's folder admits, and no others.

Flower names a node by a number that it draws. It is remembered beside the database, whose own list has no names.
"""

import json
import ssl
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import httpx

from cadp_fl.deployment.certificates import verifying
from cadp_fl.deployment.coordinator import CoordinatorFolder
from cadp_fl.deployment.flower import superlink_of
from cadp_fl.errors import CadpError, InputError
from cadp_fl.json_text import parse_json
from cadp_fl.locks import locked
from cadp_fl.outputs import write_durably
from cadp_fl.study.flower import Flower

__all__ = ["Registered", "admit", "is_up", "node_states", "synchronise"]


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
    """Return whether the folder's SuperLink answers."""
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
    flower = superlink_of(folder.path)
    with _alone(folder):
        known, active = _read(folder), flower.nodes()
        admitted, keys = folder.fingerprints(), folder.key_files()
        added: list[str] = []
        removed: list[str] = []
        refused: dict[str, str] = {}
        for name, node in list(known.items()):
            if node["id"] and (node["key"] != admitted.get(name) or node["id"] not in active):
                if node["id"] in active:
                    flower.unregister(node["id"])
                    removed.append(name)
                del known[name]
                _write(folder, known)
        for name, key in admitted.items():
            if not known.get(name, {}).get("id"):
                unfinished = name in known  # a crash may have come after Flower's answer and before it was written down
                known[name] = {"id": "", "key": key}
                _write(folder, known)
                others = {node["id"] for node in known.values()}
                unclaimed = sorted(set(active) - others) if unfinished else []
                try:
                    known[name]["id"] = _register(flower, name, keys[name], unclaimed)
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
    active = superlink_of(folder.path).nodes()
    return {name: active[node["id"]] for name, node in _read(folder).items() if node["id"] in active}


def _register(flower: Flower, name: str, key: Path, unclaimed: list[str]) -> str:
    """Register a site's key, and return its node's id; an unclaimed one is its own where Flower knows the key."""
    node = flower.register(key, name)
    if node is not None:
        return node
    if len(unclaimed) == 1:
        return unclaimed[0]
    raise InputError(
        f"Flower's database remembers every key, removed ones too. It knows that of '{name}'; ask the site for a new "
        "key, or forget them all with cadp-fl coordinator purge."
    )


def _read(folder: CoordinatorFolder) -> dict[str, dict[str, str]]:
    file = folder.state / "nodes.json"
    if not file.exists():
        return {}
    try:
        nodes = parse_json(file.read_text(encoding="utf-8"))
        return {str(name): {"id": str(node["id"]), "key": str(node["key"])} for name, node in nodes.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CadpError(
            f"What is registered is remembered as JSON. '{file}' is damaged; stop the SuperLink, and run cadp-fl "
            "coordinator purge, after which all keys are registered afresh."
        ) from error


def _write(folder: CoordinatorFolder, nodes: dict[str, dict[str, str]]) -> None:
    write_durably(folder.state / "nodes.json", json.dumps(nodes, indent=2).encode())


def _alone(folder: CoordinatorFolder) -> AbstractContextManager[None]:
    """Wait for whoever registers at the moment."""
    return locked(folder.state / "nodes.lock")

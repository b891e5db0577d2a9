"""A site's policy as a file: read while nobody writes it, known by its hash, and compared with the one before."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cadp_fl.config import PolicyConfig, load_policy
from cadp_fl.errors import EditedPolicyError, InputError

__all__ = ["changed_totals", "changes_of", "in_words", "read_policy", "sha256_of", "totals_of"]


def read_policy(path: Path) -> tuple[PolicyConfig, str]:
    """Return the policy in a file, and the file's sha256.

    Raises:
        InputError: it is no policy, or it changed meanwhile.
        EditedPolicyError: it cannot be read.
    """
    sha256 = sha256_of(path) if path.exists() else ""
    policy = load_policy(path)
    if sha256_of(path) != sha256:
        raise InputError("A policy is read while nobody writes it. It changed meanwhile; try again.")
    return policy, sha256


def sha256_of(path: Path) -> str:
    """Return the hash of a policy's file.

    Raises:
        EditedPolicyError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EditedPolicyError(
            f"A site has a policy. '{path}' cannot be read ({error.strerror or type(error).__name__}); bring it back."
        ) from error


def totals_of(policy: PolicyConfig) -> dict[str, float]:
    """Return every epsilon and delta of a policy, by dotted key."""
    return {key: value for key, value in _flat(policy).items() if key.rpartition(".")[2] in ("epsilon", "delta")}


def changes_of(before: PolicyConfig, after: PolicyConfig) -> dict[str, Any]:
    """Return what an edit changed, as JSON values: `keys`, and for totals the values before and after."""
    old, new = _flat(before), _flat(after)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return {"keys": keys, "totals": changed_totals(totals_of(before), totals_of(after))}


def changed_totals(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, list[float | None]]:
    """Return which totals differ, each with its value before and after; None where there was or is none."""
    keys = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    return {key: [before.get(key), after.get(key)] for key in keys}


def in_words(changes: Mapping[str, Any]) -> str:
    """Return a sentence that names what an edit changed, totals with their values."""
    totals = changes["totals"]
    named = [
        f"{key} from {_number(totals[key][0])} to {_number(totals[key][1])}" if key in totals else str(key)
        for key in changes["keys"]
    ]
    return f"Changed: {', '.join(named)}." if named else "Changed: nothing but comments or layout."


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _flat(policy: PolicyConfig) -> dict[str, Any]:
    """Return a policy's values by dotted key; of evaluation, its own keys."""
    tree = policy.model_dump(mode="json")
    evaluation = tree.pop("evaluation") or {}
    return {**tree, **{f"evaluation.{key}": value for key, value in evaluation.items()}}

"""Weights on disk: safetensors with a description of the network in its metadata, so that it can be built again.

A reader trusts none of it: a description is bounded and then parsed by whoever owns the network, and the name and shape
of every tensor is compared with what that network has before one is read.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cadp_fl.errors import CadpError, DataError
from cadp_fl.outputs import replaced_file

__all__ = ["check_shapes", "count_tensors", "load_weights", "read_description", "save_weights"]

MAX_DESCRIPTION_CHARACTERS = 1 << 20


def save_weights(path: Path, weights: Mapping[str, np.ndarray], *, kind: str, description: Mapping[str, str]) -> None:
    """Write weights under a temporary name, and rename the file when it is whole.

    Args:
        kind: of network, for example `flow`.
        description: what builds the network again.

    Raises:
        CadpError: the file cannot be written; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as file:
        try:
            # In C order: of any other, safetensors stores what lies in memory behind it.
            ordered = {name: np.asarray(array, order="C") for name, array in weights.items()}
            save_file(ordered, file, {"format": _format(kind), **description})
        except SafetensorError as error:
            raise CadpError(
                f"A {kind} is stored where there is room. '{path}' cannot be written: {_clause(error)}."
            ) from error


def read_description(path: Path, *, kind: str) -> dict[str, str]:
    """Return what a file says of its network.

    Raises:
        DataError: the file is missing, no safetensors, or holds another kind of network.
    """
    if not path.is_file():
        raise DataError(f"A stored {kind} is a safetensors file. Found none at '{path}'; check the path.")
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata = dict(stored.metadata() or {})
    except OSError as error:
        raise DataError(
            f"A stored {kind} is a file that can be read. '{path}' cannot: {error.strerror or _clause(error)}; let "
            "this user read it."
        ) from error
    except SafetensorError as error:
        raise DataError(
            f"A stored {kind} is a safetensors file. '{path}' holds something else, or is cut off; give the file that "
            f"cadp-fl stored, whole{_example(kind)}."
        ) from error
    if (found := metadata.pop("format", "")) != _format(kind):
        other = re.fullmatch(r"cadp-fl ([a-z]{1,20}) ([0-9]{1,4})", found)
        if other is None:
            said = "is a safetensors file of other software"
        elif other[1] == kind:
            said = f"was stored by another version of cadp-fl, in format {other[2]}"
        else:
            said = f"is a stored {other[1]}"
        raise DataError(f"A stored {kind} is asked for. '{path}' {said}; give a {kind}{_example(kind)}.")
    if sum(len(value) for value in metadata.values()) > MAX_DESCRIPTION_CHARACTERS:
        raise DataError(
            f"A description has at most {MAX_DESCRIPTION_CHARACTERS} characters. That of '{path}' is longer."
        )
    return metadata


def check_shapes(path: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a file's tensors have these names and shapes; none is read.

    Raises:
        DataError: they do not, or the file is damaged.
    """
    with _of(path) as stored:
        _check_shapes(stored, expected)


def count_tensors(path: Path) -> int:
    """Return the number of tensors in a file.

    Raises:
        DataError: the file is damaged.
    """
    with _of(path) as stored:
        return len(stored.keys())


def load_weights(path: Path, expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of a file, which have the names, shapes and types of others.

    Raises:
        DataError: they do not, or the file is damaged.
    """
    with _of(path) as stored:
        _check_shapes(stored, {name: array.shape for name, array in expected.items()})
        return {name: stored.get_tensor(name) for name in expected}


def _check_shapes(stored: Any, expected: Mapping[str, tuple[int, ...]]) -> None:
    if odd := sorted(set(stored.keys()) ^ set(expected)):
        raise ValueError(f"'{odd[0]}' is on one side only")
    for name, wanted in expected.items():
        shape = tuple(stored.get_slice(name).get_shape())
        if shape != wanted:
            raise ValueError(f"'{name}' has shape {shape}, not {wanted}")


@contextmanager
def _of(path: Path) -> Iterator[Any]:
    """Open a file whose tensors are looked at or read."""
    try:
        with safe_open(path, framework="numpy") as stored:
            yield stored
    except SafetensorError as error:
        raise DataError(
            f"A file holds the tensors that its description says. '{path}' is damaged; get it again."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"A file holds the tensors that its description says. '{path}': {_clause(error)}.") from error


def _example(kind: str) -> str:
    """Return where a run keeps what is stored of a kind, in brackets, or nothing."""
    example = {"classifier": "models/classifier-<method>.safetensors", "flow": "models/flow.safetensors"}.get(kind)
    return "" if example is None else f" (a run keeps its own at {example})"


def _format(kind: str) -> str:
    return f"cadp-fl {kind} 1"


def _clause(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__

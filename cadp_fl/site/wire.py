"""JSON and arrays as bytes, and such bytes over a local socket.

    message  a safetensors file of the arrays, with the JSON as the text `content` in its metadata
    frame    8 bytes, the message's length as a big-endian integer; then the message

No pickle is written or read, and every size is bounded before anything is allocated. This module imports neither torch
nor data code: it is what the client code of a SuperNode speaks with its site's agent.
"""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

__all__ = ["MAX_HEADER_BYTES", "WireError", "pack", "receive", "send", "unpack"]

MAX_HEADER_BYTES = 1 << 24
_LENGTH_BYTES = 8
_PIECE_BYTES = 1 << 20
_PLAIN = "biuf"


class WireError(Exception):
    """Why bytes are refused, or cannot be made: a clause without a full stop, for the caller's own sentence."""


def pack(content: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, limit: int) -> bytes:
    """Return JSON and arrays as bytes, the same for the same values.

    Args:
        limit: bytes of the largest message.

    Raises:
        WireError: an array does not hold numbers, the content is not JSON, or both together are too large.
    """
    # In C order: of any other, safetensors stores what lies in memory behind it.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    if odd := [name for name, array in ordered.items() if array.dtype.kind not in _PLAIN or name == "__metadata__"]:
        raise WireError(f"{odd[0][:40]!r} is no array of numbers")
    size = sum(array.nbytes for array in ordered.values())
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        if (size := size + len(text)) > limit or len(text) > MAX_HEADER_BYTES // 2:
            raise WireError(f"it has {size} bytes, {len(text)} of them beside its arrays, and {limit} is the limit")
        return bytes(save(ordered, {"content": text}))
    except (SafetensorError, TypeError, ValueError, RecursionError) as error:
        raise WireError("it is not JSON and arrays") from error


def unpack(data: bytes | bytearray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the JSON and the arrays that bytes hold.

    Raises:
        WireError: they hold none.
    """
    try:
        header = int.from_bytes(data[:8], "little")
        if header > MAX_HEADER_BYTES:
            raise ValueError("a header of that length is none of ours")
        content = json.loads(json.loads(data[8 : 8 + header])["__metadata__"]["content"])
        if not isinstance(content, dict):
            raise ValueError("content is a JSON object")
        arrays = load(bytes(data))
        if any(array.dtype.kind not in _PLAIN for array in arrays.values()):
            raise ValueError("arrays hold numbers")
        return content, arrays
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WireError("it is not JSON and arrays") from error


def send(connection: socket.socket, message: bytes) -> None:
    """Send a message.

    Raises:
        OSError: the other side is gone.
    """
    connection.sendall(len(message).to_bytes(_LENGTH_BYTES, "big"))
    connection.sendall(message)


def receive(connection: socket.socket, *, limit: int, seconds: float | None = None) -> bytes:
    """Return the next message.

    Args:
        limit: bytes of the largest message.
        seconds: in which all of it has to come, however many pieces it comes in.

    Raises:
        WireError: it is too large, or ends early.
        OSError: the other side is gone, or too slow.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    length = int.from_bytes(_read(connection, _LENGTH_BYTES, deadline), "big")
    if length > limit + MAX_HEADER_BYTES:
        raise WireError(f"it says that it has {length} bytes, and {limit} is the limit")
    return _read(connection, length, deadline)


def _read(connection: socket.socket, length: int, deadline: float | None) -> bytes:
    """Return so many bytes; memory grows as they come, not by what the other side says."""
    pieces: list[bytes] = []
    left = length
    while left:
        if deadline is not None:
            connection.settimeout(max(1e-3, deadline - time.monotonic()))
        piece = connection.recv(min(_PIECE_BYTES, left))
        if not piece:
            raise WireError(f"it ends after {length - left} of {length} bytes")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)

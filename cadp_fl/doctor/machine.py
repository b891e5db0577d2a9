"""What a machine has to spare: room, memory, a device."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from cadp_fl.device import resolve_device
from cadp_fl.doctor.finding import Finding, fault, ok, warning

__all__ = ["device", "memory", "permissions_of", "room"]

LOW_DISK, NO_DISK = 2 << 30, 256 << 20
LOW_MEMORY = 1 << 30


def room(folder: Path, *, used: int = 0) -> Iterator[Finding]:
    """Look whether this user can write to a folder, and how much.

    Args:
        used: bytes that what lies there has now, and that it may well have again.
    """
    free = shutil.disk_usage(folder).free
    said = f"{_size(free)} free at '{folder}'"
    if not os.access(folder, os.W_OK | os.X_OK):
        yield fault(f"This user cannot write to '{folder}'.", "Look as its user, and see that its volume is writable.")
    elif free < NO_DISK:
        yield fault(f"Only {said}.", "Make room: what cannot be written down is refused.")
    elif free < max(LOW_DISK, used):
        yield warning(f"Only {said}.", "Make room before the next study.")
    else:
        yield ok(f"{said}.")


def memory() -> Iterator[Finding]:
    """Look how much memory is free."""
    free = psutil.virtual_memory().available
    if free < LOW_MEMORY:
        yield warning(f"Only {_size(free)} of memory are free.", "End what else runs here, or add memory.")
    else:
        yield ok(f"{_size(free)} of memory are free.")


def device(name: str) -> Iterator[Finding]:
    """Look whether the device of a config is there."""
    found = resolve_device(name)
    note = " (no GPU is seen here)" if (name, found.type) == ("auto", "cpu") else ""
    yield ok(f"'{name}' is {found}{note}.")


def permissions_of(path: Path) -> int:
    """Return the mode of a file as a number, such as 0o600; of a link, its target's."""
    return path.stat().st_mode & 0o777


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"

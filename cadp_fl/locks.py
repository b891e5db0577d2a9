"""Locks between processes: a file that one of them holds, until it ends at the latest."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cadp_fl.errors import CadpError

__all__ = ["hold", "locked"]


def hold(path: Path, refusal: CadpError | None = None) -> int:
    """Take a lock, and return its handle, which `os.close` gives back.

    Args:
        path: of the lock's file, which is made and stays.
        refusal: what to raise where another process holds it; without one, that is waited for.

    Raises:
        CadpError: the refusal.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if refusal is None else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(handle)
        assert refusal is not None, "without one it is waited for"
        raise refusal from error
    except BaseException:
        os.close(handle)
        raise
    return handle


@contextmanager
def locked(path: Path, refusal: str = "") -> Iterator[None]:
    """Hold a lock.

    Args:
        refusal: a sentence on who holds it, and the way out; without one, whoever does is waited for.

    Raises:
        CadpError: another process holds it.
    """
    handle = hold(path, CadpError(refusal) if refusal else None)
    try:
        yield
    finally:
        os.close(handle)

"""The mark of a chain: a file outside its database that remembers how far it has come.

A database that was put back from a backup is a whole chain, only a shorter one; its mark shows that. The mark is a JSON
object of `ledger` (the hash of the chain's first entry), `number` and `hash` (of an entry that is there for good).
"""

import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from cadp_fl.errors import LedgerError
from cadp_fl.outputs import write_durably

__all__ = ["Mark", "check_plain", "read_mark", "write_mark"]

MAX_MARK_BYTES = 4096


@dataclass(frozen=True)
class Mark:
    """What a mark remembers."""

    ledger: str
    number: int
    hash: str


def read_mark(path: Path) -> Mark:
    """Return what the mark at a path remembers.

    Raises:
        LedgerError: there is none, or it is damaged.
        OSError: it cannot be read.
    """
    if not os.path.lexists(path):
        raise LedgerError(
            f"A ledger has a mark outside it. Found none at '{path}'; name it with --mark, or bring it back: an "
            "older copy will do. "
            "Without any, an older ledger could not be told from the newest."
        )
    check_plain(path)
    try:
        with path.open("rb") as file:
            mark = Mark(**json.loads(file.read(MAX_MARK_BYTES)))
    except (ValueError, TypeError, RecursionError):
        mark = Mark("", -1, "")
    if (
        type(mark.number) is not int
        or mark.number < 0
        or not isinstance(mark.ledger, str)
        or not isinstance(mark.hash, str)
    ):
        raise LedgerError(
            f"A mark names an entry of its ledger. '{path}' is damaged; bring back a copy, of which an older one "
            "will do."
        )
    return mark


def write_mark(path: Path, mark: Mark) -> None:
    """Replace the mark at a path, and return when a power cut can no longer undo it.

    Raises:
        OSError: it cannot be written.
    """
    write_durably(path, json.dumps(asdict(mark)).encode())


def check_plain(path: Path) -> None:
    """Check that a file is what it seems, without opening it: to close a database would let go of SQLite's locks.

    Raises:
        LedgerError: it is a link, or has several names, or everyone may write to it.
        OSError: it is not there.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise LedgerError(f"A ledger's files are plain, without links. '{path}' is not; put the file itself there.")
    if found.st_mode & stat.S_IWOTH:
        raise LedgerError(
            f"A ledger is not for everyone to write to. '{path}' is; find out who did, and run chmod o-w on it."
        )

"""A chain of entries on disk: append-only, hash-chained, and never shorter than a mark outside it remembers.

It knows nothing of privacy; `cadp_fl.privacy.durable` keeps a site's ledger in one.

An entry's line is the JSON object of its `entry`, `number` and `time`, with keys sorted, no spaces, and every character
beyond ASCII escaped. Its hash is the SHA-256, in hexadecimal, of the previous entry's hash followed by the line; 64
zeros precede entry 0.

Order, and what a crash leaves: the entry is committed and synced to the database, then its number and hash are put into
the mark, then the caller hears of it. A crash in between leaves the database ahead of the mark, by an entry that nobody
heard of and that counts. A mark ahead of the database is a database that was rolled back, and is refused.

Every call opens the database again, reads all of it from the disk and checks every hash, the names of its table and
triggers, and the mark: an edit is noticed by the next call, whoever made it and however. What is kept in memory is what
was parsed, by its hash. The time is written down for people; nothing depends on a clock.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cadp_fl.errors import LedgerError
from cadp_fl.outputs import sync_folder
from cadp_fl.privacy.mark import Mark, check_plain, read_mark, write_mark

__all__ = ["MAX_ENTRY_BYTES", "Chain", "Link", "entry_hash"]

MAX_ENTRY_BYTES = 1 << 20
NOTHING = "0" * 64

SCHEMA = {
    "entries": "CREATE TABLE entries (number INTEGER PRIMARY KEY, previous TEXT NOT NULL, hash TEXT NOT NULL, "
    "time TEXT NOT NULL, entry TEXT NOT NULL)",
    "no_update": "CREATE TRIGGER no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "no_delete": "CREATE TRIGGER no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append-only'); END",
    "only_next": "CREATE TRIGGER only_next BEFORE INSERT ON entries WHEN NEW.number IS NOT "
    "(SELECT coalesce(max(number), -1) + 1 FROM entries) BEGIN SELECT RAISE(ABORT, 'append-only'); END",
}


@dataclass(frozen=True)
class Link:
    """One entry, as it stands in the chain.

    Attributes:
        number: from 0.
        previous: hash of the entry before.
        hash: of this one.
        time: when it was written, by the clock of the machine.
        entry: a JSON object.
    """

    number: int
    previous: str
    hash: str
    time: str
    entry: dict[str, Any]


class Chain:
    """A chain that exists. It may be used by many processes and threads at once.

    Args:
        path: of the database.
        mark: of the file that remembers how far the chain has come; `<path>.mark` by default. On another volume than
            the database it also notices a volume that was restored from a backup.
        timeout: seconds to wait while others write.
    """

    def __init__(self, path: Path, *, mark: Path | None = None, timeout: float = 30.0) -> None:
        self.path = path
        self.mark = mark if mark is not None else path.with_name(f"{path.name}.mark")
        self._timeout = timeout
        self._parsed: dict[str, Link] = {}

    @classmethod
    def create(cls, path: Path, first: dict[str, Any], *, mark: Path | None = None, timeout: float = 30.0) -> "Chain":
        """Make a chain of one entry, where there is none and was none.

        Raises:
            LedgerError: there is one, or a part of one; or it cannot be made there.
        """
        chain = cls(path, mark=mark, timeout=timeout)
        if chain.mark.absolute() in [file.absolute() for file in chain._files()]:
            raise LedgerError(
                f"A mark is another file than its ledger. Found '{chain.mark}'; give it a path of its own."
            )
        for file in (*chain._files(), chain.mark):
            if os.path.lexists(file):
                raise LedgerError(
                    f"A ledger is made where there is none, and never over another. Found '{file}'; use the ledger "
                    "that is there, or give a new population a new path."
                )
        if chain.mark.parent.absolute() != path.parent.absolute() and not chain.mark.parent.is_dir():
            raise LedgerError(
                "A mark lies in a folder that is there, best on another volume: made where a volume is not mounted, it "
                f"would be on the ledger's. There is none at '{chain.mark.parent}'; mount it, or make it."
            )
        with chain._explained():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600))
            try:
                with chain._connected() as database:
                    database.execute("PRAGMA journal_mode=WAL")
                    database.execute("BEGIN IMMEDIATE")
                    for statement in SCHEMA.values():
                        database.execute(statement)
                    link = _insert(database, None, first)
                    database.execute("COMMIT")
                sync_folder(path.parent)
                write_mark(chain.mark, _mark_of([link]))
            except (OSError, sqlite3.Error, LedgerError):
                if not os.path.lexists(chain.mark):  # nobody can have opened it
                    for file in chain._files():
                        file.unlink(missing_ok=True)
                raise
        return chain

    def read(self, *, thorough: bool = False) -> tuple[Link, ...]:
        """Return every entry, once all of them are verified.

        Args:
            thorough: also check the structure of the database's file.

        Raises:
            LedgerError: the chain or its mark is missing, cannot be read, was edited, or was rolled back.
        """
        with self._explained():
            remembered = self._remembered()  # before the database: others may add to both in between
            with self._connected() as database:
                database.execute("BEGIN")
                links = self._verified(database, remembered)
                if thorough and (found := database.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                    raise self._damaged(f"its structure is not whole ({str(found)[:80]})")
        return links

    def append(self, make: Callable[[Sequence[Link]], dict[str, Any] | None]) -> Link | None:
        """Add the entry that a function makes of those before, and return when it is there for good.

        The function is called twice: first without a lock, since an accountant may take seconds, and what it works out
        should be at hand when others wait; then again while nobody else can write. Nothing is added if it raises.

        Args:
            make: returns an entry, or None if nothing is to be added.

        Raises:
            LedgerError: the chain cannot be written to, or cannot be trusted.
        """
        make(self.read())
        with self._writing() as (database, links):
            entry = make(links)
            added = None if entry is None else _insert(database, links[-1], entry)
        if added is not None:
            with self._writing() as (_, links):
                if len(links) <= added.number or links[added.number].hash != added.hash:
                    raise self._damaged(f"entry {added.number} was just written and is gone")
        return added

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, tuple[Link, ...]]]:
        """Hold the right to write, with the verified chain, and a mark that is level with it."""
        with self._explained(), self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                # Marks are only written here, so that they never go backwards.
                remembered = self._remembered()
                links = self._verified(database, remembered)
                if links[-1].number > remembered.number:
                    write_mark(self.mark, _mark_of(links))
                yield database, links
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def _verified(self, database: sqlite3.Connection, remembered: Mark) -> tuple[Link, ...]:
        """Return all entries, checked against each other and against the mark."""
        parts = dict(database.execute("SELECT name, sql FROM sqlite_master").fetchall())
        if parts != SCHEMA:
            raise self._damaged("its table or triggers are not those of a ledger")
        links: list[Link] = []
        for row in database.execute("SELECT number, previous, hash, time, entry FROM entries ORDER BY number"):
            links.append(self._link(row, len(links), links[-1].hash if links else NOTHING))
        if not links:
            raise self._damaged("it has no entry")
        self._parsed = {link.hash: link for link in links}
        if remembered.ledger != links[0].hash:
            raise LedgerError(
                f"A mark belongs to one ledger. '{self.mark}' is not that of '{self.path}'; put the right two together."
            )
        if remembered.number > links[-1].number:
            raise LedgerError(
                f"A ledger is never older than its mark. '{self.path}' ends at entry {links[-1].number}, and "
                f"'{self.mark}' remembers {remembered.number}: an older copy was put back. Bring back the "
                "newest one; if it is lost, so is the population's budget."
            )
        if links[remembered.number].hash != remembered.hash:
            raise self._damaged(f"entry {remembered.number} is not the one that '{self.mark}' remembers")
        return tuple(links)

    def _link(self, row: tuple[Any, ...], number: int, previous: str) -> Link:
        """Return a row as a link, if it is the one that belongs here."""
        if row[0] != number or row[1] != previous or not all(isinstance(text, str) for text in row[1:]):
            raise self._damaged(f"entry {number} does not follow the one before")
        if row[2] != entry_hash(previous, number, row[3], row[4]):
            raise self._damaged(f"entry {number} does not have its hash")
        if (known := self._parsed.get(row[2])) is not None:
            return known
        try:
            entry = json.loads(row[4])
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            raise self._damaged(f"entry {number} is no JSON object")
        return Link(number, previous, row[2], row[3], entry)

    def _remembered(self) -> Mark:
        if not os.path.lexists(self.path):
            raise LedgerError(
                f"A ledger is a file that was made before. Found none at '{self.path}'; check the path and the volume. "
                "If it is lost, do not make a new one for the same population, whose budget is lost with it."
            )
        return read_mark(self.mark)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        for file in self._files():
            with suppress(FileNotFoundError):
                check_plain(file)
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=self._timeout, isolation_level=None)) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * MAX_ENTRY_BYTES)
            for pragma in ("synchronous=EXTRA", "fullfsync=ON", "checkpoint_fullfsync=ON", "trusted_schema=OFF"):
                database.execute(f"PRAGMA {pragma}")
            yield database

    def _files(self) -> tuple[Path, ...]:
        return tuple(self.path.with_name(self.path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal"))

    def _damaged(self, how: str) -> LedgerError:
        return LedgerError(
            f"A ledger is only ever added to. '{self.path}' was changed otherwise: {how}. Bring back the newest whole "
            "copy, and find out who changed it."
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what SQLite and the system raise into one error."""
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, OSError) as error:
            why = str(getattr(error, "strerror", None) or error)
            raise LedgerError(
                f"A ledger is written and synced before anything is computed. '{self.path}' cannot be used "
                f"({' '.join(why.split())[:120]}); {_way_out(why.lower())}."
            ) from error


def _mark_of(links: Sequence[Link]) -> Mark:
    return Mark(links[0].hash, links[-1].number, links[-1].hash)


def _insert(database: sqlite3.Connection, before: Link | None, entry: dict[str, Any]) -> Link:
    """Put an entry after another."""
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_ENTRY_BYTES:
        raise LedgerError(f"An entry has at most {MAX_ENTRY_BYTES} bytes. This one has {len(text)}; ask for less.")
    number, previous = (0, NOTHING) if before is None else (before.number + 1, before.hash)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    link = Link(number, previous, entry_hash(previous, number, now, text), now, entry)
    database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (number, previous, link.hash, now, text))
    return link


def entry_hash(previous: str, number: int, when: str, entry: str) -> str:
    """Return the hash of an entry, given as JSON text."""
    line = f'{{"entry":{entry},"number":{number},"time":{json.dumps(when)}}}'
    return hashlib.sha256((previous + line).encode()).hexdigest()


_WAYS_OUT = {
    ("locked", "busy"): "wait for the process that holds it, or end that one",
    ("full", "no space", "too large", "quota"): "make room on its volume",
    ("readonly", "read-only", "permitted", "permission", "unable to open"): (
        "let the site's user write to the file and to its folder"
    ),
    (
        "malformed",
        "not a database",
        "decode",
        "too big",
    ): "bring back the newest whole copy, and find out who changed it",
}


def _way_out(why: str) -> str:
    return next((way for signs, way in _WAYS_OUT.items() if any(sign in why for sign in signs)), "fix that first")

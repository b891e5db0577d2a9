"""Which side, training or test, every unit of a site has been on, so that no later export moves anybody.

A source's own test split says who is tested on, and another export of the same people may draw it again. So a ledger of
such a source has a register beside it: the salted hash of every patient's id, of every record's id where patients are
not known, or of what each record shows where ids are missing. The register is a file of its own, since hashes of short
ids can be guessed by whoever knows the salt: an export of the ledger holds its SHA-256 alone.
"""

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset
from cadp_fl.errors import DataError, LedgerError
from cadp_fl.outputs import write_durably
from cadp_fl.privacy.durable import DurableLedger

__all__ = ["Register", "check_sides", "register_sides"]

FORMAT = "cadp-fl sides 1"
MAX_BYTES = 1 << 30
KINDS = ("patients", "ids", "records")
"""What identifies a unit, the best first; `records`: what they show."""


@dataclass(frozen=True)
class Register:
    """Who was on which side.

    Attributes:
        salt: random; hashed with everything that identifies a unit.
        sides: by what identifies units, and by side, sorted hashes, uint64.
    """

    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    sides: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def kinds(self) -> set[str]:
        """What has identified units so far."""
        return {kind for kind, _ in self.sides}

    def with_units_of(self, data: SiteData) -> "Register":
        """Return a register that has all units of a site, too.

        Raises:
            DataError: one is on another side than it was, or nothing identifies the units any more.
        """
        best = next(kind for kind in KINDS if _identifies(data.train, kind) and _identifies(data.test, kind))
        sides = dict(self.sides)
        for kind in sorted(self.kinds | {best}):
            train, test = self._hashes(data.train, kind), self._hashes(data.test, kind)
            trained, tested = (self.sides.get((kind, side), train[:0]) for side in ("train", "test"))
            moved = _moved(train, trained, tested) + _moved(test, tested, trained)
            if moved:
                raise DataError(
                    "Everyone stays on the side, training or test, that they were on when the first plan was reserved: "
                    f"whoever was trained on is never tested on. {_counted(moved, kind)} changed sides in this export; "
                    "bring the source's test split back as it was (whoever is new may be on either side)."
                )
            sides[kind, "train"], sides[kind, "test"] = np.union1d(train, trained), np.union1d(test, tested)
        return Register(self.salt, sides)

    def _hashes(self, records: Dataset, kind: str) -> np.ndarray:
        if not _identifies(records, kind):
            raise DataError(
                f"Everyone stays on the side, training or test, that they were on, by the {kind} that the source had. "
                f"It has no {kind} any more; bring them back, the same as before."
            )
        start = hashlib.sha256(f"{self.salt} {kind} ".encode())
        hashes = set()
        for each in _who(records, kind):
            digest = start.copy()
            digest.update(each)
            hashes.add(int.from_bytes(digest.digest()[:8], "big"))
        return np.array(sorted(hashes), dtype=np.uint64)

    def to_bytes(self) -> bytes:
        """Return the register as the bytes of a safetensors file."""
        named = {f"{kind} {side}": hashes for (kind, side), hashes in self.sides.items()}
        return bytes(save(named, {"format": FORMAT, "salt": self.salt}))


def check_sides(ledger: DurableLedger, data: SiteData) -> None:
    """Check that everyone is on the side that they were on; change nothing.

    Raises:
        DataError: somebody is not.
        LedgerError: the register is missing, or was changed.
    """
    if ledger.terms.sides.rule == "source":
        known, register = _current(ledger)
        if known is not None:
            register.with_units_of(data)


def register_sides(ledger: DurableLedger, data: SiteData, *, begins: bool = False) -> None:
    """Write down, for good, on which side everyone is; until the first plan is reserved, a split may still change.

    Args:
        begins: whether a plan is about to be reserved.

    Raises:
        DataError: somebody is on another side than before.
        LedgerError: the register is missing, was changed, or cannot be written.
    """
    if ledger.terms.sides.rule != "source":
        return
    while True:
        known, register = _current(ledger)
        if known is None and not (begins or ledger.plans()):
            return
        grown = register.with_units_of(data)
        if _sizes(grown) == _sizes(register):
            return
        content = grown.to_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        _write(ledger, sha256, content)
        if ledger.register(sha256, before=known):
            if known is not None:
                _path(ledger, known).unlink(missing_ok=True)
            return
        _path(ledger, sha256).unlink(missing_ok=True)  # another process was faster; what it added belongs in, too


def _identifies(records: Dataset, kind: str) -> bool:
    """Return whether records have what identifies each unit."""
    return kind == "records" or (records.patients if kind == "patients" else records.ids) is not None


def _who(records: Dataset, kind: str) -> Iterator[bytes]:
    """Yield what identifies each unit."""
    if kind == "records":
        return (record.tobytes() for record in records.records)
    ids = records.patients if kind == "patients" else records.ids
    assert ids is not None, "somebody looked before"
    return (str(each).encode() for each in np.unique(ids).tolist())


def _moved(now: np.ndarray, before: np.ndarray, elsewhere: np.ndarray) -> int:
    """Return how many are on a side now, and were on the other one alone."""
    return len(np.setdiff1d(np.intersect1d(now, elsewhere), before))


def _counted(number: int, kind: str) -> str:
    what = "patient" if kind == "patients" else "record"
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _sizes(register: Register) -> dict[tuple[str, str], int]:
    return {key: len(hashes) for key, hashes in register.sides.items()}


def _path(ledger: DurableLedger, sha256: str) -> Path:
    return ledger.path.with_name(f"{ledger.path.name}.sides-{sha256[:16]}")


def _write(ledger: DurableLedger, sha256: str, content: bytes) -> None:
    path = _path(ledger, sha256)
    try:
        write_durably(path, content)
    except OSError as error:
        raise LedgerError(
            f"Who is on which side is written down before anything is reserved. '{path}' cannot be written "
            f"({error.strerror or type(error).__name__}); make room, or let this user write there."
        ) from error


def _current(ledger: DurableLedger) -> tuple[str | None, Register]:
    """Return the register that a ledger names, with its SHA-256; None and an empty one where it names none yet."""
    while True:
        known = ledger.registered()
        if known is None:
            return None, Register()
        try:
            return known, _load(ledger, known)
        except LedgerError:
            if ledger.registered() == known:  # or else another process has just put a larger one in its place
                raise


def _load(ledger: DurableLedger, sha256: str) -> Register:
    path = _path(ledger, sha256)
    way_out = "bring it back from the newest copy of the ledger's folder: without it nobody knows who was trained on"
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise LedgerError(f"A ledger has its register of sides beside it. There is none at '{path}'; {way_out}.")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise LedgerError(f"A register of sides is the one that its ledger names. '{path}' was changed; {way_out}.")
        with safe_open(path, framework="numpy") as stored:
            salt = (stored.metadata() or {})["salt"]
            return Register(salt, {_key(name): stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError) as error:
        raise LedgerError(f"A register of sides can be read. '{path}' cannot; {way_out}.") from error


def _key(name: str) -> tuple[str, str]:
    kind, _, side = name.partition(" ")
    return kind, side

"""Stored answers: what a site is about to send, on its disk before the first byte leaves.

A request that comes again gets the same bytes, and spends nothing. The ledger remembers an answer by its sha256; here
lie the answers themselves, each a safetensors file of the reply's arrays with its content as JSON in the metadata. A
file's name names the request (by a hash of its id) and the answer, so that no other answer ever takes its place.
"""

import hashlib
import os
import stat
from pathlib import Path

from cadp_fl.errors import LedgerError
from cadp_fl.outputs import write_durably
from cadp_fl.site.protocol import Reply
from cadp_fl.site.wire import MAX_HEADER_BYTES, WireError, pack, unpack

__all__ = ["ReplyStore"]


class ReplyStore:
    """The answers of one site.

    Args:
        folder: where they lie; made if it is not there.
        limit: bytes of the largest answer.
    """

    def __init__(self, folder: Path, *, limit: int = 4 << 30) -> None:
        self._folder = folder
        self._limit = limit

    def store(self, request: str, reply: Reply) -> str:
        """Store the answer to a request, and return its sha256 when a power cut can no longer undo it.

        Raises:
            LedgerError: it cannot be stored, so it must not be sent.
        """
        data = self._to_bytes(reply)
        answer = hashlib.sha256(data).hexdigest()
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_folder()
            write_durably(self._path(request, answer), data)
        except OSError as error:
            raise self._refused("written", error) from error
        return answer

    def load(self, request: str, answer: str) -> Reply:
        """Return the answer to a request that has this sha256.

        Raises:
            LedgerError: it is missing, too large, damaged, or a link.
        """
        try:
            data = self._read(self._path(request, answer))
        except OSError as error:
            raise self._refused("read", error) from error
        if hashlib.sha256(data).hexdigest() != answer:
            raise LedgerError(
                f"A stored answer is sent as it was stored. One in '{self._folder}' was changed; bring back a copy of "
                "the folder, or ask again under a new id, which spends again."
            )
        return _from_bytes(data)

    def _to_bytes(self, reply: Reply) -> bytes:
        """Return a reply as bytes, the same for the same reply."""
        try:
            return pack(reply.content, reply.arrays, limit=self._limit)
        except WireError as error:
            raise LedgerError(
                f"A stored answer is JSON and arrays of numbers, of at most {self._limit} bytes. This one is not: "
                f"{error}; ask for less."
            ) from error

    def _read(self, path: Path) -> bytes:
        self._check_folder()
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_size > self._limit + MAX_HEADER_BYTES:
                raise LedgerError(
                    f"A stored answer is a plain file of at most {self._limit} bytes. '{path}' is none; bring back the "
                    "answer that was stored."
                )
            return file.read(found.st_size)

    def _check_folder(self) -> None:
        if not stat.S_ISDIR(self._folder.lstat().st_mode):
            raise LedgerError(f"Answers lie in a folder. '{self._folder}' is none, or a link; name the folder itself.")

    def _path(self, request: str, answer: str) -> Path:
        if len(answer) != 64 or set(answer) - set("0123456789abcdef"):
            raise LedgerError("A stored answer is named by its sha256. Found something else; verify the ledger.")
        named = hashlib.sha256(request.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / f"{named[:32]}-{answer}.safetensors"

    def _refused(self, what: str, error: OSError) -> LedgerError:
        return LedgerError(
            f"An answer is stored before it is sent. '{self._folder}' cannot be {what} "
            f"({error.strerror or type(error).__name__}); fix that first."
        )


def _from_bytes(data: bytes) -> Reply:
    """Return the reply that bytes hold.

    Raises:
        LedgerError: they hold none.
    """
    try:
        return Reply(*unpack(data))
    except WireError as error:
        raise LedgerError("A stored answer is one of cadp-fl's. This one is not; verify the ledger.") from error

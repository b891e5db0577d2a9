"""An npz read without trust: no pickle is opened, and every size is bounded before anything is allocated.

An npz is a zip of `NAME.npy` members. A size is given three times, by the zip's directory, by the npy header and by the
bytes that unpack; they have to agree, and stay below the caller's limit.
"""

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

__all__ = ["Header", "Npz", "NpzError", "open_npz"]

MAX_READ_BYTES = 1 << 20
MAX_HEADER_BYTES = 10_000
PLAIN_KINDS = "biufcSU"


AGAIN = "get the file again, or write it with np.savez"
PLAIN = "write it with np.savez, from arrays of numbers or text that each have one shape"


class NpzError(Exception):
    """Why an npz is refused: a clause without a full stop, for the caller's own sentence.

    Attributes:
        remedy: what to do about it, as another clause.
    """

    def __init__(self, reason: str, remedy: str = AGAIN) -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class Header:
    """What a member says of its array.

    Attributes:
        fortran: whether the values are stored with the first index running fastest.
        offset: bytes before the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int

    @property
    def member_bytes(self) -> int:
        """Bytes of the member: the header and the values."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """The arrays of an open archive, read one at a time. Made by `open_npz`."""

    def __init__(self, archive: zipfile.ZipFile, limit: int) -> None:
        self._archive = archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in self._members:
                raise NpzError(f"it holds {member.filename[:40]!r}, which is no .npy or is there twice", PLAIN)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NpzError(f"{name[:40]!r} is compressed in a way that numpy does not write", PLAIN)
            self._members[name] = member
        if (size := sum(member.file_size for member in self._members.values())) > limit:
            raise NpzError(f"it unpacks to {size} bytes, and {limit} is the limit", "store fewer or smaller records")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays, in the archive's order."""
        return tuple(self._members)

    @property
    def listing(self) -> str:
        """The first names, safe to print."""
        listed = ", ".join(ascii(name[:40])[1:-1] for name in self.names[:12]) or "nothing"
        return f"{listed}, ..." if len(self.names) > 12 else listed

    def header(self, name: str) -> Header:
        """Return the shape and type of an array; its values are not read.

        Raises:
            NpzError: it is no plain array, or its size is not what the archive says.
        """
        with _clauses(name), self._archive.open(self._members[name]) as member:
            header = _parse(name, member.read(MAX_HEADER_BYTES))
        if header.member_bytes != self._members[name].file_size:
            raise NpzError(f"{name} is truncated or too long")
        return header

    def array(self, *names: str) -> np.ndarray:
        """Return an array in C order, or several joined along their first axis without a second copy.

        Raises:
            NpzError: one is no plain array, or damaged, or they do not fit together.
        """
        headers = [self.header(name) for name in names]
        shape, dtype = headers[0].shape, headers[0].dtype
        if len(names) > 1:
            if any(not header.shape or (header.shape[1:], header.dtype) != (shape[1:], dtype) for header in headers):
                raise NpzError(f"{' and '.join(names)} differ in shape or type")
            shape = (sum(header.shape[0] for header in headers), *shape[1:])
        with _clauses(names[0]):
            joined = np.empty(shape, dtype=dtype)
        values, start = joined.reshape(-1), 0
        for name, header in zip(names, headers, strict=True):
            end = start + math.prod(header.shape)
            self._fill(name, header, values[start:end])
            start = end
        return joined

    def _fill(self, name: str, header: Header, values: np.ndarray) -> None:
        """Read a member's values into a flat array."""
        with _clauses(name), self._archive.open(self._members[name]) as member:
            member.read(header.offset)
            view, filled = values.view(np.uint8), 0
            while piece := member.read(min(MAX_READ_BYTES, len(view) - filled)):
                view[filled : filled + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
                filled += len(piece)
            if filled != len(view):
                raise NpzError(f"{name} is truncated")
            if header.fortran:
                values[:] = values.reshape(header.shape, order="F").reshape(-1)


@contextmanager
def open_npz(source: Path | bytes, *, limit: int) -> Iterator[Npz]:
    """Open an npz that lies in a file or in memory.

    Args:
        limit: bytes that all its arrays together may unpack to.

    Raises:
        NpzError: it is no whole zip archive of .npy members, or unpacks to more than the limit.
    """
    with ExitStack() as stack:
        with _clauses("the archive"):
            file: IO[bytes] = source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
            stack.enter_context(file)
            npz = Npz(stack.enter_context(zipfile.ZipFile(_InPieces(file))), limit)
        yield npz


class _InPieces:
    """A file that gives few bytes at a time: `zipfile` would read a directory of any length at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, MAX_READ_BYTES + 1) if size >= 0 else MAX_READ_BYTES + 1)
        if len(data) > MAX_READ_BYTES:
            raise NpzError("its directory is too long")
        return data


@contextmanager
def _clauses(what: str) -> Iterator[None]:
    """Turn whatever zip, zlib, npy headers and codecs raise into one exception."""
    try:
        yield
    except NpzError:
        raise
    except MemoryError as error:
        raise NpzError(f"{what} does not fit into memory", "store fewer or smaller records") from error
    except Exception as error:
        system = getattr(error, "strerror", None)
        reason = system or str(error) or type(error).__name__
        remedy = "check that the file can be read" if system else AGAIN
        raise NpzError(f"{what} cannot be read ({' '.join(reason.split())[:120]})", remedy) from error


def _parse(name: str, head: bytes) -> Header:
    """Return the npy header that the first bytes of a member hold; a longer one is refused."""
    stream = io.BytesIO(head)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise NpzError(f"{name} is in npy format {version}", PLAIN)
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise NpzError(f"{name} holds Python objects, which only a pickle brings back", PLAIN)
    if dtype.kind not in PLAIN_KINDS or dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise NpzError(f"{name} is no plain array of numbers or text but {dtype!s:.40} of shape {shape}", PLAIN)
    return Header(shape, dtype, fortran, stream.tell())

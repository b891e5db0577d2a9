"""What is written: under a temporary name beside its place, and renamed when it is whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cadp_fl.errors import InputError

__all__ = [
    "check_new",
    "check_unicode",
    "folder_above",
    "new_file",
    "new_folder",
    "replaced_file",
    "sync_folder",
    "write_durably",
]


def check_unicode(path: Path, what: str) -> None:
    """Check that a path is text, as files have to be that name it: JSON, YAML, TOML and HTML are in UTF-8.

    Args:
        what: has the path, with its article and a capital letter, for the sentence.

    Raises:
        InputError: it is in another encoding.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} has a path in UTF-8, as the files that name it are. Found {str(path)!a}, in another "
            "encoding; rename its folders, or choose others."
        ) from error


def check_new(path: Path, what: str) -> None:
    """Check that there is nothing at a path, and that something can be put there; leaves nothing behind.

    Args:
        what: will be written, with its article and a capital letter, for the sentence.

    Raises:
        InputError: it cannot be written there.
    """
    if os.path.lexists(path):
        raise InputError(f"{what} is never written over another file. Found '{path}'; choose another path.")
    try:
        _remove(_made_above(path))
    except OSError as error:
        raise InputError(
            f"{what} is written into a folder that can be made. '{path.parent}' cannot: {error.strerror}; choose "
            "another path."
        ) from error


@contextmanager
def folder_above(path: Path) -> Iterator[None]:
    """Make the folder above a path, and remove it again, if it is new and empty, when the block fails."""
    made = _made_above(path)
    try:
        yield
    except BaseException:
        _remove(made)
        raise


def _made_above(path: Path) -> list[Path]:
    """Make all folders above a path, and return those that are new, the deepest first."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        _remove(missing)
        raise
    return missing


def _remove(folders: list[Path]) -> None:
    with suppress(OSError):  # that somebody has put something into meanwhile
        for folder in folders:
            folder.rmdir()


@contextmanager
def new_file(path: Path, what: str) -> Iterator[Path]:
    """Yield the temporary name of a file, and give it its own when the block ends well.

    Raises:
        InputError: it cannot be written there.
    """
    check_new(path, what)
    with folder_above(path), replaced_file(path) as temporary:
        yield temporary


@contextmanager
def replaced_file(path: Path, *, mode: int = 0o644) -> Iterator[Path]:
    """Yield the temporary name of a file, and put it in place of what is at its path when the block ends well."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, what: str, *, mode: int = 0o755) -> Iterator[Path]:
    """Yield the temporary name of a folder, and give it its own when the block ends well.

    Raises:
        InputError: it cannot be written there.
    """
    check_new(path, what)
    with folder_above(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(mode)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put bytes in place of what is at a path, all or nothing, and return when a power cut can no longer undo it.

    Raises:
        OSError: it cannot be written there; what was there still is, unless only the last step failed.
    """
    with replaced_file(path, mode=mode) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make durable which names a folder holds.

    Raises:
        OSError: the disk does not.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

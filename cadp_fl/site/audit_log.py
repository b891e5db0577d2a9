"""A site's audit log: every request, decision and refusal, a JSON value a line, for its steward and for nobody else.

A server asks for a release again and again until its steward has decided. That is one line, and the next line about the
release says how often it was repeated.

It holds names, numbers and times, and no secret and no value of a record. The text of an error is written down only
where it cannot hold one: refusals by policy, budget, ledger or form. Of others it gives the type and the place.
"""

import errno
import json
import os
import threading
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cadp_fl
from cadp_fl.errors import CadpError, ExchangeError, PrivacyError

__all__ = ["MAX_TEXT", "AuditLog", "Repeats", "describe_error"]

MAX_TEXT = 500


class AuditLog:
    """The log of one site.

    Args:
        path: of the file; made where it is missing, and only ever appended to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, what: str, **details: Any) -> None:
        """Append a line, and return when it is on the disk.

        Args:
            what: happened: request, decision, reload, repeats, start or stop; by-hand, before a release without a
                federation.
            details: JSON values.

        Raises:
            CadpError: it cannot be written.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "what": what, **details}
        data = (json.dumps(line, ensure_ascii=True) + "\n").encode()
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                if os.write(handle, data) < len(data):
                    raise OSError(errno.ENOSPC, "the line was cut off")
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise CadpError(
                f"What a site does is in its audit log first. '{self._path}' cannot be written to "
                f"({error.strerror or type(error).__name__}); fix that."
            ) from error

    def last(self, *whats: str) -> dict[str, Any]:
        """Return the last line on something that happened; an empty one where there is none.

        Raises:
            CadpError: the log cannot be read.
        """
        found: dict[str, Any] = {}
        try:
            with self._path.open("rb") as file:
                for text in file:
                    with suppress(ValueError):  # a line that a crash cut off
                        line = json.loads(text)
                        found = line if line.get("what") in whats else found
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CadpError(
                f"A site's audit log says which policy holds. '{self._path}' cannot be read "
                f"({error.strerror or type(error).__name__}); fix that."
            ) from error
        return found


class Repeats:
    """Counts refusals that are the same as the one in the log, by the release that was asked for."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[object, int]] = {}  # a state, and how often it came again; one entry a release
        self._lock = threading.Lock()

    def note(self, release: str, state: object) -> int | None:
        """Return how often the earlier state of a release was repeated; None if this is that state once more.

        Args:
            state: what was refused to whom; None where nothing was.
        """
        with self._lock:
            last, count = self._last.get(release, (None, 0))
            if state is not None and state == last:
                self._last[release] = state, count + 1
                return None
            if state is None:
                self._last.pop(release, None)
            else:
                self._last[release] = state, 0
            return count

    def left(self) -> dict[str, int]:
        """Return the counts that no line has given yet."""
        with self._lock:
            return {release: count for release, (_, count) in self._last.items() if count}


def describe_error(error: Exception) -> dict[str, Any]:
    """Return what a log may say of an error, as JSON values."""
    code = error.code if isinstance(error, CadpError) else CadpError.code
    description: dict[str, Any] = {"code": code, "error": type(error).__name__}
    if isinstance(error, (PrivacyError, ExchangeError)):
        return description | {"text": str(error)[:MAX_TEXT]}
    return description | {"at": _place(error)}


def _place(error: Exception) -> str:
    """Return the last place in this library that an error came through, as module and line."""
    library = Path(cadp_fl.__file__).resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(library):
            return f"{path.relative_to(library)}:{frame.lineno}"
    return "outside the library"

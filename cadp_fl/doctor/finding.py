"""What a check found, and how checks are run: each with a limit of time, and none takes the others with it."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

from cadp_fl.errors import CadpError

__all__ = ["Check", "Finding", "UnmetError", "examine", "explained", "fault", "needed", "ok", "skipped", "warning"]

SECONDS = 15.0

Subject = TypeVar("Subject")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        state: of what was looked at.
        found: the finding, in words.
        fix: how to fix it.
        name: of what was looked at; its check's without one.
    """

    state: Literal["ok", "warning", "fault", "skipped"]
    found: str
    fix: str = ""
    name: str = ""


class Check(NamedTuple):
    """A question to a folder.

    Attributes:
        name: of what it looks at.
        look: yields findings; changes nothing.
        seconds: in which it is done, or is given up.
    """

    name: str
    look: Callable[..., Iterable[Finding]]
    seconds: float = SECONDS


class UnmetError(Exception):
    """A check cannot look, since another one's fault is in the way."""


def ok(found: str, name: str = "") -> Finding:
    """Return that all is well."""
    return Finding("ok", found, name=name)


def warning(found: str, fix: str, name: str = "") -> Finding:
    """Return what works, but may not be meant so, or not for long."""
    return Finding("warning", found, fix, name)


def fault(found: str, fix: str, name: str = "") -> Finding:
    """Return what does not work, or is not safe."""
    return Finding("fault", found, fix, name)


def skipped(why: str, name: str = "") -> Finding:
    """Return that something was not looked at."""
    return Finding("skipped", why, name=name)


def explained(error: Exception, name: str = "") -> Finding:
    """Return the fault behind an error. An error that nobody foresaw shows its type alone: its text may reveal more."""
    if isinstance(error, CadpError):
        found, semicolon, fix = str(error).rpartition("; ")
        return fault(f"{found}.", fix[:1].upper() + fix[1:], name) if semicolon else fault(str(error), "", name)
    if isinstance(error, OSError) and error.strerror:
        where = f" '{error.filename}'" if error.filename else ""
        return fault(f"The system refused{where}: {error.strerror}.", "Look as the user that the folder is for.", name)
    return fault(f"The check broke ({type(error).__name__}).", "Run cadp-fl --debug doctor, and report it.", name)


def needed(get: Callable[[], Value], what: str) -> Value:
    """Return what a check needs, which another check looks at.

    Raises:
        UnmetError: there is none.
    """
    try:
        return get()
    except (CadpError, OSError) as error:
        raise UnmetError(f"It needs {what}.") from error


def examine(checks: Sequence[Check], subject: Subject, *, debug: bool = False) -> list[Finding]:
    """Return what each check finds, in order.

    Args:
        subject: is passed to every check.
        debug: lets through what nobody foresaw.
    """
    return [finding for check in checks for finding in _findings(check, subject, debug)]


def _findings(check: Check, subject: Subject, debug: bool) -> list[Finding]:
    found: list[Finding] = []
    unforeseen: list[Exception] = []

    def look() -> None:
        try:
            found.extend(check.look(subject))
        except UnmetError as error:
            found.append(skipped(str(error)))
        except Exception as error:  # whatever breaks a check is what it found
            found.append(explained(error))
            if not isinstance(error, (CadpError, OSError)):
                unforeseen.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(check.seconds)
    if debug and unforeseen:
        raise unforeseen[0]
    findings = list(found)
    if thread.is_alive():
        findings.append(
            warning(
                f"This was not done after {check.seconds:.0f} s, and was given up.", "Try again when less else runs."
            )
        )
    return [replace(finding, name=finding.name or check.name) for finding in findings]

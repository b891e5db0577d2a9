"""Where text goes: no text of a user or a site is markup, and neither a character nor a closed pipe fails a run."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO, cast

from rich.console import Console
from rich.text import Text

__all__ = ["console_to", "outlasting", "plain", "set_streams", "teller"]


def set_streams() -> None:
    """Have this process write what its terminal cannot show as escapes, and nowhere where it has no stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until this process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def plain(text: str) -> str:
    """Return a text in which control characters, which may come from another machine, are escapes without effect."""
    return "".join(part if part.isprintable() or part in "\n\t" else ascii(part)[1:-1] for part in text)


class _Console(Console):
    """A console that prints every text as it stands."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(plain(text), **how)


def console_to(*, soft_wrap: bool = False, quiet: bool = False) -> Console:
    """Return a console that prints to standard output."""
    return _Console(soft_wrap=soft_wrap, quiet=quiet, markup=False, emoji=False, highlight=False)


class _Outlasting:
    """A stream that whatever reads it may close, or whose disk may be full: the rest goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if self.lost is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if self.lost is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = error
        with contextlib.suppress(OSError, ValueError):  # what is in its buffer is written when this process ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def outlasting(stream: Literal["stdout", "stderr"] = "stdout") -> Console:
    """Return a console of a command whose results are in files: it goes on where nothing can be printed."""
    file = cast(TextIO, _Outlasting(getattr(sys, stream)))
    return _Console(file=file, markup=False, emoji=False, highlight=False)


def teller(*, silent: bool) -> Callable[[str], None]:
    """Return what prints a sentence of a command that stays, whether or not anybody reads it; or says nothing."""
    console = outlasting()
    return lambda sentence: None if silent else console.print(sentence, soft_wrap=True)

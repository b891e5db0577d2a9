"""Plain scalars of YAML 1.2, by its core schema.

Each is true, false, null, a number or text by its own letters alone: `yes`, `1:30`, `3_0` and `2024-01-31` are text.
"""

import math
import re
from typing import Any

from cadp_fl.errors import ConfigError

__all__ = ["HEXADECIMAL", "NUMBER", "OCTAL", "UNPRINTED", "UNSEEN", "WHOLE", "check_printable", "plain_value"]

_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **{sign + name: float(f"{sign}inf") for sign in ("", "+", "-") for name in (".inf", ".Inf", ".INF")},
}
WHOLE, OCTAL, HEXADECIMAL = r"[-+]?[0-9]+", r"0o[0-7]+", r"0x[0-9a-fA-F]+"
NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
UNPRINTED = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""Control characters, other ends of a line, and what is no character in UTF-8."""
UNSEEN = re.compile("[\u00a0\u00ad\u200b\u200e\u200f\u202a-\u202f\u2060-\u2069\u3000]")
"""Spaces that are none to YAML, and what nobody sees."""
_MAX_DIGITS = 400
"""Of a whole number; one of more is infinite, as it is beyond every float."""


def plain_value(text: str) -> Any:
    """Return what a plain scalar is by the core schema: true, false, null, a number, or the text itself."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for digits, base in ((WHOLE, 10), (OCTAL, 8), (HEXADECIMAL, 16)):
        if re.fullmatch(digits, text):
            return int(text, 0 if base != 10 else 10) if len(text) <= _MAX_DIGITS else _infinite(text)
    return float(text) if re.fullmatch(NUMBER, text) else text


def _infinite(text: str) -> float:
    return -math.inf if text.startswith("-") else math.inf


def check_printable(text: str, what: str) -> None:
    """Check that text can stand in a config.

    Args:
        what: the text is, for the sentence.

    Raises:
        ConfigError: it has a control character, or what is no character in UTF-8.
    """
    if (odd := UNPRINTED.search(text)) is not None:
        raise ConfigError(
            f"A {what} is printable text in UTF-8. Found the character U+{ord(odd[0]):04X} in {text!a:.200}; rename it."
        )

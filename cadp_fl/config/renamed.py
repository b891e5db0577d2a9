"""Words of configs that have another name now: they are still read, with a note that says the new one."""

import logging
from collections.abc import Mapping
from functools import lru_cache

__all__ = ["note_once", "renamed"]

_log = logging.getLogger(__name__)


def renamed(key: str, value: object, names: Mapping[str, str]) -> object:
    """Return a value of a config under its name of now.

    Args:
        key: dotted.
        names: new names by earlier ones.
    """
    if isinstance(value, str) and value in names:
        note_once(key, str(value), names[value])
        return names[value]
    return value


@lru_cache
def note_once(key: str, earlier: str, now: str) -> None:
    """Say once that a word has another name now."""
    _log.warning("cadp-fl: %s: %s is called %s now. Both are read; write %s.", key, earlier, now, now)

"""A config's tree: plain values, beside where each of them stands and how it was written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

__all__ = ["Place", "WrittenList", "WrittenMap", "place_of", "printable", "quoted"]

MAX_EXCERPT = 100


@dataclass(frozen=True)
class Place:
    """Where something stands.

    Attributes:
        source: a file, or the option that says it.
        line: from 1; 0 where it is the whole source.
        column: from 1.
        excerpt: the line, or the part of a long one around the column.
        written: a plain scalar as it is written; None for anything else.
    """

    source: str
    line: int = 0
    column: int = 0
    excerpt: str = ""
    written: str | None = None

    @classmethod
    def in_line(cls, source: str, line: int, column: int, text: str, written: str | None = None) -> Self:
        """Return a place in a line of text, of which it shows what can be printed."""
        start = 0 if len(text) <= MAX_EXCERPT else max(0, column - 1 - MAX_EXCERPT // 2)
        shown = printable(text[start : start + MAX_EXCERPT].strip(" "))
        before, after = "... " if start else "", " ..." if start + MAX_EXCERPT < len(text) else ""
        return cls(source, line, column, f"{before}{shown}{after}", written)

    def __str__(self) -> str:
        return (
            self.source if not self.line else f"{self.source}, line {self.line}, column {self.column}: {self.excerpt}"
        )


class WrittenMap(dict[str, Any]):
    """A mapping, and where it stands: equal to any other mapping of the same values.

    Attributes:
        place: of the mapping.
        of_keys: place of each key.
        of_values: place of each value.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.of_keys: dict[str, Place] = {}
        self.of_values: dict[str, Place] = {}

    def put(self, key: str, value: Any, of_value: Place, of_key: Place) -> None:
        """Set a value, with its places."""
        self[key], self.of_keys[key], self.of_values[key] = value, of_key, of_value


class WrittenList(list[Any]):
    """A list, and where it stands.

    Attributes:
        place: of the list.
        of_values: place of each value.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.of_values: list[Place] = []

    def put(self, value: Any, of_value: Place) -> None:
        """Append a value, with its place."""
        self.append(value)
        self.of_values.append(of_value)


def place_of(tree: Any, location: tuple[str | int, ...], *, of_key: bool = False) -> Place | None:
    """Return where a location below a tree stands, or what is nearest above it; None for a tree that was not written.

    Args:
        location: keys and indices; what is neither is passed over, as a union's tags are.
        of_key: whether the place of the last key is asked for, rather than that of its value.
    """
    place: Place | None = getattr(tree, "place", None)
    for number, part in enumerate(location, start=1):
        if isinstance(tree, WrittenMap) and part in tree:
            places = tree.of_keys if of_key and number == len(location) else tree.of_values
            place, tree = places[str(part)], tree[str(part)]
        elif isinstance(tree, WrittenList) and isinstance(part, int) and part < len(tree):
            place, tree = tree.of_values[part], tree[part]
    return place


def printable(text: str) -> str:
    """Return text with an escape in place of each character that no terminal prints."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def quoted(path: Path) -> str:
    """Return a path as a source."""
    return f"'{printable(str(path))}'"

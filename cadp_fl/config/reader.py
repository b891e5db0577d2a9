"""YAML as it is meant: version 1.2, one document, unique keys, no tags, and bounds on all that can grow.

What a plain scalar is, its letters say (`scalars`). How it was written stays beside its value, so that a field of text
takes `010` and `no` as they stand.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cadp_fl.config.scalars import UNPRINTED, UNSEEN, plain_value
from cadp_fl.config.syntax import explained
from cadp_fl.config.written import Place, WrittenList, WrittenMap, printable, quoted
from cadp_fl.errors import ConfigError

__all__ = ["MAX_CONFIG_BYTES", "read_file", "read_value"]

MAX_CONFIG_BYTES = 512 << 10
MAX_DEPTH = 32
MAX_ALIASES = 100
MAX_VALUES = 50_000


def read_file(path: Path, what: str) -> WrittenMap:
    """Return the mapping that a YAML file holds.

    Args:
        what: the file is, for sentences.

    Raises:
        ConfigError: there is no such file, or it breaks a rule; the message names the line.
    """
    if not path.is_file():
        raise ConfigError(f"A {what} is a file. Found none at '{path}'; check the path.")
    with path.open("rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"A {what} has at most {MAX_CONFIG_BYTES} bytes. '{path}' has more; check the path.")
    reader = _Reader(what, quoted(path))
    tree, _ = reader.read(reader.decode(data))
    if not isinstance(tree, WrittenMap):
        found = "nothing" if tree is None else "a list" if isinstance(tree, list) else "one value"
        raise reader.refusal("a mapping of keys to values", found, "write each as 'key: value'")
    return tree


def read_value(text: str, option: str) -> tuple[Any, Place]:
    """Return the value that an option's text is, and its place.

    Raises:
        ConfigError: the text breaks a rule of YAML.
    """
    return _Reader("value of an override", f"{printable(option):.200}", in_one_line=True).read(text)


_ESCAPE = re.compile(r"\\U([0-9a-fA-F]{8})")
_LINE_END = re.compile(r"\r\n|\r|\n")
_BYTE_ORDER = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class _Reader:
    """Reads one document.

    Args:
        what: it is, for sentences.
        source: where it comes from.
        in_one_line: whether the source shows all of it, so that no line has to be named.
    """

    def __init__(self, what: str, source: str, *, in_one_line: bool = False) -> None:
        self._what, self._source, self._in_one_line = what, source, in_one_line
        self._lines: list[str] = []
        self._aliases = self._values = 0
        self._anchors: dict[str, tuple[Any, Place] | None] = {}

    def decode(self, data: bytes) -> str:
        """Return bytes as text.

        Raises:
            ConfigError: they are not UTF-8.
        """
        if name := _wide(data):
            raise self.refusal("text in UTF-8", name, "save it as UTF-8")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            byte = error.object[error.start : error.start + 1]
            found = f"the byte 0x{byte.hex()}, which is '{printable(byte.decode('cp1252', 'replace'))}' in Latin-1"
            self._lines = _LINE_END.split(error.object.decode("utf-8", "replace"))
            place = self._after(error.object[: error.start].decode("utf-8"))
            raise self.refusal("text in UTF-8", found, "save it as UTF-8", place) from error

    def read(self, text: str) -> tuple[Any, Place]:
        """Return the value of the one document in a text, and its place; null for no document.

        Raises:
            ConfigError: there are several, or it breaks a rule.
        """
        self._lines = _LINE_END.split(text)
        if (odd := UNPRINTED.search(text)) is not None:
            raise self._unprinted(odd[0], self._after(text[: odd.start()]))
        try:
            return self._document(iter(yaml.parse(text, Loader=yaml.SafeLoader)))
        except yaml.MarkedYAMLError as error:
            found, way_out, mark = explained(error)
            place = None if mark is None else self._at(mark)
            raise self.refusal("YAML", found, way_out, place) from error
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            escape = next((each for each in _ESCAPE.finditer(text) if int(each[1], 16) > sys.maxunicode), None)
            place = None if escape is None else self._after(text[: escape.start()])
            raise self.refusal("YAML", "an escape of no character", "correct it", place) from error

    def refusal(self, rule: str, found: str, way_out: str, place: Place | None = None) -> ConfigError:
        """Return an error that says what the text is, what was found, and the way out."""
        return ConfigError(f"A {self._what} is {rule}. Found {found}; {way_out}. See {place or self._source}")

    def _document(self, events: Iterator[yaml.Event]) -> tuple[Any, Place]:
        tree, place, documents = None, Place(self._source), 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.refusal("one document", "a second one", "remove it", self._at(event.start_mark))
                if event.version not in (None, (1, 2)):
                    raise self.refusal("YAML 1.2", "another version", "remove the line", self._at(event.start_mark))
                tree, found = self._value(events, next(events), 1)
                place = replace(place, written=found.written)
        if isinstance(tree, (WrittenMap, WrittenList)):
            tree.place = place
        return tree, place

    def _value(self, events: Iterator[yaml.Event], event: yaml.Event, depth: int) -> tuple[Any, Place]:
        """Return the value that begins with an event, and its place."""
        assert isinstance(event, yaml.NodeEvent), "the parser says that a value begins"
        place = self._at(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, place, depth)
        self._check_tag(event, place)
        self._count(1, place)
        if event.anchor is not None:
            if event.anchor in self._anchors:
                raise self.refusal("YAML in which an anchor stands once", "one again", "rename it", place)
            self._anchors[event.anchor] = None  # until its value has ended
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value, place = self._scalar(event, place)
        else:
            self._check_depth(depth, place)
            read = self._mapping if isinstance(event, yaml.MappingStartEvent) else self._list
            value = read(events, place, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, place
        return value, place

    def _mapping(self, events: Iterator[yaml.Event], place: Place, depth: int) -> WrittenMap:
        mapping = WrittenMap(place)
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            at = self._at(event.start_mark)
            if not isinstance(event, yaml.ScalarEvent):
                raise self.refusal("YAML with text as keys", "a key that is none", "put it in quotes", at)
            self._check_tag(event, at)
            self._count(1, at)
            self._scalar(event, at)
            key = event.value
            if event.anchor is not None or (_is_plain(event) and key in ("", "<<")):
                found = "an anchor at a key" if event.anchor is not None else f"the key '{key}'"
                raise self.refusal("YAML 1.2, without merges, with text as keys", found, "write the keys out", at)
            if key in mapping:
                found = f"'{printable(key):.60}' again (first in line {mapping.of_keys[key].line})"
                raise self.refusal("YAML in which a key stands once", found, "remove one of the two", at)
            mapping.put(key, *self._value(events, next(events), depth + 1), at)
        return mapping

    def _list(self, events: Iterator[yaml.Event], place: Place, depth: int) -> WrittenList:
        values = WrittenList(place)
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            values.put(*self._value(events, event, depth + 1))
        return values

    def _scalar(self, event: yaml.ScalarEvent, place: Place) -> tuple[Any, Place]:
        text = str(event.value)
        if (odd := UNPRINTED.search(text)) is not None:
            raise self._unprinted(odd[0], place)
        if not _is_plain(event):
            return text, place
        if (odd := UNSEEN.search(text)) is not None:
            found = f"the character U+{ord(odd[0]):04X}, which looks like a space or like nothing"
            raise self.refusal("YAML of plain letters", found, "remove it, or put the text in quotes", place)
        return plain_value(text), replace(place, written=text)

    def _alias(self, name: str | None, place: Place, depth: int) -> tuple[Any, Place]:
        """Return a copy of what an alias stands for."""
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise self.refusal(
                f"YAML of at most {MAX_ALIASES} aliases", f"alias {self._aliases}", "write values out", place
            )
        if name is None or name not in self._anchors:
            raise self.refusal(
                "YAML whose aliases follow their anchors", "one without", "write the value, or quote the *", place
            )
        anchored = self._anchors[name]
        if anchored is None:
            raise self.refusal("a tree", "an alias inside of what it stands for", "write its value out", place)
        value, at = anchored
        values, height = _extent(value)
        self._count(values, place)
        self._check_depth(depth + height - 1, place)
        return _copied(value), replace(place, written=at.written)

    def _check_tag(self, event: yaml.NodeEvent, place: Place) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            found = f"the tag {printable(tag):.60}"
            raise self.refusal("YAML without tags", found, "remove it, or put text in quotes", place)

    def _check_depth(self, depth: int, place: Place) -> None:
        if depth > MAX_DEPTH:
            raise self.refusal(f"at most {MAX_DEPTH} levels deep", "more", "close brackets", place)

    def _count(self, values: int, place: Place) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise self.refusal(f"a tree of at most {MAX_VALUES} values", "more, aliases counted", "shorten it", place)

    def _unprinted(self, character: str, place: Place) -> ConfigError:
        return self.refusal("printable text", f"the character U+{ord(character):04X}", "remove it", place)

    def _after(self, head: str) -> Place:
        """Return the place behind the beginning of the text."""
        lines = _LINE_END.split(head)
        return self._place(len(lines) - 1, len(lines[-1]))

    def _at(self, mark: Any) -> Place:
        return self._place(mark.line, mark.column)

    def _place(self, line: int, column: int) -> Place:
        if self._in_one_line:
            return Place(self._source)
        text = self._lines[line] if line < len(self._lines) else ""
        return Place.in_line(self._source, line + 1, column + 1, text)


def _wide(data: bytes) -> str:
    """Return the name of an encoding of several bytes a letter; empty if the data is in none."""
    for mark, name in _BYTE_ORDER.items():
        if data.startswith(mark):
            return name
    zeros = [index % 2 for index, byte in enumerate(data[:64]) if byte == 0]
    return "UTF-16" if len(zeros) > len(data[:64]) / 4 > 1 and len(set(zeros)) == 1 else ""


def _is_plain(event: yaml.ScalarEvent) -> bool:
    return not event.style


def _extent(value: Any) -> tuple[int, int]:
    """Return how many values there are in one, itself among them, and how many levels of collections."""
    if not isinstance(value, (dict, list)):
        return 1, 0
    below = [_extent(each) for each in (value.values() if isinstance(value, dict) else value)]
    keys = len(value) if isinstance(value, dict) else 0
    return 1 + keys + sum(count for count, _ in below), 1 + max((height for _, height in below), default=0)


def _copied(value: Any) -> Any:
    """Return a value that shares no collection with another."""
    if isinstance(value, WrittenMap):
        mapping = WrittenMap(value.place)
        for key, each in value.items():
            mapping.put(key, _copied(each), value.of_values[key], value.of_keys[key])
        return mapping
    if isinstance(value, WrittenList):
        values = WrittenList(value.place)
        for each, place in zip(value, value.of_values, strict=True):
            values.put(_copied(each), place)
        return values
    return value

"""What breaks YAML's syntax, in plain words: what was found, and the way out."""

import re
from typing import Any

import yaml

__all__ = ["explained"]

_QUOTE = "put it in quotes"
_SYNTAX = (
    (r"character '\\t'", "a tab where spaces belong", "replace it by spaces"),
    (r"character '.*' that cannot start", "text that begins with a sign of YAML", _QUOTE),
    (
        "mapping values are not allowed",
        "a ': ' where no key can stand",
        "indent keys of one mapping alike, and put text with ': ' in quotes",
    ),
    ("mapping keys|sequence entries", "an item where none can stand", "begin it on a line of its own"),
    (
        r"expected ',' or|found '<stream end>'",
        "a bracket or brace that is not closed, or a comma that is missing",
        "close it, and put text with commas, brackets or braces in quotes",
    ),
    ("could not find expected ':'", "a line without ': ' where a key belongs", "write it as 'key: value'"),
    (
        "expected <block end>",
        "text that does not go on with what stands before it",
        "indent keys of one mapping alike, and put the whole of a text in quotes",
    ),
    ("expected the node content", "a comma, bracket or brace where a value belongs", _QUOTE),
    ("unexpected end of stream|document separator", "a quotation mark that is not closed", "close it"),
    (
        "unknown escape character|escape sequence",
        "a backslash in double quotes that escapes nothing",
        "use single quotes",
    ),
    ("scanning an (alias|anchor)", "text that begins with * or &", _QUOTE),
    ("document start", "more after the end of its value", "remove it, or put the whole of a text in quotes"),
    ("a tag|tag handle", "text that begins with !", _QUOTE),
    ("block scalar", "text that begins with | or >", "put it in quotes, or begin it on the next line"),
    ("directive|version", "a line that begins with %", "remove it"),
)


def explained(error: yaml.MarkedYAMLError) -> tuple[str, str, Any]:
    """Return what the parser found, the way out, and where to look."""
    said = f"{error.context or ''} {error.problem or ''}"
    at_end = re.search("stream end|end of stream|could not find expected ':'|document separator", said)
    mark = error.context_mark if at_end and error.context_mark else error.problem_mark or error.context_mark
    for pattern, found, way_out in _SYNTAX:
        if re.search(pattern, said):
            return found, way_out, mark
    return "a line that means nothing in it", "put its text in quotes", mark

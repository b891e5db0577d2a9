"""JSON that someone else wrote, or that a file may have lost."""

import json
from typing import Any

__all__ = ["parse_json"]


def parse_json(text: str | bytes) -> Any:
    """Return the value that a text holds.

    Raises:
        ValueError: it is no JSON, or its brackets are nested deeper than this process can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON has few brackets inside each other") from error

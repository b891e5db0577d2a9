"""Whose answers a run used in every round, on disk, so that a resumed run asks those very sites again.

What a server asks depends on the answers before. A real site keeps what it answered: asked the same again, it sends the
same bytes and spends nothing. So a run over real sites that is resumed replays the rounds which it had, each with the
sites whose answers it had used, and comes to the same point.
"""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cadp_fl.errors import InputError
from cadp_fl.json_text import parse_json

__all__ = ["JOURNAL", "Exchange", "Journal"]

JOURNAL = "exchanges.jsonl"
MAX_BYTES = 64 << 20


class Exchange(BaseModel):
    """One round of a phase that spent: whose answers were used, and why others were not."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    phase: str
    round: int = Field(ge=1, le=10**9)
    used: tuple[str, ...] = Field(description="names of sites, in order")
    missing: dict[str, str] = Field(description="reasons by site")


class Journal:
    """The exchanges of a run, in its folder.

    Args:
        path: of the file, one JSON value a line; made with the first exchange.

    Raises:
        InputError: the file is not what a run wrote.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._exchanges = {(each.phase, each.round): each for each in _read(path)}

    def exchange(self, phase: str, round: int) -> Exchange | None:
        """Return a round that was over before the run was interrupted, or None."""
        return self._exchanges.get((phase, round))

    def note(self, exchange: Exchange) -> None:
        """Write a round down, before anything else is asked."""
        with self._path.open("ab") as file:
            file.write((exchange.model_dump_json() + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        self._exchanges[exchange.phase, exchange.round] = exchange


def _read(path: Path) -> list[Exchange]:
    """Return the exchanges in a file, and cut off a last line that was never written to its end."""
    if not path.exists():
        return []
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"A run's exchanges take at most {MAX_BYTES} bytes. '{path}' has more; start a new run.")
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        exchanges = [Exchange.model_validate(parse_json(line)) for line in whole.splitlines()]
    except (ValueError, ValidationError) as error:
        raise InputError(
            f"A run is resumed from the exchanges that it wrote down. '{path}' holds something else; bring it back, or "
            "start a new run, which spends again."
        ) from error
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return exchanges

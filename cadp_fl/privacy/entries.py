"""The entries of a ledger, and how each is written: plans, events, answers, declarations, registers of sides."""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cadp_fl.privacy.events import Event, events_from_json
from cadp_fl.privacy.plan import NOTHING, Allowance, Conditions, Plan

__all__ = ["SHA256", "Answer", "Declare", "Entry", "Reserve", "Sides", "Spend", "entry_from_json"]

SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Reserve:
    """A plan was set aside."""

    plan: Plan

    @cached_property
    def cost(self) -> Allowance:
        """What the plan costs; what it leaves unprotected has no number, and costs nothing here."""
        protected = self.plan.protected()
        return Allowance(protected.epsilon(), protected.delta) if protected.events else NOTHING

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        return {"reserve": self.plan.to_json()}


@dataclass(frozen=True)
class Spend:
    """An event was spent.

    Attributes:
        plan: key of its plan.
        event: what was spent.
        request: id of the request that it answers; empty where there is none.
        body: sha256 of the request.
        retry: what it cost, of the plan's retry reserve, if a crash had lost the result of an earlier one.
    """

    plan: str
    event: Event
    request: str = ""
    body: str = ""
    retry: Allowance | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        tree = {"plan": self.plan, "event": self.event.model_dump(), "request": self.request, "body": self.body}
        return {"spend": tree | ({} if self.retry is None else {"retry": vars(self.retry)})}


@dataclass(frozen=True)
class Answer:
    """An answer, of a sha256, was stored before it was sent."""

    request: str
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        return {"answer": vars(self)}


@dataclass(frozen=True)
class Declare:
    """Exact numbers of training records of each class were given out, under these conditions."""

    conditions: Conditions

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        return {"declare": self.conditions.to_json()}


@dataclass(frozen=True)
class Sides:
    """The register of who was on which side, training or test, has a sha256 from now on."""

    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain JSON values."""
        return {"sides": vars(self)}


Entry = Reserve | Spend | Answer | Declare | Sides


def entry_from_json(tree: dict[str, Any]) -> Entry:
    """Return the entry that `to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    if len(tree) != 1:
        raise ValueError("an entry is one thing")
    match tree:
        case {"reserve": dict() as plan}:
            return Reserve(Plan.from_json(plan))
        case {"spend": {"plan": str() as key, "event": dict() as event, "request": str(), "body": str(), **more}}:
            (spent,) = events_from_json([event])
            aside: Any = more.pop("retry") if more else None
            retry = None if aside is None else Allowance(**aside)
            if more or not (retry is None or (0 <= retry.epsilon < math.inf and 0 <= retry.delta < 1)):
                raise ValueError("no retry")
            return Spend(key, spent, tree["spend"]["request"], tree["spend"]["body"], retry)
        case {"answer": {"request": str() as request, "sha256": str() as sha256}}:
            return Answer(request, sha256)
        case {"declare": dict() as conditions}:
            return Declare(Conditions.from_json(conditions))
        case {"sides": {"sha256": str() as sha256, **more}} if not more and SHA256.fullmatch(sha256):
            return Sides(sha256)
    raise ValueError("no entry")

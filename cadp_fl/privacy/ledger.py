"""The ledger: what a site has promised to spend at most, and what it did spend.

A method reserves its whole plan before its first event. Privacy loss composes within such a plan, since it was
fixed in advance; across plans the ledger adds epsilons and deltas, because a later plan may have been chosen by
looking at what an earlier one released. What is claimed is the reserved plan, even if a run stops early: a crash
never refunds.
"""

import json
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cadp_fl.errors import BudgetError
from cadp_fl.privacy.accounting import (
    Event,
    PoissonGaussian,
    Relation,
    Unprotected,
    epsilon_of,
    events_from_json,
)

__all__ = ["Ledger", "MemoryLedger", "Plan"]


@dataclass(frozen=True)
class Plan:
    """What one method may spend at one site.

    Attributes:
        method: name of the method.
        events: every event of the method, in order.
        delta: the delta at which epsilon is claimed.
    """

    method: str
    events: tuple[Event, ...]
    delta: float

    def epsilon(self, relation: Relation = Relation.REPLACE_ONE) -> float:
        """Return the epsilon of all events together; infinite if one is unprotected."""
        return epsilon_of(self.events, self.delta, relation)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {"method": self.method, "events": [event.model_dump() for event in self.events], "delta": self.delta}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "Plan":
        """Return the plan that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is no plan.
        """
        delta = float(tree["delta"])
        if not 0 < delta < 1:
            raise ValueError(f"delta is between 0 and 1. Found {delta}.")
        return cls(str(tree["method"]), events_from_json(tree["events"]), delta)


class Ledger(Protocol):
    """A site's list of events; the only source of every epsilon that is printed."""

    simulation: bool

    def reserve(self, plan: Plan) -> None:
        """Set a plan aside before its first event.

        Raises:
            BudgetError: the method has a different plan already.
        """
        ...

    def spend(self, method: str, event: Event) -> str:
        """Write an event down before it is computed, and return its id, `<method>-<stage>-<number in the stage>`.

        Raises:
            BudgetError: the method's plan does not hold the event, or holds less of it than would be spent.
        """
        ...

    def plans(self) -> tuple[Plan, ...]:
        """Return what was reserved, in order."""
        ...

    def spent(self, method: str) -> tuple[Event, ...]:
        """Return what a method has spent, in order."""
        ...


class MemoryLedger:
    """A ledger for simulations. It lives as long as the mapping that holds it, and no longer.

    Args:
        store: where entries are kept, as a list of JSON texts below `entries`.
    """

    simulation = True

    def __init__(self, store: MutableMapping[str, Any] | None = None) -> None:
        self._store = store if store is not None else {}
        self._store.setdefault("entries", [])

    def reserve(self, plan: Plan) -> None:
        """Set a plan aside before its first event."""
        for known in self.plans():
            if known.method == plan.method:
                if known != plan:
                    raise BudgetError(
                        f"A method reserves one plan. '{plan.method}' has another one already; start a new run."
                    )
                return
        self._append({"reserve": plan.to_json()})

    def spend(self, method: str, event: Event) -> str:
        """Write an event down before it is computed, and return its id, `<method>-<stage>-<number in the stage>`."""
        plan = next((plan for plan in self.plans() if plan.method == method), None)
        if plan is None:
            raise BudgetError(f"A method reserves a plan before its first event. '{method}' has none; reserve it.")
        spent = self.spent(method)
        if not _fits(plan, (*spent, event)):
            raise BudgetError(
                f"An event must be in the plan that was reserved. '{method}' asked for {event.model_dump()}, and its "
                "plan holds no such event or less of it; start a new run with a larger plan."
            )
        self._append({"spend": {"method": method, "event": event.model_dump()}})
        # Numbered by stage, so that a stage which is repeated after an interruption gets the same ids.
        return f"{method}-{event.stage}-{1 + sum(each.stage == event.stage for each in spent)}"

    def plans(self) -> tuple[Plan, ...]:
        """Return what was reserved, in order."""
        return tuple(Plan.from_json(entry["reserve"]) for entry in self._entries() if "reserve" in entry)

    def spent(self, method: str) -> tuple[Event, ...]:
        """Return what a method has spent, in order."""
        spends = [entry["spend"] for entry in self._entries() if "spend" in entry]
        return events_from_json([spend["event"] for spend in spends if spend["method"] == method])

    def _entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._store["entries"]]

    def _append(self, entry: dict[str, Any]) -> None:
        self._store["entries"] = [*self._store["entries"], json.dumps(entry)]


def _fits(plan: Plan, spent: Sequence[Event]) -> bool:
    """Tell whether everything spent is covered by the plan: the same parameters, and no more of it."""
    planned, used = _amounts(plan.events), _amounts(spent)
    return all(used[event] <= planned.get(event, -1) for event in used)


def _amounts(events: Sequence[Event]) -> dict[Event, int]:
    """Return how much there is of every event: steps of DP-SGD, releases; nothing counts what is unprotected."""
    amounts: dict[Event, int] = {}
    for event in events:
        one, amount = event, 1
        if isinstance(event, PoissonGaussian):
            one, amount = event.model_copy(update={"steps": 1}), event.steps
        elif isinstance(event, Unprotected):
            amount = 0
        amounts[one] = amounts.get(one, 0) + amount
    return amounts

"""The ledger: what a site has promised to spend at most, and what it did spend.

A method reserves its whole plan before its first event. Privacy loss composes within such a plan, since it was
fixed in advance; across plans the ledger adds epsilons and deltas, because a later plan may have been chosen by
looking at what an earlier one released. What is claimed is the reserved plan, even if a run stops early: a crash
never refunds.

`Book` holds the rules, over entries that are plain JSON; a ledger keeps the entries: `MemoryLedger` as long as a
simulation, `cadp_fl.privacy.durable` for good.
"""

import json
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cadp_fl.errors import BudgetError, ExchangeError, TotalBudgetError
from cadp_fl.privacy.accounting import (
    DeclaredPublic,
    Event,
    PoissonGaussian,
    Relation,
    Unprotected,
    epsilon_of,
    events_from_json,
)

__all__ = ["Allowance", "Book", "Entry", "Labels", "Ledger", "MemoryLedger", "Plan", "Unit"]

Unit = Literal["record", "patient"]
Labels = Literal["public", "covered"]

Entry = dict[str, Any]
"""One line of a ledger, as JSON values: `{"reserve": ...}`, `{"spend": ...}` or `{"answer": ...}`."""


@dataclass(frozen=True)
class Allowance:
    """An amount of privacy loss, under replace-one."""

    epsilon: float
    delta: float


_NOTHING = Allowance(0.0, 0.0)


@dataclass(frozen=True)
class Plan:
    """What one method may spend at one site.

    Attributes:
        method: name of the method.
        events: every event of the method, in order.
        delta: the delta at which epsilon is claimed, that of retries included.
        unit: what one neighbouring data set may change.
        labels: whether a record's label is public by declaration, or covered by the claim.
        units: whose records the events are computed from: training units, or test units, which are others.
        retry: set aside for events whose result a crash lost; what they cost adds to that of the events.
        run: id of the run that the method is a part of; empty in a simulation, whose ledger knows only one.
    """

    method: str
    events: tuple[Event, ...]
    delta: float
    unit: Unit = "record"
    labels: Labels = "public"
    units: Literal["train", "test"] = "train"
    retry: Allowance = field(default=_NOTHING)
    run: str = ""

    @property
    def key(self) -> str:
        """What tells the plan from all others of its ledger. No method's name holds a colon: none ends like this.

        A run's name is the server's choice: were the key of test units `<run>/<method>/test`, a method `test` of a run
        `<run>/<method>` would be charged to it, and training units with it.
        """
        return "/".join([*([self.run] if self.run else []), self.method]) + (":test" if self.units == "test" else "")

    def epsilon(self, relation: Relation = Relation.REPLACE_ONE) -> float:
        """Return the epsilon of all events together, and of retries; infinite if one is unprotected."""
        return epsilon_of(self.events, self.delta - self.retry.delta, relation) + self.retry.epsilon

    def protected(self) -> "Plan":
        """Return the plan without what it leaves unprotected or declares public."""
        events = tuple(event for event in self.events if not isinstance(event, (Unprotected, DeclaredPublic)))
        return Plan(**{**vars(self), "events": events})

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            **vars(self),
            "events": [event.model_dump() for event in self.events],
            "retry": vars(self.retry),
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Plan":
        """Return the plan that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is no plan.
        """
        aside = tree.get("retry", vars(_NOTHING))
        delta, retry = _number(tree["delta"]), Allowance(_number(aside["epsilon"]), _number(aside["delta"]))
        if not 0 < delta < 1:
            raise ValueError(f"delta is between 0 and 1. Found {delta}.")
        if not (0 <= retry.delta < delta and 0 <= retry.epsilon < math.inf):
            raise ValueError(f"a retry reserve is a part of the plan. Found {retry}.")
        unit, labels, units = tree.get("unit", "record"), tree.get("labels", "public"), tree.get("units", "train")
        if unit not in ("record", "patient") or labels not in ("public", "covered") or units not in ("train", "test"):
            raise ValueError(f"a plan says what it protects. Found {unit!r}, {labels!r}, {units!r}.")
        events = events_from_json(tree["events"])
        return cls(str(tree["method"]), events, delta, unit, labels, units, retry, str(tree.get("run", "")))


class Ledger(Protocol):
    """A site's list of events; the only source of every epsilon that is printed."""

    simulation: bool

    def reserve(self, plan: Plan, limit: Allowance | None = None) -> None:
        """Set a plan aside before its first event.

        Args:
            limit: what all plans on such units may cost together; in a simulation, what each may.

        Raises:
            BudgetError: the method has a different plan already.
            TotalBudgetError: the plan would go beyond the limit.
            LedgerError: the ledger cannot be written to, or cannot be trusted.
        """
        ...

    def spend(self, key: str, event: Event, *, request: str = "", body: str = "") -> str:
        """Write an event down before it is computed, and return its id, `<method>-<stage>-<number>`.

        Args:
            key: of the plan.
            request: id of the request that the event answers. If it was spent on before and its answer was lost, the
                event is a new one, and is paid for by the plan's retry reserve.
            body: sha256 of the request.

        Raises:
            BudgetError: the plan does not hold the event, or holds less of it than would be spent.
            LedgerError: the ledger cannot be written to, or cannot be trusted.
        """
        ...

    def plans(self) -> tuple[Plan, ...]:
        """Return what was reserved, in order."""
        ...

    def spent(self, key: str) -> tuple[Event, ...]:
        """Return what was spent of a plan, in order, retries included."""
        ...

    def answered(self, request: str, body: str) -> str | None:
        """Return the sha256 of the answer that was stored for a request, or None.

        Raises:
            ExchangeError: the request was made before, with another body.
        """
        ...

    def store(self, request: str, answer: str) -> None:
        """Write down that a request's answer, of this sha256, is safe on the disk."""
        ...


class Book:
    """The rules of a ledger: what its entries amount to, and what may be added to them.

    Args:
        entries: of the ledger, in order.
        adds_up: whether the plans were carried out one after the other, so that they add up; in a simulation each
            counts as if it were the only one.
    """

    def __init__(self, entries: Sequence[Entry], *, adds_up: bool) -> None:
        self._entries = entries
        self._adds_up = adds_up

    def plans(self) -> tuple[Plan, ...]:
        """Return what was reserved, in order."""
        return tuple(Plan.from_json(entry["reserve"]) for entry in self._entries if "reserve" in entry)

    def plan(self, key: str) -> Plan:
        """Return a plan.

        Raises:
            BudgetError: it was not reserved.
        """
        for plan in self.plans():
            if plan.key == key:
                return plan
        raise BudgetError(f"A method reserves a plan before its first event. '{key}' has none; reserve it.")

    def spent(self, key: str) -> tuple[Event, ...]:
        """Return what was spent of a plan, in order, retries included."""
        return events_from_json([spend["event"] for spend in self._spends(key)])

    def committed(self, units: str) -> Allowance:
        """Return what all plans on training units, or on test units, add up to; what is unprotected has no number."""
        plans = [plan.protected() for plan in self.plans() if plan.units == units]
        return Allowance(math.fsum(plan.epsilon() for plan in plans), math.fsum(plan.delta for plan in plans))

    def answered(self, request: str, body: str) -> str | None:
        """Return the sha256 of the answer that was stored for a request, or None.

        Raises:
            ExchangeError: the request was made before, with another body.
        """
        for spend in self._spends_on(request):
            if spend["body"] != body:
                raise ExchangeError(
                    f"A request keeps its contents under its id. '{request}' came with others before; give a new "
                    "request an id of its own."
                )
        stored = [entry["answer"]["sha256"] for entry in self._entries if self._answers(entry, request)]
        return stored[-1] if stored else None

    def reservation(self, plan: Plan, limit: Allowance | None) -> Entry | None:
        """Return the entry that sets a plan aside; None if it is set aside already.

        Raises:
            BudgetError: the method has a different plan already.
            TotalBudgetError: the plan would go beyond the limit.
        """
        for known in self.plans():
            if known.key == plan.key:
                if known != plan:
                    raise BudgetError(
                        f"A method reserves one plan. '{plan.method}' has another one already; start a new run."
                    )
                return None
        if limit is not None:
            before = self.committed(plan.units) if self._adds_up else _NOTHING
            epsilon, delta = before.epsilon + plan.protected().epsilon(), before.delta + plan.delta
            if epsilon > limit.epsilon or delta > limit.delta * (1 + 1e-12):
                raise TotalBudgetError(
                    f"All plans together stay within the policy's epsilon {limit.epsilon:g} and delta {limit.delta:g}. "
                    f"With '{plan.key}' they would be at {epsilon:.6g} and {delta:.6g}; ask for less."
                )
        return {"reserve": plan.to_json()}

    def spending(self, key: str, event: Event, request: str, body: str) -> Entry:
        """Return the entry that spends an event.

        Raises:
            BudgetError: the plan does not hold the event, or holds less of it than would be spent.
            ExchangeError: the request was made before, with another body, or was answered.
        """
        plan = self.plan(key)
        entry: Entry = {"plan": key, "event": event.model_dump(), "request": request, "body": body}
        if request and self.answered(request, body) is not None:
            raise ExchangeError(f"A request is answered once. The answer to '{request}' is stored; send that one.")
        before = self._spends_on(request)
        again = [each["event"] for each in before if each["event"]["stage"] == event.stage]
        if any(each["plan"] != key for each in before) or any(each != entry["event"] for each in again):
            raise BudgetError(
                f"A request is retried with the events that it was spent on. '{request}' asked for another one before; "
                "give a new request an id of its own."
            )
        if again:
            return {"spend": {**entry, "retry": vars(self._retry(plan, event))}}
        if not _fits(plan, (*events_from_json([each["event"] for each in self._spends(key, retries=False)]), event)):
            raise BudgetError(
                f"An event must be in the plan that was reserved. '{key}' asked for {event.model_dump()}, and its "
                "plan holds no such event or less of it; start a new run with a larger plan."
            )
        return {"spend": entry}

    def storing(self, request: str, answer: str) -> Entry | None:
        """Return the entry of a stored answer; None if it is written down already.

        Raises:
            ExchangeError: nothing was spent on the request, or it has another answer.
        """
        if not self._spends_on(request):
            raise ExchangeError(
                f"An answer is stored for a request that was paid for. '{request}' was not; spend first."
            )
        stored = [entry["answer"]["sha256"] for entry in self._entries if self._answers(entry, request)]
        if stored and stored[-1] != answer:
            raise ExchangeError(f"A request is answered once. '{request}' has another answer; send that one.")
        return None if stored else {"answer": {"request": request, "sha256": answer}}

    def number(self, key: str, event: Event) -> int:
        """Return how many events of a stage a plan has spent, with this one."""
        return 1 + sum(each.stage == event.stage for each in self.spent(key))

    def _retry(self, plan: Plan, event: Event) -> Allowance:
        """Return what an event costs again, which adds to all else; the k-th retry takes 2^-k of the reserve's delta.

        Raises:
            BudgetError: the plan's retry reserve does not hold it.
        """
        if isinstance(event, (Unprotected, DeclaredPublic)):
            return _NOTHING
        before = [Allowance(**each["retry"]) for each in self._spends(plan.key) if each.get("retry", {}).get("delta")]
        delta = plan.retry.delta * 2.0 ** -(len(before) + 1)
        epsilon = epsilon_of([event], delta) if delta > 0 else math.inf
        spent = math.fsum(each.epsilon for each in before)
        if spent + epsilon > plan.retry.epsilon:
            raise BudgetError(
                f"A result that a crash lost is paid for by the plan's retry reserve. That of '{plan.key}' is "
                f"epsilon {plan.retry.epsilon:g}, of which {spent:.6g} is spent, and this costs {epsilon:.6g}; "
                "start a new run with a larger budget.retry_reserve."
            )
        return Allowance(epsilon, delta)

    def _spends(self, key: str, *, retries: bool = True) -> list[dict[str, Any]]:
        spends = [entry["spend"] for entry in self._entries if "spend" in entry and entry["spend"]["plan"] == key]
        return spends if retries else [spend for spend in spends if "retry" not in spend]

    def _spends_on(self, request: str) -> list[dict[str, Any]]:
        return [
            entry["spend"] for entry in self._entries if request and "spend" in entry
            if entry["spend"]["request"] == request
        ]  # fmt: skip

    @staticmethod
    def _answers(entry: Entry, request: str) -> bool:
        return "answer" in entry and entry["answer"]["request"] == request


class MemoryLedger:
    """A ledger for simulations. It lives as long as the mapping that holds it, and no longer; it stores no answer.

    Args:
        store: where entries are kept, as a list of JSON texts below `entries`.
    """

    simulation = True

    def __init__(self, store: MutableMapping[str, Any] | None = None) -> None:
        self._store = store if store is not None else {}
        self._store.setdefault("entries", [])

    def reserve(self, plan: Plan, limit: Allowance | None = None) -> None:
        """Set a plan aside before its first event; the limit holds for each plan by itself."""
        if (entry := self._book().reservation(plan, limit)) is not None:
            self._append(entry)

    def spend(self, key: str, event: Event, *, request: str = "", body: str = "") -> str:
        """Write an event down before it is computed, and return its id, `<method>-<stage>-<number in the stage>`."""
        book = self._book()
        # Numbered by stage, so that a stage which is repeated after an interruption gets the same ids.
        name = f"{book.plan(key).method}-{event.stage}-{book.number(key, event)}"
        self._append(book.spending(key, event, request, body))
        return name

    def plans(self) -> tuple[Plan, ...]:
        """Return what was reserved, in order."""
        return self._book().plans()

    def spent(self, key: str) -> tuple[Event, ...]:
        """Return what was spent of a plan, in order, retries included."""
        return self._book().spent(key)

    def answered(self, request: str, body: str) -> str | None:
        """Return None: a simulation computes again what was lost, and pays for it."""
        self._book().answered(request, body)
        return None

    def store(self, request: str, answer: str) -> None:
        """Keep nothing."""

    def _book(self) -> Book:
        return Book([json.loads(line) for line in self._store["entries"]], adds_up=False)

    def _append(self, entry: Entry) -> None:
        self._store["entries"] = [*self._store["entries"], json.dumps(entry)]


def _number(value: Any) -> float:
    """Return a JSON number as a float; one beyond floats, and anything else, raises ValueError."""
    if not isinstance(value, (int, float)) or abs(value) >= 1e300:
        raise ValueError("a number is one that a float holds")
    return float(value)


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

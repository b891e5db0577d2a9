"""The ledger: what a site has promised to spend at most, and what it did spend.

A method reserves its whole plan before its first event, and what is claimed is the reserved plan. `LedgerRules` has the
rules; a ledger keeps the entries: `MemoryLedger` as long as a simulation, `cadp_fl.privacy.durable` for good.
"""

import json
from collections.abc import MutableMapping
from functools import lru_cache
from typing import Any, Protocol

from cadp_fl.config.names import Unit
from cadp_fl.privacy.entries import Entry, entry_from_json
from cadp_fl.privacy.events import Event
from cadp_fl.privacy.plan import Allowance, Conditions, Plan
from cadp_fl.privacy.rules import LedgerRules

__all__ = ["Ledger", "MemoryLedger", "Plan"]


class Ledger(Protocol):
    """A site's list of events; the only source of every epsilon that is printed."""

    simulation: bool

    @property
    def one_budget(self) -> bool:
        """Whether plans on test units count as plans on training units too: they may be the same people."""
        ...

    def check_terms(self, population: str, unit: Unit, records_per_unit: int) -> None:
        """Check that this is the ledger of a policy's population, with its unit.

        Raises:
            LedgerError: it is another one's.
        """
        ...

    def check(self, plan: Plan, limit: Allowance | None = None) -> None:
        """Check that a plan could be set aside now; raises what `reserve` would."""
        ...

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

    def entries(self) -> int:
        """Return how many entries there are."""
        ...

    def plans(self) -> tuple[Plan, ...]:
        """Return what was reserved, in order."""
        ...

    def spent(self, key: str) -> tuple[Event, ...]:
        """Return what was spent of a plan, in order, retries included."""
        ...

    def carried_out(self) -> tuple[tuple[Plan, tuple[Event, ...]], ...]:
        """Return every plan and what was spent of it, in order."""
        ...

    def committed(self, units: str) -> Allowance:
        """Return what all plans on training units, or on test units, add up to."""
        ...

    def declare(self, conditions: Conditions) -> None:
        """Write down, once, that exact numbers of training records of each class are given out, before they are."""
        ...

    def declared(self) -> tuple[Conditions, ...]:
        """Return the conditions under which such numbers were given out, in order."""
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


class MemoryLedger:
    """A ledger for simulations. It lives as long as the mapping that holds it, and no longer; it stores no answer.

    Args:
        store: where entries are kept, as a list of JSON texts below `entries`.
    """

    simulation = True
    adds_up = False
    one_budget = False

    def __init__(self, store: MutableMapping[str, Any] | None = None) -> None:
        self._store = store if store is not None else {}
        self._store.setdefault("entries", [])

    def check_terms(self, population: str, unit: Unit, records_per_unit: int) -> None:
        """Check nothing: a simulation's ledger is whoever's it is made for."""

    def check(self, plan: Plan, limit: Allowance | None = None) -> None:
        """Check that a plan could be set aside now; raises what `reserve` would."""
        self._rules().reservation(plan, limit)

    def reserve(self, plan: Plan, limit: Allowance | None = None) -> None:
        """Set a plan aside before its first event; the limit holds for each plan by itself."""
        if (entry := self._rules().reservation(plan, limit)) is not None:
            self._append(entry)

    def spend(self, key: str, event: Event, *, request: str = "", body: str = "") -> str:
        """Write an event down before it is computed, and return its id."""
        rules = self._rules()
        name = rules.name(key, event)
        self._append(rules.spending(key, event, request, body))
        return name

    def entries(self) -> int:
        """Return how many entries there are."""
        return len(self._store["entries"])

    def plans(self) -> tuple[Plan, ...]:
        """Return what was reserved, in order."""
        return self._rules().plans()

    def spent(self, key: str) -> tuple[Event, ...]:
        """Return what was spent of a plan, in order, retries included."""
        return self._rules().spent(key)

    def carried_out(self) -> tuple[tuple[Plan, tuple[Event, ...]], ...]:
        """Return every plan and what was spent of it, in order."""
        return self._rules().carried_out()

    def committed(self, units: str) -> Allowance:
        """Return what all plans on training units, or on test units, add up to."""
        return self._rules().committed(units)

    def answered(self, request: str, body: str) -> str | None:
        """Return None: a simulation computes again what was lost, and pays for it."""
        self._rules().answered(request, body)
        return None

    def store(self, request: str, answer: str) -> None:
        """Keep nothing."""

    def declare(self, conditions: Conditions) -> None:
        """Keep nothing: a simulation compares methods, each as if it had been run alone."""

    def declared(self) -> tuple[Conditions, ...]:
        """Return nothing."""
        return ()

    def _rules(self) -> LedgerRules:
        return LedgerRules(map(_entry_of, self._store["entries"]), adds_up=self.adds_up)

    def _append(self, entry: Entry) -> None:
        self._store["entries"] = [*self._store["entries"], json.dumps(entry.to_json())]


@lru_cache(maxsize=4096)
def _entry_of(line: str) -> Entry:
    return entry_from_json(json.loads(line))

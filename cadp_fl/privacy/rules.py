"""The rules of a ledger: what its entries amount to, and what may be added to them.

Privacy loss composes within a plan; across plans the ledger adds epsilons and deltas, because a later plan may have
been chosen by looking at what an earlier one released.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from cadp_fl.errors import BudgetError, ExchangeError, TotalBudgetError
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.entries import Answer, Declare, Entry, Reserve, Sides, Spend
from cadp_fl.privacy.events import Event, Unprotected
from cadp_fl.privacy.plan import NOTHING, Allowance, Conditions, Plan

__all__ = ["LedgerRules"]


class LedgerRules:
    """The rules of a ledger: what its entries amount to, and what may be added to them.

    Args:
        entries: of the ledger, in order.
        adds_up: whether the plans were carried out one after the other, so that they add up; in a simulation each
            counts as if it were the only one.
        one_budget: whether plans on test units count as plans on training units too: they may be the same people.
    """

    def __init__(self, entries: Iterable[Entry], *, adds_up: bool, one_budget: bool = False) -> None:
        self._adds_up = adds_up
        self._one_budget = one_budget
        self._reserved: dict[str, Reserve] = {}
        self._spent: defaultdict[str, list[Spend]] = defaultdict(list)
        self._spent_on: defaultdict[str, list[Spend]] = defaultdict(list)
        self._answers: dict[str, str] = {}
        self._declared: list[Conditions] = []
        self._sides: str | None = None
        for entry in entries:
            self._read(entry)

    def _read(self, entry: Entry) -> None:
        match entry:
            case Reserve(plan):
                self._reserved[plan.key] = entry
            case Spend():
                self._spent[entry.plan].append(entry)
                if entry.request:
                    self._spent_on[entry.request].append(entry)
            case Answer(request, sha256):
                self._answers[request] = sha256
            case Declare(conditions):
                self._declared.append(conditions)
            case Sides(sha256):
                self._sides = sha256

    def plans(self) -> tuple[Plan, ...]:
        """Return what was reserved, in order."""
        return tuple(entry.plan for entry in self._reserved.values())

    def plan(self, key: str) -> Plan:
        """Return a plan.

        Raises:
            BudgetError: it was not reserved.
        """
        if key in self._reserved:
            return self._reserved[key].plan
        raise BudgetError(f"A method reserves a plan before its first event. '{key}' has none; reserve it.")

    def spent(self, key: str) -> tuple[Event, ...]:
        """Return what was spent of a plan, in order, retries included."""
        return tuple(spend.event for spend in self._spent.get(key, ()))

    def carried_out(self) -> tuple[tuple[Plan, tuple[Event, ...]], ...]:
        """Return every plan and what was spent of it, in order."""
        return tuple((plan, self.spent(plan.key)) for plan in self.plans())

    def committed(self, units: str) -> Allowance:
        """Return what all plans on training units, or on test units, add up to; what is unprotected has no number."""
        all_count = self._one_budget and units == "train"
        costs = [each.cost for each in self._reserved.values() if all_count or each.plan.split == units]
        return Allowance(math.fsum(cost.epsilon for cost in costs), math.fsum(cost.delta for cost in costs))

    def declared(self) -> tuple[Conditions, ...]:
        """Return the conditions under which exact numbers of training records of each class were given out, in order.

        They are public by declaration then, and cost nothing; a claim that covers labels cannot overlook them.
        """
        return tuple(self._declared)

    def declaring(self, conditions: Conditions) -> Entry | None:
        """Return the entry of such a declaration; None if it is written down already."""
        return None if conditions in self._declared else Declare(conditions)

    def registered(self) -> str | None:
        """Return the sha256 of the register that says on which side everyone was so far, or None."""
        return self._sides

    def answered(self, request: str, body: str) -> str | None:
        """Return the sha256 of the answer that was stored for a request, or None.

        Raises:
            ExchangeError: the request was made before, with another body.
        """
        for spend in self._spent_on.get(request, ()):
            if spend.body != body:
                raise ExchangeError(
                    f"A request keeps its contents under its id. '{request}' came with others before; give a new "
                    "request an id of its own."
                )
        return self._answers.get(request)

    def reservation(self, plan: Plan, limit: Allowance | None) -> Entry | None:
        """Return the entry that sets a plan aside; None if it is set aside already.

        Raises:
            BudgetError: the method has a different plan already.
            TotalBudgetError: the plan would go beyond the limit.
        """
        if plan.key in self._reserved:
            if self._reserved[plan.key].plan != plan:
                raise BudgetError(
                    f"A method reserves one plan. '{plan.method}' has another one already; start a new run."
                )
            return None
        if limit is not None:
            before = self.committed(plan.split) if self._adds_up else NOTHING
            epsilon, delta = before.epsilon + plan.protected().epsilon(), before.delta + plan.delta
            if epsilon > limit.epsilon or delta > limit.delta * (1 + 1e-12):
                raise TotalBudgetError(
                    f"All plans together stay within the policy's epsilon {limit.epsilon:g} and delta {limit.delta:g}. "
                    f"With '{plan.key}' they would be at {epsilon:.6g} and {delta:.6g}; ask for at most "
                    f"{max(0.0, limit.epsilon - before.epsilon):.6g} and {max(0.0, limit.delta - before.delta):.6g}."
                )
        return Reserve(plan)

    def spending(self, key: str, event: Event, request: str, body: str) -> Entry:
        """Return the entry that spends an event.

        Raises:
            BudgetError: the plan does not hold the event, or holds less of it than would be spent.
            ExchangeError: the request was made before, with another body, or was answered.
        """
        plan = self.plan(key)
        if request and self.answered(request, body) is not None:
            raise ExchangeError(f"A request is answered once. The answer to '{request}' is stored; send that one.")
        again = [
            each.event
            for each in self._spent_on.get(request, ())
            if each.plan == key and each.event.stage == event.stage
        ]
        if any(each != event for each in again):
            raise BudgetError(
                f"A request is retried with the events that it was spent on. '{request}' asked for another one before; "
                "give a new request an id of its own."
            )
        if again:
            return Spend(key, event, request, body, self._retry(plan, event))
        first_tries = [each.event for each in self._spent.get(key, ()) if each.retry is None]
        if not _fits(plan, (*first_tries, event)):
            raise BudgetError(
                f"An event must be in the plan that was reserved. '{key}' asked for {event.model_dump()}, and its "
                "plan holds no such event or less of it; start a new run with a larger plan."
            )
        return Spend(key, event, request, body)

    def storing(self, request: str, answer: str) -> Entry | None:
        """Return the entry of a stored answer; None if it is written down already.

        Raises:
            ExchangeError: nothing was spent on the request, or it has another answer.
        """
        if request not in self._spent_on:
            raise ExchangeError(
                f"An answer is stored for a request that was paid for. '{request}' was not; spend first."
            )
        stored = self._answers.get(request)
        if stored not in (None, answer):
            raise ExchangeError(f"A request is answered once. '{request}' has another answer; send that one.")
        return None if stored else Answer(request, answer)

    def name(self, key: str, event: Event) -> str:
        """Return the id of a plan's next event, `<method>-<stage>-<number>`; it comes once in a ledger.

        It counts what the method has spent in the stage under whatever plan, and not the ledger's entries, so that a
        run with seeded noise draws the same in a simulation and, as its first, at a site.
        """
        method, stage = self.plan(key).method, event.stage
        plans = [plan.key for plan in self.plans() if plan.method == method]
        before = sum(each.stage == stage for plan in plans for each in self.spent(plan))
        return f"{method}-{stage}-{before + 1}"

    def _retry(self, plan: Plan, event: Event) -> Allowance:
        """Return what an event costs again, which adds to all else; the k-th retry takes 2^-k of the reserve's delta.

        Raises:
            BudgetError: the plan's retry reserve does not hold it.
        """
        if not event.is_protected:
            return NOTHING
        retries = (each.retry for each in self._spent.get(plan.key, ()))
        before = [retry for retry in retries if retry is not None and retry.delta]
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


def _fits(plan: Plan, spent: Sequence[Event]) -> bool:
    """Return whether everything spent is covered by the plan: the same parameters, and no more of it."""
    planned, used = _amounts(plan.events), _amounts(spent)
    return all(used[event] <= planned.get(event, -1) for event in used)


def _amounts(events: Sequence[Event]) -> dict[Event, int]:
    """Return how much there is of every event: steps of DP-SGD, releases; nothing counts what is unprotected."""
    amounts: dict[Event, int] = {}
    for event in events:
        amount = 0 if isinstance(event, Unprotected) else event.amount
        amounts[event.once] = amounts.get(event.once, 0) + amount
    return amounts

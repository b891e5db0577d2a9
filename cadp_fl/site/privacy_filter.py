"""What a site may spend, and what it does: its policy and its ledger at work."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from cadp_fl.config import PolicyConfig
from cadp_fl.errors import (
    BudgetError,
    ConditionsError,
    EvaluationError,
    FlowOriginError,
    PrivacyError,
    TotalBudgetError,
)
from cadp_fl.privacy.accounting import check_delta
from cadp_fl.privacy.claims import (
    EXACT_TEST_RESULTS,
    CarriedOut,
    Claim,
    claim_of,
    flow_sources,
    left_unprotected,
    plan_beside,
)
from cadp_fl.privacy.events import DeclaredPublic, Event, GaussianHistogram, LatentPrivUnit, PoissonGaussian
from cadp_fl.privacy.ledger import Ledger
from cadp_fl.privacy.plan import NOTHING, Allowance, Conditions, Plan, Split, kept_by
from cadp_fl.privacy.policy import (
    allowance,
    check_exact_evaluation,
    check_number,
    check_plan,
    check_shuffle,
    check_totals,
)
from cadp_fl.site.evaluation import check_table, number_of_evaluations
from cadp_fl.site.mode import Mode
from cadp_fl.site.protocol import Request

__all__ = ["PrivacyFilter"]


class PrivacyFilter:
    """Holds every plan against the policy, and writes events down before they are computed.

    Args:
        ledger: where plans and events are written down.
        policy: what the site allows.
        units: number of training units.
        test_units: number of test units.
        conditions: what claims rest on beside events, as it is now.
        mode: of the site: in a simulation each method counts as if it had been run alone.
        class_units: contributed training records of each class, which matter where labels are public.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy: PolicyConfig,
        *,
        units: int,
        test_units: int,
        conditions: Conditions,
        mode: Mode,
        class_units: Sequence[int] = (),
    ) -> None:
        self._ledger = ledger
        self.policy = policy
        self._units, self._test_units = units, test_units
        self.conditions = conditions
        self._mode, self._class_units = mode, class_units

    def reserve(self, *asked: Plan) -> None:
        """Set plans aside under the conditions of now, if the policy allows all of them and the budget holds each.

        Raises:
            PolicyError, BudgetError, LedgerError: one is refused; nothing was written.
        """
        plans = self.check(*asked)
        for plan in plans:
            self._ledger.reserve(plan, allowance(self.policy, plan))

    def check(self, *asked: Plan) -> list[Plan]:
        """Check that plans could be set aside now, one after the other, and return them with the conditions of now.

        Nothing is written.

        Raises:
            PolicyError, BudgetError, LedgerError: one would be refused.
        """
        plans = [replace(plan, conditions=self.conditions) for plan in asked]
        self._check_room(plans)
        known = {plan.key for plan in self._ledger.plans()}
        taken = {"train": NOTHING, "test": NOTHING}
        for plan in plans:
            self._check(plan)
            limit, before = allowance(self.policy, plan), taken[plan.split]
            if limit is not None:  # a little more than is left: what is refused here would be refused for sure
                left = (limit.epsilon - before.epsilon, limit.delta - before.delta)
                limit = Allowance(*(amount * (1 + 1e-9) for amount in left))
            self._ledger.check(plan, limit)
            if plan.key not in known and (protected := plan.protected()).events:
                taken[plan.split] = Allowance(before.epsilon + protected.epsilon(), before.delta + plan.delta)
        return plans

    def _check(self, plan: Plan) -> None:
        """Check that the policy allows a plan.

        Raises:
            PolicyError, BudgetError: it does not.
        """
        if not plan.events:
            raise BudgetError("A plan names what it pays for. Found no event in one; leave such a plan out.")
        policy, on_test = self.policy, plan.split == "test"
        is_exact = on_test and plan.events == (EXACT_TEST_RESULTS,)
        if not is_exact and plan.delta:
            units = self._test_units if on_test else self._units
            check_delta(plan.delta, units, large=policy.large_delta)
        self._check_policy(plan)
        if on_test and not is_exact:
            others = [each for each in self._test_plans() if each.key != plan.key]
            check_number(policy, number_of_evaluations(self._ledger, [*others, plan]))
        if self._mode.is_durable:
            check_totals(policy, units=self._units, test_units=self._test_units if on_test else 0)

    def plan(self, request: Request, method: str, split: Split = "train") -> Plan:
        """Return what a request's run reserved for a method.

        Raises:
            BudgetError: nothing.
        """
        for plan in self._ledger.plans():
            if (plan.run, plan.method, plan.split) == (request.run, method, split):
                return plan
        raise BudgetError(f"A method reserves a plan before its first event. '{method}' has none; reserve it.")

    def spend(self, request: Request, method: str, *events: Event, split: Split = "train") -> str:
        """Write events down before they are computed, and return the id of the last.

        Raises:
            PolicyError: the policy does not allow the plan any more: it may have become stricter since.
            ConditionsError: what the plan's claim rests on has changed since it was reserved.
            BudgetError: the plan does not hold one of them.
            LedgerError: the ledger cannot be written to, or cannot be trusted.
        """
        plan = self.plan(request, method, split)
        self._check_conditions(plan)
        self._check_still_allowed(plan)
        self._check_room()
        key = plan.key
        body = request.sha256() if request.id else ""
        return [self._ledger.spend(key, event, request=request.id, body=body) for event in events][-1]

    def claim(self, plan: Plan) -> Claim:
        """Return what a plan allows to claim.

        A simulation compares methods, each as if it had been run alone. At a real site they all were: what has left
        unprotected under any plan leaves no other plan an end-to-end claim.
        """
        return claim_of(plan_beside(plan, self._ledger) if self._mode.is_real else plan)

    def check_evaluation(self, event: GaussianHistogram | None, classes: int) -> None:
        """Check that an evaluation may leave: the table that an event pays for; or, without one, an exact one.

        Raises:
            EvaluationError: the policy allows no exact one, or none more; a simulation gives as many as it likes.
            BudgetError: the event pays for another table.
        """
        if event is not None:
            check_table(event, classes)
            if self._mode.is_real:  # as it was when the plan was set aside, unless the policy became stricter
                check_number(self.policy, number_of_evaluations(self._ledger, self._test_plans()))
        elif self._mode.is_real:
            check_exact_evaluation(self.policy)
            check_number(self.policy, number_of_evaluations(self._ledger, self._test_plans()) + 1)

    def check_flow(self, plan: Plan, flow_sha256: str, *, starts: bool) -> None:
        """Check that a plan which rests on a public flow is carried out with that very flow, or one trained from it.

        What the plan's DP-SGD made of the flow is another one, which a site cannot tell: others may have trained it in
        rounds that this one had no part in. So only the start of such training is checked.

        Args:
            starts: whether training starts from the flow.

        Raises:
            PrivacyError: the flow is another one.
        """
        trains = any(isinstance(event, PoissonGaussian) and event.stage == "flow" for event in plan.events)
        if trains and not starts:
            return
        for event in plan.events:
            if isinstance(event, DeclaredPublic) and event.sha256 != flow_sha256:
                raise PrivacyError(
                    f"A plan uses the flow that was declared public, sha256 {event.sha256[:12]}... Found another "
                    f"one, {flow_sha256[:12]}...; reserve a plan for it."
                )

    def check_was_given_out(self, plan: Plan) -> None:
        """Check that the noised values which a release's flow is made of were given out before, under this very plan.

        A claim says what its flow is made of, and that is no more than words if the site was never asked for it. Of
        DP-SGD one step is enough: a site may have missed a round. A simulation's ledger does not outlive an
        interruption, and forgets what was given out before it.

        Raises:
            FlowOriginError: some were not.
        """
        if not self._mode.is_real:
            return
        spent = {event.once for event in self._ledger.spent(plan.key)}
        for event in flow_sources(plan):
            if event.once not in spent:
                raise FlowOriginError(
                    f"A release's flow is made of what its plan names, and the site gives that out first. '{plan.key}' "
                    f"names '{event.kind}', and the site was never asked for it; ask, or leave it out of the plan."
                )

    def account(self, run: str) -> dict[str, Any]:
        """Return what the ledger holds of a run, as JSON values: plans and events, and nothing of records.

        Of other runs it says what they let go unprotected, since no claim of this one may overlook that.
        """
        carried_out = self._ledger.carried_out()
        accounts = [
            {"plan": plan.to_json(), "spent": [event.model_dump() for event in spent]}
            for plan, spent in carried_out
            if plan.run == run
        ]
        return {
            "ledger": "durable" if self._mode.is_durable else "simulation",
            "accounts": accounts,
            "unprotected_before": self._unprotected_before(run, carried_out),
        }

    def unprotected_before(self, run: str) -> dict[str, list[dict[str, Any]]]:
        """Return what runs other than one have let go unprotected, as JSON values by training and test units."""
        return self._unprotected_before(run, self._ledger.carried_out())

    def _unprotected_before(self, run: str, carried_out: Sequence[CarriedOut]) -> dict[str, list[dict[str, Any]]]:
        """Return it for the strongest claim of the run: the one that keeps least of a replaced record."""
        others = [(plan, spent) for plan, spent in carried_out if plan.run != run]
        own = [plan.keeps for plan, _ in carried_out if plan.run == run and plan.split == "train"]
        keeps = frozenset.intersection(kept_by(self.policy.labels, self.conditions), *own)
        left = {
            "train": left_unprotected(
                others, "train", keeps, self._ledger.declared(), one_budget=self._ledger.one_budget
            )
        }
        left["test"] = left_unprotected(others, "test", frozenset())
        return {units: [each.model_dump() for each in events] for units, events in left.items()}

    def declare_class_counts(self) -> None:
        """Write down, before they leave, that exact numbers of training records of each class do."""
        self._ledger.declare(replace(self.conditions, attributes=()))

    def _check_conditions(self, plan: Plan) -> None:
        """Check that a plan is carried out under the conditions that it was reserved under.

        Raises:
            ConditionsError: it is not.
        """
        for name, now in self.conditions.to_json().items():
            if (then := plan.conditions.to_json()[name]) != now:
                raise ConditionsError(
                    f"A plan is carried out under the conditions that its claim names. '{plan.key}' was reserved with "
                    f"{name} {then!s:.80}, and now it is {now!s:.80}; start a new run."
                )

    def _check_room(self, plans: Iterable[Plan] = ()) -> None:
        """Check that the ledger takes further plans, or without one a further event: most cost next to nothing.

        Raises:
            BudgetError: it does not.
        """
        if not self._mode.is_durable:
            return
        known = {plan.key for plan in self._ledger.plans()}
        counts = {
            "plans": (len(known | {plan.key for plan in plans}), self.policy.most_plans),
            "entries": (self._ledger.entries() + 1, self.policy.most_entries),
        }
        for what, (count, most) in counts.items():
            if count > most:
                raise BudgetError(
                    f"A ledger takes at most {most} {what} (policy: most_{what}). This would be number {count}; if all "
                    "are meant, raise it in policy.yaml, then cadp-fl site reload."
                )

    def _check_policy(self, plan: Plan) -> None:
        if plan.split == "test" and not self._test_units and self._mode.is_durable:
            raise EvaluationError(
                "An evaluation is of test units. This site has none: everyone is trained on; ask for none here."
            )
        if self._mode.is_real or plan.split != "test" or plan.events != (EXACT_TEST_RESULTS,):
            check_plan(self.policy, plan, units=self._units, noise=self.conditions.noise)
        for event in plan.events:
            if isinstance(event, LatentPrivUnit):
                check_shuffle(event, units=self._units, class_units=self._class_units, conditions=self.conditions)

    def _check_still_allowed(self, plan: Plan) -> None:
        """Check a plan that was reserved before against the policy of now, and all plans against its total."""
        self._check_policy(plan)
        limit = allowance(self.policy, plan)
        if not self._mode.is_durable or limit is None:
            return
        reserved = self._ledger.committed(plan.split)
        if reserved.epsilon > limit.epsilon or reserved.delta > limit.delta * (1 + 1e-12):
            raise TotalBudgetError(
                f"All plans together stay within the policy's epsilon {limit.epsilon:g} and delta {limit.delta:g}. "
                f"Those that were reserved are at {reserved.epsilon:.6g} and {reserved.delta:.6g}, so nothing more is "
                "spent; the policy was lowered since."
            )

    def _test_plans(self) -> list[Plan]:
        """Return what was reserved for test units, as far as it adds up: in a simulation nothing does."""
        return [plan for plan in self._ledger.plans() if plan.split == "test"] if self._mode.is_real else []

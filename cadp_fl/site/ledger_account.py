"""What a site's durable ledger amounts to, for its steward: plans, guarantees and totals, as JSON values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cadp_fl.config import PolicyConfig
from cadp_fl.privacy.claims import Claim, claim_of, plan_among, relation_of
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.events import Event, Unprotected
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.plan import Plan

__all__ = ["account_of"]


def account_of(path: Path, *, mark: Path | None = None, policy: PolicyConfig | None = None) -> dict[str, Any]:
    """Return what a ledger holds; with a policy, that of the policy's population, and the limits beside the totals.

    Nothing in it was computed from records.

    Raises:
        LedgerError: the ledger is missing, another one's, or cannot be trusted.
    """
    if policy is None:
        ledger = DurableLedger.as_found(path, mark=mark)
    else:
        records = policy.records_per_unit
        ledger = DurableLedger.open(
            path, mark=mark, population=policy.population, unit=policy.unit, records_per_unit=records
        )
    links = ledger.links()
    rules = ledger.rules(links)
    carried_out, declared = rules.carried_out(), rules.declared()
    plans = [
        _plan_tree(
            plan, spent, claim_of(plan_among(plan, carried_out, declared=declared, one_budget=ledger.one_budget))
        )
        for plan, spent in carried_out
    ]
    limits = {"train": policy, "test": policy.evaluation if policy is not None else None}
    return {
        **ledger.terms.model_dump(exclude_none=True),
        "entries": len(links),
        "head": links[-1].hash,
        "plans": plans,
        "totals": {
            units: {
                **vars(rules.committed(units)),
                "limit": None if limit is None else {"epsilon": limit.epsilon, "delta": limit.delta},
            }
            for units, limit in limits.items()
        },
        "unprotected": sorted({what for plan in plans for what in plan["unprotected"]}),
    }


def _plan_tree(plan: Plan, spent: Sequence[Event], claim: Claim) -> dict[str, Any]:
    """Return a plan, its guarantee, and its spends; epsilons are of what is protected, and of retries.

    None where nothing is: a plan that protects nothing has no epsilon, and 0 would read as the best there is.
    """
    protected = plan.protected()
    protects = bool(protected.events) and plan.conditions.noise == "entropy"
    return {
        "plan": plan.key,
        "method": plan.method,
        "run": plan.run,
        "units": plan.split,
        "labels": plan.labels,
        "conditions": plan.conditions.to_json(),
        "relation": relation_of(
            plan.unit, "covered" if plan.split == "test" else plan.labels, plan.conditions.attributes
        ),
        "guarantee": claim.guarantee,
        "against": claim.against,
        "epsilon": protected.epsilon() if protects else None,
        "epsilon_add_remove": protected.epsilon(Relation.ADD_OR_REMOVE_ONE) if protects else None,
        "delta": plan.delta,
        "retry_reserve": vars(plan.retry),
        "unprotected": list(claim.unprotected),
        "declared": list(claim.declared),
        "planned": _amounts([event for event in plan.events if not isinstance(event, Unprotected)]),
        "spent": _amounts(spent),
    }


def _amounts(events: Sequence[Event]) -> dict[str, int]:
    """Return how many steps of DP-SGD, releases, and unprotected things there are in every stage."""
    amounts: dict[str, int] = {}
    for event in events:
        amounts[event.stage] = amounts.get(event.stage, 0) + event.amount
    return amounts

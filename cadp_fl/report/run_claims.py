"""What may be claimed of a run, computed once: by method and site, the worst, and all methods together."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cadp_fl.privacy.claims import GUARANTEES, Claim, Together, claim_of, compose_plans, plan_among
from cadp_fl.privacy.events import Unprotected
from cadp_fl.privacy.losses import Relation, SampledGaussian
from cadp_fl.privacy.plan import Against, Plan, against
from cadp_fl.report.results import Account, Results

__all__ = ["MethodClaims", "RunClaims", "weakest"]

SILENT = Unprotected(stage="untold", what="whatever earlier runs let go, which the site did not report")


@dataclass(frozen=True)
class MethodClaims:
    """What may be claimed of one method, of training units or of test units.

    Attributes:
        by_site: the claim of each site that has an account.
        worst: the weakest of them; None where no site reserved a plan.
        own: the weakest claim of the method's plans alone, without what else left the sites; None likewise.
        against: whom the claims hold against.
    """

    by_site: Mapping[str, Claim]
    worst: Claim | None
    own: Claim | None
    against: Against


@dataclass(frozen=True)
class RunClaims:
    """All that may be claimed of a run, by its accounts.

    Attributes:
        training: of training units, by method.
        tests: of test units, by method.
        worst_on_tests: the weakest claim of test units; None where there is none.
        together: what all methods compose to on training units, by site.
        tests_together: what all evaluations compose to on test units, by site.
        most_together: what all methods compose to at the site where that is the most; None without a site.
        is_sampled: whether any method draws Poisson samples of records.
    """

    training: Mapping[str, MethodClaims]
    tests: Mapping[str, MethodClaims]
    worst_on_tests: Claim | None
    together: Mapping[str, Together]
    tests_together: Mapping[str, Together]
    most_together: Together | None
    is_sampled: bool

    @classmethod
    def of(cls, results: Results) -> "RunClaims":
        """Return what may be claimed at the end of a run. Every epsilon is computed from the plans' events."""
        plans = {
            units: {
                name: {site: _plan(results, site, account) for site, account in by_site.items()}
                for name, by_site in accounts.items()
            }
            for units, accounts in (("train", results.accounts), ("test", results.test_accounts))
        }
        training = {name: _claims(plans["train"][name], own) for name, own in results.accounts.items()}
        tests = {name: _claims(plans["test"][name], own) for name, own in results.test_accounts.items()}
        on_tests = [claims.worst for claims in tests.values() if claims.worst is not None]
        together = {site: _compose(plans["train"], site) for site in sorted(results.sites)}
        return cls(
            training=training,
            tests=tests,
            worst_on_tests=weakest(on_tests) if on_tests else None,
            together=together,
            tests_together={site: _compose(plans["test"], site) for site in sorted(results.sites)},
            most_together=max(
                together.values(), key=lambda all_: math.inf if all_.epsilon is None else all_.epsilon, default=None
            ),
            is_sampled=any(
                isinstance(event.loss(Relation.REPLACE_ONE), SampledGaussian)
                for by_site in results.accounts.values()
                for account in by_site.values()
                for event in account.plan.events
            ),
        )


def weakest(claims: Iterable[Claim]) -> Claim:
    """Return the weakest claim, and of equals that of the site that spent the most; no patient is at two sites."""
    return max(
        claims,
        key=lambda claim: (GUARANTEES.index(claim.guarantee), claim.epsilon or claim.epsilon_if_flow_were_fixed or 0.0),
    )


def _claims(plans: Mapping[str, Plan], accounts: Mapping[str, Account]) -> MethodClaims:
    by_site = {site: claim_of(plan) for site, plan in plans.items()}
    own = [claim_of(account.plan) for account in accounts.values()]
    return MethodClaims(
        by_site,
        weakest(by_site.values()) if by_site else None,
        weakest(own) if own else None,
        against(event for account in accounts.values() for event in account.plan.events),
    )


def _compose(plans: Mapping[str, Mapping[str, Plan]], site: str) -> Together:
    return compose_plans([by_site[site] for by_site in plans.values() if site in by_site])


def _plan(results: Results, site: str, account: Account) -> Plan:
    """Return the plan of an account, and what left the site unprotected beside it.

    A simulation compares methods, each as if it had been run alone. At real sites all were carried out on the same
    records: what left unprotected under one of them, or in an earlier run, leaves no other an end-to-end claim. Where a
    site did not say what it spent, and while the run goes on, it is taken to have spent all.
    """
    if not results.federation:
        return account.plan
    sets = (*results.accounts.values(), *results.test_accounts.values())
    others = [by_site[site] for by_site in sets if site in by_site]
    over = results.failure is None
    carried_out = [(each.plan, each.spent if over and each.spent is not None else each.plan.events) for each in others]
    before = results.unprotected_before.get(site, {}).get(account.plan.split, (SILENT,))
    return plan_among(account.plan, carried_out, before=before)

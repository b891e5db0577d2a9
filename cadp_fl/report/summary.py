"""`summary.json` and `privacy.json`: what a run found, and what may be claimed of it. Formats others rely on."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cadp_fl.config import StudyConfig
from cadp_fl.evaluation.utility import Metrics
from cadp_fl.privacy.accounting import Event, PoissonGaussian, Relation, Unprotected
from cadp_fl.privacy.claims import (
    Claim,
    Scope,
    Together,
    claim_of,
    compose_plans,
    plan_among,
    relation_of,
    stage_costs,
)
from cadp_fl.privacy.plan import Against, Plan, Split, against
from cadp_fl.report.statement import (
    RESUMED,
    RESUMED_AT_SITES,
    assumptions,
    caution_on_flow,
    not_covered,
    statement_of_method,
    statement_of_study,
    statement_on_test_units,
)

__all__ = [
    "SCHEMA_VERSION",
    "Account",
    "MethodFigures",
    "Results",
    "SiteEntry",
    "going_on",
    "privacy_json",
    "summary_json",
]

SCHEMA_VERSION = 1

UNTOLD = Unprotected(stage="untold", what="whatever earlier runs let go, which the site did not tell")

_GOING_ON = "The run is going on, or stopped, after "


def going_on(last: str) -> str:
    """Return the `failure` of a summary that is written after a phase or a method, before the run is over."""
    return f"{_GOING_ON}'{last}'."


@dataclass(frozen=True)
class SiteEntry:
    """What a site declared of itself.

    Attributes:
        train: number of training units.
        test: number of test units.
        class_counts: declared number of training records by class, classes it does not hold left out; None where labels
            are covered.
    """

    train: int
    test: int
    class_counts: Mapping[str, int] | None


@dataclass(frozen=True)
class Account:
    """What a site's ledger holds of one method.

    Attributes:
        plan: what was reserved. Every epsilon is computed from this.
        spent: what was computed, in order; None where the site did not say.
    """

    plan: Plan
    spent: tuple[Event, ...] | None = None


@dataclass(frozen=True)
class MethodFigures:
    """How good a method's classifier is.

    Attributes:
        classifier: name of the model.
        pooled: on the test records of all sites that answered together.
        per_site: by site.
        release: the numbers of the method's release, if it has one.
    """

    classifier: str
    pooled: Metrics
    per_site: Mapping[str, Metrics]
    release: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Results:
    """All that a run knows when it ends, however it ends.

    Attributes:
        study: the config.
        started: when it began.
        federation: name of the federation of real sites; empty in a simulation.
        dataset: name of the data set.
        attributes: names of its records' attributes; none where they have a label alone.
        sites: what each site declared.
        missing: site, phase and reason of each answer that did not come.
        failure: why the run stopped early, if it did.
        figures: by method.
        accounts: of training units, by method, then site.
        test_accounts: of test units, by method, then site.
        noised_counts: noised number of training records by method, site and class, where labels are covered.
        unprotected_before: what left each site unprotected in earlier runs, by training and test units.
        traffic: bytes of tensors that left a site and reached it, by site.
        seconds: wall time by phase.
        software: versions.
    """

    study: StudyConfig
    started: datetime
    federation: str = ""
    dataset: str = ""
    attributes: tuple[str, ...] = ()
    sites: dict[str, SiteEntry] = field(default_factory=dict)
    missing: list[dict[str, str]] = field(default_factory=list)
    failure: str | None = None
    resumed: tuple[datetime, ...] = ()
    figures: dict[str, MethodFigures] = field(default_factory=dict)
    accounts: dict[str, dict[str, Account]] = field(default_factory=dict)
    test_accounts: dict[str, dict[str, Account]] = field(default_factory=dict)
    unprotected_before: dict[str, dict[Split, tuple[Unprotected, ...]]] = field(default_factory=dict)
    noised_counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    traffic: dict[str, tuple[int, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`complete` if every site answered in every phase and every method ended; else `incomplete`."""
        return "incomplete" if self.failure or self.missing else "complete"

    def plan(self, site: str, account: Account) -> Plan:
        """Return the plan of an account, and what left the site unprotected beside it.

        A simulation compares methods, each as if it had been run alone. At real sites all were carried out on the same
        records: what left unprotected under one of them, or in an earlier run, leaves no other an end-to-end claim.
        Where a site did not say what it spent, and while the run goes on, it is taken to have spent all.
        """
        if not self.federation:
            return account.plan
        sets = (*self.accounts.values(), *self.test_accounts.values())
        others = [by_site[site] for by_site in sets if site in by_site]
        over = self.failure is None
        told = [(each.plan, each.spent if over and each.spent is not None else each.plan.events) for each in others]
        before = self.unprotected_before.get(site, {}).get(account.plan.units, (UNTOLD,))
        return plan_among(account.plan, told, before=before)

    def claim(self, site: str, account: Account) -> Claim:
        """Return what may be claimed of an account at the end of the run."""
        return claim_of(self.plan(site, account))

    @property
    def scope(self) -> Scope:
        """What every claim is about."""
        budget = self.study.budget
        return Scope(budget.unit, budget.records_per_unit, self.study.labels, self.attributes)

    @property
    def relation(self) -> str:
        """The neighbouring relation of every claim."""
        return self.scope.relation


def summary_json(results: Results) -> dict[str, Any]:
    """Return the summary as JSON values."""
    study = results.study
    summary = {
        "schema_version": SCHEMA_VERSION,
        "name": study.name,
        "seed": study.seed,
        "noise": study.noise,
        "simulation": not results.federation,
        "federation": results.federation or None,
        "dataset": results.dataset,
        "relation": results.relation,
        "unit": study.budget.unit,
        "labels": study.labels,
        "budget": {"epsilon": study.budget.epsilon, "delta": study.budget.delta},
        "started": results.started.isoformat(timespec="seconds"),
        "resumed": [moment.isoformat(timespec="seconds") for moment in results.resumed],
        "status": results.status,
        "missing": results.missing,
        "seconds": results.seconds,
        "sites": [
            {
                "site": name,
                "train": entry.train,
                "test": entry.test,
                **_classes(results, name, entry),
            }
            for name, entry in sorted(results.sites.items())
        ],
        "methods": {name: _method(results, name, figures) for name, figures in results.figures.items()},
        **({"all_methods_together": _at_most(results).to_json()} if results.federation else {}),
        "bytes": {site: {"up": up, "down": down} for site, (up, down) in sorted(results.traffic.items())},
        "software": results.software,
    }
    return summary | _public_attributes(results) | ({"failure": results.failure} if results.failure else {})


def _classes(results: Results, site: str, entry: SiteEntry) -> dict[str, Any]:
    """Return a site's classes: with their counts where labels are public, and with noised ones where they are not."""
    if entry.class_counts is not None:
        return {"classes": list(entry.class_counts), "class_counts": dict(entry.class_counts)}
    told = [counts[site] for counts in results.noised_counts.values() if site in counts]
    return {"classes": None, "class_counts": None} | ({"noised_class_counts": told[0]} if told else {})


def _public_attributes(results: Results) -> dict[str, Any]:
    return {"public_attributes": list(results.attributes)} if results.attributes else {}


def _method(results: Results, name: str, figures: MethodFigures) -> dict[str, Any]:
    claims = {site: results.claim(site, account) for site, account in results.accounts.get(name, {}).items()}
    worst = _worst(list(claims.values()))
    return {
        **figures.pooled.to_json(),
        **worst.to_json(),
        "relation": results.relation,
        "against": _against(results.accounts.get(name, {}).values()),
        "test": _test(results, name),
        "classifier": figures.classifier,
        **({"caution": caution} if (caution := _caution(results, name)) else {}),
        **({"release": dict(figures.release)} if figures.release else {}),
        "tested": _tested(results, figures.per_site),
        "per_site": {
            site: metrics.to_json()
            | {"epsilon": claims[site].epsilon if site in claims else None}
            | ({"test": results.sites[site].test} if site in results.sites else {})
            for site, metrics in sorted(figures.per_site.items())
        },
    }


def _tested(results: Results, sites: Iterable[str]) -> dict[str, Any]:
    """Return the sites whose test units a figure is from, of how many sites of the study, and the number of units."""
    known = [site for site in sorted(sites) if site in results.sites]
    return {
        "sites": known,
        "of": results.study.sites.count,
        "units": sum(results.sites[site].test for site in known),
    }


def _test(results: Results, name: str) -> dict[str, Any]:
    """Return what evaluating a method's classifier cost the test units of the site where it cost the most."""
    by_site = results.test_accounts.get(name, {})
    accounts, claims = by_site.values(), [results.claim(site, account) for site, account in by_site.items()]
    claim = _worst(claims) if claims else None
    is_noised = claim is not None and claim.epsilon is not None
    return {
        "metrics": results.study.evaluation.metrics,
        "epsilon": claim.epsilon if claim else None,
        "epsilon_add_remove": claim.epsilon_add_remove if claim else None,
        "delta": claim.delta if claim and is_noised else None,
        "evaluations": max((len(account.spent) for account in accounts if account.spent is not None), default=None),
    }


def _caution(results: Results, name: str) -> str:
    """Return what speaks against a method's claim, or nothing."""
    accounts = results.accounts.get(name, {}).values()
    return " ".join(sorted({caution_on_flow(account.plan, results.dataset) for account in accounts} - {""}))


def _against(accounts: Iterable[Account]) -> Against:
    return against(event for account in accounts for event in account.plan.events)


def _worst(claims: list[Claim]) -> Claim:
    """Return the weakest claim, and of equals that of the site that spent the most; no patient is at two sites."""
    order = ("end-to-end", "given-flow", "none")
    return max(
        claims,
        key=lambda claim: (order.index(claim.guarantee), claim.epsilon or claim.epsilon_if_flow_were_fixed or 0.0),
    )


def privacy_json(results: Results) -> dict[str, Any]:
    """Return the privacy accounts and the statement as JSON values. Every epsilon is recomputed from events."""
    study = results.study
    methods: dict[str, Any] = {}
    for name, accounts in results.accounts.items():
        if not accounts:
            methods[name] = _not_run(results, name)
            continue
        claims = {site: results.claim(site, account) for site, account in accounts.items()}
        worst = _worst(list(claims.values()))
        own = _worst([claim_of(account.plan) for account in accounts.values()])
        said = statement_of_method(
            name, worst, noise=study.noise, relation=results.relation, own=own if results.federation else None
        )
        caution = _caution(results, name)
        methods[name] = {
            "guarantee": worst.guarantee,
            "relation": results.relation,
            "against": _against(accounts.values()),
            "statement": _as_far_as_it_came(results, name, f"{said} {caution}".strip()),
            "sites": {site: _account(account, claims[site]) for site, account in sorted(accounts.items())},
        }
    test_units = _test_units(results)
    return {
        "schema_version": SCHEMA_VERSION,
        "simulation": not results.federation,
        "federation": results.federation or None,
        "noise": study.noise,
        "relation": results.relation,
        "unit": study.budget.unit,
        "budget": {"epsilon": study.budget.epsilon, "delta": study.budget.delta},
        "reading": "events: what was reserved, from which every epsilon is computed; stages: what each would cost "
        "alone; spent: what was computed",
        "methods": methods,
        "all_methods_together": {
            "meaning": _meaning_of_together(results),
            "sites": _together(results, results.accounts),
        },
        **({"resumed": _resumed(results)} if results.resumed else {}),
        "test_units": test_units,
        **_public_attributes(results),
        "assumptions": assumptions(results.scope, sampled=_samples(results)),
        "not_covered": not_covered(results.scope, deployed=bool(results.federation)),
        "statement": statement_of_study(
            study,
            results.scope,
            {name: entry["statement"] for name, entry in methods.items()},
            resumed=bool(results.resumed),
            test_units=test_units["statement"],
            summed=[name for name, entry in methods.items() if entry["against"] == "recipients"],
            sampled=_samples(results),
            federation=results.federation,
            sites=len(results.sites),
            away=sorted({gap["site"] for gap in results.missing}),
            stopped=results.failure is not None,
            together=_at_most(results) if results.federation else None,
        ),
    }


def _meaning_of_together(results: Results) -> str:
    if results.federation:
        return (
            "all that was reserved for this run is of the same records, and this is what it composes to, by site; each "
            "site's ledger adds earlier runs too"
        )
    return (
        "what running every method of this study on the same records composes to, by site; the methods are compared "
        "here, each with a ledger of its own"
    )


def _not_run(results: Results, name: str) -> dict[str, Any]:
    return {
        "guarantee": None,
        "relation": results.relation,
        "against": "server",
        "statement": f"{name}: was not run. No site reserved its plan, so that nothing was computed, and nothing left.",
        "sites": {},
    }


def _as_far_as_it_came(results: Results, name: str, said: str) -> str:
    """Return the statement on a method's plan, or what holds where the method did not come to its end."""
    if name in results.figures:
        return said
    spent = [account.spent for account in results.accounts[name].values()]
    if all(each == () for each in spent):
        return (
            f"{name}: was not run. Its plan was reserved, and nothing of it was spent: nothing was computed, and "
            "nothing left."
        )
    known = "was not finished" if all(each is not None for each in spent) else "may not have been carried out in full"
    return f"{said} It {known}; all that was reserved counts as spent."


def _test_results(results: Results) -> tuple[list[str], bool]:
    """Return the methods of which test results were told, and whether it is known that no other was tested."""
    told, is_known = [], True
    for name, by_site in results.test_accounts.items():
        if name in results.figures or any(account.spent for account in by_site.values()):
            told.append(name)
        elif any(account.spent is None for account in by_site.values()):
            is_known = False
    return told, is_known


def _test_units(results: Results) -> dict[str, Any]:
    """Return the line of the test units: what was told of them, by method and site, and what all of it adds up to."""
    told, is_known = _test_results(results)
    accounts, metrics = results.test_accounts, results.study.evaluation.metrics
    claims = {
        name: {site: results.claim(site, account) for site, account in by_site.items()}
        for name, by_site in accounts.items()
    }
    every = [claim for by_site in claims.values() for claim in by_site.values()]
    worst = _worst(every) if every else None
    return {
        "metrics": metrics,
        "simulation_only": metrics == "exact" and not results.federation,
        "relation": relation_of(results.study.budget.unit, "covered"),
        "against": "server",
        "methods": {
            name: {"sites": {site: _account(each, claims[name][site]) for site, each in sorted(by_site.items())}}
            for name, by_site in accounts.items()
        },
        "all_methods_together": {
            "meaning": "what evaluating every method of this study on the same test units composes to, by site",
            "sites": _together(results, accounts),
        },
        "told_of": told,
        "statement": statement_on_test_units(
            worst,
            results.scope,
            noise=results.study.noise,
            deployed=bool(results.federation),
            told=None if len(told) == len(accounts) else told,
            is_known=is_known,
        ),
    }


def _together(results: Results, accounts: Mapping[str, Mapping[str, Account]]) -> dict[str, Any]:
    """Return what all methods compose to, by site."""
    return {site: _compose(results, accounts, site).to_json() for site in sorted(results.sites)}


def _compose(results: Results, accounts: Mapping[str, Mapping[str, Account]], site: str) -> Together:
    return compose_plans([results.plan(site, by_site[site]) for by_site in accounts.values() if site in by_site])


def _at_most(results: Results) -> Together:
    """Return what all methods compose to at the site where that is the most."""
    every = [_compose(results, results.accounts, site) for site in results.sites]
    return max(every, key=lambda both: math.inf if both.epsilon is None else both.epsilon)


def _samples(results: Results) -> bool:
    """Tell whether any method draws Poisson samples of records."""
    events = [event for own in results.accounts.values() for account in own.values() for event in account.plan.events]
    return any(isinstance(event, PoissonGaussian) and event.sampling_rate < 1 for event in events)


def _resumed(results: Results) -> dict[str, Any]:
    return {
        "at": [moment.isoformat(timespec="seconds") for moment in results.resumed],
        "meaning": RESUMED_AT_SITES if results.federation else RESUMED,
        "reading": "events are the plan of the whole run, from which every epsilon is computed. "
        + (
            "spent is all that a site's ledger holds of the run, what it spent again included"
            if results.federation
            else "spent is what finished phases and the last attempt spent, without what an interrupted phase did"
        ),
    }


def _account(account: Account, claimed: Claim) -> dict[str, Any]:
    claim = claimed.to_json()
    return {
        "events": [event.model_dump() for event in account.plan.events],
        "stages": [vars(cost) for cost in stage_costs(account.plan)],
        "retry_reserve": vars(account.plan.retry),
        "protected": _protected(account.plan),
        "spent": None if account.spent is None else [event.model_dump() for event in account.spent],
        **{name: value for name, value in claim.items() if name.startswith("epsilon") or name == "delta"},
    }


def _protected(plan: Plan) -> dict[str, float | None]:
    """Return what all protected events of a plan cost together, with its retry reserve; None where there is none."""
    protected = plan.protected()
    if not protected.events:
        return {"epsilon": None, "epsilon_add_remove": None}
    return {
        "epsilon": protected.epsilon(),
        "epsilon_add_remove": protected.epsilon(Relation.ADD_OR_REMOVE_ONE),
    }

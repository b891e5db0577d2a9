"""`summary.json` and `privacy.json`: what a run found, and what may be claimed of it. Formats others rely on."""

from collections.abc import Iterable
from typing import Any

from cadp_fl.privacy.claims import Claim, relation_of, stage_costs
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.plan import Plan
from cadp_fl.report.results import Account, MethodFigures, Results, SiteEntry
from cadp_fl.report.run_claims import RunClaims
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

__all__ = ["SCHEMA_VERSION", "privacy_json", "summary_json"]

SCHEMA_VERSION = 1


def summary_json(results: Results, claims: RunClaims) -> dict[str, Any]:
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
        "methods": {name: _method(results, claims, name, figures) for name, figures in results.figures.items()},
        **_together_at_most(results, claims),
        "bytes": {site: {"up": up, "down": down} for site, (up, down) in sorted(results.traffic.items())},
        "software": results.software,
    }
    return summary | _public_attributes(results) | ({"failure": results.failure} if results.failure else {})


def _classes(results: Results, site: str, entry: SiteEntry) -> dict[str, Any]:
    """Return a site's classes: with their counts where labels are public, and with noised ones where they are not."""
    if entry.class_counts is not None:
        return {"classes": list(entry.class_counts), "class_counts": dict(entry.class_counts)}
    noised = [counts[site] for counts in results.noised_counts.values() if site in counts]
    return {"classes": None, "class_counts": None} | ({"noised_class_counts": noised[0]} if noised else {})


def _public_attributes(results: Results) -> dict[str, Any]:
    return {"public_attributes": list(results.attributes)} if results.attributes else {}


def _together_at_most(results: Results, claims: RunClaims) -> dict[str, Any]:
    """Return what all methods compose to at the site where that is the most, where the records are the same ones."""
    if not results.federation or claims.most_together is None:
        return {}
    return {"all_methods_together": claims.most_together.to_json()}


def _method(results: Results, claims: RunClaims, name: str, figures: MethodFigures) -> dict[str, Any]:
    own = claims.training[name]
    assert own.worst is not None, "a method that has figures has an account"
    return {
        **figures.pooled.to_json(),
        **own.worst.to_json(),
        "relation": results.relation,
        "against": own.against,
        "test": _test(results, claims, name),
        "classifier": figures.classifier,
        **({"caution": caution} if (caution := _caution(results, name)) else {}),
        **({"release": dict(figures.release)} if figures.release else {}),
        "tested": _tested(results, figures.per_site),
        "per_site": {
            site: metrics.to_json()
            | {"epsilon": own.by_site[site].epsilon if site in own.by_site else None}
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


def _test(results: Results, claims: RunClaims, name: str) -> dict[str, Any]:
    """Return what evaluating a method's classifier cost the test units of the site where it cost the most."""
    accounts = results.test_accounts.get(name, {}).values()
    claim = claims.tests[name].worst if name in claims.tests else None
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


def privacy_json(results: Results, claims: RunClaims) -> dict[str, Any]:
    """Return the privacy accounts and the statement as JSON values. Every epsilon was computed from events."""
    study = results.study
    methods: dict[str, Any] = {}
    for name, accounts in results.accounts.items():
        method = claims.training[name]
        if method.worst is None:
            methods[name] = _not_run(results, name)
            continue
        said = statement_of_method(
            name,
            method.worst,
            noise=study.noise,
            relation=results.relation,
            own=method.own if results.federation else None,
        )
        caution = _caution(results, name)
        methods[name] = {
            "guarantee": method.worst.guarantee,
            "relation": results.relation,
            "against": method.against,
            "statement": _as_far_as_it_came(results, name, f"{said} {caution}".strip()),
            "sites": {site: _account(account, method.by_site[site]) for site, account in sorted(accounts.items())},
        }
    test_units = _test_units(results, claims)
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
            "sites": {site: each.to_json() for site, each in claims.together.items()},
        },
        **({"resumed": _resumed(results)} if results.resumed else {}),
        "test_units": test_units,
        **_public_attributes(results),
        "assumptions": assumptions(results.scope, sampled=claims.is_sampled),
        "not_covered": not_covered(results.scope, deployed=bool(results.federation)),
        "statement": statement_of_study(
            study,
            results.scope,
            {name: entry["statement"] for name, entry in methods.items()},
            resumed=bool(results.resumed),
            test_units=test_units["statement"],
            summed=[name for name, entry in methods.items() if entry["against"] == "recipients"],
            sampled=claims.is_sampled,
            federation=results.federation,
            sites=len(results.sites),
            away=sorted({gap["site"] for gap in results.missing}),
            stopped=results.failure is not None,
            together=claims.most_together if results.federation else None,
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
    """Return the methods of which test results were given out, and whether it is known that no other was tested."""
    tested, is_known = [], True
    for name, by_site in results.test_accounts.items():
        if name in results.figures or any(account.spent for account in by_site.values()):
            tested.append(name)
        elif any(account.spent is None for account in by_site.values()):
            is_known = False
    return tested, is_known


def _test_units(results: Results, claims: RunClaims) -> dict[str, Any]:
    """Return the line of the test units: what was given out about them, by method and site, and the total."""
    tested, is_known = _test_results(results)
    accounts, metrics = results.test_accounts, results.study.evaluation.metrics
    return {
        "metrics": metrics,
        "simulation_only": metrics == "exact" and not results.federation,
        "relation": relation_of(results.study.budget.unit, "covered"),
        "against": "server",
        "methods": {
            name: {
                "sites": {
                    site: _account(each, claims.tests[name].by_site[site]) for site, each in sorted(by_site.items())
                }
            }
            for name, by_site in accounts.items()
        },
        "all_methods_together": {
            "meaning": "what evaluating every method of this study on the same test units composes to, by site",
            "sites": {site: each.to_json() for site, each in claims.tests_together.items()},
        },
        "told_of": tested,
        "statement": statement_on_test_units(
            claims.worst_on_tests,
            results.scope,
            noise=results.study.noise,
            deployed=bool(results.federation),
            tested=None if len(tested) == len(accounts) else tested,
            is_known=is_known,
        ),
    }


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

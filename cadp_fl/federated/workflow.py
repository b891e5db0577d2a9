"""The phases of a study: describe, reserve, every method, account, results.

What is known is written even when a run stops early, so that one which lost a site never looks like one that did
not.
"""

import contextlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError
from safetensors.numpy import save_file

import cadp_fl
from cadp_fl.config import StudyConfig, dump_study
from cadp_fl.data.schema import Schema
from cadp_fl.device import resolve_device
from cadp_fl.errors import ExchangeError, FederationError, InputError
from cadp_fl.federated.federation import Federation, Missing, Transport
from cadp_fl.federated.methods import build_methods
from cadp_fl.federated.methods.base import Method, StudyRun, Trained
from cadp_fl.federated.recorder import Recorder, Watcher
from cadp_fl.privacy.accounting import check_delta, events_from_json
from cadp_fl.privacy.ledger import Plan
from cadp_fl.report.page import write_report
from cadp_fl.report.summary import Account, MethodFigures, Results, SiteEntry, privacy_json, summary_json
from cadp_fl.site.description import Description
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import ReserveRequest
from cadp_fl.weights import get_weights

__all__ = ["conduct"]

RUN_FILES = ("metrics.jsonl", "summary.json", "privacy.json", "report.html", "releases", "models")


def conduct(study: StudyConfig, transport: Transport, folder: Path, *, watch: Watcher) -> str:
    """Run a study over a transport, fill its run folder, and return `complete` or `incomplete`.

    Raises:
        InputError: the folder holds a run already; it stays as it is.
        CadpError: the study cannot go on. If sites had described themselves by then, the summary says `incomplete`
            and why.
    """
    if found := [name for name in RUN_FILES if (folder / name).exists()]:
        raise InputError(f"A run is never overwritten. '{folder}' holds {found[0]} of one; choose another folder.")
    methods = build_methods(study)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_study(study), encoding="utf-8")
    recorder = Recorder(folder / "metrics.jsonl", watch)
    phases = {phase: rounds for method in methods for phase, rounds in method.phases().items()}
    recorder.phases(phases, study.sites.count)
    federation = Federation(transport, study.sites.needed, recorder)
    results = Results(study, datetime.now(UTC), software=_software())
    try:
        _run_phases(study, methods, federation, folder, results)
    except Exception as error:
        results.failure = str(error)
        recorder.failed(results.failure)
        raise
    finally:
        results.missing = [vars(gap) for gap in federation.missing]
        results.traffic = {site: (crossed.up, crossed.down) for site, crossed in federation.traffic.items()}
        results.seconds = recorder.seconds
        if results.sites:
            (folder / "summary.json").write_text(json.dumps(summary_json(results), indent=2), encoding="utf-8")
            (folder / "privacy.json").write_text(json.dumps(privacy_json(results), indent=2), encoding="utf-8")
            write_report(folder)
    recorder.done(results.status)
    return results.status


def _run_phases(
    study: StudyConfig, methods: list[Method], federation: Federation, folder: Path, results: Results
) -> None:
    schema, results.sites = _describe(study, federation)
    results.dataset = schema.name
    sizes = {site: entry.train for site, entry in results.sites.items()}
    for size in sizes.values():
        check_delta(study.budget.delta, size)
    plans = [Plan(method.name, method.events(), study.budget.delta) for method in methods]
    for plan in plans:
        federation.ask(Request("reserve", ReserveRequest(plan=plan.to_json()).model_dump(mode="json")), phase="reserve")
        results.accounts[plan.method] = {site: Account(plan) for site in federation.sites}
    federation.recorder.round("reserve", 1, 1)
    run = StudyRun(study, schema, sizes, federation, folder, resolve_device(study.device))
    try:
        for method in methods:
            trained = method.run(run)
            results.figures[method.name] = MethodFigures(
                trained.classifier.model, trained.pooled, trained.per_site, trained.release
            )
            _save_models(folder / "models", trained, {"method": method.name, "noise": study.noise})
    except FederationError:
        with contextlib.suppress(FederationError):
            _account(federation, results)
        raise
    _account(federation, results)


def _describe(study: StudyConfig, federation: Federation) -> tuple[Schema, dict[str, SiteEntry]]:
    """Ask every node what it is, freeze the roster, and check that the sites fit together.

    Raises:
        FederationError: the number of nodes is not the study's, or two sites do not fit.
    """
    nodes = federation.transport.nodes(study.sites.count)
    if len(nodes) != study.sites.count:
        raise FederationError(
            f"The study has {study.sites.count} sites, one a node. Found {len(nodes)} nodes; start as many nodes as "
            f"sites (flwr run: --federation-config 'num-supernodes={study.sites.count}')."
        )
    node_of = {f"node-{node}": node for node in nodes}
    federation.roster = node_of
    described: dict[str, Description] = {}

    def check(placeholder: str, reply: Reply) -> None:
        try:
            described[placeholder] = Description.model_validate(dict(reply.content))
        except ValidationError as error:
            field = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ExchangeError(f"A site describes itself by the schema. Field '{field}' is wrong.") from error

    replies = federation.ask(Request("describe"), phase="describe", check=check)
    descriptions = [described[placeholder] for placeholder in replies]
    _check_fit(study, descriptions)
    silent = sorted(set(study.sites.site_names) - {each.site for each in descriptions})
    # A node that said nothing did not say which site it is, so the reasons of all such nodes stand for each.
    reasons = "; ".join(sorted({gap.reason for gap in federation.missing}))
    federation.missing = [Missing(site, "describe", reasons) for site in silent]
    federation.roster = {described[placeholder].site: node_of[placeholder] for placeholder in replies}
    federation.traffic = {}
    federation.recorder.round("describe", 1, 1)
    entries = {each.site: SiteEntry(each.train, each.test, each.class_counts) for each in descriptions}
    return descriptions[0].dataset, entries


def _check_fit(study: StudyConfig, descriptions: list[Description]) -> None:
    """Check that sites can work together.

    Raises:
        FederationError: they cannot; the message names the site and the field.
    """
    first = descriptions[0]
    names = [each.site for each in descriptions]
    for each in descriptions:
        if names.count(each.site) > 1:
            raise FederationError(f"Every site has a name of its own. '{each.site}' is there twice; rename one.")
        if _release_line(each.library) != _release_line(cadp_fl.__version__):
            raise FederationError(
                f"Sites and server run the same major.minor version of cadp-fl. Site '{each.site}' has {each.library}, "
                f"the server {cadp_fl.__version__}; update one."
            )
        if each.noise != study.noise:
            raise FederationError(
                f"The study's noise is '{study.noise}'. Site '{each.site}' has noise '{each.noise}'; make them agree."
            )
        for field in Schema.model_fields:
            ours, theirs = getattr(first.dataset, field), getattr(each.dataset, field)
            if ours != theirs:
                raise FederationError(
                    f"All sites share one schema. Field '{field}' of site '{each.site}' is {theirs}, that of site "
                    f"'{first.site}' is {ours}; convert the records of one."
                )


def _release_line(library: str) -> list[str]:
    return library.split(".")[:2]


def _account(federation: Federation, results: Results) -> None:
    """Ask every site what its ledgers hold. A method's plan there must be the one that was reserved."""

    def check(site: str, reply: Reply) -> None:
        try:
            told = [
                Account(Plan.from_json(tree["plan"]), events_from_json(tree["spent"]))
                for tree in reply.content["accounts"]
            ]
            if [account.plan for account in told] != [by_site[site].plan for by_site in results.accounts.values()]:
                raise ExchangeError(f"A ledger holds what was reserved. That of '{site}' differs; audit the site.")
            for account in told:
                results.accounts[account.plan.method][site] = account
        except (KeyError, TypeError, ValueError) as error:
            raise ExchangeError(f"An account lists plans and events. That of '{site}' does not.") from error

    federation.ask(Request("account"), phase="account", check=check)
    federation.recorder.round("account", 1, 1)


def _save_models(folder: Path, trained: Trained, metadata: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    save_file(get_weights(trained.model), folder / f"classifier-{metadata['method']}.safetensors", metadata)
    if trained.flow is not None:
        save_file(get_weights(trained.flow), folder / "flow.safetensors", metadata)


def _software() -> dict[str, str]:
    """Return the versions that a result depends on."""
    names = ("flwr", "torch", "FrEIA", "opacus", "dp-accounting", "numpy")
    own = {"cadp-fl": cadp_fl.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in names}

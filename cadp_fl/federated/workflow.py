"""The phases of a study: describe, reserve, every method, account, results.

What is known is written even when a run stops early, so that one which lost a site never looks like one that did
not.
"""

import contextlib
import json
import platform
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cadp_fl.classifier.storage import ClassifierCard, save_classifier
from cadp_fl.config import StudyConfig, dump_study
from cadp_fl.data.schema import Schema
from cadp_fl.device import resolve_device
from cadp_fl.errors import CadpError, ConfigError, ExchangeError, FederationError, InputError
from cadp_fl.federated.basis import Basis
from cadp_fl.federated.checkpoint import CHECKPOINT, Checkpoint
from cadp_fl.federated.evaluation import evaluation_plan
from cadp_fl.federated.federation import Federation, Traffic, Transport
from cadp_fl.federated.journal import JOURNAL, Journal
from cadp_fl.federated.methods import build_methods, check_shapes
from cadp_fl.federated.methods.base import Method, StudyRun, plan_of
from cadp_fl.federated.open_choices import check_choices
from cadp_fl.federated.recorder import Recorder, Watcher
from cadp_fl.federated.roster import gather
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.accounting import check_delta
from cadp_fl.privacy.claims import unprotected_from_json
from cadp_fl.privacy.events import Event, GaussianHistogram, Unprotected, events_from_json
from cadp_fl.privacy.plan import Conditions, Plan, Split
from cadp_fl.report.page import write_report
from cadp_fl.report.results import Account, MethodFigures, Results, SiteEntry, going_on
from cadp_fl.report.run_claims import RunClaims
from cadp_fl.report.summary import privacy_json, summary_json
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import CountRequest, ReserveRequest

__all__ = ["conduct", "new_run"]

RUN_FILES = (CHECKPOINT, JOURNAL, "metrics.jsonl", "summary.json", "privacy.json", "report.html", "releases", "models")


def conduct(
    study: StudyConfig,
    transport: Transport,
    folder: Path,
    *,
    watch: Watcher,
    resume: bool = False,
    federation: str = "",
) -> str:
    """Run a study over a transport, fill its run folder, and return `complete` or `incomplete`.

    Args:
        resume: go on with the run in the folder, from its last finished phase.
        federation: name of the federation, where the sites are real ones; empty in a simulation.

    Raises:
        ConfigError: a study over real sites does not name them, or not what their sizes settle.
        InputError: the folder holds a run already, or none that can be resumed; it stays as it is.
        CadpError: the study cannot go on. If its sites had been found to fit it by then, the summary says `incomplete`
            and why.
    """
    if federation and study.sites.names is None:
        raise ConfigError(
            "A study over real sites names them, as their nodes are registered. Found no sites.names; give one name a "
            "site."
        )
    methods = build_methods(study)
    plans = {method.name: plan_of(method, study) for method in methods}
    resumes = resume and (folder / CHECKPOINT).exists()
    if resumes:
        checkpoint = Checkpoint.resume(folder, plans, Basis.of(study), federation=federation)
    else:
        checkpoint = _begin(study, folder, plans, federation)
    journal = Journal(folder / JOURNAL) if federation else None
    recorder = Recorder(
        folder / "metrics.jsonl", watch, seconds=checkpoint.seconds, metrics_bytes=checkpoint.metrics_bytes
    )
    phases = {phase: rounds for method in methods for phase, rounds in method.phases().items()}
    recorder.phases(
        {name: rounds for name, rounds in phases.items() if not checkpoint.is_finished(name)}, study.sites.count
    )
    sites = Federation(transport, study.sites.needed, recorder, run=checkpoint.run, journal=journal)
    results = Results(
        study,
        checkpoint.started,
        federation=federation,
        resumed=checkpoint.resumed,
        software=checkpoint.versions | _processor(),
    )
    conductor = _Conductor(
        study=study,
        methods=methods,
        plans=plans,
        federation=sites,
        folder=folder,
        results=results,
        checkpoint=checkpoint,
    )
    try:
        conductor.run()
    except Exception as error:
        results.failure = str(error)
        recorder.failed(results.failure)
        raise
    except BaseException:  # the process is asked to end
        results.failure = "The run was interrupted."
        raise
    finally:
        conductor.take_stock()
        if results.sites:
            _write(results, folder)
            write_report(folder)
    recorder.done(results.status)
    return results.status


def _write(results: Results, folder: Path) -> None:
    claims = RunClaims.of(results)
    for name, tree in (
        ("summary.json", summary_json(results, claims)),
        ("privacy.json", privacy_json(results, claims)),
    ):
        with replaced_file(folder / name) as file:
            file.write_text(json.dumps(tree, indent=2), encoding="utf-8")


def _begin(study: StudyConfig, folder: Path, plans: Mapping[str, Plan], federation: str) -> Checkpoint:
    if found := [name for name in RUN_FILES if (folder / name).exists()]:
        raise InputError(f"A run is never overwritten. '{folder}' holds {found[0]} of one; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        (folder / "config.yaml").write_text(dump_study(study), encoding="utf-8")
    run = new_run(study.name) if federation else ""
    return Checkpoint.begin(folder, plans, Basis.of(study), federation=federation, run=run)


def new_run(name: str) -> str:
    """Return the id of a run: real sites keep its plans and answers under it for good, so that it comes once."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{slug or 'study'}-{secrets.token_hex(8)}"


class _Conductor:
    """Leads a study through its phases, and keeps results and checkpoint up to date."""

    def __init__(
        self,
        study: StudyConfig,
        methods: list[Method],
        plans: Mapping[str, Plan],
        federation: Federation,
        folder: Path,
        results: Results,
        checkpoint: Checkpoint,
    ) -> None:
        self._study, self._methods, self._federation = study, methods, federation
        self._plans = {plan.key: plan for plan in plans.values()}  # of test units too, once their classes are known
        self._folder, self._results, self._checkpoint = folder, results, checkpoint
        self._reserved = {key: set(sites) for key, sites in checkpoint.reserved.items()}
        # As an interrupted attempt left them; the checkpoint itself goes on.
        self._missing_before, self._traffic_before = checkpoint.missing, checkpoint.traffic
        self._spent_before: dict[str, dict[str, tuple[Event, ...]]] = {}
        results.unprotected_before |= checkpoint.unprotected_before
        # Of every method but the last, after which the run asks for all accounts.
        self._last_phases = {list(method.phases())[-1] for method in methods[:-1] if method.phases()}

    def run(self) -> None:
        """Describe, reserve, every method that has not ended, account.

        Raises:
            FederationError: too few sites are left, or they do not fit together.
            ConfigError: the study leaves open what real sites' sizes settle.
        """
        results = self._results
        schema, sites, refusals = self._gather()
        # Only now have real sites reported their sizes.
        check_shapes(self._methods, schema, [entry.train for entry in sites.values()])
        plans = self._plans | self._plan_evaluations(schema, sites)
        conditions = Conditions(self._study.noise, schema.classes, schema.attributes)
        self._plans = {key: replace(plan, conditions=conditions) for key, plan in plans.items()}
        results.sites, results.dataset, results.attributes = sites, schema.name, schema.attributes
        sizes = {site: entry.train for site, entry in sites.items()}
        self._spent_before = {key: self._checkpoint.spent(key) for key in self._plans}
        for key, plan in self._plans.items():
            ended, spent = self._checkpoint.figures(plan.method) is not None, self._spent_before[key]
            self._accounts(plan).update({site: Account(plan, spent.get(site) if ended else None) for site in sites})
        if self._federation.is_deployed and not self._reserved:
            check_choices(self._study, schema, sites)
        ended_methods = {method.name: self._checkpoint.figures(method.name) for method in self._methods}
        results.figures = {name: figures for name, figures in ended_methods.items() if figures is not None}
        try:
            self._check_refusals(refusals)
            for method in self._methods:
                if self._checkpoint.figures(method.name) is None:
                    self._reserve(method.name)
        finally:
            self._forget_what_was_refused()
        self._federation.recorder.round("reserve", 1, 1)
        self.take_stock()
        self._leave("reserve")
        try:
            for method in self._methods:
                if method.name not in results.figures:
                    results.figures[method.name] = self._run(method, schema, sizes)
                    self._leave(method.name)
        except FederationError:
            with contextlib.suppress(FederationError):
                self._account()
            raise
        self._account()

    def _check_refusals(self, refusals: Mapping[str, CadpError]) -> None:
        """Check that enough sites would set all plans aside, before any is asked to: what is set aside stays so.

        Raises:
            FederationError: too many would refuse.
        """
        federation = self._federation
        takes_part = [site for site in federation.sites if site not in refusals]
        if len(takes_part) < federation.needed:
            for site, error in refusals.items():
                federation.note_missing(site, "reserve", str(error))
            federation.require("reserve", len(takes_part))

    def _asked_about(self) -> list[Plan]:
        """Return the plans of methods that have not ended, with those on test units as far as they are known.

        The number of classes is known for sure when the sites have described themselves. The cost does not depend on
        it.
        """
        study = self._study
        classes = max(2, len(study.data.classes or ()))
        return [
            plan
            for method in self._methods
            if self._checkpoint.figures(method.name) is None
            for plan in (plan_of(method, study), evaluation_plan(study, method.name, classes))
        ]

    def _gather(self) -> tuple[Schema, dict[str, SiteEntry], dict[str, CadpError]]:
        """Freeze the roster, and return what all sites share and what each is; real ones as when the run began.

        The last is why a real site would refuse to set the study's plans aside.
        """
        federation, known = self._federation, self._checkpoint.roster
        plans = self._asked_about() if federation.is_deployed else []
        described, records, refusals = gather(self._study, federation, known, plans)
        if federation.is_deployed and not known:
            self._checkpoint.hold_roster(described, [vars(gap) for gap in federation.missing])
        if not federation.is_deployed:
            self._checkpoint.hold_records(records)
        described = known or described
        entries = {site: SiteEntry(each.train, each.test, each.class_counts) for site, each in described.items()}
        return next(iter(described.values())).dataset, entries, refusals

    def take_stock(self) -> None:
        """Copy into the results what was lost, what crossed and what it took; also before an interruption."""
        results, federation = self._results, self._federation
        now = [vars(gap) for gap in federation.missing]
        results.missing = [*self._missing_before, *(gap for gap in now if gap not in self._missing_before)]
        results.traffic = {
            site: (up + crossed.up, down + crossed.down)
            for site in {*results.sites, *federation.traffic}
            for crossed in [federation.traffic.get(site, Traffic())]
            for up, down in [self._traffic_before.get(site, (0, 0))]
        }
        results.seconds = federation.recorder.seconds

    def _run(self, method: Method, schema: Schema, sizes: dict[str, int]) -> MethodFigures:
        self._reserve(method.name)  # again, for a site that missed it and is back
        if self._federation.is_deployed:  # from now on it spends: what a site said before is true no more
            for plan in self._plans_of(method.name).values():
                self._accounts(plan).update({site: Account(plan) for site in self._accounts(plan)})
        self._count_classes(method.name, schema)
        run = StudyRun(
            study=self._study,
            method=method.name,
            schema=schema,
            sizes=sizes,
            test_sizes={site: entry.test for site, entry in self._results.sites.items()},
            class_counts=self._class_counts(method.name),
            evaluation=self._evaluation_of(method.name),
            federation=self._federation,
            folder=self._folder,
            device=resolve_device(self._study.device),
            releasing=self._methods_with("release"),
            flows=self._methods_with("flow", "moments"),
            is_finished=self._checkpoint.is_finished,
            finish=lambda phase: self._finish(phase, method.name),
        )
        trained = method.run(run)
        if trained.model is not None and trained.classifier is not None:
            card = ClassifierCard(trained.classifier, schema, self._study.seed, method.name, self._study.noise)
            save_classifier(self._folder / "models" / f"classifier-{method.name}.safetensors", trained.model, card)
        classifier = "bayes-rule" if trained.classifier is None else trained.classifier.model
        figures = MethodFigures(classifier, trained.pooled, trained.per_site, trained.release)
        for phase in method.phases():
            if not self._checkpoint.is_finished(phase):
                self._finish(phase, method.name)
        self._checkpoint.end_method(method.name, figures)
        return figures

    def _methods_with(self, *stages: str) -> list[str]:
        """Return the names of the methods that have an event of one of some stages."""
        return [plan.method for plan in self._plans.values() if any(event.stage in stages for event in plan.events)]

    def _plan_evaluations(self, schema: Schema, sites: Mapping[str, SiteEntry]) -> dict[str, Plan]:
        """Return every method's plan on test units, now that their classes are known, by key.

        Raises:
            BudgetError: a delta is too large for the number of units of a site.
            InputError: the run began with other plans.
        """
        study = self._study
        trained, tested = (max(getattr(entry, side) for entry in sites.values()) for side in ("train", "test"))
        check_delta(study.budget.delta, trained, large=True, name="budget.delta")
        if study.evaluation.delta is not None:
            check_delta(study.evaluation.delta, tested, large=True, name="evaluation.delta")
        plans = {method.name: evaluation_plan(study, method.name, len(schema.classes)) for method in self._methods}
        self._checkpoint.hold_test_plans(plans)
        return {plan.key: plan for plan in plans.values()}

    def _evaluation_of(self, method: str) -> GaussianHistogram | None:
        """Return the event of the one evaluation that a method's plan on test units holds; None where all are exact."""
        planned = [event for plan in self._plans_of(method).values() if plan.split == "test" for event in plan.events]
        return next((event for event in planned if isinstance(event, GaussianHistogram)), None)

    def _plans_of(self, method: str) -> dict[str, Plan]:
        """Return a method's plans by key: that on training units, and that on test units."""
        return {key: plan for key, plan in self._plans.items() if plan.method == method}

    def _accounts(self, plan: Plan) -> dict[str, Account]:
        """Return the accounts of a plan, by site."""
        results = self._results
        return (results.accounts if plan.split == "train" else results.test_accounts).setdefault(plan.method, {})

    def _reserve(self, method: str) -> None:
        """Let every site that has not done so set the method's plans aside, whole."""
        federation, plans = self._federation, self._plans_of(method)
        done = [self._reserved.setdefault(key, set()) for key in plans]
        settings = ReserveRequest(plans=tuple(plan.to_json() for plan in plans.values())).model_dump(mode="json")
        request = Request("reserve", settings)
        left = {site: request for site in federation.sites if not all(site in sites for sites in done)}
        if left:
            federation.ask(request if not any(done) else left, phase="reserve", check=partial(self._note, done))
        for key, plan in plans.items():
            for site in self._reserved[key]:
                self._accounts(plan).setdefault(site, Account(plan))
        if federation.is_deployed:
            self._checkpoint.hold_reserved(self._reserved, self._results.unprotected_before)

    def _note(self, done: Iterable[set[str]], site: str, reply: Reply) -> None:
        """Note that a site set plans aside, and what it let go before them."""
        self._results.unprotected_before[site] = _unprotected_in(reply.content, site)
        for sites in done:
            sites.add(site)

    def _forget_what_was_refused(self) -> None:
        """Drop the accounts of plans that a site refused, or was not asked for: nothing was spent on them, for sure."""
        for key, plan in self._plans.items():
            if plan.method in self._results.figures:  # it ended before
                continue
            done, accounts = self._reserved.get(key), self._accounts(plan)
            for site in [site for site in accounts if site not in (done or ())]:
                if done is None or (site, "reserve") in self._federation.refused:
                    del accounts[site]

    def _count_classes(self, method: str, schema: Schema) -> None:
        """Ask for noised class counts, where the method's plan has some."""
        counts: dict[str, dict[str, int]] = {}

        def check(site: str, reply: Reply) -> None:
            by_class = reply.content.get("class_counts")
            if not isinstance(by_class, dict) or set(by_class) != set(schema.classes):
                raise ExchangeError(f"Noised counts name every class. Those of '{site}' do not.")
            counts[site] = {name: int(by_class[name]) for name in schema.classes}

        for event in (event for event in self._plans[method].events if isinstance(event, GaussianHistogram)):
            settings = CountRequest(method=method, event=event)
            self._federation.ask(
                Request("count", settings.model_dump(mode="json")), phase=f"{method}/count", check=check
            )
            self._results.noised_counts.setdefault(method, {}).update(counts)

    def _class_counts(self, method: str) -> dict[str, Mapping[str, int]]:
        """Return what is known of the sites' classes: what they declared, or released to a method with noise."""
        public = {site: entry.class_counts for site, entry in self._results.sites.items()}
        declared = {site: counts for site, counts in public.items() if counts is not None}
        return declared | self._results.noised_counts.get(method, {})

    def _finish(self, phase: str, method: str) -> None:
        """Write down that a phase is finished, with what the sites spent on it.

        Real sites keep that themselves, and are asked when a method has ended: each question takes Flower some seconds.
        """
        if not self._federation.is_deployed or phase in self._last_phases:
            self._account()
        self.take_stock()
        spent = {
            key: {site: account.spent for site, account in self._accounts(plan).items() if account.spent is not None}
            for key, plan in self._plans_of(method).items()
        }
        self._checkpoint.finish(
            phase,
            spent=spent,
            missing=self._results.missing,
            traffic=self._results.traffic,
            seconds=self._results.seconds,
            metrics_bytes=self._federation.recorder.metrics_bytes,
        )
        self._leave(phase)

    def _leave(self, last: str) -> None:
        """Write the results down as far as they are known: a server that is killed writes no more."""
        _write(replace(self._results, failure=going_on(last)), self._folder)

    def _account(self) -> None:
        """Ask every site what its ledger holds: plans of the study alone, and all that it is known to have reserved.

        A real site's ledger outlives the run. It holds what was spent before an interruption, which a simulation's does
        not.
        """
        deployed = self._federation.is_deployed

        def check(site: str, reply: Reply) -> None:
            try:
                listed = [
                    (Plan.from_json(tree["plan"]), events_from_json(tree["spent"]))
                    for tree in reply.content["accounts"]
                ]
            except (KeyError, TypeError, ValueError) as error:
                raise ExchangeError(f"An account lists plans and events. That of '{site}' does not.") from error
            if deployed and reply.content.get("ledger") != "durable":
                raise ExchangeError(
                    f"A real site has a durable ledger. That of '{site}' is none; set the site up again."
                )
            if any(plan.run != self._federation.run for plan, _ in listed):
                raise ExchangeError(f"An account is of the run that asks. That of '{site}' is not; audit the site.")
            accounts = {each.key: (each, spent) for plan, spent in listed for each in [replace(plan, run="")]}
            held = {key: plan for key, (plan, _) in accounts.items()}
            reserved = {key: self._plans[key] for key, sites in self._reserved.items() if site in sites}
            # What a site set aside just before its answer was lost is there too.
            if len(accounts) != len(listed) or not reserved.items() <= held.items() <= self._plans.items():
                raise ExchangeError(f"A ledger holds what was reserved. That of '{site}' differs; audit the site.")
            self._results.unprotected_before[site] = _unprotected_in(reply.content, site)
            for key, (plan, spent) in accounts.items():
                before = () if deployed else self._spent_before[key].get(site, ())
                self._accounts(plan)[site] = Account(plan, (*before, *spent))

        replies = self._federation.ask(Request("account"), phase="account", check=check)
        for plan in self._plans.values():
            accounts = self._accounts(plan)
            for site in set(accounts) - set(replies):
                if plan.method not in self._results.figures:  # what it had spent when it ended is known for good
                    accounts[site] = Account(plan)


def _unprotected_in(content: Mapping[str, Any], site: str) -> dict[Split, tuple[Unprotected, ...]]:
    """Return what a site says that earlier runs let go unprotected, by training and test units.

    Raises:
        ExchangeError: it says something else.
    """
    try:
        return unprotected_from_json(content["unprotected_before"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExchangeError(
            f"A site reports what left unprotected in earlier runs. '{site}' does not; compare the versions."
        ) from error


def _processor() -> dict[str, str]:
    """Return the instructions of the server's processor, which trained weights depend on beside versions."""
    return {"processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}

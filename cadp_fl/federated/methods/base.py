"""What a method is: what it will spend, and how it trains a classifier with the sites."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import nn

from cadp_fl.classifier.models import build_classifier
from cadp_fl.config import ClassifierConfig, FlowConfig, StudyConfig
from cadp_fl.data.codec import input_shape
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ExchangeError
from cadp_fl.evaluation.noised import NoisedEvaluation, noised_metrics_of, pool_noised
from cadp_fl.evaluation.utility import Evaluation, Metrics, metrics_of, pool
from cadp_fl.federated.federation import Federation
from cadp_fl.privacy.accounting import check_workable
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.events import Event, GaussianHistogram
from cadp_fl.privacy.plan import Plan
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import EvaluateRequest
from cadp_fl.weights import check_arrays, get_weights, structure_sha256, trainable_parameters

__all__ = [
    "Method",
    "PhaseCost",
    "StudyRun",
    "Trained",
    "ask_for_evaluations",
    "bytes_of",
    "evaluate_at_sites",
    "fits_module",
    "mean_figure",
    "plan_of",
]


@dataclass(frozen=True)
class StudyRun:
    """What a method works with at the server.

    Attributes:
        study: the config.
        method: name of the method that runs.
        schema: the public schema that all sites share.
        sizes: n_k, declared number of training records by site.
        test_sizes: declared number of test units by site.
        class_counts: number of training records by site and class, as it is public or was released with noise; empty
            where neither is so. What depends on it costs nothing more.
        evaluation: what the one evaluation of the method's final classifier costs; None where all are exact.
        federation: asks the sites.
        folder: the run folder.
        device: where the server computes.
        releasing: names of the study's methods that make releases.
        flows: names of those that make a flow.
        is_finished: whether a phase was finished before the run was interrupted.
        finish: writes down that a phase is finished, so that a run which is interrupted later need not repeat it.
    """

    study: StudyConfig
    method: str
    schema: Schema
    sizes: dict[str, int]
    test_sizes: dict[str, int]
    class_counts: Mapping[str, Mapping[str, int]]
    evaluation: GaussianHistogram | None
    federation: Federation
    folder: Path
    device: torch.device
    releasing: Collection[str]
    flows: Collection[str]
    is_finished: Callable[[str], bool]
    finish: Callable[[str], None]

    def evaluates(self, number: int, of: int, *, every: int = 1) -> bool:
        """Return whether a classifier is evaluated after a round: every few rounds, or the last alone with noise.

        Args:
            number: of the round, from 1.
            of: number of rounds.
            every: rounds between two exact evaluations.
        """
        return number == of or (self.evaluation is None and number % every == 0)

    def release_folder(self, method: str) -> Path:
        """Return the folder of a method's releases: `releases/` for the study's first, `releases-<method>/` beside it.

        Formats that others rely on have `releases/<site>/`, and a study may compare several methods that release.
        """
        first = next(name for name in self.study.methods if name in self.releasing)
        return self.folder / ("releases" if method == first else f"releases-{method}")

    def flow_file(self) -> Path:
        """Return the file of the method's flow: `models/flow` for the study's first, `models/flow-<method>` beside it.

        Formats that others rely on have `models/flow.safetensors`, and a study may compare several methods with flows.
        """
        first = next(name for name in self.study.methods if name in self.flows)
        return self.folder / "models" / f"flow{'' if self.method == first else f'-{self.method}'}.safetensors"

    def classifier(self, config: ClassifierConfig) -> nn.Module:
        """Return a new classifier with the study's initial weights, on the server's device."""
        model = build_classifier(config, input_shape(self.schema), len(self.schema.classes), seed=self.study.seed)
        return model.to(self.device)


@dataclass
class Trained:
    """A method's result.

    Attributes:
        model: the classifier; None where every site keeps one of its own.
        classifier: its config; None where the classifier is the flow's Bayes rule.
        pooled: figures on the test records of all sites together.
        per_site: figures by site.
        release: every number of the release, each by itself, where the method made one.
    """

    model: nn.Module | None
    classifier: ClassifierConfig | None
    pooled: Metrics
    per_site: dict[str, Metrics]
    release: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PhaseCost:
    """What a phase will take, known before it runs.

    Attributes:
        phase: its name.
        rounds: number of rounds.
        down: bytes of tensors to one site in one round.
        up: bytes of tensors from one site in one round, at most.
        work: what is computed: `flow`, `dp-flow`, `moments`, `bayes`, `release`, `classifier` or `dp-sgd` at a site, or
            at the server `central`, steps of training, or `fit`, a quadratic discriminant in closed form.
        records: number of records that the largest site (or the server) computes in one round.
        classifier: of the last four kinds of work.
    """

    phase: str
    rounds: int
    down: int
    up: int
    work: Literal["flow", "dp-flow", "moments", "bayes", "release", "classifier", "dp-sgd", "central", "fit"]
    records: int
    classifier: ClassifierConfig | None = None


class Method(Protocol):
    """One row of a comparison. One file a method; `METHODS` is the registry."""

    name: ClassVar[str]

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        """Parse the method's settings and calibrate its noise; reads no record.

        Raises:
            ConfigError: a setting is wrong.
        """
        ...

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        ...

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site; a release is an event of stage `release`."""
        ...

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take; called before a run, so that what does not fit the records is refused.

        Args:
            schema: of the records.
            sizes: number of training records of each site.

        Raises:
            ConfigError: a network of the method cannot be built for such records.
        """
        ...

    def run(self, run: StudyRun) -> Trained:
        """Train with the sites; every phase but the last is finished with `run.finish`, and skipped if it was before.

        Raises:
            FederationError: too few sites are left.
        """
        ...


def plan_of(method: Method, study: StudyConfig) -> Plan:
    """Return what a method reserves at every site: all of its events, at the study's budget.

    Raises:
        BudgetError: no site would work out what they cost.
    """
    plan = Budget.of(study.budget, study.labels).plan(method.name, method.events())
    check_workable(plan.events)
    return plan


def evaluate_at_sites(
    run: StudyRun,
    model: nn.Module,
    architecture: ClassifierConfig | FlowConfig,
    *,
    phase: str,
    round: int = 1,
    of: int = 1,
    seed: int | None = None,
    ridge: float = 0.0,
) -> tuple[Metrics, dict[str, Metrics]]:
    """Return a classifier's figures on the sites' test records: pooled, and by site.

    With noise a site answers once for each method: evaluate its final classifier (`StudyRun.evaluates`).

    Args:
        architecture: of the classifier, or of the flow of which it is the Bayes rule.
        seed: of its fixed parts; the study's by default.
        ridge: of a Bayes rule.
    """
    named = {"flow" if isinstance(architecture, FlowConfig) else "classifier": architecture}
    settings = EvaluateRequest(
        method=run.method, seed=run.study.seed if seed is None else seed, event=run.evaluation, ridge=ridge, **named
    )
    request = Request("evaluate", settings.model_dump(mode="json"), get_weights(model))
    return ask_for_evaluations(run, request, phase=phase, round=round, of=of)


def ask_for_evaluations(
    run: StudyRun, request: Request, *, phase: str, round: int = 1, of: int = 1
) -> tuple[Metrics, dict[str, Metrics]]:
    """Return the figures of what sites answer to a request for an evaluation: pooled, and by site."""
    tables: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    classes = len(run.schema.classes)

    def check(site: str, reply: Reply) -> None:
        if set(reply.arrays) != {"confusion", "histograms"}:
            raise ExchangeError(f"An evaluation holds confusion and histograms. Found {sorted(reply.arrays)}.")
        confusion, histograms = reply.arrays["confusion"], reply.arrays["histograms"]
        if confusion.shape[:1] != (classes,):
            raise ExchangeError(f"An evaluation has {classes} classes. Found counts of shape {confusion.shape}.")
        _figures(run, {site: (confusion, histograms)})
        tables[site] = confusion, histograms

    replies = run.federation.ask(request, phase=phase, round=round, of=of, check=check)
    pooled = _figures(run, {site: tables[site] for site in replies})
    figures = {name: value for name, value in pooled.to_json().items() if isinstance(value, float)}
    run.federation.recorder.round(phase, round, of, **figures)
    return pooled, {site: _figures(run, {site: tables[site]}) for site in replies}


def _figures(run: StudyRun, tables: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Metrics:
    """Return the figures of some sites' confusion counts and score histograms together.

    Raises:
        ExchangeError: they are not what was asked for.
    """
    classes = run.schema.classes
    if run.evaluation is None:
        return metrics_of(pool([Evaluation(*table) for table in tables.values()]), classes)
    variance, is_public = run.evaluation.noise_std**2 + 1 / 12, run.study.budget.unit == "record"
    evaluations = [
        NoisedEvaluation(*table, variance, run.test_sizes[site] if is_public else None)
        for site, table in tables.items()
    ]
    return noised_metrics_of(pool_noised(evaluations), classes)


def bytes_of(module: nn.Module) -> int:
    """Return the bytes of the weights that cross."""
    return sum(parameter.nbytes for parameter in trainable_parameters(module).values())


def mean_figure(replies: Mapping[str, Reply], sizes: Mapping[str, int], name: str) -> dict[str, Any]:
    """Return what sites of a simulation show of their training: a figure's mean by size, and each site's; and seconds.

    Empty where a site shows none, as real sites do.
    """
    by_figure = {figure: _by_site(replies, figure) for figure in (name, "seconds")}
    figures = by_figure[name]
    if not figures:
        return {"simulation_only": {"seconds": by_figure["seconds"]}} if by_figure["seconds"] else {}
    mean = sum(value * sizes[site] for site, value in figures.items()) / sum(sizes[site] for site in figures)
    return {name: mean, "simulation_only": {figure: by_site for figure, by_site in by_figure.items() if by_site}}


def _by_site(replies: Mapping[str, Reply], name: str) -> dict[str, float]:
    """Return a figure by site, or nothing if one of them shows none."""
    figures: dict[str, float] = {}
    for site, reply in replies.items():
        shown = reply.content.get("simulation_only")
        value = shown.get(name) if isinstance(shown, dict) else None
        if not isinstance(value, float):
            return {}
        figures[site] = value
    return figures


def fits_module(module: nn.Module, *, frozen: Collection[str] = ()) -> Any:
    """Return the check that a reply holds the weights of a module but frozen ones, and that the site built the same."""
    structure = structure_sha256(module)
    expected = {name: array for name, array in get_weights(module).items() if name not in frozen}

    def check(site: str, reply: Reply) -> None:
        if reply.content.get("structure") != structure:
            raise ExchangeError(
                f"Every site builds the same network. '{site}' built another one; compare the versions of FrEIA, numpy "
                "and torch there."
            )
        check_arrays(reply.arrays, expected)

    return check

"""What a study will spend and take, before it runs: epsilon by stage, bytes, memory, time.

Epsilons and bytes are computed from the plan. Time and memory are measured on this machine, by doing a little of each
kind of work, and multiplied; sites that share the machine's cores take turns.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadp_fl.classifier.fixed import features_of, split_features
from cadp_fl.classifier.models import build_classifier
from cadp_fl.classifier.quadratic import QuadraticDiscriminant
from cadp_fl.classifier.training import log_odds, train_class_balanced, train_epochs
from cadp_fl.config import ClassifierConfig, StudyConfig, load_study
from cadp_fl.data.codec import codec_of, input_shape
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset
from cadp_fl.data.units import Units
from cadp_fl.device import resolve_device
from cadp_fl.features.front_end import front_end_of
from cadp_fl.federated.evaluation import evaluation_plan
from cadp_fl.federated.methods import build_methods
from cadp_fl.federated.methods.base import Method, PhaseCost, plan_of
from cadp_fl.federated.methods.parts.central import draw_coordinates
from cadp_fl.flow.bayes import FlowBayes
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.private_training import train_flow_privately
from cadp_fl.flow.storage import FlowCard
from cadp_fl.flow.training import Progress, train_flow
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import StageCost, claim_of, stage_costs
from cadp_fl.privacy.dpsgd import cross_entropy_of, train_dp_sgd
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.mechanisms import GaussianMechanism, Mechanism, PrivUnitMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Against
from cadp_fl.privacy.shuffling import best_threshold
from cadp_fl.release.privatize import ReleaseSettings, privatize, release_directions, released_dims
from cadp_fl.site.moments import noised_moments
from cadp_fl.study.engine import check_engine, sites_at_once
from cadp_fl.study.run import check_study

__all__ = ["Estimate", "PhaseEstimate", "estimate_study"]

PROBE_RECORDS = 256
PROBE_FITTED = 4096
"""Of a discriminant that is fitted in closed form: its matrices are a small part of that many records' work."""

PROBE_STEPS = 8
"""Of DP-SGD: fixed features are computed once for the steps of a round, and are so a small part of each."""

START_SECONDS = 15.0
"""Flower's simulation engine, until the first message."""

EXCHANGE_SECONDS = 0.3
"""A round's messages, without the work; as measured with three sites on two cores."""

ENGINE_BYTES = 1 << 30
"""Flower's and Ray's own processes together, without the sites and the server."""


@dataclass(frozen=True)
class PhaseEstimate:
    """What one phase takes: bytes of all its rounds for one site, and wall time."""

    phase: str
    rounds: int
    down: int
    up: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a study will spend and take.

    Attributes:
        stages: by method, each by itself, on training units and then on test units.
        totals: by method, what all its stages on training units compose to; None without an end-to-end guarantee.
        against: whom each holds against.
        delta: of every total.
        unused_shares: keys of `budget.split` that change nothing about a method which spends budget, by the method.
        phases: in order.
        sites_at_once: number of sites that compute at the same time.
        memory_bytes: of all processes together.
        seconds: of the whole run.
        noise: of the study, entropy or seeded.
    """

    stages: dict[str, tuple[StageCost, ...]]
    totals: dict[str, float | None]
    against: dict[str, Against]
    delta: float
    unused_shares: dict[str, tuple[str, ...]]
    phases: tuple[PhaseEstimate, ...]
    sites_at_once: int
    memory_bytes: int
    seconds: float
    noise: str

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as plain JSON values."""
        return asdict(self)


def estimate_study(config: Path, overrides: Iterable[str]) -> Estimate:
    """Return what a study will spend and take on this machine. Nothing is written.

    Raises:
        InputError: the study is wrong.
    """
    study = load_study(config, overrides)
    study, sites, methods, _ = check_study(study)
    check_engine(study)
    at_once = sites_at_once(study.sites)
    plans = {method.name: plan_of(method, study) for method in methods}
    classes = len(sites[0].train.schema.classes)
    tests = {method.name: evaluation_plan(study, method.name, classes) for method in methods}
    threads = torch.get_num_threads()
    torch.set_num_threads(study.sites.cpus_per_client)
    try:
        phases = _phases(study, methods, sites, at_once)
    finally:
        torch.set_num_threads(threads)
    return Estimate(
        stages={name: (*stage_costs(plan), *stage_costs(tests[name])) for name, plan in plans.items()},
        totals={name: claim_of(plan).epsilon for name, plan in plans.items()},
        against={name: plan.against for name, plan in plans.items()},
        delta=study.budget.delta,
        unused_shares=_unused_shares(study, methods),
        phases=tuple(phases),
        sites_at_once=at_once,
        memory_bytes=ENGINE_BYTES + (at_once + 1) * _peak_bytes(),
        seconds=START_SECONDS + sum(phase.seconds for phase in phases),
        noise=study.noise,
    )


def _unused_shares(study: StudyConfig, methods: list[Method]) -> dict[str, tuple[str, ...]]:
    """Return the keys of `budget.split` that change nothing about a method: it has no such stage beside its last one.

    That is found out by changing each share a little. Methods that spend no budget have no use for any, and are left
    out.
    """
    events = {method.name: method.events() for method in methods if plan_of(method, study).protected().events}
    unused: dict[str, tuple[str, ...]] = dict.fromkeys(events, ())
    for stage, share in study.budget.split.items():
        split = study.budget.split | {stage: 0.9 * share}
        other = study.model_copy(update={"budget": study.budget.model_copy(update={"split": split})})
        for method in build_methods(other):
            if events.get(method.name) == method.events():
                unused[method.name] += (stage,)
    return {name: stages for name, stages in unused.items() if stages}


def _phases(study: StudyConfig, methods: list[Method], sites: list[SiteData], at_once: int) -> list[PhaseEstimate]:
    schema, sizes = sites[0].train.schema, [len(site.train) for site in sites]
    probe = _Probe(study, max((site.train for site in sites), key=len))
    turns = math.ceil(len(sites) / at_once)
    estimates = []
    for cost in (cost for method in methods for cost in method.costs(schema, sizes)):
        seconds = probe.seconds(cost) * (1 if cost.work in ("central", "fit") else turns)
        estimates.append(
            PhaseEstimate(
                cost.phase,
                cost.rounds,
                cost.rounds * cost.down,
                cost.rounds * cost.up,
                cost.rounds * (seconds + EXCHANGE_SECONDS),
            )
        )
    return estimates


def _typical(name: str) -> Mechanism:
    """Return a mechanism that takes as long as one does at a usual budget: only PrivUnit's time depends on it."""
    return (
        PrivUnitMechanism(5.0, best_threshold(5.0)) if name == PrivUnitMechanism.name else GaussianMechanism(1.0, 1.0)
    )


class _Probe:
    """Does a little of each kind of work, and remembers how long a record took."""

    def __init__(self, study: StudyConfig, records: Dataset) -> None:
        self._study, self._records = study, records.select(torch.arange(min(PROBE_RECORDS, len(records))).numpy())
        self._device = resolve_device(study.device)
        self._known: dict[tuple[str, ClassifierConfig | None], float] = {}

    def seconds(self, cost: PhaseCost) -> float:
        """Return the seconds of one round's records at the largest site, or at the server."""
        key = (cost.work, cost.classifier)
        if key not in self._known:
            work: dict[str, Callable[[ClassifierConfig], object]] = {
                "flow": lambda _: self._train_flow(),
                "moments": lambda _: self._tell_moments(),
                "dp-flow": lambda _: self._train_flow_privately(),
                "bayes": lambda _: self._apply_bayes(),
                "release": lambda _: self._release(),
                "classifier": self._train_classifier,
                "dp-sgd": self._train_dp_sgd,
                "central": self._train_central,
                "fit": self._fit,
            }
            config = cost.classifier or self._study.classifier
            work[cost.work](config)  # the first call also loads code and allocates
            start = time.perf_counter()
            work[cost.work](config)
            seconds, passes = time.perf_counter() - start, PROBE_STEPS if cost.work == "dp-sgd" else 1
            self._known[key] = seconds / (PROBE_FITTED if cost.work == "fit" else passes * len(self._records))
        return self._known[key] * cost.records

    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = torch.from_numpy(self._records.records), torch.from_numpy(self._records.labels)
        return images.to(self._device), labels.to(self._device)

    def _condition(self) -> torch.Tensor:
        return torch.from_numpy(self._records.condition).to(self._device)

    def _flow(self) -> Any:
        card = FlowCard(self._study.flow.cold().architecture(), self._records.schema, self._study.seed, "private")
        return card.build().to(self._device)

    def _classifier(self, config: ClassifierConfig) -> torch.nn.Module:
        schema = self._records.schema
        return build_classifier(config, input_shape(schema), len(schema.classes), seed=0).to(self._device)

    def _train_flow(self) -> None:
        training = self._study.flow.training.model_copy(update={"rounds": 1, "local_epochs": 1})
        train_flow(
            self._flow(),
            self._tensors()[0],
            self._condition(),
            training,
            codec=codec_of(self._records.schema),
            progress=Progress(0, 1),
            generator=torch.Generator(device=self._device).manual_seed(0),
        )

    def _warm_flow(self) -> ConditionalFlow:
        config = self._study.flow.architecture()
        flow: ConditionalFlow = FlowCard(config, self._records.schema, self._study.seed, "private").build()
        return flow.to(self._device)

    def _tell_moments(self) -> None:
        flow_config, units = self._study.flow, Units.of(self._records, "record")
        front = front_end_of(flow_config.front_end, input_shape(self._records.schema))
        events = Budget.of(self._study.budget, self._study.labels).moments_events(
            flow_config.moments, flow_config.front_end.radius
        )
        for event in events:
            centre = np.zeros(front.dims)
            noised_moments(front, self._records, units, event, centre, noise=NoiseSource.from_entropy())

    def _train_flow_privately(self) -> None:
        flow = self._warm_flow()
        train_flow_privately(
            flow,
            self._tensors()[0],
            self._condition(),
            PoissonGaussian(stage="probe", clip_norm=1.0, noise_std=1.0, sampling_rate=1.0, steps=1),
            units=torch.arange(len(self._records), device=self._device)[:, None],
            copies=1,
            learning_rate=1e-3,
            codec=codec_of(self._records.schema),
            progress=Progress(0, 1),
            noise=NoiseSource.from_entropy(),
            frozen=flow.frozen_names(["coordinates", "affine"] if flow.coordinates else []),
        )

    def _apply_bayes(self) -> None:
        log_odds(FlowBayes(self._warm_flow(), codec=codec_of(self._records.schema)), self._tensors()[0])

    def _release(self) -> None:
        flow = self._warm_flow() if self._study.flow.is_warm else self._flow()
        settings = ReleaseSettings(
            mechanism=_typical(self._study.release.mechanism),
            latent_dims=released_dims(self._study.release, flow),
            shrinkage=self._study.release.shrinkage,
            directions=release_directions(self._study.release, flow),
        )
        parts, _ = privatize(flow, self._records, settings, noise=NoiseSource.from_entropy(), device=self._device)
        list(parts)

    def _train_classifier(self, config: ClassifierConfig) -> None:
        model = self._classifier(config)
        train_epochs(
            model,
            *self._tensors(),
            epochs=1,
            batch_size=config.central.batch_size,
            optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
            generator=torch.Generator(),
        )

    def _train_dp_sgd(self, config: ClassifierConfig) -> None:
        images, labels = self._tensors()
        event = PoissonGaussian(stage="probe", clip_norm=1.0, noise_std=1.0, sampling_rate=1.0, steps=PROBE_STEPS)
        fixed, learned = split_features(self._classifier(config))
        train_dp_sgd(
            learned,
            cross_entropy_of(features_of(fixed, images), labels),
            event,
            units=torch.arange(len(labels), device=self._device)[:, None],
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
            noise=NoiseSource.from_entropy(),
        )

    def _fit(self, config: ClassifierConfig) -> None:
        model = self._classifier(config)
        assert isinstance(model, QuadraticDiscriminant), "what is fitted is one"
        u, labels = draw_coordinates(self._warm_flow().cpu(), PROBE_FITTED, generator=torch.Generator())
        model.fit(u.to(self._device), labels.to(self._device), ridge=self._study.flow.moments.ridge)

    def _train_central(self, config: ClassifierConfig) -> None:
        once = config.central.model_copy(update={"epochs": 1})
        list(
            train_class_balanced(
                self._classifier(config), *self._tensors(), once, checkpoints=1, generator=torch.Generator()
            )
        )


def _peak_bytes() -> int:
    """Return the largest memory that this process had, which did all that a site does."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

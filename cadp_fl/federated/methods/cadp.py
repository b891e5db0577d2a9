"""`cadp` and `cadp-given-flow`: a flow, then privatized records, then a classifier.

Given the flow, the release is (epsilon, delta)-DP. `cadp` takes a flow in which the sites' records had no unprotected
part: one that was trained on public records. `cadp-given-flow` is the paper's protocol: the flow is trained on the same
records without DP, leaves the sites, and is not covered.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from cadp_fl.classifier.models import build_classifier
from cadp_fl.classifier.training import train_class_balanced
from cadp_fl.config import ReleaseConfig, Settings, StudyConfig, parse
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError, ExchangeError
from cadp_fl.federated.methods.base import (
    PhaseCost,
    StudyRun,
    Trained,
    bytes_of,
    evaluate_at_sites,
    fits_module,
    mean_figure,
    plan_of,
)
from cadp_fl.federated.releases import fetch_releases
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.storage import FlowCard, check_same_flow, flow_sha256, load_flow, save_flow
from cadp_fl.privacy.accounting import DeclaredPublic, Event, RandomizedResponse
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import FLOW_WEIGHTS, PRIVATE_FLOW, claim_of, relation_of
from cadp_fl.privacy.mechanisms import Mechanism, mechanism_type
from cadp_fl.release.dataset import ReleasedRecords, load_release
from cadp_fl.release.manifest import Manifest, ReleaseClaim, manifest_from_json
from cadp_fl.release.privatize import ReleaseSettings
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import FlowRequest, ReleaseRequest
from cadp_fl.weights import average, get_weights, set_weights

__all__ = ["CHECKPOINTS", "Cadp", "CadpGivenFlow", "declared_public", "release_request"]

CHECKPOINTS = 5
"""Evaluations of the central classifier over its training."""


class _Settings(Settings):
    """The methods take their settings from the study's flow, release and classifier."""


class CadpGivenFlow:
    """FedAvg of a conditional flow, one release a site, a central classifier on the pooled releases."""

    name: ClassVar[str] = "cadp-given-flow"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        parse(_Settings, settings, where=f"methods.{self.name}")
        self._study = study
        release, budget = study.release, Budget.of(study.budget, study.labels)
        self._counts, self._labels = budget.count_events(), budget.label_events()
        self._mechanism = mechanism_type(release.mechanism).calibrated(
            release.clip_norm,
            budget.epsilon,
            budget.delta,
            records_per_unit=budget.records_per_unit,
            beside=(*self._counts, *self._labels),
        )
        self._pretrained = load_flow(study.flow.pretrained.path) if study.flow.pretrained else None
        if self._pretrained is not None:
            _check_declaration(study, self._pretrained[1])
            self._pretrained[0].frozen_names(study.flow.freeze)

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        rounds = 0 if self._study.flow.is_fixed else self._study.flow.training.rounds
        flow = {f"{self.name}/flow": rounds} if rounds else {}
        return flow | {f"{self.name}/release": 1, f"{self.name}/fetch": 1, f"{self.name}/central": CHECKPOINTS}

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site."""
        return (self._flow_event(), *self._counts, *self._labels, self._mechanism.event())

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        study, largest, dims = self._study, max(sizes), math.prod(schema.shape)
        training, central = study.flow.training, study.classifier.central
        flow = bytes_of(FlowCard(study.flow.architecture(), schema, study.seed, "private").build())
        model = bytes_of(build_classifier(study.classifier, schema.shape, len(schema.classes), seed=study.seed))
        steps = central.epochs * math.ceil(sum(sizes) / central.batch_size) * central.batch_size
        costs = [
            PhaseCost(f"{self.name}/release", 1, flow, 0, "release", largest),
            PhaseCost(f"{self.name}/fetch", 1, 0, largest * (dims + 8 + len(schema.attributes)), "release", 0),
            PhaseCost(f"{self.name}/central", CHECKPOINTS, model, 0, "central", steps // CHECKPOINTS, study.classifier),
        ]
        if study.flow.is_fixed:
            return costs
        rounds = PhaseCost(f"{self.name}/flow", training.rounds, flow, flow, "flow", largest * training.local_epochs)
        return [rounds, *costs]

    def run(self, run: StudyRun) -> Trained:
        """Train the flow, collect the releases, train the classifier."""
        flow, card = self._flow(run)
        folders = self._releases(run, flow, card)
        released = load_release(*folders)
        trained = self._train_classifier(run, released)
        release = self._release_settings(flow.dims)
        trained.release = {
            "mechanism": self._mechanism.name,
            **release.parameters(flow.dims).model_dump(),
            "correlation": release.correlation,
            **_released_labels(released),
        }
        return trained

    def _flow_event(self) -> Event:
        """Return what the flow costs: nothing if it is fixed and public, everything otherwise."""
        pretrained = self._study.flow.pretrained
        if not self._study.flow.is_fixed or pretrained is None or self._pretrained is None:
            return FLOW_WEIGHTS
        if pretrained.trained_on == "private":
            return PRIVATE_FLOW
        return declared_public(*self._pretrained)

    def _flow(self, run: StudyRun) -> tuple[ConditionalFlow, FlowCard]:
        """Return the flow that records are privatized with: trained now, or before an interruption."""
        phase, path = f"{self.name}/flow", run.folder / "models" / "flow.safetensors"
        if run.is_finished(phase):
            return load_flow(path)
        if self._pretrained is None:
            card = FlowCard(run.study.flow.architecture(), run.schema, run.study.seed, "private")
            flow = card.build()
        else:
            flow, card = self._pretrained
            check_same_flow(run.study.flow, run.schema, card)
            if (pretrained := run.study.flow.pretrained) and pretrained.trained_on == "private":
                card = replace(card, trained_on="private")  # what is stored of this run says no more than it declares
        if not run.study.flow.is_fixed:
            self._train_flow(run, flow, card)
            card = FlowCard(card.config, run.schema, card.seed, "private", run.study.noise)
        save_flow(path, flow, card)
        run.finish(phase)
        return flow, card

    def _train_flow(self, run: StudyRun, flow: ConditionalFlow, card: FlowCard) -> None:
        """Federated averaging of the flow's trainable tensors, in place."""
        config, phase = run.study.flow.model_copy(update={"pretrained": None}), f"{self.name}/flow"
        freeze = run.study.flow.freeze
        rounds, check = config.training.rounds, fits_module(flow, frozen=flow.frozen_names(freeze))
        for number in range(1, rounds + 1):
            settings = FlowRequest(method=self.name, flow=config, seed=card.seed, freeze=freeze, round=number)
            weights = get_weights(flow)
            request = Request("train_flow", settings.model_dump(mode="json"), weights)
            replies = run.federation.ask(request, phase=phase, round=number, of=rounds, check=check)
            set_weights(flow, weights | average({site: reply.arrays for site, reply in replies.items()}, run.sizes))
            run.federation.recorder.round(phase, number, rounds, **mean_figure(replies, run.sizes, "bits_per_dim"))

    def _release_settings(self, dims: int) -> ReleaseSettings:
        release = self._study.release
        return ReleaseSettings(self._mechanism, release.latent_dims or dims, release.shrinkage, *self._labels)

    def _releases(self, run: StudyRun, flow: ConditionalFlow, card: FlowCard) -> list[Path]:
        """Ask each site for its release, fetch it, and return the folders of all."""
        phase, folder = f"{self.name}/fetch", run.release_folder(self.name)
        if not run.is_finished(phase):
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted attempt had fetched
            manifests = self._ask_for_releases(run, flow, card)
            fetch_releases(run.federation, manifests, folder, phase=phase)
            run.finish(f"{self.name}/release")  # not before all is fetched: what a site keeps ready may go with it
            run.finish(phase)
        return sorted(folder.iterdir())

    def _ask_for_releases(self, run: StudyRun, flow: ConditionalFlow, card: FlowCard) -> dict[str, Manifest]:
        """Let each site privatize its records, and return the manifests."""
        settings = release_request(self.name, run.study.release, self._mechanism, flow, card, *self._labels)
        weights = get_weights(flow)
        expected = {
            "dataset": run.schema,
            "mechanism": settings.mechanism,
            "parameters": self._release_settings(flow.dims).parameters(flow.dims),
            "flow_sha256": flow_sha256(flow),
            "noise": run.study.noise,
        }
        study = run.study
        plan = plan_of(self, study)
        relation = relation_of(study.budget.unit, study.labels, run.schema.attributes)
        allowed = ReleaseClaim.of(claim_of(plan), relation)
        manifests: dict[str, Manifest] = {}

        def check(site: str, reply: Reply) -> None:
            manifest = manifest_from_json(str(reply.content.get("manifest", "")))
            records = run.sizes[site] * study.budget.records_per_unit
            for field, value in (expected | {"site": site, "records": records}).items():
                if getattr(manifest, field) != value:
                    raise ExchangeError(
                        f"A release is the one that was asked for. In that of '{site}', {field} is "
                        f"{getattr(manifest, field)!s:.100}, not {value!s:.100}; refuse it."
                    )
            if manifest.claim.exceeds(allowed):
                raise ExchangeError(
                    f"A release claims no more than its plan allows, {allowed.guarantee}. That of '{site}' claims "
                    f"{manifest.claim.guarantee}, or other numbers; refuse it."
                )
            manifests[site] = manifest

        phase = f"{self.name}/release"
        request = Request("release", settings.model_dump(mode="json"), weights)
        replies = run.federation.ask(request, phase=phase, check=check)
        run.federation.recorder.round(phase, 1, 1, records={site: manifests[site].records for site in replies})
        return {site: manifests[site] for site in replies}

    def _train_classifier(self, run: StudyRun, released: ReleasedRecords) -> Trained:
        """Train on privatized records alone, and evaluate at the sites: at every checkpoint, or once with noise."""
        config, phase = run.study.classifier, f"{self.name}/central"
        model = run.classifier(config)
        losses = train_class_balanced(
            model,
            released.images,
            released.labels,
            config.central,
            checkpoints=CHECKPOINTS,
            generator=torch.Generator().manual_seed(run.study.seed),
        )
        for number, loss in enumerate(losses, start=1):
            run.federation.recorder.round(phase, number, CHECKPOINTS, loss=loss)
            if run.evaluates(number, CHECKPOINTS):
                pooled, per_site = evaluate_at_sites(
                    run, model, config, phase=f"{self.name}/evaluate", round=number, of=CHECKPOINTS
                )
        return Trained(model, config, pooled, per_site)


class Cadp(CadpGivenFlow):
    """`cadp-given-flow` with a flow that is fixed and public, so that the release is all that leaves."""

    name: ClassVar[str] = "cadp"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        super().__init__(settings, study)
        if not isinstance(self._flow_event(), DeclaredPublic):
            raise ConfigError(
                "The method cadp takes a flow that no private record had a part in. This study's flow is trained on "
                "the sites' records; give flow.pretrained with trained_on: public and freeze: [all], or use the method "
                "cadp-given-flow."
            )


def _released_labels(released: ReleasedRecords) -> dict[str, Any]:
    """Return how many records each site released of every class, and the classes of which no site released any."""
    by_site = {manifest.site: manifest.released_labels for manifest in released.manifests}
    empty = [name for name in released.schema.classes if not any(counts[name] for counts in by_site.values())]
    return {"released_labels": by_site, "classes_without_records": empty}


def release_request(
    method: str,
    release: ReleaseConfig,
    mechanism: Mechanism,
    flow: ConditionalFlow,
    card: FlowCard,
    labels: RandomizedResponse | None = None,
) -> ReleaseRequest:
    """Return the request to privatize every training record of a site with a flow."""
    return ReleaseRequest(
        method=method,
        flow=card.config.architecture(),
        seed=card.seed,
        mechanism=mechanism.name,
        event=mechanism.event(),
        labels=labels,
        latent_dims=release.latent_dims or flow.dims,
        shrinkage=release.shrinkage,
        shard_records=release.shard_records,
    )


def declared_public(flow: ConditionalFlow, card: FlowCard) -> DeclaredPublic:
    """Return the event of a flow that is taken to be public, by declaration."""
    name = "".join(each if each.isprintable() else "?" for each in card.dataset.name)
    what = f"the flow was trained on '{name}', in which no private record had a part"
    return DeclaredPublic(stage="flow", what=what, sha256=flow_sha256(flow), dataset=card.dataset.name)


def _check_declaration(study: StudyConfig, card: FlowCard) -> None:
    """Check that a stored flow was trained on what the study declares.

    Raises:
        ConfigError: it is not.
    """
    pretrained = study.flow.pretrained
    assert pretrained is not None
    if pretrained.trained_on == "public" and card.trained_on == "private":
        raise ConfigError(
            f"A flow is public if no private record had a part in it. '{pretrained.path}' says that it was trained on "
            "private records; set flow.pretrained.trained_on: private."
        )

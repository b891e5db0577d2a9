"""A flow, one release a site, a central classifier on the pooled releases: what `cadp` and its kin have in common.

A site's release is M(f(x, y)) for each of its records x with label y: the flow f encodes, the mechanism M clips and
noises the latent, and f^-1 decodes it under y (or under y' by randomized response).
"""

import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from cadp_fl.classifier.models import check_classifier
from cadp_fl.config import ClassifierConfig, ReleaseConfig, StudyConfig
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ExchangeError
from cadp_fl.federated.methods.base import PhaseCost, StudyRun, Trained, bytes_of, plan_of
from cadp_fl.federated.methods.parts.central import CHECKPOINTS, central_cost
from cadp_fl.federated.methods.parts.flow_source import FlowSource
from cadp_fl.federated.releases import fetch_releases
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.storage import FlowCard, flow_sha256
from cadp_fl.privacy.claims import claim_of, relation_of
from cadp_fl.privacy.cohort import Labelled
from cadp_fl.privacy.events import Event, RandomizedResponse
from cadp_fl.privacy.mechanisms import Mechanism
from cadp_fl.release.cohort import why_not_shuffled
from cadp_fl.release.dataset import ReleasedRecords, load_release
from cadp_fl.release.manifest import Manifest, ReleaseClaim, manifest_from_json
from cadp_fl.release.privatize import (
    ReleaseSettings,
    calibrated,
    check_release,
    randomized_attributes,
    release_directions,
    released_dims,
    temperature_of,
)
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import DIRECTIONS, MOMENTS, MadeOf, ReleaseRequest
from cadp_fl.weights import get_weights

__all__ = ["ReleasingMethod", "release_request"]


class ReleasingMethod(ABC):
    """A flow, one release a site, a central classifier on the pooled releases."""

    name: ClassVar[str]

    def __init__(self, study: StudyConfig, flow: FlowSource, classifier: ClassifierConfig) -> None:
        self._study, self._flow, self.classifier = study, flow, classifier
        check_classifier(classifier)
        budget, release = flow.budget, study.release
        counts = () if self._flow.tells_counts else budget.count_events()
        self._mechanism, self._labels = calibrated(release, budget, (*self._flow.protected(), *counts))
        self._beside = (*counts, *self._labels)

    @abstractmethod
    def classify(self, run: StudyRun, flow: ConditionalFlow, released: ReleasedRecords) -> Trained:
        """Return the central classifier, and its figures."""

    def _central_cost(self, schema: Schema, released: int) -> PhaseCost:
        """Return what the central phase will take on as many released records."""
        return central_cost(self._study, self.classifier, schema, method=self.name, records=released, fits=False)

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        own = {f"{self.name}/release": 1, f"{self.name}/fetch": 1, f"{self.name}/central": CHECKPOINTS}
        return self._flow.phases() | own

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site."""
        return (*self._flow.events(), *self._beside, self._mechanism.event())

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        largest, dims, release = max(sizes), math.prod(schema.shape), self._study.release
        made = self._flow.card(schema).build()
        check_release(release.mechanism, release.shrinkage, released_dims(release, made), made.dims)
        randomized_attributes(release, schema)
        flow = bytes_of(made)
        return [
            *self._flow.costs(schema, sizes),
            PhaseCost(phase=f"{self.name}/release", rounds=1, down=flow, up=0, work="release", records=largest),
            PhaseCost(
                phase=f"{self.name}/fetch",
                rounds=1,
                down=0,
                up=largest * (dims + 8 + len(schema.attributes)),
                work="release",
                records=0,
            ),
            self._central_cost(schema, sum(sizes)),
        ]

    def run(self, run: StudyRun) -> Trained:
        """Train the flow, collect the releases, train the classifier."""
        flow, card = self._flow.make(run)
        folders = self._releases(run, flow, card)
        released = load_release(*folders)
        trained = self.classify(run, flow, released)
        release = self._release_settings(flow, run.schema)
        trained.release = {
            "mechanism": self._mechanism.name,
            **release.parameters(flow.dims).model_dump(),
            "correlation": release.correlation,
            "local_epsilon": self._mechanism.event().local_epsilon,
            "not_shuffled": self._why_not_shuffled(run.schema),
            **_released_labels(released),
        }
        return trained

    def _why_not_shuffled(self, schema: Schema) -> str | None:
        """Return why messages are claimed one by one, where the mechanism's might be shuffled; None otherwise."""
        if not isinstance(self._mechanism, Labelled):
            return None
        return why_not_shuffled(self._study, attributes=len(schema.attributes)) or None

    def _release_settings(self, flow: ConditionalFlow, schema: Schema) -> ReleaseSettings:
        release = self._study.release
        return ReleaseSettings(
            mechanism=self._mechanism,
            latent_dims=released_dims(release, flow),
            shrinkage=release.shrinkage,
            labels=next(iter(self._labels), None),
            directions=release_directions(release, flow),
            temperature=temperature_of(release),
            randomized=randomized_attributes(release, schema),
        )

    def _releases(self, run: StudyRun, flow: ConditionalFlow, card: FlowCard) -> list[Path]:
        """Ask each site for its release, fetch it, and return the folders of all."""
        phase, folder = f"{self.name}/fetch", run.release_folder(self.name)
        if not run.is_finished(phase):
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted attempt had fetched
            manifests = self._ask_for_releases(run, flow, card)
            review_seconds = run.study.sites.review_timeout_seconds if run.federation.is_deployed else 0.0
            fetch_releases(run.federation, manifests, folder, phase=phase, review_seconds=review_seconds)
            run.finish(f"{self.name}/release")  # not before all is fetched: what a site keeps ready may go with it
            run.finish(phase)
        return sorted(folder.iterdir())

    def _ask_for_releases(self, run: StudyRun, flow: ConditionalFlow, card: FlowCard) -> dict[str, Manifest]:
        """Let each site privatize its records, and return the manifests."""
        settings = release_request(self.name, run.study.release, self._mechanism, flow, card, *self._labels)
        moments, weights = self._flow.made_of(run, flow), get_weights(flow)
        if moments is not None:
            settings = settings.model_copy(update={"made_of": MadeOf(records=moments.records, sites=moments.sites)})
            weights |= {f"{MOMENTS}{name}": array for name, array in moments.arrays().items()}
        release = self._release_settings(flow, run.schema)
        if release.directions is not None:
            weights |= {DIRECTIONS: release.directions.matrix}
        expected = {
            "dataset": run.schema,
            "mechanism": settings.mechanism,
            "parameters": release.parameters(flow.dims),
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
        latent_dims=released_dims(release, flow),
        shrinkage=release.shrinkage,
        temperature=temperature_of(release),
        randomized=randomized_attributes(release, card.dataset),
        shard_records=release.shard_records,
    )

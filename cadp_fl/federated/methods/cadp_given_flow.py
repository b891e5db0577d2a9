"""`cadp-given-flow`: the paper's protocol. A flow trained without DP, then privatized records, then a classifier.

The release alone is (epsilon, delta)-DP given the flow. The flow is not covered: it was trained on the same
records, and it leaves the site.
"""

from typing import Any, ClassVar

import numpy as np
import torch

from cadp_fl.classifier.training import train_class_balanced
from cadp_fl.config import Settings, StudyConfig, parse
from cadp_fl.errors import ExchangeError
from cadp_fl.federated.methods.base import StudyRun, Trained, evaluate_at_sites, fits_module, mean_figure
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.accounting import Event
from cadp_fl.privacy.mechanisms import mechanism_type
from cadp_fl.release.bundle import Bundle, manifest_from_json, unpack, write_bundle
from cadp_fl.release.privatize import ReleaseSettings
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import FLOW_WEIGHTS, FlowRequest, ReleaseRequest
from cadp_fl.weights import average, get_weights, set_weights, weights_sha256

__all__ = ["CadpGivenFlow"]

CHECKPOINTS = 5


class _Settings(Settings):
    """The method takes its settings from the study's flow, release and classifier."""


class CadpGivenFlow:
    """FedAvg of a conditional flow, one release a site, a central classifier on the pooled releases."""

    name: ClassVar[str] = "cadp-given-flow"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        parse(_Settings, settings, where=f"methods.{self.name}")
        self._study = study
        release, budget = study.release, study.budget
        self._mechanism = mechanism_type(release.mechanism).calibrated(release.clip_norm, budget.epsilon, budget.delta)

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        return {
            f"{self.name}/flow": self._study.flow.training.rounds,
            f"{self.name}/release": 1,
            f"{self.name}/central": CHECKPOINTS,
        }

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site."""
        return (FLOW_WEIGHTS, self._mechanism.event())

    def run(self, run: StudyRun) -> Trained:
        """Train the flow, collect the releases, train the classifier."""
        flow = self._train_flow(run)
        request = self._release_request(run, flow)
        images, labels = self._collect_releases(run, flow, request)
        trained = self._train_classifier(run, images, labels)
        trained.flow = flow
        trained.release = {
            "mechanism": request.mechanism,
            **self._mechanism.parameters(),
            "latent_dims": request.latent_dims,
            "dims": flow.dims,
            "shrinkage": request.shrinkage,
            "correlation": ReleaseSettings(self._mechanism, request.latent_dims, request.shrinkage).correlation,
        }
        return trained

    def _train_flow(self, run: StudyRun) -> ConditionalFlow:
        """Federated averaging of the flow's trainable tensors."""
        flow = ConditionalFlow(run.study.flow, run.schema.shape, len(run.schema.classes), seed=run.study.seed)
        rounds, phase = run.study.flow.training.rounds, f"{self.name}/flow"
        check = fits_module(flow)
        for number in range(1, rounds + 1):
            settings = FlowRequest(method=self.name, flow=run.study.flow, seed=run.study.seed, round=number)
            request = Request("train_flow", settings.model_dump(mode="json"), get_weights(flow))
            replies = run.federation.ask(request, phase=phase, round=number, of=rounds, check=check)
            set_weights(flow, average({site: reply.arrays for site, reply in replies.items()}, run.sizes))
            run.federation.recorder.round(phase, number, rounds, **mean_figure(replies, run.sizes, "bits_per_dim"))
        return flow

    def _release_request(self, run: StudyRun, flow: ConditionalFlow) -> ReleaseRequest:
        release = run.study.release
        return ReleaseRequest(
            method=self.name,
            flow=run.study.flow,
            seed=run.study.seed,
            mechanism=release.mechanism,
            event=self._mechanism.event(),
            latent_dims=release.latent_dims or flow.dims,
            shrinkage=release.shrinkage,
            shard_records=release.shard_records,
        )

    def _collect_releases(
        self, run: StudyRun, flow: ConditionalFlow, settings: ReleaseRequest
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ask each site for its release, verify it, store it, and return the records of all."""
        weights = get_weights(flow)
        flow_sha256 = weights_sha256(weights)
        records = {}
        bundles: dict[str, Bundle] = {}

        def check(site: str, reply: Reply) -> None:
            manifest = manifest_from_json(str(reply.content.get("manifest", "")))
            names = [shard.name for shard in manifest.shards]
            if sorted(names) != sorted(reply.arrays):
                raise ExchangeError(f"A release holds the shards of its manifest. '{site}' sent others; ask it again.")
            bundle = Bundle(manifest, tuple(reply.arrays[name].tobytes() for name in names))
            if manifest.dataset != run.schema:
                raise ExchangeError(f"A release follows the study's schema. That of '{site}' does not; refuse it.")
            if manifest.flow_sha256 != flow_sha256 or manifest.site != site:
                raise ExchangeError(f"A release names its site and the flow it was sent. That of '{site}' does not.")
            if manifest.records != run.sizes[site]:
                raise ExchangeError(
                    f"A site releases one record for each of its {run.sizes[site]}. '{site}' sent {manifest.records}."
                )
            records[site] = unpack(bundle)
            bundles[site] = bundle

        phase = f"{self.name}/release"
        request = Request("release", settings.model_dump(mode="json"), weights)
        replies = run.federation.ask(request, phase=phase, check=check)
        for site in replies:
            write_bundle(bundles[site], run.folder / "releases" / site)
        run.federation.recorder.round(phase, 1, 1, records={site: len(records[site]) for site in replies})
        return (
            np.concatenate([records[site].images for site in replies]),
            np.concatenate([records[site].labels for site in replies]),
        )

    def _train_classifier(self, run: StudyRun, images: np.ndarray, labels: np.ndarray) -> Trained:
        """Train on privatized records alone, and evaluate at the sites at every checkpoint."""
        config, phase = run.study.classifier, f"{self.name}/central"
        model = run.classifier(config)
        losses = train_class_balanced(
            model,
            torch.from_numpy(images).to(run.device),
            torch.from_numpy(labels).to(run.device),
            config.central,
            checkpoints=CHECKPOINTS,
            generator=torch.Generator().manual_seed(run.study.seed),
        )
        for number, loss in enumerate(losses, start=1):
            run.federation.recorder.round(phase, number, CHECKPOINTS, loss=loss)
            pooled, per_site = evaluate_at_sites(
                run, model, config, phase=f"{self.name}/evaluate", round=number, of=CHECKPOINTS
            )
        return Trained(model, config, pooled, per_site)

"""What a site releases: privatized records, made once, kept ready, and fetched shard by shard."""

import contextlib
import math
import shutil
import warnings
from pathlib import Path

import numpy as np

from cadp_fl.config import PolicyConfig, parse
from cadp_fl.errors import ExchangeError, FlowOriginError, PrivacyError
from cadp_fl.evaluation.fidelity import fidelity_of, message_of
from cadp_fl.evaluation.pairs import pairs_of
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.directions import Directions
from cadp_fl.flow.moments import NoisedMoments, check_is_made_of
from cadp_fl.flow.storage import flow_sha256
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.claims import relation_of
from cadp_fl.privacy.cohort import Labelled
from cadp_fl.privacy.events import GaussianMoments, PoissonGaussian, Unprotected
from cadp_fl.privacy.mechanisms import mechanism_of
from cadp_fl.privacy.plan import Plan
from cadp_fl.privacy.policy import check_class_counts
from cadp_fl.release.bundle import open_bundle, write_bundle
from cadp_fl.release.manifest import Manifest, ReleaseClaim, ReleaseHead, manifest_to_json
from cadp_fl.release.privatize import ReleaseSettings, check_randomized, check_release, privatize, release_order
from cadp_fl.site.class_counts import ClassCounts
from cadp_fl.site.context import SiteContext
from cadp_fl.site.kept import Figures, Kept
from cadp_fl.site.moments import GivenMoments
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import DIRECTIONS, MOMENTS, FetchRequest, ReleaseRequest
from cadp_fl.site.review import Review

__all__ = ["Releases"]

LEAST_MEASURED, MOST_MEASURED = 20, 3000
"""Records of a release that are compared with their originals: fewer say nothing, and more take longer."""

MOST_MEASURED_VALUES = 1 << 23
"""Pixels that are compared, whatever the size of a record."""


class Releases:
    """The releases of a site.

    Args:
        context: what the site computes with.
        counts: what is known of its classes.
        given: what moments it gave out.
        policy: what it allows.
        outbox: folder of releases that are ready to be fetched.
        orders: folder for which record each released one is of, of a simulation; None where nobody may know.
        measures: whether what each keeps of its records is measured when it is made, for the steward alone.
    """

    def __init__(
        self,
        context: SiteContext,
        counts: ClassCounts,
        given: GivenMoments,
        policy: PolicyConfig,
        outbox: Path,
        orders: Path | None = None,
        measures: bool = False,
    ) -> None:
        self._context, self._counts, self._given, self._policy, self.outbox = context, counts, given, policy, outbox
        self._orders, self._measures = orders, measures

    def release(self, request: Request) -> Reply:
        """Privatize what each unit contributes, keep the release ready to be fetched, and answer with its manifest."""
        asked = parse(ReleaseRequest, request.settings)
        plan, schema = self._context.privacy_filter.plan(request, asked.method), self._context.data.train.schema
        flow = self._context.flow(asked.flow, asked.seed, request)
        mechanism = mechanism_of(asked.mechanism, asked.event)
        is_covered = asked.labels is not None or (isinstance(mechanism, Labelled) and mechanism.labels is not None)
        check_release(
            asked.mechanism,
            asked.shrinkage,
            asked.latent_dims,
            flow.dims,
            labels="covered" if is_covered else "public",
            attributes=len(schema.attributes),
        )
        check_randomized(asked.randomized, schema)
        if asked.labels is not None and isinstance(mechanism, Labelled):
            raise ExchangeError(f"A label is drawn once, by the mechanism {mechanism.name} itself. Found another draw.")
        if plan.labels == "covered" and not is_covered:
            raise PrivacyError("A release that covers labels draws them at random. Found one with the true ones.")
        check_class_counts(self._policy, self._counts.known(request, asked.method), schema.classes)
        if isinstance(asked.event, Unprotected) and self._context.mode.is_real:
            raise PrivacyError(
                f"A real site releases no record unprotected. Found the mechanism '{asked.mechanism}'; choose one that "
                "adds noise."
            )
        turned = request.arrays.get(DIRECTIONS)
        settings = ReleaseSettings(
            mechanism=mechanism,
            latent_dims=asked.latent_dims,
            shrinkage=asked.shrinkage,
            labels=asked.labels,
            directions=None if turned is None else Directions.of(turned, flow),
            temperature=asked.temperature,
            randomized=asked.randomized,
        )
        sha256 = flow_sha256(flow)
        self._context.privacy_filter.check_flow(plan, sha256, starts=False)
        self._check_is_made(plan, flow, asked, request)
        claim = ReleaseClaim.of(
            self._context.privacy_filter.claim(plan), relation_of(plan.unit, plan.labels, schema.attributes)
        )
        event_id = self._context.privacy_filter.spend(request, asked.method, *settings.cost)
        head = ReleaseHead(
            site=self._context.name,
            dataset=schema,
            mechanism=asked.mechanism,
            parameters=settings.parameters(flow.dims),
            noise=self._context.noise.kind,
            claim=claim,
            flow_sha256=sha256,
            event_id=event_id,
        )
        noise = self._context.noise.child("release", event_id)
        order = release_order(self._context.units, noise)
        parts, cost = privatize(
            flow,
            self._context.data.train,
            settings,
            noise=noise,
            device=self._context.device,
            units=self._context.units,
            part_records=asked.shard_records,
            order=order,
        )
        assert cost == settings.cost, "what was written down is what is drawn"
        folder = self.outbox / event_id
        if not self._context.mode.is_durable:  # a release of an interrupted run may lie there, whose ledger is gone
            shutil.rmtree(folder, ignore_errors=True)
        manifest = write_bundle(head, parts, folder)
        if self._measures:
            self._measure(manifest, plan, settings, flow, order)
        if self._orders is not None:
            _keep_order(self._orders / f"{event_id}.npy", order)
        return Reply({"manifest": manifest_to_json(manifest)})

    def _measure(
        self, manifest: Manifest, plan: Plan, settings: ReleaseSettings, flow: ConditionalFlow, order: np.ndarray
    ) -> None:
        """Keep for the steward what a release keeps of its records, or why that was not measured.

        Nothing of it leaves; see `cadp_fl.site.kept`. A release that was paid for is answered whatever happens here.
        How long it takes follows from public sizes, as far as arithmetic does.
        """
        with contextlib.suppress(OSError):  # a steward reads then that there are none
            Kept.forget(self.outbox, manifest.event_id)
            try:
                with warnings.catch_warnings(action="ignore"):  # a log would have them
                    kept = self._kept(manifest, plan, settings, flow, order)
            except Exception as error:
                kept = Kept(reason=f"it failed ({type(error).__name__}: {error!s:.200})")
            kept.store(self.outbox, manifest)

    def _kept(
        self, manifest: Manifest, plan: Plan, settings: ReleaseSettings, flow: ConditionalFlow, order: np.ndarray
    ) -> Kept:
        data, most = self._context.data, MOST_MEASURED_VALUES // math.prod(manifest.dataset.shape)
        pairs = pairs_of(
            open_bundle(self.outbox / manifest.event_id),
            data.train,
            self._context.units,
            order,
            flow,
            directions=settings.directions,
            latent_dims=settings.latent_dims,
            device=self._context.device,
            most=min(MOST_MEASURED, most),
        )
        if len(pairs) < LEAST_MEASURED:
            return Kept(reason=f"fewer than {LEAST_MEASURED} records can be compared with their originals")
        tested = np.random.default_rng(0).permutation(len(data.test))[: min(MOST_MEASURED, most)]
        message = message_of(settings.cost, plan.delta)
        figures = fidelity_of([pairs], data.test.select(np.sort(tested)), message=message)
        return Kept(records=len(pairs), figures=Figures.model_validate(figures))

    def _check_is_made(self, plan: Plan, flow: ConditionalFlow, asked: ReleaseRequest, request: Request) -> None:
        """Check that the plan's noised values were given out, and that the flow is made of them as far as that shows.

        Raises:
            FlowOriginError: it is not.
            ExchangeError: the moments that it is said to be made of are none.
        """
        self._context.privacy_filter.check_was_given_out(plan)
        moments = next((event for event in plan.events if isinstance(event, GaussianMoments)), None)
        if moments is None:
            return
        if asked.made_of is None or not asked.flow.is_warm:
            raise FlowOriginError(
                "A flow that is made of moments comes with them, added up over sites. Found none, or a flow without a "
                "warm start; send them."
            )
        if moments.shares > 1 and asked.made_of.sites <= moments.shares:
            raise FlowOriginError(
                f"Noise that {moments.shares} sites share is whole in the sum of {moments.shares + 1} sites: each "
                f"knows its own part. The sum that came is of {asked.made_of.sites}; ask all of them."
            )
        new = self._context.new_flow(asked.flow, asked.seed)
        moments_of_all = NoisedMoments.of(
            {name.removeprefix(MOMENTS): array for name, array in request.arrays.items() if name.startswith(MOMENTS)},
            moments,
            classes=len(self._context.data.train.schema.classes),
            dims=new.coarse_dims,
            records=asked.made_of.records,
            sites=asked.made_of.sites,
        )
        if self._context.mode.is_real:  # whose record of what was given out does not outlive an interruption
            self._given.check(
                plan.key,
                asked.flow.front_end,
                moments_of_all.centre,
                moments_of_all.moments.arrays(),
                is_alone=asked.made_of.sites == 1,
            )
        trained = any(event.stage == "flow" and isinstance(event, PoissonGaussian) for event in plan.events)
        check_is_made_of(flow.cpu(), new, moments_of_all, trained=trained)
        flow.to(self._context.device)

    def fetch(self, request: Request) -> Reply:
        """Answer with a shard that has been paid for: the same bytes, however often."""
        asked = parse(FetchRequest, request.settings)
        release = self.outbox / asked.event_id
        if not release.is_dir():
            raise ExchangeError(f"A shard is fetched from a release that was made. Found none of '{asked.event_id}'.")
        bundle = open_bundle(release)
        if self._policy.review:
            Review(self.outbox).check(bundle.manifest)
        data = bundle.data(asked.shard)
        if self._context.mode.is_real:
            Review(self.outbox).note_fetched(asked.event_id)
        return Reply({}, {"shard": np.frombuffer(data, dtype=np.uint8)})


def _keep_order(path: Path, order: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path, mode=0o600) as temporary, temporary.open("wb") as file:
        np.save(file, order)

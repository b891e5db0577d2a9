"""A flow inside of the budget: made of noised moments, trained by DP-SGD, or public, and all that it costs.

    public weights, or new ones --[moments: fit the affine layer]--[dp-sgd: train the blocks]--> the flow

Whatever the sites release is an event of the method's plan, so that a method may claim end-to-end what it does with the
flow. Fitting, averaging and moving averages at the server are post-processing.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cadp_fl.config import StudyConfig
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.federated.methods.base import PhaseCost, StudyRun, bytes_of, fits_module
from cadp_fl.federated.methods.parts.moments import ask_for_moments
from cadp_fl.federated.methods.parts.plain_flow import declared_public, load_pretrained
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.moments import NoisedMoments, check_parts, fit_affine, load_moments, save_moments
from cadp_fl.flow.storage import FlowCard, check_same_flow, load_flow, save_flow
from cadp_fl.privacy.accounting import calibrate_noise
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.dpsgd import WeightAverage
from cadp_fl.privacy.events import Event, GaussianMoments, GaussianSum, PoissonGaussian, ProtectedEvent
from cadp_fl.privacy.mechanisms import is_labelled
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import PrivateFlowRequest
from cadp_fl.weights import average, get_weights, set_weights

__all__ = ["DpFlow", "moments_of"]

WARM_SPLIT = {"labels": 0.02, "counts": 0.0}
"""Shares of epsilon beside a warm start, where the study names none. Counts come with the moments; a label is all but
drawn at random, since a record of every class is made of any latent, and the flow knows the classes."""


class DpFlow:
    """A flow of which every part is public, or an event.

    Args:
        method: that uses the flow.
        study: the config.
        is_all: whether the flow is all that the method spends on, so that its last stage gets the whole rest of the
            budget; else each stage gets its share.
        trains: whether the blocks are trained where the study says so; else they are left out.

    Attributes:
        budget: of the method.

    Raises:
        ConfigError: the study's flow would be trained without privacy, or not at all.
        BudgetError: no noise meets the budget.
    """

    def __init__(self, method: str, study: StudyConfig, *, is_all: bool = False, trains: bool = True) -> None:
        self._method, self._study = method, study
        config = study.flow
        self.budget = budget = _budget_of(study)
        self._trains = trains and config.privacy == "dp-sgd" and "all" not in config.freeze
        self._pretrained = load_pretrained(study)
        self._declared = (declared_public(*self._pretrained),) if self._pretrained else ()  # before it is trained
        self._check_is_accounted()
        self._moments: tuple[GaussianSum, GaussianMoments] | None = None
        if config.is_warm:
            self._moments = moments_of(study, is_all=is_all and not self._trains)
            check_parts(self._moments[1].part_stds)
        self._steps = self._calibrated(budget, is_all=is_all) if self._trains else None

    @property
    def tells_counts(self) -> bool:
        """Whether noised class counts come with the flow's moments."""
        return self._moments is not None

    def protected(self) -> tuple[ProtectedEvent, ...]:
        """Return what is noised of all that the flow costs."""
        return (*(self._moments or ()), *([self._steps] if self._steps else []))

    def events(self) -> tuple[Event, ...]:
        """Return everything that the flow will cost at a site."""
        return (*self._declared, *self.protected())

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        moments = {f"{self._method}/moments": 2} if self._moments else {}
        return moments | ({f"{self._method}/flow": self._study.flow.dp_sgd.rounds} if self._steps else {})

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        costs, flow = [], self.card(schema).build()
        if self._moments:
            dims, classes = flow.coarse_dims, len(schema.classes)
            numbers = dims + classes * (1 + dims) + (1 + classes) * dims * (dims + 1) // 2
            costs.append(
                PhaseCost(
                    phase=f"{self._method}/moments",
                    rounds=2,
                    down=8 * dims // 2,
                    up=8 * numbers // 2,
                    work="moments",
                    records=max(sizes),
                )
            )
        if self._steps:
            own, weights = self._study.flow.dp_sgd, bytes_of(flow)
            records = math.ceil(max(sizes) * own.sampling_rate * own.local_steps * own.copies)
            costs.append(
                PhaseCost(
                    phase=f"{self._method}/flow",
                    rounds=own.rounds,
                    down=weights,
                    up=weights,
                    work="dp-flow",
                    records=records,
                )
            )
        return costs

    def card(self, schema: Schema) -> FlowCard:
        """Return what the flow is before anything is known of records.

        Raises:
            ConfigError: the stored flow that it starts from is not the study's, or does not fit the records.
        """
        if self._pretrained is not None:
            check_same_flow(self._study.flow, schema, self._pretrained[1])
            return self._pretrained[1]
        config = self._study.flow.architecture()
        if config.is_warm and not self._trains:
            config = config.model_copy(update={"dense": config.dense.model_copy(update={"blocks": 0})})
        return FlowCard(config, schema, self._study.seed, "private", self._study.noise)

    def make(self, run: StudyRun) -> tuple[ConditionalFlow, FlowCard]:
        """Return the flow: made now, or before an interruption."""
        path, stages = run.flow_file(), list(self.phases()) or [f"{self._method}/flow"]
        left = [phase for phase in stages if not run.is_finished(phase)]
        flow, card = self._start(run) if left == stages else load_flow(path)
        for phase in left:
            if phase.endswith("/moments"):
                self._warm_start(run, flow, card)
            elif self._steps:
                card = self._train(run, flow, card)
            save_flow(path, flow, card)
            run.finish(phase)
        return flow, card

    def _start(self, run: StudyRun) -> tuple[ConditionalFlow, FlowCard]:
        """Return the flow before anything is known of records: stored and public, or new."""
        card = self.card(run.schema)
        return (card.build() if self._pretrained is None else self._pretrained[0]), card

    def _check_is_accounted(self) -> None:
        """Check that nothing of the flow is trained without privacy, and that it is made of something.

        Raises:
            ConfigError: it is not.
        """
        flow = self._study.flow
        is_private = flow.pretrained is not None and flow.pretrained.trained_on == "private"
        is_made = flow.is_warm or self._trains or (self._pretrained is not None and flow.is_fixed)
        if is_private or not is_made:
            story = "was trained on private records" if is_private else "is trained on the sites' records without it"
            raise ConfigError(
                f"The method {self._method} takes a flow that no private record had a part in without privacy. This "
                f"study's {story}; give flow.warm_start: moments, flow.privacy: dp-sgd, or flow.pretrained with "
                "trained_on: public and freeze: [all], or use the method cadp-given-flow."
            )

    def _calibrated(self, budget: Budget, *, is_all: bool) -> PoissonGaussian:
        """Return all steps of DP-SGD together, at the least noise that their part of the budget allows."""
        own = self._study.flow.dp_sgd

        def steps(noise_std: float) -> PoissonGaussian:
            return PoissonGaussian(
                stage="flow",
                clip_norm=own.clip_norm,
                noise_std=noise_std,
                sampling_rate=own.sampling_rate,
                steps=own.rounds * own.local_steps,
            )

        beside = (self._moments or ()) if is_all else ()
        epsilon = budget.epsilon if is_all else budget.share(self._share_of_steps)
        return steps(
            calibrate_noise(
                lambda noise_std: [*beside, steps(noise_std)], epsilon, budget.delta, clip_norm=own.clip_norm
            )
        )

    @property
    def _share_of_steps(self) -> str:
        """The stage whose share DP-SGD gets: moments, where there are none and the study names no other."""
        return "flow" if self._moments or "flow" in self._study.budget.split else "moments"

    def _warm_start(self, run: StudyRun, flow: ConditionalFlow, card: FlowCard) -> None:
        """Fit the flow's affine layer to the moments that the sites release, in place."""
        assert self._moments is not None, "asked for by the plan"
        front_end = card.config.front_end
        moments = ask_for_moments(run, front_end, *self._moments, phase=f"{self._method}/moments")
        save_moments(_moments_file(run), moments)
        fit_affine(flow, moments)

    def made_of(self, run: StudyRun, flow: ConditionalFlow) -> NoisedMoments | None:
        """Return the moments that the flow was made of, which sites check it against; None without a warm start."""
        if self._moments is None:
            return None
        return load_moments(
            _moments_file(run), self._moments[1], classes=len(run.schema.classes), dims=flow.coarse_dims
        )

    def _train(self, run: StudyRun, flow: ConditionalFlow, card: FlowCard) -> FlowCard:
        """Federated averaging of DP-SGD on the flow's blocks, in place; a moving average over rounds is what stays."""
        assert self._steps is not None, "asked for by the plan"
        own, phase = self._study.flow.dp_sgd, f"{self._method}/flow"
        freeze = (*self._study.flow.freeze, *(["coordinates", "affine"] if self._moments else []))
        event = self._steps.model_copy(update={"steps": own.local_steps})
        check = fits_module(flow, frozen=flow.frozen_names(freeze))
        means = WeightAverage(flow, own.ema)
        for number in range(1, own.rounds + 1):
            settings = PrivateFlowRequest(
                method=self._method,
                flow=card.config.architecture(),
                seed=card.seed,
                freeze=freeze,
                round=number,
                rounds=own.rounds,
                event=event,
                copies=own.copies,
                learning_rate=own.learning_rate,
            )
            weights = get_weights(flow)
            request = Request("train_private_flow", settings.model_dump(mode="json"), weights)
            replies = run.federation.ask(request, phase=phase, round=number, of=own.rounds, check=check)
            set_weights(flow, weights | average({site: reply.arrays for site, reply in replies.items()}, run.sizes))
            means.update()
            run.federation.recorder.round(phase, number, own.rounds)
        means.replace()
        return replace(card, trained_on="private", dataset=run.schema, noise=run.study.noise)


def moments_of(study: StudyConfig, *, is_all: bool = False) -> tuple[GaussianSum, GaussianMoments]:
    """Return what a study's warm start asks its sites for: the centre, and the moments around it.

    Args:
        is_all: whether they get the whole budget, and not their share.

    Raises:
        BudgetError: no noise meets the budget.
    """
    flow = study.flow
    beside = () if is_all else None
    return _budget_of(study).moments_events(flow.moments, flow.front_end.radius, sharers=_sharers(study), beside=beside)


def _budget_of(study: StudyConfig) -> Budget:
    defaults = WARM_SPLIT if study.flow.is_warm else {}
    return Budget.of(study.budget, study.labels, defaults, is_labelled=is_labelled(study.release.mechanism))


def _moments_file(run: StudyRun) -> Path:
    path = run.flow_file()
    return path.with_name(path.name.replace("flow", "moments", 1))


def _sharers(study: StudyConfig) -> int:
    """Return K, the sites whose noise adds up in a sum: one where each adds all of its own, else all but one.

    Every site gets the flow, which is made of the sum, and knows its own share of the noise.

    Raises:
        ConfigError: noise is to be shared by fewer than three sites.
    """
    if study.flow.moments.noise == "each-site":
        return 1
    if study.sites.count < 3:
        raise ConfigError(
            f"Sites share one noise if there are three at least, since each knows its own part. Found "
            f"{study.sites.count}; set flow.moments.noise: each-site."
        )
    return study.sites.count - 1

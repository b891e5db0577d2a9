"""A flow outside of the budget: trained on the sites' records without privacy, or given as it is.

A method that uses it may claim something for its release given the flow, and end-to-end only for a flow that is fixed
and public.
"""

from collections.abc import Sequence
from dataclasses import replace

from cadp_fl.config import StudyConfig
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.federated.methods.base import PhaseCost, StudyRun, bytes_of, fits_module, mean_figure
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.storage import FlowCard, check_same_flow, flow_sha256, load_flow, save_flow
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import FLOW_OF_PRIVATE_RECORDS, FLOW_WEIGHTS
from cadp_fl.privacy.events import DeclaredPublic, Event, ProtectedEvent
from cadp_fl.privacy.mechanisms import is_labelled
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import FlowRequest
from cadp_fl.weights import average, get_weights, set_weights

__all__ = ["PlainFlow", "declared_public", "load_pretrained"]


class PlainFlow:
    """Federated averaging of a flow without privacy, from new or stored weights; or stored weights as they are.

    Args:
        method: that uses the flow.
        study: the config.

    Attributes:
        budget: of the method.

    Raises:
        ConfigError: the stored flow is not what the study says.
    """

    def __init__(self, method: str, study: StudyConfig) -> None:
        self._method, self._study = method, study
        self.budget = Budget.of(study.budget, study.labels, is_labelled=is_labelled(study.release.mechanism))
        self._config = study.flow.cold()
        self._pretrained = load_pretrained(study)
        if self._config.is_fixed and self._pretrained is None:
            raise ConfigError(
                f"The method {method} trains its flow or takes a stored one. Found flow.training.rounds 0 and no "
                "flow.pretrained; give one of them."
            )

    tells_counts = False
    """Whether noised class counts come with the flow."""

    def protected(self) -> tuple[ProtectedEvent, ...]:
        """Return what is noised of all that the flow costs: nothing."""
        return ()

    def events(self) -> tuple[Event, ...]:
        """Return what the flow costs: nothing if it is fixed and public, everything otherwise."""
        pretrained = self._study.flow.pretrained
        if not self._config.is_fixed or pretrained is None or self._pretrained is None:
            return (FLOW_WEIGHTS,)
        return (FLOW_OF_PRIVATE_RECORDS if pretrained.trained_on == "private" else declared_public(*self._pretrained),)

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        rounds = 0 if self._config.is_fixed else self._config.training.rounds
        return {f"{self._method}/flow": rounds} if rounds else {}

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        if self._config.is_fixed:
            return []
        training, weights = self._config.training, bytes_of(self.card(schema).build())
        records = max(sizes) * training.local_epochs
        return [
            PhaseCost(
                phase=f"{self._method}/flow",
                rounds=training.rounds,
                down=weights,
                up=weights,
                work="flow",
                records=records,
            )
        ]

    def card(self, schema: Schema) -> FlowCard:
        """Return what the flow is before it is trained.

        Raises:
            ConfigError: the stored flow that it starts from is not the study's, or does not fit the records.
        """
        if self._pretrained is not None:
            check_same_flow(self._config, schema, self._pretrained[1])
            return self._pretrained[1]
        return FlowCard(self._config.architecture(), schema, self._study.seed, "private")

    def make(self, run: StudyRun) -> tuple[ConditionalFlow, FlowCard]:
        """Return the flow: trained now, or before an interruption."""
        phase, path, card = f"{self._method}/flow", run.flow_file(), self.card(run.schema)
        if run.is_finished(phase):
            return load_flow(path)
        if self._pretrained is None:
            flow = card.build()
        else:
            flow = self._pretrained[0]
            if (pretrained := self._config.pretrained) and pretrained.trained_on == "private":
                card = replace(card, trained_on="private")  # what is stored of this run says no more than it declares
        if not self._config.is_fixed:
            self._train(run, flow, card)
            card = FlowCard(card.config, run.schema, card.seed, "private", run.study.noise)
        save_flow(path, flow, card)
        run.finish(phase)
        return flow, card

    def made_of(self, run: StudyRun, flow: ConditionalFlow) -> None:
        """Return nothing: the flow is made of no noised values."""

    def _train(self, run: StudyRun, flow: ConditionalFlow, card: FlowCard) -> None:
        """Federated averaging of the flow's trainable tensors, in place."""
        config, phase = self._config.model_copy(update={"pretrained": None}), f"{self._method}/flow"
        freeze = self._config.freeze
        rounds, check = config.training.rounds, fits_module(flow, frozen=flow.frozen_names(freeze))
        for number in range(1, rounds + 1):
            settings = FlowRequest(method=self._method, flow=config, seed=card.seed, freeze=freeze, round=number)
            weights = get_weights(flow)
            request = Request("train_flow", settings.model_dump(mode="json"), weights)
            replies = run.federation.ask(request, phase=phase, round=number, of=rounds, check=check)
            set_weights(flow, weights | average({site: reply.arrays for site, reply in replies.items()}, run.sizes))
            run.federation.recorder.round(phase, number, rounds, **mean_figure(replies, run.sizes, "bits_per_dim"))


def load_pretrained(study: StudyConfig) -> tuple[ConditionalFlow, FlowCard] | None:
    """Return the stored flow that a study starts from, and what it is; None where it starts from new weights.

    Raises:
        ConfigError: it was trained on something else than the study declares, or lacks a part that is to be frozen.
    """
    pretrained = study.flow.pretrained
    if pretrained is None:
        return None
    flow, card = load_flow(pretrained.path)
    if pretrained.trained_on == "public" and card.trained_on == "private":
        raise ConfigError(
            f"A flow is public if no private record had a part in it. '{pretrained.path}' says that it was trained on "
            "private records; set flow.pretrained.trained_on: private."
        )
    flow.frozen_names(study.flow.freeze)
    return flow, card


def declared_public(flow: ConditionalFlow, card: FlowCard) -> DeclaredPublic:
    """Return the event of a flow that is taken to be public, by declaration."""
    name = "".join(each if each.isprintable() else "?" for each in card.dataset.name)
    what = f"the flow was trained on '{name}', in which no private record had a part"
    return DeclaredPublic(stage="flow", what=what, sha256=flow_sha256(flow), dataset=card.dataset.name)

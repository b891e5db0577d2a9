"""`moments`, `flow-samples` and `flow-bayes`: a flow within the budget, and no record of a site encoded.

What the flow knows of the sites' records is all that leaves. Records that it draws are then a floor for every release,
and its own Bayes rule is a classifier that no drawn record stands between.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from cadp_fl.classifier.models import QUADRATIC, check_classifier
from cadp_fl.config import Settings, StudyConfig, parse
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.federated.methods.base import PhaseCost, StudyRun, Trained, bytes_of, evaluate_at_sites
from cadp_fl.federated.methods.central import (
    CHECKPOINTS,
    central_classifier,
    central_cost,
    draw_coordinates,
    draw_records,
    fit_to_coordinates,
    train_centrally,
)
from cadp_fl.federated.methods.private_flow import PrivateFlow
from cadp_fl.flow.bayes import FlowBayes
from cadp_fl.privacy.events import Event

__all__ = ["FlowBayesRule", "FlowSamples", "Moments"]

DRAWN = 20_000
"""Records that a quadratic discriminant is fitted to in a second."""


class _OfFlow(ABC):
    """A method that spends its whole budget on a flow."""

    name: ClassVar[str]
    trains: ClassVar[bool] = True

    def __init__(self, study: StudyConfig) -> None:
        self._study = study
        self._flow = PrivateFlow(self.name, study, is_all=True, trains=self.trains)

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site."""
        return self._flow.events()

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        return self._flow.phases() | self.own_phases()

    @abstractmethod
    def own_phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase after the flow's."""


class _Settings(Settings):
    model: str | None = Field(
        None, description="classifier; quadratic by default above a warm start, and else the study's"
    )
    drawn: int | None = Field(
        None,
        ge=100,
        le=10_000_000,
        description="records that the flow draws for the classifier's training: 20,000 by default for quadratic, and "
        "else as many as the sites have",
    )


class FlowSamples(_OfFlow):
    """A central classifier, trained on records that the flow draws."""

    name: ClassVar[str] = "flow-samples"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self._settings = own = parse(_Settings, settings, where=f"methods.{self.name}")
        self._classifier = central_classifier(study, own.model)
        check_classifier(self._classifier)
        super().__init__(study)

    def own_phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase after the flow's."""
        return {f"{self.name}/central": CHECKPOINTS}

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        records = self._count(sum(sizes))
        fits = self._classifier.model == QUADRATIC
        training = central_cost(self._study, self._classifier, schema, method=self.name, records=records, fits=fits)
        return [*self._flow.costs(schema, sizes), training]

    def _count(self, records: int) -> int:
        """Return how many records are drawn where the sites have some."""
        return self._settings.drawn or (DRAWN if self._classifier.model == QUADRATIC else records)

    def run(self, run: StudyRun) -> Trained:
        """Make the flow, draw records, train the classifier on them."""
        flow, _ = self._flow.make(run)
        generator, count = torch.Generator().manual_seed(run.study.seed), self._count(sum(run.sizes.values()))
        if self._classifier.model == QUADRATIC:
            u, labels = draw_coordinates(flow, count, generator=generator)
            return fit_to_coordinates(run, self._classifier, flow, u, labels)
        return train_centrally(run, self._classifier, *draw_records(flow, run.schema, count, generator=generator))


class Moments(FlowSamples):
    """`flow-samples` of the warm start alone: an affine layer of noised moments, and no gradient step."""

    name: ClassVar[str] = "moments"
    trains: ClassVar[bool] = False

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        if not study.flow.is_warm:
            raise ConfigError("The method moments is a warm start alone. This study has none; give flow.warm_start.")
        super().__init__(settings, study)


class _NoSettings(Settings):
    """Bayes' rule has none."""


class FlowBayesRule(_OfFlow):
    """argmax_y p(x | y) of the flow: a classifier without training, and without a record drawn."""

    name: ClassVar[str] = "flow-bayes"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        parse(_NoSettings, settings, where=f"methods.{self.name}")
        super().__init__(study)

    def own_phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase after the flow's: the evaluation at the sites."""
        return {f"{self.name}/evaluate": 1}

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        flow = bytes_of(self._flow.card(schema).build())
        return [*self._flow.costs(schema, sizes), PhaseCost(f"{self.name}/evaluate", 1, flow, 0, "bayes", max(sizes))]

    def run(self, run: StudyRun) -> Trained:
        """Make the flow, and let the sites evaluate its Bayes rule."""
        flow, card = self._flow.make(run)
        ridge = run.study.flow.moments.ridge
        rule = FlowBayes(flow, levels=run.schema.levels, ridge=ridge)
        pooled, per_site = evaluate_at_sites(
            run, rule, card.config, seed=card.seed, ridge=ridge, phase=f"{self.name}/evaluate"
        )
        return Trained(None, None, pooled, per_site)

"""`flow-samples`: a central classifier, trained on records (x, y) ~ p(x | y) that a flow within the budget draws.

A floor for every release: what is drawn has no record of its own behind it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field

from cadp_fl.classifier.models import QUADRATIC, check_classifier
from cadp_fl.config import Settings, StudyConfig, parse
from cadp_fl.data.schema import Schema
from cadp_fl.federated.methods.base import PhaseCost, StudyRun, Trained
from cadp_fl.federated.methods.parts.central import (
    CHECKPOINTS,
    central_classifier,
    central_cost,
    draw_coordinates,
    draw_records,
    fit_to_coordinates,
    train_centrally,
)
from cadp_fl.federated.methods.parts.flow_method import FlowMethod

__all__ = ["FlowSamples"]

DRAWN = 20_000
"""Records that a quadratic discriminant is fitted to in a second."""


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


class FlowSamples(FlowMethod):
    """A central classifier, trained on records that the flow draws."""

    name: ClassVar[str] = "flow-samples"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self.settings = own = parse(_Settings, settings, where=f"methods.{self.name}")
        self.classifier = central_classifier(study, own.model)
        check_classifier(self.classifier)
        super().__init__(study)

    def own_phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase after the flow's."""
        return {f"{self.name}/central": CHECKPOINTS}

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        records = self._count(sum(sizes))
        fits = self.classifier.model == QUADRATIC
        training = central_cost(self._study, self.classifier, schema, method=self.name, records=records, fits=fits)
        return [*self._flow.costs(schema, sizes), training]

    def _count(self, records: int) -> int:
        """Return how many records are drawn where the sites have some."""
        return self.settings.drawn or (DRAWN if self.classifier.model == QUADRATIC else records)

    def run(self, run: StudyRun) -> Trained:
        """Make the flow, draw records, train the classifier on them."""
        flow, _ = self._flow.make(run)
        generator, count = torch.Generator().manual_seed(run.study.seed), self._count(sum(run.sizes.values()))
        if self.classifier.model == QUADRATIC:
            u, labels = draw_coordinates(flow, count, generator=generator)
            return fit_to_coordinates(run, self.classifier, flow, u, labels)
        return train_centrally(run, self.classifier, *draw_records(flow, run.schema, count, generator=generator))

"""`cadp`: a flow within the budget, privatized records, and a classifier on them and on what the flow draws.

    f = affine(noised moments) [then DP-SGD];   x' = f^-1(clip(f(x, y); C) + noise, y)

All of it costs at most the study's (epsilon, delta), end-to-end: no record has an unprotected part in the flow. It is
made of noised moments or by DP-SGD within the same budget, or was trained on public records.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field

from cadp_fl.classifier.models import QUADRATIC
from cadp_fl.config import Settings, StudyConfig, parse
from cadp_fl.data.codec import codec_of
from cadp_fl.data.schema import Schema
from cadp_fl.federated.methods.base import PhaseCost, StudyRun, Trained
from cadp_fl.federated.methods.parts.central import (
    central_classifier,
    central_cost,
    coordinates_of,
    draw_coordinates,
    fit_to_coordinates,
    train_centrally,
)
from cadp_fl.federated.methods.parts.dp_flow import DpFlow
from cadp_fl.federated.methods.parts.releasing import ReleasingMethod
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.release.dataset import ReleasedRecords

__all__ = ["Cadp"]


class _CadpSettings(Settings):
    model: str | None = Field(
        None, description="classifier; quadratic by default above a warm start, and else the study's"
    )
    drawn: int = Field(
        20_000, ge=0, le=10_000_000, description="records that the flow draws beside the released ones, for quadratic"
    )


class Cadp(ReleasingMethod):
    """The whole inside of the budget: a flow that is made under privacy, or public, and the release."""

    name: ClassVar[str] = "cadp"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self.settings = parse(_CadpSettings, settings, where=f"methods.{self.name}")
        super().__init__(study, DpFlow(self.name, study), central_classifier(study, self.settings.model))

    def _central_cost(self, schema: Schema, released: int) -> PhaseCost:
        """Return what the central phase will take on as many released records, and on what the flow draws."""
        fits = self.classifier.model == QUADRATIC
        records = released + (self.settings.drawn if fits else 0)
        return central_cost(self._study, self.classifier, schema, method=self.name, records=records, fits=fits)

    def classify(self, run: StudyRun, flow: ConditionalFlow, released: ReleasedRecords) -> Trained:
        """Return the central classifier, trained on privatized records, and on more that the flow draws."""
        if self.classifier.model != QUADRATIC:
            return train_centrally(run, self.classifier, released.records, released.labels)
        generator = torch.Generator().manual_seed(run.study.seed)
        coordinates = coordinates_of(
            flow, released.records.split(512), released.labels, codec_of(run.schema), generator=generator
        )
        drawn, labels = draw_coordinates(flow, self.settings.drawn, generator=generator)
        both, of_both = torch.cat([coordinates, drawn]), torch.cat([released.labels, labels])
        return fit_to_coordinates(run, self.classifier, flow, both, of_both)

"""`dp-sgd-cnn`: `dp-sgd` of a small convolutional network."""

from typing import ClassVar

from pydantic import Field

from cadp_fl.config.settings import LocalSteps, Passes, Positive
from cadp_fl.federated.methods.dp_sgd import DpSgd, DpSgdSettings

__all__ = ["DpSgdCnn"]


class _CnnSettings(DpSgdSettings):
    model: str | None = Field("tanh-cnn", description="classifier; null for the study's")
    rounds: Passes = Field(20, description="rounds of federated averaging")
    local_steps: LocalSteps = Field(3, description="noised steps of a site in one round")
    sampling_rate: float = Field(0.4, gt=0, le=1, description="q: probability of each record to be in a step")
    clip_norm: float = Field(0.3, ge=1e-6, le=1e6, description="C: a record's gradient norm after clipping")
    weight_noise: Positive = Field(
        0.15,
        description="standard deviation that all steps' noise alone would give a weight: sets the step size, larger "
        "for more records or a larger epsilon, where learning_rate does not",
    )


class DpSgdCnn(DpSgd):
    """`dp-sgd` of a small convolutional network."""

    name: ClassVar[str] = "dp-sgd-cnn"
    settings_model: ClassVar[type[DpSgdSettings]] = _CnnSettings
    largest_step: ClassVar[float] = 12.0

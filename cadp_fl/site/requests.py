"""The settings of every request that has some.

The server builds these models; a site parses what arrives against them again, since all of it is untrusted.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from cadp_fl.config import ClassifierConfig, FlowConfig, FrontEndConfig, Settings
from cadp_fl.config.names import NAME, EventId
from cadp_fl.config.settings import AttributeName, Count, Fraction, Passes, Positive, Seed
from cadp_fl.privacy.events import (
    GaussianHistogram,
    GaussianMoments,
    GaussianSum,
    PoissonGaussian,
    RandomizedResponse,
    ReleaseEvent,
)

__all__ = [
    "DIRECTIONS",
    "MOST_PLANS",
    "ClassifierRequest",
    "CountRequest",
    "DpSgdTraining",
    "EpochTraining",
    "DescribeRequest",
    "EvaluateRequest",
    "FetchRequest",
    "FlowRequest",
    "LocalRequest",
    "MOMENTS",
    "MadeOf",
    "MomentsRequest",
    "PrivateFlowRequest",
    "ReleaseRequest",
    "ReserveRequest",
]

ClassWeight = Annotated[float, Field(gt=0, le=1000)]
MethodName = Annotated[str, Field(pattern=rf"^{NAME}$")]


_Event = TypeVar("_Event", PoissonGaussian, GaussianHistogram)

MOST_PLANS = 32
"""That a site is asked about at once."""


class DescribeRequest(Settings):
    """Say what the site is, and whether it would set some plans aside; nothing is."""

    plans: tuple[dict[str, Any], ...] = Field((), max_length=MOST_PLANS, description="of a whole study, in order")


def _spends_in(stage: str) -> AfterValidator:
    """Return the check that an event is of the stage that a request is about: none pays for another thing."""

    def check(event: _Event) -> _Event:
        if event.stage != stage:
            raise ValueError(f"this is spent in stage '{stage}'. Found '{event.stage}'; send an event of that stage")
        return event

    return AfterValidator(check)


class ReserveRequest(Settings):
    """Set a method's whole plans aside, all of them or none."""

    plans: tuple[dict[str, Any], ...] = Field(
        min_length=1, max_length=2, description="that on training units, and that on test units"
    )


class FlowRequest(Settings):
    """Train the flow for one round, from the weights in the request's arrays."""

    method: MethodName
    flow: FlowConfig
    seed: Seed
    freeze: tuple[str, ...] = Field((), description="parts of the flow that stay as they are")
    round: Passes = Field(description="from 1")


class MomentsRequest(Settings):
    """Release the noised sum of what a flow's front end makes of records; or its moments, around the array `centre`."""

    method: MethodName
    front_end: FrontEndConfig
    event: Annotated[GaussianSum | GaussianMoments, Field(discriminator="kind")]


class PrivateFlowRequest(Settings):
    """Train the flow in the request's arrays for one round of DP-SGD."""

    method: MethodName
    flow: FlowConfig
    seed: Seed
    freeze: tuple[str, ...] = Field((), description="parts of the flow that stay as they are")
    round: Passes = Field(description="from 1")
    rounds: Passes = Field(description="of the whole training")
    event: Annotated[PoissonGaussian, _spends_in("flow")] = Field(description="what the round costs")
    copies: int = Field(ge=1, le=64, description="noisy copies of a record whose gradients are averaged")
    learning_rate: Positive


class CountRequest(Settings):
    """Release the noised number of training records of every class."""

    method: MethodName
    event: Annotated[GaussianHistogram, _spends_in("counts")]


DIRECTIONS = "directions"
"""Name of a release request's array that turns the flow's latents; without it they stay as they are."""

MOMENTS = "moments."
"""What the names of a release request's arrays begin with that the flow was made of, and no weights of it."""


class MadeOf(Settings):
    """Whose noised moments, added up in the request's arrays, a flow was made of."""

    records: int = Field(ge=1, le=10**12)
    sites: int = Field(ge=1, le=100_000)


class ReleaseRequest(Settings):
    """Privatize every training record with the flow in the request's arrays."""

    method: MethodName
    flow: FlowConfig
    seed: Seed
    mechanism: str
    event: Annotated[ReleaseEvent, Field(discriminator="kind")]
    labels: RandomizedResponse | None = Field(None, description="how labels are randomized; none where they are public")
    latent_dims: Count
    shrinkage: str
    temperature: float = Field(1.0, ge=0, le=1, description="standard deviation of latents from the prior")
    randomized: dict[AttributeName, Fraction] = Field(
        {}, description="attributes that are drawn, and how likely each is"
    )
    made_of: MadeOf | None = Field(None, description="of a flow that the plan's moments made")
    shard_records: int = Field(ge=1, le=100_000)


class FetchRequest(Settings):
    """Send one shard of a release that was made before, as the array `shard` of its bytes."""

    event_id: EventId = Field(description="of the release, from its manifest")
    shard: str = Field(pattern=r"^[0-9]{5}\.npz$", description="name of the shard, from the manifest")


class EpochTraining(Settings):
    """Local training without privacy."""

    kind: Literal["epochs"] = "epochs"
    epochs: int = Field(ge=1, le=1000)
    batch_size: Count
    learning_rate: Positive
    momentum: float = Field(ge=0, lt=1)


class DpSgdTraining(Settings):
    """Local DP-SGD; `event` is what one round of it costs."""

    kind: Literal["dp-sgd"] = "dp-sgd"
    event: Annotated[PoissonGaussian, _spends_in("classifier")]
    learning_rate: Positive
    momentum: float = Field(ge=0, lt=1)
    class_weights: tuple[ClassWeight, ...] | None = Field(
        None, description="factor of the loss of each class's records, before their gradients are clipped; 1 by default"
    )


class ClassifierRequest(Settings):
    """Train the classifier in the request's arrays for one round."""

    method: MethodName
    classifier: ClassifierConfig
    seed: Seed
    round: Passes = Field(description="from 1")
    training: Annotated[EpochTraining | DpSgdTraining, Field(discriminator="kind")]


class LocalRequest(Settings):
    """Train a new classifier to the end, keep it, and evaluate it on the site's own test records."""

    method: MethodName
    classifier: ClassifierConfig
    seed: Seed
    training: EpochTraining
    evaluation: GaussianHistogram | None = Field(None, description="what the evaluation costs; none where it is exact")


class EvaluateRequest(Settings):
    """Evaluate the classifier in the request's arrays on the test records, or the Bayes rule of the flow there."""

    method: MethodName
    classifier: ClassifierConfig | None = None
    flow: FlowConfig | None = Field(None, description="of which the Bayes rule is the classifier, in its place")
    ridge: float = Field(0.0, ge=0, le=100, description="of that rule")
    seed: Seed
    event: GaussianHistogram | None = Field(None, description="what the evaluation costs; none where it is exact")

    @model_validator(mode="after")
    def _one_is_evaluated(self) -> "EvaluateRequest":
        if (self.classifier is None) == (self.flow is None):
            raise ValueError("an evaluation is of a classifier or of a flow. Found both or neither")
        return self

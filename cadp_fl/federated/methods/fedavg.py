"""`fedavg`: federated averaging without privacy, w <- sum_k (n_k / n) w_k after local epochs of SGD.

What the sites could have together, if they could share weights freely.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from cadp_fl.config import StudyConfig, parse
from cadp_fl.config.settings import Count, Positive
from cadp_fl.federated.methods.base import StudyRun
from cadp_fl.federated.methods.parts.federated_classifier import ClassifierSettings, FederatedClassifier
from cadp_fl.privacy.claims import CLASSIFIER_WEIGHTS
from cadp_fl.privacy.events import Event
from cadp_fl.site.requests import EpochTraining

__all__ = ["FedAvg"]


class _FedAvgSettings(ClassifierSettings):
    local_epochs: int = Field(2, ge=1, le=1000, description="passes over a site's records in one round")
    batch_size: Count = Field(32, description="records in one step")
    learning_rate: Positive = Field(0.1, description="step size of local SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of local SGD; starts afresh each round")


class FedAvg(FederatedClassifier):
    """Federated averaging without privacy: what the sites could have together, if they could share weights freely.

    References:
        McMahan et al.: Communication-efficient learning of deep networks from decentralized data, arXiv 1602.05629.
    """

    name: ClassVar[str] = "fedavg"
    work: ClassVar[Literal["dp-sgd", "classifier"]] = "classifier"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self.settings = parse(_FedAvgSettings, settings, where=f"methods.{self.name}")
        super().__init__(self.settings, study)

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site."""
        return (CLASSIFIER_WEIGHTS,)

    def records_in_a_round(self, size: int) -> int:
        """Return how many records a site of a size computes in one round."""
        return size * self.settings.local_epochs

    def training(self, run: StudyRun) -> EpochTraining:
        """Return what a site does in one round."""
        own = self.settings
        return EpochTraining(
            epochs=own.local_epochs, batch_size=own.batch_size, learning_rate=own.learning_rate, momentum=own.momentum
        )

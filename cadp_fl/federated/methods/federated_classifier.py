"""`fedavg` and `dp-sgd`: federated averaging of a classifier, without privacy and with DP-SGD at every site."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from cadp_fl.classifier.models import build_classifier, check_classifier
from cadp_fl.config import ClassifierConfig, Settings, StudyConfig, parse
from cadp_fl.data.schema import Schema
from cadp_fl.federated.methods.base import (
    PhaseCost,
    StudyRun,
    Trained,
    bytes_of,
    evaluate_at_sites,
    fits_module,
    mean_figure,
)
from cadp_fl.privacy.accounting import Event, PoissonGaussian, calibrate_noise
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import CLASSIFIER_WEIGHTS
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import ClassifierRequest, DpSgdTraining, EpochTraining
from cadp_fl.weights import average, get_weights, set_weights

__all__ = ["DpSgd", "FedAvg"]


class _Settings(Settings):
    model: str | None = Field(None, description="classifier, where it is not the study's")
    rounds: int = Field(10, ge=1, description="rounds of federated averaging")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of local SGD; starts afresh each round")


class _FedAvgSettings(_Settings):
    local_epochs: int = Field(2, ge=1, description="passes over a site's records in one round")
    batch_size: int = Field(32, ge=1, description="records in one step")
    learning_rate: float = Field(0.1, gt=0, allow_inf_nan=False, description="step size of local SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of local SGD; starts afresh each round")


class _DpSgdSettings(_Settings):
    local_steps: int = Field(2, ge=1, description="noised steps of a site in one round")
    sampling_rate: float = Field(0.5, gt=0, le=1, description="q: probability of each record to be in a step")
    clip_norm: float = Field(1.0, ge=1e-6, le=1e6, description="C: a record's gradient norm after clipping")
    learning_rate: float = Field(1.0, gt=0, allow_inf_nan=False, description="step size of local SGD")


class _FederatedClassifier(ABC):
    """Rounds of local training and averaging, with an evaluation at the sites every few rounds."""

    name: ClassVar[str]

    def __init__(self, settings: _Settings, study: StudyConfig) -> None:
        self._rounds = settings.rounds
        self._study = study
        update = {} if settings.model is None else {"model": settings.model}
        self._classifier: ClassifierConfig = study.classifier.model_copy(update=update)
        check_classifier(self._classifier)

    @abstractmethod
    def records_in_a_round(self, size: int) -> int:
        """Return how many records a site of a size computes in one round."""

    @abstractmethod
    def training(self) -> EpochTraining | DpSgdTraining:
        """Return what a site does in one round."""

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        return {f"{self.name}/train": self._rounds}

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        model = build_classifier(self._classifier, schema.shape, len(schema.classes), seed=self._study.seed)
        weights, is_private = bytes_of(model), isinstance(self.training(), DpSgdTraining)
        work: Literal["dp-sgd", "classifier"] = "dp-sgd" if is_private else "classifier"
        records = self.records_in_a_round(max(sizes))
        return [PhaseCost(f"{self.name}/train", self._rounds, weights, weights, work, records, self._classifier)]

    def run(self, run: StudyRun) -> Trained:
        """Train the classifier at the sites, round by round."""
        model = run.classifier(self._classifier)
        check = fits_module(model)
        rounds, phase, every = self._rounds, f"{self.name}/train", run.study.evaluation.every
        for number in range(1, rounds + 1):
            settings = ClassifierRequest(
                method=self.name,
                classifier=self._classifier,
                seed=run.study.seed,
                round=number,
                training=self.training(),
            )
            request = Request("train_classifier", settings.model_dump(mode="json"), get_weights(model))
            replies = run.federation.ask(request, phase=phase, round=number, of=rounds, check=check)
            set_weights(model, average({site: reply.arrays for site, reply in replies.items()}, run.sizes))
            run.federation.recorder.round(phase, number, rounds, **mean_figure(replies, run.sizes, "loss"))
            if run.evaluates(number, rounds, every=every):
                pooled, per_site = evaluate_at_sites(
                    run, model, self._classifier, phase=f"{self.name}/evaluate", round=number, of=rounds
                )
        return Trained(model, self._classifier, pooled, per_site)


class FedAvg(_FederatedClassifier):
    """Federated averaging without privacy: what the sites could have together, if they could share weights freely.

    References:
        McMahan et al.: Communication-efficient learning of deep networks from decentralized data, arXiv 1602.05629.
    """

    name: ClassVar[str] = "fedavg"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self._settings = parse(_FedAvgSettings, settings, where=f"methods.{self.name}")
        super().__init__(self._settings, study)

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site."""
        return (CLASSIFIER_WEIGHTS,)

    def records_in_a_round(self, size: int) -> int:
        """Return how many records a site of a size computes in one round."""
        return size * self._settings.local_epochs

    def training(self) -> EpochTraining:
        """Return what a site does in one round."""
        own = self._settings
        return EpochTraining(
            epochs=own.local_epochs, batch_size=own.batch_size, learning_rate=own.learning_rate, momentum=own.momentum
        )


class DpSgd(_FederatedClassifier):
    """Federated averaging of DP-SGD at every site, at the study's budget over all steps of all rounds.

    References:
        Abadi et al.: Deep learning with differential privacy, arXiv 1607.00133.
    """

    name: ClassVar[str] = "dp-sgd"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self._settings = parse(_DpSgdSettings, settings, where=f"methods.{self.name}")
        super().__init__(self._settings, study)
        own, budget = self._settings, Budget.of(study.budget, study.labels)
        self._counts = budget.count_events()
        self._noise_std = calibrate_noise(
            lambda noise_std: [*self._counts, self._event(noise_std, own.rounds * own.local_steps)],
            budget.epsilon,
            budget.delta,
            clip_norm=own.clip_norm,
        )

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site: the steps of all rounds together."""
        return (*self._counts, self._event(self._noise_std, self._settings.rounds * self._settings.local_steps))

    def records_in_a_round(self, size: int) -> int:
        """Return how many records a site of a size computes in one round, on average."""
        return math.ceil(size * self._settings.sampling_rate * self._settings.local_steps)

    def training(self) -> DpSgdTraining:
        """Return what a site does in one round."""
        own = self._settings
        return DpSgdTraining(
            event=self._event(self._noise_std, own.local_steps), learning_rate=own.learning_rate, momentum=own.momentum
        )

    def _event(self, noise_std: float, steps: int) -> PoissonGaussian:
        own = self._settings
        return PoissonGaussian(
            stage="classifier",
            clip_norm=own.clip_norm,
            noise_std=noise_std,
            sampling_rate=own.sampling_rate,
            steps=steps,
        )

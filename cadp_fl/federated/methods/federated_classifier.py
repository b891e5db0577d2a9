"""`fedavg` and `dp-sgd`: federated averaging of a classifier, without privacy and with DP-SGD at every site.

`dp-sgd` learns a linear layer on histograms of oriented gradients, `dp-sgd-dct` one on low frequencies, and
`dp-sgd-cnn` a small convolutional network: three names, so that a study may compare them. Their defaults were chosen
once, from some 160 settings of the linear models and 26 of the network, at epsilon 1, 3 and 10, by records held out of
the training splits of 8,000 MNIST images, of PneumoniaMNIST and of scikit-learn's digits. Of other records they are
public constants.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cadp_fl.classifier.models import build_classifier, check_classifier
from cadp_fl.config import ClassifierConfig, Settings, StudyConfig, parse
from cadp_fl.config.settings import Count, LocalSteps, Passes, Positive
from cadp_fl.data.schema import Schema
from cadp_fl.federated.balance import class_weights
from cadp_fl.federated.methods.base import (
    PhaseCost,
    StudyRun,
    Trained,
    bytes_of,
    evaluate_at_sites,
    fits_module,
    mean_figure,
)
from cadp_fl.privacy.accounting import calibrate_noise
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import CLASSIFIER_WEIGHTS
from cadp_fl.privacy.events import Event, PoissonGaussian
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import ClassifierRequest, DpSgdTraining, EpochTraining
from cadp_fl.weights import average, get_weights, set_weights

__all__ = ["DpSgd", "DpSgdCnn", "DpSgdDct", "FedAvg"]


class _Settings(Settings):
    model: str | None = Field(None, description="classifier, where it is not the study's")
    rounds: Passes = Field(10, description="rounds of federated averaging")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of local SGD; starts afresh each round")


class _FedAvgSettings(_Settings):
    local_epochs: int = Field(2, ge=1, le=1000, description="passes over a site's records in one round")
    batch_size: Count = Field(32, description="records in one step")
    learning_rate: Positive = Field(0.1, description="step size of local SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of local SGD; starts afresh each round")


class _DpSgdSettings(_Settings):
    model: str | None = Field("linear-hog", description="classifier; null for the study's")
    local_steps: LocalSteps = Field(12, description="noised steps of a site in one round")
    sampling_rate: float = Field(1.0, gt=0, le=1, description="q: probability of each record to be in a step")
    clip_norm: float = Field(0.4, ge=1e-6, le=1e6, description="C: a record's gradient norm after clipping")
    learning_rate: Positive | None = Field(
        None, description="step size of local SGD; by default, what weight_noise makes it"
    )
    weight_noise: Positive = Field(
        1.0,
        description="standard deviation that all steps' noise alone would give a weight: sets the step size, larger "
        "for more records or a larger epsilon, where learning_rate does not",
    )
    averaged_rounds: Passes = Field(5, description="the last rounds whose weights are averaged; it costs nothing")
    balance: bool = Field(
        True,
        description="whether each class counts the same in the loss, by class counts that are public or noised anyway",
    )


class _DctSettings(_DpSgdSettings):
    model: str | None = Field("linear-dct", description="classifier; null for the study's")


class _CnnSettings(_DpSgdSettings):
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


class _FederatedClassifier(ABC):
    """Rounds of local training and averaging, with an evaluation at the sites every few rounds."""

    name: ClassVar[str]
    work: ClassVar[Literal["dp-sgd", "classifier"]]
    averaged_rounds = 1
    """The last rounds whose weights are averaged into the classifier."""

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
    def training(self, run: StudyRun) -> EpochTraining | DpSgdTraining:
        """Return what a site does in one round."""

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        return {f"{self.name}/train": self._rounds}

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take."""
        model = build_classifier(self._classifier, schema.shape, len(schema.classes), seed=self._study.seed)
        weights, records = bytes_of(model), self.records_in_a_round(max(sizes))
        return [PhaseCost(f"{self.name}/train", self._rounds, weights, weights, self.work, records, self._classifier)]

    def run(self, run: StudyRun) -> Trained:
        """Train the classifier at the sites, round by round."""
        model, training = run.classifier(self._classifier), self.training(run)
        check, weights = fits_module(model), get_weights(model)
        last: deque[Mapping[str, np.ndarray]] = deque(maxlen=self.averaged_rounds)
        rounds, phase, every = self._rounds, f"{self.name}/train", run.study.evaluation.every
        for number in range(1, rounds + 1):
            settings = ClassifierRequest(
                method=self.name,
                classifier=self._classifier,
                seed=run.study.seed,
                round=number,
                training=training,
            )
            request = Request("train_classifier", settings.model_dump(mode="json"), weights)
            replies = run.federation.ask(request, phase=phase, round=number, of=rounds, check=check)
            weights = average({site: reply.arrays for site, reply in replies.items()}, run.sizes)
            last.append(weights)
            run.federation.recorder.round(phase, number, rounds, **mean_figure(replies, run.sizes, "loss"))
            if run.evaluates(number, rounds, every=every):
                set_weights(model, _mean(last))
                pooled, per_site = evaluate_at_sites(
                    run, model, self._classifier, phase=f"{self.name}/evaluate", round=number, of=rounds
                )
        return Trained(model, self._classifier, pooled, per_site)


def _mean(weights: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of some rounds' weights."""
    by_round = {str(index): each for index, each in enumerate(weights)}
    return average(by_round, dict.fromkeys(by_round, 1))


class FedAvg(_FederatedClassifier):
    """Federated averaging without privacy: what the sites could have together, if they could share weights freely.

    References:
        McMahan et al.: Communication-efficient learning of deep networks from decentralized data, arXiv 1602.05629.
    """

    name: ClassVar[str] = "fedavg"
    work: ClassVar[Literal["dp-sgd", "classifier"]] = "classifier"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self._settings = parse(_FedAvgSettings, settings, where=f"methods.{self.name}")
        super().__init__(self._settings, study)

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site."""
        return (CLASSIFIER_WEIGHTS,)

    def records_in_a_round(self, size: int) -> int:
        """Return how many records a site of a size computes in one round."""
        return size * self._settings.local_epochs

    def training(self, run: StudyRun) -> EpochTraining:
        """Return what a site does in one round."""
        own = self._settings
        return EpochTraining(
            epochs=own.local_epochs, batch_size=own.batch_size, learning_rate=own.learning_rate, momentum=own.momentum
        )


class DpSgd(_FederatedClassifier):
    """Federated averaging of DP-SGD at every site, at the study's budget over all steps of all rounds.

    By default steps are of all records, which costs no more than samples of them do, and large: where a fixed front end
    leaves few directions to learn, clipping and averaging over rounds keep them in bounds.

    References:
        Abadi et al.: Deep learning with differential privacy, arXiv 1607.00133.
        Tramèr, Boneh: Differentially private learning needs better features (or much more data), arXiv 2011.11660.
    """

    name: ClassVar[str] = "dp-sgd"
    work: ClassVar[Literal["dp-sgd", "classifier"]] = "dp-sgd"
    settings_model: ClassVar[type[_DpSgdSettings]] = _DpSgdSettings
    largest_step: ClassVar[float] = 100.0
    """Of the step sizes that follow from noise: where there is next to none, they would grow without bound."""

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self._settings = parse(self.settings_model, settings, where=f"methods.{self.name}")
        super().__init__(self._settings, study)
        self.averaged_rounds = self._settings.averaged_rounds
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

    def training(self, run: StudyRun) -> DpSgdTraining:
        """Return what a site does in one round."""
        own = self._settings
        return DpSgdTraining(
            event=self._event(self._noise_std, own.local_steps),
            learning_rate=own.learning_rate or self.step_size(list(run.sizes.values())),
            momentum=own.momentum,
            class_weights=class_weights(run.class_counts, run.schema.classes) if own.balance else None,
        )

    def step_size(self, sizes: Sequence[int]) -> float:
        """Return eta = s (1 - m) q N / (sigma sqrt(K T)), with which noise alone would move a weight by s.

        A step of a site with n of all N units moves a weight by eta N(0, sigma^2) / (q n), momentum m by 1 / (1 - m)
        times as much in the end, and the average of K sites over T steps by sqrt(K T) n / N as much.

        Args:
            sizes: number of training units of each site, which is public.
        """
        own = self._settings
        deviation = self._noise_std * math.sqrt(len(sizes) * own.rounds * own.local_steps)
        return min(
            self.largest_step, own.weight_noise * (1 - own.momentum) * own.sampling_rate * sum(sizes) / deviation
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


class DpSgdDct(DpSgd):
    """`dp-sgd` on an image's lowest frequencies."""

    name: ClassVar[str] = "dp-sgd-dct"
    settings_model: ClassVar[type[_DpSgdSettings]] = _DctSettings


class DpSgdCnn(DpSgd):
    """`dp-sgd` of a small convolutional network."""

    name: ClassVar[str] = "dp-sgd-cnn"
    settings_model: ClassVar[type[_DpSgdSettings]] = _CnnSettings
    largest_step: ClassVar[float] = 12.0

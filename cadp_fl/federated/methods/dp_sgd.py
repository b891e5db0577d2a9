"""`dp-sgd`: federated averaging of DP-SGD at every site, of a linear layer on histograms of oriented gradients.

    w <- w - eta / (q n) (sum_{i in sample} clip(g_i; C) + N(0, sigma^2 I))

The defaults of this method and its kin, `dp-sgd-dct` and `dp-sgd-cnn`, were chosen once, from some 160 settings of the
linear models and 26 of the network, at epsilon 1, 3 and 10, by records held out of the training splits of 8,000 MNIST
images, of PneumoniaMNIST and of scikit-learn's digits. Of other records they are public constants.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from cadp_fl.config import StudyConfig, parse
from cadp_fl.config.settings import LocalSteps, Passes, Positive
from cadp_fl.federated.balance import class_weights
from cadp_fl.federated.methods.base import StudyRun
from cadp_fl.federated.methods.parts.federated_classifier import ClassifierSettings, FederatedClassifier
from cadp_fl.privacy.accounting import calibrate_noise
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.events import Event, PoissonGaussian
from cadp_fl.site.requests import DpSgdTraining

__all__ = ["DpSgd", "DpSgdSettings"]


class DpSgdSettings(ClassifierSettings):
    """What the method takes."""

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


class DpSgd(FederatedClassifier):
    """Federated averaging of DP-SGD at every site, at the study's budget over all steps of all rounds.

    By default steps are of all records, which costs no more than samples of them do, and large: where a fixed front end
    leaves few directions to learn, clipping and averaging over rounds keep them in bounds.

    References:
        Abadi et al.: Deep learning with differential privacy, arXiv 1607.00133.
        Tramèr, Boneh: Differentially private learning needs better features (or much more data), arXiv 2011.11660.
    """

    name: ClassVar[str] = "dp-sgd"
    work: ClassVar[Literal["dp-sgd", "classifier"]] = "dp-sgd"
    settings_model: ClassVar[type[DpSgdSettings]] = DpSgdSettings
    largest_step: ClassVar[float] = 100.0
    """Of the step sizes that follow from noise: where there is next to none, they would grow without bound."""

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self.settings = parse(self.settings_model, settings, where=f"methods.{self.name}")
        super().__init__(self.settings, study)
        self.averaged_rounds = self.settings.averaged_rounds
        own, budget = self.settings, Budget.of(study.budget, study.labels)
        self._counts = budget.count_events()
        self._noise_std = calibrate_noise(
            lambda noise_std: [*self._counts, self._event(noise_std, own.rounds * own.local_steps)],
            budget.epsilon,
            budget.delta,
            clip_norm=own.clip_norm,
        )

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site: the steps of all rounds together."""
        return (*self._counts, self._event(self._noise_std, self.settings.rounds * self.settings.local_steps))

    def records_in_a_round(self, size: int) -> int:
        """Return how many records a site of a size computes in one round, on average."""
        return math.ceil(size * self.settings.sampling_rate * self.settings.local_steps)

    def training(self, run: StudyRun) -> DpSgdTraining:
        """Return what a site does in one round."""
        own = self.settings
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
        own = self.settings
        deviation = self._noise_std * math.sqrt(len(sizes) * own.rounds * own.local_steps)
        return min(
            self.largest_step, own.weight_noise * (1 - own.momentum) * own.sampling_rate * sum(sizes) / deviation
        )

    def _event(self, noise_std: float, steps: int) -> PoissonGaussian:
        own = self.settings
        return PoissonGaussian(
            stage="classifier",
            clip_norm=own.clip_norm,
            noise_std=noise_std,
            sampling_rate=own.sampling_rate,
            steps=steps,
        )

"""Federated averaging of a classifier, w <- sum_k (n_k / n) w_k: what `fedavg` and `dp-sgd` have in common.

References:
    McMahan et al.: Communication-efficient learning of deep networks from decentralized data, arXiv 1602.05629.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from cadp_fl.classifier.models import build_classifier, check_classifier
from cadp_fl.config import ClassifierConfig, Settings, StudyConfig
from cadp_fl.config.settings import Passes
from cadp_fl.data.codec import input_shape
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
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import ClassifierRequest, DpSgdTraining, EpochTraining
from cadp_fl.weights import average, get_weights, set_weights

__all__ = ["ClassifierSettings", "FederatedClassifier"]


class ClassifierSettings(Settings):
    """What every method of this kind takes."""

    model: str | None = Field(None, description="classifier, where it is not the study's")
    rounds: Passes = Field(10, description="rounds of federated averaging")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of local SGD; starts afresh each round")


class FederatedClassifier(ABC):
    """Rounds of local training and averaging, with an evaluation at the sites every few rounds."""

    name: ClassVar[str]
    work: ClassVar[Literal["dp-sgd", "classifier"]]
    averaged_rounds = 1
    """The last rounds whose weights are averaged into the classifier."""

    def __init__(self, settings: ClassifierSettings, study: StudyConfig) -> None:
        self._rounds = settings.rounds
        self._study = study
        update = {} if settings.model is None else {"model": settings.model}
        self.classifier: ClassifierConfig = study.classifier.model_copy(update=update)
        check_classifier(self.classifier)

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
        model = build_classifier(self.classifier, input_shape(schema), len(schema.classes), seed=self._study.seed)
        weights, records = bytes_of(model), self.records_in_a_round(max(sizes))
        return [
            PhaseCost(
                phase=f"{self.name}/train",
                rounds=self._rounds,
                down=weights,
                up=weights,
                work=self.work,
                records=records,
                classifier=self.classifier,
            )
        ]

    def run(self, run: StudyRun) -> Trained:
        """Train the classifier at the sites, round by round."""
        model, training = run.classifier(self.classifier), self.training(run)
        check, weights = fits_module(model), get_weights(model)
        last: deque[Mapping[str, np.ndarray]] = deque(maxlen=self.averaged_rounds)
        rounds, phase, every = self._rounds, f"{self.name}/train", run.study.evaluation.every
        for number in range(1, rounds + 1):
            settings = ClassifierRequest(
                method=self.name,
                classifier=self.classifier,
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
                    run, model, self.classifier, phase=f"{self.name}/evaluate", round=number, of=rounds
                )
        return Trained(model, self.classifier, pooled, per_site)


def _mean(weights: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the mean of some rounds' weights."""
    by_round = {str(index): each for index, each in enumerate(weights)}
    return average(by_round, dict.fromkeys(by_round, 1))

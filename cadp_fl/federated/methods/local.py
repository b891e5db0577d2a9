"""`local`: each site alone, without privacy. What a site loses by staying out."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from cadp_fl.classifier.models import check_classifier
from cadp_fl.config import Settings, StudyConfig, parse
from cadp_fl.config.settings import Count, Positive
from cadp_fl.data.schema import Schema
from cadp_fl.federated.methods.base import PhaseCost, StudyRun, Trained, ask_for_evaluations
from cadp_fl.privacy.claims import LOCAL_TEST_RESULTS
from cadp_fl.privacy.events import Event
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import EpochTraining, LocalRequest

__all__ = ["Local"]


class _Settings(Settings):
    model: str | None = Field(None, description="classifier, where it is not the study's")
    epochs: int = Field(20, ge=1, le=1000, description="passes over a site's records")
    batch_size: Count = Field(32, description="records in one step")
    learning_rate: Positive = Field(0.1, description="step size of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")


class Local:
    """Every site trains a classifier on its own training records, keeps it, and tests it on its own test records.

    The pooled figures are over all of these test records, each judged by the classifier of its own site. No weights
    leave a site; what leaves are test results of a classifier that was trained without differential privacy.
    """

    name: ClassVar[str] = "local"

    def __init__(self, settings: dict[str, Any], study: StudyConfig) -> None:
        self.settings = own = parse(_Settings, settings, where=f"methods.{self.name}")
        update = {} if own.model is None else {"model": own.model}
        self.classifier = study.classifier.model_copy(update=update)
        check_classifier(self.classifier)

    def phases(self) -> dict[str, int]:
        """Return the number of rounds of every phase, in order."""
        return {f"{self.name}/train": 1}

    def events(self) -> tuple[Event, ...]:
        """Return everything that the method will spend at a site."""
        return (LOCAL_TEST_RESULTS,)

    def costs(self, schema: Schema, sizes: Sequence[int]) -> list[PhaseCost]:
        """Return what each phase will take: no weights cross."""
        records = max(sizes) * self.settings.epochs
        return [
            PhaseCost(
                phase=f"{self.name}/train",
                rounds=1,
                down=0,
                up=0,
                work="classifier",
                records=records,
                classifier=self.classifier,
            )
        ]

    def run(self, run: StudyRun) -> Trained:
        """Let every site train and test a classifier of its own, all from the study's initial weights."""
        own = self.settings
        training = EpochTraining(
            epochs=own.epochs, batch_size=own.batch_size, learning_rate=own.learning_rate, momentum=own.momentum
        )
        settings = LocalRequest(
            method=self.name,
            classifier=self.classifier,
            seed=run.study.seed,
            training=training,
            evaluation=run.evaluation,
        ).model_dump(mode="json")
        pooled, per_site = ask_for_evaluations(run, Request("train_local", settings), phase=f"{self.name}/train")
        return Trained(None, self.classifier, pooled, per_site)

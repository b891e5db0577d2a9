"""A classifier on disk: its weights, and all that is needed to build it again and to name its classes."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from cadp_fl.classifier.models import build_classifier
from cadp_fl.config import ClassifierConfig
from cadp_fl.data.codec import input_shape
from cadp_fl.data.schema import Schema
from cadp_fl.errors import DataError
from cadp_fl.storage import load_weights, read_description, save_weights
from cadp_fl.weights import get_weights, set_weights

__all__ = ["ClassifierCard", "load_classifier", "save_classifier"]


@dataclass(frozen=True)
class ClassifierCard:
    """What a stored classifier is.

    Attributes:
        config: its architecture.
        dataset: schema of the records that it was trained on.
        seed: of its initial weights.
        method: that trained it.
        noise: where the privacy noise of its training came from; empty if there was none.
    """

    config: ClassifierConfig
    dataset: Schema
    seed: int
    method: str
    noise: str = ""

    def build(self) -> nn.Module:
        """Return a new classifier of this architecture."""
        return build_classifier(self.config, input_shape(self.dataset), len(self.dataset.classes), seed=self.seed)


def save_classifier(path: Path, model: nn.Module, card: ClassifierCard) -> None:
    """Write a classifier under a temporary name, and rename it when it is whole."""
    description = {
        "classifier": card.config.model_dump_json(),
        "dataset": card.dataset.model_dump_json(),
        "seed": str(card.seed),
        "method": card.method,
        "noise": card.noise,
    }
    save_weights(path, get_weights(model), kind="classifier", description=description)


def load_classifier(path: Path) -> tuple[nn.Module, ClassifierCard]:
    """Return a stored classifier, on the CPU, and what it is.

    Raises:
        DataError: the file is missing, damaged, or no classifier.
        ConfigError: it names a model that is not registered here.
    """
    described = read_description(path, kind="classifier")
    try:
        card = ClassifierCard(
            ClassifierConfig.model_validate_json(described["classifier"]),
            Schema.model_validate_json(described["dataset"]),
            int(described["seed"]),
            described["method"],
            described.get("noise", ""),
        )
    except (ValidationError, KeyError, ValueError) as error:
        raise DataError(f"A stored classifier says how to build it. '{path}' does not; train it again.") from error
    model = card.build()
    set_weights(model, load_weights(path, get_weights(model)))
    return model, card

"""What a stored classifier says of images."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadp_fl.classifier.storage import load_classifier
from cadp_fl.classifier.training import log_odds
from cadp_fl.data.images import printable
from cadp_fl.device import resolve_device
from cadp_fl.outputs import new_file
from cadp_fl.standalone.images import Picture, read_pictures

__all__ = ["Prediction", "predict", "write_csv"]

BATCH_IMAGES = 256


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of an image.

    Attributes:
        file: of the image.
        index: the image's place in an npz, from 0; None for an image file.
        label: name of the class.
        probability: that the classifier gives it; not calibrated.
    """

    file: Path
    index: int | None
    label: str
    probability: float

    @property
    def source(self) -> str:
        """The file, with the place in brackets, safe to print."""
        name = printable(self.file)
        return name if self.index is None else f"{name}[{self.index}]"

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain JSON values."""
        return {"file": str(self.file), "index": self.index, "class": self.label, "probability": self.probability}


def predict(
    classifier: Path,
    paths: Sequence[Path],
    *,
    resize: bool,
    device: str,
    report: Callable[[str], None] = lambda sentence: None,
) -> list[Prediction]:
    """Return the likeliest class of every image that some paths name, in order; see `read_pictures`.

    Raises:
        InputError: a path or an image does not fit.
        DataError: a file cannot be read.
    """
    where = resolve_device(device)
    model, card = load_classifier(classifier)
    model.to(where)
    pictures = read_pictures(paths, card.dataset.image_shape, resize=resize, report=report)
    predictions: list[Prediction] = []
    for batch in _batches(pictures):
        images = torch.from_numpy(np.stack([picture.pixels for picture in batch]))
        best = log_odds(model, images).sigmoid().max(dim=1)
        predictions += [
            Prediction(picture.file, picture.index, card.dataset.classes[label], probability)
            for picture, label, probability in zip(batch, best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    return predictions


def write_csv(predictions: Sequence[Prediction], output: Path) -> None:
    """Write predictions as a table: file, index, class, probability.

    Raises:
        InputError: there is something at the path.
    """
    with new_file(output, "A table") as temporary:
        with temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, ["file", "index", "class", "probability"])
            writer.writeheader()
            writer.writerows(prediction.to_json() for prediction in predictions)


def _batches(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    while batch := list(islice(pictures, BATCH_IMAGES)):
        yield batch

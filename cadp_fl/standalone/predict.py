"""What a stored classifier says of images, or of rows of a table."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cadp_fl.classifier.storage import load_classifier
from cadp_fl.classifier.training import log_odds
from cadp_fl.data.codec import codec_of
from cadp_fl.data.images import printable
from cadp_fl.data.table import read_features
from cadp_fl.data.table_schema import TableSchema, table_schema_for
from cadp_fl.device import resolve_device
from cadp_fl.errors import InputError
from cadp_fl.outputs import new_file
from cadp_fl.standalone.images import Picture, read_pictures

__all__ = ["Prediction", "predict", "write_csv"]

BATCH_IMAGES = 256


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of an image, or of a row.

    Attributes:
        file: that it is from.
        index: its place in an npz or a table, from 0; None for an image file.
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
    columns: Path | None = None,
    report: Callable[[str], None] = lambda sentence: None,
) -> list[Prediction]:
    """Return the likeliest class of every image, or row, that some paths name, in order; see `read_pictures`.

    Args:
        columns: schema file of rows, where they are not written as an export is.

    Raises:
        InputError: a path or an image does not fit.
        DataError: a file cannot be read.
    """
    where = resolve_device(device)
    model, card = load_classifier(classifier)
    model.to(where)
    schema = card.dataset
    if schema.kind == "row":
        batches = _rows(paths, table_schema_for(schema, columns))
    elif columns is not None:
        raise InputError(f"A schema file is of rows. This classifier is for {schema.kind}s; leave --columns out.")
    else:
        batches = _images(read_pictures(paths, schema.image_shape, resize=resize, report=report))
    predictions: list[Prediction] = []
    for records, named in batches:
        best = log_odds(model, codec_of(schema).inputs(records)).sigmoid().max(dim=1)
        found = zip(named, best.indices.tolist(), best.values.tolist(), strict=True)
        predictions += [Prediction(*place, schema.classes[label], probability) for place, label, probability in found]
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


_Batch = tuple[np.ndarray, list[tuple[Path, int | None]]]
"""Records as they are stored, and of each its file and its place there."""


def _images(pictures: Iterator[Picture]) -> Iterator[_Batch]:
    while batch := list(islice(pictures, BATCH_IMAGES)):
        yield np.stack([picture.pixels for picture in batch]), [(picture.file, picture.index) for picture in batch]


def _rows(paths: Sequence[Path], schema: TableSchema) -> Iterator[_Batch]:
    for path in paths:
        start = 0
        for codes in read_features(path, schema):
            yield codes, [(path, start + row) for row in range(len(codes))]
            start += len(codes)

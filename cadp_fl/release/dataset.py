"""Released records as a torch data set, whatever their number: they lie in a file, and memory stays flat."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from cadp_fl.classifier.training import as_input
from cadp_fl.data.codec import codec_of
from cadp_fl.data.schema import Schema
from cadp_fl.errors import InputError
from cadp_fl.release.bundle import Bundle, open_bundle
from cadp_fl.release.manifest import Manifest

__all__ = ["ReleasedRecords", "load_release", "shared_schema"]


class ReleasedRecords(Dataset[tuple[torch.Tensor, int]]):
    """The records of one or more releases: pairs of a record and a label.

    A record is an image in [0, 1], float32 (channels, height, width), or a row's numbers in [0, 1], float32 (numbers,).

    Attributes:
        records: as the schema stores them, (records, ...); backed by a temporary file.
        labels: int64, (records,).
        attributes: uint8, (records, attributes), 0 or 1; None where the schema has none.
        schema: what all releases share.
        manifests: of every release, in order.
    """

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self.manifests: tuple[Manifest, ...] = tuple(bundle.manifest for bundle in bundles)
        self.schema: Schema = shared_schema(self.manifests)
        count = sum(manifest.records for manifest in self.manifests)
        with tempfile.TemporaryFile() as file:  # has no name, so that nothing is left of it when the array is gone
            records = np.memmap(file, dtype=self.schema.dtype, shape=(count, *self.schema.shape))
        self.records = torch.from_numpy(records)
        self.labels = torch.empty(count, dtype=torch.int64)
        names = self.schema.attributes
        self.attributes = torch.empty((count, len(names)), dtype=torch.uint8) if names else None
        start = 0
        for bundle in bundles:
            for part in bundle.parts():
                records[start : start + len(part)] = part.records
                self.labels[start : start + len(part)] = torch.from_numpy(part.labels)
                if self.attributes is not None and part.attributes is not None:
                    self.attributes[start : start + len(part)] = torch.from_numpy(part.attributes)
                start += len(part)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        one = self.inputs(slice(index, index + 1) if index >= 0 else slice(index, index + 1 or None))
        return as_input(one)[0] + 0.5, int(self.labels[index])

    @property
    def images(self) -> torch.Tensor:
        """The records, by the name that they had when all were images."""
        return self.records

    def inputs(self, part: slice = slice(None)) -> torch.Tensor:
        """Return what a classifier is trained on."""
        return codec_of(self.schema).inputs(self.records[part].numpy())


def shared_schema(manifests: Sequence[Manifest]) -> Schema:
    """Return the schema of some releases.

    Raises:
        InputError: two differ.
    """
    first = manifests[0]
    for manifest in manifests:
        if manifest.dataset != first.dataset:
            raise InputError(
                f"Releases that are read together share one schema. That of site '{manifest.site}' differs from that "
                f"of '{first.site}'; read them apart."
            )
    return first.dataset


def load_release(*folders: Path | str) -> ReleasedRecords:
    """Return the records of the releases in some folders, each shard verified against its manifest.

    Raises:
        InputError: there is no folder, or two releases have different schemas.
        ExchangeError: a release is damaged or was changed.
    """
    if not folders:
        raise InputError("Releases are read from folders. Found none; name one or more.")
    return ReleasedRecords([open_bundle(Path(folder)) for folder in folders])

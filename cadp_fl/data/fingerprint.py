"""What distinguishes a simulated site's records from any others, so that a run is resumed with its own."""

import hashlib
from collections.abc import Iterable
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema

__all__ = ["Fingerprint", "arrays_of", "sha256_of"]


class Fingerprint(BaseModel):
    """The schema, the sizes and the hashes of a simulated site's records.

    It stays in the run folder, and no message shows its hashes: whoever knows all records but one could confirm a guess
    of that one. A real site never makes one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dataset: Schema
    parts: dict[str, tuple[Annotated[int, Field(ge=0, le=2**40)], str]] = Field(
        description="number of values and SHA-256 of the images, labels, patients, ids and attributes of each split"
    )

    @classmethod
    def of(cls, data: SiteData) -> "Fingerprint":
        """Return the fingerprint of a site's records, in their order."""
        splits = {"training": data.train, "test": data.test}
        parts = {
            f"{split} {name}": (len(array), sha256_of([array]))
            for split, dataset in splits.items()
            for name, array in arrays_of(dataset).items()
        }
        return cls(dataset=data.train.schema, parts=parts)

    def differences(self, then: "Fingerprint") -> list[str]:
        """Return what differs from an earlier fingerprint, one clause each: what it is now, and what it was then."""
        fields = [
            f"{name} ({getattr(self.dataset, name)!s:.60} now, {getattr(then.dataset, name)!s:.60} then)"
            for name in Schema.model_fields
            if getattr(self.dataset, name) != getattr(then.dataset, name)
        ]
        parts = []
        for part in {**self.parts, **then.parts}:
            (now, digest), (before, earlier) = (each.parts.get(part, (0, "")) for each in (self, then))
            if now != before:
                parts.append(f"{part} ({now} now, {before} then)")
            elif digest != earlier:
                parts.append(f"{part} ({now} now and then, with other values)")
        return [*fields, *parts]


def arrays_of(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return all that a data set holds of its records, by name, in an order that hashes of ledgers rest on."""
    arrays = {
        ("images" if dataset.schema.kind == "image" else "rows"): dataset.records,
        "labels": dataset.labels,
        "patients": dataset.patients,
        "attributes": dataset.attributes,
        "ids": dataset.ids,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def sha256_of(arrays: Iterable[np.ndarray]) -> str:
    """Return the hash of arrays one after the other, with their types and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

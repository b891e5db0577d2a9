"""Originals beside their own releases, as a simulation kept a few of them for its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["MAX_PREVIEW_BYTES", "StoredPairs", "beside", "read_pairs"]

MAX_PREVIEW_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class StoredPairs:
    """A few originals of one site and their releases, uint8 (records, channels, height, width), by class."""

    originals: np.ndarray
    released: np.ndarray
    labels: np.ndarray


def read_pairs(folder: Path, site: str, method: str) -> StoredPairs | None:
    """Return the pairs of a site and a method that a run folder has, or None where it has none."""
    path = folder / "sites" / site / f"pairs-{method}.npz"
    if not path.is_file() or path.stat().st_size > MAX_PREVIEW_BYTES:
        return None
    with np.load(path, allow_pickle=False) as stored:
        return StoredPairs(stored["originals"], stored["released"], stored["labels"])


def beside(runs: Sequence[StoredPairs]) -> list[np.ndarray]:
    """Return, for each class, every original followed by its release of each run: (images, channels, height, width).

    Args:
        runs: of the same originals.
    """
    first = runs[0]
    together = np.stack([first.originals, *(run.released for run in runs)], axis=1)
    rows = (together[first.labels == label] for label in np.unique(first.labels))
    return [row.reshape(-1, *row.shape[2:]) for row in rows]

"""Originals beside their own releases, as a simulation kept a few of them for its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadp_fl.npz import NpzError, open_npz

__all__ = ["MAX_ROWS", "StoredPairs", "beside", "read_arrays", "read_pairs"]

MAX_PREVIEW_BYTES = 64 << 20
"""That the arrays of such a file unpack to."""

MAX_ROWS = 12
"""Classes that a picture shows."""


@dataclass(frozen=True, eq=False)
class StoredPairs:
    """A few originals of one site and their releases, uint8 (records, channels, height, width), by class."""

    originals: np.ndarray
    released: np.ndarray
    labels: np.ndarray

    def has_originals_of(self, other: "StoredPairs") -> bool:
        """Return whether both are releases of the same records."""
        return np.array_equal(self.originals, other.originals) and np.array_equal(self.labels, other.labels)


def read_arrays(path: Path, *names: str) -> list[np.ndarray] | None:
    """Return arrays of a file that a simulation keeps for its report; None where it is missing, large or damaged."""
    try:
        with open_npz(path, limit=MAX_PREVIEW_BYTES) as stored:
            return [stored.array(name) for name in names] if set(names) <= set(stored.names) else None
    except NpzError:
        return None  # a picture less


def read_pairs(folder: Path, site: str, method: str) -> StoredPairs | None:
    """Return the pairs of a site and a method that a run folder has, or None where it has none that can be shown."""
    stored = read_arrays(folder / "sites" / site / f"pairs-{method}.npz", "originals", "released", "labels")
    if stored is None:
        return None
    originals, released, labels = stored
    are_images = originals.dtype == released.dtype == np.uint8 and originals.ndim == 4 and originals.shape[1] in (1, 3)
    fits = are_images and originals.shape == released.shape and labels.shape == originals.shape[:1] and len(labels) > 0
    return StoredPairs(originals, released, labels) if fits else None


def beside(runs: Sequence[StoredPairs]) -> list[np.ndarray]:
    """Return, for each of the first classes, every original and its release of each run, (images, channels, h, w).

    Args:
        runs: of the same originals.
    """
    first = runs[0]
    together = np.stack([first.originals, *(run.released for run in runs)], axis=1)
    rows = (together[first.labels == label] for label in np.unique(first.labels)[:MAX_ROWS])
    return [row.reshape(-1, *row.shape[2:]) for row in rows]

"""Which of a real site's units are tested on, where its source does not say: decided by their ids and nothing else.

A unit stays on its side when others join, as in a monthly export: what was trained on is never tested on later. What a
record shows, and what class it has, play no part, so that no statistic of records decides who is trained on.
"""

import hashlib

import numpy as np

from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Source
from cadp_fl.errors import DataError

__all__ = ["held_out"]


def held_out(source: Source, test_fraction: float) -> SiteData:
    """Return a source's own split; where it has none, hold out every unit whose id has a small hash.

    A unit is a patient where the records say whose they are, and otherwise a record, by its place in the source.

    Args:
        test_fraction: share that is held out, on average.

    Raises:
        DataError: nothing is left on one side.
    """
    if source.test is not None:
        return SiteData(source.train, source.test)
    tested = _tested(source.train, test_fraction)
    if tested.all() or not tested.any():
        raise DataError(
            f"A site trains on some units and tests on others. Holding out {test_fraction:g} of them leaves one side "
            "empty; give the source a test split, or change test_fraction."
        )
    return SiteData(source.train.select(np.flatnonzero(~tested)), source.train.select(np.flatnonzero(tested)))


def _tested(records: Dataset, test_fraction: float) -> np.ndarray:
    """Return which records are held out, bool (records,)."""
    ids = np.arange(len(records)) if records.patients is None else records.patients
    units, of_record = np.unique(ids, return_inverse=True)
    limit = int(test_fraction * 2**64)
    small = [int.from_bytes(hashlib.sha256(f"unit {unit}".encode()).digest()[:8], "big") < limit for unit in units]
    return np.array(small, dtype=bool)[of_record]

"""Privacy units: which records each contributes, exactly m of them, whatever it has.

A claim for patients bounds what changes when one is replaced by any other, so each contributes the same number of
records: the first m that it has. Where it has fewer, the rest are blanks, which everything that is computed treats like
records of its own.
"""

from dataclasses import dataclass

import numpy as np

from cadp_fl.config.names import Unit
from cadp_fl.data.schema import Dataset
from cadp_fl.errors import DataError

__all__ = ["PATIENTS_CAUTION", "Units", "has_shared_patients"]

PATIENTS_CAUTION = (
    "CAUTION: some patients have several records here, and the claim is for one record. With --unit patient and "
    "--records-per-patient it is for a patient."
)


def has_shared_patients(dataset: Dataset) -> bool:
    """Return whether a patient has several records."""
    patients = dataset.patients
    return patients is not None and len(np.unique(patients)) < len(patients)


@dataclass(frozen=True)
class Units:
    """The privacy units of a data set.

    Attributes:
        records: int64, (units, m): index of each record that a unit contributes; -1 for a blank. The first is no blank.
    """

    records: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, unit: Unit, records_per_unit: int = 1) -> "Units":
        """Return the units of a data set.

        Args:
            records_per_unit: m; 1 where a unit is a record.

        Raises:
            DataError: the unit is a patient, and the data set does not say whose its records are.
        """
        if unit == "record":
            return cls(np.arange(len(dataset))[:, None])
        if dataset.patients is None:
            raise DataError(
                "Where the unit is a patient, records say whose they are. These do not; add patients to the data "
                "(to a MedMNIST file, {train,val,test}_patients; to the schema file of a table, roles.patient)."
            )
        _, patient = np.unique(dataset.patients, return_inverse=True)
        order = np.argsort(patient, kind="stable")
        starts = np.searchsorted(patient[order], np.arange(patient.max(initial=-1) + 1))
        place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        records = np.full((len(starts), records_per_unit), -1, dtype=np.int64)
        kept = place < records_per_unit
        records[patient[order[kept]], place[kept]] = order[kept]
        return cls(records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def records_per_unit(self) -> int:
        """m, the number of records that a unit contributes, blanks included."""
        return int(self.records.shape[1])

    @property
    def slots(self) -> np.ndarray:
        """Index of every contributed record, int64 (units * m,), unit by unit; -1 for a blank."""
        return self.records.reshape(-1)

    def placed(self, dataset: Dataset) -> tuple[Dataset, np.ndarray]:
        """Return what every place of `slots` holds, and which places each unit fills, int64 (units, m), -1 for a blank.

        There are as many places whatever a unit has, and none of another unit's moves: what is computed of several
        records together may be rounded by place.
        """
        contributed, blank = self.take(dataset, np.arange(len(self.slots)))
        return contributed, np.where(blank, -1, np.arange(len(blank))).reshape(self.records.shape)

    def take(self, dataset: Dataset, places: np.ndarray) -> tuple[Dataset, np.ndarray]:
        """Return what is contributed at some places of `slots`, and which of it is blank, bool (places,).

        A blank is a black image, or a row of first values, with the label, and the attributes, of its unit's first
        record.
        """
        chosen = self.slots[places]
        blank = chosen < 0
        taken = dataset.select(np.where(blank, self.records[places // self.records_per_unit, 0], chosen))
        if blank.any():
            records = taken.records.copy()
            records[blank] = 0
            taken = Dataset(taken.schema, records, taken.labels, taken.patients, taken.attributes)
        return taken, blank

    def class_counts(self, dataset: Dataset) -> np.ndarray:
        """Return the number of contributed records of each class, blanks included, int64 (classes,)."""
        stand_in = np.where(self.records < 0, self.records[:, :1], self.records).reshape(-1)
        return np.bincount(dataset.labels[stand_in], minlength=len(dataset.schema.classes))

"""Looking before running: what a source holds, and whether it fits. Everything stays here; nothing is sent."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cadp_fl.config import DataConfig, StudyConfig, dump_tree, load_site, load_study, parse
from cadp_fl.data.partition import Patients, deal_to_sites
from cadp_fl.data.schema import Dataset, Source
from cadp_fl.data.sources import SOURCES, load_source, source_for
from cadp_fl.errors import CadpError, InputError

__all__ = ["Looked", "columns_of", "guessed", "look", "study_of"]

MOST_OF_PATIENT = 4
"""Records that a patient contributes to a first study, at most: each costs all of them more noise."""

MIN_OF_CLASS = 20
"""Training records of a class, below which nothing is learned of it."""


@dataclass(frozen=True)
class Looked:
    """What was found.

    Attributes:
        config: how it was read.
        source: the records.
        sites: (name, training records, test records) of each site that they are dealt to, or are of; none if not known.
        wrong: what keeps it from being used, a sentence each.
        remarks: what a person should know, a sentence each.
    """

    config: DataConfig
    source: Source
    sites: tuple[tuple[str, int, int], ...] = ()
    wrong: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        train, test = self.source.train, self.source.test
        schema = train.schema
        return {
            "source": self.config.source,
            "records": {"train": len(train), "test": None if test is None else len(test)},
            "kind": schema.kind,
            "shape": list(schema.shape),
            "classes": {
                name: {
                    "train": int(train.class_counts()[label]),
                    "test": None if test is None else int(test.class_counts()[label]),
                }
                for label, name in enumerate(schema.classes)
            },
            "patients": None if train.patients is None else len(np.unique(train.patients)),
            "ids": train.ids is not None,
            "sites": [{"site": site, "train": own, "test": tested} for site, own, tested in self.sites],
            "columns": columns_of(train),
            "remarks": list(self.remarks),
            "wrong": list(self.wrong),
            "ready": not self.wrong,
        }


def guessed(path: Path) -> DataConfig:
    """Return how a file or a folder would be read.

    Raises:
        InputError: there is nothing there, or nothing here reads it.
    """
    name = source_for(path) if path.exists() else None
    if name is None:
        found = "nothing there" if not path.exists() else "no such file in it"
        raise InputError(
            "Records are an .npz in MedMNIST's format, a CSV or Parquet file, or a folder of images, DICOM or NIfTI "
            f"files. At '{path}' there is {found}; check the path."
        )
    return parse(DataConfig, {"source": name, "path": str(path.resolve())})


def look(path: Path, changes: dict[str, Any]) -> Looked:
    """Return what a study's or a site's records are, or those of a file or a folder.

    Args:
        path: a study config or a site.yaml, or what is read.
        changes: of the `data` of what is read by itself.

    Raises:
        InputError: it cannot be read at all.
    """
    study: StudyConfig | None = None
    if path.suffix.lower() in (".yaml", ".yml"):
        if path.name == "site.yaml":
            own = load_site(path).data
            if own is None:
                raise InputError("A rehearsal's records are its study's. Found one; look at that config.")
            config = own
        else:
            study = load_study(path)
            config = study.data
    else:
        config = parse(DataConfig, guessed(path).model_dump(exclude_unset=True) | changes)
    source = load_source(config)
    wrong, remarks = _judged(source, config)
    sites: list[tuple[str, int, int]] = []
    if study is not None:
        try:
            dealt = deal_to_sites(study, source)
            sites = [(name, len(data.train), len(data.test)) for name, data in
                     zip(study.sites.site_names, dealt, strict=True)]  # fmt: skip
        except CadpError as error:
            wrong.append(str(error))
    elif source.train.sites is not None:
        tested = np.zeros(len(source.site_names), dtype=np.int64)
        if source.test is not None and source.test.sites is not None:
            tested = np.bincount(source.test.sites, minlength=len(source.site_names))
        counts = np.bincount(source.train.sites, minlength=len(source.site_names))
        sites = [(name, int(own), int(of)) for name, own, of in zip(source.site_names, counts, tested, strict=True)]
    return Looked(config, source, tuple(sites), tuple(wrong), tuple(remarks))


def _judged(source: Source, config: DataConfig) -> tuple[list[str], list[str]]:
    """Return what is wrong with records, and what a person should know."""
    train, wrong, remarks = source.train, [], list(source.notes)
    counts = train.class_counts()
    for label, name in enumerate(train.schema.classes):
        if counts[label] == 0:
            wrong.append(f"Every class has training records somewhere. '{name}' has none; add some, or leave it out.")
        elif counts[label] < MIN_OF_CLASS:
            remarks.append(f"Class '{name}' has {counts[label]} training records: little can be learned of it.")
    parts = [each for each in (source.train, source.test) if each is not None]
    if repeated := _repeated(parts):
        remarks.append(
            f"{repeated} records are the same as another, to the last value; each counts as a record of its own."
        )
    if train.patients is None:
        remarks.append("Nothing says whose a record is: unit: patient needs that (data.roles.patient, or patients).")
    elif (many := int((Patients.of(train).records > 1).sum())) > 0:
        most = int(Patients.of(train).records.max())
        remarks.append(
            f"{many} patients have several records, up to {most}: with unit: record a claim is for one record, with "
            "unit: patient for all that a patient contributes."
        )
    if train.ids is None and train.patients is None and source.test is None:
        remarks.append(
            "Records have no ids: a simulation deals them by their order, and a real site asks for ids before it holds "
            "any out."
        )
    if config.classes is None and SOURCES[config.source].takes_classes:
        remarks.append(f"A real site names its classes: classes: [{', '.join(train.schema.classes[:20])}].")
    return wrong, remarks


def _repeated(parts: Sequence[Dataset]) -> int:
    """Return how many records are the same as one before."""
    rows = [np.ascontiguousarray(part.records).reshape(len(part), -1) for part in parts]
    whole = np.concatenate(rows)
    seen = np.unique(whole.view([("", whole.dtype)] * whole.shape[1]), axis=0) if whole.shape[1] < 64 else None
    if seen is not None:
        return len(whole) - len(seen)
    return len(whole) - len({hash(row.tobytes()) for row in whole})


def study_of(looked: Looked) -> str:
    """Return a study that simulates on records, as YAML: three sites, or those that the records are of."""
    names = list(looked.source.site_names)
    own = {"count": len(names), "names": names, "partition": {"kind": "column"}}
    most = int(Patients.of(looked.source.train).records.max())
    of_patients = {"unit": "patient", "records_per_patient": min(most, MOST_OF_PATIENT)}
    tree: dict[str, Any] = {
        "name": re.sub(r"[^a-z0-9]+", "-", looked.source.schema.name.lower()).strip("-") or "study",
        "data": looked.config.model_dump(mode="json", exclude_unset=True),
        "sites": own if len(names) > 1 else {"count": 3},
        "flow": {"warm_start": "moments"},
        "release": {"mechanism": "privunit", "labels": "covered"},
        "methods": ["cadp", "flow-samples", "dp-sgd", "fedavg"],
        "budget": {"epsilon": 3.0, "delta": 1e-5}
        | ({"unit": "record"} if looked.source.train.patients is None else of_patients),
    }
    return dump_tree(tree)


def columns_of(records: Dataset) -> list[dict[str, Any]]:
    """Return what each column of rows is and holds; none of images."""
    described = []
    for column, codes in zip(records.schema.columns, records.records.T, strict=False):
        known = codes[codes < column.steps]
        described.append(
            {
                "name": column.name,
                "type": column.type,
                "allowed": f"{column.lower:g} to {column.upper:g}"
                if column.has_bounds
                else ", ".join(column.categories),
                "missing": len(codes) - len(known),
                "distinct": len(np.unique(known)),
            }
        )
    return described

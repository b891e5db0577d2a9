"""MedMNIST's file format: one .npz of image splits, with labels and, where they are known, patients.

    {train,val,test}_images    uint8, (records, height, width) or (records, height, width, 3)
    {train,val,test}_labels    integers, (records,) or (records, 1); or 0 and 1, (records, attributes): multi-label
    {train,val,test}_patients  integers or text, (records,) or (records, 1): our addition, in every split or in none
    {train,val,test}_ids       likewise, one for each record: the name that it keeps in every export
    {train,val,test}_sites     text, (records,): of which hospital a record is, in every split or in none; our addition
    classes                    text: names of the classes, from label 0, where data.classes gives none; our addition

The train and val splits are records to train on; val and test may be missing. Nothing in an error names a patient.
Of a multi-label file, `data.label` says which attribute is the class to be learned; all of them are public attributes.

References:
    Yang et al.: MedMNIST v2, a large-scale lightweight benchmark for 2D and 3D biomedical image classification,
    arXiv 2110.14795.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadp_fl.config import DataConfig, parse
from cadp_fl.data.identities import codes_of, sites_of
from cadp_fl.data.remedies import labels_as_integers, labels_from_zero, pixels_as_bytes, shape_of_images
from cadp_fl.data.schema import MAX_ATTRIBUTES, MAX_CLASSES, MAX_SIDE, Dataset, Schema, Source
from cadp_fl.errors import DataError
from cadp_fl.npz import Npz, NpzError, open_npz

__all__ = ["read_medmnist", "read_medmnist_as"]

MAX_UNPACKED_BYTES = 16 << 30
SPLITS = ("train", "val", "test")


def read_medmnist(config: DataConfig) -> Source:
    """Return the records of the file `data.path`.

    Raises:
        DataError: it is no such file, or its records break the format.
    """
    assert config.path is not None, "check_source asks for it"
    try:
        with open_npz(config.path, limit=MAX_UNPACKED_BYTES) as npz:
            return _source(npz, config.path.stem[:80], config)
    except NpzError as error:
        raise DataError(
            f"A MedMNIST file is an npz of plain arrays. '{config.path}' is not: {error}; {error.remedy}."
        ) from error


def read_medmnist_as(path: Path, schema: Schema) -> Source:
    """Return the records of a file, with the names that a schema has for their classes and attributes.

    Raises:
        DataError: it is no such file, its records break the format, or no attribute has the classes' name.
    """
    settings = {"source": "medmnist", "path": path, "classes": schema.classes}
    if schema.attributes:
        label = schema.classes[-1]
        if label not in schema.attributes or schema.classes != _classes_of(label):
            raise DataError(
                "Classes named 'not NAME' and 'NAME' say which attribute of a multi-label file is the label. "
                f"Found '{schema.classes[0]}' and '{label}'; leave data.classes out where the flow is trained."
            )
        settings |= {"label": label, "attributes": schema.attributes}
    return read_medmnist(parse(DataConfig, settings))


@dataclass(frozen=True)
class _Labels:
    """What a file says of its records beside their images and patients.

    Attributes:
        of: by split, int64, (records,).
        classes: their names.
        attributes: by split, uint8, (records, attributes); empty where a record has one label alone.
        names: of the attributes.
    """

    of: Mapping[str, np.ndarray]
    classes: tuple[str, ...]
    attributes: Mapping[str, np.ndarray]
    names: tuple[str, ...] = ()


def _source(npz: Npz, name: str, config: DataConfig) -> Source:
    shapes = {split: _image_shape(npz, split) for split in _splits(npz)}
    if len(found := {shape[1:] for shape in shapes.values()}) > 1:
        raise DataError(f"The images of all splits have one shape. Found {_listed(found)}; resize those of one.")
    height, width, *channels = found.pop()
    records = {split: shape[0] for split, shape in shapes.items()}
    labels = _all_labels(npz, records, config)
    patients, ids = (_codes(npz, records, kind, of) for kind, of in (("patients", "patient"), ("ids", "record")))
    schema = Schema(
        name=name, shape=(3 if channels else 1, height, width), classes=labels.classes, attributes=labels.names
    )

    names, sites = _sites(npz, records)

    def dataset(*splits: str) -> Dataset:
        images = npz.array(*(f"{split}_images" for split in splits))
        return Dataset(
            schema=schema,
            records=np.ascontiguousarray(np.moveaxis(images, 3, 1)) if channels else images[:, None],
            labels=np.concatenate([labels.of[split] for split in splits]),
            patients=np.concatenate([patients[split] for split in splits]) if patients else None,
            attributes=np.concatenate([labels.attributes[split] for split in splits]) if labels.attributes else None,
            ids=np.concatenate([ids[split] for split in splits]) if ids else None,
            sites=np.concatenate([sites[split] for split in splits]) if sites else None,
        )

    train = dataset(*(split for split in shapes if split != "test"))
    return Source(train, dataset("test") if "test" in shapes else None, names)


def _splits(npz: Npz) -> list[str]:
    """Return the splits of a file, each with images and labels."""
    splits = [split for split in SPLITS if {f"{split}_images", f"{split}_labels"} & set(npz.names)]
    wanted = [f"{split}_{part}" for split in dict.fromkeys(["train", *splits]) for part in ("images", "labels")]
    for key in wanted:
        if key not in npz.names:
            raise DataError(
                f"A MedMNIST file has train_images and train_labels, and labels for every other split. '{key}' is "
                f"missing among {npz.listing}; name the arrays so."
            )
    return splits


def _image_shape(npz: Npz, split: str) -> tuple[int, ...]:
    """Return (records, height, width) or (records, height, width, 3) of a split; its values are not read."""
    name = f"{split}_images"
    header = npz.header(name)
    shape = header.shape
    if header.dtype != np.uint8:
        raise DataError(f"Pixels are uint8, 0 to 255. '{name}' {pixels_as_bytes(name, npz.array(name))}.")
    if len(shape) not in (3, 4) or shape[3:] not in ((), (3,)):
        raise DataError(
            f"Images are (records, height, width) or (records, height, width, 3). '{name}' is {shape}; "
            f"{shape_of_images(name, shape)}."
        )
    if not all(1 <= side <= MAX_SIDE for side in shape[1:3]):
        raise DataError(f"An image's sides are 1 to {MAX_SIDE} pixels. '{name}' is {shape}; resize the images.")
    if not shape[0]:
        raise DataError(f"A split has records. '{name}' has none; fill it, or leave out a split other than train.")
    return shape


def _all_labels(npz: Npz, records: Mapping[str, int], config: DataConfig) -> _Labels:
    """Return the labels of every split, and the attributes that one of them was chosen from."""
    if config.label is None:
        labels = {split: _labels(npz, split, count) for split, count in records.items()}
        return _Labels(labels, _classes(labels, config.classes or _named_classes(npz)), {})
    attributes = {split: _attributes(npz, split, count) for split, count in records.items()}
    if len(counts := {values.shape[1] for values in attributes.values()}) > 1:
        raise DataError(f"Records have as many labels in every split. Found {_listed(counts)}; store the same in each.")
    count = counts.pop()
    names = config.attributes or tuple(str(number) for number in range(count))
    if len(names) != count:
        raise DataError(
            f"data.attributes names every label. Found {len(names)} names for {count} labels; name each once."
        )
    column = _column_named(config.label, names)
    classes = config.classes or _classes_of(names[column])
    if len(classes) != 2:
        raise DataError(
            f"A record lacks the attribute '{names[column]}' or has it: two classes. Found {len(classes)} names in "
            "data.classes; give two, or none."
        )
    labels = {split: values[:, column].astype(np.int64) for split, values in attributes.items()}
    return _Labels(labels, classes, attributes, names)


def _attributes(npz: Npz, split: str, records: int) -> np.ndarray:
    """Return the labels of a split of a multi-label file, uint8 (records, attributes), each 0 or 1."""
    name = f"{split}_labels"
    header = npz.header(name)
    if len(header.shape) != 2 or header.shape[0] != records or header.shape[1] < 2:
        raise DataError(
            f"data.label chooses among several labels of each of the {records} images. '{name}' is {header.shape}; "
            "remove data.label and data.attributes, or store several labels for each record."
        )
    if header.shape[1] > MAX_ATTRIBUTES:
        raise DataError(
            f"A record has at most {MAX_ATTRIBUTES} attributes. '{name}' has {header.shape[1]}; leave some out."
        )
    if header.dtype.kind not in "iu":
        raise DataError(f"Attributes are integers, 0 or 1. '{name}' {labels_as_integers(name, npz.array(name))}.")
    values = npz.array(name)
    if int(values.min()) < 0 or int(values.max()) > 1:
        raise DataError(
            f"An attribute is 0 or 1. '{name}' holds {values.min()} to {values.max()}; store 1 for a record that has "
            "it, and 0 for any other."
        )
    return values.astype(np.uint8)


def _column_named(label: str, names: tuple[str, ...]) -> int:
    """Return the column of an attribute, which is given by its name or by its number."""
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    listed = f"{', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    raise DataError(
        f"data.label is one of the attributes: {listed}; or its column, 0 to {len(names) - 1}. Found '{label}'."
    )


def _classes_of(attribute: str) -> tuple[str, ...]:
    return (f"not {attribute}", attribute)


def _labels(npz: Npz, split: str, records: int) -> np.ndarray:
    """Return the labels of a split, int64 (records,), none below zero."""
    name = f"{split}_labels"
    header = npz.header(name)
    if len(header.shape) == 2 and header.shape[1] > 1:
        if header.dtype.kind in "biuf" and _is_one_hot(npz.array(name)):
            raise DataError(
                f"A label is one number, from 0. '{name}' holds {header.shape[1]} columns of which one is 1 (one-hot); "
                f"write np.argmax({name}, axis=1)."
            )
        raise DataError(
            f"A record has one label. '{name}' has {header.shape[1]} (multi-label); name the one to learn with "
            "data.label, which makes all of them public attributes, or choose other data."
        )
    if header.dtype.kind not in "iu":
        raise DataError(f"Labels are integers from 0. '{name}' {labels_as_integers(name, npz.array(name))}.")
    labels = _column(npz, name, records)
    if int(labels.min()) < 0 or int(labels.max()) >= MAX_CLASSES:
        raise DataError(
            f"A label is 0 to {MAX_CLASSES - 1}. '{name}' holds {labels.min()} to {labels.max()}; "
            f"{labels_from_zero(name, 0)}."
        )
    return labels.astype(np.int64)


def _is_one_hot(values: np.ndarray) -> bool:
    """Return whether every row holds one 1 and zeros."""
    return bool(np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all())


def _classes(labels: Mapping[str, np.ndarray], classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the classes' names: those of the config, or the numbers up to the largest label."""
    split = max(labels, key=lambda name: int(labels[name].max()))
    found = np.unique(np.concatenate([np.unique(each) for each in labels.values()])).tolist()
    name, smallest, largest = f"{split}_labels", found[0], found[-1]
    if classes is not None:
        if largest >= len(classes):
            moved = smallest > 0 and largest - smallest < len(classes)
            way_out = f"labels start at 0: {labels_from_zero(name, smallest)}, or " if moved else ""
            raise DataError(
                f"A label is 0 to {len(classes) - 1}, one for each of data.classes. '{name}' holds {largest}; "
                f"{way_out}name every class from 0 to {largest}."
            )
        return classes
    if lacking := sorted(set(range(largest)) - set(found)):
        first = smallest if len(lacking) == smallest else 0
        raise DataError(
            f"Labels start at 0 and leave none out. These are {smallest} to {largest}, and none is {lacking[0]}; "
            f"{labels_from_zero(name, first)}, or, if other sites have such records, name all classes from 0 "
            "with data.classes."
        )
    if largest == 0:
        raise DataError(
            "A classifier needs two classes. Every label is 0; add records of another class, or, if other sites have "
            "some, name all classes with data.classes."
        )
    return tuple(str(label) for label in found)


def _named_classes(npz: Npz) -> tuple[str, ...] | None:
    """Return the names of the classes that a file has; None where it has none that can be printed."""
    if "classes" not in npz.names or npz.header("classes").dtype.kind != "U" or len(npz.header("classes").shape) != 1:
        return None
    return tuple(npz.array("classes").tolist())


def _codes(npz: Npz, records: Mapping[str, int], kind: str, of: str) -> dict[str, np.ndarray] | None:
    """Return the patient, or the id, of every record, by split, as int64 codes; None where the file names none."""
    names = {split: f"{split}_{kind}" for split in records if f"{split}_{kind}" in npz.names}
    if not names:
        return None
    if lacking := sorted(set(records) - set(names)):
        raise DataError(
            f"{kind.capitalize()} are named in every split or in none. '{lacking[0]}_{kind}' is missing; add it, so "
            f"that a {of} in two splits is found."
        )
    dtypes = [npz.header(name).dtype for name in names.values()]
    kinds = {"i" if dtype.kind == "u" else dtype.kind for dtype in dtypes}
    if len(kinds) > 1 or not kinds <= set("iSU") or np.result_type(*dtypes).kind == "f":
        raise DataError(
            f"{kind.capitalize()} are integers or text, of one type in all splits. Found {_listed(set(dtypes))}; "
            "convert them."
        )
    columns = [_column(npz, name, records[split]) for split, name in names.items()]
    codes = codes_of(np.concatenate(columns), of)
    ends = np.cumsum([len(column) for column in columns])
    return dict(zip(names, np.split(codes, ends[:-1]), strict=True))


def _sites(npz: Npz, records: Mapping[str, int]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the names of sites, and of which every record is, by split; none where the file names none."""
    names = {split: f"{split}_sites" for split in records if f"{split}_sites" in npz.names}
    if not names:
        return (), {}
    if lacking := sorted(set(records) - set(names)):
        raise DataError(f"Sites are named in every split or in none. '{lacking[0]}_sites' is missing; add it.")
    columns = [_column(npz, name, records[split]).astype(str).tolist() for split, name in names.items()]
    known, of_record = sites_of([site for column in columns for site in column])
    ends = np.cumsum([len(column) for column in columns])
    return known, dict(zip(names, np.split(of_record, ends[:-1]), strict=True))


def _column(npz: Npz, name: str, records: int) -> np.ndarray:
    """Return an array of one value a record, (records,)."""
    if (shape := npz.header(name).shape) not in ((records,), (records, 1)):
        raise DataError(
            f"'{name}' has one value for each of the {records} images. It is {shape}; store as many as images."
        )
    return npz.array(name).reshape(-1)


def _listed(values: Iterable[object]) -> str:
    return " and ".join(sorted(str(value) for value in values))

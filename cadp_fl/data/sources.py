"""What can be read: one function a source, in one registry.

A source's function takes the data config and returns all that the source holds; `Reader` adds what it needs of the
config. To add one, write such a function and put it into `SOURCES`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from cadp_fl.config import DataConfig
from cadp_fl.data.bundled import read_breast_cancer, read_diabetes, read_digits
from cadp_fl.data.celeba import read_celeba
from cadp_fl.data.dicom import is_dicom, read_dicom
from cadp_fl.data.imagefolder import read_imagefolder
from cadp_fl.data.medmnist import read_medmnist
from cadp_fl.data.mnist import read_fashion_mnist, read_mnist
from cadp_fl.data.nifti import read_nifti
from cadp_fl.data.schema import Source
from cadp_fl.data.table import read_table
from cadp_fl.errors import ConfigError, DataError

__all__ = ["SOURCES", "Reader", "check_source", "load_source", "read_digits", "source_for"]


@dataclass(frozen=True)
class Reader:
    """How a source is read.

    Attributes:
        read: returns all that the source holds.
        path: whether `data.path` is a file that has to be there, a folder with a default, a folder that has to be
            there (tree), a file or a folder (any), or not taken.
        takes_classes: whether `data.classes` names the classes, or the source does itself.
        takes_label: whether a record may have several labels, of which `data.label` names the class to be learned.
        takes: which other keys of `data` it reads, such as `size`; one that it does not read is refused.
    """

    read: Callable[[DataConfig], Source]
    path: Literal["none", "file", "folder", "tree", "any"] = "none"
    takes_classes: bool = False
    takes_label: bool = False
    takes: tuple[str, ...] = ()


_HANDLED = ("on_bad_record", "cache")
_OF_FILES = ("metadata", "roles", "size", "channels", "fit", "window", *_HANDLED)
"""Keys that sources of files read."""

SOURCES: dict[str, Reader] = {
    "breast-cancer": Reader(read_breast_cancer),
    "diabetes": Reader(read_diabetes),
    "celeba": Reader(
        read_celeba, path="tree", takes_classes=True, takes_label=True, takes=("size", "channels", "fit", *_HANDLED)
    ),
    "dicom": Reader(read_dicom, path="tree", takes_classes=True, takes=(*_OF_FILES, "frame")),
    "digits": Reader(read_digits),
    "fashion-mnist": Reader(read_fashion_mnist, path="folder"),
    "imagefolder": Reader(
        read_imagefolder,
        path="tree",
        takes_classes=True,
        takes=_OF_FILES,
    ),
    "medmnist": Reader(read_medmnist, path="file", takes_classes=True, takes_label=True),
    "mnist": Reader(read_mnist, path="folder"),
    "nifti": Reader(read_nifti, path="tree", takes_classes=True, takes=(*_OF_FILES, "frame", "axis")),
    "table": Reader(read_table, path="any", takes=("columns", "on_bad_record")),
}


_KEYS_OF_SOME = {
    "metadata",
    "roles",
    "size",
    "channels",
    "fit",
    "window",
    "frame",
    "axis",
    "columns",
    "on_bad_record",
    "cache",
}
"""Keys of `data` that a source reads only if it says so."""


def check_source(config: DataConfig) -> None:
    """Check that a config names a source and gives what it needs, without reading records.

    Raises:
        ConfigError: the source is unknown, lacks its path, or does not take a path, names of classes or a label.
        DataError: there is no file, or no folder, at the path.
    """
    if config.source not in SOURCES:
        raise ConfigError(
            f"data.source is one of: {', '.join(sorted(SOURCES))}. Found '{config.source}'; choose one of them."
        )
    reader, path = SOURCES[config.source], config.path
    if config.classes is not None and not reader.takes_classes:
        raise ConfigError(f"Data source '{config.source}' names its classes itself. Found others; remove data.classes.")
    if config.label is not None and not reader.takes_label:
        raise ConfigError(
            f"Data source '{config.source}' gives every record one label. Found '{config.label}' to choose among "
            "several; remove data.label and data.attributes."
        )
    for key in sorted(_KEYS_OF_SOME & config.model_fields_set - set(reader.takes)):
        if getattr(config, key) != type(config).model_fields[key].get_default():
            readers = ", ".join(name for name, each in sorted(SOURCES.items()) if key in each.takes) or "none"
            raise ConfigError(
                f"data.{key} is for the sources that read it: {readers}. Found it with '{config.source}'; remove "
                f"data.{key}, or choose another source."
            )
    if path is None:
        if reader.path in ("file", "any"):
            raise ConfigError(f"Data source '{config.source}' reads a file. Found none; pass --set data.path=FILE.")
        if reader.path == "tree":
            raise ConfigError(f"Data source '{config.source}' reads a folder. Found none; pass --set data.path=FOLDER.")
    elif reader.path == "none":
        raise ConfigError(f"Data source '{config.source}' takes no path. Found '{path}'; remove data.path.")
    elif (reader.path == "any" and not os.path.exists(path)) or (reader.path == "file" and not os.path.isfile(path)):
        raise DataError(
            f"Data source '{config.source}' reads the file data.path. There is none at '{path}'; check "
            f"it{_or_read(path)}."
        )
    elif (reader.path == "folder" and os.path.lexists(path) and not os.path.isdir(path)) or (
        reader.path == "tree" and not os.path.isdir(path)
    ):
        raise DataError(
            f"Data source '{config.source}' reads the folder data.path. '{path}' is none; check it{_or_read(path)}."
        )


_SOURCE_OF = {
    ".npz": "medmnist",
    **dict.fromkeys((".csv", ".tsv", ".data", ".parquet", ".pq"), "table"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff"), "imagefolder"),
    **dict.fromkeys((".dcm", ".dicom"), "dicom"),
    **dict.fromkeys((".nii", ".nii.gz"), "nifti"),
}
"""The source that reads files named so."""

_LOOKED_AT = 1000
"""Files of a folder, to find out what it holds."""


def source_for(path: Path) -> str | None:
    """Return the name of the source that reads what is at a path, by the names of its files; None where none does."""
    if path.is_file():
        return _by_name(path)
    found = (_by_name(each) for each in islice(path.rglob("*"), _LOOKED_AT) if each.is_file())
    known = [name for name in found if name is not None and name != "medmnist"]
    files = [name for name in known if name != "table"] or known  # a table beside files says what they are
    return max(set(files), key=files.count) if files else None


def _by_name(path: Path) -> str | None:
    if not path.suffix and is_dicom(path):  # scanners give names without an ending
        return "dicom"
    return _SOURCE_OF.get(".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower())


def _or_read(path: Path) -> str:
    """Return which source would read what is at a path, as the end of a sentence; nothing where none would."""
    name = source_for(path) if path.exists() else None
    return f", or read it with data.source: {name}" if name else ""


def load_source(config: DataConfig) -> Source:
    """Return all that the source of a config holds.

    Raises:
        ConfigError: the source is unknown, or does not fit the config.
        DataError: the source cannot be read.
    """
    check_source(config)
    return SOURCES[config.source].read(config)

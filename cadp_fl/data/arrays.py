"""Arrays of a program that knows nothing of this library, as a `Dataset`."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from cadp_fl.data.schema import MAX_ATTRIBUTES, Dataset, Schema
from cadp_fl.errors import DataError

__all__ = ["dataset_of"]


def dataset_of(
    images: Any,
    labels: Any,
    patients: Any = None,
    *,
    classes: Iterable[str | int],
    name: str = "records",
    levels: int = 256,
    attributes: Mapping[str, Any] | None = None,
) -> Dataset:
    """Return records from numpy arrays, or from tensors on the CPU. Nothing in an error is a value of a record.

    Args:
        images: (records, height, width) or (records, channels, height, width), with 1 or 3 channels; uint8, or floats
            from 0 to 1, which are rounded to the nearest level.
        labels: integers, (records,); a label is an index into the classes.
        patients: integers, (records,): which patient a record is of. None: every record is of another patient.
        classes: one name a class, the same at every site and in the same order, also where a site lacks a class.
        name: of the data set, the same at every site.
        levels: number of grey levels of a pixel, a public number. Level v of uint8 images is round(255 v / (levels -
            1)).
        attributes: public attributes by name, in the same order at every site: 1 for each record that has it, else 0,
            (records,).

    Raises:
        DataError: a type, a shape or a range is wrong.
    """
    stack, names, columns = _stack(np.asarray(images)), tuple(str(each) for each in classes), dict(attributes or {})
    try:
        schema = Schema(name=name, shape=stack.shape[1:], classes=names, levels=levels, attributes=tuple(columns))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"][0] == "attributes":
            raise DataError(
                f"Records have up to {MAX_ATTRIBUTES} attributes, with names of 1 to 64 characters. Found "
                f"{len(columns)} attributes; correct their names."
            ) from error
        raise DataError(
            f"Records have a name, 1 or 3 channels, two or more classes and 2 to 256 levels. Found '{name}', images of "
            f"shape {stack.shape[1:]}, {len(names)} classes and {levels} levels; correct the {first['loc'][0]}."
        ) from error
    owners = None if patients is None else _integers(patients, "Patients")
    values = _attributes(columns, len(stack)) if columns else None
    return Dataset(schema, _pixels(stack, levels), _integers(labels, "Labels"), owners, values)


def _stack(images: np.ndarray) -> np.ndarray:
    """Return images as (records, channels, height, width)."""
    if images.ndim not in (3, 4):
        raise DataError(
            f"Images are (records, height, width) or (records, channels, height, width). Found {images.shape}; reshape "
            "them."
        )
    return images[:, None] if images.ndim == 3 else images


def _pixels(images: np.ndarray, levels: int) -> np.ndarray:
    """Return images as uint8."""
    if images.dtype.kind == "f":
        if images.size and not (images.min() >= 0 and images.max() <= 1):  # also where one is not a number
            raise DataError("Pixels as floats are from 0 to 1. Found others; undo the normalization of the images.")
        images = np.round(np.round(images * (levels - 1)) * (255 / (levels - 1))).astype(np.uint8)
    if images.dtype != np.uint8:
        raise DataError(f"Pixels are uint8, 0 to 255, or floats, 0 to 1. Found {images.dtype}; convert them.")
    return np.ascontiguousarray(images)


def _attributes(by_name: Mapping[str, Any], records: int) -> np.ndarray:
    """Return attributes as uint8, (records, attributes)."""
    columns = [np.asarray(values) for values in by_name.values()]
    if any(column.shape != (records,) or not np.isin(column, (0, 1)).all() for column in columns):
        raise DataError(
            f"An attribute is 0 or 1 for each of the {records} records. Found others; correct the attributes."
        )
    return np.stack(columns, axis=1).astype(np.uint8)


def _integers(values: Any, what: str) -> np.ndarray:
    """Return values as int64."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise DataError(f"{what} are integers. Found {array.dtype}; convert them.")
    return array.astype(np.int64)

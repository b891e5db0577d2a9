"""A page on records before anything is run: for whoever may see them, and for nobody else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cadp_fl.data.schema import Dataset
from cadp_fl.outputs import replaced_file
from cadp_fl.report.figures import image_grid, image_grid_png
from cadp_fl.report.pairs import MAX_ROWS
from cadp_fl.report.rendering import render_page
from cadp_fl.report.rows import associations, marginals, rows_as_text

__all__ = ["contact_sheet", "write_data_page"]

COLUMNS, ROWS = 12, 8


def contact_sheet(records: Dataset) -> bytes:
    """Return some images of each of the first classes, one row a class, as a PNG."""
    return image_grid_png([images for _, images in _by_class(records)], COLUMNS)[0]


def write_data_page(path: Path, looked: Mapping[str, Any], records: Dataset) -> None:
    """Write a page on what was found, with originals: mode 0600.

    Args:
        looked: what was found, as JSON values.
        records: training records.
    """
    pictures = _by_class(records) if records.schema.kind == "image" else []
    page = render_page(
        "data.html",
        {},
        looked=looked,
        name=records.schema.name,
        classes=[name for name, _ in pictures],
        grid=image_grid([images for _, images in pictures], COLUMNS) if pictures else None,
        marginals=marginals([("records", records)]) if not pictures else None,
        associations=associations([("records", records)]) if not pictures else None,
        columns=[*(column.name for column in records.schema.columns), "label"],
        sample=rows_as_text(records, ROWS) if not pictures else [],
    )
    with replaced_file(path, mode=0o600) as file:
        file.write_text(page, encoding="utf-8")


def _by_class(records: Dataset) -> list[tuple[str, np.ndarray]]:
    """Return the first images of each of the first classes that have some."""
    labels = [label for label in range(len(records.schema.classes)) if (records.labels == label).any()][:MAX_ROWS]
    return [
        (records.schema.classes[label], records.records[np.flatnonzero(records.labels == label)[:COLUMNS]])
        for label in labels
    ]

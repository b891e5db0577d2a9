"""Any source as one checked file in MedMNIST's format, which every command and every site reads by itself.

    {train,test}_images, _labels, and where they are known _patients, _ids and _sites; classes: the classes' names

Patients and ids are written as the codes that readers make of them, so that no name is in the file.
"""

import zipfile
from pathlib import Path

import numpy as np

from cadp_fl.data.schema import Source
from cadp_fl.errors import InputError
from cadp_fl.outputs import new_file

__all__ = ["write_source"]


def write_source(source: Source, output: Path) -> None:
    """Write the images of a source.

    Raises:
        InputError: there is something at the path, or records are rows.
    """
    if source.schema.kind != "image":
        raise InputError(
            "Images are imported to one .npz. These records are rows; a CSV or Parquet file is read as it is, with "
            "data.source: table."
        )
    arrays: dict[str, np.ndarray] = {"classes": np.array(source.schema.classes)}
    for split, records in (("train", source.train), ("test", source.test)):
        if records is None:
            continue
        images = records.records
        arrays[f"{split}_images"] = images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, 3)
        arrays[f"{split}_labels"] = records.labels
        for name in ("patients", "ids"):
            if (codes := getattr(records, name)) is not None:
                arrays[f"{split}_{name}"] = codes
        if records.sites is not None:
            arrays[f"{split}_sites"] = np.array(source.site_names)[records.sites]
    with new_file(output, "An import") as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

"""NIfTI: one slice of each volume, cut and turned by its own orientation.

The axes of a file are named by its affine: R to the patient's right, A to the front, S to the head. A slice is across S
(axial), A (coronal) or R (sagittal). It is shown with the front or the head up, and with the patient's right, or front,
to the right: RAS, as neurologists have it. Of several volumes in a file the first is read.

Which values are black and white: two, by `data.window`; or else what the header names (cal_min, cal_max); or else the
full range of its integer type. The range never comes from the record's own extremes, so a file of floats needs one of
the first two. Only the slice is read, whatever the size of a volume.

References:
    Cox et al.: A (sort of) new image data format standard: NIfTI-1, 2004. nibabel's `io_orientation`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.data.files import listed, source_of_files
from cadp_fl.data.images import MAX_PIXELS, DecodedImage, printable, quiet
from cadp_fl.data.schema import Source
from cadp_fl.errors import DataError

__all__ = ["decode_nifti", "is_nifti", "read_nifti"]

MAX_VALUES = 1 << 31
"""Of a whole file, which may have to be unpacked up to its slice."""

_ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}


def read_nifti(config: DataConfig) -> Source:
    """Return a slice of each NIfTI file in the folder `data.path`.

    Raises:
        DataError: nibabel is not installed, there is no such file, or some cannot be used.
    """
    assert config.path is not None, "check_source asks for it"
    _nibabel()
    records, notes = listed(config, is_nifti)
    return source_of_files(records, decode_nifti, config, name=config.path.resolve().name or "nifti", notes=notes)


def is_nifti(path: Path) -> bool:
    """Return whether a file is named as a NIfTI volume."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def decode_nifti(path: Path, config: DataConfig) -> DecodedImage:
    """Return one slice of a volume.

    Raises:
        DataError: it cannot be read, or its range is not known.
    """
    nibabel, name = _nibabel(), printable(path)
    try:
        with quiet():
            volume = nibabel.load(path)
            if not isinstance(volume, nibabel.Nifti1Image):  # of which NIfTI-2 is one
                raise DataError(f"A NIfTI file holds a volume. '{name}' holds another kind; convert it.")
            return _slice(nibabel, volume, config, name)
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"A volume fits into memory. '{name}' does not; leave it out.") from error
    except Exception as error:  # decoders raise whatever they come across
        raise DataError(
            f"A NIfTI file holds a whole volume. '{name}' is cut short or damaged; get the file again."
        ) from error


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise DataError("NIfTI is read by nibabel. It is not installed; run pip install 'cadp-fl[medical]'.") from error
    return nibabel


def _slice(nibabel: Any, volume: Any, config: DataConfig, name: str) -> DecodedImage:
    shape = tuple(int(side) for side in volume.shape)
    if len(shape) < 3 or min(shape, default=0) < 1 or np.prod(shape, dtype=object) > MAX_VALUES:
        raise DataError(
            f"A volume has three sides and at most {MAX_VALUES} values. '{name}' is {shape}; leave it out, or cut it."
        )
    orientation = nibabel.io_orientation(volume.affine)
    if np.isnan(orientation).any():
        raise DataError(f"A volume's affine says how it lies. That of '{name}' does not; correct its header.")
    axis_of = {int(orientation[axis, 0]): axis for axis in range(3)}
    across = _ACROSS[config.axis]
    own, count = axis_of[across], shape[axis_of[across]]
    place = _place(count, config, name)
    index: list[Any] = [slice(None)] * 3 + [0] * (len(shape) - 3)
    index[own] = place if orientation[own, 1] > 0 else count - 1 - place
    if np.prod([side for axis, side in enumerate(shape[:3]) if axis != own], dtype=object) > MAX_PIXELS:
        raise DataError(f"A slice has at most {MAX_PIXELS} pixels. '{name}' has more; choose another data.axis.")
    values = np.asarray(volume.dataobj[tuple(index)], dtype=np.float64)
    shown = _turned(values, [axis for axis in range(3) if axis != own], orientation)
    low, high = _range(volume, config, name)
    pixels = np.round(np.clip((np.nan_to_num(shown) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return DecodedImage(pixels, ("taken from the first of several volumes",) if len(shape) > 3 else ())


def _place(count: int, config: DataConfig, name: str) -> int:
    """Return which slice is read, counted from the left, the back or the feet."""
    if isinstance(config.frame, int):
        if config.frame >= count:
            raise DataError(
                f"data.frame is a slice of each volume, from 0. Found {config.frame}, and '{name}' has {count}; lower "
                "it, or choose first, middle or last."
            )
        return config.frame
    return {"first": 0, "middle": count // 2, "last": count - 1}[config.frame]


def _turned(values: np.ndarray, axes: list[int], orientation: np.ndarray) -> np.ndarray:
    """Return a slice with its first world axis to the right and its second one up, (height, width)."""
    for place, axis in enumerate(axes):
        if orientation[axis, 1] < 0:
            values = np.flip(values, axis=place)
    if orientation[axes[0], 0] > orientation[axes[1], 0]:
        values = values.T
    return np.flip(values.T, axis=0)


def _range(volume: Any, config: DataConfig, name: str) -> tuple[float, float]:
    """Return the values that become black and white."""
    if isinstance(config.window, tuple):
        return config.window
    header = volume.header
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if config.window == "voi" and np.isfinite([low, high]).all() and low < high:
        return low, high
    stored = header.get_data_dtype()
    if stored.kind not in "iu":
        raise DataError(
            f"Which values are black and white is not in a file of floats. '{name}' is one; give both with "
            "data.window: [LOW, HIGH], the same for the files of all sites."
        )
    slope, intercept = header.get_slope_inter()
    ends = np.array([np.iinfo(stored).min, np.iinfo(stored).max], dtype=np.float64)
    low, high = sorted((ends * (slope or 1.0) + (intercept or 0.0)).tolist())
    return low, high

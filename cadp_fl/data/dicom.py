"""DICOM: one image of each file, as a radiologist's viewer would show it, and whose it is.

    stored values --(modality: slope and intercept, or a table)--> values --(window)--> 0 to 255; MONOCHROME1 inverted

The window is what the file names (VOI: its first window, or its table), else the full range of its type; or two values,
of Hounsfield units say, for all files. The range never comes from the record's own extremes. Colours are RGB of 8 bits.
Of a file of several frames, `data.frame` says which is read, and no other is decoded.

PatientID is the patient, and SOPInstanceUID the record's id. Both become codes in memory (`cadp_fl.data.identities`),
which leave no site. Nothing else of a header is kept, printed or sent. What is burned into the pixels (a name, a date)
is not seen here: it is the steward's to know.

References:
    DICOM PS3.3, C.7.6.3 (image pixel), C.11.1 (modality LUT), C.11.2 (VOI LUT).
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.data.files import listed, source_of_files
from cadp_fl.data.images import MAX_PIXELS, DecodedImage, printable, quiet
from cadp_fl.data.schema import Source
from cadp_fl.errors import DataError

__all__ = ["decode_dicom", "is_dicom", "read_dicom"]

PREAMBLE = 128
_CANNOT_SAY = "read without its word that nothing, such as a name, is burned into its pixels: look at them"


def read_dicom(config: DataConfig) -> Source:
    """Return the images of the DICOM files in the folder `data.path`.

    Raises:
        DataError: pydicom is not installed, there is no such file, or some cannot be used.
    """
    assert config.path is not None, "check_source asks for it"
    _pydicom()
    records, notes = listed(config, is_dicom)
    return source_of_files(records, decode_dicom, config, name=config.path.resolve().name or "dicom", notes=notes)


def is_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM files do, whatever its name; an index of files (DICOMDIR) is none."""
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    except OSError:
        return path.suffix.lower() in (".dcm", ".dicom")  # to be named as a file that cannot be read


def decode_dicom(path: Path, config: DataConfig) -> DecodedImage:
    """Return one image of a DICOM file, whose it is and which it is.

    Raises:
        DataError: it has no image, or cannot be read.
    """
    pydicom, name = _pydicom(), printable(path)
    try:
        with quiet():
            dataset = pydicom.dcmread(path, defer_size="1 KB")  # what is longer is read when it is asked for
            return _decoded(pydicom, dataset, path, config, name)
    except (DataError, KeyboardInterrupt, SystemExit):
        raise
    except MemoryError as error:
        raise DataError(f"An image fits into memory. '{name}' does not; leave it out.") from error
    except BaseException as error:  # decoders raise whatever they come across, and a panic of Rust's is no Exception
        raise DataError(
            f"A DICOM file holds a whole image. '{name}' is cut short or damaged, or compressed in a way that no "
            "plugin here reads; get the file again, or convert it."
        ) from error


def _pydicom() -> Any:
    try:
        import pydicom
        from pydicom import pixels  # noqa: F401
    except ImportError as error:
        raise DataError("DICOM is read by pydicom. It is not installed; run pip install 'cadp-fl[medical]'.") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it logs values of headers
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    return pydicom


def _decoded(pydicom: Any, dataset: Any, path: Path, config: DataConfig, name: str) -> DecodedImage:
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if not rows or not columns or not any(key in dataset for key in ("PixelData", "FloatPixelData")):
        raise DataError(f"A DICOM file of a data set holds an image. '{name}' holds none; leave it out.")
    if rows * columns * int(dataset.get("SamplesPerPixel") or 1) > 3 * MAX_PIXELS:
        raise DataError(f"An image has at most {MAX_PIXELS} pixels. '{name}' has {columns} x {rows}; leave it out.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    frame = _frame(frames, config, name)
    is_deflated = dataset.file_meta.TransferSyntaxUID == pydicom.uid.DeflatedExplicitVRLittleEndian
    stored = pydicom.pixels.pixel_array(dataset if is_deflated else path, index=frame)  # by the path, one frame is read
    notes = [f"taken as frame {frame + 1} of {frames}"] if frames > 1 else []
    if str(dataset.get("BurnedInAnnotation") or "").upper() != "NO":
        notes.append(_CANNOT_SAY)
    patient, record = (str(dataset.get(key) or "").strip() or None for key in ("PatientID", "SOPInstanceUID"))
    return DecodedImage(_shown(pydicom, dataset, stored, config, name), tuple(notes), patient, record)


def _frame(frames: int, config: DataConfig, name: str) -> int:
    """Return which frame of a file is read."""
    if isinstance(config.frame, int):
        if config.frame >= frames:
            raise DataError(
                f"data.frame is a frame of each file, from 0. Found {config.frame}, and '{name}' has {frames}; lower "
                "it, or choose first, middle or last."
            )
        return config.frame
    return {"first": 0, "middle": frames // 2, "last": frames - 1}[config.frame]


def _shown(pydicom: Any, dataset: Any, stored: np.ndarray, config: DataConfig, name: str) -> np.ndarray:
    """Return stored values as a viewer shows them, uint8 (height, width) or (height, width, 3)."""
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    if photometric == "PALETTE COLOR":
        stored = pydicom.pixels.apply_color_lut(stored, dataset)
    if stored.ndim == 3 and stored.shape[2] == 3:
        return stored if stored.dtype == np.uint8 else (stored >> (8 * (stored.dtype.itemsize - 1))).astype(np.uint8)
    if stored.ndim != 2 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(
            f"An image is grey or in colours. '{name}' is {photometric[:20] or 'of no kind that it names'}; convert it."
        )
    values = pydicom.pixels.apply_modality_lut(stored, dataset).astype(np.float64)
    low, high, values = _window(pydicom, dataset, values, config, name)
    unit = np.clip((values - low) / (high - low), 0, 1)
    return np.round((1 - unit if photometric == "MONOCHROME1" else unit) * 255).astype(np.uint8)


def _window(
    pydicom: Any, dataset: Any, values: np.ndarray, config: DataConfig, name: str
) -> tuple[float, float, np.ndarray]:
    """Return the values that become black and white, and the values that they are of."""
    if isinstance(config.window, tuple):
        return *config.window, values
    if config.window == "voi":
        center, width = (_first(dataset.get(key)) for key in ("WindowCenter", "WindowWidth"))
        if center is not None and width is not None and width > 1:
            return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2, values  # C.11.2.1.2
        if dataset.get("VOILUTSequence"):
            bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
            looked = pydicom.pixels.apply_voi_lut(np.round(values).astype(np.int32), dataset).astype(np.float64)
            return 0.0, float(2**bits - 1), looked
    if "FloatPixelData" in dataset:
        raise DataError(
            f"Which values are black and white is not in a file of floats. '{name}' is one; give both with "
            "data.window: [LOW, HIGH], the same for the files of all sites."
        )
    if dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1), values
    bits, is_signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation") or 0) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    ends = sorted((low * slope + intercept, high * slope + intercept))
    return ends[0], ends[1], values


def _first(value: Any) -> float | None:
    """Return the first of one or several numbers; None where there is none."""
    if value is None or value == "":
        return None
    number = float(value if isinstance(value, int | float) or not hasattr(value, "__getitem__") else value[0])
    return number if np.isfinite(number) else None

"""DICOM and NIfTI: values against the libraries' own, real samples, and files that are broken on purpose."""

import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pydicom.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from cadp_fl.config import DataConfig
from cadp_fl.data.dicom import decode_dicom, is_dicom
from cadp_fl.data.identities import code_of
from cadp_fl.data.nifti import decode_nifti, is_nifti
from cadp_fl.data.sources import load_source
from cadp_fl.data.units import Units
from cadp_fl.errors import DataError

SAMPLES = sorted(path for path in Path(pydicom.data.__file__).parent.rglob("*") if path.is_file() and is_dicom(path))
VOLUMES = sorted(path for path in (Path(nibabel.__file__).parent / "tests" / "data").iterdir() if is_nifti(path))


def config(path="x", source="dicom", **changes):
    return DataConfig.model_validate({"source": source, "path": str(path), **changes})


def write_dicom(path, pixels, *, patient="p", syntax=ExplicitVRLittleEndian, **tags):
    """Write one DICOM file, as a scanner would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName = patient, "Doe^Jane"
    bits = pixels.dtype.itemsize * 8
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax)
    dataset.save_as(path, enforce_file_format=True)
    return path


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_stored_values_are_windowed_by_the_file(tmp_path, syntax):
    """By hand: -1000 + 2 v, the window 500 wide around 1000, C.11.2.1.2."""
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, syntax=syntax, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1000,
        WindowWidth=500,
    )  # fmt: skip
    values = RAMP * 2.0 - 1000
    expected = np.clip((values - 999.5) / 499 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(decode_dicom(path, config()).pixels, expected, atol=0.51)
    full = np.clip((values + 1000) / (2 * 65535), 0, 1) * 255
    np.testing.assert_allclose(decode_dicom(path, config(window="full")).pixels, full, atol=0.51)
    own = np.clip((values - 0) / 400, 0, 1) * 255
    np.testing.assert_allclose(decode_dicom(path, config(window=[0, 400])).pixels, own, atol=0.51)


def test_the_range_does_not_depend_on_the_record(tmp_path):
    """Two files that share a value show it alike, whatever else is in them."""
    bright = np.full((8, 8), 1000, dtype=np.int16)
    mixed = bright.copy()
    mixed[0, 0], mixed[1, 1] = -30_000, 30_000
    shown = [decode_dicom(write_dicom(tmp_path / f"{n}.dcm", each), config()).pixels[4, 4]
             for n, each in enumerate((bright, mixed))]  # fmt: skip
    assert shown[0] == shown[1]


def test_monochrome1_is_inverted_and_signed_values_keep_their_sign(tmp_path):
    values = np.array([[-32768, 0], [16384, 32767]], dtype=np.int16)
    plain = decode_dicom(write_dicom(tmp_path / "a.dcm", values), config()).pixels
    turned = decode_dicom(
        write_dicom(tmp_path / "b.dcm", values, PhotometricInterpretation="MONOCHROME1"), config()
    ).pixels
    assert plain.ravel().tolist() == [0, 128, 191, 255]
    np.testing.assert_array_equal(turned, 255 - plain)


@pytest.mark.parametrize(("frame", "shown"), [("first", 0), ("middle", 2), ("last", 4), (3, 3)])
def test_a_frame_is_chosen_by_the_rule(tmp_path, frame, shown):
    frames = np.stack([np.full((8, 8), 50 * number, dtype=np.uint8) for number in range(5)])
    path = write_dicom(tmp_path / "a.dcm", frames)
    assert decode_dicom(path, config(frame=frame)).pixels[0, 0] == 50 * shown
    with pytest.raises(DataError, match=r"data\.frame is a frame of each file, from 0\. Found 5"):
        decode_dicom(path, config(frame=5))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_every_sample_of_pydicom_is_read_or_a_sentence(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no value of a header is printed
        try:
            pixels = decode_dicom(path, config()).pixels
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
            return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2 or pixels.shape[2] == 3


def test_most_samples_are_read():
    assert sum(is_decoded(path) for path in SAMPLES) > 90


def is_decoded(path):
    try:
        return decode_dicom(path, config()).pixels.size > 0
    except DataError:
        return False


def test_a_folder_of_dicom_files_knows_its_patients(tmp_path):
    for number in range(12):
        write_dicom(
            tmp_path / ("sick" if number % 2 else "well") / f"IM{number:04d}",
            np.full((16, 16), number, dtype=np.uint8), patient=f"P{number // 3}", BurnedInAnnotation="NO",
        )  # fmt: skip
    (tmp_path / "well" / "report.txt").write_text("x")
    source = load_source(config(tmp_path, size=16))
    assert source.train.schema.shape == (1, 16, 16)
    assert set(source.train.patients.tolist()) == {code_of(f"P{number}") for number in range(4)}
    assert len(Units.of(source.train, "patient", 3)) == 4
    assert len(set(source.train.ids.tolist())) == 12
    assert len(source.notes) == 1
    assert "report.txt" in source.notes[0]
    write_dicom(tmp_path / "well" / "spoken", RAMP)
    assert "burned into its pixels" in load_source(config(tmp_path)).notes[-1]


def test_a_file_without_pixels_is_one_sentence(tmp_path):
    path = write_dicom(tmp_path / "a" / "x.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    write_dicom(tmp_path / "b" / "y.dcm", RAMP)
    with pytest.raises(DataError, match=r"1 cannot be used \(a/x\.dcm: it holds none\)"):
        load_source(config(tmp_path))


def test_a_size_that_a_header_only_claims_takes_no_memory(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 65535
    dataset.save_as(path)
    with pytest.raises(DataError, match="An image has at most"):
        decode_dicom(path, config())


@given(seed=st.integers(0, 2**32 - 1), cut=st.booleans(), flips=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_a_mutated_dicom_file_is_read_or_a_sentence(tmp_path_factory, seed, cut, flips):
    generator = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("mutated")
    syntax = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless)[int(generator.integers(3))]
    content = bytearray(write_dicom(folder / "a.dcm", RAMP, syntax=syntax).read_bytes())
    for place in generator.integers(132, len(content), flips):
        content[place] = int(generator.integers(256))
    if cut:
        content = content[: int(generator.integers(132, len(content)))]
    (folder / "a.dcm").write_bytes(content)
    assert is_read_or_a_sentence(decode_dicom, folder / "a.dcm", config())


def is_read_or_a_sentence(decode, path, settings_):
    try:
        return decode(path, settings_).pixels.dtype == np.uint8
    except DataError as error:
        return str(path) in str(error)


def write_nifti(path, values, affine=None, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


VOLUME = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(np.uint8)
FLIPPED = np.array([[0, -1.0, 0, 3], [0, 0, 2.0, 1], [-1.5, 0, 0, 9], [0, 0, 0, 1]])
"""An affine whose first axis runs to the feet, second to the left, third to the front."""


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, 1, 1, 1]), FLIPPED], ids=["RAS", "LAS", "flipped"])
@pytest.mark.parametrize(("axis", "across"), [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_a_slice_is_that_of_nibabels_canonical_volume(tmp_path, ending, affine, axis, across):
    """Seen with the second of the two other axes up, and the first to the right."""
    path = write_nifti(tmp_path / f"a{ending}", VOLUME, affine, cal_min=0, cal_max=255)
    canonical = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    for frame in range(canonical.shape[across]):
        expected = np.take(canonical, frame, axis=across).T[::-1]
        found = decode_nifti(path, config(source="nifti", axis=axis, frame=frame)).pixels
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "header", "changes", "low", "high"),
    [
        (VOLUME, {}, {}, 0, 255),
        (VOLUME, {"cal_min": 20, "cal_max": 120}, {}, 20, 120),
        (VOLUME, {"cal_min": 20, "cal_max": 120}, {"window": "full"}, 0, 255),
        (VOLUME, {"cal_min": 20, "cal_max": 120}, {"window": [10, 60]}, 10, 60),
        (VOLUME.astype(np.int16), {}, {}, -32768, 32767),
        (VOLUME.astype(np.float32), {}, {"window": [0, 100]}, 0, 100),
    ],
)
def test_black_and_white_are_the_headers_or_the_types(tmp_path, values, header, changes, low, high):
    path = write_nifti(tmp_path / "a.nii", values, **header)
    found = decode_nifti(path, config(source="nifti", frame=3, **changes)).pixels
    shown = np.clip((values[:, :, 3].T[::-1].astype(float) - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(found, shown, atol=0.51)


def test_floats_without_a_range_ask_for_one(tmp_path):
    path = write_nifti(tmp_path / "a.nii", VOLUME.astype(np.float32))
    with pytest.raises(DataError, match=r"give both with data\.window"):
        decode_nifti(path, config(source="nifti"))


@pytest.mark.parametrize("path", VOLUMES, ids=lambda path: path.name)
def test_every_sample_of_nibabel_is_read_or_a_sentence(path):
    assert is_read_or_a_sentence(decode_nifti, path, config(source="nifti", window=[0, 1000]))


@given(seed=st.integers(0, 2**32 - 1), cut=st.booleans(), flips=st.integers(0, 30), packed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_mutated_volume_is_read_or_a_sentence(tmp_path_factory, seed, cut, flips, packed):
    generator = np.random.default_rng(seed)
    path = write_nifti(tmp_path_factory.mktemp("mutated") / f"a.nii{'.gz' if packed else ''}", VOLUME)
    content = bytearray(path.read_bytes())
    for place in generator.integers(0, min(len(content), 400), flips):
        content[place] = int(generator.integers(256))
    path.write_bytes(content[: int(generator.integers(1, len(content)))] if cut else content)
    assert is_read_or_a_sentence(decode_nifti, path, config(source="nifti"))


def test_a_folder_of_volumes_is_read_with_a_table_beside_it(tmp_path):
    for number in range(6):
        write_nifti(tmp_path / "volumes" / f"{number}.nii.gz", VOLUME + number)
    rows = "\n".join(f"volumes/{number}.nii.gz,{'yes' if number % 2 else 'no'},P{number // 2}" for number in range(6))
    (tmp_path / "metadata.csv").write_text(f"file_name,label,patient\n{rows}\n")
    source = load_source(config(tmp_path, source="nifti", size=16, axis="coronal"))
    assert source.train.schema.classes == ("no", "yes")
    assert source.train.labels.tolist() == [0, 1] * 3
    assert len(set(source.train.patients.tolist())) == 3

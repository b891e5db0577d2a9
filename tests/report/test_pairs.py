"""Laws of originals beside their releases: a damaged file is a picture less, and never an error."""

import numpy as np
import pytest

from cadp_fl.report.pairs import MAX_ROWS, beside, read_pairs

IMAGES = np.zeros((3, 1, 8, 8), dtype=np.uint8)
WHOLE = {"originals": IMAGES, "released": IMAGES, "labels": np.arange(3)}


def stored(tmp_path, **arrays):
    path = tmp_path / "sites" / "north" / "pairs-cadp.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def test_what_was_stored_is_read(tmp_path):
    stored(tmp_path, **WHOLE)
    pairs = read_pairs(tmp_path, "north", "cadp")
    assert pairs is not None
    assert [row.shape for row in beside([pairs, pairs])] == [(3, 1, 8, 8)] * 3
    assert read_pairs(tmp_path, "north", "moments") is None


@pytest.mark.parametrize(
    "arrays",
    [
        {"originals": IMAGES},
        WHOLE | {"released": IMAGES[:2]},
        WHOLE | {"released": IMAGES[:, :, :4]},
        WHOLE | {"originals": IMAGES.astype(np.float32), "released": IMAGES.astype(np.float32)},
        WHOLE | {"labels": np.arange(2)},
        {name: values[:0] for name, values in WHOLE.items()},
        {"originals": IMAGES.repeat(2, axis=1), "released": IMAGES.repeat(2, axis=1), "labels": np.arange(3)},
        WHOLE | {"labels": np.array([{}, 1, 2], dtype=object)},
    ],
)
def test_arrays_that_do_not_fit_are_no_picture(arrays, tmp_path):
    stored(tmp_path, **arrays)
    assert read_pairs(tmp_path, "north", "cadp") is None


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_a_damaged_file_is_no_picture(damage, tmp_path):
    path = stored(tmp_path, **WHOLE)
    path.write_bytes(path.read_bytes()[:100] if damage is None else damage)
    assert read_pairs(tmp_path, "north", "cadp") is None


def test_a_picture_has_a_bounded_number_of_rows(tmp_path):
    images = np.zeros((40, 1, 8, 8), dtype=np.uint8)
    stored(tmp_path, originals=images, released=images, labels=np.arange(40))
    pairs = read_pairs(tmp_path, "north", "cadp")
    assert pairs is not None
    assert len(beside([pairs])) == MAX_ROWS

import numpy as np
import pytest
import torch

from cadp_fl.data.arrays import dataset_of
from cadp_fl.data.sources import load_source
from cadp_fl.errors import DataError

IMAGES = np.zeros((4, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 1, 0])


def test_digits_as_floats_are_the_digits_of_the_source(tiny):
    from sklearn.datasets import load_digits

    ours, bunch = load_source(tiny.data).train, load_digits()
    theirs = dataset_of(
        torch.tensor(bunch.images[:, None] / 16, dtype=torch.float32),
        torch.tensor(bunch.target),
        classes=range(10),
        levels=17,
        name="digits",
    )
    assert theirs.schema == ours.schema
    assert np.array_equal(theirs.images, ours.images)
    assert np.array_equal(theirs.labels, ours.labels)


def test_uint8_images_stay_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), dtype=np.uint8)
    made = dataset_of(images, LABELS.astype(np.uint8), [7, 7, 8, 9], classes=("no", "yes"))
    assert np.array_equal(made.images, images)
    assert made.patients.tolist() == [7, 7, 8, 9]
    assert made.schema.classes == ("no", "yes")


def test_attributes_are_columns_in_the_order_of_their_names():
    attributes = {"young": [1, 1, 0, 0], "hat": torch.tensor([0.0, 1.0, 0.0, 1.0]), "bald": LABELS == 1}
    made = dataset_of(IMAGES, LABELS, classes=("no", "yes"), attributes=attributes)
    assert made.schema.attributes == ("young", "hat", "bald")
    assert made.attributes.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": np.zeros((4, 64))}, r"Images are \(records, height, width\) or"),
        ({"images": np.full((4, 8, 8), 1.5)}, "floats are from 0 to 1. Found others; undo the normalization"),
        ({"images": np.full((4, 8, 8), np.nan)}, "floats are from 0 to 1"),
        ({"images": np.zeros((4, 8, 8), dtype=np.int64)}, "Pixels are uint8, 0 to 255, or floats, 0 to 1. Found int64"),
        ({"images": np.zeros((4, 8, 8, 3))}, r"1 or 3 channels.*Found .* images of shape \(8, 8, 3\)"),
        ({"images": IMAGES[:3]}, r"Images are uint8 of shape \(4, 1, 8, 8\)"),
        ({"labels": np.zeros(4)}, "Labels are integers. Found float64"),
        ({"labels": LABELS + 1}, "A label is 0 to 1. Found 1 to 2"),
        ({"patients": list("aabb")}, "Patients are integers"),
        ({"attributes": {"hat": [0, 1, 2, 0]}}, "An attribute is 0 or 1 for each of the 4 records. Found others"),
        ({"attributes": {"hat": [0, 1, np.nan, 0]}}, "An attribute is 0 or 1"),
        ({"attributes": {"hat": [0, 1, 1]}}, "for each of the 4 records"),
        ({"attributes": {"": [0, 1, 1, 0]}}, "names of 1 to 64 characters. Found 1 attributes; correct their names"),
        ({"classes": ["only"]}, "two or more classes.* 1 classes .*correct the classes"),
        ({"images": np.zeros((4, 8, 8)), "levels": 1}, "2 to 256 levels.* 1 levels; correct the levels"),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_sentence(change, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        dataset_of(**{"images": IMAGES, "labels": LABELS, "classes": ("no", "yes")} | change)
    assert "\n" not in str(caught.value)

"""What a sentence says to do about an array is done, to the letter, and the file is read."""

import ast
import contextlib
import re

import numpy as np
import pytest

from cadp_fl.config import DataConfig, PartitionConfig
from cadp_fl.data.partition import deal
from cadp_fl.data.sources import load_source
from cadp_fl.errors import DataError

LABELS = np.arange(12) % 3
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 4, 5), dtype=np.uint8)
PIXELS[0, 0, :2] = 0, 255


def load(folder, images=PIXELS, labels=LABELS, test=None, **config):
    named = {"train_images": images, "train_labels": labels}
    if test is not None:
        named |= {"test_images": PIXELS[: len(test)], "test_labels": test}
    np.savez(folder / "own.npz", **named)
    return load_source(DataConfig(source="medmnist", path=folder / "own.npz", **config))


def sentence_of(folder, *arguments, **named):
    with pytest.raises(DataError) as caught:
        load(folder, *arguments, **named)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    return str(caught.value)


def expression(sentence, **values):
    """Return what the expression in a sentence, the longest that parses, makes of arrays."""
    rest = sentence[re.search(r"(?<!')\b(np\.\w+\(|train_[a-z]+[.\[])", sentence).start() :]
    for end in range(len(rest), 0, -1):
        with contextlib.suppress(SyntaxError):
            tree = ast.parse(rest[:end].strip(), mode="eval")
            if not isinstance(tree.body, ast.Tuple):
                return eval(compile(tree, "sentence", "eval"), {"np": np, **values})
    raise AssertionError(sentence)


FLOATS = PIXELS.astype(np.float64)
HOLES = FLOATS.copy()
HOLES[1, 1, 1], HOLES[1, 1, 2], HOLES[1, 1, 3] = np.nan, np.inf, -np.inf
FILLED = PIXELS.copy()
FILLED[1, 1, 1], FILLED[1, 1, 2], FILLED[1, 1, 3] = 0, 255, 0


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (FLOATS / 255, PIXELS),
        ((FLOATS / 255).astype(np.float32), PIXELS),
        ((FLOATS / 255).astype(np.float16), None),
        (FLOATS / 127.5 - 1, PIXELS),
        (FLOATS, PIXELS),
        (FLOATS + 0.3 * (FLOATS < 255), PIXELS),
        (PIXELS.astype(np.int64), PIXELS),
        (PIXELS.astype(np.uint16), PIXELS),
        (PIXELS > 127, (PIXELS > 127) * np.uint8(255)),
        ((PIXELS > 127).astype(np.int32), (PIXELS > 127) * np.uint8(255)),
        (HOLES, FILLED),
        (HOLES / 255, FILLED),
        (HOLES / 127.5 - 1, FILLED),
        (PIXELS.astype(np.uint16) * 257, PIXELS),
        (FLOATS * 10 - 1000, PIXELS),
        (FLOATS / 255 - 0.5, PIXELS),
        ((PIXELS.astype(np.int16) * 10 - 1000), PIXELS),
        (HOLES * 10 - 1000, FILLED),
    ],
)
def test_pixels_of_another_type_become_bytes_of_the_same_picture(tmp_path, images, expected):
    sentence = sentence_of(tmp_path, images)
    finite = images[np.isfinite(images)] if images.dtype.kind == "f" else images
    made = expression(sentence, train_images=images, LOW=finite.min(), HIGH=finite.max())
    assert made.dtype == np.uint8
    if expected is None:  # a half has not enough digits for each
        assert np.abs(made.astype(int) - PIXELS).max() <= 1
    else:
        assert np.array_equal(made, expected)
    assert np.array_equal(load(tmp_path, made).train.images[:, 0], made)


@pytest.mark.parametrize("images", [FLOATS / 255, FLOATS / 127.5 - 1, FLOATS * 10 - 1000])
def test_no_advice_makes_an_image_of_two_levels(tmp_path, images):
    made = expression(sentence_of(tmp_path, images), train_images=images, LOW=images.min(), HIGH=images.max())
    assert len(np.unique(made)) == len(np.unique(PIXELS))


COLOUR = np.random.default_rng(1).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("images", "shape", "pixels"),
    [
        (PIXELS.reshape(12, 20), (1, 4, 5), PIXELS[:, None]),
        (PIXELS[..., None], (1, 4, 5), PIXELS[:, None]),
        (PIXELS[:, None], (1, 4, 5), PIXELS[:, None]),
        (np.moveaxis(COLOUR, 3, 1), (3, 4, 5), np.moveaxis(COLOUR, 3, 1)),
        (np.concatenate([COLOUR, COLOUR[..., :1]], axis=3), (3, 4, 5), np.moveaxis(COLOUR, 3, 1)),
        (np.stack([PIXELS] * 7, axis=1), (1, 4, 5), PIXELS[:, None]),
        (np.stack([COLOUR] * 7, axis=1), (3, 4, 5), np.moveaxis(COLOUR, 3, 1)),
    ],
)
def test_images_of_another_shape_are_read_once_they_are_shaped_as_advised(tmp_path, images, shape, pixels):
    sentence = sentence_of(tmp_path, images)
    made = expression(sentence, train_images=images, HEIGHT=4, WIDTH=5)
    source = load(tmp_path, made)
    assert source.schema.shape == shape
    assert np.array_equal(source.train.images, pixels)


NAMES = np.array(["normal", "ill", "very ill"])


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (LABELS.astype(np.float32), LABELS),
        (LABELS == 1, LABELS == 1),
        (NAMES[LABELS], np.searchsorted(np.sort(NAMES), NAMES)[LABELS]),
        (NAMES[LABELS].astype("S8"), np.searchsorted(np.sort(NAMES), NAMES)[LABELS]),
        (LABELS - 1, LABELS),
        (LABELS * 10_000, LABELS),
        (LABELS * 3, LABELS),
        (LABELS * 3 + 2, LABELS),
    ],
)
def test_labels_become_integers_from_0(tmp_path, labels, expected, column):
    labels = labels[:, None] if column else labels
    made = expression(sentence_of(tmp_path, labels=labels), train_labels=labels)
    assert load(tmp_path, labels=made).train.labels.tolist() == expected.astype(int).tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_one_hot_labels_are_distinguished_from_several_labels(tmp_path, dtype):
    labels = np.eye(3, dtype=dtype)[LABELS]
    made = expression(sentence_of(tmp_path, labels=labels), train_labels=labels)
    assert load(tmp_path, labels=made).train.labels.tolist() == LABELS.tolist()
    several = np.ones((12, 3), np.uint8)
    assert "multi-label" in sentence_of(tmp_path, labels=several)


@pytest.mark.parametrize("first", [1, 5])
@pytest.mark.parametrize("classes", [None, ("a", "b", "c")])
def test_labels_that_start_elsewhere_are_refused_with_the_rule_that_labels_start_at_0(tmp_path, first, classes):
    """And never to change data.classes where nobody has set them."""
    sentence = sentence_of(tmp_path, labels=LABELS + first, test=LABELS[:3] + first, classes=classes)
    assert re.search("[Ll]abels start at 0", sentence)
    assert f"subtract {first} from the labels of every split" in sentence
    assert "out of data.classes" not in sentence
    source = load(tmp_path, test=LABELS[:3], classes=classes)
    assert len(deal(source, 2, PartitionConfig(min_records=2), 0.2, seed=0)) == 2
    named = tuple(f"class {label}" for label in range(first + 3))  # the other way out: the first are other sites' own
    assert "name" in sentence
    assert load(tmp_path, labels=LABELS + first, classes=named).schema.classes == named


def test_a_class_that_lies_between_is_missed_by_its_number(tmp_path):
    sentence = sentence_of(tmp_path, labels=LABELS * 2)
    assert "These are 0 to 4, and none is 1;" in sentence
    assert "name all classes from 0 with data.classes" in sentence
    assert len(load(tmp_path, labels=LABELS * 2, classes=("a", "b", "c", "d", "e")).train) == 12


def test_labels_above_the_classes_are_not_to_be_moved_where_that_would_not_help(tmp_path):
    sentence = sentence_of(tmp_path, labels=LABELS, classes=("a", "b"))
    assert sentence.endswith("'train_labels' holds 2; name every class from 0 to 2.")
    assert "subtract" not in sentence_of(tmp_path, labels=LABELS * 9 + 1, classes=("a", "b"))


def test_one_class_alone_is_refused_with_both_ways_out(tmp_path):
    sentence = sentence_of(tmp_path, labels=np.zeros(12, int))
    assert "add records of another class, or, if other sites have some, name all classes" in sentence
    assert load(tmp_path, labels=np.zeros(12, int), classes=("a", "b")).schema.classes == ("a", "b")


def save_one(path, array):
    with path.open("wb") as file:
        np.save(file, array)


@pytest.mark.parametrize(
    ("spoil", "remedy"),
    [
        (lambda path: path.write_bytes(b"<html>"), "get the file again, or write it with np.savez."),
        (lambda path: save_one(path, PIXELS), "get the file again, or write it with np.savez."),
        (
            lambda path: np.savez(path, train_images=np.array([PIXELS[0], None], dtype=object), train_labels=LABELS),
            "write it with np.savez, from arrays of numbers or text that each have one shape.",
        ),
        (
            lambda path: np.savez(path, train_images=PIXELS, train_labels=np.zeros(12, [("a", "u1")])),
            "write it with np.savez, from arrays of numbers or text that each have one shape.",
        ),
        (lambda path: (path.unlink(), path.mkdir()), "There is none at"),
    ],
)
def test_a_file_that_is_no_npz_of_plain_arrays_names_what_to_do(tmp_path, spoil, remedy):
    load(tmp_path)
    spoil(tmp_path / "own.npz")
    with pytest.raises(DataError) as caught:
        load_source(DataConfig(source="medmnist", path=tmp_path / "own.npz"))
    assert remedy in str(caught.value)

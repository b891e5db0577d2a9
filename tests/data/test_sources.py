import os
import socket
import struct
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from cadp_fl.config import DataConfig, PartitionConfig
from cadp_fl.data import medmnist
from cadp_fl.data.medmnist import read_medmnist_as
from cadp_fl.data.partition import deal
from cadp_fl.data.sources import SOURCES, Reader, check_source, load_source
from cadp_fl.errors import ConfigError, DataError

FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def real(name):
    path = Path(os.environ["CADP_FL_DATA"]) / name
    if not path.is_file():
        pytest.skip(f"{path} is not here; CADP_FL_DATA names its folder")
    return path


def arrays(train=6, val=None, test=None, side=(4, 5), **changes):
    """Return the arrays of a small MedMNIST file; a change of None takes an array out."""
    generator = np.random.default_rng(0)
    named = {}
    for split, count in (("train", train), ("val", val), ("test", test)):
        if count is not None:
            named[f"{split}_images"] = generator.integers(0, 256, (count, *side), dtype=np.uint8)
            named[f"{split}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    return {name: array for name, array in (named | changes).items() if array is not None}


def file(folder, named):
    path = folder / "small.npz"
    np.savez_compressed(path, **named)
    return path


def load(folder, named, **config):
    return load_source(DataConfig(source="medmnist", path=file(folder, named), **config))


# digits


def test_digits_are_what_scikit_learn_bundles():
    source = load_source(DataConfig(source="digits"))
    digits = source.train
    assert (len(digits), digits.schema.shape, digits.schema.levels) == (1797, (1, 8, 8), 17)
    assert set(np.unique(digits.images)) <= {round(255 * level / 16) for level in range(17)}
    assert digits.class_counts().sum() == 1797
    assert source.test is None


# the registry


@pytest.mark.parametrize(
    ("config", "kind", "sentence"),
    [
        ({"source": "digitz"}, ConfigError, "Found 'digitz'; choose one of them"),
        ({"source": "digits", "path": "/x"}, ConfigError, "'digits' takes no path. Found '/x'; remove data.path."),
        ({"source": "digits", "classes": ("a", "b")}, ConfigError, "'digits' names its classes itself"),
        ({"source": "mnist", "classes": ("a", "b")}, ConfigError, "'mnist' names its classes itself"),
        ({"source": "digits", "label": "3"}, ConfigError, "'digits' gives every record one label. Found '3' to choose"),
        ({"source": "medmnist"}, ConfigError, "reads a file. Found none; pass --set data.path=FILE."),
        ({"source": "medmnist", "path": "/none/x.npz"}, DataError, "There is none at '/none/x.npz'; check it."),
        ({"source": "medmnist", "path": "/"}, DataError, "There is none at '/'; check it."),
        ({"source": "mnist", "path": __file__}, DataError, "reads the folder data.path"),
    ],
)
def test_a_wrong_source_is_one_sentence(config, kind, sentence):
    with pytest.raises(kind) as caught:
        load_source(DataConfig(**config))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_check_reads_no_record(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"not an npz")
    check_source(DataConfig(source="medmnist", path=tmp_path / "x.npz"))
    check_source(DataConfig(source="mnist", path=tmp_path / "not yet"))


def test_a_source_of_ones_own_is_one_function_in_the_registry(monkeypatch):
    monkeypatch.setitem(SOURCES, "own", Reader(lambda config: load_source(DataConfig(source="digits"))))
    assert len(load_source(DataConfig(source="own")).train) == 1797


# MedMNIST files


def test_training_records_are_train_and_val_in_that_order(tmp_path):
    named = arrays(6, 3, 4)
    source = load(tmp_path, named)
    assert np.array_equal(source.train.images[:, 0], np.concatenate([named["train_images"], named["val_images"]]))
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert np.array_equal(source.test.images[:, 0], named["test_images"])
    assert source.test.labels.tolist() == [0, 1, 2, 0]
    assert (source.schema.name, source.schema.shape, source.schema.classes) == ("small", (1, 4, 5), ("0", "1", "2"))
    assert source.train.patients is None


def test_val_and_test_may_be_missing(tmp_path):
    source = load(tmp_path, arrays(6))
    assert (len(source.train), source.test) == (6, None)


def test_a_colour_image_keeps_its_pixels(tmp_path):
    named = arrays(6, 2, side=(4, 5, 3))
    source = load(tmp_path, named)
    assert source.schema.shape == (3, 4, 5)
    assert np.array_equal(source.train.images[:6].transpose(0, 2, 3, 1), named["train_images"])
    assert source.train.images.flags.c_contiguous


def test_labels_may_be_flat_and_of_any_integer_type(tmp_path):
    for dtype in (np.int64, np.uint64, ">i2", np.int8):
        assert load(tmp_path, arrays(train_labels=np.array([0, 1, 2, 0, 1, 2], dtype))).train.labels.dtype == np.int64


def test_classes_have_the_names_of_the_config(tmp_path):
    assert load(tmp_path, arrays(), classes=("x", "y", "z")).schema.classes == ("x", "y", "z")


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("codes", [np.array([9, -4, 9, 7, 7, 5, 5]), np.array(["i", "b", "i", "g", "g", "e", "e"])])
def test_records_of_one_patient_stay_together_under_whatever_name(tmp_path, codes, column):
    shaped = codes[:, None] if column else codes
    named = arrays(3, 2, 2, train_patients=shaped[:3], val_patients=shaped[3:5], test_patients=shaped[5:])
    source = load(tmp_path, named)
    found = np.concatenate([source.train.patients, source.test.patients])
    assert np.array_equal(found[:, None] == found, codes[:, None] == codes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_images": None}, "'train_images' is missing among train_labels, test_images, test_labels; name"),
        ({"train_labels": None}, "'train_labels' is missing"),
        ({"test_labels": None}, "'test_labels' is missing"),
        ({"val_images": np.zeros((2, 4, 5), np.uint8)}, "'val_labels' is missing"),
        ({"train_labels": np.zeros(5, np.int64)}, "'train_labels' has one value for each of the 6 images. It is (5,)"),
        ({"train_labels": np.zeros((6, 14), np.int64)}, "'train_labels' has 14 (multi-label); name the one to learn"),
        ({"train_labels": np.zeros((6, 0), np.int64)}, "It is (6, 0); store as many as images."),
        ({"train_labels": np.arange(6) / 2}, "Labels are integers from 0. 'train_labels' is float64, with values that"),
        ({"train_labels": np.full(6, np.nan)}, "give every record the number of its class"),
        ({"train_labels": np.full(6, 2**63, np.uint64)}, f"'train_labels' holds {2**63} to {2**63}"),
        ({"test_labels": np.array([0, 10_000])}, "A label is 0 to 9999. 'test_labels' holds 0 to 10000"),
        ({"train_labels": np.zeros(6, int), "test_labels": np.zeros(2, int)}, "needs two classes. Every label is 0"),
        ({"train_images": np.zeros((6, 4, 5), "U3")}, "'train_images' is <U3; store each pixel as a number"),
        ({"train_images": np.zeros((6, 4, 5), complex)}, "'train_images' is complex128; store each pixel as a number"),
        ({"test_images": np.full((2, 4, 5), np.nan)}, "'test_images' is float64, with values from 0 to 0 and NaN"),
        ({"train_images": np.zeros(6, np.uint8)}, "'train_images' is (6,); store one array of that shape."),
        ({"train_images": np.zeros((6, 4, 4097), np.uint8)}, "1 to 4096 pixels. 'train_images' is (6, 4, 4097)"),
        ({"train_images": np.zeros((6, 0, 5), np.uint8)}, "1 to 4096 pixels. 'train_images' is (6, 0, 5)"),
        ({"test_images": np.zeros((2, 5, 4), np.uint8)}, "one shape. Found (4, 5) and (5, 4); resize those of one."),
        ({"test_images": np.zeros((2, 4, 5, 3), np.uint8)}, "one shape. Found (4, 5) and (4, 5, 3)"),
        ({"train_images": np.zeros((0, 4, 5), np.uint8), "train_labels": np.zeros(0, int)}, "'train_images' has none"),
        ({"test_images": np.zeros((0, 4, 5), np.uint8), "test_labels": np.zeros(0, int)}, "'test_images' has none"),
        ({"train_images": np.array([None] * 6)}, "is not: train_images holds Python objects"),
        ({"train_patients": np.arange(6)}, "Patients are named in every split or in none. 'test_patients' is missing"),
        ({"train_patients": np.arange(6), "test_patients": np.array([5, 9])}, "not both. 1 are in both splits"),
        ({"train_patients": np.arange(6), "test_patients": np.array(["7", "8"])}, "Found <U1 and int64; convert"),
        ({"train_patients": np.arange(6), "test_patients": np.array([7, 8], np.uint64)}, "Found int64 and uint64"),
        ({"train_patients": np.arange(6.0), "test_patients": np.array([7.0, np.nan])}, "Found float64; convert"),
        (
            {"train_patients": np.arange(5), "test_patients": np.array([7, 8])},
            "'train_patients' has one value for each",
        ),
    ],
)
def test_a_file_that_breaks_the_format_is_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(DataError) as caught:
        load(tmp_path, arrays(6, None, 2, **changes))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def several(label="1", changes=None, **config):
    """Return the settings and arrays of a file with three labels a record."""
    values = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1], [0, 0, 0]], np.uint8)
    return arrays(6, None, 2, **({"train_labels": values, "test_labels": values[:2]} | (changes or {}))), {
        "label": label
    } | config


@pytest.mark.parametrize(
    ("label", "names", "classes"),
    [
        ("01", None, ("not 1", "1")),
        ("1", None, ("not 1", "1")),
        ("smiling", ("hat", "smiling", "young"), ("not smiling", "smiling")),
        ("1", ("hat", "smiling", "young"), ("not smiling", "smiling")),
        ("2", ("0", "2", "1"), ("not 2", "2")),
    ],
)
def test_one_of_several_labels_is_learned_and_all_are_attributes(tmp_path, label, names, classes):
    named, settings = several(label, attributes=names)
    source = load(tmp_path, named, **settings)
    assert (source.schema.classes, source.schema.attributes) == (classes, names or ("0", "1", "2"))
    assert source.train.labels.tolist() == [1, 1, 0, 0, 1, 0]
    assert np.array_equal(source.train.attributes, named["train_labels"])
    assert np.array_equal(source.test.attributes, named["test_labels"])
    assert source.train.attributes.dtype == np.uint8


def test_the_two_classes_of_an_attribute_may_have_other_names(tmp_path):
    named, settings = several(classes=("serious", "smiling"))
    assert load(tmp_path, named, **settings).schema.classes == ("serious", "smiling")


def test_a_file_is_read_with_the_names_of_a_schema_that_is_known(tmp_path):
    named, settings = several("smiling", attributes=("hat", "smiling", "young"))
    source = load(tmp_path, named, **settings)
    assert read_medmnist_as(tmp_path / "small.npz", source.schema).schema == source.schema
    renamed = source.schema.model_copy(update={"classes": ("serious", "smiling")})
    with pytest.raises(DataError, match=r"Found 'serious' and 'smiling'; leave data.classes out"):
        read_medmnist_as(tmp_path / "small.npz", renamed)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"label": "x"}, "data.label is one of the attributes: 0, 1, 2; or its column, 0 to 2. Found 'x'."),
        ({"label": "3"}, "Found '3'."),
        ({"label": "hat", "attributes": ("hat", "young")}, "Found 2 names for 3 labels; name each once."),
        ({"classes": ("a", "b", "c")}, "two classes. Found 3 names in data.classes; give two, or none."),
        ({"changes": {"test_labels": np.full((2, 3), 2)}}, "0 or 1. 'test_labels' holds 2 to 2; store 1"),
        ({"changes": {"train_labels": np.full((6, 3), -1)}}, "0 or 1. 'train_labels' holds -1 to -1; store 1"),
        ({"changes": {"train_labels": np.zeros((6, 3))}}, "integers, 0 or 1. 'train_labels' is float64"),
        ({"changes": {"train_labels": np.zeros((5, 3), int)}}, "each of the 6 images. 'train_labels' is (5, 3)"),
        ({"changes": {"train_labels": np.zeros((6, 1001), int)}}, "at most 1000 attributes. 'train_labels' has 1001"),
        ({"changes": {"test_labels": np.zeros((2, 4), int)}}, "as many labels in every split. Found 3 and 4; store"),
        ({"changes": {"test_labels": np.zeros((2, 1), int)}}, "'test_labels' is (2, 1); remove data.label"),
    ],
)
def test_several_labels_that_do_not_fit_are_one_sentence(tmp_path, settings, sentence):
    named, config = several(**settings)
    with pytest.raises(DataError) as caught:
        load(tmp_path, named, **config)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_outside_the_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"A label is 0 to 1, one for each of data.classes. 'test_labels' holds 2"):
        load(tmp_path, arrays(2, None, 3), classes=("normal", "pneumonia"))


def test_a_class_that_no_site_holds_is_refused(tmp_path):
    source = load(tmp_path, arrays(60), classes=("a", "b", "c", "unseen"))
    with pytest.raises(DataError, match=r"No training record is of class 'unseen', whose label is 3; add"):
        deal(source, 2, PartitionConfig(min_records=2), 0.2, seed=0)


def test_a_file_is_refused_before_it_unpacks_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(medmnist, "MAX_UNPACKED_BYTES", 1000)
    load(tmp_path, arrays(6))
    with pytest.raises(DataError, match=r"is not: it unpacks to \d+ bytes, and 1000 is the limit; store fewer or sma"):
        load(tmp_path, arrays(60))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"<html>404</html>",
        lambda data: data[:200] + b"\xff" * 40 + data[240:],
    ],
)
def test_a_file_that_is_cut_or_damaged_is_one_sentence(tmp_path, spoil):
    path = file(tmp_path, arrays(200))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"A MedMNIST file is an npz of plain arrays. '.*small.npz' is not: .*\.$"):
        load_source(DataConfig(source="medmnist", path=path))


def test_the_real_files_are_read_as_numpy_reads_them():
    for name, classes in (("pneumoniamnist.npz", 2), ("mnist8k.npz", 10)):
        source = load_source(DataConfig(source="medmnist", path=real(name)))
        with np.load(real(name), allow_pickle=False) as expected:
            images = np.concatenate([expected["train_images"], expected["val_images"]])[:, None]
            assert np.array_equal(source.train.images, images)
            assert np.array_equal(source.test.labels, expected["test_labels"][:, 0])
        assert (source.schema.shape, len(source.schema.classes)) == ((1, 28, 28), classes)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity", "label"])
def test_the_real_files_are_dealt_with_their_own_test_split(kind):
    source = load_source(DataConfig(source="medmnist", path=real("pneumoniamnist.npz")))
    dealt = deal(source, 3, PartitionConfig(kind=kind), 0.2, seed=7)
    assert sum(len(site.train) for site in dealt) == len(source.train) == 4708
    assert sum(len(site.test) for site in dealt) == len(source.test) == 524


# MNIST by torchvision


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_files(folder, name="MNIST", train=40, test=20):
    """Write the four files of a small MNIST, and return its training images."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    first = None
    for prefix, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
        first = images if first is None else first
    return first


@pytest.fixture
def offline(monkeypatch):
    """No address is reached; what was asked for is listed."""
    asked = []

    def refuse(request, *_args, **_kwargs):
        asked.append(getattr(request, "full_url", request))
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


@pytest.mark.parametrize(
    ("source", "folder", "classes"),
    [("mnist", "MNIST", tuple("0123456789")), ("fashion-mnist", "FashionMNIST", FASHION)],
)
def test_files_at_hand_are_read_and_nothing_is_asked_of_the_net(tmp_path, offline, capfd, source, folder, classes):
    images = mnist_files(tmp_path, folder)
    found = load_source(DataConfig(source=source, path=tmp_path))
    assert np.array_equal(found.train.images[:, 0], images)
    assert found.test.labels.tolist() == [*range(10), *range(10)]
    assert (found.schema.name, found.schema.shape, found.schema.classes) == (source, (1, 28, 28), classes)
    assert offline == []
    assert capfd.readouterr() == ("", "")


def test_a_folder_is_found_at_home_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    mnist_files(tmp_path / ".cache" / "cadp-fl")
    assert len(load_source(DataConfig(source="mnist")).train) == 40


def test_a_download_that_fails_is_one_sentence_with_the_way_out(tmp_path, offline, capfd):
    before = socket.getdefaulttimeout()
    with pytest.raises(DataError) as caught:
        load_source(DataConfig(source="mnist", path=tmp_path))
    assert "'train-images-idx3-ubyte' is missing and could not be downloaded" in str(caught.value)
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value)
    assert str(caught.value).endswith("--set data.path=FOLDER.")
    assert "\n" not in str(caught.value)
    assert offline
    assert capfd.readouterr() == ("", "")
    assert socket.getdefaulttimeout() == before


def test_a_download_that_is_not_wanted_is_not_tried(tmp_path, offline):
    with pytest.raises(DataError, match=r"is missing; put it there, or pass --set data.download=true"):
        load_source(DataConfig(source="mnist", path=tmp_path, download=False))
    assert offline == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("train-images-idx3-ubyte", b""),
        ("train-images-idx3-ubyte", idx(np.zeros((40, 28, 28)))[:-1]),
        ("train-labels-idx1-ubyte", idx(np.zeros(39))),
        ("train-labels-idx1-ubyte", idx(np.full(40, 10))),
        ("t10k-labels-idx1-ubyte", idx(np.zeros((20, 1)))),
        ("t10k-images-idx3-ubyte", b"<html>"),
    ],
)
def test_damaged_files_are_one_sentence_with_the_way_out(tmp_path, offline, name, data):
    mnist_files(tmp_path)
    (tmp_path / "MNIST" / "raw" / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_source(DataConfig(source="mnist", path=tmp_path))
    assert "remove that folder, and they are downloaded again." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torchvision_that_does_not_import_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match="install the one that was made for your torch"):
        load_source(DataConfig(source="mnist", path=tmp_path))

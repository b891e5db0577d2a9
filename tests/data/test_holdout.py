"""Laws of the split that a real site makes where its source has none."""

import numpy as np
import pytest

from cadp_fl.config import DataConfig
from cadp_fl.data.holdout import held_out
from cadp_fl.data.medmnist import read_medmnist
from cadp_fl.data.schema import Dataset, Schema, Source
from cadp_fl.errors import DataError

SCHEMA = Schema(name="x", shape=(1, 2, 2), classes=("a", "b"))


def _records(count, *, patients=None, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 1, 2, 2), dtype=np.uint8)
    return Dataset(SCHEMA, images, rng.integers(0, 2, count), patients)


def _keys(dataset):
    return {image.tobytes() for image in dataset.images}


def test_the_source_own_split_is_kept():
    train, test = _records(20), _records(10, seed=1)
    split = held_out(Source(train, test), 0.2)
    assert split.train is train
    assert split.test is test


def test_every_record_is_on_one_side():
    records = _records(1000)
    split = held_out(Source(records), 0.2)
    assert _keys(split.train) | _keys(split.test) == _keys(records)
    assert not _keys(split.train) & _keys(split.test)
    assert 150 < len(split.test) < 250


def test_no_patient_is_divided():
    records = _records(1000, patients=np.random.default_rng(3).integers(0, 200, 1000))
    split = held_out(Source(records), 0.3)
    assert not set(split.train.patients) & set(split.test.patients)


def test_what_a_record_shows_and_its_class_play_no_part():
    ids = np.arange(500)
    first = held_out(Source(_records(500, patients=ids, seed=1)), 0.2)
    second = held_out(Source(_records(500, patients=ids, seed=2)), 0.2)
    np.testing.assert_array_equal(first.test.patients, second.test.patients)


def test_a_later_export_moves_nobody_to_the_other_side(tmp_path):
    rng = np.random.default_rng(5)
    names = np.array([f"patient-{number:05d}" for number in range(400)])

    def export(path, chosen):
        images = rng.integers(0, 256, (len(chosen), 2, 2), dtype=np.uint8)
        np.savez(path, train_images=images, train_labels=np.zeros(len(chosen), int), train_patients=chosen)
        config = DataConfig(source="medmnist", path=path, classes=("a", "b"))
        return held_out(read_medmnist(config), 0.2)

    before = export(tmp_path / "january.npz", names[:300])
    after = export(tmp_path / "february.npz", rng.permutation(names))
    assert set(before.train.patients) <= set(after.train.patients)
    assert set(before.test.patients) <= set(after.test.patients)


def test_a_side_without_records_is_refused():
    with pytest.raises(DataError, match="one side"):
        held_out(Source(_records(2)), 0.001)

"""Every unit contributes exactly m records, whatever it has."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies

from cadp_fl.classifier.fixed import features_of, split_features
from cadp_fl.classifier.models import build_classifier
from cadp_fl.config import ClassifierConfig
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.units import Units
from cadp_fl.errors import DataError

SCHEMA = Schema(name="x", shape=(1, 2, 2), classes=("a", "b", "c"))


def dataset(patients, seed=0):
    generator = np.random.default_rng(seed)
    count = len(patients)
    images = generator.integers(1, 256, (count, 1, 2, 2), dtype=np.uint8)
    return Dataset(SCHEMA, images, generator.integers(0, 3, count), np.asarray(patients, dtype=np.int64))


def test_a_record_is_its_own_unit():
    units = Units.of(dataset([5, 5, 1]), "record")
    assert units.records.tolist() == [[0], [1], [2]]
    assert (len(units), units.records_per_unit) == (3, 1)


@given(strategies.lists(strategies.integers(0, 6), min_size=1, max_size=40), strategies.integers(1, 5))
def test_a_patient_contributes_m_records_of_its_own_the_first_ones(patients, m):
    data = dataset(patients)
    units = Units.of(data, "patient", m)
    assert units.records.shape == (len(set(patients)), m)
    for row in units.records:
        own = row[row >= 0]
        name = patients[own[0]]
        having = [index for index, patient in enumerate(patients) if patient == name]
        assert own.tolist() == having[:m]
        assert (row[len(own) :] == -1).all()


@given(strategies.lists(strategies.integers(0, 6), min_size=1, max_size=40), strategies.integers(1, 5))
def test_replacing_a_patient_changes_its_own_places_alone(patients, m):
    """The others keep their rows, however many records the new patient brings."""
    data = dataset([2 * patient for patient in patients])
    replaced = [2 * patient + 1 if patient == patients[0] else 2 * patient for patient in patients]
    more = Dataset(
        SCHEMA,
        np.concatenate([data.images, data.images[:1]]),
        np.append(data.labels, 0),
        np.asarray([*replaced, 2 * patients[0] + 1], dtype=np.int64),
    )
    before, after = Units.of(data, "patient", m).records, Units.of(more, "patient", m).records
    assert before.shape == after.shape
    row = sorted(set(patients)).index(patients[0])
    others = np.delete(np.arange(len(before)), row)
    assert np.array_equal(before[others], after[others])


def test_a_blank_is_black_and_has_the_label_of_its_units_first_record():
    data = dataset([4, 7, 7])
    units = Units.of(data, "patient", 2)
    taken, blank = units.take(data, np.arange(4))
    assert blank.tolist() == [False, True, False, False]
    assert not taken.images[1].any()
    assert taken.labels.tolist() == [data.labels[0], data.labels[0], data.labels[1], data.labels[2]]
    assert units.class_counts(data).sum() == 4


def test_patients_must_be_known():
    data = dataset([1, 2])
    with pytest.raises(DataError, match="add patients to the data"):
        Units.of(Dataset(SCHEMA, data.images, data.labels), "patient", 1)


def test_places_are_as_many_whatever_a_patient_has_and_no_others_move():
    """Features that are computed together are rounded by place: 1e-8, which hostile weights make a whole gradient."""
    images = np.random.default_rng(0).integers(0, 256, (300, 3, 28, 28), dtype=np.uint8)
    schema = Schema(name="x", shape=(3, 28, 28), classes=("a", "b"), levels=256)
    patients = np.array([0, 0, *range(1, 299)])
    model = build_classifier(ClassifierConfig(model="linear-hog"), schema.shape, 2, seed=0)
    features = []
    for kept in (np.arange(300), np.delete(np.arange(300), 1)):  # the first patient has two records, or one
        dataset = Dataset(schema, images[kept], np.zeros(len(kept), dtype=np.int64), patients=patients[kept])
        units = Units.of(dataset, "patient", 2)
        contributed, places = units.placed(dataset)
        assert (places.shape, len(contributed)) == ((299, 2), 598)
        assert (places[0, 1] == -1) == (len(kept) == 299)
        features.append(features_of(split_features(model)[0], torch.from_numpy(contributed.images)))
    assert torch.equal(features[0][2:], features[1][2:])

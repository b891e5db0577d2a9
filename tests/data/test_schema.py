import numpy as np
import pytest
from pydantic import ValidationError

from cadp_fl.data.schema import Dataset, Schema, Source
from cadp_fl.errors import DataError

SCHEMA = Schema(name="x", shape=(1, 2, 2), classes=("a", "b"))


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (np.zeros((2, 1, 2, 2), np.float32), np.zeros(2, np.int64), "Images are uint8"),
        (np.zeros((2, 1, 2, 3), np.uint8), np.zeros(2, np.int64), "Images are uint8"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.int32), "Labels are int64"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 2]), "A label is 0 to 1. Found 0 to 2"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.array([-1, 0]), "A label is 0 to 1. Found -1 to 0"),
    ],
)
def test_records_that_break_the_schema_are_refused(images, labels, sentence):
    with pytest.raises(DataError, match=sentence):
        Dataset(SCHEMA, images, labels)


def records(count, patients=None, schema=SCHEMA):
    known = None if patients is None else np.array(patients)
    return Dataset(schema, np.zeros((count, 1, 2, 2), np.uint8), np.zeros(count, np.int64), known)


@pytest.mark.parametrize("patients", [[1], [1, 2, 3], [[1, 2]], [1.0, 2.0]])
def test_every_record_has_one_patient_or_none_has(patients):
    with pytest.raises(DataError, match=r"Patients are int64 of shape \(2,\)"):
        records(2, patients)


def test_a_selection_keeps_the_patients():
    assert records(3, [7, 8, 9]).select(np.array([2, 0])).patients.tolist() == [9, 7]
    assert records(3).select(np.array([2, 0])).patients is None


@pytest.mark.parametrize(
    ("train", "test", "sentence"),
    [
        (records(2, [1, 2]), records(3, [2, 3, 1]), "A patient is trained on or tested on, not both. 2 are in both"),
        (records(2, [1, 2]), records(2), "in both splits or in none"),
        (records(2), records(2, [1, 2]), "in both splits or in none"),
        (records(2), records(2, schema=Schema(name="y", shape=(1, 2, 2), classes=("a", "b"))), "one schema"),
    ],
)
def test_splits_that_do_not_fit_are_refused(train, test, sentence):
    with pytest.raises(DataError, match=sentence):
        Source(train, test)


NAMED = Schema(name="x", shape=(1, 2, 2), classes=("a", "b"), attributes=("hat", "young", "smiling"))


def with_attributes(values, schema=NAMED):
    return Dataset(schema, np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]), None, values)


def test_a_schema_without_attributes_is_written_as_it_was_before_there_were_any():
    before = '{"name":"x","shape":[1,2,2],"classes":["a","b"],"levels":256}'
    assert SCHEMA.model_dump_json() == before
    assert Schema.model_validate_json(before) == SCHEMA
    assert SCHEMA.attributes == ()
    assert Schema.model_validate_json(NAMED.model_dump_json()) == NAMED != SCHEMA


def test_a_flow_is_given_the_attributes_where_there_are_some_and_the_class_otherwise():
    values = np.array([[1, 0, 1], [0, 0, 1]], np.uint8)
    assert (SCHEMA.conditions, NAMED.conditions) == (2, 3)
    assert with_attributes(values).condition is values
    assert records(2).condition.tolist() == [0, 0]


def test_a_selection_keeps_the_attributes():
    chosen = with_attributes(np.array([[1, 0, 1], [0, 0, 1]], np.uint8)).select(np.array([1, 1, 0]))
    assert chosen.attributes.tolist() == [[0, 0, 1], [0, 0, 1], [1, 0, 1]]


@pytest.mark.parametrize(
    ("values", "schema", "sentence"),
    [
        (None, NAMED, "It names 3, and the records have none"),
        (np.zeros((2, 3), np.uint8), SCHEMA, "It names 0, and the records have some"),
        (np.zeros((2, 3), np.int64), NAMED, r"Attributes are uint8 of shape \(2, 3\). Found int64"),
        (np.zeros((2, 2), np.uint8), NAMED, r"Found uint8 \(2, 2\)"),
        (np.full((2, 3), 2, np.uint8), NAMED, "An attribute is 0 or 1. Found up to 2"),
    ],
)
def test_attributes_that_break_the_schema_are_refused(values, schema, sentence):
    with pytest.raises(DataError, match=sentence):
        with_attributes(values, schema)


@pytest.mark.parametrize("names", [("a", "a"), ("",), ("a" * 65,), tuple(str(number) for number in range(1001))])
def test_attributes_have_short_names_of_their_own_and_are_not_too_many(names):
    with pytest.raises(ValidationError):
        Schema(name="x", shape=(1, 2, 2), classes=("a", "b"), attributes=names)

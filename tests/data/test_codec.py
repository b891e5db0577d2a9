"""Codecs: what a record becomes, and that everything that comes back is a record."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cadp_fl.data.codec import Pixels, Rows, RowShape, codec_of, input_shape
from cadp_fl.data.columns import Column
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import DataError

AGE = Column(name="age", type="integer", lower=17, upper=90)
INCOME = Column(name="income", type="number", lower=1, upper=1e6, scale="log", missing=True)
STAGE = Column(name="stage", type="ordinal", categories=("I", "II", "III"))
SEX = Column(name="sex", type="category", categories=("f", "m"))
WARD = Column(name="ward", type="category", categories=("a", "b", "c"), missing=True)
COLUMNS = (AGE, INCOME, STAGE, SEX, WARD)
SCHEMA = Schema(name="t", shape=(5,), classes=("no", "yes"), columns=COLUMNS)


def rows(count=200, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(0, column.codes, count) for column in COLUMNS], axis=1).astype(np.int32)


@given(seed=st.integers(0, 2**32 - 1), offset=st.floats(0.0, 0.999))
@settings(max_examples=50, deadline=None)
def test_every_row_comes_back_whatever_the_noise_within_its_levels(seed, offset):
    stored = torch.from_numpy(rows(20, seed))
    codec = codec_of(SCHEMA)
    # 2^16 steps and an offset close to 1 meet float32's last digit
    x = codec.to_unit(stored, torch.tensor(np.clip(offset, 0.01, 0.99)).float())
    assert x.min() >= 0
    assert x.max() < 1
    assert torch.equal(codec.from_unit(x), stored)


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 1e3, 1e30, float("nan"), float("inf")]))
@settings(max_examples=60, deadline=None)
def test_whatever_a_flow_gives_is_a_valid_row(seed, scale):
    numbers = input_shape(SCHEMA)
    x = torch.randn(30, *numbers, generator=torch.Generator().manual_seed(seed)) * scale
    decoded = codec_of(SCHEMA).from_unit(x).numpy()
    Dataset(SCHEMA, decoded, np.zeros(30, dtype=np.int64))  # checks every code
    for column, codes in zip(COLUMNS, decoded.T, strict=True):
        values = column.values_of(codes)
        if column.has_bounds:
            known = values[~np.isnan(values)]
            assert ((known >= column.lower) & (known <= column.upper)).all()
            assert column.type != "integer" or (known == np.round(known)).all()
        else:
            assert {value for value in values.tolist() if value is not None} <= set(column.categories)


def test_the_numbers_of_a_row_are_what_the_module_says():
    shape = input_shape(SCHEMA)
    assert shape == (9,)
    assert shape.blocks == (
        ("number", 1), ("number-or-missing", 2), ("number", 1), ("category", 1), ("category", 4),
    )  # fmt: skip
    x = Rows(COLUMNS).to_unit(torch.tensor([[0, INCOME.steps, 2, 1, 3]], dtype=torch.int32))
    np.testing.assert_allclose(x.numpy()[0], [0.5 / 74, 0.5, 0.75, 2.5 / 3, 0.75, 0.25, 0.25, 0.25, 0.75], atol=1e-5)


def test_inputs_of_classifiers_are_around_zero_and_lead_back_to_the_middle_of_levels():
    stored, codec = rows(), codec_of(SCHEMA)
    inputs = codec.inputs(stored)
    assert inputs.abs().max() == 0.5
    torch.testing.assert_close(codec.of_inputs(inputs), codec.to_unit(torch.from_numpy(stored)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bytes_of_images_are_inputs_as_they_are(levels):
    pixels = (np.arange(levels) * 255 / (levels - 1)).round().astype(np.uint8).reshape(1, 1, 1, levels)
    codec = Pixels(levels)
    assert codec.inputs(pixels).dtype == torch.uint8
    x = codec.to_unit(torch.from_numpy(pixels))
    torch.testing.assert_close(codec.of_inputs(torch.from_numpy(pixels).float() / 255 - 0.5), x)
    assert torch.equal(codec.from_unit(x), torch.from_numpy(pixels))


@given(st.floats(1, 1e6), st.sampled_from(["linear", "log", "knots"]))
def test_a_number_comes_back_within_a_step(value, scale):
    given_ = {"knots": (1.0, 10.0, 1e6)} if scale == "knots" else {"scale": scale}
    column = Column(name="x", type="number", lower=1, upper=1e6, **given_)
    code, outside = column.codes_of(np.array([value]))
    back = column.values_of(code)[0]
    assert not outside[0]
    width = {"linear": 1e6 / 2**16, "log": value * (1e6 ** (1 / 2**16) - 1), "knots": 2 * 1e6 / 2**16}[scale]
    assert abs(back - value) <= width + 10.0 ** -column_decimals(column)


def column_decimals(column):
    return max(0, int(np.ceil(-np.log10((column.upper - column.lower) / column.steps))))


def test_every_whole_number_between_bounds_comes_back_exactly():
    values = np.arange(17, 91).astype(float)
    codes, outside = AGE.codes_of(values)
    assert not outside.any()
    assert AGE.values_of(codes).tolist() == values.tolist()
    assert AGE.codes == 74


@pytest.mark.parametrize(
    ("column", "value", "code", "is_outside"),
    [
        (AGE, 16.0, 0, True),
        (AGE, float("nan"), 0, True),
        (AGE.model_copy(update={"outside": "clip"}), 200.0, 73, True),
        (AGE.model_copy(update={"outside": "missing", "missing": True}), 200.0, 74, True),
        (AGE.model_copy(update={"missing": True}), float("nan"), 74, False),
        (SEX, "x", 0, True),
        (SEX, None, 0, True),
        (WARD, None, 3, False),
        (WARD, "z", 3, True),
        (WARD, "b", 1, False),
    ],
)
def test_what_is_outside_of_a_schema_is_flagged_and_stored_as_it_says(column, value, code, is_outside):
    kind = float if column.has_bounds else object
    codes, outside = column.codes_of(np.array([value], dtype=kind))
    assert (codes.tolist(), outside.tolist()) == ([code], [is_outside])


@pytest.mark.parametrize(
    "given_",
    [
        {"type": "number"},
        {"type": "number", "lower": 1, "upper": 1},
        {"type": "number", "lower": 0, "upper": 1, "categories": ("a", "b")},
        {"type": "integer", "lower": 0.5, "upper": 2},
        {"type": "number", "lower": 0, "upper": 1, "scale": "log"},
        {"type": "number", "lower": 0, "upper": 1, "knots": (0, 0.5)},
        {"type": "number", "lower": 0, "upper": 1, "knots": (0, 0.5, 0.5, 1)},
        {"type": "category", "categories": ("a",)},
        {"type": "category", "categories": ("a", "a")},
        {"type": "ordinal", "categories": ("a", "b"), "upper": 3},
        {"type": "number", "lower": 0, "upper": 1, "outside": "missing"},
        {"type": "category", "categories": ("a", "b"), "outside": "clip"},
        {"type": "number", "lower": float("-inf"), "upper": 1},
    ],
)
def test_a_column_that_does_not_fit_together_is_refused(given_):
    with pytest.raises(ValidationError):
        Column(name="x", **given_)


def test_a_schema_of_rows_is_written_and_read_and_one_of_images_as_ever():
    assert Schema.model_validate_json(SCHEMA.model_dump_json()) == SCHEMA
    image = Schema(name="x", shape=(1, 2, 2), classes=("a", "b"))
    assert image.model_dump_json() == '{"name":"x","shape":[1,2,2],"classes":["a","b"],"levels":256}'


def test_rows_that_break_their_schema_are_refused():
    stored = rows(3)
    stored[1, 0] = AGE.codes
    with pytest.raises(DataError, match="column 'age' has a code from 0 to 73"):
        Dataset(SCHEMA, stored, np.zeros(3, dtype=np.int64))
    with pytest.raises(DataError, match="Rows are int32"):
        Dataset(SCHEMA, rows(3).astype(np.int64), np.zeros(3, dtype=np.int64))
    with pytest.raises(ValidationError):
        Schema(name="t", shape=(4,), classes=("a", "b"), columns=COLUMNS)
    with pytest.raises(ValidationError):
        Schema(name="t", shape=(1, 2, 2), classes=("a", "b"), columns=COLUMNS)
    with pytest.raises(ValidationError):
        Schema(name="t", shape=(2,), classes=("a", "b"), columns=(AGE, AGE))
    names = tuple(str(number) for number in range(1000))
    wide = tuple(Column(name=f"c{number}", type="category", categories=names) for number in range(5))
    with pytest.raises(ValidationError, match="a row is at most 4096 numbers"):
        Schema(name="t", shape=(5,), classes=("a", "b"), columns=wide)


def test_a_row_shape_is_a_tuple_that_knows_its_columns_and_stays_one_when_copied():
    import copy

    shape = RowShape((("number", 1), ("category", 3)))
    assert shape == (4,)
    assert copy.deepcopy(shape).blocks == shape.blocks
    assert shape.parts == [("number", slice(0, 1)), ("category", slice(1, 4))]

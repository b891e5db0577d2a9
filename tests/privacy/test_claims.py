"""What is printed of a claim follows from what is public."""

import pytest

from cadp_fl.privacy.claims import format_delta, relation_of


@pytest.mark.parametrize(
    ("unit", "labels", "attributes", "relation"),
    [
        ("record", "public", (), "replace one record, keep its label"),
        ("record", "public", ("hat",), "replace one record, keep its label and attributes"),
        ("record", "covered", (), "replace one record"),
        ("patient", "public", (), "replace one patient, keep the labels of its records"),
        ("patient", "public", ("hat",), "replace one patient, keep the labels and attributes of its records"),
        ("patient", "covered", (), "replace one patient"),
    ],
)
def test_the_relation_keeps_what_is_public(unit, labels, attributes, relation):
    assert relation_of(unit, labels, attributes) == relation


@pytest.mark.parametrize(
    ("delta", "printed"),
    [
        (1e-5, "1e-05"),
        (9e-6, "9e-06"),
        (0.0001, "0.0001"),
        (1.2345641e-5, "1.23457e-05"),
        (1.2345678e-5, "1.23457e-05"),
    ],
)
def test_a_printed_delta_is_never_below_the_true_one(delta, printed):
    assert format_delta(delta) == printed
    assert float(printed) >= delta

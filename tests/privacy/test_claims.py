"""What is printed of a claim follows from what is public."""

import pytest

from cadp_fl.privacy.claims import relation_of


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

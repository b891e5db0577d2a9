"""What is printed of a claim follows from what is public."""

from cadp_fl.privacy.claims import relation_of


def test_the_relation_keeps_what_is_public():
    assert relation_of(()) == "replace one record, keep its label"
    assert relation_of(("hat",)) == "replace one record, keep its label and attributes"

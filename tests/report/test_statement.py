"""A statement names what is public: labels, and attributes where records have some."""

import pytest

from cadp_fl.privacy.accounting import LatentGaussian
from cadp_fl.privacy.claims import FLOW_WEIGHTS, claim_of, relation_of
from cadp_fl.privacy.ledger import Plan
from cadp_fl.report.statement import RESUMED, assumptions, not_covered, statement_of_method, statement_of_study

EVENT = LatentGaussian(stage="release", clip_norm=2.0, noise_std=8.0)


def test_without_attributes_nothing_speaks_of_them(tiny):
    lines = [*assumptions(()), *not_covered(()), statement_of_study(tiny, (), {}, resumed=False)]
    assert not any("attribute" in line for line in lines)
    assert assumptions(())[1] == (
        "Labels are public: the number of training records of each class at a site is told to all, by declaration, so "
        "no claim covers a record's label."
    )
    assert not_covered(())[0] == "A record's label, and the number of records of a site."


def test_with_attributes_they_are_public_and_not_covered(tiny):
    names = ("hat", "young")
    assert assumptions(names)[1].startswith("Labels and attributes are public")
    assert not_covered(names)[0] == "A record's label and attributes, and the number of records of a site."
    assert "'replace one record, keep its label and attributes'" in statement_of_study(tiny, names, {}, resumed=False)
    assert len(assumptions(names)) == len(assumptions(()))
    assert len(not_covered(names)) == len(not_covered(()))


@pytest.mark.parametrize("events", [(EVENT,), (FLOW_WEIGHTS, EVENT)])
@pytest.mark.parametrize("attributes", [(), ("hat",)])
def test_the_statement_of_a_method_has_the_relation(events, attributes):
    relation = relation_of(attributes)
    text = statement_of_method("m", claim_of(Plan("m", events, 1e-5)), noise="entropy", relation=relation)
    assert text.count(f"'{relation}'") == text.count("replace one record") == 1


def test_a_resumed_run_says_that_its_accounts_leave_something_out(tiny):
    assert RESUMED in statement_of_study(tiny, (), {}, resumed=True)
    assert RESUMED not in statement_of_study(tiny, (), {}, resumed=False)

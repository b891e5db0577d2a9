"""A statement names whom it protects, against whom, and what is public: labels, attributes, numbers of units."""

import pytest

from cadp_fl.privacy.claims import FLOW_WEIGHTS, Scope, claim_of
from cadp_fl.privacy.events import LatentGaussian
from cadp_fl.privacy.plan import Plan
from cadp_fl.report.statement import RESUMED, assumptions, not_covered, statement_of_method, statement_of_study
from tests.privacy.ledger_events import CENTRE, MOMENTS

EVENT = LatentGaussian(stage="release", clip_norm=2.0, noise_std=8.0)
PLAIN = Scope("record", 1, "public")
COVERED = Scope("record", 1, "covered")
NAMED = Scope("record", 1, "public", ("hat", "young"))
PATIENTS = Scope("patient", 3, "public")
SCOPES = pytest.mark.parametrize("scope", [PLAIN, COVERED, NAMED, PATIENTS, Scope("patient", 1, "covered")])


def test_without_attributes_nothing_speaks_of_them(tiny):
    lines = [*assumptions(PLAIN), *not_covered(PLAIN), statement_of_study(tiny, PLAIN, {}, resumed=False)]
    assert not any("attribute" in line for line in lines)
    assert assumptions(PLAIN)[1] == (
        "Labels are public: the number of training records of each class at a site is known to all, by declaration, so "
        "no claim covers a record's label."
    )
    assert not_covered(PLAIN)[0] == "A record's label."


def test_with_attributes_they_are_public_and_not_covered():
    assert assumptions(NAMED)[1].startswith("Labels and attributes are public")
    assert not_covered(NAMED)[0] == "A record's label and attributes."


def test_covered_labels_are_not_among_what_is_not_covered():
    assert assumptions(COVERED)[1].startswith("Labels are covered")
    assert not any("label" in line for line in not_covered(COVERED))


def test_patients_are_left_out_where_the_unit_is_a_record_and_there_alone():
    assert any("Patients as such" in line for line in not_covered(PLAIN))
    assert not any("Patients as such" in line for line in not_covered(PATIENTS))
    assert "exactly 3 records" in assumptions(PATIENTS)[0]
    assert "m times the epsilon" in assumptions(PLAIN)[0]


@SCOPES
def test_the_statement_of_a_study_says_who_is_protected_against_whom(tiny, scope):
    text = statement_of_study(tiny, scope, {}, resumed=False)
    assert f"'{scope.relation}'" in text
    assert f"Each {scope.unit} is protected against the server" in text
    assert f"The number of {scope.unit}s of a site." in text


@pytest.mark.parametrize("events", [(EVENT,), (FLOW_WEIGHTS, EVENT)])
@SCOPES
def test_the_statement_of_a_method_has_the_relation(events, scope):
    plan = Plan("m", events, 1e-5, unit=scope.unit, labels=scope.labels)
    text = statement_of_method("m", claim_of(plan), noise="entropy", relation=scope.relation)
    assert text.count(f"'{scope.relation}'") == text.count("replace one") == 1


def said(*events):
    return statement_of_method("m", claim_of(Plan("m", events, 1e-5)), noise="entropy", relation="replace one record")


def test_a_claim_says_what_it_takes_the_flow_of_a_release_to_be_made_of():
    text = said(CENTRE, MOMENTS, EVENT)
    assert "what these events of the method released, gaussian-sum, gaussian-moments, and of nothing else" in text
    assert "against the server and all that it shares with" in text
    assert "takes the flow" not in said(CENTRE, MOMENTS)


def test_a_claim_on_sums_over_sites_trusts_the_aggregator_and_says_so(tiny):
    share = MOMENTS.model_copy(update={"shares": 3})
    for events in ((share,), (FLOW_WEIGHTS, share, EVENT)):
        assert "against those alone who see sums over sites" in said(*events)
        assert "the aggregator, which sees more, is trusted" in said(*events)
        assert "against the server" not in said(*events)
    assert "In moments the sites add a share" in statement_of_study(tiny, PLAIN, {}, resumed=False, summed=["moments"])
    assert "aggregator" not in statement_of_study(tiny, PLAIN, {}, resumed=False)


def test_a_resumed_run_says_that_its_accounts_leave_something_out(tiny):
    assert RESUMED in statement_of_study(tiny, PLAIN, {}, resumed=True)
    assert RESUMED not in statement_of_study(tiny, PLAIN, {}, resumed=False)


def test_a_retry_reserve_is_stated(tiny):
    study = tiny.model_copy(update={"budget": tiny.budget.model_copy(update={"retry_reserve": 0.1})})
    assert "a share of 0.1 is set aside" in statement_of_study(study, PLAIN, {}, resumed=False)
    assert "set aside" not in statement_of_study(tiny, PLAIN, {}, resumed=False)

"""Laws of checks: none takes the others with it, and what breaks one is what it found."""

import time

import pytest

from cadp_fl.doctor.finding import Check, UnmetError, examine, ok
from cadp_fl.errors import LedgerError


def _broken(_subject):
    yield ok("before")
    raise KeyError("patient 4711")


def _unmet(_subject):
    raise UnmetError("It needs site.yaml.")


def _explained(_subject):
    raise LedgerError("A ledger has a mark. Found none at 'x'; bring it back.")


def _refused(_subject):
    raise PermissionError(13, "Permission denied", "policy.yaml")


def _well(subject):
    yield ok(f"{subject} is well.")


def test_a_check_that_breaks_names_its_error_and_no_value():
    before, finding, after = examine([Check("first", _broken), Check("second", _well)], "all")
    assert (before.found, after.found) == ("before", "all is well.")
    assert (finding.state, finding.name) == ("fault", "first")
    assert "KeyError" in finding.found
    assert "4711" not in finding.found + finding.fix
    with pytest.raises(KeyError):
        examine([Check("first", _broken)], "all", debug=True)


def test_an_error_of_this_library_becomes_what_was_found_and_how_to_mend_it():
    (finding,) = examine([Check("ledger", _explained)], None)
    assert (finding.state, finding.found) == ("fault", "A ledger has a mark. Found none at 'x'.")
    assert finding.fix == "Bring it back."


def test_what_the_system_refuses_is_a_fault_in_words():
    (finding,) = examine([Check("policy", _refused)], None)
    assert (finding.state, finding.found) == ("fault", "The system refused 'policy.yaml': Permission denied.")


def test_a_check_that_needs_another_is_skipped():
    (finding,) = examine([Check("policy", _unmet)], None)
    assert (finding.state, finding.found) == ("skipped", "It needs site.yaml.")


def test_a_check_that_hangs_is_given_up():
    start = time.monotonic()
    found = examine([Check("slow", lambda _: time.sleep(5), seconds=0.1), Check("next", _well)], "all")
    assert [finding.state for finding in found] == ["warning", "ok"]
    assert time.monotonic() - start < 3

"""Laws of the way to a coordinator: what is wrong is named, and what lies open is a fault."""

import datetime

import pytest

from cadp_fl.deployment import certificates
from cadp_fl.deployment.certificates import new_authority, new_server_key
from cadp_fl.doctor.connection import certificate_life, clock, way_to
from tests.doctor.servers import DOOR, FLEET, serving


def _states(findings):
    return {finding.name or "coordinator": finding.state for finding in findings}


def _found(findings, name):
    return next(finding for finding in findings if (finding.name or "coordinator") == name)


def test_a_coordinator_behind_its_door_is_well(tmp_path):
    with serving(tmp_path) as (address, authority):
        findings = list(way_to(address, authority))
    assert set(_states(findings).values()) == {"ok"}
    assert {"proxy", "coordinator", "clock", "certificate", "fleet API", "control API"} == set(_states(findings))
    assert "397 days" in _found(findings, "certificate").found
    assert "TLSv1" in _found(findings, "certificate").found


def test_a_certificate_of_another_name_is_a_fault_that_says_which(tmp_path):
    with serving(tmp_path, hosts=["other.example.org"]) as (address, authority):
        _, finding = way_to(address, authority)
    assert finding.state == "fault"
    assert "names other.example.org, not localhost" in finding.found


def test_an_unknown_authority_is_a_fault(tmp_path):
    other = tmp_path / "other.crt"
    other.write_bytes(new_authority("other").certificate)
    with serving(tmp_path) as (address, _):
        _, finding = way_to(address, other)
    assert finding.state == "fault"
    assert "signed by no authority that is known here" in finding.found
    assert finding.fix


def test_an_ended_certificate_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "SERVER_DAYS", 0)
    with serving(tmp_path) as (address, authority):
        _, finding = way_to(address, authority)
    assert finding.state == "fault"
    assert "ended on" in finding.found


@pytest.mark.parametrize(("days", "state"), [(0, "fault"), (20, "warning"), (100, "ok")])
def test_a_certificate_shows_the_days_that_it_has_left(monkeypatch, days, state):
    monkeypatch.setattr(certificates, "SERVER_DAYS", days)
    pair = new_server_key(new_authority("test"), ["localhost"])
    finding = certificate_life(pair.certificate, "it")
    assert finding.state == state
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days, hours=-1)
    assert f"{end:%Y-%m-%d}" in finding.found


def test_plain_http_is_a_fault_in_words(tmp_path):
    with serving(tmp_path, plain=True) as (address, authority):
        _, finding = way_to(address, authority)
    assert finding.state == "fault"
    assert "plain HTTP" in finding.found


def test_an_address_where_nobody_answers_is_a_fault(tmp_path):
    with serving(tmp_path) as (address, authority):
        pass
    _, finding = way_to(address, authority)
    assert finding.state == "fault"
    assert address in finding.found


@pytest.mark.parametrize(
    ("ahead", "state"),
    [(0.0, "ok"), (1.5, "ok"), (3.0, "warning"), (7.0, "fault"), (-20.0, "ok"), (-60.0, "warning"), (-250.0, "fault")],
)
def test_a_clock_is_at_fault_before_flower_refuses_its_node(ahead, state):
    assert clock(ahead).state == state


@pytest.mark.parametrize(("behind", "state"), [(-280.0, "fault"), (-100.0, "warning"), (20.0, "fault")])
def test_the_clock_is_held_against_the_coordinators(tmp_path, behind, state):
    with serving(tmp_path, behind=behind) as (address, authority):
        findings = list(way_to(address, authority))
    assert _found(findings, "clock").state == state


@pytest.mark.parametrize(
    "answer",
    [(200, False), (405, True), (404, True), (401, True), (500, True), (502, False)],
    ids=["answered", "no such method", "no such path", "asked for a key", "failed", "passed on to nobody"],
)
@pytest.mark.parametrize("path", ["/v1/control/list-runs", "/v1/runtime/send-task-heartbeat"])
def test_an_interface_that_takes_code_is_a_fault_however_it_answers(tmp_path, monkeypatch, path, answer):
    monkeypatch.setattr("cadp_fl.doctor.connection.LOOPBACK", ())
    with serving(tmp_path, {**DOOR, path: answer}) as (address, authority):
        finding = _found(list(way_to(address, authority)), "control API")
    assert finding.state == "fault"
    assert "submit code to every site" in finding.found


def test_a_federation_on_one_machine_alone_is_warned_of_its_open_interface(tmp_path):
    with serving(tmp_path, {**DOOR, "/v1/control/list-runs": (200, False)}) as (address, authority):
        assert _found(list(way_to(address, authority)), "control API").state == "warning"


@pytest.mark.parametrize("answer", [(403, False), (404, False), (401, False)])
def test_what_a_door_refuses_is_closed(tmp_path, answer):
    with serving(tmp_path, {**DOOR, "/v1/control/list-runs": answer}) as (address, authority):
        assert _found(list(way_to(address, authority)), "control API").state == "ok"


@pytest.mark.parametrize(
    ("answer", "said"),
    [((502, False), "is not"), ((200, False), "show no key"), ((403, False), "passes no node on")],
    ids=["no SuperLink", "no keys", "nothing passed on"],
)
def test_a_door_without_a_superlink_that_asks_for_keys_is_a_fault(tmp_path, answer, said):
    with serving(tmp_path, {FLEET: answer}) as (address, authority):
        finding = _found(list(way_to(address, authority)), "fleet API")
    assert finding.state == "fault"
    assert said in finding.found

"""Laws of a coordinator's doctor: its files, certificates, door and sites."""

import contextlib
import shutil
import socket

import pytest

from cadp_fl.config import CoordinatorConfig, parse
from cadp_fl.deployment.certificates import CertifiedKey, new_authority, new_server_key
from cadp_fl.deployment.coordinator import CoordinatorFolder
from cadp_fl.doctor import coordinator as module
from cadp_fl.doctor.coordinator import COORDINATOR_CHECKS, Coordinator
from cadp_fl.doctor.diagnosis import diagnose
from cadp_fl.doctor.finding import examine
from cadp_fl.errors import InputError
from cadp_fl.site.keys import new_key_pair
from tests.doctor.servers import serving

HAS_NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/sbin") is not None


@pytest.fixture
def folder(tmp_path):
    return _made(tmp_path / "coordinator", 9443)


def _made(path, port, superlink_port=18000, proxy="nginx"):
    tree = {"federation": "test", "host": "localhost", "port": port, "superlink_port": superlink_port, "proxy": proxy}
    return CoordinatorFolder.create(path, parse(CoordinatorConfig, tree))


def _admit(folder, tmp_path, name):
    (tmp_path / f"{name}.pub").write_bytes(new_key_pair(name)[1])
    folder.admit([tmp_path / f"{name}.pub"])


def _look(folder, name):
    return examine([check for check in COORDINATOR_CHECKS if check.name == name], Coordinator(folder))


@pytest.mark.skipif(not HAS_NGINX, reason="nginx is not installed")
def test_a_coordinator_where_all_is_well_has_no_fault(tmp_path, monkeypatch):
    folder = _made(tmp_path / "coordinator", 9443)
    _admit(folder, tmp_path, "north")
    monkeypatch.setattr(module, "is_up", lambda _folder: True)
    monkeypatch.setattr(module, "node_states", lambda _folder: {"north": "online"})
    with serving(tmp_path / "door") as (address, authority):
        changes = {"port: 9443": f"port: {address.rpartition(':')[2]}", "localhost:9443": address}
        for file in (folder.config, folder.invitation_file):
            text = file.read_text()
            for old, new in changes.items():
                text = text.replace(old, new)
            file.write_text(text)
        monkeypatch.setattr(Coordinator, "authorities", lambda _: contextlib.nullcontext(authority))
        monkeypatch.setattr(module, "check_server_files", lambda *_: None)
        diagnosis = diagnose(folder.path)
    assert [finding for finding in diagnosis.findings if finding.state in ("fault", "skipped")] == []
    assert diagnosis.side == "coordinator"
    assert any(finding.name == "control API" for finding in diagnosis.findings)


def test_a_fresh_folders_certificates_are_well_and_an_ended_one_is_a_fault(folder, monkeypatch):
    assert [finding.state for finding in _look(folder, "certificates")] == ["ok", "ok"]
    monkeypatch.setattr("cadp_fl.deployment.certificates.SERVER_DAYS", 0)
    pair = new_server_key(new_authority("other"), ["localhost"])
    (folder.certificates / "proxy.crt").write_bytes(pair.certificate)
    found = _look(folder, "certificates")
    assert [finding.state for finding in found] == ["ok", "fault"]
    assert "do not fit" in found[1].found or "are none" in found[1].found
    (folder.certificates / "proxy.key").write_bytes(pair.key)
    assert "signed by no authority" in _look(folder, "certificates")[1].found


def test_a_certificate_of_another_name_is_a_fault(folder):
    authority = CertifiedKey(*((folder.certificates / f"ca.{suffix}").read_bytes() for suffix in ("crt", "key")))
    pair = new_server_key(authority, ["other"])
    (folder.certificates / "proxy.crt").write_bytes(pair.certificate)
    (folder.certificates / "proxy.key").write_bytes(pair.key)
    assert "names other, not localhost" in _look(folder, "certificates")[1].found


@pytest.mark.parametrize("name", ["certificates/ca.key", "state", "."])
def test_what_others_may_read_is_a_fault(folder, name):
    assert [finding.state for finding in _look(folder, "files")] == ["ok"]
    (folder.path / name).chmod(0o755)
    (finding,) = _look(folder, "files")
    assert (finding.state, "Others may reach" in finding.found) == ("fault", True)


def test_an_invitation_to_another_address_is_a_fault(folder):
    assert [finding.state for finding in _look(folder, "coordinator.yaml")] == ["ok"]
    folder.invitation_file.write_text(folder.invitation_file.read_text().replace(":9443", ":9444"))
    assert [finding.state for finding in _look(folder, "coordinator.yaml")] == ["fault"]


@pytest.mark.skipif(not HAS_NGINX, reason="nginx is not installed")
def test_settings_that_nginx_does_not_take_are_a_fault_and_its_look_leaves_nothing(folder):
    before = sorted(folder.path.rglob("*"))
    assert [finding.state for finding in _look(folder, "door")] == ["ok"]
    assert sorted(folder.path.rglob("*")) == before
    folder.nginx.write_text(folder.nginx.read_text().replace("server_name", "server_nam"))
    (finding,) = _look(folder, "door")
    assert (finding.state, "server_nam" in finding.found) == ("fault", True)


def test_a_missing_nginx_is_a_fault_in_words(folder, monkeypatch):
    monkeypatch.setattr("cadp_fl.deployment.superlink.shutil.which", lambda *_, **__: None)
    (finding,) = _look(folder, "door")
    assert (finding.state, "nginx" in finding.fix or "install it" in finding.fix) == ("fault", True)


def test_a_superlink_that_does_not_run_is_a_fault_and_what_needs_it_is_skipped(folder, tmp_path):
    _admit(folder, tmp_path, "north")
    assert [finding.state for finding in _look(folder, "SuperLink")] == ["fault"]
    for name in ("coordinator", "sites"):
        assert [finding.state for finding in _look(folder, name)] == ["skipped"]


@pytest.mark.parametrize(("host", "state"), [("127.0.0.1", "ok"), ("0.0.0.0", "fault")])
def test_a_superlink_that_others_reach_is_a_fault(tmp_path, monkeypatch, host, state):
    monkeypatch.setattr(module, "is_up", lambda _folder: True)
    with socket.socket() as listener:
        listener.bind((host, 0))
        listener.listen()
        folder = _made(tmp_path / "coordinator", 9443, listener.getsockname()[1])
        (finding,) = _look(folder, "SuperLink")
    assert finding.state == state


def test_sites_that_are_not_registered_or_not_connected_are_named(folder, tmp_path, monkeypatch):
    assert [finding.state for finding in _look(folder, "sites")] == ["warning"]
    for name in ("north", "east", "south"):
        _admit(folder, tmp_path, name)
    monkeypatch.setattr(module, "is_up", lambda _folder: True)
    monkeypatch.setattr(module, "node_states", lambda _folder: {"north": "online", "east": "offline"})
    unknown, away, online = _look(folder, "sites")
    assert (unknown.state, "south" in unknown.found) == ("fault", True)
    assert (away.state, "east" in away.found) == ("warning", True)
    assert (online.state, "north" in online.found) == ("ok", True)


def test_another_release_of_flower_is_a_fault(folder, monkeypatch):
    assert [finding.state for finding in _look(folder, "versions")] == ["ok"]
    monkeypatch.setattr(module, "version", lambda _name: "1.42.0")
    assert [finding.state for finding in _look(folder, "versions")] == ["fault"]


def test_a_volume_without_room_is_a_fault(folder, monkeypatch):
    usage = shutil.disk_usage(folder.path)
    monkeypatch.setattr("cadp_fl.doctor.machine.shutil.disk_usage", lambda _path: usage._replace(free=1 << 20))
    assert [finding.state for finding in _look(folder, "database")] == ["ok", "fault"]
    monkeypatch.setattr("cadp_fl.doctor.machine.shutil.disk_usage", lambda _path: usage._replace(free=1 << 30))
    assert [finding.state for finding in _look(folder, "database")] == ["ok", "warning"]


def test_little_memory_is_a_warning(folder, monkeypatch):
    monkeypatch.setattr(
        "cadp_fl.doctor.machine.psutil.virtual_memory", lambda: type("Memory", (), {"available": 1 << 20})
    )
    assert [finding.state for finding in _look(folder, "memory")] == ["warning"]


def test_root_looks_at_no_folder_of_another_user(folder, monkeypatch):
    monkeypatch.setattr("cadp_fl.doctor.diagnosis.os.geteuid", lambda: 0)
    monkeypatch.setattr(
        type(folder.path), "stat", lambda *_, **__: type("Found", (), {"st_uid": 4711, "st_mode": 0o100600})
    )
    with pytest.raises(InputError, match=r"sudo -u #4711"):
        diagnose(folder.path)

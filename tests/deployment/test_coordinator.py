"""The folder that serves a federation."""

import datetime
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from cadp_fl.config import CoordinatorConfig, load_invitation, parse
from cadp_fl.deployment import certificates
from cadp_fl.deployment.certificates import check_server_files, end_of, names_of, new_authority, new_server_key
from cadp_fl.deployment.coordinator import CoordinatorFolder, ServerFiles
from cadp_fl.errors import ConfigError, InputError
from cadp_fl.site.keys import fingerprint, new_key_pair

HOST = "coordinator.example"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def _config(**changes: object) -> CoordinatorConfig:
    tree = {"federation": "chest", "host": HOST, "port": 8443, "superlink_port": 8000}
    return parse(CoordinatorConfig, tree | changes)


def _public(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.pub"
    file.write_bytes(new_key_pair(name)[1])
    return file


@pytest.fixture
def folder(tmp_path: Path) -> CoordinatorFolder:
    return CoordinatorFolder.create(tmp_path / "coordinator", _config())


def test_what_is_secret_is_the_users_alone(folder):
    assert folder.path.stat().st_mode & 0o777 == 0o700
    keys = sorted(folder.certificates.glob("*.key"))
    assert [key.name for key in keys] == ["ca.key", "proxy.key", "superlink.key"]
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys)
    assert folder.load() == _config()


def test_sites_and_the_coordinator_itself_take_the_certificates(folder):
    for name, host in (("proxy", HOST), ("superlink", "localhost"), ("superlink", "127.0.0.1")):
        files = folder.certificates / f"{name}.crt", folder.certificates / f"{name}.key"
        check_server_files(*files, host, folder.authority)


def test_an_invitation_is_public_and_enough_to_verify_by(folder):
    invitation = folder.invitation()
    assert (invitation.federation, invitation.address) == ("chest", f"{HOST}:8443")
    assert invitation.certificate == folder.authority.read_text()
    assert "PRIVATE" not in folder.invitation_file.read_text()


def test_the_same_invitation_has_the_same_fingerprint_however_it_was_sent(folder, tmp_path):
    invitation, sent = folder.invitation(), tmp_path / "sent.yaml"
    sent.write_bytes(folder.invitation_file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_invitation(sent).fingerprint == invitation.fingerprint
    for change in ({"federation": "chess"}, {"address": "other.example:8443"}, {"certificate": None}):
        assert invitation.model_copy(update=change).fingerprint != invitation.fingerprint


@pytest.mark.parametrize("host", ["2001:db8::7", "localhost"])
def test_an_address_is_given_so_that_it_can_be_called(tmp_path, host):
    made = CoordinatorFolder.create(tmp_path / "c", _config(host=host))
    assert made.invitation().address == {"localhost": "localhost:8443"}.get(host, "[2001:db8::7]:8443")
    listens = [line.split()[1] for line in made.nginx.read_text().splitlines() if line.strip().startswith("listen")]
    assert listens == {"localhost": ["127.0.0.1:8443"]}.get(host, ["8443", "[::]:8443"])


def test_without_a_proxy_a_federation_stays_on_its_machine(tmp_path):
    alone = {"proxy": "none", "port": 8000}
    with pytest.raises(ConfigError, match=f"may submit code to every site.* Found the host '{HOST}'"):
        _config(**alone)
    made = CoordinatorFolder.create(tmp_path / "c", _config(**alone, host="localhost"))
    assert not made.nginx.exists()
    with pytest.raises(ConfigError, match="have a port each"):
        _config(superlink_port=8443)


def test_a_certificate_of_ones_own_is_taken_with_its_authorities(tmp_path):
    authority = new_authority("hospital")
    server = new_server_key(authority, [HOST])
    for name, data in (("ca.crt", authority.certificate), ("h.crt", server.certificate), ("h.key", server.key)):
        (tmp_path / name).write_bytes(data)
    own = ServerFiles(tmp_path / "h.crt", tmp_path / "h.key", tmp_path / "ca.crt")
    made = CoordinatorFolder.create(tmp_path / "c", _config(), server=own)
    assert made.invitation().certificate == authority.certificate.decode()
    assert (made.certificates / "proxy.crt").read_bytes() == server.certificate


def test_a_certificate_that_every_system_verifies_is_not_in_the_invitation(tmp_path, monkeypatch):
    authority = new_authority("the world's")
    server = new_server_key(authority, [HOST])
    for name, data in (("ca.crt", authority.certificate), ("h.crt", server.certificate), ("h.key", server.key)):
        (tmp_path / name).write_bytes(data)
    own = ServerFiles(tmp_path / "h.crt", tmp_path / "h.key")
    with pytest.raises(InputError, match=r"signed by no authority that is known here.* or give --ca FILE"):
        CoordinatorFolder.create(tmp_path / "c", _config(), server=own)
    assert not (tmp_path / "c").exists()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    assert CoordinatorFolder.create(tmp_path / "c", _config(), server=own).invitation().certificate is None


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    with pytest.raises(InputError, match="check both"):
        CoordinatorFolder.create(
            tmp_path / "c", _config(), server=ServerFiles(tmp_path / "no.crt", tmp_path / "no.key")
        )
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"holds coordinator\.yaml"):
        CoordinatorFolder.at(tmp_path / "c")


def test_admitted_sites_are_named_by_their_files(folder, tmp_path):
    files = [_public(tmp_path, name) for name in ("north", "east")]
    assert folder.admit(files) == {file.stem: fingerprint(file.read_bytes()) for file in files}
    assert folder.fingerprints() == folder.admit([]) | {file.stem: fingerprint(file.read_bytes()) for file in files}
    folder.expel("north")
    assert list(folder.key_files()) == ["east"]
    with pytest.raises(InputError, match="'north' was not; admitted are: east"):
        folder.expel("north")


def test_one_key_that_cannot_be_admitted_keeps_all_out(folder, tmp_path):
    good = _public(tmp_path, "north")
    twin = tmp_path / "twin.pub"
    twin.write_bytes(good.read_bytes())
    short = tmp_path / "short.pub"
    short.write_bytes(
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    edwards = tmp_path / "edwards.pub"
    edwards.write_bytes(
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    private = tmp_path / "private.pub"
    private.write_bytes(new_key_pair("x")[0])
    long = tmp_path / "long.pub"
    long.write_bytes(good.read_bytes() + b"x" * 5000)
    for wrong, rule in (
        (twin, "admitted once. That of 'twin' is, as 'north'"),
        (short, "EC P-384"),
        (edwards, "EC P-384"),
        (private, "EC P-384"),
        (long, "at most 4096 bytes"),
        (tmp_path / "nowhere.pub", "a file that can be read"),
        (_public(tmp_path, "North"), "lower-case letters"),
        (_public(tmp_path, "a b"), "lower-case letters"),
        (Path(shutil.copy(good, tmp_path / "east.txt")), "is a file SITE.pub"),
    ):
        with pytest.raises(InputError, match=rule):
            folder.admit([good, wrong])
        assert not folder.key_files()


def test_a_site_has_one_key_until_it_is_removed(folder, tmp_path):
    folder.admit([_public(tmp_path, "north")])
    other = _public(tmp_path / "other", "north")
    with pytest.raises(InputError, match=r"one key. 'north' has another.*remove FOLDER north"):
        folder.admit([other])
    folder.expel("north")
    folder.admit([other])


def test_what_ends_soon_is_signed_again_for_the_same_names(folder, monkeypatch):
    assert folder.renew() == []
    monkeypatch.setattr(certificates, "SERVER_DAYS", 20)
    authority = certificates.CertifiedKey(folder.authority.read_bytes(), (folder.certificates / "ca.key").read_bytes())
    proxy = folder.certificates / "proxy.crt"
    proxy.write_bytes(new_server_key(authority, [HOST]).certificate)
    monkeypatch.undo()
    (said,) = folder.renew()
    assert said.startswith("Renewed the certificate of the proxy")
    assert names_of(proxy.read_bytes()) == (HOST,)
    assert end_of(proxy.read_bytes()) - datetime.datetime.now(datetime.UTC) > datetime.timedelta(days=390)
    check_server_files(proxy, proxy.with_suffix(".key"), HOST, folder.authority)


def test_what_others_signed_is_not_replaced(folder, monkeypatch):
    monkeypatch.setattr(certificates, "SERVER_DAYS", 20)
    proxy = folder.certificates / "proxy.crt"
    proxy.write_bytes(new_server_key(new_authority("hospital"), [HOST]).certificate)
    assert folder.renew()[0].endswith("get a new one before.")
    monkeypatch.setattr(certificates, "SERVER_DAYS", 0)
    proxy.write_bytes(new_server_key(new_authority("hospital"), [HOST]).certificate)
    with pytest.raises(InputError, match="until its end"):
        folder.renew()


def test_the_connection_follows_the_folder(folder):
    moved = CoordinatorFolder(folder.path.rename(folder.path.with_name("moved")))
    moved.write_connection()
    assert str(moved.authority) in (moved.flower / "config.toml").read_text()


def test_settings_are_yaml_that_people_read(folder):
    assert yaml.safe_load(folder.config.read_text())["host"] == HOST
    assert "certificate: |\n  -----BEGIN CERTIFICATE-----\n" in folder.invitation_file.read_text()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize("host", [HOST, "localhost", "2001:db8::7"])
def test_nginx_takes_the_settings(tmp_path, host):
    made = CoordinatorFolder.create(tmp_path / "c", _config(host=host))
    tested = subprocess.run(
        [str(NGINX), "-t", "-p", str(made.path), "-c", str(made.nginx), "-e", "stderr"], capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stderr
    assert "warn" not in tested.stderr

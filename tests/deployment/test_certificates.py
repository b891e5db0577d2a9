"""What the federation's own authority signs, and what a site's client takes."""

import datetime
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from cadp_fl.deployment import certificates
from cadp_fl.deployment.certificates import (
    CertifiedKey,
    check_server_files,
    end_of,
    is_signed_by,
    names_of,
    new_authority,
    new_server_key,
    verifying,
)
from cadp_fl.errors import InputError


def _written(folder: Path, name: str, pair: CertifiedKey) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    return certificate, key


@pytest.fixture(scope="module")
def authority() -> CertifiedKey:
    return new_authority("chest")


@pytest.fixture
def known(tmp_path: Path, authority: CertifiedKey) -> Path:
    return _written(tmp_path, "ca", authority)[0]


@pytest.mark.parametrize("host", ["coordinator.example", "localhost", "192.0.2.7", "2001:db8::7"])
def test_a_strict_client_takes_what_the_authority_signed_for_the_host(tmp_path, authority, known, host):
    server = new_server_key(authority, [host])
    check_server_files(*_written(tmp_path, "server", server), host, known)
    assert names_of(server.certificate) == (host,)
    assert is_signed_by(server.certificate, authority.certificate)


def test_a_server_lives_no_longer_than_clients_take(authority):
    life = end_of(new_server_key(authority, ["a"]).certificate) - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=390) < life < datetime.timedelta(days=398)


@pytest.mark.parametrize(("signed", "called"), [("a.example", "b.example"), ("127.0.0.1", "localhost")])
def test_another_host_is_refused_with_the_names(tmp_path, authority, known, signed, called):
    files = _written(tmp_path, "server", new_server_key(authority, [signed]))
    with pytest.raises(InputError, match=f"names {signed}, not {called}"):
        check_server_files(*files, called, known)


def test_another_authority_is_refused(tmp_path, known):
    files = _written(tmp_path, "server", new_server_key(new_authority("chest"), ["a.example"]))
    with pytest.raises(InputError, match="is signed by no authority that is known here"):
        check_server_files(*files, "a.example", known)
    assert not is_signed_by(files[0].read_bytes(), known.read_bytes())


def test_what_ended_is_refused(tmp_path, authority, known, monkeypatch):
    monkeypatch.setattr(certificates, "SERVER_DAYS", 0)
    files = _written(tmp_path, "server", new_server_key(authority, ["a.example"]))
    with pytest.raises(InputError, match="ended on 20"):
        check_server_files(*files, "a.example", known)


def test_a_key_that_does_not_fit_or_has_a_password_is_refused(tmp_path, authority, known):
    certificate, key = _written(tmp_path, "server", new_server_key(authority, ["a"]))
    _, other = _written(tmp_path, "other", new_server_key(authority, ["a"]))
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    for wrong in (other, locked, certificate, tmp_path / "nowhere", Path(sys.executable)):
        with pytest.raises(InputError, match="has a certificate and the key that fits it"):
            check_server_files(certificate, wrong, "a", known)


def test_authorities_are_certificates(tmp_path):
    (tmp_path / "no.crt").write_text("none")
    with pytest.raises(InputError, match="certificates are a PEM file"):
        verifying(tmp_path / "no.crt")

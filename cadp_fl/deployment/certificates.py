"""Certificates: a federation's own authority, the servers' that it signs, and whether a client would take one.

All keys are EC P-384. What is made here stands up to strict verification (RFC 5280: key usage, and identifiers of the
keys of subject and authority). Whether a certificate is taken is never computed twice: a client's handshake is carried
out in memory, so that the answer is the one that a site will get.
"""

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cadp_fl.errors import InputError

__all__ = [
    "CertifiedKey",
    "check_server_files",
    "describe_refusal",
    "end_of",
    "is_signed_by",
    "names_of",
    "new_authority",
    "new_server_key",
    "verifying",
]

AUTHORITY_DAYS = 3650
SERVER_DAYS = 398
"""Longest life of a server's certificate that clients in general take."""

EARLIER = datetime.timedelta(hours=1)
"""What a client's clock may be behind."""

HANDSHAKE_STEPS = 10


class CertifiedKey(NamedTuple):
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def new_authority(federation: str) -> CertifiedKey:
    """Return a new authority, which signs certificates of servers and of nobody else's authorities."""
    key, name = ec.generate_private_key(ec.SECP384R1()), _name(f"{federation} (cadp-fl)")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(name, name, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    return _certified(builder, key, signer=key)


def new_server_key(authority: CertifiedKey, hosts: Sequence[str]) -> CertifiedKey:
    """Return a server's new key, and the authority's certificate for it.

    Args:
        hosts: names or IP addresses that clients call the server by.

    Raises:
        InputError: the authority's certificate or key is damaged.
    """
    above = _load(authority.certificate)
    try:
        signer = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError):
        signer = None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise InputError("A federation's own authority signs with an EC key. Found none; restore certificates/ca.key.")
    key = ec.generate_private_key(ec.SECP384R1())
    identifier = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_name(hosts[0][:64]), above.subject, key, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    return _certified(builder, key, signer=signer)


def names_of(certificate: bytes) -> tuple[str, ...]:
    """Return the host names and IP addresses that a certificate (PEM, the first of a chain) is for.

    Raises:
        InputError: it is none.
    """
    try:
        names = _load(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = names.get_values_for_type(x509.IPAddress)
    return (*names.get_values_for_type(x509.DNSName), *(str(address) for address in addresses))


def end_of(certificate: bytes) -> datetime.datetime:
    """Return when a certificate (PEM, the first of a chain) ends, in UTC.

    Raises:
        InputError: it is none.
    """
    return _load(certificate).not_valid_after_utc


def is_signed_by(certificate: bytes, authority: bytes) -> bool:
    """Return whether an authority (PEM) itself signed a certificate (PEM, the first of a chain).

    Raises:
        InputError: one of both is none.
    """
    try:
        _load(certificate).verify_directly_issued_by(_load(authority))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def verifying(authorities: Path | None) -> ssl.SSLContext:
    """Return what a client takes servers by: the authorities of a file (PEM), or those that the system knows.

    Raises:
        InputError: the file holds no certificates.
    """
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (ssl.SSLError, OSError) as error:
        raise InputError(
            f"An authority's certificates are a PEM file. '{authorities}' cannot be read as one; check the path."
        ) from error
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def check_server_files(certificate: Path, key: Path, host: str, authorities: Path | None) -> None:
    """Check that a client that calls a server by its host will take its certificate.

    Args:
        certificate: a PEM file, the chain after it.
        key: a PEM file without a password.
        authorities: that the client knows (PEM); those of this system without.

    Raises:
        InputError: it will not.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(certificate, key, password=lambda: b"")
        pem = certificate.read_bytes()
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InputError(
            f"A server has a certificate and the key that fits it, PEM files without a password. '{certificate}' and "
            f"'{key}' are none ({_short(error)}); check both."
        ) from error
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = server.wrap_bio(to_server, to_client, server_side=True)
    client = verifying(authorities).wrap_bio(to_client, to_server, server_hostname=host)
    try:
        for _ in range(HANDSHAKE_STEPS):
            for side in (client, served):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise InputError(
            f"Sites take a certificate that is for the coordinator's host and that they can verify. '{certificate}' "
            f"{describe_refusal(error, host, pem)}; get another, or give --ca FILE with the authorities that sign it."
        ) from error
    except ssl.SSLError as error:
        raise InputError(
            f"A certificate serves TLS 1.2 or newer. '{certificate}' does not ({_short(error)}); get another."
        ) from error


def describe_refusal(error: ssl.SSLCertVerificationError, host: str, certificate: bytes | None) -> str:
    """Return why a client refuses a certificate, as what the certificate is or does.

    Args:
        host: that the client called.
        certificate: PEM, where it is known.
    """
    if error.verify_code in (62, 64) and certificate is not None:
        named = " and ".join(names_of(certificate)) or "no host"
        return f"names {named}, not {host}"
    if error.verify_code == 10 and certificate is not None:
        return f"ended on {end_of(certificate):%Y-%m-%d}, or one that signs it did"
    if error.verify_code in (18, 19, 20, 21):
        return "is signed by no authority that is known here"
    return f"is refused ({error.verify_message or _short(error)})"


def _load(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(certificate)[0]
    except ValueError as error:
        raise InputError("A certificate is PEM text. Found something else; restore it, or get it again.") from error


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    start = datetime.datetime.now(datetime.UTC) - EARLIER
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _certified(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, *, signer: ec.EllipticCurvePrivateKey
) -> CertifiedKey:
    certificate = builder.sign(signer, hashes.SHA384())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return CertifiedKey(certificate.public_bytes(serialization.Encoding.PEM), private)


def _short(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(reason).replace("_", " ").lower()[:120]

"""A SuperNode's key pair: EC P-384 in OpenSSH's format, as Flower's node authentication takes it."""

import hashlib
from base64 import b64decode, b64encode

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cadp_fl.errors import InputError

__all__ = ["check_public_key", "fingerprint", "new_key_pair"]

MAX_KEY_BYTES = 4096


def new_key_pair(comment: str) -> tuple[bytes, bytes]:
    """Return a new private key, and its public key with a comment, both as OpenSSH writes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + f" {comment}\n".encode()


def check_public_key(data: bytes, what: str) -> None:
    """Check that bytes are a SuperNode's public key.

    Args:
        what: they are, for the sentence.

    Raises:
        InputError: they are not.
    """
    try:
        key = serialization.load_ssh_public_key(data) if len(data) <= MAX_KEY_BYTES else None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise InputError(
            "A site's public key is an EC P-384 key in OpenSSH's format, the .pub that cadp-fl site init wrote. "
            f"{what} is none; ask the site for that file."
        )


def fingerprint(public_key: bytes) -> str:
    """Return the SHA256 fingerprint of a public key, as ssh-keygen -l prints it, to compare by telephone."""
    digest = hashlib.sha256(b64decode(public_key.split()[1])).digest()
    return "SHA256:" + b64encode(digest).decode().rstrip("=")

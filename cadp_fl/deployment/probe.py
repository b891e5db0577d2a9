"""What a site's machine finds where the coordinator should be, in words.

A SuperNode that cannot verify a certificate says only that a connection failed, and tries again for ever.
"""

import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal, NamedTuple

import certifi
import httpx

from cadp_fl.deployment.certificates import describe_refusal, verifying
from cadp_fl.errors import InputError
from cadp_fl.study.proxies import proxy_to, shown

__all__ = ["Finding", "probe", "system_authorities"]

SECONDS = 10.0
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNEXPECTED_EOF_WHILE_READING")


class Finding(NamedTuple):
    """What was found.

    Attributes:
        kind: a coordinator that is taken, nobody, or somebody who is not to be trusted.
        sentence: what is wrong, and the way out.
        ahead: seconds that this machine's clock is ahead of the other's, where it gave the time.
    """

    kind: Literal["found", "unreachable", "refused"]
    sentence: str = ""
    ahead: float | None = None


def system_authorities() -> Path:
    """Return the file of the authorities that this system knows."""
    known = ssl.get_default_verify_paths().cafile
    return Path(known) if known is not None and Path(known).is_file() else Path(certifi.where())


def probe(address: str, authorities: Path) -> Finding:
    """Call the coordinator as a SuperNode does, and return what was found.

    Args:
        address: host and port.
        authorities: that its certificate is verified by (PEM).

    Raises:
        InputError: the authorities' file holds no certificates.
    """
    context = verifying(authorities)
    try:
        proxy = proxy_to(address)
    except InputError as error:
        return Finding("refused", str(error))
    try:
        with _client(context, proxy) as client:
            answer = client.head(_url(address))
    except httpx.HTTPError as error:
        return _explain(error, address, proxy)
    try:
        date = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return Finding("found")
    return Finding("found", ahead=time.time() - date)


def _url(address: str) -> str:
    return f"https://{address}/v1/fleet/"


def _client(context: ssl.SSLContext, proxy: str | None) -> httpx.Client:
    return httpx.Client(verify=context, timeout=SECONDS, proxy=proxy, trust_env=False)


def _explain(error: httpx.HTTPError, address: str, proxy: str | None) -> Finding:
    refusal = _tls_error(error)
    host = address.rpartition(":")[0].strip("[]")
    if isinstance(refusal, ssl.SSLCertVerificationError):
        return Finding(
            "refused",
            "A coordinator proves itself by a certificate for its address, signed as its invitation says. That at "
            f"{address} {describe_refusal(refusal, host, _certificate_at(address, proxy))}; ask the coordinator for a "
            "new invitation, or who answers there.",
        )
    if refusal is not None and (refusal.reason or "") in NO_TLS:
        return Finding(
            "refused",
            f"A coordinator is called over TLS. What answers at {address} does not speak it (plain HTTP, perhaps); ask "
            "the coordinator for the port.",
        )
    clause, way = str(error) or type(error).__name__, "" if proxy is None else f", through the proxy {shown(proxy)},"
    return Finding(
        "unreachable",
        f"The coordinator answers at its address. At {address}{way} nobody does ({clause[:120]}); ask whether it runs, "
        "and whether this machine may call out there.",
    )


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """Return the TLS error that is behind another."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _certificate_at(address: str, proxy: str | None) -> bytes | None:
    """Return the certificate (PEM) that is shown at an address, to report its names. It is not trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _client(context, proxy) as client, client.stream("HEAD", _url(address)) as answer:
            stream = answer.extensions["network_stream"]
            found = stream.get_extra_info("ssl_object").getpeercert(True)
    except httpx.HTTPError:
        return None
    return None if found is None else ssl.DER_cert_to_PEM_cert(found).encode()

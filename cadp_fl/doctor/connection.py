"""The way to a coordinator, as a site has it: address, certificate, clock, and what lies open behind the door."""

import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx

from cadp_fl.config import LOOPBACK
from cadp_fl.deployment.certificates import end_of, names_of, verifying
from cadp_fl.deployment.probe import probe
from cadp_fl.doctor.finding import Finding, explained, fault, ok, skipped, warning
from cadp_fl.errors import CadpError
from cadp_fl.study.proxies import proxy_to, shown

__all__ = ["certificate_life", "clock", "way_to"]

SECONDS = 5.0
LOW_DAYS = 30
BEHIND_FAULT, BEHIND_WARNING = 240.0, 30.0
"""Seconds that this machine's clock may be behind the coordinator's. Flower refuses a node at 305."""

AHEAD_FAULT, AHEAD_WARNING = 5.0, 2.5
"""Seconds that it may be ahead, of which the coordinator's answer rounds up to one away. Flower refuses a node at 5."""

FLEET = "/v1/fleet/get-run"
CLOSED = ("/v1/control/get-login-details", "/v1/control/list-runs", "/v1/runtime/send-task-heartbeat")
"""Of the SuperLink; none changes anything, and none is for sites."""


def way_to(address: str, authorities: Path) -> Iterator[Finding]:
    """Look at the way to a coordinator.

    Args:
        address: host and port.
        authorities: that its certificate is verified by (PEM).
    """
    proxy = proxy_to(address)
    yield ok(
        f"None: {address} is called directly."
        if proxy is None
        else f"{address} is called through {shown(proxy)}, as this user's environment says; a SuperNode that runs as a "
        "service has an environment of its own.",
        "proxy",
    )
    met = probe(address, authorities)
    if met.kind != "found":
        yield explained(CadpError(met.sentence))
        return
    yield ok(f"A server that is to be trusted answers at {address}.")
    if met.ahead is None:
        yield skipped("The coordinator's answers do not give the time.", "clock")
    else:
        yield clock(met.ahead)
    with httpx.Client(
        base_url=f"https://{address}", verify=verifying(authorities), timeout=SECONDS, proxy=proxy, trust_env=False
    ) as client:
        with client.stream("HEAD", FLEET) as answer:
            tls: ssl.SSLObject = answer.extensions["network_stream"].get_extra_info("ssl_object")
            certificate = ssl.DER_cert_to_PEM_cert(tls.getpeercert(True) or b"").encode()
            yield certificate_life(certificate, f"{tls.version()}, for {' and '.join(names_of(certificate))}")
        yield _fleet(client)
        yield _closed(client, is_local=address.rpartition(":")[0] in LOOPBACK)


def clock(ahead: float) -> Finding:
    """Return what a difference of clocks means.

    Args:
        ahead: seconds that this machine's clock is ahead of the coordinator's.
    """
    said = f"This machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    fix = "Set it by NTP (timedatectl set-ntp true), here or at the coordinator."
    if ahead >= AHEAD_FAULT or ahead <= -BEHIND_FAULT:
        return fault(f"{said}; Flower refuses a node that is 5 s ahead, or 5 minutes behind.", fix, "clock")
    if ahead >= AHEAD_WARNING or ahead <= -BEHIND_WARNING:
        return warning(f"{said}.", fix, "clock")
    return ok(f"{said}.", "clock")


def certificate_life(certificate: bytes, what: str, name: str = "certificate") -> Finding:
    """Return how long a certificate (PEM) holds.

    Args:
        what: it is, for the sentence.
    """
    end = end_of(certificate)
    days = (end - datetime.datetime.now(datetime.UTC)).days
    fix = "Let the coordinator renew it: cadp-fl coordinator serve does, at its start, where the key is its own."
    if days < 0:
        return fault(f"{what}: it ended on {end:%Y-%m-%d}.", fix, name)
    if days < LOW_DAYS:
        return warning(f"{what}: it ends on {end:%Y-%m-%d}, in {days} days.", fix, name)
    return ok(f"{what}: until {end:%Y-%m-%d}, {days} days.", name)


def _fleet(client: httpx.Client) -> Finding:
    """Ask for what a node may have, without a node's key."""
    answer, name = _post(client, FLEET), "fleet API"
    if answer.status_code == 401 and _is_superlinks(answer):
        return ok("The SuperLink answers, and asks nodes for their keys.", name)
    if answer.status_code in (502, 503, 504):
        return fault(
            "The coordinator's door is there, and the SuperLink behind it is not.",
            "Have the coordinator start it: cadp-fl coordinator serve.",
            name,
        )
    if answer.is_success or _is_superlinks(answer):
        return fault(
            "The SuperLink serves nodes that show no key.",
            "Have the coordinator start it with --enable-supernode-auth, as cadp-fl coordinator serve does.",
            name,
        )
    return fault(
        f"What answers passes no node on to a SuperLink (status {answer.status_code}).",
        "Ask the coordinator for the address, and to let its door pass /v1/fleet/ on.",
        name,
    )


def _closed(client: httpx.Client, *, is_local: bool) -> Finding:
    """Ask for what no site may have: the interfaces by which code is submitted."""
    name = "control API"
    open_paths = [path for path in CLOSED if _is_reached(_post(client, path))]
    if not open_paths:
        return ok("From here it is refused, and so is the runtime API.", name)
    said = f"{open_paths[0]} answers: whoever reaches it can submit code to every site."
    if is_local:
        return warning(
            f"{said} That is this machine alone.", "Put the proxy before it where others use this machine.", name
        )
    return fault(
        said, "Disconnect, and have the coordinator let /v1/fleet/ alone through (cadp-fl coordinator init).", name
    )


def _post(client: httpx.Client, path: str) -> httpx.Response:
    return client.post(path, headers={"content-type": "application/protobuf"})


def _is_superlinks(answer: httpx.Response) -> bool:
    """Return whether the SuperLink itself refused: a door before it does not speak as it does."""
    try:
        return list(answer.json()) == ["detail"]
    except (ValueError, TypeError):
        return False


def _is_reached(answer: httpx.Response) -> bool:
    return answer.is_success or answer.status_code >= 500 or (answer.status_code != 403 and _is_superlinks(answer))

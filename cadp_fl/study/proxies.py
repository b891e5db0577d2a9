"""Which proxy of the environment a call goes through, and an environment whose proxies leave this machine alone.

Flower calls by httpx, which takes proxies from the environment: for its own processes on this machine too, and one that
it cannot use stops it before its first call.
"""

import ipaddress
import os
import ssl
import urllib.request
from collections.abc import Iterator

import httpx

from cadp_fl.errors import InputError

__all__ = ["direct_environment", "proxy_to", "shown"]

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
SCHEMES = ("http", "https", "all")
EXCEPTIONS = ("no_proxy", "NO_PROXY")
OF_GRPC = "no_grpc_proxy"
"""Where it is set, gRPC reads it in place of no_proxy. Flower's simulation engine has parts that call by gRPC."""


def direct_environment() -> dict[str, str]:
    """Return what to set for processes that call each other on this machine, so that no proxy comes between them.

    Exceptions that are set stay, and so do proxies, for calls to other machines; but for those that httpx cannot use.
    """
    known = urllib.request.getproxies()
    settings = {}
    for name in (*EXCEPTIONS, *([OF_GRPC] if OF_GRPC in os.environ else [])):
        entries = _entries(os.environ.get(name) or known.get("no", ""))
        settings[name] = ",".join(dict.fromkeys([*entries, *THIS_MACHINE]))
    for scheme in SCHEMES:
        names = [f"{scheme}_proxy", f"{scheme.upper()}_PROXY"]
        if scheme in known and _why_unusable(known[scheme]):
            settings |= dict.fromkeys(names, "")
        elif scheme in known and not any(name in os.environ for name in names):  # of macOS, which exceptions would hide
            settings[names[0]] = known[scheme]
    return settings


def proxy_to(address: str) -> str | None:
    """Return the URL of the proxy through which an address is called over TLS, by httpx's rule; None for no proxy.

    Args:
        address: host and port.

    Raises:
        InputError: the environment names a proxy that cannot be used.
    """
    url, known = httpx.URL(f"https://{address}"), urllib.request.getproxies()
    proxy = _with_scheme(known.get("https") or known.get("all") or "")
    if not proxy or url.host in THIS_MACHINE or any(_excepts(entry, url) for entry in _entries(known.get("no", ""))):
        return None
    if why := _why_unusable(proxy):
        raise InputError(
            f"A coordinator is called through a proxy that speaks HTTP, or SOCKS 5 where the package socksio is "
            f"installed. The environment (HTTPS_PROXY or ALL_PROXY) names {shown(proxy)} for {address}: {why}; name "
            f"another, or except that address in NO_PROXY."
        )
    return proxy


def shown(proxy: str) -> str:
    """Return a proxy's URL without the password that may stand in it."""
    scheme, _, rest = _with_scheme(proxy).partition("://")
    return f"'{scheme}://{rest.rpartition('@')[2]}'"


def _with_scheme(proxy: str) -> str:
    return proxy if "://" in proxy or not proxy else f"http://{proxy}"


def _why_unusable(proxy: str) -> str:
    """Return why httpx cannot call through a proxy; nothing where it can."""
    try:
        httpx.HTTPTransport(proxy=httpx.Proxy(_with_scheme(proxy)), verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except ImportError:
        return "socksio is not installed"
    except (ValueError, httpx.InvalidURL):
        return "it is no such URL"
    return ""


def _entries(exceptions: str) -> Iterator[str]:
    """Yield the entries of no_proxy that httpx can read. IPv6 addresses lose their brackets, which it does not take."""
    for entry in (part.strip() for part in exceptions.split(",")):
        entry = entry[1:-1] if entry.startswith("[") and entry.endswith("]") else entry
        if entry and (entry == "*" or _pattern(entry) is not None):
            yield entry


def _pattern(entry: str) -> httpx.URL | None:
    """Return an entry of no_proxy as httpx matches URLs with it; a host that begins with * has subdomains too."""
    if "://" not in entry:
        address = entry.partition("/")[0]
        try:
            entry = f"[{entry}]" if ipaddress.ip_address(address).version == 6 else entry
        except ValueError:
            entry = entry if entry.lower() == "localhost" else f"*{entry}"
        entry = f"all://{entry}"
    try:
        return httpx.URL(entry)
    except httpx.InvalidURL:
        return None


def _excepts(entry: str, url: httpx.URL) -> bool:
    """Return whether an entry of no_proxy lets a URL be called directly."""
    pattern = _pattern(entry)
    if entry == "*" or pattern is None:
        return entry == "*"
    if pattern.scheme not in ("all", url.scheme) or pattern.port not in (None, url.port):
        return False
    domain = pattern.host.removeprefix("*")
    if domain == pattern.host:
        return url.host == domain
    return url.host.endswith(domain if domain.startswith(".") else f".{domain}") or url.host == domain

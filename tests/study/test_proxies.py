"""Proxies of the environment: nothing on this machine meets one, and what we say of others is what httpx does."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from cadp_fl.deployment.certificates import new_authority
from cadp_fl.deployment.probe import probe
from cadp_fl.doctor.connection import way_to
from cadp_fl.errors import InputError
from cadp_fl.study.environment import flower_environment
from cadp_fl.study.proxies import direct_environment, proxy_to, shown
from tests.doctor.servers import serving

NAMES = [f"{name}_proxy" for name in ("http", "https", "all", "no", "no_grpc")]
ADDRESS = "hub.example.org:8443"
PROXY = "http://clerk:secret@proxy.example.org:3128"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def httpx_says(address: str) -> bool:
    """Return whether httpx itself calls an address through a proxy."""
    with httpx.Client() as client:
        return client._transport_for_url(httpx.URL(f"https://{address}")) is not client._transport  # noqa: SLF001


@pytest.mark.parametrize("address", [ADDRESS, "other.example.org:443", "10.1.2.3:8443", "[2001:db8::1]:8443"])
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HTTPS_PROXY": PROXY},
        {"https_proxy": "proxy.example.org:3128"},
        {"HTTP_PROXY": PROXY},
        {"ALL_PROXY": PROXY},
        {"https_proxy": "", "HTTPS_PROXY": PROXY},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": "*"},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": "example.org"},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": ".example.org , 10.1.2.3"},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": "ample.org"},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": "hub.example.org:8443,2001:db8::1"},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": "hub.example.org:443,10.0.0.0/8"},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": "10.1.2.3/32,https://hub.example.org"},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": "http://hub.example.org,all://other.example.org"},
        {"HTTPS_PROXY": PROXY, "NO_PROXY": "*.example.org,10.1.*"},
        {"HTTPS_PROXY": PROXY, "no_proxy": "", "NO_PROXY": "example.org"},
        {"HTTPS_PROXY": PROXY, "no_proxy": "other.example.org", "NO_PROXY": "hub.example.org"},
    ],
)
def test_what_is_said_of_a_proxy_is_what_httpx_does(monkeypatch, environment, address):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (proxy_to(address) is not None) == httpx_says(address)


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTPS_PROXY": PROXY, "HTTP_PROXY": PROXY},
        {"ALL_PROXY": PROXY, "NO_PROXY": "corp.example"},
        {"http_proxy": PROXY, "no_proxy": "corp.example,[::1]"},
        {"HTTP_PROXY": PROXY, "ALL_PROXY": "socks5h://127.0.0.1:1080"},
        {"HTTP_PROXY": PROXY, "https_proxy": "socks4://127.0.0.1:1080", "no_proxy": "k\u00f6ln.example"},
        {"HTTP_PROXY": PROXY, "no_proxy": "corp.example", "NO_PROXY": "other.example", "no_grpc_proxy": "corp.example"},
    ],
)
def test_processes_on_this_machine_call_each_other_directly(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name, value in flower_environment(Path("/nowhere")).items():
        monkeypatch.setenv(name, value)
    with httpx.Client() as client:  # which an unusable proxy, or an exception that it cannot read, would stop here
        for host in ("127.0.0.1", "localhost", "[::1]"):
            for scheme in ("http", "https"):
                assert client._transport_for_url(httpx.URL(f"{scheme}://{host}:1234/")) is client._transport  # noqa: SLF001
    assert {"127.0.0.1", "localhost"} <= set(os.environ["no_proxy"].split(","))
    of_grpc = os.environ.get("no_grpc_proxy", "127.0.0.1")  # noqa: SIM112
    assert "127.0.0.1" in of_grpc


def test_exceptions_and_proxies_that_are_set_stay(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("no_proxy", "corp.example, 10.1.2.3")
    monkeypatch.setenv("NO_PROXY", "other.example")
    settings = direct_environment()
    assert settings["no_proxy"].startswith("corp.example,10.1.2.3,")
    assert settings["NO_PROXY"].startswith("other.example,")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert httpx_says(ADDRESS)
    assert not httpx_says("corp.example:443")
    assert direct_environment() == settings, "set twice is set once"


@pytest.mark.parametrize("proxy", ["socks4://p:1", "ftp://p:1", "http://[::1", "socks5://clerk:secret@p:1"])
def test_a_proxy_that_cannot_be_used_is_one_sentence_without_its_password(monkeypatch, proxy):
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    assert proxy_to("localhost:8443") is None
    with pytest.raises(InputError, match=r"is called through a proxy that speaks HTTP") as raised:
        proxy_to(ADDRESS)
    assert "secret" not in str(raised.value)
    assert "secret" not in shown(proxy)


class _Proxy(HTTPServer):
    """A proxy that lets through to one port of this machine, whatever host is named, and remembers what was asked."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port, self.asked = port, []


class _Handler(BaseHTTPRequestHandler):
    def do_CONNECT(self) -> None:
        self.server.asked.append(self.path)
        if not self.server.port:
            self.send_error(407)
            return
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(("127.0.0.1", self.server.port)) as other:
            back = threading.Thread(target=self._pass, args=(other, self.connection), daemon=True)
            back.start()
            self._pass(self.connection, other)
            back.join(5)

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _proxy(port: int) -> Iterator[_Proxy]:
    with _Proxy(port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        yield proxy
        proxy.shutdown()


def test_a_coordinator_behind_a_proxy_is_found_and_the_doctor_says_so(tmp_path, monkeypatch):
    with serving(tmp_path, hosts=["hub.example.org"]) as (address, authority):
        port = address.rpartition(":")[2]
        with _proxy(int(port)) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://clerk:secret@127.0.0.1:{proxy.server_port}")
            assert probe(ADDRESS, authority).kind == "found"
            findings = list(way_to(ADDRESS, authority))
        assert set(proxy.asked) == {ADDRESS}
    assert {finding.state for finding in findings} == {"ok"}
    assert findings[0].name == "proxy"
    assert f"{ADDRESS} is called through 'http://127.0.0.1:{proxy.server_port}'" in findings[0].found
    assert "secret" not in json.dumps([vars(finding) for finding in findings])


def test_a_coordinator_on_this_machine_is_called_past_every_proxy(tmp_path, monkeypatch):
    with serving(tmp_path) as (address, authority), _proxy(0) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        findings = list(way_to(address, authority))
    assert {finding.state for finding in findings} == {"ok"}
    assert "is called directly" in findings[0].found
    assert proxy.asked == []


def test_a_proxy_that_refuses_is_named(tmp_path, monkeypatch):
    authority = tmp_path / "authority.crt"
    authority.write_bytes(new_authority("chest").certificate)
    with _proxy(0) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        finding = probe(ADDRESS, authority)
    assert finding.kind == "unreachable"
    assert f"through the proxy 'http://127.0.0.1:{proxy.server_port}', nobody does (407" in finding.sentence


def test_a_certificate_behind_a_proxy_is_read_to_report_its_names(tmp_path, monkeypatch):
    mine = tmp_path / "mine.crt"
    mine.write_bytes(new_authority("chest").certificate)
    with serving(tmp_path / "other", hosts=["another.example.org"]) as (address, _):
        with _proxy(int(address.rpartition(":")[2])) as proxy:
            monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{proxy.server_port}")
            finding = probe(ADDRESS, mine)
    assert finding.kind == "refused"
    assert len(proxy.asked) == 2


def test_a_child_of_flowers_reaches_this_machine_with_every_proxy_set(tmp_path):
    """As a process does, whose environment is all that it has."""
    with _proxy(0) as proxy, HTTPServer(("127.0.0.1", 0), _Get) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{proxy.server_port}"
        proxies = {
            name: url for kind in ("http", "https", "all") for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY")
        }
        code = (
            "import os, subprocess, sys; from pathlib import Path; "
            "from cadp_fl.study.environment import flower_environment; "
            f"ask = 'import httpx; print(httpx.get(\"http://127.0.0.1:{server.server_port}/\").text)'; "
            "subprocess.run([sys.executable, '-c', ask], check=True, env=os.environ | flower_environment(Path('/x')))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | proxies, capture_output=True, text=True, timeout=120
        )
        server.shutdown()
    assert done.stdout == "here\n", done.stderr
    assert proxy.asked == []


class _Get(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *_: object) -> None:
        """Say nothing."""

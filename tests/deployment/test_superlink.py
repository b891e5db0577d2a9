"""A federation of real processes on this machine: who gets in, who does not, and what they are told."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cadp_fl.config import CoordinatorConfig, NodeConfig, dump, parse
from cadp_fl.deployment import registration, superlink, supernode
from cadp_fl.deployment.certificates import verifying
from cadp_fl.deployment.coordinator import CoordinatorFolder
from cadp_fl.errors import CadpError, InputError
from cadp_fl.locks import locked
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.keys import new_key_pair
from cadp_fl.study.environment import free_port
from tests.conftest import ROOT

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
SECONDS = 60.0


class Command:
    """A command of cadp-fl that runs until it is ended."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cadp_fl.cli.main", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def heard(self, words: str) -> str:
        """Return the line that says something."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if words in line:
                return line
        return pytest.fail(f"it never said '{words}'")

    def end(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self.status()

    def kill(self) -> None:
        self._process.kill()

    def status(self) -> int:
        try:
            return self._process.wait(SECONDS)
        finally:
            self._process.kill()
            if self._process.stdout is not None:
                self._process.stdout.close()


def _site(folder: Path, name: str, coordinator: CoordinatorFolder) -> SiteFolder:
    """Make the part of a site's folder that its SuperNode needs."""
    site, invitation = SiteFolder(folder / name), coordinator.invitation()
    site.node.flower.mkdir(parents=True)
    private, public = new_key_pair(name)
    site.node.key.write_bytes(private)
    site.node.public_key(name).write_bytes(public)
    node = NodeConfig(site=name, federation="chest", address=invitation.address, socket=site.socket)
    site.node.config.write_text(dump(node))
    site.node.certificates.write_text(str(invitation.certificate))
    return site


def _connection(site: SiteFolder) -> dict[str, object]:
    return dict(json.loads((site.node.flower / "connection.json").read_text()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorFolder:
    port = free_port()
    tree = {"federation": "chest", "host": "localhost", "port": port, "superlink_port": port, "proxy": "none"}
    if NGINX is not None:
        tree |= {"superlink_port": free_port(), "proxy": "nginx"}
    return CoordinatorFolder.create(tmp_path_factory.mktemp("federation") / "c", parse(CoordinatorConfig, tree))


@pytest.fixture(scope="module")
def sites(folder: CoordinatorFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SiteFolder]:
    root = tmp_path_factory.mktemp("sites")
    return {name: _site(root, name, folder) for name in ("north", "east", "stranger")}


@pytest.fixture(scope="module")
def server(folder: CoordinatorFolder, sites: dict[str, SiteFolder]) -> Iterator[Command]:
    admitted = [sites[name].node.public_key(name) for name in ("north", "east")]
    assert registration.admit(folder, admitted)[1] is None
    server = Command("coordinator", "serve", str(folder.path))
    try:
        server.heard("to 2 admitted sites (east, north; 2 newly registered)")
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def nodes(server: Command, sites: dict[str, SiteFolder]) -> Iterator[dict[str, Command]]:
    nodes = {name: Command("site", "connect", str(site.path)) for name, site in sites.items()}
    try:
        yield nodes
    finally:
        for node in nodes.values():
            node.end()


def test_a_key_that_was_not_admitted_is_refused_in_words(nodes, sites):
    nodes["stranger"].heard("has not admitted this site's key; send it")
    assert nodes["stranger"].status() == 1
    node = sites["stranger"].node
    assert _connection(sites["stranger"])["state"] == "refused"
    assert node.key.read_text() not in (node.flower / "supernode.log").read_text()


def test_an_admitted_site_connects_once(folder, nodes, sites):
    for name in ("north", "east"):
        nodes[name].heard("The site's agent does not run yet")
        nodes[name].heard(f"'{name}' is connected to 'chest'")
        assert _connection(sites[name])["state"] == "connected"
    assert registration.node_states(folder) == {"north": "online", "east": "online"}
    with pytest.raises(CadpError, match="A site has one SuperNode"):
        supernode.connect(sites["north"].node, announce=print)


def test_a_removed_site_is_told_so_and_its_key_stays_out(folder, nodes, sites):
    folder.expel("east")
    assert registration.synchronise(folder).removed == ["east"]
    nodes["east"].heard("takes this site's key no longer")
    assert nodes["east"].status() == 1
    with pytest.raises(InputError, match="remembers every key, removed ones too"):
        registration.admit(folder, [sites["east"].node.public_key("east")])
    assert list(folder.key_files()) == ["north"]


def test_a_site_leaves_in_order(folder, nodes, sites):
    assert nodes["north"].end() == 0
    assert _connection(sites["north"])["state"] == "stopped"
    assert registration.node_states(folder) == {"north": "offline"}


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_sites_reach_the_fleet_api_and_nothing_else(folder, server):
    config = folder.load()
    door, inside = f"localhost:{config.port}", f"localhost:{config.superlink_port}"
    with httpx.Client(verify=verifying(folder.authority), trust_env=False) as client:
        control = "/v1/control/list-nodes"
        assert client.post(f"https://{inside}{control}").status_code not in (403, 404)
        for path in (control, "/", "/health", "/docs", "/v1/runtime/x", "/v1/fleet/", "/v1/fleet/pull-messages?a"):
            assert client.post(f"https://{door}{path}").status_code == 403
        fleet = client.post(f"https://{door}/v1/fleet/pull-messages")
        assert fleet.status_code == client.post(f"https://{inside}/v1/fleet/pull-messages").status_code != 403
        assert client.get(f"https://{door}/v1/fleet/pull-messages").status_code == 403
        assert "nginx/" not in fleet.headers.get("server", "")
    assert httpx.get(f"http://{door}/v1/fleet/pull-messages", trust_env=False).status_code == 400


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-nodes",
        "/v1/control/../fleet/pull-messages",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/control/list-nodes%2f..%2f..%2ffleet/pull-messages",
        "//v1/fleet/pull-messages",
        "/v1/fleet/pull-messages%00",
    ],
)
def test_a_path_that_means_two_things_is_refused(folder, server, path):
    """A client would tidy it: it is sent as it stands."""
    context = verifying(folder.authority)
    with socket.create_connection(("127.0.0.1", folder.load().port), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as secure:
            secure.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
            assert secure.recv(100).split()[1] in (b"400", b"403")


def test_a_folder_is_served_once_and_never_purged_meanwhile(folder, server):
    with pytest.raises(CadpError, match="A folder is served once"):
        superlink.serve(folder, announce=print)
    with pytest.raises(CadpError, match="A database is deleted that nobody uses"):
        superlink.purge(folder)


def test_a_restart_keeps_who_is_registered_and_a_purge_forgets(folder, server, nodes):
    before = registration.node_states(folder)
    assert server.end() == 0
    assert not registration.is_up(folder)
    again = Command("coordinator", "serve", str(folder.path))
    try:
        again.heard("to 1 admitted sites (north; 0 newly registered)")
        assert registration.node_states(folder).keys() == before.keys()
    finally:
        assert again.end() == 0
    superlink.purge(folder)
    assert not list(folder.state.iterdir())
    assert list(folder.key_files()) == ["north"]


def test_one_program_that_dies_ends_the_other_and_is_named(tmp_path):
    port = free_port()
    tree = {"federation": "chest", "host": "localhost", "port": port, "superlink_port": port, "proxy": "none"}
    made = CoordinatorFolder.create(tmp_path / "c", parse(CoordinatorConfig, tree))
    (made.certificates / "superlink.key").write_text("no key")
    server = Command("coordinator", "serve", str(made.path))
    server.heard("SuperLink ended with status")
    assert server.status() == 1


def test_a_server_that_is_killed_leaves_no_process_behind(tmp_path):
    port = free_port()
    tree = {"federation": "chest", "host": "localhost", "port": port, "superlink_port": port, "proxy": "none"}
    made = CoordinatorFolder.create(tmp_path / "c", parse(CoordinatorConfig, tree))
    server = Command("coordinator", "serve", str(made.path))
    try:
        server.heard("is served at")
        server.kill()
        deadline = time.monotonic() + SECONDS
        while superlink.is_listening(port):
            assert time.monotonic() < deadline, "the SuperLink still runs"
            time.sleep(0.2)
    finally:
        server.status()


def test_a_taken_port_is_named_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tree = {"federation": "chest", "host": "localhost", "port": port, "superlink_port": port, "proxy": "none"}
        made = CoordinatorFolder.create(tmp_path / "c", parse(CoordinatorConfig, tree))
        said = rf"Port {port} is taken on this machine, by process {os.getpid()} \(\w+"
        with pytest.raises(CadpError, match=said):
            superlink.serve(made, announce=print)
        assert not list(made.logs.iterdir())


def test_a_missing_nginx_is_reported_with_the_way_out(tmp_path, monkeypatch):
    tree = {"federation": "chest", "host": "c.example", "port": free_port(), "superlink_port": free_port()}
    made = CoordinatorFolder.create(tmp_path / "c", parse(CoordinatorConfig, tree))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(superlink, "SYSTEM_FOLDERS", ())
    with pytest.raises(CadpError, match=r"Found none on this machine; install it .* --no-proxy"):
        superlink.print_programs(made)


def test_a_lock_ends_with_its_block(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "lock", "taken"), pytest.raises(CadpError, match="taken"):
            with locked(tmp_path / "lock", "taken"):
                pytest.fail("held twice")

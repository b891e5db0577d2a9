"""What a site finds where its coordinator should be."""

import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cadp_fl.config import NodeConfig, dump
from cadp_fl.deployment import supernode
from cadp_fl.deployment.certificates import CertifiedKey, new_authority, new_server_key
from cadp_fl.deployment.probe import probe
from cadp_fl.errors import InputError
from cadp_fl.site.folder import NodeFolder
from cadp_fl.site.keys import new_key_pair
from cadp_fl.study.environment import free_port
from tests.conftest import ROOT
from tests.users import AGENT, NODE, as_user, folder_of, skip_unless_two

ANSWER = b"HTTP/1.1 403 Forbidden\r\nDate: Sat, 21 Nov 2020 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def _answering(folder: Path, pair: CertifiedKey | None) -> Iterator[int]:
    """Answer every call at a port in the same way, by TLS where there is a certificate."""
    context = None
    if pair is not None:
        (folder / "server.crt").write_bytes(pair.certificate)
        (folder / "server.key").write_bytes(pair.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    plain, _ = server.accept()
                except OSError:
                    return
                with plain:
                    try:
                        stream = context.wrap_socket(plain, server_side=True) if context is not None else plain
                        with stream:
                            stream.recv(4096)
                            stream.sendall(ANSWER)
                    except OSError:
                        continue

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.fixture(scope="module")
def authority() -> CertifiedKey:
    return new_authority("chest")


def _node(folder: Path, authority: CertifiedKey, address: str) -> NodeFolder:
    node = NodeFolder(folder / "node")
    node.flower.mkdir(parents=True)
    node.key.write_bytes(new_key_pair("north")[0])
    node.certificates.write_bytes(authority.certificate)
    config = NodeConfig(site="north", federation="chest", address=address, socket=folder / "run" / "agent.sock")
    node.config.write_text(dump(config))
    return node


def test_the_right_coordinator_is_found_and_its_clock_read(tmp_path, authority):
    with _answering(tmp_path, new_server_key(authority, ["localhost"])) as port:
        node = _node(tmp_path, authority, f"localhost:{port}")
        finding = probe(f"localhost:{port}", node.certificates)
    assert finding.kind == "found"
    assert finding.ahead is not None
    assert finding.ahead > 86400


@pytest.mark.parametrize(
    ("hosts", "signer", "message"),
    [
        (["other.example"], None, "names other.example, not localhost"),
        (["localhost"], "stranger", "is signed by no authority that is known here"),
        (None, None, "does not speak it"),
    ],
    ids=["another name", "another authority", "plain HTTP"],
)
def test_who_is_not_to_be_trusted_is_reported_before_flower_starts(tmp_path, authority, hosts, signer, message):
    above = authority if signer is None else new_authority(signer)
    with _answering(tmp_path, None if hosts is None else new_server_key(above, hosts)) as port:
        node = _node(tmp_path, authority, f"localhost:{port}")
        with pytest.raises(InputError, match=message):
            supernode.connect(node, announce=lambda _: None)
    assert '"state": "refused"' in (node.flower / "connection.json").read_text()
    assert not (node.flower / "supernode.log").exists()


def test_nobody_is_not_somebody_else(tmp_path, authority):
    node = _node(tmp_path, authority, "localhost:1")
    finding = probe(f"localhost:{free_port()}", node.certificates)
    assert finding.kind == "unreachable"
    assert "nobody does" in finding.sentence


def test_what_a_supernode_needs_is_asked_for_in_words(tmp_path, authority):
    node = _node(tmp_path, authority, "localhost:1")
    node.key.unlink()
    with pytest.raises(InputError, match="reads the site's key"):
        supernode.connect(node, announce=lambda _: None)
    node.config.unlink()
    with pytest.raises(InputError, match="A node config is a file"):
        supernode.connect(node, announce=lambda _: None)


def test_who_can_read_what_the_agent_can_is_warned(tmp_path, authority):
    said: list[str] = []
    node = _node(tmp_path, authority, "localhost:1")
    (tmp_path / "site.yaml").touch()
    with _answering(tmp_path, None) as port:
        config = NodeConfig(site="north", federation="chest", address=f"localhost:{port}", socket=tmp_path / "s")
        node.config.write_text(dump(config))
        with pytest.raises(InputError):
            supernode.connect(node, announce=said.append)
    assert "What a server sends runs as this user" in said[0]


def test_a_user_who_can_read_node_alone_gets_its_command(authority):
    scripts = skip_unless_two()
    with tempfile.TemporaryDirectory(prefix="cadp-") as top:  # pytest's folders are closed to other users
        Path(top).chmod(0o711)
        site = folder_of(Path(top) / "north", AGENT)
        node = _node(site, authority, "coordinator.example:8443")
        node.path.chmod(0o755)
        printed = subprocess.run(
            [scripts / "cadp-fl", "site", "connect", site, "--print"],
            **as_user(NODE),
            env={"PYTHONPATH": str(ROOT)},
            cwd="/",
            capture_output=True,
            text=True,
        )
    assert "flower-supernode --superlink coordinator.example:8443" in printed.stdout, printed.stderr


def test_the_command_says_where_the_agent_is_and_holds_no_secret(tmp_path, authority):
    node = _node(tmp_path, authority, "coordinator.example:8443")
    printed = supernode.print_command(node)
    assert f'agent="{tmp_path}/run/agent.sock" site="north"' in printed
    assert f"--root-certificates {node.certificates}" in printed
    assert f"FLWR_HOME={node.flower}" in printed
    assert "PRIVATE" not in printed
    node.certificates.unlink()
    assert str(tmp_path / "node" / "coordinator.crt") not in supernode.print_command(node)


def test_a_clock_that_flower_would_refuse_is_reported_with_how_much(tmp_path, authority):
    with _answering(tmp_path, new_server_key(authority, ["localhost"])) as port:
        node = _node(tmp_path, authority, f"localhost:{port}")
        watched = supernode.Supernode(node, supernode.load_node(node.config), None, print)  # type: ignore[arg-type]
        watched.lines.append("Client error '401 Unauthorized' for url")
        assert "s ahead of it; set it (by NTP)" in watched.why(1)


def test_a_state_is_since_it_began(tmp_path):
    connection = supernode.Connection(tmp_path / "connection.json")
    connection.say("connecting", reason="nobody")
    first = (tmp_path / "connection.json").read_text()
    connection.say("connecting", reason="nobody")
    assert (tmp_path / "connection.json").read_text() == first
    connection.say("connected", pid=7)
    assert '"state": "connected"' in (tmp_path / "connection.json").read_text()

"""The coordinator's commands, as they are typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cadp_fl.cli.coordinator import coordinator_app
from cadp_fl.cli.main import app
from cadp_fl.config import load_invitation
from cadp_fl.errors import CadpError
from cadp_fl.site.keys import fingerprint, new_key_pair
from cadp_fl.study.environment import free_port


def _said(*arguments: object) -> str:
    finished = CliRunner().invoke(app, ["coordinator", *map(str, arguments)], catch_exceptions=False)
    assert finished.exit_code == 0
    return finished.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    port = free_port()
    _said("init", tmp_path / "c", "--federation", "chest", "--host", "localhost", "--port", port, "--no-proxy", "-q")
    return tmp_path / "c"


def test_both_sides_can_compare_the_invitation(tmp_path):
    said = _said("init", tmp_path / "c", "--federation", "chest", "--host", "coordinator.example")
    assert load_invitation(tmp_path / "c" / "invitation.yaml").fingerprint in said


def test_a_site_is_admitted_listed_and_removed_while_nothing_runs(folder, tmp_path):
    public = tmp_path / "north.pub"
    public.write_bytes(new_key_pair("north")[1])
    said = _said("admit", folder, public)
    assert f"north: {fingerprint(public.read_bytes())}" in said
    assert "registers them at its start" in said
    assert json.loads(_said("sites", folder, "--json"))["north"]["state"] == "unknown"
    assert "The SuperLink knows which are connected, and does not run" in _said("sites", folder)
    assert "will know at its start" in _said("remove", folder, "north")
    assert _said("sites", folder) == "No site is admitted.\n"


def test_the_commands_are_printed_and_nothing_starts(folder):
    said = _said("serve", folder, "--print")
    assert f"FLWR_HOME={folder / 'flower'}" in said
    assert "flower-superlink --host 127.0.0.1" in said
    assert "--enable-supernode-auth" in said
    assert "PRIVATE" not in said
    assert not list((folder / "logs").iterdir())


def test_a_database_is_deleted_after_a_yes(folder):
    (folder / "state" / "superlink.db").write_text("releases")
    with pytest.raises(CadpError, match="Nothing is deleted without a yes"):
        CliRunner().invoke(app, ["coordinator", "purge", str(folder)], input="n\n", catch_exceptions=False)
    assert (folder / "state" / "superlink.db").exists()
    assert "Deleted" in _said("purge", folder, "--yes")
    assert not (folder / "state" / "superlink.db").exists()


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--host", "c.example", "--no-proxy"], "from its own machine alone"),
        (["--host", "c.example", "--certificate", "c.crt"], "comes with its key"),
        (["--host", "c.example", "--ca", "ca.crt"], "comes with its key"),
        (["--host", "localhost", "--no-proxy", "--superlink-port", "8001"], "has the one port"),
        (["--host", "a b"], "'host'"),
        (["--host", "c.example", "--port", "8000"], "have a port each"),
        (["--host", "c.example", "--port", "0"], "'port'"),
    ],
)
def test_what_makes_no_federation_is_refused_in_one_sentence(tmp_path, arguments, rule):
    typed = ["coordinator", "init", str(tmp_path / "c"), "--federation", "chest", *arguments]
    with pytest.raises(CadpError, match=rule):
        CliRunner().invoke(app, typed, catch_exceptions=False)
    assert not (tmp_path / "c").exists()


def test_every_command_has_an_example():
    assert all("Example: cadp-fl coordinator" in str(command.epilog) for command in coordinator_app.registered_commands)

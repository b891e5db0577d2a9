"""What docs/ and deploy/ say of a deployment, held against the code."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from cadp_fl import errors
from cadp_fl.cli.main import app
from cadp_fl.site.protocol import ACTIONS

ROOT = Path(__file__).resolve().parents[2]
GOVERNANCE = (ROOT / "docs" / "governance.md").read_text()
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def _commands(group=None, above=()):
    """Yield every command of the command line, as a tuple of words."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*above, name))
        else:
            yield (*above, name)


def _is_command(words):
    known = set(_commands())
    return any(tuple(words[:count]) in known for count in (1, 2, 3))


def test_every_code_is_explained_to_who_reads_it():
    listed = dict(re.findall(r"^\| (\d{3}) \| (.+) \|$", GOVERNANCE, re.M))
    kinds = {getattr(errors, name) for name in errors.__all__}
    assert listed == {str(kind.code): kind.meaning for kind in kinds}


def test_every_request_is_in_the_table_of_what_leaves():
    rows = "\n".join(re.findall(r"^\| ([a-z_, ]+) \|", GOVERNANCE, re.M))
    assert set(re.findall(r"[a-z_]+", rows)) >= set(ACTIONS)


@pytest.mark.parametrize("page", ["deploy.md", "governance.md"])
def test_a_page_names_only_commands_that_are_there(page):
    text = (ROOT / "docs" / page).read_text()
    found = re.findall(r"cadp-fl ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)*)", text)
    named = [words.split() for words in found if words.split()[0] in {path[0] for path in _commands()}]
    assert named
    for words in named:
        assert _is_command(words), f"cadp-fl {' '.join(words)}"


def _unit(path):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(path)
    return parser["Service"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_a_command_that_the_page_runs(path):
    service = _unit(path)
    command = service["ExecStart"].split()[1:]
    assert _is_command(command)
    assert f"cadp-fl {' '.join(command[:2])}" in DEPLOY
    assert service["UMask"] == "0077"
    if "ExecReload" in service:
        assert _is_command(service["ExecReload"].split()[1:])


def test_the_agents_unit_has_no_network_and_the_nodes_does_not_see_the_site():
    agent, node = (_unit(ROOT / "deploy" / "systemd" / f"cadp-fl-{name}@.service") for name in ("agent", "node"))
    assert (agent["PrivateNetwork"], agent["RestrictAddressFamilies"]) == ("yes", "AF_UNIX")
    assert node["ReadWritePaths"].endswith("/node/flower")
    assert agent["User"] != node["User"]
    assert int(node["RestartSec"]) > 60


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_a_unit(path, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = path.read_text().replace("/opt/cadp-fl/bin/cadp-fl", "/bin/true")
    (tmp_path / path.name.replace("@", "@north")).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / path.name.replace("@", "@north"))],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if path.stem.split("@")[0] in line and "User" not in line]
    assert not [line for line in said if "Unknown" in line or "rror" in line or "Failed" in line], done.stderr


def test_a_service_of_the_compose_file_runs_what_its_unit_runs():
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    commands = {name: service["command"][:2] for name, service in services.items()}
    units = {path.stem.removeprefix("cadp-fl-").rstrip("@"): _unit(path)["ExecStart"].split()[1:3] for path in UNITS}
    assert commands == units
    assert services["agent"]["network_mode"] == "none"
    seen = [re.match(r".*?}/(\w+):", volume) for volume in services["node"]["volumes"]]
    assert {match.group(1) for match in seen if match} == {"run", "node"}
    assert all(seen)

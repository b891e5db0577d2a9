"""Laws of the boundary between a hospital's agent and the code that a server ships: two users of the system."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cadp_fl.config import FrontEndConfig
from cadp_fl.privacy.events import Event, GaussianSum, Unprotected
from cadp_fl.privacy.plan import Plan
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.requests import MomentsRequest
from tests.site.agents import STUDY, start
from tests.users import AGENT, GROUP, NODE, as_user, folder_of, skip_unless_two

POLICY = """
population: digits
unit: record
epsilon: 3
delta: 2.0e-5
labels: public
made_flows: true
review: false
min_class_units: 0
"""

HOSTILE = """
import json, os, socket, sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from flwr.app import Context, RecordDict
from clients.client_app import site_for
from cadp_fl.errors import CadpError
from cadp_fl.site.protocol import Request

site = Path(sys.argv[1])
seen = {"read": [], "written": [], "connected": [], "codes": {}}
for path in [site, site / "site.yaml", site / "policy.yaml", site / "ledger.db", site / "ledger.db.mark",
             site / "outbox", site / "answers", site / "audit.jsonl", site / "agent.lock", Path(sys.argv[3])]:
    try:
        (os.listdir if path.is_dir() else open)(path)
        seen["read"].append(str(path))
    except OSError:
        pass
    try:
        with open(path / "x" if path.is_dir() else path, "ab"):
            seen["written"].append(str(path))
    except OSError:
        pass
for victim in (site / "run" / "agent.sock", site / "node" / "node.yaml", site / "policy.yaml"):
    try:
        os.rename(victim, str(victim) + ".gone")
        seen["written"].append(f"renamed {victim}")
    except OSError:
        pass
try:
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(site / "control.sock"))
        seen["connected"].append("control.sock")
except OSError:
    pass
for process in Path("/proc").iterdir():
    try:
        if process.name.isdigit() and process.stat().st_uid == int(sys.argv[4]):
            (process / "environ").read_bytes()
            seen["read"].append(str(process / "environ"))
    except OSError:
        pass

context = Context(run_id=1, node_id=1, node_config={"agent": str(site / "run" / "agent.sock")}, state=RecordDict(),
                  run_config={})
agent = site_for(context)
seen["described"] = agent.call(Request("describe")).content["site"]
asked = json.loads(sys.argv[5])
for name, (action, settings) in asked.items():
    try:
        agent.call(Request(action, settings, run="r", id="r/" + name.replace(" ", "-")))
        seen["codes"][name] = 0
    except CadpError as error:
        seen["codes"][name] = error.code
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def site():
    """Yield the folder of a site whose agent runs as its own user, on records that are its own."""
    python = str(skip_unless_two() / "python")
    shared = Path(tempfile.mkdtemp(prefix="cadp-"))
    try:
        shared.chmod(0o711)
        home = folder_of(shared / "agent", AGENT)
        for name, text in (("study.yaml", STUDY), ("policy.yaml", POLICY)):
            (home / name).write_text(text)
            os.chown(home / name, AGENT, AGENT)
            (home / name).chmod(0o600)
        (home / "invitation.yaml").write_text("federation: test\naddress: localhost:9443\n")
        environment = {**os.environ, "HOME": str(home)}
        subprocess.run(
            [
                *(python, "-m", "cadp_fl.cli.main", "site", "init", "north", "--group", str(GROUP)),
                *("--invitation", "invitation.yaml", "--rehearsal", "study.yaml", "--policy", "policy.yaml"),
            ],
            **as_user(AGENT),
            cwd=home,
            env=environment,
            check=True,
        )
        folder = SiteFolder(home / "north")
        process = start(folder, python=python, cwd=home, env=environment, **as_user(AGENT))
        try:
            yield folder
        finally:
            process.terminate()
            process.communicate(timeout=30)
    finally:
        shutil.rmtree(shared)


def _asked() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return requests by name, of which a site grants the first two and refuses the others."""
    front = FrontEndConfig()
    granted = GaussianSum(stage="moments", clip_norm=front.radius, noise_std=20.0)
    settings = MomentsRequest(method="m", front_end=front, event=granted).model_dump(mode="json")
    event, front_end = settings["event"], settings["front_end"]

    def reserve(method: str, event: Event) -> tuple[str, dict[str, Any]]:
        return "reserve", {"plans": [Plan(method, (event,), 1e-5, run="r").to_json()]}

    return {
        "a plan": reserve("m", granted),
        "what was planned": ("moments", settings),
        "again": ("moments", settings),
        "over budget": reserve("costly", granted.model_copy(update={"noise_std": 0.4 * front.radius})),
        "without privacy": reserve("open", Unprotected(stage="flow", what="flow weights")),
        "unreserved": ("moments", settings | {"method": "other"}),
        "a seed": ("moments", settings | {"noise_seed": 7}),
        "less noise": ("moments", settings | {"event": event | {"noise_std": 0.05}}),
        "another clip": ("moments", settings | {"event": event | {"clip_norm": 100.0}}),
        "another clip in fact": ("moments", settings | {"front_end": front_end | {"radius": 100.0}}),
        "no such action": ("read_records", {}),
    }


def test_client_code_reaches_the_socket_and_nothing_else(site):
    root = Path(__file__).resolve().parents[2]
    records = site.path.parent / "study.yaml"
    done = subprocess.run(
        [
            str(skip_unless_two() / "python"),
            "-c",
            HOSTILE,
            str(site.path),
            str(root),
            str(records),
            str(AGENT),
            json.dumps(_asked()),
        ],
        **as_user(NODE),
        cwd="/",
        env={**os.environ, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["described"] == "north"
    assert (seen["read"], seen["written"], seen["connected"]) == ([], [], [])
    assert seen["codes"] == {
        "a plan": 0,
        "what was planned": 0,
        "again": 301,
        "over budget": 311,
        "without privacy": 313,
        "unreserved": 301,
        "a seed": 201,
        "less noise": 301,
        "another clip": 301,
        "another clip in fact": 201,
        "no such action": 400,
    }
    peers = {json.loads(line).get("peer", {}).get("uid") for line in site.audit.read_text().splitlines()}
    assert peers >= {NODE}


def test_the_nodes_user_has_its_key_and_whom_it_calls(site):
    for path in (site.node.key, site.node.config, site.node.public_key("north")):
        subprocess.run(["cat", str(path)], **as_user(NODE), check=True, capture_output=True)
    subprocess.run(["touch", str(site.node.flower / "x")], **as_user(NODE), check=True)


def test_each_user_has_a_doctor_for_its_part_and_root_has_none(site):
    command = [str(skip_unless_two() / "python"), "-m", "cadp_fl.cli.main", "doctor", str(site.path), "--json"]
    environment = {**os.environ, "HOME": "/nonexistent"}
    for uid, side in ((AGENT, "site"), (NODE, "node")):
        done = subprocess.run(
            command, **as_user(uid), cwd="/", env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        seen = json.loads(done.stdout)
        faults = {finding["check"] for finding in seen["findings"] if finding["state"] == "fault"}
        assert (seen["side"], faults) == (side, {"coordinator", "SuperNode"}), seen
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, f"sudo -u #{AGENT}" in done.stderr) == (2, True)


def test_a_third_user_reaches_nothing(site):
    third = {"user": NODE + 10, "group": NODE + 10, "extra_groups": []}
    for path in (site.socket, site.node.config, site.config, site.node.public_key("north")):
        done = subprocess.run(["test", "-e", str(path)], **third, check=False)
        assert done.returncode != 0, path

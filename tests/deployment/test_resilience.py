"""What dies is named, and what was paid for is not paid for again: over a real SuperLink, SuperNodes and agents."""

import json
import signal
import time

import psutil
import pytest

from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.site.folder import SiteFolder
from tests.deployment.federation import SITES, federation, printed

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RUN = "cadp-fl run configs/rehearsal.yaml --federation hub --set budget.epsilon=1 --output"


@pytest.fixture(scope="module")
def running():
    with federation() as made:
        made.begin()
        yield made


def _missing(running, name):
    summary = json.loads((running.folder / "runs" / name / "summary.json").read_text())
    return summary, {(gap["site"], gap["phase"]): gap["reason"] for gap in summary["missing"]}


def _spent(running, site, run):
    ledger = DurableLedger.as_found(SiteFolder(running.folder / site).ledger)
    return [event.stage for plan in ledger.plans() if plan.run == run for event in ledger.spent(plan.key)]


def _wait_for(running, name, phase):
    """Return when a phase of a run has ended."""
    path, deadline = running.folder / "runs" / name / "progress.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if any(line["step"] == "round" and line["phase"] == phase for line in lines):
            return
        time.sleep(0.1)
    raise AssertionError(f"{phase} did not end")


def test_an_agent_that_is_down_is_named_and_the_others_go_on(running):
    running.stop("site serve", "east")
    running.run(f"{RUN} runs/agent")
    summary, missing = _missing(running, "agent")
    assert summary["status"] == "incomplete"
    assert "agent does not answer" in missing["east", "describe"]
    running.run(printed("site")[1], site="east")


def test_a_supernode_that_is_killed_is_named_and_the_others_go_on(running):
    study = running.background(f"{RUN} runs/node")
    _wait_for(running, "node", "reserve")
    running.stop("site connect", "north", kill=True)
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if "flower-supernode" in command and str(running.folder / "north") in command:
            process.send_signal(signal.SIGKILL)
    assert study.wait(timeout=400) == 0
    summary, missing = _missing(running, "node")
    assert summary["status"] == "incomplete"
    assert {site for site, _ in missing} == {"north"}
    assert "SuperNode" in next(iter(missing.values()))
    time.sleep(65)  # the SuperLink takes a killed one back no sooner
    running.run(printed("site")[2], site="north")


def test_a_server_app_that_is_killed_is_named_and_its_run_goes_on_without_spending_twice(running):
    study = running.background(f"{RUN} runs/server")
    _wait_for(running, "server", "cadp/moments")
    for process in psutil.process_iter(["cmdline"]):
        if any("flwr-serverapp" in word for word in process.info["cmdline"] or []):
            process.send_signal(signal.SIGKILL)
    assert study.wait(timeout=300) == 1
    summary, _ = _missing(running, "server")
    assert (summary["status"], "server app died" in summary["failure"]) == ("incomplete", True)
    running.run(f"{RUN} runs/server --resume")
    summary, missing = _missing(running, "server")
    assert (summary["status"], missing) == ("complete", {})
    run = json.loads((running.folder / "runs" / "server" / "checkpoint.json").read_text())["run"]
    for site in SITES:
        assert _spent(running, site, run) == ["moments", "moments", "release", "evaluation"]

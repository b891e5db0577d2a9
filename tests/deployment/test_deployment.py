"""A real federation, from nothing to a report: SuperLink, three SuperNodes and three agents, with TLS and keys.

All of it by the commands that docs/deploy.md prints. The agent and the SuperNode of one site run as two users, where
root runs the tests.
"""

import json
import shutil
from pathlib import Path

import pytest

from cadp_fl.config import load_policy
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.site.folder import SiteFolder
from tests.deployment.federation import SITES, TWO_USERS, federation, printed
from tests.users import NODE

pytestmark = pytest.mark.ray  # starts Flower's processes


@pytest.fixture(scope="module")
def running():
    """Yield a federation that ran the commands of docs/deploy.md up to the study, and what they printed."""
    with federation() as made:
        made.begin()
        for site in SITES:
            for command in printed("site")[3:]:
                made.run(command, site=site)
        yield made


@pytest.fixture(scope="module")
def first(running):
    """Return the run folder of the study that docs/deploy.md prints."""
    _, *study = printed("study")
    for command in study:
        running.run(command)
    return running.folder / "runs" / "rehearsal"


def _summary(folder: Path):
    return json.loads((folder / "summary.json").read_text())


def _log(running, site):
    lines = SiteFolder(running.folder / site).audit.read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_few_commands_lead_from_nothing_to_the_first_round():
    assert len(printed("site")) <= 5
    assert len(printed("coordinator")) + len(printed("study")) <= 4


def test_the_printed_commands_end_in_a_report(first):
    summary = _summary(first)
    assert (summary["status"], summary["missing"]) == ("complete", [])
    assert summary["federation"] == "rehearsal"
    assert {site["site"] for site in summary["sites"]} == set(SITES)
    for row in summary["methods"].values():
        assert (row["guarantee"], row["against"]) == ("end-to-end", "server")
        assert 2.9 < row["epsilon"] <= 3.0
    assert "simulation" not in (first / "report.html").read_text().lower()
    assert not (first / "sites").exists()


def test_every_ledger_holds_what_the_report_says(first, running):
    privacy = json.loads((first / "privacy.json").read_text())
    for site in SITES:
        ledger = DurableLedger.as_found(SiteFolder(running.folder / site).ledger)
        plans = {plan.method: plan for plan in ledger.plans() if plan.split == "train"}
        for method, entry in privacy["methods"].items():
            assert entry["sites"][site]["epsilon"] == pytest.approx(plans[method].protected().epsilon())


def test_every_request_is_in_the_sites_log(first, running):
    for site in SITES:
        asked = [line["action"] for line in _log(running, site) if line["what"] == "request"]
        assert {"describe", "reserve", "moments", "release", "fetch", "evaluate", "account"} <= set(asked)


def test_the_supernode_is_another_user_than_the_agent(first, running):
    if not running.has_two_users:
        pytest.skip("only root starts processes of two users")
    peers = {line["peer"]["uid"] for line in _log(running, TWO_USERS) if line.get("run")}
    assert peers == {NODE}


def test_a_study_beyond_the_budget_is_refused_by_number(first, running):
    said = running.run(
        "cadp-fl run configs/rehearsal.yaml --federation hub --output runs/beyond --set budget.epsilon=8",
        fails=True,
    )
    assert "code 311" in said
    assert all(len(DurableLedger.as_found(SiteFolder(running.folder / site).ledger).plans()) == 2 for site in SITES)


@pytest.mark.slow
def test_seeded_noise_is_refused(first, running):
    said = running.run(
        "cadp-fl run configs/rehearsal.yaml --federation hub --output runs/seeded --set noise=seeded", fails=True
    )
    assert "seeded" in said
    running.stop("site serve", "north")
    said = running.run("cadp-fl site reload north", fails=True)
    assert "cadp-fl site serve" in said


@pytest.mark.slow
def test_with_the_same_seeds_it_gives_the_simulations_metrics(first, running, tmp_path):
    for site in SITES:
        if site != "north":
            running.stop("site serve", site)
        folder = SiteFolder(running.folder / site)
        _forget(folder)
        policy = folder.policy.read_text().replace("seeded_noise: false", "seeded_noise: true")
        folder.policy.write_text(policy)
        running.run("cadp-fl site serve $SITE --seeded-noise 7", site=site)
    seeded = "--set noise=seeded"
    running.run(f"cadp-fl run configs/rehearsal.yaml --federation hub --output runs/same {seeded}")
    running.run(f"cadp-fl simulate configs/rehearsal.yaml --output runs/simulated {seeded} --quiet")
    real, simulated = (_summary(running.folder / "runs" / name) for name in ("same", "simulated"))
    for name, row in simulated["methods"].items():
        for metric in ("accuracy", "balanced_accuracy", "auroc", "macro_f1"):
            assert real["methods"][name][metric] == row[metric]
            for site in SITES:
                assert real["methods"][name]["per_site"][site][metric] == row["per_site"][site][metric]


def _forget(folder: SiteFolder) -> None:
    """Give a site a ledger of which nothing is spent, as no steward could: its noise counts from there."""
    owner = folder.ledger.stat()
    policy, split = load_policy(folder.policy), DurableLedger.as_found(folder.ledger).terms.split
    for path in (folder.ledger, folder.ledger.with_name("ledger.db.mark")):
        path.unlink()
    for path in (folder.answers, folder.outbox):
        for child in path.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    DurableLedger.create(
        folder.ledger,
        population=policy.population,
        unit=policy.unit,
        records_per_unit=policy.records_per_unit,
        split=split,
    )
    for path in folder.path.glob("ledger.db*"):
        shutil.chown(path, owner.st_uid, owner.st_gid)

"""A page says what happened, and not what was planned: sites that refused or dropped out, methods that never ran."""

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from cadp_fl.cli.progress import results_table
from cadp_fl.errors import FederationError
from cadp_fl.federated import flower_server, releases
from cadp_fl.report.extent import methods_by_units, named_sites, released
from cadp_fl.report.page import write_report
from cadp_fl.site.protocol import ACTIONS
from tests.federated.test_deployed import kill
from tests.hospitals import Hospitals

DP_SGD = "methods={dp-sgd: {model: linear, rounds: 2, local_steps: 1, sampling_rate: 0.5, learning_rate: 2.0}}"
NOISED = "evaluation={metrics: noised, epsilon: 2.0, delta: 1.0e-4}"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(flower_server, "JOIN_SECONDS", 0.0)
    monkeypatch.setattr(flower_server, "DEPLOYED_PAUSE_SECONDS", 0.01)


def written(hospitals, name="summary.json"):
    return json.loads((hospitals.folder / name).read_text())


def page(hospitals):
    text = (hospitals.folder / "report.html").read_text()
    return " ".join(re.sub(r"<[^>]*>|&ldquo;|&rdquo;", " ", text.split("</style>")[-1]).split())


def printed(hospitals):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        results_table(console, written(hospitals), hospitals.folder)
    return " ".join(console.export_text().split())


def stricter(hospitals, name, **policy):
    """Give one site a stricter policy than the others."""
    open_one = hospitals.policy
    hospitals.policy = open_one.model_copy(update=policy)
    hospitals.site(name)
    hospitals.policy = open_one


@pytest.mark.parametrize("evaluation", [(), (NOISED,)], ids=["exact", "noised"])
def test_a_site_that_refused_is_in_no_sentence_on_what_was_tested(tmp_path, evaluation):
    hospitals = Hospitals(tmp_path, DP_SGD, *evaluation)
    stricter(hospitals, "east", epsilon=0.5)
    assert hospitals.go() == "incomplete"
    summary, privacy = written(hospitals), written(hospitals, "privacy.json")
    sizes = {site["site"]: site["test"] for site in summary["sites"]}
    row = summary["methods"]["dp-sgd"]
    units = sizes["north"] + sizes["south"]
    assert row["tested"] == {"sites": ["north", "south"], "of": 3, "units": units}
    assert {site: figures["test"] for site, figures in row["per_site"].items()} == {
        site: sizes[site] for site in ("north", "south")
    }
    on = f"ested on {units} held-out real records of 2 of 3 sites (north, south)"
    assert on in page(hospitals)
    assert on in printed(hospitals)
    assert "all sites" not in page(hospitals)
    assert "of 3 sites of" not in privacy["statement"].replace("over 3 of 3 sites of", "")
    assert "Not all took part in all of it: east refused something, or did not answer." in privacy["statement"]
    assert list(privacy["methods"]["dp-sgd"]["sites"]) == ["north", "south"], "it reserved nothing, so it owes nothing"
    assert list(privacy["test_units"]["methods"]["dp-sgd"]["sites"]) == ["north", "south"]
    assert "east: no plan was reserved, so that no budget was spent." in page(hospitals)


def test_a_site_that_drops_out_between_methods_is_in_the_figures_that_it_answered_for(tmp_path):
    both = DP_SGD.replace("methods={", "methods={fedavg: {rounds: 1, model: linear}, ")
    hospitals = Hospitals(tmp_path, both)
    answer, seen = hospitals.grid.app, []

    def leaving(message, context):
        if message.metadata.dst_node_id == 11:
            seen.append(message.metadata.message_type)
            if seen.count(ACTIONS["train_classifier"]) == 2:
                hospitals.grid.fail[(11, ACTIONS["train_classifier"])] = "gone"
                hospitals.grid.fail[(11, ACTIONS["evaluate"])] = "gone"
        return answer(message, context)

    hospitals.grid.app = leaving
    assert hospitals.go() == "incomplete"
    rows = written(hospitals)["methods"]
    assert rows["fedavg"]["tested"]["sites"] == ["east", "north", "south"]
    assert rows["dp-sgd"]["tested"]["sites"] == ["north", "south"]
    for text in (page(hospitals), printed(hospitals)):
        assert re.search(r"fedavg: tested on \d+ held-out real records of all 3 sites", text)
        assert re.search(r"dp-sgd: tested on \d+ held-out real records of 2 of 3 sites \(north, south\)", text)


def test_a_complete_run_says_all_sites_and_how_many_records(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD)
    assert hospitals.go() == "complete"
    units = sum(site["test"] for site in written(hospitals)["sites"])
    for text in (page(hospitals), printed(hospitals)):
        assert f"ested on {units} held-out real records of all 3 sites" in text
    privacy = written(hospitals, "privacy.json")
    assert "did not come to its end" not in privacy["statement"]
    assert "exact test results left the sites" in privacy["test_units"]["statement"]


@pytest.mark.parametrize("evaluation", [(), (NOISED,)], ids=["exact", "noised"])
def test_a_run_that_stopped_before_any_test_names_no_test_result(tmp_path, evaluation):
    both = DP_SGD.replace("methods={", "methods={fedavg: {rounds: 1, model: linear}, ")
    hospitals = Hospitals(tmp_path, both, *evaluation)
    hospitals.grid.fail |= {(node, ACTIONS["train_classifier"]): "gone" for node in (10, 11)}
    with pytest.raises(FederationError):
        hospitals.go()
    privacy = written(hospitals, "privacy.json")
    line = privacy["test_units"]
    assert line["told_of"] == []
    assert line["statement"].startswith(
        "Nothing was given out about test records. What was reserved for that counts as spent"
    )
    assert privacy["methods"]["dp-sgd"]["statement"].startswith("dp-sgd: was not run. Its plan was reserved, and")
    assert privacy["methods"]["fedavg"]["statement"].endswith("all that was reserved counts as spent.")
    text = page(hospitals)
    assert "No method came to its end, so that there is no figure" in text
    assert "Tested on" not in text
    assert "It did not come to its end." in privacy["statement"]


def test_a_run_that_was_killed_says_what_it_does_not_know(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD)
    kill(hospitals, ACTIONS["train_classifier"], 1)
    privacy = written(hospitals, "privacy.json")
    assert "whether anything was given out about them is not known here" in privacy["test_units"]["statement"]
    assert "left the sites" not in privacy["test_units"]["statement"]
    assert "It may not have been carried out in full" in privacy["methods"]["dp-sgd"]["statement"]


def test_a_release_that_was_fetched_and_not_kept_is_not_said_to_be_none(tmp_path, monkeypatch):
    hospitals = Hospitals(tmp_path, "methods={cadp: {drawn: 200}}", "sites.review_timeout_seconds=0", review=True)

    def approve(seconds):
        raise AssertionError("there is no time to wait")

    monkeypatch.setattr(releases.time, "sleep", approve)
    answer = hospitals.grid.app

    def approving(message, context):
        name = hospitals.names[message.metadata.dst_node_id - 10]
        if message.metadata.message_type == ACTIONS["fetch"] and name == "north":
            (staged,) = hospitals.review(name).staged()
            if staged.decision is None:
                hospitals.review(name).decide(staged.manifest.event_id, "approved")
        return answer(message, context)

    hospitals.grid.app = approving
    with pytest.raises(FederationError, match="has not approved"):
        hospitals.go()
    assert [each.left for each in hospitals.review("north").staged()] == [True]
    assert not (hospitals.folder / "releases" / "north").exists()
    text = page(hospitals)
    assert text.count("made; not kept here") == 3
    killed = written(hospitals, "privacy.json")
    for method in killed["methods"].values():
        for account in method["sites"].values():
            account["spent"] = None
    (hospitals.folder / "privacy.json").write_text(json.dumps(killed))
    write_report(hospitals.folder)
    assert page(hospitals).count("not known") >= 3


def test_releases_of_every_method_are_counted():
    account = {"events": [{"stage": "release"}], "spent": [{"stage": "release"}]}
    methods = [{"sites": {"north": account}}, {"sites": {}}]
    assert released({"cadp": 480}, methods, "north") == "480"
    assert released({"cadp": 480, "cadp-given-flow": 480}, methods, "north") == "cadp: 480, cadp-given-flow: 480"
    assert released({}, methods, "north") == "made; not kept here"
    assert released({}, methods, "east") == "0"
    assert released({}, [{"sites": {"north": account | {"spent": []}}}], "north") == "0"


def test_a_summary_of_an_earlier_version_has_no_sites_to_name():
    assert named_sites(["a", "b"], 2) == "all 2 sites"
    assert named_sites(["a"], 3) == "1 of 3 sites (a)"
    assert methods_by_units({"methods": {"m": {}, "n": {}}}) == [(["m", "n"], "held-out real records")]


def test_the_budget_of_a_method_has_a_total(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD, "noise=entropy")
    assert hospitals.go() == "complete"
    account = written(hospitals, "privacy.json")["methods"]["dp-sgd"]["sites"]["north"]
    assert account["protected"]["epsilon"] == account["epsilon"]
    assert account["protected"]["epsilon_add_remove"] == account["epsilon_add_remove"]
    assert "in all what is protected, composed 3.00" in page(hospitals)
    assert Path(hospitals.folder / "report.html").is_file()

"""Whole runs whose classifiers are evaluated with noise: simulated, resumed, and at real sites in this process."""

import json
import math

import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp

from cadp_fl.config import PolicyConfig
from cadp_fl.data.partition import deal
from cadp_fl.data.sources import load_source
from cadp_fl.errors import FederationError, InputError
from cadp_fl.federated.evaluation import evaluation_plan, event_of
from cadp_fl.federated.flower_client import register
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.claims import EXACT_TEST_RESULTS
from cadp_fl.privacy.events import events_from_json
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.site.protocol import ACTIONS
from cadp_fl.site.site import Site
from tests.federated.test_workflow import Killed, Run, edit_json, printed, tamper
from tests.site.test_evaluation import AddingLedger

NOISED = "evaluation={metrics: noised, epsilon: 20.0, delta: 1.0e-4}"
METHODS = ("cadp-given-flow", "dp-sgd", "fedavg", "local")
FOUR = "methods={cadp-given-flow: {}, dp-sgd: {model: linear, rounds: 2}, fedavg: {rounds: 2}, local: {epochs: 1}}"
SITES = ("north", "east", "south")


def overrides():
    from tests.conftest import ROOT, TINY

    config = str(ROOT / "configs" / "quickstart.yaml")
    return {"config": config, "set": "; ".join(f"{key}={value}" for key, value in TINY.items())}


@pytest.fixture(scope="module")
def noised(tmp_path_factory):
    run = Run(overrides() | {"output-dir": str(tmp_path_factory.mktemp("run") / "out")}, NOISED, FOUR)
    assert run.go() == "complete"
    return run


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    run = Run(overrides() | {"output-dir": str(tmp_path_factory.mktemp("run") / "out")}, FOUR)
    assert run.go() == "complete"
    return run


def test_a_noised_run_has_figures_with_errors_that_hold_the_exact_ones(noised, exact):
    """Within 4 standard errors, which a fixed seed keeps to."""
    rows, truth = (run.json("summary.json")["methods"] for run in (noised, exact))
    assert tuple(rows) == METHODS
    for name, row in rows.items():
        assert row["noised"] is True
        error = row["standard_errors"]["accuracy"]
        assert 0.001 < error < 0.1
        assert abs(row["accuracy"] - truth[name]["accuracy"]) < 4 * error
        for figures in (row, *row["per_site"].values()):
            assert figures["accuracy"] is None or math.isfinite(figures["accuracy"])
        assert "noised" not in truth[name]


def test_an_evaluation_costs_its_budget_at_most_and_stands_on_a_line_of_its_own(noised, exact):
    privacy, summary = noised.json("privacy.json"), noised.json("summary.json")
    line = privacy["test_units"]
    assert (line["metrics"], line["relation"]) == ("noised", "replace one record")
    assert tuple(line["methods"]) == METHODS
    for name, entry in line["methods"].items():
        test = summary["methods"][name]["test"]
        assert (test["metrics"], test["delta"], test["evaluations"]) == ("noised", 1e-4, 1)
        assert 19.9 < test["epsilon"] <= 20.0
        assert test["epsilon_add_remove"] < test["epsilon"]
        for account in entry["sites"].values():
            assert account["events"] == account["spent"]
            assert account["epsilon"] == epsilon_of(events_from_json(account["events"]), 1e-4) <= 20.0
    for both in line["all_methods_together"]["sites"].values():
        assert both["epsilon"] == pytest.approx(4 * test["epsilon"])
        assert both["delta"] == pytest.approx(4e-4)
    exactly = exact.json("summary.json")["methods"]
    assert {name: row["epsilon"] for name, row in exactly.items()} == {
        name: row["epsilon"] for name, row in summary["methods"].items()
    }, "test units are no training units"
    assert exactly["cadp-given-flow"]["test"] == {
        "metrics": "exact", "epsilon": None, "epsilon_add_remove": None, "delta": None, "evaluations": 5,
    }  # fmt: skip


def test_the_statement_and_the_report_say_how_test_units_are_protected(noised, exact):
    statement = noised.json("privacy.json")["statement"]
    assert "noised confusion counts and score histograms of each method's classifier, when it was final," in statement
    assert "'replace one record', that would be, had the noise not been seeded, (20.00, 0.0001)-" in statement
    assert "No test record is a training record, so this is apart from every claim" in statement
    exact_statement = exact.json("privacy.json")["statement"]
    assert "exact test results left the sites, as only a simulation may let them" in exact_statement
    page, plain = ((run.folder / "report.html").read_text() for run in (noised, exact))
    assert "noised counts" in page
    assert "\N{PLUS-MINUS SIGN}" in page
    assert "all methods together, epsilon 80.00 at delta 0.0004" in page
    assert "exactly, which only a simulation may do" in plain
    assert "\N{PLUS-MINUS SIGN}" not in plain
    assert "\N{PLUS-MINUS SIGN}" in printed(noised)
    assert "\N{PLUS-MINUS SIGN}" not in printed(exact)


def test_no_exact_count_crosses_and_each_method_is_evaluated_once(noised):
    kinds = [sent.metadata.message_type for sent in noised.grid.sent]
    assert kinds.count(ACTIONS["evaluate"]) == 3 * 3
    assert kinds.count(ACTIONS["train_local"]) == 3
    for reply in noised.grid.replies:
        for name, array in reply.content.array_records["cadp-arrays"].items():
            assert array.dtype != "int64"
            if name in ("confusion", "histograms"):
                counts = array.numpy()
                assert (counts == np.round(counts)).all()
                assert (counts < 0).any(), "as only noise can make a count"


def test_a_plan_on_test_units_is_reserved_before_anything_is_trained(noised):
    kinds = [sent.metadata.message_type for sent in noised.grid.sent]
    assert kinds.count(ACTIONS["reserve"]) == 3 * len(METHODS)  # both plans of a method together
    last = max(place for place, kind in enumerate(kinds) if kind == ACTIONS["reserve"])
    assert all(kind in (ACTIONS["describe"], ACTIONS["reserve"]) for kind in kinds[:last])


@pytest.mark.parametrize(
    ("kind", "nth"),
    [(ACTIONS["evaluate"], 2), (ACTIONS["train_classifier"], 5), (ACTIONS["train_local"], 2), (ACTIONS["describe"], 2)],
)
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(noised, run_config, kind, nth):
    run, seen = Run(run_config, NOISED, FOUR), []
    answer = run.grid.app

    def killing(message, context):
        seen.append(message.metadata.message_type)
        if seen.count(kind) == nth:
            raise Killed
        return answer(message, context)

    run.grid.app = killing
    with pytest.raises(Killed):
        run.go()
    again = Run(run_config, NOISED, FOUR)
    assert again.go(resume=True) == "complete"
    assert again.json("summary.json")["methods"] == noised.json("summary.json")["methods"]
    ours, theirs = (each.json("privacy.json")["test_units"] for each in (again, noised))
    assert ours == theirs


def test_a_run_is_not_resumed_with_another_plan_on_test_units(run_config):
    run = Run(run_config, NOISED, "methods={fedavg: {rounds: 1}}")
    answer = run.grid.app

    def killing(message, context):
        if message.metadata.message_type == ACTIONS["evaluate"]:
            raise Killed
        return answer(message, context)

    run.grid.app = killing
    with pytest.raises(Killed):
        run.go()
    other = Run(run_config, NOISED.replace("20.0", "19.0"), "methods={fedavg: {rounds: 1}}")
    with pytest.raises(InputError, match=r"'evaluation\.epsilon' is 19\.0 now and was 20\.0"):
        other.go(resume=True)
    path = run.folder / "checkpoint.json"  # as another version of the library would have planned it
    left = json.loads(path.read_text())
    left["test_plans"]["fedavg"]["events"][0]["noise_std"] += 1
    path.write_text(json.dumps(left))
    with pytest.raises(InputError, match="That of 'fedavg' is another one now"):
        Run(run_config, NOISED, "methods={fedavg: {rounds: 1}}").go(resume=True)


def test_a_study_checks_delta_against_its_test_units(run_config):
    run = Run(run_config, NOISED.replace("1.0e-4", "1.0e-3"), "methods={fedavg: {rounds: 1}}")
    with pytest.raises(Exception, match=r"at most 1 / \(10 n\)"):
        run.go()


def forget_test_plans(content):
    tree = json.loads(content["cadp-json"]["json"])
    kept = [entry for entry in tree["accounts"] if entry["plan"]["units"] == "train"]
    edit_json(accounts=kept)(content)


def test_an_account_without_its_plan_on_test_units_counts_as_none(run_config):
    run = Run(run_config, NOISED, "methods={fedavg: {rounds: 1}}")
    tamper(run.grid, ACTIONS["account"], forget_test_plans)
    assert run.go() == "incomplete"
    assert {gap["site"] for gap in run.json("summary.json")["missing"]} == {"east"}


def test_a_retry_reserve_is_a_share_of_the_evaluations_budget_too(tiny):
    evaluation = tiny.evaluation.model_copy(update={"metrics": "noised", "epsilon": 2.0, "delta": 1e-4})
    budget = tiny.budget.model_copy(update={"retry_reserve": 0.25})
    plan = evaluation_plan(tiny.model_copy(update={"evaluation": evaluation, "budget": budget}), "m", 10)
    assert (plan.key, plan.retry.epsilon, plan.delta) == ("m:test", 0.5, pytest.approx(1e-4))
    assert 1.99 < plan.epsilon() <= 2.0
    assert event_of(tiny, 10) is None
    assert evaluation_plan(tiny, "m", 10).events == (EXACT_TEST_RESULTS,)


POLICY = {
    "population": "people", "unit": "record", "epsilon": 10.0, "delta": 1.6e-4, "large_delta": True, "labels": "public",
    "min_class_units": 0,
}  # fmt: skip


def real_sites(study, folder, evaluation):
    """Return an app whose nodes are real sites, in this process: entropy noise, a policy, plans that add up."""
    dealt = deal(
        load_source(study.data), study.sites.count, study.sites.partition, study.data.test_fraction, seed=study.seed
    )
    sites = [
        Site(
            name,
            data,
            ledger=AddingLedger(),
            noise=NoiseSource.from_entropy(),
            device=torch.device("cpu"),
            outbox=folder / name,
            simulation=False,
            policy=PolicyConfig(**POLICY, evaluation=evaluation),
        )
        for name, data in zip(study.sites.site_names, dealt, strict=True)
    ]
    app = ClientApp()
    register(app, lambda context: sites[int(context.node_config["partition-id"])])
    return app, sites


DP_SGD = "methods={dp-sgd: {model: linear, rounds: 2}}"


def test_real_sites_are_evaluated_with_noise(run_config, tmp_path):
    run = Run(run_config, "noise=entropy", NOISED, DP_SGD)
    run.grid.app, sites = real_sites(run.study, tmp_path / "sites", {"epsilon": 20.0, "delta": 1e-4, "count": 1})
    assert run.go() == "complete"
    row = run.json("summary.json")["methods"]["dp-sgd"]
    assert (row["noised"], row["guarantee"], row["test"]["evaluations"]) == (True, "end-to-end", 1)
    assert 0 <= row["accuracy"] <= 1
    assert "is (20.00, 0.0001)-differentially private for each method" in run.json("privacy.json")["statement"]
    assert "simulation_only" not in (run.folder / "metrics.jsonl").read_text()
    for site in sites:
        assert [event.kind for event in site.ledger.spent("dp-sgd:test")] == ["gaussian-histogram"]


@pytest.mark.parametrize(
    ("setting", "evaluation", "code"),
    [
        ("evaluation={}", None, 317),
        ("evaluation={}", {"epsilon": 20.0, "delta": 1e-4}, 317),
        (NOISED, None, 317),
        (NOISED, {"epsilon": 19.0, "delta": 1e-4}, 311),
    ],
)
def test_what_a_real_sites_policy_does_not_allow_stops_a_run_before_it_trains(
    run_config, tmp_path, setting, evaluation, code
):
    run = Run(run_config, "noise=entropy", setting, DP_SGD)
    run.grid.app, sites = real_sites(run.study, tmp_path / "sites", evaluation)
    with pytest.raises(FederationError, match=f"code {code}"):
        run.go()
    assert ACTIONS["train_classifier"] not in {sent.metadata.message_type for sent in run.grid.sent}
    assert not any(site.ledger.spent(plan.key) for site in sites for plan in site.ledger.plans())


def test_real_sites_whose_policy_says_so_give_out_exact_results(run_config, tmp_path):
    run = Run(run_config, "noise=entropy", DP_SGD)
    rules = {"exact": True, "epsilon": 1.0, "delta": 1e-4, "count": 1}
    run.grid.app, sites = real_sites(run.study, tmp_path / "sites", rules)
    assert run.go() == "complete"
    assert run.json("summary.json")["methods"]["dp-sgd"]["guarantee"] == "end-to-end"
    assert [site.ledger.spent("dp-sgd:test") for site in sites] == [(EXACT_TEST_RESULTS,)] * 3

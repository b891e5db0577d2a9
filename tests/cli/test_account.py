"""Privacy questions that are answered without a run: every number is the accountant's, and every error a sentence."""

import json

import pytest
from rich.console import Console

from cadp_fl.cli import main as cli
from cadp_fl.config import load_study
from cadp_fl.federated.evaluation import evaluation_plan
from cadp_fl.federated.methods import build_methods
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import claim_of
from cadp_fl.privacy.events import LatentGaussianGrid, PoissonGaussian
from cadp_fl.privacy.losses import Relation

DELTA = 1e-5
PINNED = "gaussian:clip-norm=1,noise-std=7.4612"


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `cadp-fl account ...` and return exit status, stdout, stderr."""
    monkeypatch.setattr("cadp_fl.cli.account.Console", lambda **named: Console(**named, width=200))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["cadp-fl", "account", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        printed = capsys.readouterr()
        return exited.value.code, printed.out, printed.err

    return run


def answered(call, *arguments):
    code, out, err = call(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_pinned_case_costs_one(call):
    assert answered(call, "epsilon", PINNED, "--delta", "1e-5")["epsilon"] == pytest.approx(1.000, abs=2e-4)
    noise = answered(call, "noise", "gaussian:clip-norm=1", "--epsilon", "1", "--delta", "1e-5")
    assert noise["noise_std"] == pytest.approx(7.4612, abs=2e-4)
    assert noise["epsilon"] <= 1


@pytest.mark.parametrize(
    ("event", "replace", "add_remove"),
    [
        ("gaussian:clip-norm=1,noise-std=3.73", 2.155, 1.000),
        ("dp-sgd:clip-norm=1,noise-std=2,sampling-rate=0.1,steps=1", 0.460, 0.369),
        ("laplace:clip-norm=1,noise-scale=4", 0.5, 0.25),
        ("laplace:clip-norm=1,noise-scale=4,records-per-patient=5", 2.5, 1.25),
        ("randomized-response:epsilon=0.7,records-per-patient=3", 2.1, 2.1),
        ("histogram:noise-std=5.27585,records-per-patient=1", 1.000, 0.684),
        ("sum:clip-norm=3,noise-std=67.1508,records-per-patient=3", 1.000, 0.469),
        ("moments:noise-std=9.32650,sum-weight=1,shared-weight=1", 1.000, 0.677),
        (
            "moments:noise-std=18.653,sum-weight=1,shared-weight=1,clip-norm=9,shares=5,records-per-patient=2",
            1.000,
            0.677,
        ),
        ("moments:noise-std=7.4612,count-weight=0,sum-weight=1,shared-weight=0,class-weight=0", 1.000, 0.469),
        ("histogram:noise-std=52.7585,histograms=4,times=25", 1.000, 0.684),
    ],
)
def test_one_event_costs_what_was_worked_out_elsewhere(call, event, replace, add_remove):
    answer = answered(call, "epsilon", event, "--delta", "1e-5")
    assert answer["epsilon"] == pytest.approx(replace, abs=1e-3)
    assert answer["epsilon_add_remove"] == pytest.approx(add_remove, abs=1e-3)


def test_events_of_one_plan_compose_below_their_sum(call):
    answer = answered(call, "epsilon", PINNED, "randomized-response:epsilon=0.3", "--delta", DELTA)
    alone = [event["epsilon"] for event in answer["events"]]
    assert max(alone) < answer["epsilon"] < sum(alone)
    code, out, _ = call("epsilon", PINNED, "randomized-response:epsilon=0.3", "--delta", DELTA)
    assert code == 0
    assert "1.01" in out  # 1.00001, rounded up
    assert "1.27" in out


def test_what_has_no_delta_needs_none(call):
    answer = answered(call, "epsilon", "laplace:clip-norm=1,noise-scale=4", "randomized-response:epsilon=0.25")
    assert (answer["epsilon"], answer["epsilon_add_remove"], answer["delta"]) == (0.75, 0.5, None)
    noise = answered(call, "noise", "laplace:clip-norm=2,records-per-patient=3", "--epsilon", "1.5")
    assert noise["noise_scale"] == pytest.approx(8.0)


@pytest.mark.parametrize(
    "event",
    [
        "dp-sgd:clip-norm=3,sampling-rate=0.1,steps=50",
        "histogram:histograms=3",
        "laplace:clip-norm=1",
        "sum:clip-norm=8",
        "moments:class-weight=0.5",
    ],
)
def test_the_least_noise_meets_the_budget_with_what_is_beside_it(call, event):
    arguments = ("--epsilon", "2", "--delta", "1e-5", "--beside", "randomized-response:epsilon=0.4")
    answer = answered(call, "noise", event, *arguments)
    assert 0.98 * 2 <= answer["epsilon"] <= 2
    name = next(name for name in answer if name.startswith("noise_"))
    code, out, _ = call("noise", event, *arguments)
    assert code == 0
    printed = float(out.split("\n")[0].split(": ")[1])
    assert answer[name] <= printed <= answer[name] * (1 + 1e-5)


GAUSSIAN = "release={mechanism: grid-gaussian, clip_norm: 4.0, labels: public}"
THREE = "methods={cadp-given-flow: {}, dp-sgd: {rounds: 15, local_steps: 2}, fedavg: {}}"


def test_a_study_is_accounted_from_its_config_alone(call, quickstart, monkeypatch):
    def touched(*arguments):
        raise AssertionError("accounting read a record")

    monkeypatch.setattr("cadp_fl.data.sources.load_source", touched)
    answer = answered(call, "plan", quickstart, "--set", "budget.retry_reserve=0.1", "--set", THREE)
    study = load_study(quickstart, ["budget.retry_reserve=0.1", THREE])
    budget = Budget.of(study.budget, study.labels)
    for method in build_methods(study):
        account, claim = answer["methods"][method.name], claim_of(budget.plan(method.name, method.events()))
        assert [event["stage"] for event in account["events"]] == [event.stage for event in method.events()]
        for key in ("guarantee", "epsilon", "epsilon_add_remove", "epsilon_if_flow_were_fixed", "delta"):
            assert account[key] == getattr(claim, key)
    assert 2.9 < answer["methods"]["dp-sgd"]["epsilon"] <= 3.0
    assert answer["methods"]["dp-sgd"]["retry_reserve"] == pytest.approx({"epsilon": 0.3, "delta": 1e-6})
    assert answer["methods"]["fedavg"]["retry_reserve"] == {"epsilon": 0.0, "delta": 0.0}
    assert answer["all_methods_together"]["epsilon"] is None
    assert 5.9 < answer["all_methods_together"]["protected"]["epsilon"] <= 6.0
    assert answer["largest_cohort"] == 10_000


def test_a_study_is_accounted_on_test_units_too(call, quickstart):
    noised = "evaluation={metrics: noised, epsilon: 2.0, delta: 1.0e-4}"
    test = answered(call, "plan", quickstart, "--set", THREE, "--set", noised)["test_units"]
    assert test["each_method_at_most"] == {"epsilon": 2.0, "delta": 1e-4}
    assert test["all_methods_together_at_most"] == pytest.approx({"epsilon": 6.0, "delta": 3e-4})
    study = load_study(quickstart, [THREE, noised, "budget.retry_reserve=0.2"])
    for classes in (2, 10, 100):
        assert 1.9 < evaluation_plan(study, "dp-sgd", classes).epsilon() <= 2.0
    assert answered(call, "plan", quickstart, "--set", THREE)["test_units"]["each_method_at_most"] is None
    _, out, _ = call("plan", quickstart, "--set", THREE, "--set", noised)
    assert "at most epsilon 2.00 at delta 0.0001; all methods at most epsilon 6.00 at delta 0.0003" in out
    _, out, _ = call("plan", quickstart, "--set", THREE)
    assert "Test records: exact test results leave (evaluation.metrics: exact), and no epsilon covers them" in out


def test_one_more_round_or_release_is_a_new_plan_that_adds(call, quickstart):
    methods = answered(call, "plan", quickstart, "--set", THREE, "--set", GAUSSIAN)["methods"]
    (again,) = methods["dp-sgd"]["one_more"]
    steps = PoissonGaussian.model_validate(
        {name: value for name, value in methods["dp-sgd"]["events"][0].items() if "epsilon" not in name} | {"steps": 2}
    )
    assert "2 steps" in again["what"]
    assert again["epsilon"] == epsilon_of([steps], DELTA)
    assert again["epsilon_add_remove"] == epsilon_of([steps], DELTA, Relation.ADD_OR_REMOVE_ONE)
    assert again["total"]["epsilon"] == methods["dp-sgd"]["epsilon"] + again["epsilon"]
    assert again["total"]["delta"] == 2 * DELTA
    (again,) = methods["cadp-given-flow"]["one_more"]
    release = {name: value for name, value in methods["cadp-given-flow"]["events"][1].items() if "epsilon" not in name}
    assert again["epsilon"] == epsilon_of([LatentGaussianGrid.model_validate(release)], DELTA)
    assert again["total"]["epsilon"] == pytest.approx(2 * again["epsilon"])
    assert methods["fedavg"]["one_more"] == []


def test_methods_that_protect_add_up(call, quickstart):
    answer = answered(call, "plan", quickstart, "--set", "methods={dp-sgd: {rounds: 3}}")
    together = answer["all_methods_together"]
    assert together["epsilon"] == together["protected"]["epsilon"] == answer["methods"]["dp-sgd"]["epsilon"]
    code, out, _ = call("plan", quickstart, "--set", "methods={dp-sgd: {rounds: 3}}", "--set", "budget.epsilon=0.001")
    assert code == 0
    assert "All methods on the same records: epsilon 0.00100 (" in out


def test_a_released_label_is_drawn_again_with_a_release(call, quickstart):
    code, out, _ = call(
        "plan", quickstart, "--set", GAUSSIAN, "--set", "release.labels=covered", "--set", "budget.retry_reserve=0.1"
    )
    assert code == 0
    for sentence in (
        "one more release, its labels drawn again would be a new plan",
        "across plans epsilons and deltas add",
        "NOT end-to-end",
        "0.30 │",
        "Relation: replace one record. delta is small enough for sites of up to 1000 records, and of up to 10000 whose",
    ):
        assert sentence in out


def test_a_plan_says_when_it_counts_on_no_shuffle_and_what_one_would_cost(call, quickstart):
    only = "--set", "methods=[cadp, dp-sgd]"
    code, out, _ = call("plan", quickstart, *only)
    assert code == 0
    assert out.count("Its release is accounted message by message: no record is read here") == 1
    assert "name release.shuffled_units and release.label_classes" in out
    alone = answered(call, "plan", quickstart, *only)["methods"]
    named = answered(
        call, "plan", quickstart, *only, "--set", "release.shuffled_units=400", "--set", "release.label_classes=10"
    )["methods"]
    assert named["cadp"]["not_shuffled"] is None
    assert alone["dp-sgd"]["not_shuffled"] is None
    local = [methods["cadp"]["events"][-1]["latent_epsilon"] for methods in (alone, named)]
    assert local[1] > 5 * local[0]
    asked = answered(call, "plan", quickstart, *only, "--set", "release.amplification=none")["methods"]["cadp"]
    assert asked["not_shuffled"] == "the study asks for no amplification (release.amplification: none)"


def test_a_plan_promises_no_shuffle_that_no_simulation_would_claim(call, quickstart):
    overrides = ("methods=[cadp]", "release.labels=public", "budget.unit=patient", "budget.records_per_patient=2")
    sets = [part for override in overrides for part in ("--set", override)]
    said = answered(call, "plan", quickstart, *sets)["methods"]["cadp"]["not_shuffled"]
    assert said == "labels are public, and a patient's records may be of several classes"


def test_records_that_cannot_be_found_are_not_missed(call, tmp_path, quickstart, monkeypatch):
    monkeypatch.delenv("CADP_FL_DATA", raising=False)
    answered(call, "plan", quickstart.parent / "pneumonia.yaml")
    answered(call, "plan", quickstart, "--set", "data.path=/nowhere.npz", "--set", "data.source=medmnist")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["epsilon", PINNED], "give --delta, at most 1 / (10 n)"),
        (["epsilon", PINNED, "--delta", "1"], "delta is between 0 and 1"),
        (["epsilon", PINNED, "--delta", "nan"], "delta is between 0 and 1"),
        (
            ["epsilon", "gauss:clip-norm=1"],
            "Unknown event 'gauss'. Choose one of: gaussian, grid-gaussian, laplace, privunit, dp-sgd",
        ),
        (["epsilon", "gaussian:clip-norm=1"], "lacks noise-std; add it"),
        (["epsilon", "gaussian:clip-norm"], "Found 'clip-norm'"),
        (["epsilon", "gaussian:clip-norm=1,clip-norm=2"], "give each once"),
        (["epsilon", "dp-sgd:records-per-patient=3"], "has no parameter 'records-per-patient'. It has: clip-norm"),
        (
            ["epsilon", "gaussian:clip-norm=1,noise-std=0", "--delta", "1e-5"],
            "is at least 1e-09. Found 0",
        ),
        (["epsilon", "gaussian:clip-norm=one,noise-std=1", "--delta", "1e-5"], "Found 'one'"),
        (["noise", PINNED, "--epsilon", "1", "--delta", "1e-5"], "The noise is what is asked for"),
        (["noise", "randomized-response:epsilon=1", "--epsilon", "1"], "its epsilon is what it costs"),
        (["noise", "gaussian:clip-norm=1", "--epsilon", "1"], "give --delta"),
        (["noise", "gaussian:clip-norm=1", "--epsilon", "0", "--delta", "1e-5"], "use an epsilon from 0.001 to 100"),
        (["noise", "laplace:clip-norm=1", "--epsilon", "nan"], "use an epsilon from 0.001 to 100"),
        (
            ["noise", "laplace:clip-norm=1", "--epsilon", "1", "--beside", "randomized-response:epsilon=1"],
            "or less beside it",
        ),
        (["plan", "nowhere.yaml"], "Found none at"),
        (
            ["epsilon", "dp-sgd:clip-norm=1,noise-std=9,sampling-rate=0.1,steps=1000001", "--delta", "1e-5"],
            "at most 1,000,000 sampled steps",
        ),
        (
            ["noise", "dp-sgd:clip-norm=1,sampling-rate=0.1,steps=9999999", "--epsilon", "1", "--delta", "1e-5"],
            "at most 1,000,000 sampled steps",
        ),
    ],
)
def test_a_wrong_question_is_one_sentence(call, arguments, sentence):
    code, _, err = call(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("cadp-fl: ")
    assert sentence in err


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            [
                "methods=[cadp]",
                "flow.warm_start=none",
                "flow.pretrained={path: none.safetensors, trained_on: public, freeze: [all]}",
            ],
            "none",
        ),
        (["budget.epsilon=0.0001"], "'budget.epsilon'"),
        (["methods=[capd]"], "Unknown method 'capd'"),
        (["release.mechanism=laplacian"], "Unknown mechanism"),
        (["budget.split={labels: 0.9, counts: 0.2}"], "leaves a share"),
        (
            ["methods={dp-sgd: {rounds: 1001, local_steps: 1000, sampling_rate: 0.01}}"],
            "Found 1,001,000 steps of 1 kind",
        ),
    ],
)
def test_a_study_that_cannot_be_accounted_says_why(call, quickstart, overrides, sentence):
    code, _, err = call("plan", quickstart, *(part for each in overrides for part in ("--set", each)))
    assert (code, err.count("\n")) == (2, 1)
    assert sentence in err


def test_every_question_has_an_example(call):
    for question in ("plan", "epsilon", "noise"):
        code, out, _ = call(question, "--help")
        assert code == 0
        assert f"Example: cadp-fl account {question}" in " ".join(out.split())


@pytest.mark.parametrize(
    "event", ["sum:clip-norm=8,noise-std=270,shares=3", "moments:noise-std=9.6,class-weight=0.5,records-per-patient=2"]
)
def test_every_parameter_of_sums_and_moments_is_printed_by_the_name_that_it_is_typed_by(call, event, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    code, out, _ = call("epsilon", event, "--delta", "1e-5")
    assert code == 0
    (asked,) = answered(call, "epsilon", event, "--delta", "1e-5")["events"]
    kind, row = asked["kind"], " ".join(out.split())
    parameters = {name for name in asked if name not in ("kind", "stage", "epsilon", "epsilon_add_remove")}
    parameters -= {name for name in ("shares", "records_per_unit") if asked[name] == 1}
    assert all(f"{name.replace('_', '-')} {asked[name]:g}" in row for name in parameters), row
    again = f"{kind}:" + ",".join(f"{name.replace('_', '-')}={asked[name]}" for name in parameters)
    assert answered(call, "epsilon", again, "--delta", "1e-5")["events"] == [asked]


def test_what_is_printed_of_an_event_can_be_typed_again(call):
    typed = answered(call, "epsilon", "gaussian:clip-norm=1,noise-std=7.4612,records-per-patient=2", "--delta", "1e-5")
    copied = answered(
        call, "epsilon", "latent-gaussian:clip-norm=1,noise-std=7.4612,records-per-unit=2", "--delta", "1e-5"
    )
    assert typed == copied

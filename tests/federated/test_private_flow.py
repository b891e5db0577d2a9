"""Studies whose flow is inside of the budget: of noised moments, of DP-SGD, or public; over a Grid in memory."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from flwr.app import Array

from cadp_fl.config import load_study
from cadp_fl.data.sources import load_source
from cadp_fl.errors import AggregatorError, ConfigError, FederationError
from cadp_fl.federated.methods import build_methods
from cadp_fl.federated.methods.base import plan_of
from cadp_fl.flow.storage import FlowCard, flow_sha256, load_flow, save_flow
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.events import GaussianMoments, GaussianSum, PoissonGaussian, events_from_json
from cadp_fl.privacy.plan import Plan
from cadp_fl.release.bundle import open_bundle
from cadp_fl.site.protocol import ACTIONS
from cadp_fl.study.run import check_study
from cadp_fl.weights import get_weights
from tests.conftest import ROOT, TINY
from tests.federated.test_coverage import write_patients
from tests.federated.test_workflow import Killed, Run, tamper

SITES = ("north", "east", "south")
MOMENTS, TRAIN, RELEASE = (ACTIONS[action] for action in ("moments", "train_private_flow", "release"))
WARM = "flow.warm_start=moments"
COLD = "flow.warm_start=none"
DP_SGD = "flow.privacy=dp-sgd", "flow.dp_sgd={rounds: 2, local_steps: 1, sampling_rate: 0.3, copies: 2}"
SPLIT = "budget.split={moments: 0.6, flow: 0.2}"
OF_FLOW = ("moments", "flow-samples", "flow-bayes")


def config_of(folder):
    settings = [f"{key}={value}" for key, value in TINY.items() if key not in ("methods", "flow.warm_start")]
    return {
        "config": str(ROOT / "configs" / "quickstart.yaml"),
        "output-dir": str(folder / "out"),
        "set": "; ".join(settings),
    }


@pytest.fixture
def plain(tmp_path):
    return config_of(tmp_path)


def completed(folder, *overrides):
    run = Run(config_of(folder), *overrides)
    check_study(run.study)
    assert run.go() == "complete"
    return run


def stored_flow(folder, *overrides):
    """Return the overrides that start from a stored public flow, and the flow."""
    study = load_study(ROOT / "configs" / "quickstart.yaml", [*config_of(folder)["set"].split("; "), *overrides])
    schema = load_source(study.data).schema.model_copy(update={"name": "postcodes"})
    card = FlowCard(study.flow.cold(), schema, 5, "public")
    flow = card.build()
    save_flow(folder / "flow.safetensors", flow, card)
    return f"flow.pretrained={{path: {folder / 'flow.safetensors'}, trained_on: public}}", flow


@pytest.fixture(scope="module")
def covered(tmp_path_factory):
    """The warm start alone; labels covered."""
    overrides = WARM, "release.labels=covered", "methods=[moments, flow-samples, flow-bayes, cadp]"
    return completed(tmp_path_factory.mktemp("covered"), *overrides)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """The warm start alone; labels public."""
    return completed(tmp_path_factory.mktemp("public"), WARM, "methods=[moments, cadp]")


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """DP-SGD from new weights."""
    return completed(tmp_path_factory.mktemp("new"), COLD, *DP_SGD, "methods=[cadp, flow-bayes]")


@pytest.fixture(scope="module")
def above(tmp_path_factory):
    """DP-SGD above a warm start; labels covered."""
    overrides = WARM, *DP_SGD, SPLIT, "release.labels=covered", "methods=[cadp, flow-bayes]"
    return completed(tmp_path_factory.mktemp("above"), *overrides)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """DP-SGD from a public flow."""
    folder = tmp_path_factory.mktemp("tuned")
    start, flow = stored_flow(folder, COLD)
    run = completed(folder, COLD, start, *DP_SGD, "methods=[cadp]")
    run.start = flow
    return run


@pytest.fixture(params=["covered", "public", "new", "above", "tuned"])
def any_run(request):
    return request.getfixturevalue(request.param)


def accounts(run):
    for method, entry in run.json("privacy.json")["methods"].items():
        for account in entry["sites"].values():
            yield method, account


def tally(events):
    """Return how often each noised event happened, steps of DP-SGD counted by one."""
    counted = Counter()
    for event in events:
        if event["kind"] != "declared-public":
            times = event.get("steps", 1)
            counted[json.dumps(event | ({"steps": 1} if "steps" in event else {}), sort_keys=True)] += times
    return counted


def test_every_method_is_end_to_end_against_the_server_at_all_of_the_budget_and_no_more(any_run):
    summary, privacy = any_run.json("summary.json"), any_run.json("privacy.json")
    assert summary["status"] == "complete"
    for method, row in summary["methods"].items():
        claims = privacy["methods"][method]
        assert (row["guarantee"], claims["guarantee"]) == ("end-to-end", "end-to-end")
        assert (row["against"], claims["against"]) == ("server", "server")
        assert row["epsilon_if_flow_were_fixed"] is None
        assert row.get("unprotected", []) == []
        assert 0.98 * 3.0 <= row["epsilon"] <= 3.0
        assert 0 <= row["accuracy"] <= 1


def test_what_the_sites_spent_is_what_was_planned_and_its_epsilon_is_that_of_the_events(any_run):
    methods = {method.name: method for method in build_methods(any_run.study)}
    seen = 0
    for method, account in accounts(any_run):
        plan = plan_of(methods[method], any_run.study)
        assert account["events"] == [event.model_dump() for event in plan.events]
        assert tally(account["spent"]) == tally(account["events"])
        assert account["epsilon"] == epsilon_of(events_from_json(account["events"]), account["delta"]) <= 3.0
        seen += 1
    assert seen == len(SITES) * len(methods)


def test_no_loss_no_size_and_no_exact_count_crosses(any_run):
    """What answers to moments and to DP-SGD: arrays that were noised, and a hash of what every site builds."""
    for sent, reply in zip(any_run.grid.sent, any_run.grid.replies, strict=True):
        content = json.loads(reply.content.config_records["cadp-json"]["json"])
        arrays = reply.content.array_records["cadp-arrays"]
        if sent.metadata.message_type == MOMENTS:
            assert content == {}
            assert set(arrays) in ({"sum"}, {"counts", "sums", "shared", "second"})
            assert {array.dtype for array in arrays.values()} == {"float64"}
        elif sent.metadata.message_type == TRAIN:
            assert set(content) == {"structure"}
            assert {array.dtype for array in arrays.values()} == {"float32"}
    assert not any("bits_per_dim" in line for line in any_run.lines())


def test_flows_are_trained_on_private_records_under_noise_and_their_files_say_so(any_run):
    for path in (any_run.folder / "models").glob("flow*.safetensors"):
        flow, card = load_flow(path)
        assert (card.trained_on, card.noise) == ("private", "seeded")
        assert card.config.is_warm == any_run.study.flow.is_warm
        assert all(torch.isfinite(each).all() for each in flow.parameters())


def test_covered_labels_cost_and_counts_come_with_the_moments(covered):
    assert covered.json("summary.json")["relation"] == "replace one record"
    for method, account in accounts(covered):
        kinds = [event["kind"] for event in account["events"]]
        assert kinds[:2] == ["gaussian-sum", "gaussian-moments"]
        assert kinds[2:] == ([] if method in OF_FLOW else ["randomized-response", "latent-gaussian-grid"])
    for site in SITES:
        manifest = open_bundle(covered.folder / "releases" / site).manifest
        assert manifest.claim.guarantee == "end-to-end"
        assert manifest.claim.epsilon <= 3.0
    for sent, reply in zip(covered.grid.sent, covered.grid.replies, strict=True):
        if sent.metadata.message_type == ACTIONS["describe"]:
            assert json.loads(reply.content.config_records["cadp-json"]["json"])["class_counts"] is None


def test_public_labels_leave_all_of_the_budget_to_moments_and_release(public):
    assert public.json("summary.json")["relation"] == "replace one record, keep its label"
    for method, account in accounts(public):
        kinds = [event["kind"] for event in account["events"]]
        assert kinds == ["gaussian-sum", "gaussian-moments"] + ["latent-gaussian-grid"] * (method == "cadp")


def test_a_method_that_spends_on_its_flow_alone_has_less_noise_than_one_that_releases_too(covered):
    stds = {}
    for method, account in accounts(covered):
        (event,) = [event for event in events_from_json(account["events"]) if isinstance(event, GaussianMoments)]
        stds[method] = event.noise_std
    assert len({stds[method] for method in OF_FLOW}) == 1
    assert stds["moments"] < stds["cadp"]


def test_methods_of_one_flow_make_the_same_flow_only_if_their_noise_is_the_same(covered):
    """Each method asks for moments of its own: what one releases is no part of another's guarantee."""
    asked = [sent for sent in covered.grid.sent if sent.metadata.message_type == MOMENTS]
    assert len(asked) == 4 * 2 * len(SITES)
    flows = {flow_sha256(load_flow(path)[0]) for path in (covered.folder / "models").glob("flow*.safetensors")}
    assert len(flows) == 4


def test_what_the_warm_start_knows_tells_digits_apart(covered):
    """All four are far above one in ten at epsilon 3, labels covered; the floor is half of what was measured."""
    for row in covered.json("summary.json")["methods"].values():
        assert row["accuracy"] > 0.4


def test_the_flow_of_moments_alone_has_no_blocks_and_that_of_dp_sgd_keeps_what_moments_made(above, covered):
    flow, _ = load_flow(covered.folder / "models" / "flow.safetensors")
    assert not len(flow.dense.couplings)
    flow, _ = load_flow(above.folder / "models" / "flow.safetensors")
    assert len(flow.dense.couplings)
    assert flow.affine.mean.detach().abs().max() > 0
    trained = [
        reply for sent, reply in zip(above.grid.sent, above.grid.replies, strict=True)
        if sent.metadata.message_type == TRAIN
    ]  # fmt: skip
    assert len(trained) == 2 * 2 * len(SITES)
    for reply in trained:
        assert all(name.startswith("dense.") for name in reply.content.array_records["cadp-arrays"])


def test_dp_sgd_comes_after_moments_and_before_the_release(above, new):
    order = [line["phase"] for line in above.lines() if line["phase"].startswith("cadp/")]
    assert list(dict.fromkeys(order))[:3] == ["cadp/moments", "cadp/flow", "cadp/release"]
    assert MOMENTS not in {sent.metadata.message_type for sent in new.grid.sent}
    for method, account in accounts(above):
        events = events_from_json(account["events"])
        assert [type(event) for event in events[:3]] == [GaussianSum, GaussianMoments, PoissonGaussian]
        if method == "cadp":
            alone = [epsilon_of(part, 1e-5) for part in (events[:2], events[2:3])]
            assert alone == pytest.approx([0.6 * 0.98 * 3, 0.2 * 0.98 * 3], rel=0.02)


def test_a_public_flow_is_declared_and_trained_on_from_its_own_weights(tuned):
    for _, account in accounts(tuned):
        declared = account["events"][0]
        assert (declared["kind"], declared["sha256"]) == ("declared-public", flow_sha256(tuned.start))
    text = tuned.json("privacy.json")["methods"]["cadp"]["statement"]
    assert "the flow was trained on 'postcodes', in which no private record" in text
    flow, card = load_flow(tuned.folder / "models" / "flow.safetensors")
    assert card.seed == 5
    first = next(sent for sent in tuned.grid.sent if sent.metadata.message_type == TRAIN)
    for name, array in first.content.array_records["cadp-arrays"].items():
        np.testing.assert_array_equal(array.numpy(), get_weights(tuned.start)[name])
    assert flow_sha256(flow) != flow_sha256(tuned.start)


def test_what_is_frozen_of_a_public_flow_stays_bit_for_bit(tmp_path):
    start, flow = stored_flow(tmp_path, COLD)
    start = start.replace("trained_on: public", "trained_on: public, freeze: [dense]")
    run = completed(tmp_path, COLD, start, *DP_SGD, "methods=[flow-bayes]")
    before, after = get_weights(flow), get_weights(load_flow(run.folder / "models" / "flow.safetensors")[0])
    moved = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert moved
    assert not any(name.startswith("dense.") for name in moved)


def test_a_public_flow_that_is_fixed_costs_nothing_and_its_bayes_rule_neither(tmp_path):
    start, flow = stored_flow(tmp_path, COLD)
    start = start.replace("trained_on: public", "trained_on: public, freeze: [all]")
    run = completed(tmp_path, COLD, start, *DP_SGD, "methods=[flow-bayes]")
    assert run.json("summary.json")["methods"]["flow-bayes"]["epsilon"] == 0
    assert TRAIN not in {sent.metadata.message_type for sent in run.grid.sent}
    assert flow_sha256(load_flow(run.folder / "models" / "flow.safetensors")[0]) == flow_sha256(flow)


@pytest.mark.parametrize("method", ["cadp", "flow-samples", "flow-bayes"])
def test_a_flow_that_would_be_trained_without_privacy_is_refused_with_the_ways_out(plain, method):
    run = Run(plain, COLD, f"methods=[{method}]")
    ways = r"flow\.warm_start: moments, flow\.privacy: dp-sgd, or flow\.pretrained .* cadp-given-flow"
    with pytest.raises(ConfigError, match=rf"without privacy.*{ways}"):
        run.go()
    assert not run.grid.sent


def test_a_public_flow_that_would_be_trained_without_privacy_is_refused(plain, tmp_path):
    start, _ = stored_flow(tmp_path, COLD)
    with pytest.raises(ConfigError, match="is trained on the sites' records without it"):
        Run(plain, COLD, start, "methods=[cadp]").go()
    with pytest.raises(ConfigError, match="was trained on private records"):
        Run(plain, COLD, *DP_SGD, start.replace("trained_on: public", "trained_on: private"), "methods=[cadp]").go()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([COLD, "methods=[moments]"], "The method moments is a warm start alone"),
        ([COLD, *DP_SGD, "methods=[moments]"], "The method moments is a warm start alone"),
        ([WARM, "flow.moments.count_weight=0", "methods=[cadp]"], "needs counts, sums and a second"),
        ([WARM, "flow.moments.sum_weight=0", "methods=[moments]"], "needs counts, sums and a second"),
        (
            [WARM, "flow.moments={shared_weight: 0, class_weight: 0}", "methods=[flow-bayes]"],
            "needs counts, sums and a second",
        ),
        ([WARM, "budget.split={moments: 0.9, flow: 0.5}", "methods=[cadp]"], "in their squares"),
    ],
)
def test_a_study_that_could_not_end_is_refused_before_any_site_is_asked(plain, overrides, says):
    run = Run(plain, *overrides)
    with pytest.raises(ConfigError, match=says):
        run.go()
    assert not run.grid.sent


def test_a_default_split_leaves_something_to_training_and_to_the_release(plain):
    (method,) = build_methods(Run(plain, WARM, "flow.privacy=dp-sgd", "methods=[cadp]").study)
    kinds = [event.kind for event in method.events()]
    assert kinds == ["gaussian-sum", "gaussian-moments", "poisson-gaussian", "latent-gaussian-grid"]
    assert 0.98 * 3.0 <= epsilon_of(method.events(), 1e-5) <= 3.0


def test_a_share_of_a_flow_without_a_warm_start_is_that_which_the_study_names(plain):
    def steps(*overrides):
        (method,) = build_methods(Run(plain, COLD, *DP_SGD, "methods=[cadp]", *overrides).study)
        return next(event for event in method.events() if isinstance(event, PoissonGaussian))

    for overrides, share in (((), 0.95), (("budget.split={flow: 0.4, moments: 0.1}",), 0.4)):
        assert epsilon_of([steps(*overrides)], 1e-5) == pytest.approx(share * 3.0, rel=0.02)


def killing(run, kind, nth):
    """Let a run end as by a kill when a site gets its nth message of a kind."""
    answer, seen = run.grid.app, []

    def app(message, context):
        seen.append(message.metadata.message_type)
        if seen.count(kind) == nth:
            raise Killed
        return answer(message, context)

    run.grid.app = app
    with pytest.raises(Killed):
        run.go()


@pytest.mark.parametrize(("kind", "nth"), [(RELEASE, 2), (ACTIONS["evaluate"], 5)])
def test_a_run_that_is_resumed_asks_for_no_moments_again_and_ends_as_if_never_interrupted(public, plain, kind, nth):
    overrides = WARM, "methods=[moments, cadp]"
    killing(Run(plain, *overrides), kind, nth)
    again = Run(plain, *overrides)
    assert again.go(resume=True) == "complete"
    assert MOMENTS not in {sent.metadata.message_type for sent in again.grid.sent}
    ours, theirs = again.json("summary.json"), public.json("summary.json")
    assert ours["methods"] == theirs["methods"]
    for method, account in accounts(again):
        assert tally(account["spent"]) == tally(account["events"]), method


def test_a_run_that_is_cut_off_in_the_moments_asks_for_both_again(public, plain):
    killing(Run(plain, WARM, "methods=[moments, cadp]"), MOMENTS, 5)
    again = Run(plain, WARM, "methods=[moments, cadp]")
    assert again.go(resume=True) == "complete"
    assert again.json("summary.json")["methods"] == public.json("summary.json")["methods"]


@pytest.mark.parametrize("kind", [TRAIN, RELEASE])
def test_a_run_above_a_public_flow_is_resumed_with_what_it_trained(tuned, plain, kind, tmp_path):
    start, _ = stored_flow(tmp_path, COLD)
    overrides = COLD, start, *DP_SGD, "methods=[cadp]"
    killing(Run(plain, *overrides), kind, 2 if kind == RELEASE else 5)
    again = Run(plain, *overrides)
    assert again.go(resume=True) == "complete"
    assert (TRAIN in {sent.metadata.message_type for sent in again.grid.sent}) == (kind == TRAIN)
    row, other = (run.json("summary.json")["methods"]["cadp"] for run in (again, tuned))
    assert row == other


def test_a_site_that_had_no_part_in_training_a_public_flow_still_releases_with_what_others_made_of_it(plain, tmp_path):
    start, _ = stored_flow(tmp_path, COLD)
    run = Run(plain, COLD, start, *DP_SGD, "sites.timeout_seconds=0.5", "methods=[cadp]")
    run.grid.fail[11, TRAIN] = "crash"
    assert run.go() == "incomplete"
    assert {(gap["site"], gap["phase"]) for gap in run.json("summary.json")["missing"]} == {("east", "cadp/flow")}
    assert open_bundle(run.folder / "releases" / "east").manifest.claim.guarantee == "end-to-end"
    spent = run.json("privacy.json")["methods"]["cadp"]["sites"]["east"]["spent"]
    assert [event["kind"] for event in spent] == ["latent-gaussian-grid"]


@pytest.mark.parametrize("how", ["silent", "crash"])
def test_a_site_that_is_lost_in_the_moments_is_named_and_the_run_goes_on(plain, how):
    run = Run(plain, WARM, "sites.timeout_seconds=0.5", "methods=[moments]")
    run.grid.fail[11, MOMENTS] = how
    assert run.go() == "incomplete"
    summary = run.json("summary.json")
    assert {gap["site"] for gap in summary["missing"]} == {"east"}
    assert "moments/moments" in {gap["phase"] for gap in summary["missing"]}
    assert summary["methods"]["moments"]["accuracy"] > 0.3
    assert summary["methods"]["moments"]["guarantee"] == "end-to-end"


def test_a_site_that_is_late_with_its_sum_has_a_part_in_the_moments(plain):
    run = Run(plain, WARM, "sites.timeout_seconds=0.5", "methods=[moments]")
    run.grid.fail[11, MOMENTS] = "late-once"
    assert run.go() == "incomplete"
    assert [gap["site"] for gap in run.json("summary.json")["missing"]] == ["east"]
    spent = run.json("privacy.json")["methods"]["moments"]["sites"]["east"]["spent"]
    assert [event["kind"] for event in spent] == ["gaussian-sum", "gaussian-moments"]


def test_below_the_quorum_the_moments_stop_the_run(plain):
    run = Run(plain, WARM, "sites.timeout_seconds=0.5", "methods=[moments]")
    run.grid.fail |= {(10, MOMENTS): "crash", (12, MOMENTS): "silent"}
    with pytest.raises(FederationError, match=r"'moments/moments' needs 2 sites .* 1 of 3 answered"):
        run.go()


def drop(record):
    record.clear()


def spoil(value):
    def change(record):
        for name in list(record):
            record[name] = Array(np.full_like(record[name].numpy(), value))

    return change


def halve(record):
    for name in list(record):
        record[name] = Array(record[name].numpy()[:-1])


def in_float32(record):
    for name in list(record):
        record[name] = Array(record[name].numpy().astype(np.float32))


@pytest.mark.parametrize("change", [drop, spoil(np.nan), spoil(np.inf), halve, in_float32])
def test_moments_that_do_not_fit_count_as_none(plain, change):
    run = Run(plain, WARM, "methods=[moments]")
    tamper(run.grid, MOMENTS, lambda content: change(content.array_records["cadp-arrays"]))
    assert run.go() == "incomplete"
    assert {gap["site"] for gap in run.json("summary.json")["missing"]} == {"east"}


@pytest.mark.parametrize("value", [0.0, -1e12, 1e300])
def test_a_site_that_sends_absurd_numbers_spoils_figures_and_no_run(plain, value):
    run = Run(plain, WARM, "methods=[moments]")
    tamper(run.grid, MOMENTS, lambda content: spoil(value)(content.array_records["cadp-arrays"]))
    assert run.go() == "complete"
    flow, _ = load_flow(run.folder / "models" / "flow.safetensors")
    assert flow.coordinates.centre.detach().norm() <= 1 + 1e-6


def test_patients_with_several_records_are_one_unit_of_moments_and_of_release(tmp_path):
    settings = [
        "data={source: medmnist}",
        f"data.path={write_patients(tmp_path / 'clinic.npz')}",
        "sites.partition={kind: iid, min_records: 20}",
        "budget={epsilon: 3, delta: 1.0e-4, unit: patient, records_per_patient: 2}",
        "methods=[moments, cadp]",
    ]
    run = completed(tmp_path, WARM, *settings)
    assert run.json("summary.json")["relation"] == "replace one patient, keep the labels of its records"
    for method, account in accounts(run):
        events = events_from_json(account["events"])
        assert {event.records_per_unit for event in events} == {2}
        assert tally(account["spent"]) == tally(account["events"])
        assert 0.98 * 3.0 <= account["epsilon"] <= 3.0
        plan = Plan(method, events, account["delta"], unit="patient")
        assert plan.epsilon() == account["epsilon"]
    for site in run.json("summary.json")["sites"]:
        assert open_bundle(run.folder / "releases" / site["site"]).manifest.records == 2 * site["train"]


SHARED = WARM, "flow.moments.noise=aggregator", "methods=[moments]"


def test_noise_that_sites_share_is_less_and_the_claim_is_against_recipients_alone(public, tmp_path):
    run = completed(tmp_path, *SHARED)
    row = run.json("summary.json")["methods"]["moments"]
    assert (row["guarantee"], row["against"]) == ("end-to-end", "recipients")
    assert 2.9 < row["epsilon"] <= 3.0
    privacy = run.json("privacy.json")
    assert "the aggregator, which sees more, is trusted" in privacy["statement"]
    for account in privacy["methods"]["moments"]["sites"].values():
        centre, moments = events_from_json(account["spent"])
        assert centre.shares == moments.shares == 2  # every site sees what the sum makes, and knows its own share
        assert moments.share_std == pytest.approx(moments.noise_std / 2**0.5)
    own = events_from_json(next(iter(public.json("privacy.json")["methods"]["moments"]["sites"].values()))["spent"])
    assert own[1].noise_std == pytest.approx(moments.noise_std)


def test_noise_is_shared_by_three_sites_or_more_and_by_all_of_them(plain):
    with pytest.raises(ConfigError, match="three at least"):
        build_methods(load_study(ROOT / "configs" / "quickstart.yaml", [*SHARED, "sites.count=2", "sites.names=null"]))
    run = Run(plain, *SHARED)
    run.grid.fail[(11, MOMENTS)] = "crash"
    with pytest.raises(FederationError, match="needs 3 sites"):
        run.go()


def test_a_site_whose_policy_trusts_no_aggregator_shares_no_noise(plain):
    policy = "{population: x, unit: record, epsilon: 3.0, delta: 1.0e-5, labels: covered, review: false}"
    study = load_study(ROOT / "configs" / "quickstart.yaml", [*SHARED, "noise=entropy", f"sites.policy={policy}"])
    with pytest.raises(AggregatorError):
        check_study(study)

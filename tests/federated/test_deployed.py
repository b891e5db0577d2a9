"""A study over real sites: the server's code and real `Site`s with durable ledgers, over a Grid in memory."""

import contextlib
import json
from collections import Counter

import pytest
from flwr.app import Error, Message

from cadp_fl.errors import ConfigError, FederationError, InputError
from cadp_fl.federated import flower_server, releases, workflow
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.claims import CLASSIFIER_WEIGHTS
from cadp_fl.privacy.events import events_from_json
from cadp_fl.privacy.plan import Allowance, Plan
from cadp_fl.release.bundle import open_bundle
from cadp_fl.site.protocol import ACTIONS
from cadp_fl.site.reply_store import ReplyStore
from tests.federated.test_workflow import Killed
from tests.hospitals import Hospitals

SITES = ("north", "east", "south")
DP_SGD = "methods={dp-sgd: {model: linear, rounds: 4, local_steps: 1, sampling_rate: 0.5, learning_rate: 2.0}}"
NOISED = "evaluation={metrics: noised, epsilon: 2.0, delta: 1.0e-4}"
TRAIN, MOMENTS, RELEASE, FETCH, EVALUATE, ACCOUNT, RESERVE = (
    ACTIONS[action] for action in ("train_classifier", "moments", "release", "fetch", "evaluate", "account", "reserve")
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(flower_server, "JOIN_SECONDS", 0.0)
    monkeypatch.setattr(flower_server, "DEPLOYED_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(workflow, "new_run", lambda name: f"{name}-0011223344556677")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "new_run", lambda name: f"{name}-0011223344556677")
        hospitals = Hospitals(tmp_path_factory.mktemp("complete"))
        assert hospitals.go() == "complete"
    return hospitals


def written(hospitals, name="summary.json"):
    return json.loads((hospitals.folder / name).read_text())


def kill(hospitals, kind, nth, *, before=True):
    """Let the server die at the nth message of a kind: before it reaches its site, or when the site has answered."""
    answer, seen = hospitals.grid.app, Counter()

    def dying(message, context):
        seen[message.metadata.message_type] += 1
        fatal = message.metadata.message_type == kind and seen[kind] == nth
        if fatal and before:
            raise Killed
        reply = answer(message, context)
        if fatal:
            raise Killed
        return reply

    hospitals.grid.app = dying
    with pytest.raises(Killed):
        hospitals.go()
    hospitals.start()


def test_a_study_with_seeded_noise_over_real_sites_claims_nothing(complete):
    summary, privacy = written(complete), written(complete, "privacy.json")
    for name, row in summary["methods"].items():
        assert (row["guarantee"], row["epsilon"]) == ("none", None)
        assert "noise came from a seed" in privacy["methods"][name]["statement"]
        assert "had the noise not been seeded" in privacy["methods"][name]["statement"]
    assert summary["all_methods_together"]["epsilon"] is None
    for site in SITES:
        assert {plan.conditions.noise for plan in complete.ledger(site).plans()} == {"seeded"}


def test_a_study_over_real_sites_says_so_and_claims_what_all_its_methods_compose_to(tmp_path):
    complete = Hospitals(tmp_path, "noise=entropy")
    assert complete.go() == "complete"
    summary, privacy = written(complete), written(complete, "privacy.json")
    assert (summary["federation"], summary["simulation"], summary["missing"]) == ("lungs", False, [])
    assert (privacy["federation"], privacy["simulation"]) == ("lungs", False)
    rows = summary["methods"]
    assert [row["guarantee"] for row in rows.values()] == ["end-to-end", "end-to-end"]
    for name, entry in privacy["methods"].items():
        for account in entry["sites"].values():
            assert account["epsilon"] == epsilon_of(events_from_json(account["events"]), account["delta"])
            assert account["epsilon"] <= rows[name]["epsilon"]
    for site, both in privacy["all_methods_together"]["sites"].items():
        committed = complete.ledger(site).committed("train")
        assert (both["epsilon"], both["delta"]) == (committed.epsilon, committed.delta)
    statement = privacy["statement"]
    assert "All methods of this run were carried out on the same records: together epsilon 6.00" in statement
    assert "each site's ledger adds earlier runs too" in statement
    assert summary["all_methods_together"]["epsilon"] == pytest.approx(6.0, abs=1e-3)
    page = (complete.folder / "report.html").read_text()
    for wrong in ("simulation", "Originals", "if only that method had been run"):
        assert wrong not in statement.replace("simulations", "")
        assert wrong.lower() not in page.lower()
    assert not (complete.folder / "sites").exists()
    assert "simulation_only" not in (complete.folder / "metrics.jsonl").read_text()


def test_every_request_that_spends_names_the_run_and_the_round_once(complete):
    asked = [
        sent.content.config_records["cadp-request"]
        for sent in complete.grid.sent
        if sent.metadata.message_type in (TRAIN, MOMENTS, RELEASE, EVALUATE)
    ]
    assert {each["run"] for each in asked} == {"quickstart-0011223344556677"}
    assert set(Counter(each["id"] for each in asked).values()) == {3}


def test_a_node_of_another_name_is_never_asked_anything(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD, names=(*SITES, "west"))
    assert hospitals.go() == "complete"
    assert {sent.metadata.dst_node_id for sent in hospitals.grid.sent} == {10, 11, 12}
    assert set(hospitals.called) == set(SITES)


def test_a_site_that_calls_itself_otherwise_than_its_node_is_refused(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD)
    hospitals.says["north"] = "west"
    assert hospitals.go() == "incomplete"
    summary = written(hospitals)
    assert [site["site"] for site in summary["sites"]] == ["east", "south"]
    (gap,) = summary["missing"]
    assert (gap["site"], gap["phase"]) == ("north", "describe")
    assert "That of node 'north' says that it is 'west'" in gap["reason"]
    assert [sent.metadata.message_type for sent in hospitals.grid.sent if sent.metadata.dst_node_id == 10] == [
        ACTIONS["describe"]
    ]


def test_a_named_site_that_is_not_connected_is_missing_and_says_why(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD)
    hospitals.grid.offline.add(11)
    assert hospitals.go() == "incomplete"
    assert written(hospitals)["missing"] == [
        {"site": "east", "phase": "describe", "reason": "no node of that name is connected"}
    ]
    hospitals.start()
    hospitals.grid.offline |= {11, 12}
    hospitals.folder = tmp_path / "again"
    with pytest.raises(FederationError, match="east, south: no node of that name is connected"):
        hospitals.go()


def test_two_nodes_of_one_name_are_refused(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD, names=("north", "north", "east"))
    with pytest.raises(FederationError, match="Two that are registered as 'north'"):
        hospitals.go()
    assert not hospitals.grid.sent


def test_a_study_over_real_sites_names_them(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD, "sites.names=null")
    with pytest.raises(ConfigError, match=r"Found no sites\.names"):
        hospitals.go()
    assert not hospitals.folder.exists()


@pytest.mark.parametrize(
    ("kind", "nth", "before"),
    [(RESERVE, 2, False), (MOMENTS, 2, False), (MOMENTS, 5, True), (RELEASE, 2, False), (FETCH, 2, True),
     (EVALUATE, 2, True), (TRAIN, 3, False), (EVALUATE, 6, False), (ACCOUNT, 2, True), (ACCOUNT, 5, True)],
)  # fmt: skip
def test_a_run_that_is_resumed_spends_nothing_twice_and_ends_as_if_never_interrupted(
    complete, tmp_path, kind, nth, before
):
    hospitals = Hospitals(tmp_path)
    kill(hospitals, kind, nth, before=before)
    if kind != RESERVE:
        assert written(hospitals)["failure"] == "The run was interrupted."
    assert hospitals.go(resume=True) == "complete"
    ours, theirs = written(hospitals), written(complete)
    assert ours["methods"] == theirs["methods"]
    assert len(ours["resumed"]) == 1
    for site in SITES:
        assert hospitals.entries(site) == complete.entries(site), "its ledger holds the same, entry by entry"
        manifests = [open_bundle(each.folder / "releases" / site).manifest for each in (hospitals, complete)]
        assert manifests[0] == manifests[1]
    now, then = written(hospitals, "privacy.json"), written(complete, "privacy.json")
    for key in ("methods", "all_methods_together", "test_units"):
        assert now[key] == then[key]
    assert "so that it was not spent twice" in now["statement"]


def test_a_run_may_be_interrupted_again_and_again(complete, tmp_path):
    hospitals, resume = Hospitals(tmp_path), False
    for kind, nth in ((MOMENTS, 4), (RELEASE, 3), (EVALUATE, 2), (TRAIN, 5), (TRAIN, 6), (ACCOUNT, 2)):
        answer, seen = hospitals.grid.app, Counter()

        def dying(message, context, kind=kind, nth=nth, answer=answer, seen=seen):
            seen[message.metadata.message_type] += 1
            if message.metadata.message_type == kind and seen[kind] == nth:
                raise Killed
            return answer(message, context)

        hospitals.grid.app = dying
        with pytest.raises(Killed):
            hospitals.go(resume=resume)
        hospitals.start()
        resume = True
    assert hospitals.go(resume=True) == "complete"
    assert written(hospitals)["methods"] == written(complete)["methods"]
    assert all(hospitals.entries(site) == complete.entries(site) for site in SITES)


def test_a_site_whose_answer_was_not_used_is_not_asked_for_it_when_the_run_is_resumed(tmp_path):
    """Nor for what came before it was back: what the others were asked then did not depend on it."""
    hospitals = Hospitals(tmp_path, DP_SGD, "sites.timeout_seconds=0.2")
    hospitals.grid.fail[(11, TRAIN)] = "late-once"
    kill(hospitals, TRAIN, 8)
    assert hospitals.go(resume=True) == "incomplete"
    asked = [
        sent.content.config_records["cadp-request"]["id"].split("/", 1)[1]
        for sent in hospitals.grid.sent
        if sent.metadata.message_type == TRAIN and sent.metadata.dst_node_id == 11
    ]
    assert "dp-sgd/train/1" not in asked
    assert "dp-sgd/train/3" in asked
    summary = written(hospitals)
    assert {(gap["site"], gap["phase"], gap["reason"]) for gap in summary["missing"]} == {
        ("east", "dp-sgd/train", "did not answer in time")
    }
    spent = written(hospitals, "privacy.json")["methods"]["dp-sgd"]["sites"]["east"]["spent"]
    assert len(spent) == len(hospitals.ledger("east").spent("quickstart-0011223344556677/dp-sgd"))


def test_what_a_crash_at_a_site_lost_is_paid_for_again_and_stands_in_the_accounts(tmp_path, monkeypatch):
    hospitals, original, calls = (
        Hospitals(tmp_path, DP_SGD, "noise=entropy", "budget.retry_reserve=0.7"),
        ReplyStore.store,
        Counter(),
    )

    def crashing(answers, request, reply):
        calls[request] += 1
        if request.endswith("dp-sgd/train/2") and calls[request] == 2:
            raise Killed
        return original(answers, request, reply)

    monkeypatch.setattr(ReplyStore, "store", crashing)
    with pytest.raises(Killed):
        hospitals.go()
    monkeypatch.undo()
    hospitals.start()
    assert hospitals.go(resume=True) == "complete"
    account = written(hospitals, "privacy.json")["methods"]["dp-sgd"]["sites"]
    steps = {site: sum(event["steps"] for event in account[site]["spent"]) for site in SITES}
    assert sorted(steps.values()) == [4, 4, 5]
    assert {each["epsilon"] for each in account.values()} == {account["east"]["epsilon"]}
    assert account["east"]["epsilon"] == pytest.approx(3.0, abs=0.01)
    assert account["east"]["retry_reserve"]["epsilon"] == pytest.approx(2.1)


def test_a_run_waits_for_the_sites_whose_answers_it_used(tmp_path, complete):
    hospitals = Hospitals(tmp_path)
    kill(hospitals, TRAIN, 4)
    hospitals.grid.offline.add(11)
    with pytest.raises(FederationError, match=r"That of 'east' in 'dp-sgd/train', round 1, does not come again"):
        hospitals.go(resume=True)
    summary = written(hospitals)
    assert summary["methods"]["cadp"] == written(complete)["methods"]["cadp"], (
        "a method that had ended keeps its figures"
    )
    account = written(hospitals, "privacy.json")["methods"]["cadp"]["sites"]["east"]
    assert account["spent"] == written(complete, "privacy.json")["methods"]["cadp"]["sites"]["east"]["spent"]
    hospitals.start()
    assert hospitals.go(resume=True) == "complete"
    assert written(hospitals)["methods"] == written(complete)["methods"]
    assert all(hospitals.entries(site) == complete.entries(site) for site in SITES)


def test_a_site_that_did_not_take_part_at_first_does_not_join_a_run_that_is_resumed(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD)
    hospitals.grid.offline.add(11)
    kill(hospitals, TRAIN, 4)
    assert hospitals.go(resume=True) == "incomplete"
    assert 11 not in {sent.metadata.dst_node_id for sent in hospitals.grid.sent}
    assert [gap["site"] for gap in written(hospitals)["missing"]] == ["east"]
    assert len(written(hospitals, "privacy.json")["methods"]["dp-sgd"]["sites"]) == 2


def test_a_site_whose_records_changed_does_not_go_on_with_a_run(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD)
    kill(hospitals, TRAIN, 1)
    hospitals.dealt[1] = hospitals.dealt[0]
    assert hospitals.go(resume=True) == "incomplete"
    (gap,) = written(hospitals)["missing"]
    assert gap["site"] == "east"
    assert "Of 'east' " in gap["reason"]
    assert f"train is {len(hospitals.dealt[0].train)} now and was " in gap["reason"]
    assert "bring the earlier records and policy back" in gap["reason"]


def test_a_run_is_resumed_over_the_federation_that_it_began_with(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD)
    kill(hospitals, TRAIN, 1)
    workflow_over = flower_server.Workflow(hospitals.study, hospitals.folder, resume=True, federation="hearts")
    with pytest.raises(InputError, match="began over the federation 'lungs', and is to go on over the federation"):
        workflow_over.run(hospitals.grid, None)


def test_a_server_that_is_killed_leaves_what_is_known_by_then(tmp_path):
    hospitals, left = Hospitals(tmp_path), []
    answer = hospitals.grid.app

    def looking(message, context):
        if message.metadata.message_type == TRAIN:
            left.append((written(hospitals), written(hospitals, "privacy.json")))
        return answer(message, context)

    hospitals.grid.app = looking
    assert hospitals.go() == "complete"
    summary, privacy = left[0]
    assert (summary["status"], list(summary["methods"])) == ("incomplete", ["cadp"])
    assert summary["failure"] == "The run is going on, or stopped, after 'cadp'."
    assert all(account["spent"] for account in privacy["methods"]["cadp"]["sites"].values())


@pytest.mark.parametrize(
    ("how", "said"), [("gone", "its SuperNode is gone or offline"), ("killed", "its client process was killed")]
)
def test_who_died_is_named(tmp_path, how, said):
    hospitals = Hospitals(tmp_path, DP_SGD)
    hospitals.grid.fail[(11, TRAIN)] = how
    assert hospitals.go() == "incomplete"
    (gap,) = written(hospitals)["missing"]
    assert gap["reason"].startswith(said)
    assert "42" not in json.dumps(gap)


def test_what_left_unprotected_leaves_no_other_method_of_the_run_end_to_end(tmp_path):
    methods = DP_SGD.replace("methods={", "methods={fedavg: {rounds: 1, local_epochs: 1, model: linear}, ")
    hospitals = Hospitals(tmp_path, methods, NOISED, "noise=entropy")
    assert hospitals.go() == "complete"
    row = written(hospitals)["methods"]["dp-sgd"]
    assert (row["guarantee"], row["epsilon"]) == ("none", None)
    privacy = written(hospitals, "privacy.json")
    said = privacy["methods"]["dp-sgd"]["statement"]
    assert (
        "NO end-to-end guarantee. Of the same records this left the sites unprotected, by this method or another"
        in said
    )
    assert "weights of a classifier trained without differential privacy" in said
    assert "By itself the method costs (3.00, 1e-05)" in said
    assert "there is no bound (each site's ledger adds earlier runs too)" in privacy["statement"]
    assert privacy["test_units"]["methods"]["dp-sgd"]["sites"]["east"]["epsilon"] == pytest.approx(2.0, abs=1e-3)
    assert written(hospitals)["all_methods_together"]["epsilon"] is None


def test_a_run_waits_until_a_steward_has_approved_a_release(tmp_path, monkeypatch):
    hospitals, pauses = Hospitals(tmp_path, review=True), []

    def pause(seconds):
        if seconds > 1:
            pauses.append(seconds)
            name = SITES[len(pauses) - 1]
            (staged,) = hospitals.review(name).staged()
            hospitals.review(name).decide(staged.manifest.event_id, "approved")

    monkeypatch.setattr(releases.time, "sleep", pause)
    assert hospitals.go() == "complete"
    assert pauses == [10.0] * 3
    waits = [step for step in hospitals.steps if step["step"] == "wait"]
    assert [(step["site"], step["reason"]) for step in waits] == [
        (site, "waits for its steward's approval") for site in sorted(SITES)
    ]
    assert not any("failed" in step for step in hospitals.steps)


def test_a_run_that_waited_in_vain_names_the_sites_and_goes_on_when_it_is_resumed(tmp_path, complete):
    hospitals = Hospitals(tmp_path, "sites.review_timeout_seconds=0", review=True)
    with pytest.raises(FederationError, match="the site's steward has not approved the release"):
        hospitals.go()
    for name in SITES:
        (staged,) = hospitals.review(name).staged()
        hospitals.review(name).decide(staged.manifest.event_id, "approved")
    hospitals.start()
    assert hospitals.go(resume=True) == "complete"
    assert written(hospitals)["methods"] == written(complete)["methods"]
    assert written(hospitals)["missing"] == []


def test_what_an_earlier_run_let_go_unprotected_leaves_no_later_one_an_end_to_end_claim(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD, "noise=entropy")
    hospitals.site("north")
    ledger = hospitals.ledger("north")
    ledger.reserve(Plan("fedavg", (CLASSIFIER_WEIGHTS,), 1e-6, run="earlier"), Allowance(100.0, 0.1))
    ledger.spend("earlier/fedavg", CLASSIFIER_WEIGHTS)
    assert hospitals.go() == "complete"
    (row,) = written(hospitals)["methods"].values()
    assert (row["guarantee"], row["epsilon"]) == ("none", None)
    (entry,) = written(hospitals, "privacy.json")["methods"].values()
    assert CLASSIFIER_WEIGHTS.what in entry["statement"]
    assert entry["sites"]["north"]["epsilon"] is None
    assert entry["sites"]["east"]["epsilon"] == pytest.approx(3.0, abs=1e-3)


def _fedavg_beside(tmp_path):
    return Hospitals(tmp_path, DP_SGD, "noise=entropy", "methods={dp-sgd: {rounds: 1}, fedavg: {rounds: 2}}")


def test_while_a_method_without_privacy_goes_on_none_beside_it_is_said_to_be_end_to_end(tmp_path):
    hospitals = _fedavg_beside(tmp_path)
    kill(hospitals, TRAIN, 5)  # in the first round of fedavg: weights have left
    assert written(hospitals)["methods"]["dp-sgd"]["guarantee"] == "none"
    assert written(hospitals, "privacy.json")["methods"]["dp-sgd"]["guarantee"] == "none"
    assert hospitals.go(resume=True) == "complete"
    assert written(hospitals)["methods"]["dp-sgd"]["guarantee"] == "none"
    assert written(hospitals)["all_methods_together"]["epsilon"] is None


@pytest.mark.parametrize("silent", [(11,), (10, 11, 12)])
def test_a_site_that_reports_no_account_is_taken_to_have_done_all_that_it_reserved(tmp_path, silent):
    hospitals = _fedavg_beside(tmp_path)
    answer, seen = hospitals.grid.app, Counter()

    def failing(message, context):
        node = message.metadata.dst_node_id
        seen[node, message.metadata.message_type] += 1
        if node in silent and message.metadata.message_type == ACCOUNT and seen[node, ACCOUNT] > 1:
            return Message(Error(code=1, reason="gone"), reply_to=message)
        return answer(message, context)

    hospitals.grid.app = failing
    with contextlib.suppress(FederationError):
        hospitals.go()
    sites = written(hospitals, "privacy.json")["methods"]["dp-sgd"]["sites"]
    assert {name: entry["epsilon"] for name, entry in sites.items()} == dict.fromkeys(SITES)


def test_a_site_remembers_that_records_of_a_release_left(complete):
    for site in SITES:
        assert [each.left for each in complete.review(site).staged()] == [True]


def _stricter(hospitals, name, **policy):
    """Give one site a stricter policy than the others."""
    others = hospitals.policy
    hospitals.policy = others.model_copy(update=policy)
    hospitals.site(name)
    hospitals.policy = others


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        ({"epsilon": 2.0}, 311),
        ({"epsilon": 5.0}, 311),
        ({"delta": 1.5e-5}, 311),
        ({"evaluation": None}, 317),
        ({"min_units": 10_000}, 315),
    ],
    ids=["one method", "both together", "delta of both", "evaluations", "cohort"],
)
def test_a_refusal_that_stops_a_run_leaves_nothing_reserved_at_the_others(tmp_path, policy, code):
    hospitals = Hospitals(tmp_path, "sites.quorum=3")
    _stricter(hospitals, "east", **policy)
    with pytest.raises(FederationError, match=rf"Phase 'reserve' needs 3 sites .*east: .*\(code {code}\)"):
        hospitals.go()
    assert all(hospitals.reserved(site) == () for site in SITES)
    assert {sent.metadata.message_type for sent in hospitals.grid.sent} == {ACTIONS["describe"]}
    summary, privacy = written(hospitals), written(hospitals, "privacy.json")
    assert [gap["site"] for gap in summary["missing"]] == ["east"]
    assert all(method["sites"] == {} for method in privacy["methods"].values())
    assert "left the sites" not in privacy["statement"]


def test_a_refusal_above_the_quorum_stops_no_run(tmp_path):
    hospitals = Hospitals(tmp_path, DP_SGD)
    _stricter(hospitals, "east", epsilon=2.0)
    assert hospitals.go() == "incomplete"
    assert hospitals.reserved("east") == ()
    assert all(hospitals.reserved(site) for site in ("north", "south"))


def test_what_is_just_enough_for_all_methods_is_not_refused_before(tmp_path, complete):
    """The check adds the plans up as the ledger will, to the last bit or a little more."""
    both = complete.ledger("east").committed("train")
    hospitals = Hospitals(tmp_path, "sites.quorum=3")
    _stricter(hospitals, "east", epsilon=both.epsilon, delta=both.delta)
    assert hospitals.go() == "complete"


def test_asking_what_would_be_refused_writes_nothing_and_says_a_number_alone(tmp_path):
    hospitals = Hospitals(tmp_path, "sites.quorum=3")
    _stricter(hospitals, "east", epsilon=2.0)
    with pytest.raises(FederationError):
        hospitals.go()
    (crossed,) = [
        json.loads(reply.content.config_records["cadp-json"]["json"])
        for reply in hospitals.grid.replies
        if '"refuses"' in reply.content.config_records["cadp-json"]["json"]
    ]
    assert crossed["refuses"] == 311
    assert "policy" not in json.dumps(crossed)
    assert "stay within the policy's epsilon 2" in hospitals.site("east").objection

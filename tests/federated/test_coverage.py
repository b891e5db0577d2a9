"""Studies that cover labels, and studies whose unit is a patient, over a Grid in memory."""

import json

import numpy as np
import pytest

from cadp_fl.errors import ConfigError, FederationError, TotalBudgetError, UnprotectedModelError
from cadp_fl.privacy.claims import claim_of
from cadp_fl.privacy.events import GaussianHistogram, RandomizedResponse, events_from_json
from cadp_fl.privacy.plan import Plan
from cadp_fl.release.bundle import open_bundle
from cadp_fl.site.protocol import ACTIONS
from cadp_fl.study.run import check_study
from tests.federated.test_workflow import Run

SITES = ("north", "east", "south")


def write_patients(path):
    """Write a file of 8 x 8 images of two classes: 90 patients to train on with 1 to 5 records each, 30 to test on."""
    generator = np.random.default_rng(0)
    named = {}
    for split, first, count in (("train", 0, 70), ("val", 100, 20), ("test", 200, 30)):
        records = generator.integers(1, 6, count)
        patients = np.repeat(np.arange(first, first + count), records)
        labels = np.repeat(generator.integers(0, 2, count), records)
        images = (
            generator.integers(0, 120, (len(patients), 8, 8), dtype=np.uint8)
            + (100 * labels).astype(np.uint8)[:, None, None]
        )
        named |= {
            f"{split}_images": images,
            f"{split}_labels": labels[:, None].astype(np.uint8),
            f"{split}_patients": patients,
        }
    np.savez_compressed(path, **named)
    return path


@pytest.fixture(scope="module")
def covered(tmp_path_factory):
    from tests.conftest import ROOT, TINY

    settings = [f"{key}={value}" for key, value in TINY.items()]
    run = Run(
        {
            "config": str(ROOT / "configs" / "quickstart.yaml"),
            "output-dir": str(tmp_path_factory.mktemp("covered") / "out"),
            "set": "; ".join([*settings, "release.labels=covered", "evaluation.every=5"]),
        }
    )
    check_study(run.study)
    assert run.go() == "complete"
    return run


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    from tests.conftest import ROOT, TINY

    folder = tmp_path_factory.mktemp("patients")
    settings = [f"{key}={value}" for key, value in TINY.items()]
    settings += [
        "data={source: medmnist}",
        f"data.path={write_patients(folder / 'clinic.npz')}",
        "sites.partition={kind: iid, min_records: 20}",
        "budget={epsilon: 3, delta: 1.0e-4, unit: patient, records_per_patient: 2}",
        "methods={cadp-given-flow: {}, dp-sgd: {model: linear, rounds: 2}}",
    ]
    run = Run(
        {
            "config": str(ROOT / "configs" / "quickstart.yaml"),
            "output-dir": str(folder / "out"),
            "set": "; ".join(settings),
        }
    )
    check_study(run.study)
    assert run.go() == "complete"
    return run


def plans(run):
    for method, entry in run.json("privacy.json")["methods"].items():
        for account in entry["sites"].values():
            yield method, account


def test_the_relation_of_covered_labels_is_to_replace_a_record(covered):
    summary, privacy = covered.json("summary.json"), covered.json("privacy.json")
    assert summary["relation"] == privacy["relation"] == "replace one record"
    assert summary["labels"] == "covered"
    assert "keep its label" not in json.dumps(privacy)
    assert "Labels are covered" in privacy["statement"]
    for site in SITES:
        manifest = open_bundle(covered.folder / "releases" / site).manifest
        assert manifest.claim.relation == "replace one record"
        assert manifest.parameters.label_epsilon == pytest.approx(0.6)


def test_labels_and_counts_have_their_share_and_nothing_is_above_the_budget(covered):
    for method, account in plans(covered):
        events = events_from_json(account["events"])
        claim = claim_of(Plan(method, events, account["delta"], labels="covered"))
        spent = claim.epsilon if claim.epsilon is not None else claim.epsilon_if_flow_were_fixed
        if method == "fedavg":
            assert spent is None
            continue
        assert 0.98 * 3.0 <= spent <= 3.0
        assert any(isinstance(event, GaussianHistogram) for event in events)
        assert any(isinstance(event, RandomizedResponse) for event in events) == (method == "cadp-given-flow")
        assert {each["stage"] for each in account["spent"]} == {event.stage for event in events}


def test_no_exact_class_count_and_no_true_label_crosses(covered):
    """What describes a site names no class; counts are noised; labels of a release are drawn at random."""
    site_of = {10: "north", 11: "east", 12: "south"}
    received = {}
    for sent, reply in zip(covered.grid.sent, covered.grid.replies, strict=True):
        content = json.loads(reply.content.config_records["cadp-json"]["json"])
        node = site_of[sent.metadata.dst_node_id]
        if sent.metadata.message_type == ACTIONS["describe"]:
            assert content["class_counts"] is None
        elif sent.metadata.message_type == ACTIONS["count"]:
            received.setdefault(node, []).append(content["class_counts"])
    assert set(received) == set(SITES)
    for counts in received.values():
        assert len(counts) == 2  # one for each method that is protected, each with noise of its own
        assert counts[0] != counts[1]
        assert all(isinstance(count, int) for each in counts for count in each.values())
    for site in covered.json("summary.json")["sites"]:
        assert site["class_counts"] is site["classes"] is None
        assert set(site["noised_class_counts"]) == set("0123456789")


def test_released_labels_are_shown_and_empty_classes_are_named(covered):
    release = covered.json("summary.json")["methods"]["cadp-given-flow"]["release"]
    assert set(release["released_labels"]) == set(SITES)
    assert release["classes_without_records"] == []
    page = (covered.folder / "report.html").read_text()
    assert "a label by randomized response, of epsilon 0.6, and is decoded under that one" in page


def test_a_class_without_a_released_record_is_reported(run_config):
    """A site is lost that alone held some classes."""
    run = Run(run_config, "sites.partition={kind: label, classes_per_site: 4}", "methods={cadp-given-flow: {}}")
    run.grid.fail[10, ACTIONS["release"]] = "crash"
    assert run.go() == "incomplete"
    sites = {site["site"]: set(site["classes"]) for site in run.json("summary.json")["sites"]}
    lost = sites["north"] - sites["east"] - sites["south"]
    release = run.json("summary.json")["methods"]["cadp-given-flow"]["release"]
    assert lost
    assert set(release["classes_without_records"]) == lost
    assert (
        f"No record of {', '.join(sorted(lost))} was released by any site" in (run.folder / "report.html").read_text()
    )


def test_patients_are_counted_and_each_yields_as_many_records(patients):
    summary = patients.json("summary.json")
    assert summary["unit"] == "patient"
    assert summary["relation"] == "replace one patient, keep the labels of its records"
    assert sum(site["train"] for site in summary["sites"]) == 90
    for site in summary["sites"]:
        manifest = open_bundle(patients.folder / "releases" / site["site"]).manifest
        assert manifest.records == 2 * site["train"]
        assert manifest.parameters.records_per_unit == 2
        assert sum(site["class_counts"].values()) == 2 * site["train"]


def test_what_patients_cost_is_within_the_budget_and_counts_all_their_records(patients):
    for method, account in plans(patients):
        (release,) = [event for event in account["events"] if event["stage"] in ("release", "classifier")]
        if method == "cadp-given-flow":
            assert release["records_per_unit"] == 2
        claim = account["epsilon"] if account["epsilon"] is not None else account["epsilon_if_flow_were_fixed"]
        assert 0.98 * 3.0 <= claim <= 3.0
    statement = patients.json("privacy.json")["statement"]
    assert "Each patient contributes exactly 2 records" in statement
    assert "Patients as such" not in statement


POLICY = "{population: p, unit: record, epsilon: 3, delta: 1.0e-5, labels: public, seeded_noise: true, review: false"


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ("", "without differential privacy"),
        (", unprotected: true, epsilon: 2.9", "All plans together stay within"),
        (", unprotected: true, mechanisms: [laplace]", "mechanism that the policy names: laplace"),
        (", unprotected: true, min_units: 5000", "takes part with 5000 training units"),
        (", unprotected: true, seeded_noise: false", "Noise comes from the operating system"),
        (", unprotected: true, min_class_units: 400", "min_class_units"),
    ],
)
def test_a_policy_that_a_simulation_states_refuses_and_the_researcher_hears_of_it(run_config, rules, reason):
    policy = (POLICY + rules + "}").replace("epsilon: 3, ", "" if "epsilon: 2.9" in rules else "epsilon: 3, ")
    for name in ("seeded_noise: true, ",):
        policy = policy.replace(name, "" if "seeded_noise: false" in rules else name)
    run = Run(run_config, f"sites.policy={policy}", "methods={cadp-given-flow: {}}")
    with pytest.raises(FederationError, match=reason):
        run.go()
    summary = run.json("summary.json")
    assert summary["status"] == "incomplete"
    assert reason.split(":")[0] in json.dumps(summary)


def test_a_policy_that_allows_the_study_lets_it_run(run_config):
    policy = POLICY + ", unprotected: true, min_class_units: 0}"
    run = Run(run_config, f"sites.policy={policy}", "methods={cadp-given-flow: {}}")
    assert run.go() == "complete"


def test_a_simulation_has_no_steward(run_config):
    run = Run(run_config, f"sites.policy={POLICY.replace('review: false', 'review: true')}}}")
    with pytest.raises(ConfigError, match="waits for a steward"):
        check_study(run.study)


def test_what_every_site_refused_is_said_not_to_have_left(run_config):
    run = Run(run_config, f"sites.policy={POLICY}}}")
    with pytest.raises(FederationError, match=r"east, north, south: Nothing leaves .* \(code 313\)"):
        run.go()
    privacy = run.json("privacy.json")
    refused = privacy["methods"]["cadp-given-flow"]
    assert (refused["guarantee"], refused["sites"]) == (None, {})
    assert "cadp-given-flow: was not run" in privacy["statement"]
    assert "left the sites" not in privacy["statement"]
    assert "Nothing was given out about test records" in privacy["statement"]
    assert all(both["epsilon"] == 0 for both in privacy["all_methods_together"]["sites"].values())
    assert "was not run" in (run.folder / "report.html").read_text()


def test_a_study_is_held_against_its_sites_policy_before_it_starts(run_config):
    with pytest.raises(UnprotectedModelError):
        check_study(Run(run_config, f"sites.policy={POLICY}}}").study)
    over = (POLICY + ", unprotected: true, min_class_units: 0}").replace("epsilon: 3", "epsilon: 2.9")
    with pytest.raises(TotalBudgetError, match=r"ask for at most 2\.9"):
        check_study(Run(run_config, f"sites.policy={over}").study)

"""A release by hand of a real site: its policy is asked, and its ledger counts, across calls."""

import numpy as np
import pytest

from cadp_fl.errors import (
    CohortError,
    InputError,
    LedgerError,
    MechanismError,
    SeededNoiseError,
    TotalBudgetError,
    UnprotectedModelError,
)
from cadp_fl.flow.storage import flow_sha256, load_flow
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions

POLICY = "population: ward-3\nunit: {unit}\nepsilon: 3.0\ndelta: 1.0e-3\nlarge_delta: true\nmin_units: 50\n{more}"


@pytest.fixture
def at_site(tmp_path, flow_file):
    """Return a function that sets a site up, and returns the options of a release there."""

    def options(more="labels: public\n", unit="record", m=1, **changes):
        policy, ledger = tmp_path / "policy.yaml", tmp_path / "ledger.db"
        trusted = f"public_flows: [{flow_sha256(load_flow(flow_file('public'))[0])}]\n"
        policy.write_text(POLICY.format(more=more, unit=unit) + (trusted if "public_flows" not in more else ""))
        if not ledger.exists():
            DurableLedger.create(ledger, population="ward-3", unit=unit, records_per_unit=m)
        given = {"epsilon": 1.4, "delta": 1e-4, "clip_norm": 4.0, "policy": policy, "ledger": ledger}
        return ReleaseOptions(**given | changes)

    return options


def opened(tmp_path):
    return DurableLedger.as_found(tmp_path / "ledger.db")


def test_a_release_is_written_down_and_the_next_one_adds(scans, flow_file, tmp_path, at_site):
    made = make_release(flow_file("public"), scans, tmp_path / "a", at_site())
    assert made.manifest.claim.guarantee == "end-to-end"
    assert "All plans of the ledger together: epsilon 1.40 of the policy's 3 and delta 0.0001" in made.composition
    made = make_release(flow_file("public"), scans, tmp_path / "b", at_site())
    assert "epsilon 2.80 of the policy's 3" in made.composition
    with pytest.raises(TotalBudgetError, match="All plans together stay within"):
        make_release(flow_file("public"), scans, tmp_path / "c", at_site())
    assert not (tmp_path / "c").exists()
    assert len(opened(tmp_path).plans()) == 2
    assert made.manifest.noise == "entropy"
    assert (tmp_path / "a" / "manifest.json").read_bytes() != (tmp_path / "b" / "manifest.json").read_bytes()


@pytest.mark.parametrize(
    ("more", "flow", "changes", "error"),
    [
        ("labels: public\n", "private", {}, UnprotectedModelError),
        ("labels: public\n", "public", {"noise": "seeded", "seed": 1}, SeededNoiseError),
        ("labels: public\nmechanisms: [laplace]\n", "public", {}, MechanismError),
        ("labels: public\nmin_class_units: 41\n", "public", {}, CohortError),
        ("labels: public\nclass_counts: {ill: 3}\n", "public", {}, CohortError),
        ("labels: public\n", "public", {"records_per_patient": 2}, InputError),
        ("labels: public\n", "public", {"ledger": None}, InputError),
        ("labels: public\npublic_flows: []\n", "public", {}, UnprotectedModelError),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_and_spends_nothing(
    scans, flow_file, tmp_path, at_site, more, flow, changes, error
):
    options = at_site(more, **changes)
    with pytest.raises(error):
        make_release(flow_file(flow), scans, tmp_path / "a", options)
    ledger = opened(tmp_path)
    assert not any(ledger.spent(plan.key) for plan in ledger.plans())
    assert not (tmp_path / "a").exists()


def test_laplace_noise_spends_no_delta_of_the_ledger(scans, flow_file, tmp_path, at_site):
    options = at_site("labels: public\nmin_class_units: 0\n", delta=None, mechanism="laplace")
    made = make_release(flow_file("public"), scans, tmp_path / "a", options)
    assert (made.manifest.claim.epsilon, made.manifest.claim.delta) == (pytest.approx(1.4), 0.0)
    (plan,) = opened(tmp_path).plans()
    assert (plan.delta, plan.epsilon()) == (0.0, pytest.approx(1.4))
    with pytest.raises(InputError, match="Found no --delta"):  # noised counts come first, which have one
        make_release(flow_file("public"), scans, tmp_path / "b", at_site(delta=None, mechanism="laplace"))


def test_covered_labels_are_the_policys_choice(scans, flow_file, tmp_path, at_site):
    made = make_release(flow_file("public"), scans, tmp_path / "a", at_site("min_class_units: 0\n"))
    assert made.manifest.claim.relation == "replace one record"
    assert made.manifest.parameters.label_epsilon == pytest.approx(0.2 * 1.4)
    (plan,) = opened(tmp_path).plans()
    assert [event.stage for event in plan.events] == ["flow", "labels", "release"]
    assert made.manifest.claim.epsilon == pytest.approx(1.4, rel=0.02)


def test_counts_that_their_noise_would_hide_are_refused_before_anything_is_spent(scans, flow_file, tmp_path, at_site):
    """Forty records of a class hide in noise of standard deviation 47."""
    with pytest.raises(InputError, match=r"give or take 142 at this budget\. With 80 units in 2 classes they cannot"):
        make_release(flow_file("public"), scans, tmp_path / "a", at_site("min_class_units: 1\n"))
    assert opened(tmp_path).plans() == ()


def test_counts_that_nobody_declared_are_noised_and_paid_for_before_they_are_looked_at(
    scans, flow_file, tmp_path, at_site, monkeypatch
):
    monkeypatch.setattr("cadp_fl.standalone.privatize.check_counts_can_show_classes", lambda *_: None)
    with pytest.raises(CohortError, match="What noised counts cost stays spent"):
        make_release(flow_file("public"), scans, tmp_path / "a", at_site("min_class_units: 40\n"))
    (plan,) = opened(tmp_path).plans()
    assert [event.stage for event in plan.events] == ["flow", "counts", "labels", "release"]
    assert [event.stage for event in opened(tmp_path).spent(plan.key)] == ["counts"]


def test_a_steward_is_told_of_review_and_of_patients_with_several_records(scans, flow_file, tmp_path, at_site):
    with np.load(scans) as stored:
        arrays = dict(stored)
    for number, split in enumerate(("train", "val", "test")):
        arrays[f"{split}_patients"] = np.arange(len(arrays[f"{split}_labels"])) // 2 + 100 * number
    np.savez_compressed(scans, **arrays)
    made = make_release(flow_file("public"), scans, tmp_path / "a", at_site())
    assert "look at the bundle before you hand it on" in made.composition
    assert "the claim is for one record" in made.caution
    assert not any("DP-SGD" in line for line in made.assumptions)
    assert any("Patients as such" in line for line in made.not_covered)


def test_an_unprotected_release_leaves_no_later_one_an_end_to_end_claim(scans, flow_file, tmp_path, at_site):
    """What a flow of private records reveals left with the first release."""
    make_release(flow_file("private"), scans, tmp_path / "a", at_site("labels: public\nunprotected: true\n"))
    made = make_release(flow_file("public"), scans, tmp_path / "b", at_site("labels: public\nunprotected: true\n"))
    assert made.manifest.claim.guarantee == "given-flow"
    assert "NO end-to-end guarantee. Of the same records this left the sites unprotected" in made.statement
    assert "no one has declared" not in made.statement
    assert "no bound, since this left unprotected" in made.composition


def test_another_populations_ledger_is_refused(scans, flow_file, tmp_path, at_site):
    options = at_site()
    options.policy.write_text(options.policy.read_text().replace("ward-3", "ward-4"))
    with pytest.raises(LedgerError, match="of one population"):
        make_release(flow_file("public"), scans, tmp_path / "a", options)


def test_patients_are_the_unit_where_the_policy_says_so(scans, flow_file, tmp_path, at_site):
    with np.load(scans) as stored:
        arrays = dict(stored)
    count = 0
    for split in ("train", "val", "test"):
        arrays[f"{split}_patients"] = np.arange(len(arrays[f"{split}_labels"])) // 2 + count
        count += 100
    np.savez_compressed(scans, **arrays)
    more = "labels: public\nrecords_per_patient: 3\nmin_class_units: 0\n".replace("min_units: 50", "")
    options = at_site(more, unit="patient", m=3)
    options.policy.write_text(options.policy.read_text().replace("min_units: 50", "min_units: 30"))
    made = make_release(flow_file("public"), scans, tmp_path / "a", options)
    assert made.manifest.records == 3 * 40
    assert made.manifest.claim.relation == "replace one patient, keep the labels of its records"


def test_a_studys_sites_have_no_policy_file(federation, tmp_path, at_site):
    flow = federation.folder / "models" / "flow.safetensors"
    options = at_site(site="north")
    with pytest.raises(InputError, match="a real site's"):
        make_release(flow, federation.folder / "config.yaml", tmp_path / "x", options)

"""A policy refuses by number, before anything is computed, and reveals nothing of the records."""

import pytest

from cadp_fl.config import PolicyConfig, load_policy
from cadp_fl.errors import (
    AggregatorError,
    CohortError,
    ConfigError,
    EvaluationError,
    LittleNoiseError,
    MadeFlowError,
    MechanismError,
    PolicyError,
    SeededNoiseError,
    UnitError,
    UnprotectedModelError,
)
from cadp_fl.privacy.claims import FLOW_WEIGHTS
from cadp_fl.privacy.events import (
    DeclaredPublic,
    GaussianHistogram,
    LatentGaussian,
    LatentLaplace,
    PoissonGaussian,
    RandomizedResponse,
)
from cadp_fl.privacy.mechanisms import RELEASED_RECORDS
from cadp_fl.privacy.plan import Plan
from cadp_fl.privacy.policy import check_class_counts, check_plan, open_policy
from tests.privacy.ledger_events import CENTRE, MOMENTS

PUBLIC = DeclaredPublic(stage="flow", what="a flow of public records", sha256="a" * 64)
RELEASE = LatentGaussian(stage="release", clip_norm=1.0, noise_std=8.0)
LABELS = RandomizedResponse(stage="labels", epsilon=0.5)
STEPS = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=5.0, sampling_rate=0.5, steps=10)
LOTTERY = STEPS.model_copy(update={"noise_std": 0.01, "sampling_rate": 4.9e-5, "steps": 1})
"""It costs epsilon 0.00 at delta 5e-5, and gives a record away whole where one is sampled."""
THIN = CENTRE.model_copy(update={"noise_std": 0.8 * CENTRE.clip_norm, "shares": 10})
"""Of which the site's own share of the noise is a quarter of C."""
SHARE = MOMENTS.model_copy(update={"shares": 3})
TABLE = GaussianHistogram(stage="evaluation", histograms=3, noise_std=5.0, times=4)


def policy(**changes):
    careful = {"population": "north-2026", "unit": "record", "epsilon": 3.0, "delta": 1e-5, "public_flows": ["a" * 64]}
    return PolicyConfig(**careful | changes)


def plan(*events, labels="covered", **changes):
    return Plan("m", events or (PUBLIC, LABELS, RELEASE), 1e-5, labels=labels, **changes)


def check(policy, plan, units=1000, noise="entropy"):
    check_plan(policy, plan, units=units, noise=noise)


def test_the_defaults_are_careful():
    made = policy()
    assert (made.labels, made.unprotected, made.seeded_noise, made.review) == ("covered", False, False, True)
    assert made.evaluation is None
    assert made.aggregator == "none"
    assert made.min_units >= 100
    assert "none" not in made.mechanisms


@pytest.mark.parametrize(
    ("error", "code", "rules", "asked", "site"),
    [
        (SeededNoiseError, 316, {}, plan(), {"noise": "seeded"}),
        (CohortError, 315, {"min_units": 1001}, plan(), {}),
        (UnprotectedModelError, 313, {}, plan(FLOW_WEIGHTS, LABELS, RELEASE), {}),
        (UnprotectedModelError, 313, {}, plan(LABELS, RELEASED_RECORDS), {}),
        (UnitError, 314, {}, plan(unit="patient"), {}),
        (UnitError, 314, {}, plan(labels="public"), {}),
        (UnitError, 314, {"labels": "public"}, plan(), {}),
        (UnitError, 314, {}, plan(PUBLIC, RELEASE), {}),
        (UnprotectedModelError, 313, {}, plan(LABELS, RELEASE), {}),
        (UnprotectedModelError, 313, {"public_flows": ("b" * 64,)}, plan(), {}),
        (
            UnitError,
            314,
            {"unit": "patient", "records_per_patient": 3},
            plan(STEPS, TABLE, unit="patient"),
            {},
        ),
        (MechanismError, 312, {"mechanisms": ("laplace",)}, plan(), {}),
        (
            MechanismError,
            312,
            {"mechanisms": ("gaussian",)},
            plan(PUBLIC, LABELS, LatentLaplace(stage="release", clip_norm=1.0, noise_scale=2.0)),
            {},
        ),
        (UnprotectedModelError, 313, {}, plan(TABLE.model_copy(update={"stage": "flow"}), LABELS, RELEASE), {}),
        (UnprotectedModelError, 313, {}, plan(CENTRE, LABELS, RELEASE), {}),
        (MadeFlowError, 321, {}, plan(FLOW_WEIGHTS, MOMENTS, LABELS, RELEASE), {}),
        (UnitError, 314, {"unit": "patient", "records_per_patient": 3}, plan(MOMENTS, unit="patient"), {}),
        (AggregatorError, 319, {}, plan(SHARE), {}),
        (MadeFlowError, 321, {}, plan(CENTRE, MOMENTS, LABELS, RELEASE), {}),
        (MadeFlowError, 321, {}, plan(STEPS.model_copy(update={"stage": "flow"}), LABELS, RELEASE), {}),
        (LittleNoiseError, 322, {}, plan(LOTTERY), {}),
        (LittleNoiseError, 322, {}, plan(CENTRE.model_copy(update={"noise_std": 0.29 * CENTRE.clip_norm})), {}),
        (LittleNoiseError, 322, {"aggregator": "trusted"}, plan(THIN), {}),
        (AggregatorError, 319, {"aggregator": "trusted"}, plan(MOMENTS.model_copy(update={"shares": 11})), {}),
        (UnprotectedModelError, 313, {"unprotected": True, "public_flows": ()}, plan(), {}),
        (AggregatorError, 319, {}, plan(CENTRE.model_copy(update={"shares": 3}), MOMENTS), {}),
        (EvaluationError, 317, {}, plan(TABLE, split="test"), {}),
    ],
)
def test_a_plan_beyond_the_policy_is_refused_by_number(error, code, rules, asked, site):
    with pytest.raises(error) as refused:
        check(policy(**rules), asked, **site)
    assert refused.value.code == code
    assert isinstance(refused.value, PolicyError)


def test_what_the_policy_allows_passes():
    check(policy(), plan())
    check(policy(), plan(STEPS))
    check(policy(), plan(CENTRE, MOMENTS))
    check(policy(made_flows=True), plan(CENTRE, MOMENTS, LABELS, RELEASE))
    check(policy(made_flows=True), plan(STEPS.model_copy(update={"stage": "flow"}), LABELS, RELEASE))
    check(policy(aggregator="trusted"), plan(SHARE))
    check(open_policy(labels="covered"), plan(SHARE))
    check(policy(labels="public", unprotected=True), plan(FLOW_WEIGHTS, RELEASE, labels="public"))
    check(policy(evaluation={"epsilon": 1.0, "delta": 1e-5, "count": 4}), plan(TABLE, split="test"))
    check(open_policy(), plan(FLOW_WEIGHTS, RELEASED_RECORDS, labels="public"), units=1, noise="seeded")


@pytest.mark.parametrize(
    ("rules", "counts"),
    [
        ({}, {"a": 9.9, "b": 500.0}),
        ({}, None),
        ({"class_counts": {"a": 5, "b": 500}}, {"a": 400.0, "b": 500.0}),
        ({"class_counts": {"a": 500}}, {"a": 500.0, "b": 500.0}),
    ],
)
def test_a_release_needs_units_of_each_class_by_declared_or_noised_counts(rules, counts):
    with pytest.raises(CohortError) as refused:
        check_class_counts(policy(**rules), counts, ("a", "b"))
    text = str(refused.value).replace("10 units", "").replace("min_class_units to 0", "")
    assert not any(digit in text for digit in "0123456789")


def test_enough_of_each_class_passes():
    check_class_counts(policy(), {"a": 10.0, "b": 500.0}, ("a", "b"))
    check_class_counts(policy(class_counts={"a": 10, "b": 20}), None, ("a", "b"))
    check_class_counts(policy(min_class_units=0), None, ("a", "b"))


def test_a_policy_file_is_read_as_it_stands(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("population: north\nunit: patient\nrecords_per_patient: 2\nepsilon: 3\ndelta: 1.0e-6\n")
    assert load_policy(path).records_per_unit == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("population: north\nunit: record\nepsilon: 3\ndelta: 1e-5\nreveiw: false", "Did you mean 'review'"),
        ("population: north\nunit: record\nepsilon: 3", "'policy.delta' is required"),
        ("population: north\nunit: patient\nepsilon: 3\ndelta: 1.0e-5", "records_per_patient is given"),
        ("- a", "A policy is a mapping"),
        ("a: [", "A policy is YAML"),
    ],
)
def test_a_wrong_policy_is_refused(tmp_path, text, sentence):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load_policy(path)
    with pytest.raises(ConfigError, match="Found none"):
        load_policy(tmp_path / "missing.yaml")


def test_a_patients_records_of_a_class_count_as_one_unit():
    rules = {"unit": "patient", "records_per_patient": 10, "min_class_units": 10}
    with pytest.raises(CohortError):
        check_class_counts(policy(**rules), {"a": 5000.0, "b": 90.0}, ("a", "b"))
    check_class_counts(policy(**rules), {"a": 5000.0, "b": 100.0}, ("a", "b"))
    check_class_counts(policy(**rules, class_counts={"a": 10}), None, ("a",))


@pytest.mark.parametrize("event", [STEPS, RELEASE, LABELS, CENTRE, MOMENTS])
def test_a_plan_on_test_units_holds_counts_alone(event):
    rules = policy(evaluation={"exact": True, "epsilon": 1.0, "delta": 1e-5})
    with pytest.raises(EvaluationError):
        check(rules, plan(TABLE, event, split="test"))


def test_a_table_on_test_units_counts_the_policys_records_of_a_patient():
    evaluation = {"epsilon": 1.0, "delta": 1e-5}
    rules = policy(unit="patient", records_per_patient=3, evaluation=evaluation)
    with pytest.raises(UnitError):
        check(rules, plan(TABLE, unit="patient", split="test"))
    check(rules, plan(TABLE.model_copy(update={"records_per_unit": 3}), unit="patient", split="test"))

"""Laws of calibration: whatever a study asks for, its plans spend no more than the budget, and next to all of it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cadp_fl.config import BudgetConfig, MomentsConfig
from cadp_fl.errors import ConfigError
from cadp_fl.privacy.accounting import calibrate_noise, epsilon_of
from cadp_fl.privacy.budget import CENTRE_SHARE, SPLIT, Budget
from cadp_fl.privacy.claims import FLOW_WEIGHTS, claim_of
from cadp_fl.privacy.events import DeclaredPublic, PoissonGaussian
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.mechanisms import mechanism_type

PUBLIC = DeclaredPublic(stage="flow", what="the flow", sha256="0" * 64)


@st.composite
def budgets(draw):
    """Draw what a study may spend, and what it says of labels."""
    unit = draw(st.sampled_from(["record", "patient"]))
    split = {"labels": draw(st.floats(0.01, 0.5)), "counts": draw(st.floats(0.01, 0.4))}
    config = BudgetConfig(
        epsilon=math.exp(draw(st.floats(math.log(0.05), math.log(20)))),
        delta=10 ** draw(st.floats(-8, -3)),
        unit=unit,
        records_per_patient=draw(st.integers(1, 10)) if unit == "patient" else None,
        split=draw(st.sampled_from([{}, split])),
        retry_reserve=draw(st.sampled_from([0.0, 0.1]) | st.floats(0, 0.9)),
    )
    return config, Budget.of(config, draw(st.sampled_from(["public", "covered"])))


@st.composite
def stages(draw):
    """Draw a method's main stage: given its budget, all of its events, calibrated."""
    clip_norm, kind = draw(st.floats(1e-3, 1e3)), draw(st.sampled_from(["gaussian", "laplace", "dp-sgd", "moments"]))
    rate, steps = draw(st.floats(0.01, 1.0)), draw(st.integers(1, 300))

    def release(budget):
        beside = (*budget.count_events(), *budget.label_events())
        mechanism = mechanism_type(kind).calibrated(
            clip_norm, budget.epsilon, budget.delta, records_per_unit=budget.records_per_unit, beside=beside
        )
        return PUBLIC, *beside, mechanism.event()

    def dp_sgd(budget):
        beside = budget.count_events()

        def events(std):
            return [*beside, PoissonGaussian(
                stage="classifier", clip_norm=clip_norm, noise_std=std, sampling_rate=rate, steps=steps
            )]  # fmt: skip

        return tuple(events(calibrate_noise(events, budget.epsilon, budget.delta, clip_norm=clip_norm)))

    weights = [draw(st.sampled_from([0.0, 0.25, 1.0, 2.0])) for _ in range(3)]

    def moments(budget):
        beside = budget.count_events()
        names = ("count_weight", "shared_weight", "class_weight")
        settings = MomentsConfig(**dict(zip(names, weights, strict=True)))
        return *beside, *budget.moments_events(settings, clip_norm, sharers=steps + 1, beside=beside)

    return {"dp-sgd": dp_sgd, "moments": moments}.get(kind, release)


def check_that_a_plan_spends_its_budget(drawn, stage):
    """Every figure is at most the budget's, to the last bit, and at least 0.98 of it."""
    config, budget = drawn
    events = stage(budget)
    plan = budget.plan("m", events)
    searched = epsilon_of(events, budget.delta, grid=1e-3)
    assert 0.98 * budget.epsilon <= searched <= budget.epsilon
    spent = epsilon_of(events, budget.delta)
    assert 0.98 * budget.epsilon <= spent <= searched
    claim = claim_of(plan)
    assert claim.epsilon == plan.epsilon() == spent + plan.retry.epsilon
    assert 0.98 * config.epsilon <= claim.epsilon <= config.epsilon
    assert claim.delta == plan.delta == config.delta
    assert budget.delta + plan.retry.delta == pytest.approx(config.delta, rel=1e-12)
    assert plan.retry.epsilon == pytest.approx(config.retry_reserve * config.epsilon)
    assert plan.epsilon(Relation.ADD_OR_REMOVE_ONE) <= claim.epsilon
    assert (plan.unit, plan.labels) == (config.unit, budget.labels)


@settings(max_examples=15)
@given(drawn=budgets(), stage=stages())
def test_a_plan_spends_no_more_than_its_budget_and_next_to_all_of_it(drawn, stage):
    check_that_a_plan_spends_its_budget(drawn, stage)


@pytest.mark.slow
@settings(max_examples=1000)
@given(drawn=budgets(), stage=stages())
def test_a_thousand_plans_spend_no_more_than_their_budgets(drawn, stage):
    check_that_a_plan_spends_its_budget(drawn, stage)


@pytest.mark.parametrize("m", [1, 5, 10])
def test_labels_and_counts_cost_their_shares_whatever_a_patient_has(m):
    config = BudgetConfig(
        epsilon=4.0, delta=1e-5, unit="patient", records_per_patient=m, split={"labels": 0.3}, retry_reserve=0.25
    )
    budget = Budget.of(config, "covered")
    assert epsilon_of(budget.label_events(), budget.delta) == pytest.approx(0.3 * 3.0)
    assert 0.98 * 0.05 * 3.0 <= epsilon_of(budget.count_events(), budget.delta) <= 0.05 * 3.0
    public = Budget.of(config, "public")
    assert public.label_events() == public.count_events() == ()


def mu(event, sensitivity):
    return event.records_per_unit * sensitivity / event.noise_std


@pytest.mark.parametrize("labels", ["public", "covered"])
def test_moments_cost_their_share_of_what_labels_and_counts_leave_and_a_release_fits_beside_them(labels):
    config = BudgetConfig(epsilon=4.0, delta=1e-5, unit="patient", records_per_patient=3, retry_reserve=0.25)
    budget = Budget.of(config, labels)
    centre, moments = events = budget.moments_events(MomentsConfig(), 0.3)
    share = 0.95 * 3.0 * (1.0 if labels == "public" else 0.75)
    assert budget.share("moments") == pytest.approx(share)
    assert 0.999 * share <= epsilon_of(events, budget.delta) <= share
    whole = mu(centre, 2.0) ** 2 + mu(moments, math.sqrt(2 * (0.25**2 + 0.7**2 + 0.3**2 + 1))) ** 2
    assert mu(centre, 2.0) ** 2 == pytest.approx(CENTRE_SHARE * whole)
    assert (centre.clip_norm, moments.clip_norm) == (1.0, 0.3)
    assert {event.stage for event in events} == {"moments"}
    beside = (*budget.count_events(), *budget.label_events(), *events)
    mechanism = mechanism_type("gaussian").calibrated(
        1.0, budget.epsilon, budget.delta, records_per_unit=3, beside=beside
    )
    claim = claim_of(budget.plan("m", (*beside, mechanism.event())))
    assert claim.guarantee == "end-to-end"
    assert 0.98 * 4.0 <= claim.epsilon <= 4.0
    assert claim.flow_made_of == ("gaussian-sum", "gaussian-moments")


def test_the_noise_of_moments_is_the_pinned_cases_in_other_units():
    """mu = 2 / 7.4612 is epsilon 1 at 1e-5; D = 2.5 at these weights."""
    budget = Budget.of(BudgetConfig(epsilon=1.0, delta=1e-5), "public")
    centre, moments = budget.moments_events(MomentsConfig(sum_weight=1, shared_weight=1), 0.3, beside=())
    assert moments.noise_std == pytest.approx(2.5 * 7.4612 / 2 / math.sqrt(0.95), rel=1e-4)
    assert centre.noise_std == pytest.approx(2 * 7.4612 / 2 / math.sqrt(0.05), rel=1e-4)


def test_a_split_leaves_something_to_the_last_stage():
    assert set(SPLIT) == {"labels", "counts", "moments", "flow"}
    Budget.of(BudgetConfig(epsilon=1.0, delta=1e-5, split={"labels": 0.5, "moments": 0.6, "flow": 0.3}), "covered")
    for split in ({"labels": 0.95}, {"moments": 0.8, "flow": 0.6}, {"flow": 0.4}):
        with pytest.raises(ConfigError, match="leaves a share"):
            Budget.of(BudgetConfig(epsilon=1.0, delta=1e-5, split=split), "covered")


def test_a_label_inside_of_a_message_takes_nothing_from_the_stages_before_it():
    split = {"labels": 0.6, "counts": 0.6}
    own = Budget.of(BudgetConfig(epsilon=1.0, delta=1e-5, split=split), "covered", is_labelled=True)
    assert own.share("moments") == pytest.approx(0.9 * 0.4)
    with pytest.raises(ConfigError, match="leaves a share"):
        Budget.of(BudgetConfig(epsilon=1.0, delta=1e-5, split=split), "covered")


def test_what_leaves_unprotected_reserves_nothing_to_leave_again():
    budget = Budget.of(BudgetConfig(epsilon=4.0, delta=1e-5, retry_reserve=0.25), "public")
    assert budget.plan("m", (PUBLIC, FLOW_WEIGHTS)).epsilon() == math.inf
    assert budget.plan("m", (PUBLIC, FLOW_WEIGHTS)).protected().epsilon() == 0


@settings(max_examples=300)
@given(epsilon=st.floats(1e-3, 100), delta=st.floats(1e-12, 0.1), reserve=st.floats(0, 0.9))
def test_a_reserve_lifts_no_budget_by_a_single_bit(epsilon, delta, reserve):
    budget = Budget.of(BudgetConfig(epsilon=epsilon, delta=delta, retry_reserve=reserve), "public")
    assert budget.epsilon + budget.retry.epsilon <= epsilon
    assert budget.epsilon == pytest.approx((1 - reserve) * epsilon)
    assert 0 < budget.delta <= delta

import pytest

from cadp_fl.errors import BudgetError
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.claims import UNNAMED_FLOW, claim_of, compose_plans, format_epsilon
from cadp_fl.privacy.events import (
    DeclaredPublic,
    GaussianHistogram,
    LatentGaussian,
    LatentLaplace,
    PoissonGaussian,
    Unprotected,
)
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.plan import Plan
from tests.privacy.ledger_events import CENTRE, MOMENTS

RELEASE = LatentGaussian(stage="release", clip_norm=1.0, noise_std=7.4612)
STEPS = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=5.0, sampling_rate=0.5, steps=10)
FLOW = Unprotected(stage="flow", what="weights of a flow")
PUBLIC = DeclaredPublic(stage="flow", what="a flow of public records", sha256="0" * 64)
LAPLACE = LatentLaplace(stage="release", clip_norm=1.0, noise_scale=2.0)
RECORDS = Unprotected(stage="release", what="records released without clipping or noise")
WEIGHTS = Unprotected(stage="classifier", what="weights of a classifier")


def steps(count, **changes):
    return STEPS.model_copy(update={"steps": count, **changes})


@pytest.fixture
def ledger():
    ledger = MemoryLedger()
    ledger.reserve(Plan("cadp", (FLOW, RELEASE), 1e-5))
    ledger.reserve(Plan("dp-sgd", (STEPS,), 1e-5))
    return ledger


def test_a_plan_is_spent_in_parts_and_no_further(ledger):
    assert [ledger.spend("dp-sgd", steps(4)) for _ in range(2)] == [
        "dp-sgd-classifier-1",
        "dp-sgd-classifier-2",
    ]
    with pytest.raises(BudgetError, match="An event must be in the plan"):
        ledger.spend("dp-sgd", steps(3))
    ledger.spend("dp-sgd", steps(2))
    assert ledger.spent("dp-sgd") == (steps(4), steps(4), steps(2))


def test_a_release_happens_once(ledger):
    ledger.spend("cadp", RELEASE)
    with pytest.raises(BudgetError):
        ledger.spend("cadp", RELEASE)


@pytest.mark.parametrize(
    ("method", "event"),
    [
        ("dp-sgd", steps(1, noise_std=4.9)),
        ("dp-sgd", steps(1, clip_norm=1.1)),
        ("dp-sgd", steps(1, sampling_rate=0.6)),
        ("dp-sgd", RELEASE),
        ("dp-sgd", WEIGHTS),
        ("cadp", WEIGHTS),
        ("cadp", STEPS),
        ("fedavg", WEIGHTS),
    ],
)
def test_what_was_not_reserved_is_refused_and_not_written_down(ledger, method, event):
    with pytest.raises(BudgetError):
        ledger.spend(method, event)
    assert ledger.spent(method) == ()


def test_unprotected_rounds_repeat(ledger):
    for _ in range(3):
        ledger.spend("cadp", FLOW)
    assert ledger.spent("cadp") == (FLOW,) * 3


def test_a_method_reserves_one_plan(ledger):
    ledger.reserve(Plan("dp-sgd", (STEPS,), 1e-5))
    with pytest.raises(BudgetError, match="reserves one plan"):
        ledger.reserve(Plan("dp-sgd", (steps(11),), 1e-5))
    assert len(ledger.plans()) == 2


def test_a_ledger_lives_in_its_store():
    store = {}
    MemoryLedger(store).reserve(Plan("dp-sgd", (STEPS,), 1e-5))
    MemoryLedger(store).spend("dp-sgd", steps(10))
    with pytest.raises(BudgetError):
        MemoryLedger(store).spend("dp-sgd", steps(1))
    assert MemoryLedger(store).simulation


def test_a_release_by_a_public_flow_is_end_to_end_with_the_plans_epsilon():
    claim = claim_of(Plan("m", (PUBLIC, RELEASE), 1e-5))
    assert claim.guarantee == "end-to-end"
    assert claim.epsilon == pytest.approx(1.0, abs=1e-3)
    assert claim.epsilon_if_flow_were_fixed is None


@pytest.mark.parametrize("release", [RELEASE, LAPLACE])
@pytest.mark.parametrize(
    "other",
    [
        (),
        (GaussianHistogram(stage="flow", histograms=1, noise_std=9.0),),
        (steps(1),),
        (CENTRE,),
        (MOMENTS.model_copy(update={"stage": "flow"}),),
        (PUBLIC.model_copy(update={"stage": "classifier"}),),
    ],
)
def test_a_release_by_a_flow_that_the_plan_does_not_name_is_not_end_to_end(release, other):
    plan = Plan("m", (*other, release), 1e-5)
    claim = claim_of(plan)
    assert (claim.guarantee, claim.epsilon, claim.unprotected) == ("given-flow", None, (UNNAMED_FLOW.what,))
    assert compose_plans([plan]).epsilon is None


@pytest.mark.parametrize(
    ("made_of", "kinds"),
    [
        ((CENTRE, MOMENTS), ("gaussian-sum", "gaussian-moments")),
        ((steps(1, stage="flow"),), ("poisson-gaussian",)),
        ((MOMENTS, steps(2, stage="flow"), STEPS), ("gaussian-moments", "poisson-gaussian")),
    ],
)
def test_a_flow_that_is_made_of_noised_events_of_the_plan_is_named_by_them_and_composes(made_of, kinds):
    plan = Plan("m", (*made_of, RELEASE), 1e-5)
    claim = claim_of(plan)
    assert (claim.guarantee, claim.unprotected, claim.flow_made_of) == ("end-to-end", (), kinds)
    assert claim.epsilon == epsilon_of(plan.events, 1e-5) > claim_of(Plan("m", (PUBLIC, RELEASE), 1e-5)).epsilon
    assert claim_of(Plan("m", made_of, 1e-5)).flow_made_of == ()
    spoiled = claim_of(Plan("m", (FLOW, *made_of, RELEASE), 1e-5))
    assert (spoiled.guarantee, spoiled.epsilon, spoiled.unprotected) == ("given-flow", None, (FLOW.what,))


def test_a_share_of_noise_alone_holds_against_no_aggregator():
    share = MOMENTS.model_copy(update={"shares": 3})
    own, summed = (Plan(name, (event,), 1e-5) for name, event in (("a", MOMENTS), ("b", share)))
    assert (own.against, summed.against) == ("server", "recipients")
    assert [claim_of(plan).against for plan in (own, summed)] == ["server", "recipients"]
    assert claim_of(own).epsilon == claim_of(summed).epsilon
    assert (compose_plans([own]).against, compose_plans([own, summed]).against) == ("server", "recipients")
    assert Plan.from_json(summed.to_json()) == summed


def test_a_flow_without_dp_leaves_no_epsilon_but_the_conditional_one():
    claim = claim_of(Plan("m", (FLOW, RELEASE), 1e-5))
    assert (claim.guarantee, claim.epsilon, claim.epsilon_add_remove) == ("given-flow", None, None)
    assert claim.epsilon_if_flow_were_fixed == pytest.approx(1.0, abs=1e-3)


def test_a_laplace_release_is_claimed_and_happens_once():
    ledger = MemoryLedger()
    ledger.reserve(Plan("m", (FLOW, LAPLACE), 1e-5))
    claim = claim_of(ledger.plans()[0])
    assert (claim.guarantee, claim.epsilon_if_flow_were_fixed) == ("given-flow", 1.0)
    assert claim.epsilon_if_flow_were_fixed_add_remove == 0.5
    ledger.spend("m", LAPLACE)
    with pytest.raises(BudgetError):
        ledger.spend("m", LAPLACE)


@pytest.mark.parametrize(
    "events",
    [(WEIGHTS,), (FLOW,), (FLOW, WEIGHTS, RELEASE), (WEIGHTS, STEPS), (RECORDS,), (FLOW, RECORDS), (RECORDS, STEPS)],
)
def test_other_unprotected_events_leave_nothing(events):
    claim = claim_of(Plan("m", events, 1e-5))
    assert claim.guarantee == "none"
    assert claim.unprotected == tuple(sorted(event.what for event in events if isinstance(event, Unprotected)))
    assert claim.epsilon is None
    assert claim.epsilon_if_flow_were_fixed is None


def test_plans_add_and_an_unprotected_event_spoils_them_all():
    together = compose_plans([Plan("a", (PUBLIC, RELEASE), 1e-5), Plan("b", (PUBLIC, RELEASE), 2e-5)])
    assert together.epsilon == pytest.approx(
        claim_of(Plan("a", (PUBLIC, RELEASE), 1e-5)).epsilon + claim_of(Plan("b", (PUBLIC, RELEASE), 2e-5)).epsilon
    )
    assert together.delta == pytest.approx(3e-5)
    spoiled = compose_plans([Plan("a", (PUBLIC, RELEASE), 1e-5), Plan("b", (WEIGHTS,), 1e-5)])
    assert spoiled.epsilon is spoiled.delta is None
    assert spoiled.unprotected == (WEIGHTS.what,)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 1.0, float("nan")])
def test_a_plan_has_a_delta_between_zero_and_one(delta):
    tree = Plan("m", (RELEASE,), 1e-5).to_json() | {"delta": delta}
    with pytest.raises(ValueError, match=r"delta is between 0 and 1|has a delta"):
        Plan.from_json(tree)


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (1.0, "1.00"),
        (1.0000000001, "1.01"),
        (1.1, "1.10"),
        (2.9999833, "3.00"),
        (0.0, "0.00"),
        (0.1, "0.10"),
        (0.09991, "0.100"),
        (0.0999, "0.0999"),
        (0.05, "0.0500"),
        (0.001, "0.00100"),
        (0.0012300000001, "0.00124"),
        (1.2301e-7, "1.24e-7"),
        (999_999.991, "1000000.00"),
        (2.0000000000000096e30, "2.01e+30"),
        (None, "-"),
        (float("inf"), "infinite"),
    ],
)
def test_a_printed_epsilon_is_never_below_the_true_one(epsilon, text):
    assert format_epsilon(epsilon) == text

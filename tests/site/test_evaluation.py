"""What a site reports of its test units, how often, and what it refuses. The server and every message are untrusted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cadp_fl.classifier.training import log_odds
from cadp_fl.config import ClassifierConfig, EvaluationPolicy, PolicyConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.units import Units
from cadp_fl.errors import BudgetError, EvaluationError, ExchangeError, PolicyError, TotalBudgetError, UnitError
from cadp_fl.evaluation.noised import NOISED_BINS, evaluation_event, table_of
from cadp_fl.evaluation.utility import EXACT_BINS
from cadp_fl.privacy.claims import EXACT_TEST_RESULTS, FLOW_WEIGHTS, LOCAL_TEST_RESULTS
from cadp_fl.privacy.events import DeclaredPublic, LatentGaussian, PoissonGaussian, Unprotected
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Plan
from cadp_fl.site.evaluation import noised_evaluation
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import EpochTraining, EvaluateRequest, LocalRequest
from cadp_fl.site.site import Site

SCHEMA = Schema(name="x", shape=(1, 4, 4), classes=("a", "b", "c"))
TESTED = 30
DELTA = 1e-3
EVENT = evaluation_event(1.0, DELTA, 3)
RULES = EvaluationPolicy(epsilon=2.5, delta=3 * DELTA)


class AddingLedger(MemoryLedger):
    """A ledger in memory in which plans add up, as in one that lasts."""

    simulation = False
    adds_up = True


def dataset(count, seed, patients=None):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    return Dataset(SCHEMA, images, generator.integers(0, 3, count), patients)


def policy(evaluation=RULES, **changes):
    fields = {
        "population": "people", "unit": "record", "epsilon": 10.0, "delta": 2.5e-3, "large_delta": True,
        "labels": "public",
        "unprotected": True, "min_units": 1, "min_class_units": 0,
    }  # fmt: skip
    return PolicyConfig(**(fields | changes), evaluation=evaluation)


def site(evaluation=RULES, *, test=None, noise=None, simulation=False, **changes):
    train = dataset(40, 0, None if test is None else np.arange(40))
    return Site(
        "north",
        SiteData(train, dataset(TESTED, 1) if test is None else test),
        ledger=MemoryLedger() if simulation else AddingLedger(),
        noise=noise or NoiseSource.from_entropy(),
        device=torch.device("cpu"),
        outbox=None,
        simulation=simulation,
        policy=None if simulation else policy(evaluation, **changes),
    )


def plan(event=EVENT, method="m", delta=DELTA, **changes):
    return Plan(method, (event,), delta, labels="covered", split="test", **changes)


def reserve(made, reserved, run=""):
    made.call(Request("reserve", {"plans": [reserved.to_json()]}, run=run))
    return made


def evaluate(event=EVENT, method="m", run="", **arrays):
    config = ClassifierConfig(model="linear")
    settings = EvaluateRequest(method=method, classifier=config, seed=0, event=event).model_dump(mode="json")
    weights = {"1.weight": np.zeros((3, 16), np.float32), "1.bias": np.zeros(3, np.float32)}
    return Request("evaluate", settings, weights | arrays, run=run)


def local(evaluation, method="m"):
    training = EpochTraining(epochs=1, batch_size=8, learning_rate=0.1, momentum=0.0)
    asked = LocalRequest(
        method=method, classifier=ClassifierConfig(model="linear"), seed=0, training=training, evaluation=evaluation
    )
    return Request("train_local", asked.model_dump(mode="json"))


def spent(made, run=""):
    accounts = made.call(Request("account", run=run)).content["accounts"]
    return {Plan.from_json(entry["plan"]).key: [event["kind"] for event in entry["spent"]] for entry in accounts}


def test_a_noised_evaluation_is_a_table_of_floats_that_was_paid_for():
    made = reserve(site(), plan())
    reply = made.call(evaluate())
    assert dict(reply.content) == {}
    assert {name: (array.shape, array.dtype.str) for name, array in reply.arrays.items()} == {
        "confusion": ((3, 3), "<f8"), "histograms": ((3, 2, NOISED_BINS.number), "<f8"),
    }  # fmt: skip
    assert (reply.arrays["histograms"] < 0).any(), "as only noise can make a count"  # of 180; of nine, by chance none
    assert spent(made) == {"m:test": ["gaussian-histogram"]}


def test_the_noise_of_a_table_has_the_events_standard_deviation_and_is_new_for_each_count():
    """Against the same table with next to no noise: 9 + 180 counts, drawn from a seed."""
    little = evaluation_event(100.0, DELTA, 3)
    tables = []
    for event, seed in ((EVENT, 1), (EVENT, 2), (little, 3)):
        made = site(
            EvaluationPolicy(epsilon=100.0, delta=DELTA), noise=NoiseSource.from_seed(seed), seeded_noise=True,
            least_noise=0.0,
        )  # fmt: skip
        arrays = reserve(made, plan(event)).call(evaluate(event)).arrays
        tables.append(np.concatenate([arrays[name].ravel() for name in ("confusion", "histograms")]))
    counts = np.zeros(9 + 6 * NOISED_BINS.number)
    labels = np.bincount(dataset(TESTED, 1).labels, minlength=3)
    counts[:9].reshape(3, 3)[:, 0] = labels  # a classifier of zeros predicts the first class, with one score for all
    assert np.abs(tables[2][:9] - counts[:9]).max() < 5 * little.noise_std
    for table in tables[:2]:
        assert np.std(table[:9] - counts[:9]) < 3 * EVENT.noise_std
        assert np.std(table - np.round(tables[2])) == pytest.approx(EVENT.noise_std, rel=0.25)
    assert np.abs(np.corrcoef(tables[0], tables[1])[0, 1]) < 0.6
    assert (tables[0] != tables[1]).mean() > 0.8


def test_a_second_evaluation_is_refused():
    made = reserve(site(), plan())
    made.call(evaluate())
    with pytest.raises(BudgetError, match="holds no such event or less of it"):
        made.call(evaluate())
    assert spent(made) == {"m:test": ["gaussian-histogram"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_std": EVENT.noise_std * 0.9},
        {"noise_std": EVENT.noise_std * 1.1},
        {"records_per_unit": 2},
        {"histograms": 3},
        {"histograms": 1},
        {"times": 2},
        {"stage": "counts"},
    ],
)
def test_an_evaluation_other_than_the_reserved_one_is_refused(changes):
    made = reserve(site(), plan())
    with pytest.raises(BudgetError):
        made.call(evaluate(EVENT.model_copy(update=changes)))
    assert spent(made) == {"m:test": []}


@pytest.mark.parametrize("changes", [{"histograms": 1}, {"histograms": 3}, {"times": 2}, {"stage": "counts"}])
def test_a_plan_for_a_smaller_table_buys_no_evaluation(changes):
    """The table has h = 4 histograms: a plan that pays for one would have a quarter of the variance."""
    event = EVENT.model_copy(update=changes)
    made = site(EvaluationPolicy(epsilon=100.0, delta=DELTA))
    with pytest.raises((BudgetError, PolicyError)):
        reserve(made, plan(event)).call(evaluate(event))
    assert not any(spent(made).values())


def test_nothing_is_evaluated_before_a_plan_on_test_units():
    made = site()
    with pytest.raises(BudgetError, match="reserves a plan before its first event"):
        made.call(evaluate())
    reserve(made, Plan("m", (FLOW_WEIGHTS,), DELTA))
    with pytest.raises(BudgetError, match="reserves a plan before its first event"):
        made.call(evaluate())


@pytest.mark.parametrize(("method", "run"), [("m/test", ""), ("m:test", ""), ("test", "m")])
def test_a_plan_on_training_units_pays_for_no_evaluation_whatever_its_name(method, run):
    """A server chooses both names: no plan has the key of one on test units, and no method such a name."""
    made = site(None)
    disguised = Plan(method, (EVENT,), DELTA)
    assert (replace(disguised, run=run).key == "m:test") == (method == "m:test")
    try:
        reserve(made, disguised, run)
    except ExchangeError:
        assert method != "test"
    with pytest.raises(BudgetError, match="reserves a plan before its first event"):
        made.call(evaluate())


def test_a_plan_on_test_units_pays_for_nothing_else():
    release = LatentGaussian(stage="release", clip_norm=1.0, noise_std=100.0)
    steps = PoissonGaussian(stage="evaluation", clip_norm=1.0, noise_std=9.0, sampling_rate=0.1, steps=1)
    for event in (release, steps, FLOW_WEIGHTS, Unprotected(stage="evaluation", what="weights")):
        with pytest.raises(EvaluationError, match="Test units are for evaluations"):
            reserve(site(), plan(event))


def test_without_a_policy_on_evaluations_nothing_is_given_out_about_test_records():
    for event in (EVENT, EXACT_TEST_RESULTS):
        made = site(None)
        with pytest.raises(EvaluationError) as caught:
            reserve(made, plan(event))
        assert caught.value.code == 317
        with pytest.raises((EvaluationError, BudgetError)):
            made.call(evaluate(event if event is EVENT else None))
        assert spent(made) == {}


def test_all_evaluations_together_stay_within_the_policys_total():
    made = site()
    for method in ("a", "b"):
        reserve(made, plan(method=method)).call(evaluate(method=method))
    with pytest.raises(TotalBudgetError, match=r"within the policy's epsilon 2\.5 and delta 0\.003"):
        reserve(made, plan(method="c"))
    reserve(made, plan(evaluation_event(0.4, DELTA, 3), method="c"))
    with pytest.raises(TotalBudgetError):
        reserve(made, plan(evaluation_event(0.01, DELTA, 3), method="d"))
    made.call(Request("reserve", {"plans": [Plan("a", (FLOW_WEIGHTS,), 1e-3).to_json()]}))  # has a total of its own


def test_a_site_is_evaluated_as_often_as_its_policy_says():
    made = site(EvaluationPolicy(exact=True, epsilon=50.0, delta=3 * DELTA, count=3))
    reserve(made, plan(method="a"))
    reserve(made, plan(method="a"))
    reserve(made, plan(EXACT_TEST_RESULTS, method="b"))
    for _ in range(2):
        assert made.call(evaluate(None, "b")).arrays["confusion"].sum() == TESTED
    for request in (evaluate(None, "b"), local(None, "b")):
        with pytest.raises(EvaluationError, match=r"at most 3 times \(policy: evaluation.count\)"):
            made.call(request)
    with pytest.raises(EvaluationError, match="This would be number 4"):
        reserve(made, plan(method="c"))
    made.call(evaluate(method="a"))
    assert spent(made) == {"a:test": ["gaussian-histogram"], "b:test": ["unprotected"] * 2}


def test_a_real_site_gives_out_exact_results_only_if_its_policy_says_so():
    made = site()
    with pytest.raises(EvaluationError, match=r"leave with noise \(policy: evaluation.exact\)"):
        reserve(made, plan(EXACT_TEST_RESULTS))
    reserve(made, plan())
    reserve(made, Plan("m", (LOCAL_TEST_RESULTS,), DELTA))
    for request in (evaluate(None), local(None)):
        with pytest.raises(EvaluationError, match=r"leave with noise \(policy: evaluation.exact\)"):
            made.call(request)
    assert not any(spent(made).values())
    open_site = reserve(site(EvaluationPolicy(exact=True, epsilon=1.0, delta=DELTA)), plan(EXACT_TEST_RESULTS))
    assert open_site.call(evaluate(None)).arrays["confusion"].dtype == np.int64
    assert spent(open_site) == {"m:test": ["unprotected"]}


def test_a_simulation_gives_out_exact_results_as_often_as_it_likes_and_writes_them_down():
    made = reserve(site(simulation=True), plan(EXACT_TEST_RESULTS, delta=0.5))
    for _ in range(3):
        assert made.call(evaluate(None)).arrays["confusion"].sum() == TESTED
    assert spent(made) == {"m:test": ["unprotected"] * 3}


def test_a_noised_test_of_a_sites_own_classifier_pays_for_both_kinds_of_units():
    made = reserve(reserve(site(), plan()), Plan("m", (LOCAL_TEST_RESULTS,), DELTA))
    assert made.call(local(EVENT)).arrays["confusion"].dtype == np.float64
    assert spent(made) == {"m:test": ["gaussian-histogram"], "m": ["unprotected"]}
    with pytest.raises(BudgetError):
        made.call(local(EVENT))
    refused = reserve(site(), plan())
    with pytest.raises(BudgetError):
        refused.call(local(EVENT))
    assert spent(refused) == {"m:test": []}, "what is refused for training units costs test units nothing"


def test_delta_is_held_against_the_number_of_test_units():
    for large, bound in ((True, 1 / (10 * TESTED)), (False, 1 / (100 * TESTED))):
        rules = EvaluationPolicy(epsilon=2.5, delta=bound)
        reserve(site(rules, large_delta=large, delta=1e-4), plan(delta=bound))
        with pytest.raises(BudgetError, match=rf"at most 1 / \({10 if large else 100} n\)"):
            reserve(site(rules, large_delta=large, delta=1e-4), plan(delta=1.01 * bound))


def test_the_total_delta_of_evaluations_is_held_against_the_number_of_test_units():
    """Sixty plans of a small delta each would else have a large one together."""
    made = site(EvaluationPolicy(epsilon=100.0, delta=0.12, count=100))
    for number in range(60):
        with pytest.raises(BudgetError, match=r"Found 0\.12 for n = 30"):
            reserve(made, plan(delta=2e-3), run=f"r{number}")


def test_a_test_patient_contributes_its_first_records_alone():
    patients = np.array([100] * 20 + [101] + [102] * 9)
    event = evaluation_event(50.0, DELTA, 3, records_per_unit=2)
    made = site(
        EvaluationPolicy(epsilon=50.0, delta=DELTA), test=dataset(TESTED, 1, patients), unit="patient",
        records_per_patient=2, least_noise=0.0,
    )  # fmt: skip
    with pytest.raises(UnitError, match="contributes 2 records"):
        reserve(made, plan(EVENT, unit="patient"))
    with pytest.raises(UnitError, match="protects what the policy does"):
        reserve(made, plan(event))
    reserve(made, plan(event, unit="patient")).call(evaluate(event))
    with pytest.raises(BudgetError):
        made.call(evaluate(event))
    little, test = event.model_copy(update={"noise_std": 1e-3}), dataset(TESTED, 1, patients)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    units = Units.of(test, "patient", 2)
    arrays = noised_evaluation(model, test, units, little, noise=NoiseSource.from_seed(0))
    first = test.select(np.array([0, 1, 20, 21, 22]))  # of the second patient there is one, and a blank is none
    expected = table_of(log_odds(model, torch.from_numpy(first.images)).numpy(), first.labels)
    for name, counts in zip(("confusion", "histograms"), expected, strict=True):
        assert np.array_equal(np.round(arrays[name]), counts)


def test_a_site_without_test_units_is_not_evaluated():
    made = site(test=replace(dataset(TESTED, 1), patients=None).select(np.arange(0)))
    with pytest.raises(EvaluationError, match="This site has none"):
        reserve(made, plan())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_weights_that_an_attacker_would_choose_get_no_more_than_noised_counts(value):
    made = reserve(site(), plan())
    weights = {"1.weight": np.full((3, 16), value, np.float32)}
    try:
        reply = made.call(evaluate(**weights))
    except Exception:
        assert spent(made) == {"m:test": []}, "refused before a record was looked at"
    else:
        assert np.isfinite(reply.arrays["confusion"]).all()


def test_exact_test_results_spoil_no_claim_on_training_units():
    """A real site says end-to-end no more once anything computed from *training* units left unprotected."""
    made = reserve(site(EvaluationPolicy(exact=True, epsilon=1.0, delta=DELTA)), plan(EXACT_TEST_RESULTS))
    made.call(evaluate(None))
    flow = DeclaredPublic(stage="flow", what="a flow of public records", sha256="0" * 64)
    release = LatentGaussian(stage="release", clip_norm=1.0, noise_std=100.0)
    assert made.context.privacy_filter.claim(Plan("m", (flow, release), DELTA)).guarantee == "end-to-end"


def test_exact_evaluations_read_a_record_that_is_alone_in_its_class_pixel_by_pixel():
    """What policies, pages and help say of `evaluation.exact`; that noise and a low count prevent it, they say too."""
    images = np.random.default_rng(5).integers(0, 256, (TESTED, 1, 4, 4), dtype=np.uint8)
    labels = np.r_[2, np.zeros(TESTED - 1, dtype=np.int64)]
    rules = EvaluationPolicy(exact=True, epsilon=1.0, delta=DELTA, count=16)
    made = reserve(site(rules, test=Dataset(SCHEMA, images, labels)), plan(EXACT_TEST_RESULTS))
    centred = torch.arange(256, dtype=torch.float64) / 255 - 0.5
    for pixel in range(16):
        weights = np.zeros((3, 16), np.float32)
        weights[2, pixel] = 100
        (found,) = np.flatnonzero(made.call(evaluate(None, **{"1.weight": weights})).arrays["histograms"][2, 0])
        bins = EXACT_BINS.of(100 * centred[:, None].numpy() - np.log(2))[:, 0]  # of every grey level it could be
        likely = np.flatnonzero(np.abs(bins - found) == np.abs(bins - found).min())
        assert abs(likely.mean() - images[0].reshape(-1)[pixel]) <= 3
    assert EvaluationPolicy(epsilon=1.0, delta=DELTA).count == 10 < 16
    with pytest.raises(EvaluationError, match="at most 16 times"):
        made.call(evaluate(None))

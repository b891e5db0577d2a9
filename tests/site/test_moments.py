"""What a site gives of moments, and of a flow that it trains by DP-SGD: what it paid for, once, and nothing beside."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cadp_fl.config import FlowConfig, FrontEndConfig
from cadp_fl.data.codec import Pixels
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.units import Units
from cadp_fl.errors import BudgetError, CohortError, ConfigError, ExchangeError, LedgerError, PrivacyError
from cadp_fl.features.front_end import ImageFrontEnd
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.moments import NoisedMoments, fit_affine
from cadp_fl.flow.storage import flow_sha256
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.events import DeclaredPublic, GaussianMoments, GaussianSum, LatentGaussian, PoissonGaussian
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.moments import unpacked
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Plan
from cadp_fl.privacy.policy import open_policy
from cadp_fl.site import moments as of_moments
from cadp_fl.site.class_counts import COUNT_DOUBT
from cadp_fl.site.moments import check_moments, features_of, noised_moments
from cadp_fl.site.protocol import Request
from cadp_fl.site.reply_store import ReplyStore
from cadp_fl.site.requests import MOMENTS as PREFIX
from cadp_fl.site.requests import MadeOf, MomentsRequest, PrivateFlowRequest, ReleaseRequest
from cadp_fl.site.site import Site
from cadp_fl.weights import get_weights, set_weights

SCHEMA = Schema(name="x", shape=(1, 4, 4), classes=("a", "b", "c"))
FRONT_END = FrontEndConfig(size=2, descriptor="none")
DIMS, TRIANGLE = 4, 10
SUM = GaussianSum(stage="moments", clip_norm=1.0, noise_std=8.0)
MOMENTS = GaussianMoments(
    stage="moments",
    noise_std=10.0,
    clip_norm=0.3,
    count_weight=0.5,
    sum_weight=1.0,
    shared_weight=0.25,
    class_weight=1.0,
)
STEPS = PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=2.0, sampling_rate=0.5, steps=3)
FLOW = FlowConfig(dense={"blocks": 2, "width": 8})
WARM = FlowConfig(warm_start="moments", front_end=FRONT_END, dense={"blocks": 2, "width": 8})


_folder: Path


@pytest.fixture(autouse=True)
def _outboxes(tmp_path):
    global _folder
    _folder = tmp_path


def dataset(count=60, seed=0, patients=None, schema=SCHEMA):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    images = generator.integers(0, 200, (count, *schema.shape), dtype=np.uint8)
    images[:, :, 0] += 25 * labels[:, None, None].astype(np.uint8)
    attributes = np.eye(2, dtype=np.uint8)[generator.integers(0, 2, count)] if schema.attributes else None
    return Dataset(schema, images, labels, patients, attributes)


def site(data=None, simulation=True, noise=None, ledger=None, answers=None, **allowed):
    return Site(
        "north",
        SiteData(data or dataset(), dataset(10, 1)),
        ledger=ledger or MemoryLedger(),
        noise=noise or NoiseSource.from_seed(1),
        device=torch.device("cpu"),
        outbox=Path(tempfile.mkdtemp(dir=_folder)),
        simulation=simulation,
        policy=open_policy().model_copy(update=allowed),
        answers=answers,
    )


def reserve(made, *events, labels="public", run=""):
    made.call(Request("reserve", {"plans": [Plan("m", events, 1e-5, labels=labels).to_json()]}, run=run))
    return made


def asked(event=MOMENTS, centre=0.0, run="", name="", front_end=FRONT_END):
    settings = MomentsRequest(method="m", front_end=front_end, event=event).model_dump(mode="json")
    arrays = {} if centre is None else {"centre": np.full(DIMS, centre)}
    return Request("moments", settings, arrays, run=run, id=name)


def spent(made):
    return [event for entry in made.call(Request("account")).content["accounts"] for event in entry["spent"]]


def exact(data, centre, units=None, radius=0.3):
    """Return the sum of v, and counts, sums and second moments of u around a centre; no blank is among them."""
    contributed, blank = (units or Units.of(data, "record")).take(
        data, np.arange(len((units or Units.of(data, "record")).slots))
    )
    x = (np.round(contributed.images.astype(float)) + 0.5) / 256
    v = ImageFrontEnd(FRONT_END, SCHEMA.shape)(torch.from_numpy(x))[0].numpy()[~blank]
    labels = contributed.labels[~blank]
    apart = v - centre
    u = apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), radius)
    by_class = [u[labels == label] for label in range(3)]
    return {
        "sum": v.sum(axis=0),
        "counts": np.array([len(own) for own in by_class], dtype=float),
        "sums": np.stack([own.sum(axis=0) for own in by_class]),
        "shared": u.T @ u,
        "second": np.stack([own.T @ own for own in by_class]),
    }


def test_a_site_spends_before_it_tells():
    made = reserve(site(), SUM, MOMENTS)
    made.context.privacy_filter.spend = lambda *_: (_ for _ in ()).throw(LedgerError("The disk is full."))
    for request in (asked(SUM, None), asked()):
        with pytest.raises(LedgerError, match="disk is full"):
            made.call(request)
    assert not list(made.releases.outbox.iterdir())
    made = reserve(site(), SUM, MOMENTS)
    assert set(made.call(asked(SUM, None)).arrays) == {"sum"}
    assert spent(made) == [SUM.model_dump()]
    assert set(made.call(asked()).arrays) == {"counts", "sums", "shared", "second"}
    assert spent(made) == [SUM.model_dump(), MOMENTS.model_dump()]


def test_nothing_but_the_noised_arrays_leaves():
    made = reserve(site(), SUM, MOMENTS)
    for request in (asked(SUM, None), asked()):
        reply = made.call(request)
        assert dict(reply.content) == {}
        assert {array.dtype for array in reply.arrays.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize("event", [SUM, MOMENTS])
def test_a_plan_without_the_event_pays_for_none_and_one_with_it_pays_once(event):
    for planned in (SUM.model_copy(update={"noise_std": 9.0}), MOMENTS.model_copy(update={"noise_std": 11.0}), STEPS):
        made = reserve(site(), planned)
        with pytest.raises(BudgetError, match="holds no such event"):
            made.call(asked(event))
        assert spent(made) == []
    with pytest.raises(BudgetError, match="reserves a plan before its first event"):
        site().call(asked(event))
    made = reserve(site(), event)
    made.call(asked(event))
    with pytest.raises(BudgetError, match="holds no such event"):
        made.call(asked(event))


@pytest.mark.parametrize("event", [SUM, MOMENTS])
@pytest.mark.parametrize("stage", ["release", "flow", "counts"])
def test_an_event_of_another_stage_is_refused_even_if_it_was_planned(event, stage):
    event = event.model_copy(update={"stage": stage})
    made = reserve(site(), event)
    with pytest.raises(ExchangeError, match="Moments are released in stage 'moments'"):
        made.call(asked(event))
    assert spent(made) == []


@pytest.mark.parametrize(
    "centre",
    [
        None,
        np.zeros(DIMS - 1),
        np.zeros((1, DIMS)),
        np.zeros(DIMS, dtype=np.float32),
        np.zeros(DIMS, dtype=complex),
        np.zeros(DIMS, dtype=bool),
    ],
)
def test_a_centre_of_another_shape_or_type_is_refused_and_spends_nothing(centre):
    made = reserve(site(), MOMENTS)
    request = Request("moments", asked().settings, {} if centre is None else {"centre": centre})
    with pytest.raises(ExchangeError, match="around a centre, 4 numbers of float64"):
        made.call(request)
    assert spent(made) == []


@pytest.mark.parametrize("centre", [math.nan, math.inf, 1e308, -1e30])
def test_a_hostile_centre_gives_finite_answers_of_the_same_noise(centre):
    """Far from all records each is the same unit vector; from nowhere, none has a part in anything but a count."""
    reply = reserve(site(), MOMENTS).call(asked(centre=centre))
    assert all(np.isfinite(array).all() for array in reply.arrays.values())
    expected = exact(dataset(), 0.0)["counts"]
    assert np.abs(reply.arrays["counts"] - expected).max() < 6 * MOMENTS.part_stds["counts"]
    assert np.linalg.norm(reply.arrays["sums"], axis=1).max() < 60 + 6 * 2 * MOMENTS.part_stds["sums"]


def quiet(seed, event, data=None, units=None, centre=0.05):
    """Return what a site would release with a noise of next to nothing."""
    data = data or dataset()
    return noised_moments(
        ImageFrontEnd(FRONT_END, SCHEMA.shape),
        data,
        units or Units.of(data, "record"),
        event,
        None if isinstance(event, GaussianSum) else np.full(DIMS, centre),
        noise=NoiseSource.from_seed(seed),
    )


FAINT_SUM = SUM.model_copy(update={"noise_std": 1e-4})
FAINT = GaussianMoments(
    stage="moments",
    noise_std=2e-3,
    clip_norm=0.3,
    count_weight=1.0,
    sum_weight=1.0,
    shared_weight=1.0,
    class_weight=1.0,
)


def check_exact(released, expected, tolerance):
    for name, array in released.items():
        found = unpacked(array, DIMS) if name in ("shared", "second") else array
        np.testing.assert_allclose(found, expected[name], atol=tolerance, err_msg=name)


def test_without_noise_to_speak_of_a_site_releases_numpys_sums():
    """60 records on a grid of 2^-16, and noise of 0.002."""
    expected = exact(dataset(), 0.05)
    check_exact(quiet(0, FAINT_SUM), expected, 1e-3)
    check_exact(quiet(0, FAINT), expected, 0.02)


def test_blanks_of_patients_add_nothing_and_records_beyond_m_are_left_out():
    generator = np.random.default_rng(3)
    data = dataset(60, patients=generator.integers(0, 25, 60))
    for m in (1, 2, 4):
        units = Units.of(data, "patient", m)
        assert m == 1 or (units.slots < 0).any()
        expected = exact(data, 0.05, units)
        assert expected["counts"].sum() == (units.slots >= 0).sum() < 60
        check_exact(quiet(0, FAINT_SUM, data, units), expected, 1e-3)
        check_exact(quiet(0, FAINT, data, units), expected, 0.02)


def test_a_site_of_blanks_and_one_record_releases_that_record():
    data = dataset(1, patients=np.zeros(1, dtype=np.int64))
    released = quiet(0, FAINT, data, Units.of(data, "patient", 5))
    assert released["counts"].round(2).tolist().count(1.0) == 1
    assert released["counts"].sum() == pytest.approx(1.0, abs=1e-2)


def test_features_are_those_of_the_middle_of_each_grey_level_in_batches_of_any_size(monkeypatch):
    data, front = dataset(), ImageFrontEnd(FRONT_END, SCHEMA.shape)
    whole = front(Pixels(256).to_unit(torch.from_numpy(data.images)).double())[0].numpy()
    for batch in (1, 7, 512):
        monkeypatch.setattr(of_moments, "BATCH", batch)
        np.testing.assert_allclose(features_of(front, data), whole, atol=1e-14)
    assert features_of(front, data.select(np.arange(0))).shape == (0, DIMS)


def test_what_is_released_is_exact_sums_with_noise_of_the_events_deviation():
    """200 answers: every mean within 5 standard errors, every pooled deviation too; false alarm below 1e-4."""
    draws, centre = 200, np.full(DIMS, 0.05)
    data = dataset()
    drawn = {name: [] for name in ("sum", "counts", "sums", "shared", "second")}
    for number in range(draws):
        made = reserve(site(data, noise=NoiseSource.from_seed(number)), SUM, MOMENTS)
        for request in (asked(SUM, None), asked(centre=0.05)):
            for name, array in made.call(request).arrays.items():
                drawn[name].append(array)
    expected, stds = exact(data, centre), {"sum": SUM.noise_std} | dict(MOMENTS.part_stds)
    assert stds["counts"] == pytest.approx(20.0)
    assert stds["shared"] == pytest.approx(40.0)
    rows, columns = np.triu_indices(DIMS)
    diagonal = rows == columns
    for name, draws_of in drawn.items():
        packed = np.stack(draws_of)
        whole = expected[name][..., rows, columns] if name in ("shared", "second") else expected[name]
        noise = packed - whole
        for part, std in (
            ((noise[..., diagonal], stds[name]), (noise[..., ~diagonal], stds[name] / math.sqrt(2)))
            if name in ("shared", "second")
            else ((noise, stds[name]),)
        ):
            assert np.abs(part.mean(axis=0)).max() < 5 * std / math.sqrt(draws), name
            assert part.std() == pytest.approx(std, rel=5 / math.sqrt(2 * part.size)), name


def test_two_events_have_noise_of_their_own():
    made = reserve(site(), MOMENTS, MOMENTS)
    first, second = (made.call(asked()).arrays for _ in range(2))
    for name in first:
        assert not np.intersect1d(first[name], second[name]).size


def test_the_same_request_is_answered_once_and_the_same_again_by_a_new_process(tmp_path):
    path = tmp_path / "ledger.db"
    DurableLedger.create(path, population="p", unit="record")

    def opened():
        return site(
            simulation=False,
            noise=NoiseSource.from_entropy(),
            ledger=DurableLedger.open(path, population="p", unit="record"),
            answers=ReplyStore(tmp_path / "answers"),
            population="p",
            delta=1e-3,
        )

    made = reserve(opened(), SUM, MOMENTS, run="r")
    request = asked(run="r", name="r/m/moments/2")
    first = made.call(request).arrays
    for again in (made, opened()):
        for name, array in again.call(request).arrays.items():
            np.testing.assert_array_equal(array, first[name])
    assert opened().ledger.spent("r/m") == (MOMENTS,)
    with pytest.raises(ExchangeError, match="keeps its contents under its id"):
        made.call(asked(centre=0.1, run="r", name="r/m/moments/2"))
    with pytest.raises(BudgetError, match="must be in the plan"):
        made.call(asked(run="r", name="r/m/moments/3"))
    with pytest.raises(ExchangeError, match="has an id"):
        made.call(asked(run="r"))


def test_moments_of_records_with_attributes_are_refused():
    schema = SCHEMA.model_copy(update={"attributes": ("hat", "young")})
    data = dataset(schema=schema)
    made = Site(
        "north",
        SiteData(data, dataset(10, 1, schema=schema)),
        ledger=MemoryLedger(),
        noise=NoiseSource.from_seed(1),
        device=torch.device("cpu"),
        outbox=_folder,
        simulation=True,
        policy=open_policy(),
    )
    reserve(made, SUM)
    with pytest.raises(ExchangeError, match="leave the attributes out"):
        made.call(asked(SUM, None))
    assert spent(made) == []


def test_more_numbers_than_fit_are_refused_before_any_is_held(monkeypatch):
    large = Schema(name="x", shape=(3, 64, 64), classes=tuple("abcdefghij"))
    front = ImageFrontEnd(FrontEndConfig(size=64, descriptor="none"), large.shape)
    with pytest.raises(ConfigError, match=r"at most 33554432 numbers.* lower flow\.front_end\.size"):
        check_moments(front, 10, MOMENTS)
    monkeypatch.setattr(of_moments, "MAX_NUMBERS", 4 * TRIANGLE - 1)
    made = reserve(site(), MOMENTS)
    with monkeypatch.context() as patched:
        patched.setattr("cadp_fl.site.site.noised_moments", None)
        with pytest.raises(ConfigError, match="make 40"):
            made.call(asked())
    assert spent(made) == []
    monkeypatch.setattr(of_moments, "MAX_NUMBERS", 4 * TRIANGLE)
    assert reserve(site(), MOMENTS).call(asked()).arrays["second"].shape == (3, TRIANGLE)


RELEASE = LatentGaussian(stage="release", clip_norm=2.0, noise_std=20.0)


def release(arrays=None):
    """Return the request for a release by the flow that some moments make; what they are is no matter here."""
    flow = ConditionalFlow(WARM, SCHEMA.shape, 3, seed=0)
    blank = {"counts": np.ones(3), "sums": np.zeros((3, DIMS)), "shared": np.zeros(TRIANGLE)}
    parts = {"centre": np.zeros(DIMS), **(arrays or blank | {"second": np.zeros((3, TRIANGLE))})}
    noised = NoisedMoments.of(parts, CLEAR, classes=3, dims=DIMS, records=60, sites=1)
    fit_affine(flow, noised)
    settings = ReleaseRequest(
        method="m", flow=WARM, seed=0, mechanism="gaussian", event=RELEASE, latent_dims=4, shrinkage="typical-set",
        shard_records=16, made_of=MadeOf(records=60, sites=1),
    )  # fmt: skip
    weights = get_weights(flow) | {f"{PREFIX}{name}": array for name, array in noised.arrays().items()}
    return Request("release", settings.model_dump(mode="json"), weights)


CLEAR = MOMENTS.model_copy(update={"noise_std": 1.0})


@pytest.mark.parametrize(("least", "refused"), [(5, False), (19, True)])
def test_a_policys_least_units_of_a_class_are_held_against_the_moments_noised_counts(least, refused):
    """Classes of 16 to 23 records with noise of 2, which are counted as 6 fewer."""
    data = dataset()
    made = reserve(site(data, min_class_units=least, labels="covered"), CLEAR, SUM, labels="covered")
    counts = made.call(asked(CLEAR)).arrays["counts"]
    (kept,) = made.releases.outbox.glob("counts-*.json")
    lowered = counts - COUNT_DOUBT * CLEAR.part_stds["counts"]
    assert list(json.loads(kept.read_text()).values()) == pytest.approx(lowered.tolist())
    assert np.abs(counts - np.bincount(data.labels)).max() > 1e-6
    known = made.counts.known(Request("release", {}), "m")
    assert (min(known.values()) < least) is refused


def test_of_several_noised_counts_the_smallest_stands():
    """One of many that are noisy enough would show any number."""
    made = site()
    made.counts.public = lambda: None  # as where labels are covered
    request = Request("moments", {})
    for noised in ([900.0, 5.0, 40.0], [10.0, 700.0, 50.0]):
        made.counts.remember(request, "m", np.array(noised), 1.0)
    assert list(made.counts.known(request, "m").values()) == [10 - COUNT_DOUBT, 5 - COUNT_DOUBT, 40 - COUNT_DOUBT]


def test_a_release_before_the_counts_of_moments_is_refused_and_after_them_made():
    made = reserve(site(min_class_units=2, labels="public"), CLEAR, RELEASE)
    made.counts.public = lambda: None  # as where labels are covered
    with pytest.raises(CohortError, match="ask for noised counts first"):
        made.call(release())
    arrays = made.call(asked(CLEAR)).arrays
    assert "manifest" in made.call(release(arrays)).content
    made = site(min_class_units=40, labels="public")
    made.counts.public = lambda: None
    reserve(made, CLEAR, RELEASE)
    made.call(asked(CLEAR))
    with pytest.raises(CohortError, match="may have fewer"):
        made.call(release())
    assert [event["stage"] for event in spent(made)] == ["moments"]


def test_a_release_of_too_few_units_of_a_class_is_refused_when_it_is_reserved():
    """Where counts are public, nothing has to be spent to know."""
    made = site(min_class_units=40, labels="public")
    with pytest.raises(CohortError, match="may have fewer"):
        reserve(made, CLEAR, RELEASE)
    assert spent(made) == []


def flow_of(config=FLOW, seed=0):
    return ConditionalFlow(config, SCHEMA.shape, 3, seed=seed)


def trained(flow):
    return [each for each in flow.parameters() if each.requires_grad]


def train(flow=None, config=FLOW, freeze=(), event=STEPS, number=1, **changes):
    settings = PrivateFlowRequest(
        method="m", flow=config, seed=0, freeze=freeze, round=number, rounds=2, event=event, copies=2,
        learning_rate=1e-2,
    )  # fmt: skip
    return Request(
        "train_private_flow", settings.model_dump(mode="json") | changes, get_weights(flow or flow_of(config))
    )


def planned(steps=6):
    return STEPS.model_copy(update={"steps": steps})


def test_a_round_spends_its_steps_and_a_plan_pays_for_no_more_than_it_has():
    made = reserve(site(), planned(6))
    for number in (1, 2):
        made.call(train(number=number))
    assert [event["steps"] for event in spent(made)] == [3, 3]
    with pytest.raises(BudgetError, match="holds no such event or less of it"):
        made.call(train(number=2))
    made = reserve(site(), planned(6))
    with pytest.raises(BudgetError, match="holds no such event or less of it"):
        made.call(train(event=planned(7)))
    for change in ({"noise_std": 1.9}, {"clip_norm": 1.1}, {"sampling_rate": 0.6}):
        with pytest.raises(BudgetError, match="holds no such event"):
            made.call(train(event=STEPS.model_copy(update=change)))
    assert spent(made) == []


def test_as_many_noised_steps_are_taken_as_were_spent(monkeypatch):
    taken = []
    sample = NoiseSource.poisson_sample
    monkeypatch.setattr(NoiseSource, "poisson_sample", lambda self, *how: taken.append(how) or sample(self, *how))
    reserve(site(), planned(6)).call(train())
    assert taken == [(60, 0.5)] * 3


@pytest.mark.parametrize("simulation", [True, False])
def test_weights_come_back_and_no_loss_nor_time_even_in_a_simulation(simulation):
    reply = reserve(site(simulation=simulation), planned(6)).call(train())
    assert set(reply.content) == {"structure"}
    before = get_weights(flow_of())
    assert set(reply.arrays) == set(before)
    assert any(not np.array_equal(before[name], array) for name, array in reply.arrays.items())


def test_frozen_parts_do_not_come_back_and_have_no_part_in_the_noise():
    flow = flow_of(WARM)
    made = reserve(site(), planned(6))
    reply = made.call(train(flow, WARM, freeze=("coordinates", "affine")))
    names = set(get_weights(flow))
    assert set(reply.arrays) == {name for name in names if name.startswith("dense.")} < names
    sent = get_weights(flow)
    set_weights(flow, sent | dict(reply.arrays))
    for name, array in get_weights(flow).items():
        if not name.startswith("dense."):
            assert array.tobytes() == sent[name].tobytes()


@pytest.mark.parametrize("freeze", [(), ("affine",), ("coordinates",)])
def test_what_moments_made_is_trained_by_no_gradient(freeze):
    with pytest.raises(PrivacyError, match="freeze it"):
        reserve(site(), planned(6)).call(train(config=WARM, freeze=freeze))


def public(flow):
    return DeclaredPublic(stage="flow", what="the flow was trained on 'x'", sha256=flow_sha256(flow))


def test_a_plan_that_rests_on_a_public_flow_starts_from_that_one_and_goes_on_from_any():
    declared, other = flow_of(seed=0), flow_of(seed=0)
    with torch.no_grad():
        trained(other)[0].add_(1e-3)
    made = reserve(site(), public(declared), planned(6))
    with pytest.raises(PrivacyError, match="uses the flow that was declared public"):
        made.call(train(other))
    assert spent(made) == []
    made.call(train(declared))
    made.call(train(other, number=2))
    assert [event["kind"] for event in spent(made)] == ["poisson-gaussian"] * 2


def test_a_site_that_missed_the_first_round_joins_in_the_second():
    declared, other = flow_of(seed=0), flow_of(seed=0)
    with torch.no_grad():
        trained(other)[0].add_(1e-3)
    made = reserve(site(), public(declared), planned(3))
    made.call(train(other, number=2))
    assert [event["kind"] for event in spent(made)] == ["poisson-gaussian"]


def test_a_request_with_weights_that_are_not_finite_is_refused_and_spends_nothing():
    made = reserve(site(), planned(6))
    weights = {name: array * np.nan for name, array in get_weights(flow_of()).items()}
    with pytest.raises(ExchangeError, match="Weights are finite"):
        made.call(Request("train_private_flow", train().settings, weights))
    assert spent(made) == []


@pytest.mark.parametrize("changes", [{"copies": 0}, {"copies": 65}, {"learning_rate": 0}, {"learning_rate": math.inf}])
def test_a_malformed_round_is_refused_and_spends_nothing(changes):
    made = reserve(site(), planned(6))
    with pytest.raises(ConfigError):
        made.call(train(**changes))
    assert spent(made) == []


def test_a_hostile_flow_that_overflows_still_gets_finite_weights_back():
    flow = flow_of()
    with torch.no_grad():
        for each in trained(flow):
            each.mul_(1e18)
    reply = reserve(site(), planned(6)).call(train(flow))
    assert all(np.isfinite(array).all() for array in reply.arrays.values())

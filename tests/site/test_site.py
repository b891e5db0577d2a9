"""What a site lets go, and what it refuses. The server and every message are untrusted."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from cadp_fl.config import ClassifierConfig, FlowConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import (
    BudgetError,
    CadpError,
    ConfigError,
    ExchangeError,
    PrivacyError,
    TotalBudgetError,
    UnitError,
)
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.storage import flow_sha256
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.claims import EXACT_TEST_RESULTS, FLOW_WEIGHTS, LOCAL_TEST_RESULTS, claim_of
from cadp_fl.privacy.events import (
    DeclaredPublic,
    GaussianHistogram,
    LatentGaussian,
    LatentGaussianGrid,
    LatentLaplace,
    PoissonGaussian,
    RandomizedResponse,
)
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.mechanisms import RELEASED_RECORDS
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Plan
from cadp_fl.privacy.policy import open_policy
from cadp_fl.release.manifest import manifest_from_json
from cadp_fl.site.protocol import ACTIONS, Request
from cadp_fl.site.requests import (
    EpochTraining,
    FetchRequest,
    FlowRequest,
    LocalRequest,
    ReleaseRequest,
)
from cadp_fl.site.site import Site
from cadp_fl.weights import get_weights, set_weights

SCHEMA = Schema(name="x", shape=(1, 4, 4), classes=("a", "b", "c"))
FLOW = FlowConfig(scales=[{"blocks": 1, "channels": 4}], training={"rounds": 2, "local_epochs": 1})
EVENT = LatentGaussian(stage="release", clip_norm=2.0, noise_std=8.0)
ON_GRID = LatentGaussianGrid(stage="release", clip_norm=2.0, noise_std=8.0, grid=2.0**-9)
LAPLACE = LatentLaplace(stage="release", clip_norm=2.0, noise_scale=4.0)


_folder: Path


@pytest.fixture(autouse=True)
def outboxes(tmp_path):
    global _folder
    _folder = tmp_path


def dataset(count, seed):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8)
    return Dataset(SCHEMA, images, generator.integers(0, 2, count))


def site(simulation=True, *, noise_seed=1, noise=None, orders=None, measures=False, **allowed):
    return Site(
        "north",
        SiteData(dataset(40, 0), dataset(10, 1)),
        ledger=MemoryLedger(),
        noise=noise or NoiseSource.from_seed(noise_seed),
        device=torch.device("cpu"),
        outbox=Path(tempfile.mkdtemp(dir=_folder)),
        simulation=simulation,
        policy=open_policy().model_copy(update=allowed),
        orders=orders,
        measures=measures,
    )


def weights():
    return get_weights(ConditionalFlow(FLOW, (1, 4, 4), 3, seed=0))


def reserved(event=EVENT, **arguments):
    made = site(**arguments)
    made.call(Request("reserve", {"plans": [Plan("m", (FLOW_WEIGHTS, event), 1e-5).to_json()]}))
    return made


def release(event=EVENT, mechanism="gaussian", **changes):
    settings = ReleaseRequest(
        method="m", flow=FLOW, seed=0, mechanism=mechanism, event=event, latent_dims=4, shrinkage="typical-set",
        shard_records=16,
    )  # fmt: skip
    return Request("release", settings.model_dump(mode="json") | changes, weights())


def flow_round(number=1, method="m"):
    settings = FlowRequest(method=method, flow=FLOW, seed=0, round=number)
    return Request("train_flow", settings.model_dump(mode="json"), weights())


def test_every_action_is_answered_and_no_other():
    with pytest.raises(ExchangeError, match="Found 'sing'") as refusal:
        site().call(Request("sing", {}))
    offered = str(refusal.value).removeprefix("A site offers: ").split(". Found")[0]
    assert set(offered.split(", ")) == set(ACTIONS)


def test_describe_declares_sizes_and_classes_it_holds():
    content = site().call(Request("describe")).content
    assert (content["site"], content["train"], content["test"]) == ("north", 40, 10)
    assert set(content["class_counts"]) == {"a", "b"}
    assert sum(content["class_counts"].values()) == 40


@pytest.mark.parametrize("request_", [flow_round(), release()])
def test_nothing_is_computed_before_a_plan(request_):
    with pytest.raises(BudgetError, match="reserves a plan before its first event"):
        site().call(request_)


def test_a_second_release_is_refused():
    made = reserved()
    made.call(release())
    with pytest.raises(BudgetError, match="holds no such event or less of it"):
        made.call(release())


@pytest.mark.parametrize(
    ("planned", "mechanism", "changes"),
    [
        (EVENT, "gaussian", {"noise_std": 7.9}),
        (EVENT, "gaussian", {"clip_norm": 2.1}),
        (LAPLACE, "laplace", {"noise_scale": 3.9}),
        (EVENT, "gaussian", {"stage": "flow"}),
        (ON_GRID, "grid-gaussian", {"noise_std": 7.9}),
        (ON_GRID, "grid-gaussian", {"grid": 2.0**-8}),
    ],
)
def test_a_server_cannot_lower_the_noise(planned, mechanism, changes):
    made = reserved(planned)
    with pytest.raises((BudgetError, ConfigError)):
        made.call(release(planned.model_copy(update=changes), mechanism))
    assert [entry["spent"] for entry in made.call(Request("account")).content["accounts"]] == [[]]


def test_a_server_cannot_swap_a_reserved_release_for_one_without_noise():
    with pytest.raises(BudgetError, match="holds no such event"):
        reserved().call(release(RELEASED_RECORDS, "none"))


def test_a_laplace_release_says_its_scale_and_what_it_would_cost():
    manifest = manifest_from_json(reserved(LAPLACE).call(release(LAPLACE, "laplace")).content["manifest"])
    assert manifest.mechanism == "laplace"
    assert (manifest.parameters.clip_norm, manifest.parameters.noise_scale) == (2.0, 4.0)
    assert manifest.parameters.noise_std == pytest.approx(4 * 2**0.5)
    assert manifest.claim.epsilon_if_flow_were_fixed == 1.0


def test_a_release_on_a_grid_says_its_step_and_costs_what_the_gaussian_mechanism_does():
    on_grid, in_floats = (
        manifest_from_json(reserved(event).call(release(event, name)).content["manifest"])
        for event, name in ((ON_GRID, "grid-gaussian"), (EVENT, "gaussian"))
    )
    assert (on_grid.mechanism, on_grid.parameters.grid, on_grid.parameters.noise_std) == ("grid-gaussian", 2.0**-9, 8.0)
    assert on_grid.claim == in_floats.claim


def test_a_grid_that_the_noise_does_not_give_is_refused_even_if_it_was_planned():
    planned = ON_GRID.model_copy(update={"grid": 2.0**-8})
    with pytest.raises(ConfigError, match="A release's event is that of its mechanism"):
        reserved(planned).call(release(planned, "grid-gaussian"))


def test_a_release_without_a_mechanism_says_that_nothing_is_protected():
    manifest = manifest_from_json(
        reserved(RELEASED_RECORDS).call(release(RELEASED_RECORDS, "none")).content["manifest"]
    )
    assert (manifest.mechanism, manifest.claim.guarantee) == ("none", "none")
    assert not manifest.parameters.protected


def test_a_real_site_releases_no_record_unprotected():
    made = reserved(RELEASED_RECORDS, simulation=False)
    with pytest.raises(PrivacyError, match="A real site releases no record unprotected"):
        made.call(release(RELEASED_RECORDS, "none"))
    assert [entry["spent"] for entry in made.call(Request("account")).content["accounts"]] == [[]]


def fetch(made, manifest, shard):
    settings = FetchRequest(event_id=manifest.event_id, shard=shard).model_dump(mode="json")
    return made.call(Request("fetch", settings)).arrays["shard"].tobytes()


def test_a_release_is_fetched_in_shards_as_often_as_one_likes():
    made = [reserved() for _ in range(2)]
    manifests = [manifest_from_json(each.call(release()).content["manifest"]) for each in made]
    assert manifests[0] == manifests[1]
    assert [shard.name for shard in manifests[0].shards] == ["00000.npz", "00001.npz", "00002.npz"]
    for shard in manifests[0].shards:
        first, again, other = (fetch(each, manifests[0], shard.name) for each in (made[0], made[0], made[1]))
        assert first == again == other
    assert len(made[0].call(Request("account")).content["accounts"][0]["spent"]) == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"event_id": "m-release-2"}, ExchangeError),
        ({"event_id": "../other"}, ConfigError),
        ({"event_id": ""}, ConfigError),
        ({"shard": "00009.npz"}, ExchangeError),
        ({"shard": "../manifest.json"}, ConfigError),
    ],
)
def test_nothing_but_a_shard_that_was_paid_for_is_fetched(changes, error):
    made = reserved()
    manifest = manifest_from_json(made.call(release()).content["manifest"])
    settings = {"event_id": manifest.event_id, "shard": "00000.npz"} | changes
    with pytest.raises(error):
        made.call(Request("fetch", settings))


def sha256_of(arrays, config=FLOW, seed=0):
    flow = ConditionalFlow(config, (1, 4, 4), 3, seed=seed)
    set_weights(flow, arrays)
    return flow_sha256(flow)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"config": FLOW.model_copy(update={"clamp": 1.2})},
        {"config": FLOW.model_copy(update={"input_scale": 3.0})},
    ],
)
def test_the_same_weights_in_another_architecture_are_another_flow(other):
    """Permutations, clamp and scale shape what a flow computes as much as its weights do."""
    assert sha256_of(weights(), **other) != sha256_of(weights())
    made = site()
    made.call(
        Request("reserve", {"plans": [Plan("m", (public(sha256_of(weights(), **other)), EVENT), 1e-5).to_json()]})
    )
    with pytest.raises(PrivacyError, match="uses the flow that was declared public"):
        made.call(release())


def public(sha256):
    return DeclaredPublic(stage="flow", what="the flow was trained on 'x'", sha256=sha256)


def test_a_fixed_public_flow_makes_a_release_end_to_end_and_the_claim_says_on_what_it_rests():
    made = site()
    plan = Plan("m", (public(sha256_of(weights())), EVENT), 1e-5)
    made.call(Request("reserve", {"plans": [plan.to_json()]}))
    claim = manifest_from_json(made.call(release()).content["manifest"]).claim
    assert claim.guarantee == "end-to-end"
    assert claim.epsilon == epsilon_of([EVENT], 1e-5)
    assert "the flow was trained on 'x'" in claim_of(plan).declared[0]
    assert claim.declared == claim_of(plan).declared


def steps_of_dp_sgd(steps, noise_std=20.0):
    return PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=noise_std, sampling_rate=0.001, steps=steps)


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([steps_of_dp_sgd(10**7)], "10,000,000 steps of 1 kind"),
        ([steps_of_dp_sgd(500_000), steps_of_dp_sgd(500_001, 21.0)], "1,000,001 steps of 2 kind"),
        ([steps_of_dp_sgd(1, 20.0 + kind) for kind in range(4)], "4 steps of 4 kind"),
        (
            [steps_of_dp_sgd(1000) for _ in range(1000)] + [steps_of_dp_sgd(1, 21.0)],
            "has at most 65536 characters of JSON",
        ),
    ],
)
@pytest.mark.parametrize("units", ["train", "test"])
def test_a_plan_that_takes_long_to_price_is_refused_before_it_is_priced(events, found, units, monkeypatch):
    for module in ("plan", "rules"):
        monkeypatch.setattr(f"cadp_fl.privacy.{module}.epsilon_of", lambda *_: pytest.fail("it was priced"))
    made = site()
    with pytest.raises((BudgetError, ExchangeError), match=found):
        made.call(Request("reserve", {"plans": [Plan("m", tuple(events), 1e-6, split=units).to_json()]}))
    assert made.call(Request("account")).content["accounts"] == []


def test_as_many_steps_as_a_plan_may_have_are_priced_whatever_rounds_they_come_in():
    events = tuple(steps_of_dp_sgd(2500, 100.0) for _ in range(400))
    made = site()
    made.call(Request("reserve", {"plans": [Plan("m", events, 1e-6).to_json()]}))
    assert len(made.call(Request("account")).content["accounts"]) == 1


def test_a_plan_without_a_finite_epsilon_is_not_reserved():
    made = site()
    weak = LatentLaplace(stage="release", clip_norm=600.0, noise_scale=1.0)
    plan = Plan("m", (public(sha256_of(weights())), weak, EVENT), 1e-5)
    with pytest.raises(TotalBudgetError, match="would be at inf"):
        made.call(Request("reserve", {"plans": [plan.to_json()]}))
    assert made.call(Request("account")).content["accounts"] == []


def test_a_release_takes_the_flow_that_was_declared_public_and_no_other():
    made = site()
    made.call(Request("reserve", {"plans": [Plan("m", (public("0" * 64), EVENT), 1e-5).to_json()]}))
    with pytest.raises(PrivacyError, match="uses the flow that was declared public"):
        made.call(release())
    with pytest.raises(BudgetError):
        made.call(flow_round())
    assert [entry["spent"] for entry in made.call(Request("account")).content["accounts"]] == [[]]


def test_a_release_by_a_flow_that_another_plan_trained_is_not_end_to_end():
    made = site()
    for plan in (Plan("steal", (FLOW_WEIGHTS,), 1e-5), Plan("m", (EVENT,), 1e-5)):
        made.call(Request("reserve", {"plans": [plan.to_json()]}))
    flow = made.call(flow_round(method="steal")).arrays
    manifest = made.call(Request("release", release().settings, flow)).content["manifest"]
    claim = manifest_from_json(manifest).claim
    assert (claim.guarantee, claim.epsilon) == ("given-flow", None)


def test_a_real_site_says_end_to_end_no_more_once_something_left_unprotected():
    for simulation, guarantee in ((True, "end-to-end"), (False, "given-flow")):
        made = site(simulation=simulation, noise=NoiseSource.from_entropy())
        made.call(Request("reserve", {"plans": [Plan("other", (FLOW_WEIGHTS,), 1e-5).to_json()]}))
        flow = made.call(flow_round(method="other")).arrays
        plan = Plan("m", (public(sha256_of(flow)), EVENT), 1e-5)
        made.call(Request("reserve", {"plans": [plan.to_json()]}))
        claim = manifest_from_json(made.call(Request("release", release().settings, flow)).content["manifest"]).claim
        assert claim.guarantee == guarantee


def test_a_frozen_part_does_not_come_back():
    made = reserved()
    settings = FlowRequest(method="m", flow=FLOW, seed=0, round=1, freeze=("dense",))
    reply = made.call(Request("train_flow", settings.model_dump(mode="json"), weights()))
    assert set(reply.arrays) == {name for name in weights() if not name.startswith("dense.")}


def test_losses_leave_a_simulation_alone():
    assert "simulation_only" in reserved().call(flow_round()).content
    assert "simulation_only" not in reserved(simulation=False).call(flow_round()).content


def local(method="m"):
    training = EpochTraining(epochs=2, batch_size=8, learning_rate=0.1, momentum=0.0)
    settings = LocalRequest(method=method, classifier=ClassifierConfig(model="linear"), seed=0, training=training)
    return Request("train_local", settings.model_dump(mode="json"))


def test_a_site_that_trains_alone_gives_out_its_test_results_and_writes_them_down_as_unprotected():
    made = reserved(LOCAL_TEST_RESULTS)
    made.call(Request("reserve", {"plans": [Plan("m", (EXACT_TEST_RESULTS,), 1e-5, split="test").to_json()]}))
    reply = made.call(local())
    assert (set(reply.arrays), dict(reply.content)) == ({"confusion", "histograms"}, {})
    assert reply.arrays["confusion"].sum() == 10
    entry, tested = made.call(Request("account")).content["accounts"]
    assert tested["spent"] == [EXACT_TEST_RESULTS.model_dump()]
    assert entry["spent"] == [LOCAL_TEST_RESULTS.model_dump()]
    assert claim_of(Plan.from_json(entry["plan"])).guarantee == "none"
    with pytest.raises(BudgetError, match="holds no such event"):
        reserved().call(local())


@pytest.mark.parametrize(
    "request_",
    [
        Request("delete"),
        Request("train_flow", {}),
        Request("train_flow", {"flow": 1, "extra": 2}),
        Request("release", release().settings | {"mechanism": "gauss"}, weights()),
        Request("release", release().settings | {"mechanism": "none"}, weights()),
        Request("release", release().settings | {"mechanism": "laplace"}, weights()),
        Request("release", release().settings | {"event": LAPLACE.model_dump()}, weights()),
        Request("release", release().settings | {"event": RELEASED_RECORDS.model_dump()}, weights()),
        Request("release", release().settings | {"event": {"kind": "free", "stage": "release"}}, weights()),
        Request("release", release().settings | {"latent_dims": 17}, weights()),
        Request("release", release().settings | {"shrinkage": "x"}, weights()),
        Request("release", release().settings, {}),
        Request("release", release().settings, {**weights(), "extra": np.zeros(1, np.float32)}),
        Request("release", release().settings, {name: array * np.nan for name, array in weights().items()}),
        Request("reserve", {"plans": [{}]}),
        Request("reserve", {"plans": [{"method": "m", "events": [{"kind": "free"}], "delta": 1e-5}]}),
        Request("reserve", {"plans": [Plan("m", (EVENT,), 1e-5).to_json() | {"delta": 0.5}]}),
    ],
)
def test_a_malformed_request_is_refused_and_spends_nothing(request_):
    made = reserved()
    with pytest.raises((ConfigError, ExchangeError, BudgetError)):
        made.call(request_)
    account = made.call(Request("account")).content["accounts"]
    assert [entry["spent"] for entry in account] == [[]]


def test_the_account_lists_plans_and_events():
    made = reserved()
    made.call(flow_round(1))
    made.call(flow_round(2))
    made.call(release())
    content = made.call(Request("account")).content
    assert content["ledger"] == "simulation"
    (entry,) = content["accounts"]
    assert Plan.from_json(entry["plan"]).events == (FLOW_WEIGHTS, EVENT)
    assert [event["kind"] for event in entry["spent"]] == ["unprotected", "unprotected", "latent-gaussian"]


def test_every_error_of_a_site_has_a_number():
    codes = {}
    pending = [CadpError]
    while pending:
        kind = pending.pop()
        assert kind.code not in codes, f"{kind} and {codes.get(kind.code)} share a number"
        codes[kind.code] = kind
        assert type(CadpError.named(kind.code)) is kind
        pending.extend(kind.__subclasses__())
    assert CadpError.named(999).meaning == CadpError.meaning


def test_released_counts_are_the_counts_with_rounded_gaussian_noise_of_the_events_deviation():
    """300 draws of three classes: mean and deviation within 5 standard errors."""
    event = GaussianHistogram(stage="counts", histograms=1, noise_std=4.0)
    noised = []
    for number in range(300):
        made = site(labels="covered", noise_seed=number)
        made.call(Request("reserve", {"plans": [Plan("m", (event,), 1e-5, labels="covered").to_json()]}))
        request = Request("count", {"method": "m", "event": event.model_dump()})
        noised.append(list(made.call(request).content["class_counts"].values()))
        with pytest.raises(BudgetError, match="holds no such event"):
            made.call(request)
    noise = np.asarray(noised) - dataset(40, 0).class_counts()
    assert np.abs(noise.mean(axis=0)).max() < 5 * 4 / 300**0.5
    assert noise.std() == pytest.approx(4.0, abs=5 * 4 / 1800**0.5)


def test_a_site_that_covers_labels_gives_out_no_count_and_lets_no_true_label_go():
    made = site(labels="covered")
    assert made.call(Request("describe")).content["class_counts"] is None
    with pytest.raises(UnitError, match="labels covered"):
        made.call(Request("reserve", {"plans": [Plan("m", (FLOW_WEIGHTS, EVENT), 1e-5).to_json()]}))
    labels = RandomizedResponse(stage="labels", epsilon=1.0)
    plan = Plan("m", (FLOW_WEIGHTS, labels, EVENT), 1e-5, labels="covered")
    made.call(Request("reserve", {"plans": [plan.to_json()]}))
    with pytest.raises(PrivacyError, match="Found one with the true ones"):
        made.call(release())
    other = labels.model_copy(update={"epsilon": 2.0})
    with pytest.raises(BudgetError, match="holds no such event"):
        made.call(release(labels=other.model_dump()))
    manifest = manifest_from_json(made.call(release(labels=labels.model_dump())).content["manifest"])
    assert (manifest.claim.relation, manifest.parameters.label_epsilon) == ("replace one record", 1.0)
    (entry,) = made.call(Request("account")).content["accounts"]
    assert [event["stage"] for event in entry["spent"]] == ["labels", "release"]

"""What a claim rests on is in the durable ledger: no later policy, agent or export forgets it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cadp_fl.config import EvaluationPolicy, FlowConfig, PolicyConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import ConditionsError, ConfigError, FlowOriginError, SeededNoiseError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.moments import NoisedMoments, fit_affine
from cadp_fl.flow.storage import flow_sha256
from cadp_fl.privacy.claims import (
    EXACT_TEST_RESULTS,
    FLOW_WEIGHTS,
    SEEDED_NOISE,
    UNRECORDED_NOISE,
    claim_of,
    format_epsilon,
    plan_among,
    plan_beside,
)
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.events import (
    DeclaredPublic,
    GaussianMoments,
    GaussianSum,
    LatentGaussian,
    PoissonGaussian,
    RandomizedResponse,
)
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Conditions, Plan
from cadp_fl.release.manifest import manifest_from_json
from cadp_fl.report.statement import statement_of_method
from cadp_fl.site.ledger_account import account_of
from cadp_fl.site.protocol import Request
from cadp_fl.site.reply_store import ReplyStore
from cadp_fl.site.requests import (
    MOMENTS,
    FlowRequest,
    MadeOf,
    MomentsRequest,
    PrivateFlowRequest,
    ReleaseRequest,
)
from cadp_fl.site.site import Site
from cadp_fl.weights import get_weights, set_weights

SCHEMA = Schema(name="x", shape=(1, 4, 4), classes=("a", "b", "c"))
FLOW = FlowConfig(scales=[{"blocks": 1, "channels": 4}], training={"rounds": 2, "local_epochs": 1})
WARM = FlowConfig(warm_start="moments", dense={"blocks": 0}, front_end={"size": 2, "descriptor": "none"}, scales=[])
EVENT = LatentGaussian(stage="release", clip_norm=4.0, noise_std=80.0)
LABELS = RandomizedResponse(stage="labels", epsilon=0.5)
CENTRE = GaussianSum(stage="moments", clip_norm=1.0, noise_std=40.0)
JOINT = GaussianMoments(
    stage="moments", noise_std=40.0, clip_norm=1.0, count_weight=0.25, sum_weight=1.0, shared_weight=1.0,
    class_weight=1.0,
)  # fmt: skip


def dataset(count, seed, schema=SCHEMA):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, *schema.shape), dtype=np.uint8)
    labels = generator.integers(0, len(schema.classes), count)
    attributes = None
    if schema.attributes:
        attributes = generator.integers(0, 2, (count, len(schema.attributes)), dtype=np.uint8)
    return Dataset(schema, images, labels, None, attributes)


def flow(config=FLOW, schema=SCHEMA):
    return ConditionalFlow(config, schema.shape, schema.conditions, seed=0)


def public(schema=SCHEMA):
    return DeclaredPublic(stage="flow", what="a public flow", sha256=flow_sha256(flow(FLOW, schema)))


class Hospital:
    """One site's folder, opened again and again under other policies, noise and records."""

    def __init__(self, folder):
        self.folder = folder
        self.path = folder / "ledger.db"
        DurableLedger.create(self.path, population="pop", unit="record")

    @property
    def ledger(self):
        return DurableLedger.open(self.path, population="pop", unit="record")

    def site(self, *, seed=None, schema=SCHEMA, **allowed):
        rules = {
            "population": "pop", "unit": "record", "epsilon": 50.0, "delta": 4e-5, "labels": "public",
            "declared_flows": True, "made_flows": True, "min_class_units": 0, "review": False,
            "evaluation": EvaluationPolicy(exact=True, epsilon=10.0, delta=1e-4),
        }  # fmt: skip
        return Site(
            "north",
            SiteData(dataset(200, 0, schema), dataset(50, 1, schema)),
            ledger=self.ledger,
            noise=NoiseSource.from_entropy() if seed is None else NoiseSource.from_seed(seed),
            device=torch.device("cpu"),
            outbox=self.folder / "outbox",
            simulation=False,
            policy=PolicyConfig(**{**rules, **allowed}),
            answers=ReplyStore(self.folder / "answers"),
        )

    def claim(self, plan):
        return claim_of(plan_beside(plan, self.ledger))


@pytest.fixture
def hospital(tmp_path):
    return Hospital(tmp_path)


def reserve(site, run, *events, labels="public", method="m"):
    plan = Plan(method, events, 1e-6, labels=labels)
    site.call(Request("reserve", {"plans": [plan.to_json()]}, run=run))


def release(site, run, *, labels=None, schema=SCHEMA, method="m"):
    settings = ReleaseRequest(
        method=method, flow=FLOW, seed=0, mechanism="gaussian", event=EVENT, labels=labels, latent_dims=4,
        shrinkage="typical-set", shard_records=1000,
    )  # fmt: skip
    request = Request(
        "release", settings.model_dump(mode="json"), get_weights(flow(FLOW, schema)), run=run, id=f"{run}/{method}"
    )
    return manifest_from_json(site.call(request).content["manifest"])


def run(site, name, *, labels="public", schema=SCHEMA):
    """Reserve and make one release with a public flow, and return its claim."""
    covered = (LABELS,) if labels == "covered" else ()
    reserve(site, name, public(schema), *covered, EVENT, labels=labels)
    return release(site, name, labels=covered[0] if covered else None, schema=schema).claim


def test_the_same_conditions_leave_a_claim_end_to_end(hospital):
    for name in ("one", "two"):
        assert run(hospital.site(), name).guarantee == "end-to-end"


def test_a_release_with_seeded_noise_claims_nothing(hospital):
    claim = run(hospital.site(seed=7, seeded_noise=True), "test")
    assert (claim.guarantee, claim.epsilon) == ("none", None)


def test_what_a_seed_noised_is_unprotected_for_good(hospital):
    run(hospital.site(seed=7, seeded_noise=True), "test")
    site = hospital.site()
    claim = run(site, "real")
    assert (claim.guarantee, claim.epsilon) == ("none", None)
    content = site.call(Request("account", run="real")).content
    assert [event["what"] for event in content["unprotected_before"]["train"]] == [SEEDED_NOISE.what]
    tree = account_of(hospital.path)
    assert SEEDED_NOISE.what in tree["unprotected"]
    assert [plan["guarantee"] for plan in tree["plans"]] == ["none", "none"]
    assert [plan["conditions"]["noise"] for plan in tree["plans"]] == ["seeded", "entropy"]
    assert tree["plans"][0]["epsilon"] is None


def test_a_seeded_plan_that_spent_nothing_weakens_no_other(hospital):
    reserve(hospital.site(seed=7, seeded_noise=True), "test", public(), EVENT)
    assert run(hospital.site(), "real").guarantee == "end-to-end"


@pytest.mark.parametrize("seeds", [(7, None), (None, 7)])
def test_a_plan_is_carried_out_with_the_noise_that_it_was_reserved_with(hospital, seeds):
    first, second = (hospital.site(seed=seed, seeded_noise=True) for seed in seeds)
    reserve(first, "r", public(), EVENT)
    with pytest.raises(ConditionsError, match="reserved with noise"):
        release(second, "r")
    assert hospital.ledger.spent("r/m") == ()


def test_no_server_says_where_noise_comes_from(hospital):
    site = hospital.site(seed=7, seeded_noise=True)
    plan = Plan("m", (public(), EVENT), 1e-6, conditions=Conditions("entropy", ("z",), ("q",)))
    site.call(Request("reserve", {"plans": [plan.to_json()]}, run="r"))
    (kept,) = hospital.ledger.plans()
    assert kept.conditions == Conditions("seeded", SCHEMA.classes, ())


def test_a_plan_of_a_ledger_that_did_not_record_noise_protects_nothing(hospital):
    tree = Plan("m", (EVENT,), 1e-6, run="old").to_json()
    del tree["conditions"]
    old = Plan.from_json(tree)
    assert old.conditions.noise == "unrecorded"
    later = Plan("m", (public(), EVENT), 1e-6, run="new", conditions=Conditions("entropy", SCHEMA.classes))
    claim = claim_of(plan_among(later, [(old, (EVENT,))]))
    assert claim.guarantee == "none"
    assert UNRECORDED_NOISE.what in claim.unprotected


@pytest.mark.parametrize("order", [("public", "covered"), ("covered", "public")])
def test_a_claim_that_covers_labels_knows_that_they_were_public_once(hospital, order):
    claims = {labels: run(hospital.site(labels=labels), f"as-{labels}", labels=labels) for labels in order}
    assert claims["public"].guarantee == "end-to-end"  # it keeps the label, whatever else is covered
    plans = {plan.labels: plan for plan in hospital.ledger.plans()}
    covered, kept = (hospital.claim(plans[labels]) for labels in ("covered", "public"))
    assert (covered.guarantee, covered.epsilon) == ("none", None)
    assert any("labels (a, b, c)" in what for what in covered.unprotected)
    assert kept.guarantee == "end-to-end"


def test_class_counts_that_were_described_are_remembered(hospital):
    """They leave with `describe`, which no plan pays for."""
    hospital.site(labels="covered").call(Request("describe"))
    assert hospital.ledger.declared() == ()
    for _ in range(2):
        assert hospital.site().call(Request("describe")).content["class_counts"]
    assert hospital.ledger.declared() == (Conditions("entropy", SCHEMA.classes),)
    claim = run(hospital.site(labels="covered"), "later", labels="covered")
    assert claim.guarantee == "none"
    tree = account_of(hospital.path)
    assert any("labels (a, b, c)" in what for what in tree["unprotected"])
    assert run(hospital.site(), "public").guarantee == "end-to-end"


def test_labels_of_finer_classes_are_more_than_a_claim_on_coarse_ones_keeps(hospital):
    coarse = SCHEMA.model_copy(update={"classes": ("a", "b or c")})
    run(hospital.site(), "fine")
    assert run(hospital.site(schema=coarse), "coarse", schema=coarse).guarantee == "none"


def test_attributes_that_left_are_remembered_when_the_records_have_none_any_more(hospital):
    portraits = SCHEMA.model_copy(update={"attributes": ("hat", "young")})
    first = run(hospital.site(schema=portraits), "faces", schema=portraits)
    assert first.guarantee == "end-to-end"
    assert run(hospital.site(), "plain").guarantee == "none"
    assert run(hospital.site(schema=portraits), "again", schema=portraits).guarantee == "end-to-end"


def test_a_plan_is_carried_out_with_the_classes_that_it_was_reserved_with(hospital):
    reserve(hospital.site(), "r", public(), EVENT)
    coarse = SCHEMA.model_copy(update={"classes": ("a", "b", "d")})
    with pytest.raises(ConditionsError, match="reserved with classes"):
        release(hospital.site(schema=coarse), "r")


def test_seeded_noise_that_a_policy_forbids_is_refused(hospital):
    with pytest.raises(SeededNoiseError):
        reserve(hospital.site(seed=7), "r", public(), EVENT)


def test_a_statement_says_what_a_seed_means():
    plan = Plan("m", (public(), EVENT), 1e-6, conditions=Conditions("seeded", SCHEMA.classes))
    real, own = claim_of(plan_among(plan, [])), claim_of(plan)
    said = statement_of_method("m", real, noise="seeded", relation="replace one record, keep its label", own=own)
    assert "NO end-to-end guarantee" in said
    assert "had the noise not been seeded" in said


def test_conditions_survive_json():
    plan = Plan("m", (EVENT,), 1e-6, conditions=Conditions("seeded", ("a", "ü"), ("hat",)))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    for wrong in (
        {"noise": "none", "classes": [], "attributes": []},
        {"noise": "seeded", "classes": [1], "attributes": []},
    ):
        with pytest.raises(ValueError, match="conditions name"):
            Plan.from_json(plan.to_json() | {"conditions": wrong})


# A release's flow is made of what the site gave out.


def asked_moments(event, run, centre=None):
    settings = MomentsRequest(method="m", front_end=WARM.front_end, event=event)
    arrays = {} if centre is None else {"centre": centre}
    return Request("moments", settings.model_dump(mode="json"), arrays, run=run, id=f"{run}/{event.kind}")


def warm_release(run, made, noised, **changes):
    settings = ReleaseRequest(
        method="m", flow=WARM, seed=0, mechanism="gaussian", event=EVENT, latent_dims=4, shrinkage="typical-set",
        shard_records=1000, made_of=MadeOf(records=noised.records, sites=noised.sites),
    )  # fmt: skip
    arrays = get_weights(made) | {f"{MOMENTS}{name}": array for name, array in noised.arrays().items()}
    return Request("release", settings.model_dump(mode="json") | changes, arrays, run=run, id=f"{run}/release")


def given_out(site, run):
    """Ask for centre and moments, and return them as those of one site, with the flow that they make."""
    made = flow(WARM)
    centre = np.zeros(made.coarse_dims)
    site.call(asked_moments(CENTRE, run))
    arrays = {"centre": centre, **site.call(asked_moments(JOINT, run, centre)).arrays}
    noised = NoisedMoments.of(arrays, JOINT, classes=3, dims=made.coarse_dims, records=200, sites=1)
    fit_affine(made, noised)
    return made, noised


def test_a_flow_is_named_of_what_was_given_out_and_of_nothing_else(hospital):
    site = hospital.site()
    reserve(site, "r", CENTRE, JOINT, EVENT)
    made, noised = flow(WARM), None
    shapes = {"centre": np.zeros(made.coarse_dims), "counts": np.ones(3), "sums": np.zeros((3, 4))}
    shapes |= {"shared": np.zeros(10), "second": np.zeros((3, 10))}
    noised = NoisedMoments.of(shapes, JOINT, classes=3, dims=4, records=200, sites=1)
    fit_affine(made, noised)
    with pytest.raises(FlowOriginError, match="never asked for"):
        site.call(warm_release("r", made, noised))
    site.call(asked_moments(CENTRE, "r"))
    with pytest.raises(FlowOriginError, match="'gaussian-moments'"):
        site.call(warm_release("r", made, noised))
    assert not any(event.stage == "release" for event in hospital.ledger.spent("r/m"))


def test_moments_of_another_plan_do_not_count(hospital):
    site = hospital.site()
    for name in ("first", "second"):
        reserve(site, name, CENTRE, JOINT, EVENT)
    made, noised = given_out(site, "first")
    with pytest.raises(FlowOriginError, match="never asked for"):
        site.call(warm_release("second", made, noised))


def test_the_flow_that_the_moments_make_passes_and_any_other_is_refused(hospital):
    site = hospital.site()
    reserve(site, "r", CENTRE, JOINT, EVENT)
    made, noised = given_out(site, "r")
    for name, array in get_weights(made).items():
        other = flow(WARM)
        set_weights(other, get_weights(made) | {name: array + np.float32(0.1 * (np.abs(array).max() or 1))})
        with pytest.raises(FlowOriginError, match=f"differs in '{name}'"):
            site.call(warm_release("r", other, noised))
    for arrays in (get_weights(made), {}):
        bare = replace(warm_release("r", made, noised), arrays=arrays)
        with pytest.raises(Exception, match=r"centre|same tensors"):
            site.call(bare)
    with pytest.raises(FlowOriginError, match="comes with them"):
        site.call(warm_release("r", made, noised, made_of=None))
    manifest = manifest_from_json(site.call(warm_release("r", made, noised)).content["manifest"])
    assert manifest.claim.guarantee == "end-to-end"
    assert manifest.claim.flow_made_of == ("gaussian-sum", "gaussian-moments")


@pytest.mark.parametrize(("sites", "refused"), [(1, True), (3, True), (4, False)])
def test_a_shared_noise_is_whole_in_the_sum_of_all_that_share_it_and_one_more(hospital, sites, refused):
    centre, joint = (event.model_copy(update={"shares": 3}) for event in (CENTRE, JOINT))
    site = hospital.site(aggregator="trusted")
    reserve(site, "r", centre, joint, EVENT)
    made = flow(WARM)
    site.call(asked_moments(centre, "r"))
    arrays = site.call(asked_moments(joint, "r", np.zeros(made.coarse_dims))).arrays
    parts = {"centre": np.zeros(made.coarse_dims), **arrays}
    noised = NoisedMoments.of(parts, joint, classes=3, dims=made.coarse_dims, records=200 * sites, sites=sites)
    fit_affine(made, noised)
    if refused:
        with pytest.raises(FlowOriginError, match="whole in the sum of 4 sites"):
            site.call(warm_release("r", made, noised))
        return
    claim = manifest_from_json(site.call(warm_release("r", made, noised)).content["manifest"]).claim
    assert (claim.guarantee, claim.against) == ("end-to-end", "recipients")


def test_a_claim_on_shared_noise_says_on_how_many_sites_it_rests_and_what_the_aggregator_sees(hospital):
    shared = JOINT.model_copy(update={"shares": 9})
    claim, alone = (claim_of(Plan("m", (event,), 1e-6)) for event in (shared, JOINT))
    assert (claim.epsilon, claim.sharers) == (alone.epsilon, 9)
    own = claim_of(Plan("m", (JOINT.model_copy(update={"noise_std": JOINT.noise_std / 3}),), 1e-6))
    assert claim.epsilon_of_own_message == pytest.approx(own.epsilon, rel=1e-6)
    assert (alone.epsilon_of_own_message, alone.sharers) == (None, 1)
    said = statement_of_method("m", claim, noise="entropy", relation="replace one record")
    assert "It rests on 9 sites" in said
    assert f"alone has epsilon {format_epsilon(claim.epsilon_of_own_message)}" in said


def test_a_flow_of_one_sites_moments_is_made_of_what_that_site_gave_out(hospital):
    site = hospital.site()
    reserve(site, "r", CENTRE, JOINT, EVENT)
    _, noised = given_out(site, "r")
    for changed in ({"counts": noised.moments.counts + 1.0}, {"centre": noised.centre + 0.1}):
        other = NoisedMoments.of(noised.arrays() | changed, JOINT, classes=3, dims=4, records=200, sites=1)
        made = flow(WARM)
        fit_affine(made, other)
        with pytest.raises(FlowOriginError, match=r"what that site gave out|were asked for"):
            site.call(warm_release("r", made, other))


def test_the_other_sites_part_of_a_sum_is_the_servers_word(hospital):
    """As docs/privacy.md says; the centre and the front end are those that the site was asked for all the same."""
    site = hospital.site()
    reserve(site, "r", CENTRE, JOINT, EVENT)
    _, noised = given_out(site, "r")
    requests = {}
    for name, centre in (("asked", noised.centre), ("another", noised.centre + 0.1)):
        arrays = noised.arrays() | {"counts": noised.moments.counts + 300.0, "centre": centre}
        both = NoisedMoments.of(arrays, JOINT, classes=3, dims=4, records=500, sites=2)
        made = flow(WARM)
        fit_affine(made, both)
        requests[name] = warm_release("r", made, both)
    with pytest.raises(FlowOriginError, match="were asked for"):
        site.call(requests["another"])
    assert "manifest" in site.call(requests["asked"]).content


def test_a_step_of_dp_sgd_for_a_flow_pays_for_no_classifier(hospital):
    """Else a release could claim a flow of which the site gave out nothing."""
    steps = PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=40.0, sampling_rate=0.5, steps=4)
    site = hospital.site()
    reserve(site, "r", steps, EVENT)
    training = {"kind": "dp-sgd", "event": steps.model_dump(), "learning_rate": 0.1, "momentum": 0.0}
    settings = {"method": "m", "classifier": {"model": "linear"}, "seed": 0, "round": 1, "training": training}
    weights = {"1.weight": np.zeros((3, 16), np.float32), "1.bias": np.zeros(3, np.float32)}
    with pytest.raises(ConfigError, match="spent in stage 'classifier'"):
        site.call(Request("train_classifier", settings, weights, run="r", id="r/c"))
    assert hospital.ledger.spent("r/m") == ()
    with pytest.raises(FlowOriginError):
        release(site, "r")


def test_names_of_classes_that_hold_a_comma_are_not_taken_for_others():
    first, second = (Plan("m", (EVENT,), 1e-6, conditions=Conditions("entropy", names)).keeps
                     for names in (("a, b", "c"), ("a", "b, c")))  # fmt: skip
    assert first != second


def test_a_ledger_that_does_not_say_who_was_tested_on_counts_what_was_given_out_about_test_units_against_all():
    exact = Plan("t", (EXACT_TEST_RESULTS,), 1e-6, split="test", run="old")
    later = Plan("m", (public(), EVENT), 1e-6, run="new", conditions=Conditions("entropy", SCHEMA.classes))
    for one_budget, guarantee in ((False, "end-to-end"), (True, "none")):
        among = plan_among(later, [(exact, (EXACT_TEST_RESULTS,))], one_budget=one_budget)
        assert claim_of(among).guarantee == guarantee


def test_a_flow_of_dp_sgd_is_released_with_after_a_step_at_least(hospital):
    steps = PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=40.0, sampling_rate=0.5, steps=4)
    site = hospital.site()
    reserve(site, "r", steps, EVENT)
    with pytest.raises(FlowOriginError, match="'poisson-gaussian'"):
        release(site, "r")
    settings = PrivateFlowRequest(
        method="m", flow=FLOW, seed=0, round=1, rounds=2, event=steps.model_copy(update={"steps": 2}), copies=1,
        learning_rate=0.01,
    )  # fmt: skip
    site.call(
        Request("train_private_flow", settings.model_dump(mode="json"), get_weights(flow()), run="r", id="r/flow")
    )
    assert release(site, "r").claim.guarantee == "end-to-end"


def test_an_unprotected_flow_still_says_so(hospital):
    site = hospital.site(unprotected=True)
    reserve(site, "r", FLOW_WEIGHTS, EVENT)
    settings = FlowRequest(method="m", flow=FLOW, seed=0, round=1)
    site.call(Request("train_flow", settings.model_dump(mode="json"), get_weights(flow()), run="r", id="r/flow"))
    assert release(site, "r").claim.guarantee == "given-flow"

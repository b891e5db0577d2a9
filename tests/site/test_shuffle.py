"""A release by PrivUnit: what a site checks before a claim may count on its shuffle, and what it then does."""

import numpy as np
import pytest

from cadp_fl.config import load_study
from cadp_fl.data.units import Units
from cadp_fl.errors import ExchangeError, PrivacyError, ShuffleError
from cadp_fl.federated.methods.cadp import Cadp
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.directions import leading_directions
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.claims import FLOW_WEIGHTS
from cadp_fl.privacy.events import LatentPrivUnit
from cadp_fl.privacy.plan import Conditions, Plan
from cadp_fl.privacy.policy import check_shuffle
from cadp_fl.release.cohort import why_not_shuffled, with_cohort
from cadp_fl.release.manifest import manifest_from_json
from cadp_fl.report.statement import statement_of_method
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import DIRECTIONS
from tests.conftest import ROOT
from tests.site.test_site import FLOW, dataset, outboxes, release, site, weights  # noqa: F401

DELTA = 1e-5


def event(units=40, label=1.0, classes=3, m=1, **changes):
    fields = {"latent_epsilon": 2.0, "threshold": 0.8, "label_epsilon": label, "classes": classes if label else 0}
    return LatentPrivUnit(stage="release", shuffled_units=units, records_per_unit=m, **(fields | changes))


def checked(asked, *, units=40, class_units=(), classes=("a", "b", "c"), attributes=()):
    check_shuffle(asked, units=units, class_units=class_units, conditions=Conditions("entropy", classes, attributes))


def test_a_shuffle_of_as_many_units_as_there_are_is_counted_on():
    checked(event())
    checked(event(m=3))
    checked(event(units=7, label=0.0), class_units=(7, 0, 33))
    checked(event(units=0), units=1, attributes=("smile",))


@pytest.mark.parametrize(
    ("asked", "at_the_site", "why"),
    [
        (event(units=41), {}, "counts on 41; this site has fewer units"),
        (event(classes=4), {}, "counts on 4 classes; these records have 3"),
        (event(), {"attributes": ("smile",)}, "1 attributes, which are public"),
        (event(units=8, label=0.0), {"class_units": (7, 0, 33)}, "fewer units of its smallest class"),
        (event(units=1, label=0.0), {}, "fewer units of its smallest class"),
        (event(units=5, label=0.0, m=2), {"class_units": (7, 33)}, "may be of several classes"),
    ],
)
def test_a_shuffle_that_would_hide_less_is_not(asked, at_the_site, why):
    with pytest.raises(ShuffleError, match=why) as refusal:
        checked(asked, **at_the_site)
    assert refusal.value.code == 323


def plan(asked, labels="covered"):
    return Plan("m", (FLOW_WEIGHTS, asked), DELTA, labels=labels)


def reserved(asked, labels="covered", orders=None, **allowed):
    made = site(labels=labels, orders=orders, **allowed)
    made.call(Request("reserve", {"plans": [plan(asked, labels).to_json()]}))
    return made


@pytest.mark.parametrize("asked", [event(units=41), event(classes=2)])
def test_a_site_reserves_no_plan_that_counts_on_more_than_it_has(asked):
    with pytest.raises(ShuffleError):
        reserved(asked)


def test_a_site_reserves_no_plan_whose_messages_show_too_much_by_themselves():
    with pytest.raises(ShuffleError, match=r"at most 2\.5 by itself"):
        reserved(event(), most_local_epsilon=2.5)


def privunit(asked, **changes):
    return release(asked, "privunit", **changes)


def test_the_manifest_says_what_was_shuffled_and_what_each_message_costs_by_itself():
    made, asked = reserved(event()), event()
    manifest = manifest_from_json(made.call(privunit(asked)).content["manifest"])
    parameters = manifest.parameters
    assert (parameters.shuffled_units, parameters.latent_epsilon, parameters.label_epsilon) == (40, 2.0, 1.0)
    assert parameters.local_epsilon == asked.local_epsilon == 3.0
    assert parameters.clip_norm is parameters.noise_std is None
    assert parameters.protected
    assert manifest.claim.epsilon_if_flow_were_fixed == pytest.approx(epsilon_of([asked], DELTA))
    assert made.ledger.spent("m") == (asked,)
    assert manifest.records == 40


def test_a_label_is_drawn_once_and_by_the_message_itself():
    lies = {"kind": "randomized-response", "stage": "labels", "epsilon": 1.0, "records_per_unit": 1}
    with pytest.raises(ExchangeError, match="drawn once"):
        reserved(event()).call(privunit(event(), labels=lies))
    public = event(units=1, label=0.0)
    with pytest.raises(PrivacyError, match="draws them"):
        reserved(public).call(privunit(public))


def test_a_release_turns_latents_by_what_the_server_sends_and_states_its_hash():
    flow = ConditionalFlow(FLOW, (1, 4, 4), 3, seed=0)
    directions = leading_directions(flow)
    request = privunit(event())
    made = reserved(event())
    with pytest.raises(ExchangeError, match="orthogonal"):
        made.call(Request("release", request.settings, weights() | {DIRECTIONS: 2 * directions.matrix}))
    reply = made.call(Request("release", request.settings, weights() | {DIRECTIONS: directions.matrix}))
    manifest = manifest_from_json(reply.content["manifest"])
    assert manifest.parameters.directions_sha256 == directions.sha256


def study(*overrides):
    common = ["release={mechanism: privunit, labels: covered}", "methods={cadp: {}}"]
    return load_study(ROOT / "configs" / "quickstart.yaml", [*common, *overrides])


def test_a_simulation_knows_its_cohort_before_it_plans():
    counted = with_cohort(study(), [dataset(40, 0), dataset(25, 1)])
    assert (counted.release.shuffled_units, counted.release.label_classes) == (25, 3)
    named = with_cohort(study("release.shuffled_units=7"), [dataset(40, 0)])
    assert (named.release.shuffled_units, named.release.label_classes) == (7, 3)
    public = with_cohort(study("release.labels=public"), [dataset(40, 0), dataset(25, 1)])
    counts = [np.bincount(dataset(*which).labels) for which in ((40, 0), (25, 1))]
    assert public.release.shuffled_units == min(count for each in counts for count in each if count)
    gaussian = study("release.mechanism=gaussian", "release.clip_norm=4")
    assert with_cohort(gaussian, [dataset(40, 0)]) == gaussian


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["release.amplification=none"], "asks for no amplification"),
        ([], "was not known when the plan was made"),
        (["release.shuffled_units=0", "release.label_classes=10"], "counts on no others"),
        (
            ["release.labels=public", "budget.unit=patient", "budget.records_per_patient=2"],
            "a patient's records may be of several classes",
        ),
    ],
)
def test_where_no_shuffle_is_counted_on_the_local_epsilon_is_and_the_reason_is_named(overrides, why):
    asked = study(*overrides)
    assert why in why_not_shuffled(asked)
    *_, last = Cadp({}, asked).events()
    assert isinstance(last, LatentPrivUnit)
    assert last.shuffled_units == 0
    assert epsilon_of([last], DELTA) == last.local_epsilon <= 3.0


def test_attributes_leave_no_shuffle():
    assert "attributes" in why_not_shuffled(study(), attributes=2)


def test_the_statement_names_both_figures_and_who_shuffles():
    made = reserved(event())
    claim = made.context.privacy_filter.claim(plan(event()))
    said = statement_of_method("m", claim, noise="entropy", relation="replace one record")
    assert "epsilon 3.00 by itself" in said
    assert "the site, which is trusted with its own records, sends the release whole and in a secret" in said
    assert "at least 40 units" in said
    alone = made.context.privacy_filter.claim(plan(event(units=0)))
    said = statement_of_method("m", alone, noise="entropy", relation="replace one record")
    assert "rests on no shuffle" in said


def test_every_unit_leaves_once_in_an_order_that_says_nothing(tmp_path):
    made, asked = reserved(event(), orders=tmp_path / "orders"), event()
    made.call(privunit(asked))
    (order,) = (np.load(path) for path in (tmp_path / "orders").glob("*.npy"))
    units = Units.of(made.context.data.train, "record")
    assert sorted(order) == list(range(len(units.slots)))
    assert not np.array_equal(order, np.arange(len(order)))


def test_only_a_simulation_that_asks_for_it_keeps_the_order(tmp_path):
    made = reserved(event())
    made.call(privunit(event()))
    assert not list(tmp_path.rglob("*.npy"))
    with pytest.raises(PrivacyError, match="forgets the order"):
        site(simulation=False, orders=tmp_path / "orders")

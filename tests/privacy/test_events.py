"""Every kind of event says what it costs: laws over all of them, and what happens to one that does not."""

import json
import math
from typing import ClassVar, Literal, get_args

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.claims import UNNAMED_FLOW, claim_of
from cadp_fl.privacy.event import BaseEvent, Notation
from cadp_fl.privacy.events import (
    EVENTS,
    DeclaredPublic,
    Event,
    GaussianHistogram,
    GaussianMoments,
    GaussianSum,
    LatentGaussian,
    LatentGaussianGrid,
    LatentLaplace,
    LatentPrivUnit,
    PoissonGaussian,
    ProtectedEvent,
    RandomizedResponse,
    Unprotected,
    events_from_json,
)
from cadp_fl.privacy.losses import Gaussian, Loss, Profile, Relation
from cadp_fl.privacy.notation import KINDS, parse_event
from cadp_fl.privacy.plan import Plan

DELTA = 1e-5
EXAMPLES = [
    LatentGaussian(stage="release", clip_norm=2.0, noise_std=3.0, records_per_unit=2),
    LatentGaussianGrid(stage="release", clip_norm=2.0, noise_std=3.0, grid=2.0**-11),
    LatentLaplace(stage="release", clip_norm=2.0, noise_scale=3.0),
    LatentPrivUnit(stage="release", latent_epsilon=2.0, threshold=0.8, label_epsilon=1.0, records_per_unit=2),
    LatentPrivUnit(
        stage="release", latent_epsilon=2.0, threshold=0.8, label_epsilon=1.0, classes=10, shuffled_units=500
    ),
    PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=1.5, sampling_rate=0.05, steps=20),
    PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=9.0, sampling_rate=1.0, steps=20),
    RandomizedResponse(stage="labels", epsilon=0.7, records_per_unit=3),
    GaussianHistogram(stage="counts", histograms=2, noise_std=5.0, times=3),
    GaussianSum(stage="moments", clip_norm=1.0, noise_std=6.0, shares=4),
    GaussianMoments(
        stage="moments",
        noise_std=6.0,
        clip_norm=0.3,
        count_weight=0.25,
        sum_weight=0.7,
        shared_weight=0.3,
        class_weight=0.0,
    ),
    Unprotected(stage="classifier", what="weights"),
    DeclaredPublic(stage="flow", what="a flow", sha256="a" * 64),
]
PROTECTED = [event for event in EXAMPLES if isinstance(event, ProtectedEvent)]


def of(event):
    return f"{event.kind}-{event.loss(Relation.REPLACE_ONE).__class__.__name__}"


def test_there_is_an_example_of_every_kind():
    assert {event.kind for event in EXAMPLES} == set(EVENTS)
    assert {type(event) for event in EXAMPLES} == set(EVENTS.values())


@pytest.mark.parametrize("event", EXAMPLES, ids=of)
@pytest.mark.parametrize("relation", Relation)
def test_what_is_protected_costs_something_and_what_is_not_costs_all_or_nothing(event, relation):
    epsilon = epsilon_of([event], DELTA, relation)
    if isinstance(event, ProtectedEvent):
        assert isinstance(event.loss(relation), get_args(Loss))
        assert 0 < epsilon < math.inf
        assert epsilon_of([event, event], DELTA, relation) > epsilon
    assert event.is_protected == isinstance(event, ProtectedEvent) == (0 < epsilon < math.inf)
    assert epsilon_of([event], DELTA, Relation.ADD_OR_REMOVE_ONE) <= epsilon_of([event], DELTA)


@pytest.mark.parametrize("event", PROTECTED, ids=of)
def test_more_noise_costs_less_and_the_multiplier_says_how_much_there_is(event):
    field = next((name for name in ("noise_std", "noise_scale") if hasattr(event, name)), None)
    if field is None:
        assert event.noise_multiplier == math.inf
        return
    noisier = event.model_copy(update={field: 2 * getattr(event, field)})
    assert epsilon_of([noisier], DELTA) < epsilon_of([event], DELTA)
    assert noisier.noise_multiplier == pytest.approx(2 * event.noise_multiplier)


@pytest.mark.parametrize("event", EXAMPLES, ids=of)
def test_an_event_is_read_as_it_was_written(event):
    assert events_from_json(json.loads(json.dumps([event.model_dump()]))) == (event,)


@pytest.mark.parametrize("event", PROTECTED, ids=of)
def test_every_protected_kind_is_typed_on_a_command_line(event):
    names = {"records_per_unit": "records-per-patient"}
    given = {name: value for name, value in event.model_dump().items() if name not in ("kind", "stage")}
    text = ",".join(f"{names.get(name, name.replace('_', '-'))}={value!r}" for name, value in given.items())
    for name in (event.notation.name, event.kind):
        assert parse_event(f"{name}:{text}").model_copy(update={"stage": event.stage}) == event
    assert KINDS[event.notation.name] is type(event)


@pytest.mark.parametrize("event", [event for event in EXAMPLES if event.releases_latents], ids=of)
def test_a_release_whose_plan_names_no_flow_is_not_end_to_end(event):
    claim = claim_of(Plan("m", (event,), DELTA))
    assert claim.guarantee != "end-to-end"
    assert claim.unprotected == (UNNAMED_FLOW.what,)


@pytest.mark.parametrize("event", EXAMPLES, ids=of)
def test_an_event_is_as_many_of_its_kind_as_it_says(event):
    assert event.amount >= 1
    assert event.once.amount == 1
    assert event.own_message.sharers == 1


def test_a_kind_that_does_not_say_what_it_costs_cannot_be_defined():
    with pytest.raises(TypeError, match=r"Silent lacks left, releases_latents, notation, loss, noise_multiplier"):

        class Silent(BaseEvent):
            kind: Literal["silent"] = "silent"

    with pytest.raises(TypeError, match=r"Costless lacks loss\."):

        class Costless(BaseEvent):
            left: ClassVar[str] = "something"
            releases_latents: ClassVar[bool] = False
            notation: ClassVar[Notation | None] = None
            kind: Literal["costless"] = "costless"

            @property
            def noise_multiplier(self) -> float:
                return 1.0


class _Odd(BaseEvent):
    """A kind whose loss is what a test gives."""

    left: ClassVar[str] = "something odd"
    releases_latents: ClassVar[bool] = False
    notation: ClassVar[Notation | None] = None
    given: ClassVar[object] = None
    kind: Literal["odd"] = "odd"

    def loss(self, relation):
        return self.given

    @property
    def noise_multiplier(self):
        return 1.0


def test_the_accountant_refuses_a_loss_that_it_does_not_know(monkeypatch):
    for given in (None, 0.0, Gaussian):
        monkeypatch.setattr(_Odd, "given", given)
        with pytest.raises(TypeError, match="has one of the forms"):
            epsilon_of([_Odd(stage="release")], DELTA / 2)


class _DominatedGaussian(Profile):
    """The loss of Gaussian noise, as an event says it that knows no closed form."""

    mean = 0.02
    reach = 5.0

    def distribution(self, grid):
        return pld.from_gaussian_mechanism(5.0, value_discretization_interval=grid)


def test_a_loss_without_a_closed_form_is_composed_by_what_dominates_it(monkeypatch):
    monkeypatch.setattr(_Odd, "given", _DominatedGaussian())
    odd, known = _Odd(stage="release"), GaussianSum(stage="moments", clip_norm=1.0, noise_std=10.0)
    for beside in ([], [RandomizedResponse(stage="labels", epsilon=0.5)], [known], [EXAMPLES[3]]):
        for delta in (1e-5, 1e-3):
            exact = epsilon_of([known, *beside], delta)
            dominated = epsilon_of([odd, *beside], delta)
            assert exact * (1 - 1e-9) <= dominated <= exact * 1.01


def test_every_event_is_one_of_the_union():
    assert set(EVENTS.values()) == set(get_args(Event))

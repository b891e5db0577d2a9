"""What may be claimed of a plan: derived from its events, never typed."""

import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any, Literal, get_args

from cadp_fl.config.names import Labels, Unit
from cadp_fl.privacy.costs import epsilons_of
from cadp_fl.privacy.events import (
    DeclaredPublic,
    Event,
    Unprotected,
    events_from_json,
)
from cadp_fl.privacy.ledger import Ledger
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.plan import Against, Conditions, Plan, Split, against, kept_by

__all__ = [
    "CLASSIFIER_WEIGHTS",
    "EXACT_TEST_RESULTS",
    "FLOW_WEIGHTS",
    "LOCAL_TEST_RESULTS",
    "FLOW_OF_PRIVATE_RECORDS",
    "GUARANTEES",
    "Guarantee",
    "SEEDED_NOISE",
    "UNNAMED_FLOW",
    "UNRECORDED_NOISE",
    "CarriedOut",
    "Claim",
    "Scope",
    "StageCost",
    "Together",
    "claim_of",
    "compose_plans",
    "flow_sources",
    "format_against",
    "format_delta",
    "format_epsilon",
    "left_unprotected",
    "plan_among",
    "plan_beside",
    "relation_of",
    "stage_costs",
    "unprotected_from_json",
]

FLOW_WEIGHTS = Unprotected(stage="flow", what="weights of a flow trained without differential privacy")
FLOW_OF_PRIVATE_RECORDS = Unprotected(stage="flow", what="a flow trained on private records before this study")
UNNAMED_FLOW = Unprotected(stage="flow", what="a flow of which the plan does not say what it was trained on")
CLASSIFIER_WEIGHTS = Unprotected(
    stage="classifier", what="weights of a classifier trained without differential privacy"
)
LOCAL_TEST_RESULTS = Unprotected(
    stage="classifier", what="test results of a classifier trained without differential privacy"
)
SEEDED_NOISE = Unprotected(stage="noise", what="values whose noise came from a seed, which protects nothing")
UNRECORDED_NOISE = Unprotected(
    stage="noise", what="values that were noised before this ledger recorded where noise comes from"
)
EXACT_TEST_RESULTS = Unprotected(stage="evaluation", what="exact test results")
"""Computed from test units, so it stands in a plan of theirs."""


def relation_of(unit: Unit, labels: Labels, attributes: Collection[str] = ()) -> str:
    """Return the neighbouring relation of every claim: what two data sets of a site may differ in.

    Where labels are public, a site's class counts are known to all, and a release decodes under the true label, so no
    claim covers a label. Where records have attributes, a release decodes under the true ones and contains them, so
    no claim covers those.

    Args:
        unit: what is replaced.
        labels: whether they are public by declaration, or covered.
        attributes: names of the records' attributes; empty where they have none.
    """
    if labels == "covered":
        return f"replace one {unit}"
    if unit == "patient":
        kept = "labels and attributes" if attributes else "labels"
        return f"replace one patient, keep the {kept} of its records"
    return f"replace one record, keep its label{' and attributes' if attributes else ''}"


@dataclass(frozen=True)
class Scope:
    """What the claims of a study are about.

    Attributes:
        unit: what one neighbouring data set may change.
        records_per_unit: m, the records that one unit contributes.
        labels: whether they are public by declaration, or covered.
        attributes: names of the records' attributes; none where they have a label alone.
    """

    unit: Unit
    records_per_unit: int
    labels: Labels
    attributes: tuple[str, ...] = ()

    @property
    def relation(self) -> str:
        """The neighbouring relation."""
        return relation_of(self.unit, self.labels, self.attributes)


Guarantee = Literal["end-to-end", "given-flow", "none"]
GUARANTEES: tuple[Guarantee, ...] = get_args(Guarantee)
"""From the strongest to the weakest."""


@dataclass(frozen=True)
class Claim:
    """What holds for one site after one method, if only that method had been run.

    Attributes:
        guarantee: `end-to-end` if every event is accounted; `given-flow` if only the flow's training is not; else
            `none`.
        epsilon: at `delta`, under replace-one; None without an end-to-end guarantee.
        epsilon_add_remove: the same events under add-or-remove, for comparison with the literature.
        epsilon_if_flow_were_fixed: would hold had the flow been fixed without these records. It was not.
        epsilon_if_flow_were_fixed_add_remove: the same under add-or-remove.
        delta: the delta of all epsilons.
        unprotected: what leaves without any protection.
        declared: what the claim takes to be public, by declaration.
        against: the server, or the recipients of sums over sites alone.
        flow_made_of: kinds of the noised events that the flow of a release is taken to be made of; what else it is made
            of, no record of the site had a part in.
        epsilon_of_own_message: what the same events cost against the aggregator, who sees the site's own share of the
            noise alone; None where the site adds all of its noise.
        sharers: K, the sites whose noise the claim rests on; 1 where the site adds all of its noise.
        shuffled_units: n, the units whose messages the claim counts on being shuffled together; 0 where it counts on no
            shuffle.
        local_epsilon: of what one unit sends in a release by itself, whatever the order; None where no release says it.
    """

    guarantee: Guarantee
    epsilon: float | None
    epsilon_add_remove: float | None
    epsilon_if_flow_were_fixed: float | None
    epsilon_if_flow_were_fixed_add_remove: float | None
    delta: float
    unprotected: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()
    against: Against = "server"
    flow_made_of: tuple[str, ...] = ()
    epsilon_of_own_message: float | None = None
    sharers: int = 1
    shuffled_units: int = 0
    local_epsilon: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the claim as plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def claim_of(plan: Plan) -> Claim:
    """Return what the events of a plan allow to claim.

    A release needs a flow, and that is a part of it: a plan that is silent on where its flow is from claims no more
    than one whose flow was trained without differential privacy. A flow may be made of noised events of the same plan:
    what they cost is a part of the plan's, and all that is made of them alone is free.
    """
    events = _said_and_unsaid(plan)
    open_stages = {event.stage for event in events if isinstance(event, Unprotected)}
    protected = plan.protected().events
    guarantee: Guarantee = "end-to-end"
    if open_stages:
        guarantee = "given-flow" if open_stages == {"flow"} and protected else "none"
    whole = _epsilons(plan) if guarantee == "end-to-end" else (None, None)
    given_flow = _epsilons(plan) if guarantee == "given-flow" else (None, None)
    return Claim(
        guarantee=guarantee,
        epsilon=whole[0],
        epsilon_add_remove=whole[1],
        epsilon_if_flow_were_fixed=given_flow[0],
        epsilon_if_flow_were_fixed_add_remove=given_flow[1],
        delta=plan.delta,
        unprotected=_unprotected([plan]),
        declared=tuple(
            f"{event.what} (sha256 {event.sha256[:12]}...)" for event in events if isinstance(event, DeclaredPublic)
        ),
        against=plan.against,
        flow_made_of=tuple(dict.fromkeys(event.kind for event in flow_sources(plan))),
        epsilon_of_own_message=_without_sharers(plan).protected().epsilon() if plan.against == "recipients" else None,
        sharers=plan.sharers,
        shuffled_units=min((event.hidden_among for event in events if event.hidden_among), default=0),
        local_epsilon=sum(local) if (local := [each for event in events if (each := event.local_epsilon)]) else None,
    )


def _without_sharers(plan: Plan) -> Plan:
    """Return a plan whose noise is the site's own alone: what the aggregator sees before it adds up."""
    return replace(plan, events=tuple(event.own_message for event in plan.events))


def format_against(whom: Against) -> str:
    """Return what stands behind a guarantee that does not hold against everyone, or nothing."""
    return {"server": "", "recipients": " (not against the aggregator of the sites' sums)"}[whom]


def format_delta(delta: float) -> str:
    """Return a delta with up to six digits, rounded up."""
    return f"{float(Context(prec=6, rounding=ROUND_CEILING).create_decimal(repr(delta))):g}"


def plan_beside(plan: Plan, ledger: Ledger) -> Plan:
    """Return a plan together with all that has left unprotected under any plan of a ledger.

    Of real records that is a part of every claim: what left cannot be taken back. A release leaves its flow with it.
    """
    return plan_among(plan, ledger.carried_out(), declared=ledger.declared(), one_budget=ledger.one_budget)


CarriedOut = tuple[Plan, tuple[Event, ...]]
"""A plan, and what was spent of it."""


def left_unprotected(
    plans: Iterable[CarriedOut],
    units: Split,
    keeps: frozenset[str],
    declared: Iterable[Conditions] = (),
    *,
    one_budget: bool = False,
) -> tuple[Unprotected, ...]:
    """Return what has left unprotected of some units under plans, each once.

    What left under weaker conditions is protected by no stronger claim: noise from a seed, or labels and attributes
    that were public by declaration then and that the claim covers.

    Args:
        plans: with what was spent of each.
        units: training units, or test units.
        keeps: what the claim does not cover, as of `Plan.keeps`.
        declared: conditions under which exact class counts were given out.
        one_budget: whether test units may be training units too, by a ledger that does not say who is which.
    """
    left: list[Event] = []
    for plan, spent in plans:
        if spent and (plan.split == units or (one_budget and units == "train")):
            left += spent
            if any(event.stage == "release" for event in spent):
                left += _said_and_unsaid(plan)
            left += [*_weak_noise(plan, spent), *_public_then(plan.keeps - keeps)]
    if units == "train":
        for conditions in declared:
            left += _public_then(kept_by("public", conditions) - keeps)
    return tuple(dict.fromkeys(event for event in left if isinstance(event, Unprotected)))


def _weak_noise(plan: Plan, events: Iterable[Event]) -> tuple[Unprotected, ...]:
    """Return what is unprotected of noised events since nothing vouches for their noise."""
    noise = plan.conditions.noise
    if noise == "entropy" or not any(event.is_protected for event in events):
        return ()
    return (SEEDED_NOISE if noise == "seeded" else UNRECORDED_NOISE,)


def _public_then(kept: Iterable[str]) -> tuple[Unprotected, ...]:
    """Return what left when it was public by declaration, in at most as many words as an event holds."""
    return tuple(
        Unprotected(
            stage="labels", what=f"{textwrap.shorten(each, 150, placeholder=' ...)')}, public by declaration then"
        )
        for each in sorted(kept)
    )


def unprotected_from_json(tree: Mapping[Split, Any]) -> dict[Split, tuple[Unprotected, ...]]:
    """Return what has left unprotected, by training and test units, from JSON values of its events.

    Raises:
        KeyError, TypeError, ValueError: they are no such events.
    """
    events: dict[Split, tuple[Event, ...]] = {units: events_from_json(tree[units]) for units in get_args(Split)}
    return {units: tuple(each for each in left if isinstance(each, Unprotected)) for units, left in events.items()}


def plan_among(
    plan: Plan,
    others: Iterable[CarriedOut],
    *,
    before: Iterable[Unprotected] = (),
    declared: Iterable[Conditions] = (),
    one_budget: bool = False,
) -> Plan:
    """Return a plan of real records together with all that has left unprotected of the same units.

    Args:
        plan: which itself protects nothing if its noise comes from a seed.
        others: every plan of the records, with what was spent of each.
        before: what else left unprotected.
        declared: conditions under which exact class counts were given out.
        one_budget: whether test units may be training units too.
    """
    left = left_unprotected(others, plan.split, plan.keeps, declared, one_budget=one_budget)
    return replace(plan, events=(*plan.events, *dict.fromkeys([*_weak_noise(plan, plan.events), *left, *before])))


def _said_and_unsaid(plan: Plan) -> tuple[Event, ...]:
    """Return a plan's events, and that its flow is unprotected if it releases latents and does not name a flow."""
    named = any(event.names_flow for event in plan.events)
    return plan.events if named or not plan.releases_latents else (*plan.events, UNNAMED_FLOW)


def flow_sources(plan: Plan) -> tuple[Event, ...]:
    """Return the noised events that a release's flow is made of, those that only go with them included."""
    if not plan.releases_latents:
        return ()
    protected = plan.protected().events
    stages = {event.stage for event in protected if event.names_flow}
    return tuple(event for event in protected if event.stage in stages)


@dataclass(frozen=True)
class StageCost:
    """What one event of a plan costs by itself.

    Attributes:
        stage: of the method.
        event: its kind, or what it leaves unprotected or takes to be public.
        epsilon: under replace-one; None where it is not protected, and 0 where it is public.
        epsilon_add_remove: the same under add-or-remove.
        delta: of both.
        units: whose records it is computed from: training units, or test units.
    """

    stage: str
    event: str
    epsilon: float | None
    epsilon_add_remove: float | None
    delta: float
    units: Split


def stage_costs(plan: Plan) -> tuple[StageCost, ...]:
    """Return what each event of a plan would cost by itself, at the delta of all, and what is set aside for retries."""
    retries = StageCost(
        stage="retries",
        event="set aside",
        epsilon=plan.retry.epsilon,
        epsilon_add_remove=plan.retry.epsilon,
        delta=plan.retry.delta,
        units=plan.split,
    )
    return (*(_stage_cost(plan, event) for event in plan.events), *([retries] if plan.retry.epsilon else []))


def _stage_cost(plan: Plan, event: Event) -> StageCost:
    delta = plan.delta - plan.retry.delta
    if isinstance(event, Unprotected):
        return StageCost(
            stage=event.stage, event=event.what, epsilon=None, epsilon_add_remove=None, delta=delta, units=plan.split
        )
    name = event.what if isinstance(event, DeclaredPublic) else event.kind
    alone = epsilons_of([event], delta)
    return StageCost(
        stage=event.stage,
        event=name,
        epsilon=alone.replace_one,
        epsilon_add_remove=alone.add_remove,
        delta=delta,
        units=plan.split,
    )


@dataclass(frozen=True)
class Together:
    """What running several plans on the same records composes to.

    Attributes:
        epsilon: the sum over plans; None if something left unprotected.
        delta: the sum over plans; None likewise.
        unprotected: what left unprotected.
        against: the server, or the recipients of sums over sites alone if any plan holds against no one else.
    """

    epsilon: float | None
    delta: float | None
    unprotected: tuple[str, ...]
    against: Against = "server"

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {**vars(self), "unprotected": list(self.unprotected)}


def compose_plans(plans: Sequence[Plan]) -> Together:
    """Return what plans on the same records compose to. Epsilons and deltas add, whatever made the plans follow."""
    whom = against(event for plan in plans for event in plan.events)
    if unprotected := _unprotected(plans):
        return Together(None, None, unprotected, whom)
    return Together(sum(plan.epsilon() for plan in plans), sum(plan.delta for plan in plans), (), whom)


def format_epsilon(epsilon: float | None) -> str:
    """Return an epsilon with two decimals, rounded up: a printed figure is never below the true one.

    Below 0.1, and from a million, it has three significant digits.
    """
    if epsilon is None or math.isinf(epsilon):
        return "-" if epsilon is None else "infinite"
    exact = Decimal(repr(epsilon))
    if 0.1 <= epsilon < 1e6 or epsilon == 0:
        return str(exact.quantize(Decimal("0.01"), ROUND_CEILING))
    rounded = Context(prec=3, rounding=ROUND_CEILING).plus(exact)
    digits = 2 - rounded.adjusted()
    return f"{rounded:.{digits}f}" if 2 < digits <= 6 else f"{rounded:.2e}"


def _unprotected(plans: Sequence[Plan]) -> tuple[str, ...]:
    """Return what leaves without protection under any of the plans, each thing once."""
    return tuple(
        sorted({event.what for plan in plans for event in _said_and_unsaid(plan) if isinstance(event, Unprotected)})
    )


def _epsilons(plan: Plan) -> tuple[float, float]:
    """Return what the protected events of a plan cost under replace-one and under add-or-remove, retries included."""
    protected = plan.protected()
    return protected.epsilon(), protected.epsilon(Relation.ADD_OR_REMOVE_ONE)

"""What a study's plans cost, without a run and without a record: from its config alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cadp_fl.config import StudyConfig, load_study
from cadp_fl.errors import BudgetError, ConfigError
from cadp_fl.federated.methods import build_methods
from cadp_fl.federated.methods.base import Method, plan_of
from cadp_fl.privacy.accounting import largest_cohort
from cadp_fl.privacy.claims import Claim, Together, claim_of, compose_plans, relation_of
from cadp_fl.privacy.costs import Costs, Epsilons, costs_of, epsilons_of
from cadp_fl.privacy.events import Event, LatentPrivUnit, PoissonGaussian, RandomizedResponse, ReleaseEvent
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.plan import Allowance, Plan
from cadp_fl.release.cohort import is_cohort_open, why_not_shuffled
from cadp_fl.study.plugins import load_plugins

__all__ = ["EvaluationAccount", "MethodAccount", "OneMore", "StudyAccount", "account_study"]


@dataclass(frozen=True)
class OneMore:
    """What one more of something costs, after a method has been run.

    It is a new plan, which may have been chosen by looking at the first one's results: epsilons and deltas add.

    Attributes:
        what: a round of DP-SGD, or a release.
        cost: of the new plan, at its delta.
        delta: of the new plan, that of the study's budget.
        total: of both plans.
        total_delta: of both plans.
    """

    what: str
    cost: Epsilons
    delta: float
    total: Epsilons
    total_delta: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        total = {"delta": self.total_delta, **self.total.to_json()}
        return {"what": self.what, "delta": self.delta, **self.cost.to_json(), "total": total}


@dataclass(frozen=True)
class MethodAccount:
    """What one method costs at a site, if only it is run.

    Attributes:
        method: its name.
        costs: its events, each alone and composed; at the delta of the events, without that of retries.
        protected: what the protected events cost, with the retry reserve: all that `claim` may be of.
        retry: set aside for events whose result a crash lost; it adds to the events' cost.
        claim: what may be claimed.
        one_more: of each thing that could be done again.
        not_shuffled: why a release by PrivUnit is accounted message by message; empty where a shuffle is counted on, or
            the method has no such release.
    """

    method: str
    costs: Costs
    protected: Epsilons
    retry: Allowance
    claim: Claim
    one_more: tuple[OneMore, ...]
    not_shuffled: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {
            "events": [cost.to_json() for cost in self.costs.events],
            "events_delta": self.costs.delta,
            "retry_reserve": vars(self.retry),
            "protected": self.protected.to_json(),
            **self.claim.to_json(),
            "one_more": [more.to_json() for more in self.one_more],
            "not_shuffled": self.not_shuffled or None,
        }


@dataclass(frozen=True)
class EvaluationAccount:
    """What evaluating a study's classifiers costs a site's test units, at most: the number of classes is not known.

    Attributes:
        relation: what is protected, in words.
        each: of one method's classifier; None where exact test results leave, which no epsilon covers.
        together: of all methods.
    """

    relation: str
    each: Allowance | None
    together: Allowance | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {
            "relation": self.relation,
            "metrics": "exact" if self.each is None else "noised",
            "each_method_at_most": None if self.each is None else vars(self.each),
            "all_methods_together_at_most": None if self.together is None else vars(self.together),
        }


@dataclass(frozen=True)
class StudyAccount:
    """What a study costs each site.

    Attributes:
        relation: what is protected, in words.
        unit: of privacy.
        largest_cohort: number of units at a site up to which the study's delta is at most 1 / (10 n).
        careful_cohort: the same under a policy that allows no such large delta, which is the default.
        noise: of the study, entropy or seeded.
        methods: in order.
        together: what running all methods on the same records composes to.
        protected_together: the same of the protected events alone.
        test: what evaluations cost test units, which are no training units.
    """

    relation: str
    unit: str
    largest_cohort: int
    careful_cohort: int
    noise: str
    methods: tuple[MethodAccount, ...]
    together: Together
    protected_together: Epsilons
    test: EvaluationAccount

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {
            "relation": self.relation,
            "unit": self.unit,
            "largest_cohort": self.largest_cohort,
            "careful_cohort": self.careful_cohort,
            "noise": self.noise,
            "methods": {account.method: account.to_json() for account in self.methods},
            "all_methods_together": {**self.together.to_json(), "protected": self.protected_together.to_json()},
            "test_units": self.test.to_json(),
        }


def account_study(config: Path, overrides: Iterable[str] = ()) -> StudyAccount:
    """Return what a study costs each site. Nothing is run, no record is read, and nothing is written.

    Raises:
        InputError: the config is wrong, or a pretrained flow that a method needs cannot be read.
    """
    study = load_study(config, [*overrides, "data.path=null"])  # wherever the records are, they are not needed here
    load_plugins(study.plugins)
    try:
        methods = build_methods(study)
        plans = [plan_of(method, study) for method in methods]
    except BudgetError as error:
        raise ConfigError(str(error)) from error
    accounts = tuple(_account(study, *pair) for pair in zip(methods, plans, strict=True))
    return StudyAccount(
        relation=relation_of(study.budget.unit, study.labels),
        unit=study.budget.unit,
        largest_cohort=largest_cohort(study.budget.delta, large=True),
        careful_cohort=largest_cohort(study.budget.delta),
        noise=study.noise,
        methods=accounts,
        together=compose_plans(plans),
        protected_together=sum((account.protected for account in accounts), Epsilons(0.0, 0.0)),
        test=_test(study),
    )


def _test(study: StudyConfig) -> EvaluationAccount:
    relation, evaluation = relation_of(study.budget.unit, "covered"), study.evaluation
    if evaluation.epsilon is None or evaluation.delta is None:
        return EvaluationAccount(relation, None, None)
    methods = len(study.methods)
    return EvaluationAccount(
        relation,
        Allowance(evaluation.epsilon, evaluation.delta),
        Allowance(methods * evaluation.epsilon, methods * evaluation.delta),
    )


def _account(study: StudyConfig, method: Method, plan: Plan) -> MethodAccount:
    protected = plan.protected()
    spent = Epsilons(protected.epsilon(), protected.epsilon(Relation.ADD_OR_REMOVE_ONE))
    return MethodAccount(
        method=method.name,
        costs=costs_of(plan.events, plan.delta - plan.retry.delta),
        protected=spent,
        retry=plan.retry,
        claim=claim_of(plan),
        one_more=tuple(_one_more(what, events, study.budget.delta, spent, plan) for what, events in _again(method)),
        not_shuffled=_not_shuffled(study, plan),
    )


def _not_shuffled(study: StudyConfig, plan: Plan) -> str:
    """Return why the messages of a plan's release are accounted one by one, in words."""
    alone = any(isinstance(event, LatentPrivUnit) and not event.hidden_among for event in plan.events)
    if not alone:
        return ""
    if is_cohort_open(study):
        return (
            "no record is read here, so the number of units is not known. A simulation counts them, and claims the "
            "shuffle; name release.shuffled_units and release.label_classes to see what it costs. Over real sites they "
            "have to be named: cadp-fl doctor COORDINATOR --round says how many units and classes each has"
        )
    return why_not_shuffled(study)


def _one_more(what: str, events: Sequence[Event], delta: float, before: Epsilons, plan: Plan) -> OneMore:
    cost = epsilons_of(events, delta)
    return OneMore(what, cost, delta, before + cost, plan.delta + delta)


def _again(method: Method) -> list[tuple[str, list[Event]]]:
    """Return what of a method could be done once more, and with which events: a round's steps, a release."""
    events, phases = method.events(), method.phases()
    found: list[tuple[str, list[Event]]] = []
    for event in events:
        if isinstance(event, PoissonGaussian):
            rounds = phases.get(f"{method.name}/{'flow' if event.stage == 'flow' else 'train'}", 0)
            steps = event.steps // rounds if rounds and event.steps % rounds == 0 else 1
            what = f"one more round of DP-SGD ({steps} step{'s' if steps > 1 else ''})"
            found.append((what, [event.model_copy(update={"steps": steps})]))
    release = [event for event in events if event.stage == "release" and isinstance(event, ReleaseEvent)]
    if release and all(event.is_protected for event in release):
        labels = [event for event in events if isinstance(event, RandomizedResponse)]
        found.append((f"one more release{', its labels drawn again' if labels else ''}", [*labels, *release]))
    return found

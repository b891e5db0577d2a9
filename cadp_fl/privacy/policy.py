"""A site's policy at work: what a plan asks for, held against what the steward allows, before anything is computed.

No message here holds a value that undeclared records had a part in: the number of units is public, and counts of
classes are declared ones or noised.
"""

from collections.abc import Mapping, Sequence

from cadp_fl.config import EvaluationPolicy, PolicyConfig
from cadp_fl.config.names import Labels, Unit
from cadp_fl.errors import (
    AggregatorError,
    CohortError,
    EvaluationError,
    LittleNoiseError,
    MadeFlowError,
    MechanismError,
    SeededNoiseError,
    ShuffleError,
    UnitError,
    UnprotectedModelError,
)
from cadp_fl.privacy.accounting import check_delta
from cadp_fl.privacy.claims import EXACT_TEST_RESULTS
from cadp_fl.privacy.events import (
    DeclaredPublic,
    Event,
    GaussianHistogram,
    LatentPrivUnit,
    ReleaseEvent,
    Unprotected,
)
from cadp_fl.privacy.mechanisms import MECHANISMS
from cadp_fl.privacy.plan import Allowance, Conditions, Plan

__all__ = [
    "allowance",
    "check_class_counts",
    "check_exact_evaluation",
    "check_number",
    "check_plan",
    "check_shuffle",
    "check_totals",
    "open_policy",
]


def open_policy(
    unit: Unit = "record", records_per_patient: int | None = None, labels: Labels = "public"
) -> PolicyConfig:
    """Return what a simulation's sites allow a study that states no policy: everything, under its own relation."""
    return PolicyConfig(
        population="simulation",
        unit=unit,
        records_per_patient=records_per_patient,
        epsilon=100.0,
        delta=0.5,
        labels=labels,
        mechanisms=tuple(MECHANISMS),
        unprotected=True,
        declared_flows=True,
        aggregator="trusted",
        most_sharers=10_000,
        large_delta=True,
        least_noise=0.0,
        most_local_epsilon=1000.0,
        min_units=1,
        min_class_units=0,
        seeded_noise=True,
        review=False,
        evaluation=EvaluationPolicy(exact=True, epsilon=100.0, delta=0.5, count=1_000_000),
    )


def allowance(policy: PolicyConfig, plan: Plan) -> Allowance | None:
    """Return what all plans on the units of a plan may cost together; None where evaluations are exact."""
    if plan.split == "train":
        return Allowance(policy.epsilon, policy.delta)
    is_exact = not plan.protected().events
    rules = policy.evaluation
    return None if rules is None or is_exact else Allowance(rules.epsilon, rules.delta)


def check_totals(policy: PolicyConfig, *, units: int, test_units: int) -> None:
    """Check that a policy's totals fit the numbers of units that they are for.

    Args:
        test_units: 0 where no evaluation is answered, so that their total bounds nothing.

    Raises:
        BudgetError: a delta is too large, so that all plans together could disclose single records.
    """
    check_delta(policy.delta, units, large=policy.large_delta)
    if policy.evaluation is not None and test_units:
        check_delta(policy.evaluation.delta, test_units, large=policy.large_delta, name="evaluation.delta")


def check_plan(policy: PolicyConfig, plan: Plan, *, units: int, noise: str) -> None:
    """Check that a policy allows a plan; what it costs in all, the ledger checks.

    Args:
        units: number of training units of the site.
        noise: where the site's noise comes from.

    Raises:
        PolicyError: it does not, by one of the numbered errors below it.
    """
    if noise == "seeded" and not policy.seeded_noise:
        raise SeededNoiseError("Noise comes from the operating system's entropy here. Found seeded noise; use entropy.")
    if units < policy.min_units:
        raise CohortError(
            f"A site takes part with {policy.min_units} training units (policy: min_units). It declares {units}."
        )
    if plan.split == "test":
        _check_evaluations(policy, plan)
    else:
        _check_what_is_protected(policy, plan)
        for event in plan.events:
            _check_event(policy, event)


def check_class_counts(policy: PolicyConfig, counts: Mapping[str, float] | None, classes: Sequence[str]) -> None:
    """Check that a release has enough units of every class that it has any of.

    Args:
        counts: contributed records by class, declared public, or a lower bound that noised ones give; None where
            nothing of them is known, which only a policy without a minimum takes. A unit contributes m, so that m of a
            class are one unit at least.
        classes: all of them, each of which a policy that declares counts has to name.

    Raises:
        CohortError: it has not.
    """
    least = policy.min_class_units
    if least == 0:
        return
    known: Mapping[str, float] | None = policy.class_counts
    if known is None and counts is not None:
        known = {name: count / policy.records_per_unit for name, count in counts.items()}
    if known is None:
        raise CohortError(
            f"A release has {least} units of each class (policy: min_class_units). Their counts are neither declared "
            "(policy: class_counts) nor noised before; ask for noised counts first."
        )
    if policy.class_counts is not None and (unsaid := sorted(set(classes) - set(known))):
        raise CohortError(
            f"A policy that declares counts declares that of every class (policy: class_counts). '{unsaid[0]}' is "
            "missing; add it."
        )
    if few := [name for name, count in known.items() if count < least]:
        raise CohortError(
            f"A release has {least} units of each class (policy: min_class_units). By declared or noised counts "
            f"'{few[0]}' may have fewer; declare class_counts, or set min_class_units to 0. What noised counts cost "
            "stays spent."
        )


def _check_what_is_protected(policy: PolicyConfig, plan: Plan) -> None:
    if (plan.unit, plan.labels) != (policy.unit, policy.labels):
        raise UnitError(
            f"A plan protects what the policy does: one {policy.unit}, labels {policy.labels}. Found one {plan.unit}, "
            f"labels {plan.labels}; set budget.unit and release.labels."
        )
    releases = any(isinstance(event, ReleaseEvent) and event.stage == "release" for event in plan.events)
    responds = any(event.covers_labels for event in plan.events)
    naming = [event for event in plan.events if event.names_flow]
    if releases and not policy.unprotected and not naming:
        raise UnprotectedModelError(
            "A release says which flow it is made with. A plan is silent on it; name the flow that is public, or plan "
            "the moments or the steps of DP-SGD that it is made of."
        )
    made = [event for event in naming if event.is_protected]
    if releases and made and not (policy.made_flows or policy.unprotected):
        raise MadeFlowError(
            "That a flow is made of noised values of this plan, and of nothing else from these records, is a server's "
            f"word, which the steward takes or not (policy: made_flows). Found one made of {made[0].kind}; set "
            "made_flows: true to take it."
        )
    if plan.against == "recipients" and policy.aggregator != "trusted":
        raise AggregatorError(
            "A site adds all of its noise itself unless its policy trusts an aggregator (policy: aggregator). A plan "
            "adds a share of it; set flow.moments.noise: each-site."
        )
    if plan.sharers > policy.most_sharers:
        raise AggregatorError(
            f"At most {policy.most_sharers} sites share one noise (policy: most_sharers). Found a plan whose epsilon "
            f"rests on {plan.sharers}; ask for fewer, or set flow.moments.noise: each-site."
        )
    if plan.labels == "covered" and releases and not responds:
        raise UnitError(
            "A release that covers labels draws them by randomized response. The plan has none; add it, or declare "
            "labels public."
        )


def _check_event(policy: PolicyConfig, event: Event) -> None:
    if isinstance(event, Unprotected) and not policy.unprotected:
        raise UnprotectedModelError(
            f"Nothing leaves that was computed without differential privacy (policy: unprotected). Found {event.what}."
        )
    if isinstance(event, DeclaredPublic) and not policy.declared_flows and event.sha256 not in policy.public_flows:
        raise UnprotectedModelError(
            "A flow counts as public if the steward says so (policy: public_flows). Found one that a server declares "
            f"public: sha256 {event.sha256}; add it to the policy if no record of this site had a part in it."
        )
    if event.is_protected and event.noise_multiplier < policy.least_noise:
        raise LittleNoiseError(
            f"Every noise's standard deviation is at least {policy.least_noise:g} times the clip norm (policy: "
            f"least_noise). Found {event.noise_multiplier:.2g} of '{event.kind}' in stage '{event.stage}'; ask for a "
            "smaller epsilon, fewer sampled records, or fewer sites that share one noise."
        )
    if isinstance(event, LatentPrivUnit) and event.local_epsilon > policy.most_local_epsilon:
        raise ShuffleError(
            f"What one {policy.unit} sends has an epsilon of at most {policy.most_local_epsilon:g} by itself (policy: "
            f"most_local_epsilon). Found {event.local_epsilon:.3g}; ask for a smaller epsilon."
        )
    if event.contribution not in (None, policy.records_per_unit):
        raise UnitError(
            f"Each {policy.unit} contributes {policy.records_per_unit} records (policy). An event counts "
            f"{event.contribution}; set budget.records_per_patient."
        )
    if isinstance(event, ReleaseEvent):
        names = [name for name, kind in MECHANISMS.items() if kind.from_event(event) is not None]
        if event.stage == "release" and not set(names) & set(policy.mechanisms):
            raise MechanismError(
                f"A release uses a mechanism that the policy names: {', '.join(policy.mechanisms)}. Found "
                f"{' or '.join(names)}."
            )


def check_shuffle(event: LatentPrivUnit, *, units: int, class_units: Sequence[int], conditions: Conditions) -> None:
    """Check that a site's shuffle hides a unit as an event says: among n others with the same randomizer.

    Args:
        units: number of training units of the site.
        class_units: contributed records of each class, as far as they are public.
        conditions: names of classes and attributes.

    Raises:
        ShuffleError: it does not.
    """
    n = event.shuffled_units
    if not n:
        return
    what = "A claim rests on a shuffle where all units of a site are hidden by it alike."
    if conditions.attributes:
        raise ShuffleError(
            f"{what} These records have {len(conditions.attributes)} attributes, which are public and name a unit; set "
            "release.amplification: none."
        )
    if event.label_epsilon:
        if event.classes != len(conditions.classes):
            raise ShuffleError(
                f"{what} The plan counts on {event.classes} classes; these records have {len(conditions.classes)}. Set "
                "release.label_classes."
            )
        among = units
    elif event.records_per_unit > 1:
        raise ShuffleError(
            f"{what} Labels are public, and a unit's {event.records_per_unit} records may be of several classes; set "
            "release.amplification: none."
        )
    else:
        among = min((count for count in class_units if count), default=0)
    if n > among:
        where = "units" if event.label_epsilon else "units of its smallest class, whose labels are public"
        raise ShuffleError(
            f"{what} The plan counts on {n}; this site has fewer {where}. Set release.shuffled_units to the smallest "
            "site's number."
        )


def check_exact_evaluation(policy: PolicyConfig) -> None:
    """Check that a policy lets exact test results leave.

    Raises:
        EvaluationError: it does not.
    """
    if not _evaluation_rules(policy).exact:
        raise EvaluationError("Test results leave with noise (policy: evaluation.exact). Found exact ones.")


def check_number(policy: PolicyConfig, evaluations: int) -> None:
    """Check that a policy allows a number of evaluations, of all plans together.

    Raises:
        EvaluationError: it does not.
    """
    count = _evaluation_rules(policy).count
    if evaluations > count:
        raise EvaluationError(
            f"A site is evaluated at most {count} times (policy: evaluation.count). This would be number {evaluations}."
        )


def _evaluation_rules(policy: PolicyConfig) -> EvaluationPolicy:
    if policy.evaluation is None:
        raise EvaluationError(
            "Nothing is given out about test records (policy: evaluation). Found a request that does."
        )
    return policy.evaluation


def _check_evaluations(policy: PolicyConfig, plan: Plan) -> None:
    _evaluation_rules(policy)
    if plan.unit != policy.unit:
        raise UnitError(
            f"A plan protects what the policy does: one {policy.unit}. Found one {plan.unit}; set budget.unit."
        )
    for event in plan.events:
        if event == EXACT_TEST_RESULTS:
            check_exact_evaluation(policy)
        elif not isinstance(event, GaussianHistogram) or event.stage != EXACT_TEST_RESULTS.stage:
            raise EvaluationError(
                f"Test units are for evaluations. A plan spends '{event.kind}' of them in stage '{event.stage}'; "
                "reserve it for training units."
            )
        else:
            _check_event(policy, event)

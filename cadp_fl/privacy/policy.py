"""A site's policy at work: what a plan asks for, held against what the steward allows, before anything is computed.

No message here holds a value that undeclared records had a part in: the number of units is public, and counts of
classes are declared ones or noised.
"""

from collections.abc import Mapping

from cadp_fl.config import PolicyConfig
from cadp_fl.errors import (
    CohortError,
    EvaluationError,
    MechanismError,
    SeededNoiseError,
    UnitError,
    UnprotectedModelError,
)
from cadp_fl.privacy.accounting import Event, GaussianHistogram, RandomizedResponse, ReleaseEvent, Unprotected
from cadp_fl.privacy.ledger import Allowance, Labels, Plan, Unit
from cadp_fl.privacy.mechanisms import MECHANISMS

__all__ = ["allowance", "check_class_counts", "check_plan", "open_policy"]


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
        min_units=1,
        min_class_units=0,
        seeded_noise=True,
        review=False,
    )


def allowance(policy: PolicyConfig, plan: Plan) -> Allowance | None:
    """Return what all plans on the units of a plan may cost together; None where evaluations are exact."""
    if plan.units == "train":
        return Allowance(policy.epsilon, policy.delta)
    return None if policy.evaluation is None else Allowance(policy.evaluation.epsilon, policy.evaluation.delta)


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
    if plan.units == "test":
        _check_evaluations(policy, plan)
    else:
        _check_what_is_protected(policy, plan)
        for event in plan.events:
            _check_event(policy, event)


def check_class_counts(policy: PolicyConfig, counts: Mapping[str, float] | None) -> None:
    """Check that a release has enough units of every class that it has any of.

    Args:
        counts: contributed records by class, declared public or noised; None where nothing of them is known, which only
            a policy without a minimum takes. A unit contributes m, so that m of a class are one unit at least.

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
    if few := [name for name, count in known.items() if count < least]:
        raise CohortError(
            f"A release has {least} units of each class (policy: min_class_units). By declared or noised counts "
            f"'{few[0]}' has fewer."
        )


def _check_what_is_protected(policy: PolicyConfig, plan: Plan) -> None:
    if (plan.unit, plan.labels) != (policy.unit, policy.labels):
        raise UnitError(
            f"A plan protects what the policy does: one {policy.unit}, labels {policy.labels}. Found one {plan.unit}, "
            f"labels {plan.labels}; set budget.unit and release.labels."
        )
    releases = any(isinstance(event, ReleaseEvent) and event.stage == "release" for event in plan.events)
    responds = any(isinstance(event, RandomizedResponse) for event in plan.events)
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
    _check_records(policy, event)
    if isinstance(event, ReleaseEvent):
        names = [name for name, kind in MECHANISMS.items() if kind.from_event(event) is not None]
        if event.stage == "release" and not set(names) & set(policy.mechanisms):
            raise MechanismError(
                f"A release uses a mechanism that the policy names: {', '.join(policy.mechanisms)}. Found "
                f"{' or '.join(names)}."
            )


def _check_records(policy: PolicyConfig, event: Event) -> None:
    m = getattr(event, "records_per_unit", None)
    if m is not None and m != policy.records_per_unit:
        raise UnitError(
            f"Each {policy.unit} contributes {policy.records_per_unit} records (policy). An event counts {m}; set "
            "budget.records_per_patient."
        )


def _check_evaluations(policy: PolicyConfig, plan: Plan) -> None:
    rules = policy.evaluation
    if rules is None:
        raise EvaluationError("Nothing is told of test records (policy: evaluation). Found a plan that does.")
    if any(not isinstance(event, (GaussianHistogram, Unprotected)) for event in plan.events):
        raise EvaluationError("Of test records, counts are told. Found a plan on them with another kind of event.")
    for event in plan.events:
        _check_records(policy, event)
    times = sum(event.times for event in plan.events if isinstance(event, GaussianHistogram))
    if times > rules.count:
        raise EvaluationError(f"A site is evaluated at {rules.count} times (policy: evaluation.count). Found {times}.")
    if any(isinstance(event, Unprotected) for event in plan.events) and not rules.exact:
        raise EvaluationError("Test results leave with noise (policy: evaluation.exact). Found exact ones.")

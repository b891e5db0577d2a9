"""What evaluating a study's classifiers costs the sites' test units: a plan of its own for each method."""

from cadp_fl.config import StudyConfig
from cadp_fl.evaluation.noised import evaluation_event
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import EXACT_TEST_RESULTS
from cadp_fl.privacy.events import GaussianHistogram
from cadp_fl.privacy.plan import Allowance, Plan

__all__ = ["event_of", "evaluation_plan"]


def event_of(study: StudyConfig, classes: int) -> GaussianHistogram | None:
    """Return the event of the one evaluation of a method's classifier; None where evaluations are exact.

    Args:
        classes: number of classes.

    Raises:
        BudgetError: no noise meets the budget.
    """
    evaluation = study.evaluation
    if evaluation.epsilon is None or evaluation.delta is None:
        return None
    kept = 1 - study.budget.retry_reserve
    return evaluation_event(evaluation.epsilon * kept, evaluation.delta * kept, classes, study.budget.records_per_unit)


def evaluation_plan(study: StudyConfig, method: str, classes: int) -> Plan:
    """Return what evaluating a method's classifier may spend of a site's test units.

    A share of it is set aside for results that a crash loses, as of every budget. Counts cover labels, whether those of
    training records are public or not.

    Raises:
        BudgetError: no noise meets the budget.
    """
    evaluation, event = study.evaluation, event_of(study, classes)
    budget = Budget.of(study.budget, study.labels)
    if event is None or evaluation.epsilon is None or evaluation.delta is None:
        return Plan(method, (EXACT_TEST_RESULTS,), budget.delta, unit=budget.unit, labels="covered", split="test")
    share = study.budget.retry_reserve
    retry = Allowance(evaluation.epsilon * share, evaluation.delta * share)
    delta = evaluation.delta * (1 - share) + retry.delta
    return Plan(method, (event,), delta, unit=budget.unit, labels="covered", split="test", retry=retry)

"""What a run knows when it ends, however it ends.

`cadp_fl.report.run_claims` says what may be claimed of it, and `cadp_fl.report.summary` prints both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cadp_fl.config import StudyConfig
from cadp_fl.evaluation.utility import Metrics
from cadp_fl.privacy.claims import Scope
from cadp_fl.privacy.events import Event, Unprotected
from cadp_fl.privacy.plan import Plan, Split

__all__ = ["Account", "MethodFigures", "Results", "SiteEntry", "going_on"]

_GOING_ON = "The run is going on, or stopped, after "


def going_on(last: str) -> str:
    """Return the `failure` of a summary that is written after a phase or a method, before the run is over."""
    return f"{_GOING_ON}'{last}'."


@dataclass(frozen=True)
class SiteEntry:
    """What a site declared of itself.

    Attributes:
        train: number of training units.
        test: number of test units.
        class_counts: declared number of training records by class, classes it does not hold left out; None where labels
            are covered.
    """

    train: int
    test: int
    class_counts: Mapping[str, int] | None


@dataclass(frozen=True)
class Account:
    """What a site's ledger holds of one method.

    Attributes:
        plan: what was reserved. Every epsilon is computed from this.
        spent: what was computed, in order; None where the site did not say.
    """

    plan: Plan
    spent: tuple[Event, ...] | None = None


@dataclass(frozen=True)
class MethodFigures:
    """How good a method's classifier is.

    Attributes:
        classifier: name of the model.
        pooled: on the test records of all sites that answered together.
        per_site: by site.
        release: the numbers of the method's release, if it has one.
    """

    classifier: str
    pooled: Metrics
    per_site: Mapping[str, Metrics]
    release: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Results:
    """All that a run knows when it ends, however it ends.

    Attributes:
        study: the config.
        started: when it began.
        federation: name of the federation of real sites; empty in a simulation.
        dataset: name of the data set.
        attributes: names of its records' attributes; none where they have a label alone.
        sites: what each site declared.
        missing: site, phase and reason of each answer that did not come.
        failure: why the run stopped early, if it did.
        figures: by method.
        accounts: of training units, by method, then site.
        test_accounts: of test units, by method, then site.
        noised_counts: noised number of training records by method, site and class, where labels are covered.
        unprotected_before: what left each site unprotected in earlier runs, by training and test units.
        traffic: bytes of tensors that left a site and reached it, by site.
        seconds: wall time by phase.
        software: versions.
    """

    study: StudyConfig
    started: datetime
    federation: str = ""
    dataset: str = ""
    attributes: tuple[str, ...] = ()
    sites: dict[str, SiteEntry] = field(default_factory=dict)
    missing: list[dict[str, str]] = field(default_factory=list)
    failure: str | None = None
    resumed: tuple[datetime, ...] = ()
    figures: dict[str, MethodFigures] = field(default_factory=dict)
    accounts: dict[str, dict[str, Account]] = field(default_factory=dict)
    test_accounts: dict[str, dict[str, Account]] = field(default_factory=dict)
    unprotected_before: dict[str, dict[Split, tuple[Unprotected, ...]]] = field(default_factory=dict)
    noised_counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    traffic: dict[str, tuple[int, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`complete` if every site answered in every phase and every method ended; else `incomplete`."""
        return "incomplete" if self.failure or self.missing else "complete"

    @property
    def scope(self) -> Scope:
        """What every claim is about."""
        budget = self.study.budget
        return Scope(budget.unit, budget.records_per_unit, self.study.labels, self.attributes)

    @property
    def relation(self) -> str:
        """The neighbouring relation of every claim."""
        return self.scope.relation

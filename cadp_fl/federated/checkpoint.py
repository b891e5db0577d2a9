"""What a run has finished, on disk, so that an interrupted one can go on from its last finished phase.

A phase that was interrupted begins again: what its first attempt computed is thrown away, and no account counts it. Its
figures were on the terminal and in the metrics until then. A simulation's sites lose nothing by that; at a real site it
would have been spent, and the site's own ledger says so.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cadp_fl.errors import InputError
from cadp_fl.evaluation.utility import Metrics
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.accounting import Event, events_from_json
from cadp_fl.privacy.plan import Plan
from cadp_fl.report.summary import MethodFigures

__all__ = ["CHECKPOINT", "Checkpoint"]

CHECKPOINT = "checkpoint.json"


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")
    started: datetime
    plans: dict[str, dict[str, Any]] = Field(description="what each method reserves of training units, by its name")
    test_plans: dict[str, dict[str, Any]] = Field({}, description="what it reserves of test units, once that is known")
    resumed: list[datetime] = Field([], description="when the run was taken up again")
    finished: list[str] = Field([], description="phases, in order")
    figures: dict[str, dict[str, Any]] = Field({}, description="of every method that ended")
    spent: dict[str, dict[str, list[dict[str, Any]]]] = Field({}, description="events by plan and site")
    missing: list[dict[str, str]] = []
    traffic: dict[str, tuple[int, int]] = {}
    seconds: dict[str, float] = {}
    metrics_bytes: int = 0


class Checkpoint:
    """The state of a run after its last finished phase.

    Args:
        folder: the run folder.
        state: what is known.
    """

    def __init__(self, folder: Path, state: _State) -> None:
        self._path = folder / CHECKPOINT
        self._state = state

    @classmethod
    def begin(cls, folder: Path, plans: Mapping[str, Plan]) -> "Checkpoint":
        """Return the state of a new run with a plan for each method, and write it down."""
        checkpoint = cls(folder, _State(started=datetime.now(UTC), plans=_trees(plans)))
        checkpoint._write()
        return checkpoint

    @classmethod
    def resume(cls, folder: Path, plans: Mapping[str, Plan]) -> "Checkpoint":
        """Return the state that a run left in its folder, and note that it goes on.

        What is claimed of a method that ended is computed from its plan, so that the plans have to be those of then. A
        study's config may be the same, and a stored flow that it names another one.

        Raises:
            InputError: the folder holds no run that can be resumed, or one with other plans.
        """
        path = folder / CHECKPOINT
        try:
            state = _State.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise InputError(
                f"A run is resumed from its {CHECKPOINT}. '{folder}' has none that can be read; start a new run."
            ) from error
        _check_same(_trees(plans), state.plans)
        state.resumed.append(datetime.now(UTC))
        return cls(folder, state)

    def hold_test_plans(self, plans: Mapping[str, Plan]) -> None:
        """Write down what each method reserves of test units, or check that it is what was written down before.

        Raises:
            InputError: the run began with other plans.
        """
        if self._state.test_plans:
            _check_same(_trees(plans), self._state.test_plans)
        self._state.test_plans = _trees(plans)
        self._write()

    @property
    def started(self) -> datetime:
        """When the run began."""
        return self._state.started

    @property
    def resumed(self) -> tuple[datetime, ...]:
        """When the run was taken up again."""
        return tuple(self._state.resumed)

    @property
    def missing(self) -> list[dict[str, str]]:
        """Who had not answered by then, and why."""
        return self._state.missing

    @property
    def traffic(self) -> dict[str, tuple[int, int]]:
        """Bytes up and down by site until then."""
        return self._state.traffic

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of every phase until then."""
        return self._state.seconds

    @property
    def metrics_bytes(self) -> int:
        """Length of metrics.jsonl until then."""
        return self._state.metrics_bytes

    def is_finished(self, phase: str) -> bool:
        """Tell whether a phase is finished."""
        return phase in self._state.finished

    def figures(self, method: str) -> MethodFigures | None:
        """Return the figures of a method that ended, or None."""
        if method not in self._state.figures:
            return None
        tree = self._state.figures[method]
        pooled = Metrics(**tree["pooled"])
        per_site = {site: Metrics(**figures) for site, figures in tree["per_site"].items()}
        return MethodFigures(tree["classifier"], pooled, per_site, tree["release"])

    def spent(self, key: str) -> dict[str, tuple[Event, ...]]:
        """Return what each site had spent of a plan in the finished phases of its method."""
        return {site: events_from_json(events) for site, events in self._state.spent.get(key, {}).items()}

    def finish(
        self,
        phase: str,
        *,
        spent: Mapping[str, Mapping[str, tuple[Event, ...]]],
        missing: list[dict[str, str]],
        traffic: dict[str, tuple[int, int]],
        seconds: dict[str, float],
        metrics_bytes: int,
    ) -> None:
        """Write down that a phase is finished, and all that is known by now.

        Args:
            spent: by key of the phase's plans, and site.
        """
        state = self._state
        state.finished.append(phase)
        for key, by_site in spent.items():
            state.spent[key] = {site: [event.model_dump() for event in events] for site, events in by_site.items()}
        state.missing, state.traffic, state.seconds = missing, traffic, seconds
        state.metrics_bytes = metrics_bytes
        self._write()

    def end_method(self, method: str, figures: MethodFigures) -> None:
        """Write down the figures of a method whose phases are all finished."""
        self._state.figures[method] = asdict(figures)
        self._write()

    def _write(self) -> None:
        with replaced_file(self._path) as file:
            file.write_text(self._state.model_dump_json(indent=2), encoding="utf-8")


def _check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    if changed := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
        raise InputError(
            f"A run is resumed with the plans that it began with. That of '{changed[0]}' is another one now: the "
            "stored flow, a plugin or the library changed; put it back, or start a new run."
        )


def _trees(plans: Mapping[str, Plan]) -> dict[str, dict[str, Any]]:
    return {name: plan.to_json() for name, plan in plans.items()}

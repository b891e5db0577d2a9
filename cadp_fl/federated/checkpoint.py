"""What a run has finished, on disk, so that an interrupted one can go on from its last finished phase.

A phase that was interrupted begins again. In a simulation, what its first attempt computed is thrown away, and no
account counts it; its figures were on the terminal and in the metrics until then. At real sites it was spent, and they
keep what they answered: there the phase is replayed (see `cadp_fl.federated.journal`), and the sites' own ledgers hold
all of it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from cadp_fl.data.fingerprint import Fingerprint
from cadp_fl.errors import InputError
from cadp_fl.evaluation.utility import Metrics
from cadp_fl.federated.basis import Basis, check_same_records
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.claims import unprotected_from_json
from cadp_fl.privacy.events import Event, Unprotected, events_from_json
from cadp_fl.privacy.plan import Plan, Split
from cadp_fl.report.results import MethodFigures
from cadp_fl.site.description import Description

__all__ = ["CHECKPOINT", "Checkpoint"]

CHECKPOINT = "checkpoint.json"


_Bytes = Annotated[int, Field(ge=0, le=2**63)]


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")
    started: datetime
    federation: str = Field("", description="name of that of the sites; empty in a simulation")
    run: str = Field("", description="id under which real sites keep the run's plans and answers")
    basis: Basis
    records: dict[str, Fingerprint] = Field({}, description="of a simulation's sites, once they have described them")
    roster: dict[str, Description] = Field({}, description="what each real site said of itself when the run began")
    unprotected_before: dict[str, dict[Split, list[dict[str, Any]]]] = Field(
        {}, description="what real sites had let go unprotected before the run, by site and units"
    )
    reserved: dict[str, list[str]] = Field({}, description="real sites that set a plan aside, by the plan's key")
    plans: dict[str, dict[str, Any]] = Field(description="what each method reserves of training units, by its name")
    test_plans: dict[str, dict[str, Any]] = Field({}, description="what it reserves of test units, once that is known")
    resumed: list[datetime] = Field([], description="when the run was taken up again")
    finished: list[str] = Field([], description="phases, in order")
    figures: dict[str, dict[str, Any]] = Field({}, description="of every method that ended")
    spent: dict[str, dict[str, list[dict[str, Any]]]] = Field({}, description="events by plan and site")
    missing: list[dict[str, str]] = []
    traffic: dict[str, tuple[_Bytes, _Bytes]] = {}
    seconds: dict[str, Annotated[float, Field(ge=0, le=1e12)]] = {}
    metrics_bytes: _Bytes = 0

    @property
    def source(self) -> str:
        """The file, the folder or the name that a simulation's records are read from."""
        data = self.basis.study["data"]
        return str(data.get("path") or data["source"])


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
    def begin(
        cls, folder: Path, plans: Mapping[str, Plan], basis: Basis, *, federation: str = "", run: str = ""
    ) -> "Checkpoint":
        """Return the state of a new run with a plan for each method, and write it down."""
        state = _State(started=datetime.now(UTC), federation=federation, run=run, basis=basis, plans=_trees(plans))
        checkpoint = cls(folder, state)
        checkpoint._write()
        return checkpoint

    @classmethod
    def resume(cls, folder: Path, plans: Mapping[str, Plan], basis: Basis, *, federation: str = "") -> "Checkpoint":
        """Return the state that a run left in its folder, and note that it goes on.

        What is claimed of a method that ended is computed from its plan, so that the plans have to be those of then.

        Raises:
            InputError: the folder holds no run that can be resumed, or one with another basis or other plans.
        """
        state = _read(folder)
        if state.federation != federation:
            raise InputError(
                f"A run is resumed over the sites that it began with. This one began "
                f"{_where(state.federation)}, and is to go on {_where(federation)}; resume it there."
            )
        state.basis = basis.continued(state.basis)
        _check_same(_trees(plans), state.plans)
        state.resumed.append(datetime.now(UTC))
        return cls(folder, state)

    @staticmethod
    def check(folder: Path, basis: Basis, records: Mapping[str, Fingerprint]) -> None:
        """Check that the run in a folder has this basis and, in a simulation, these records; change nothing.

        Raises:
            InputError: it has others, or the folder holds no run that can be resumed.
        """
        state = _read(folder)
        # Records first: some of what a study says, as how many units are shuffled, is worked out from them.
        check_same_records(records, state.records, source=state.source)
        basis.continued(state.basis)

    def hold_records(self, records: Mapping[str, Fingerprint]) -> None:
        """Write down which records a simulation's sites have, or check that they are those of before.

        Raises:
            InputError: the run began with others.
        """
        check_same_records(records, self._state.records, source=self._state.source)
        self._state.records = {**records, **self._state.records}
        self._write()

    def hold_test_plans(self, plans: Mapping[str, Plan]) -> None:
        """Write down what each method reserves of test units, or check that it is what was written down before.

        Raises:
            InputError: the run began with other plans.
        """
        if self._state.test_plans:
            _check_same(_trees(plans), self._state.test_plans)
        self._state.test_plans = _trees(plans)
        self._write()

    def hold_roster(self, roster: Mapping[str, Description], missing: list[dict[str, str]]) -> None:
        """Write down the real sites that take part, for good, and those that were not there."""
        self._state.roster, self._state.missing = dict(roster), missing
        self._write()

    def hold_reserved(
        self, reserved: Mapping[str, Collection[str]], before: Mapping[str, Mapping[Split, Iterable[Event]]]
    ) -> None:
        """Write down which real sites have set which plan aside, and what they had let go unprotected before.

        Args:
            reserved: sites by the plan's key.
            before: events by site and units.
        """
        self._state.reserved = {key: sorted(sites) for key, sites in reserved.items()}
        self._state.unprotected_before = {
            site: {units: [event.model_dump() for event in events] for units, events in left.items()}
            for site, left in before.items()
        }
        self._write()

    @property
    def unprotected_before(self) -> dict[str, dict[Split, tuple[Unprotected, ...]]]:
        """What each real site had let go unprotected before the run, by units."""
        return {site: unprotected_from_json(left) for site, left in self._state.unprotected_before.items()}

    @property
    def run(self) -> str:
        """Id of the run; empty in a simulation."""
        return self._state.run

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the software that the run was begun and resumed with, by name."""
        return self._state.basis.versions

    @property
    def roster(self) -> dict[str, Description]:
        """What each real site said of itself when the run began; empty before that, and in a simulation."""
        return self._state.roster

    @property
    def reserved(self) -> dict[str, list[str]]:
        """The real sites that set a plan aside, by the plan's key."""
        return self._state.reserved

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
        """Return whether a phase is finished."""
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


def _read(folder: Path) -> _State:
    path = folder / CHECKPOINT
    try:
        return _State.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"A run is resumed from its {CHECKPOINT}. '{folder}' has none that can be read; start a new run."
        ) from error


def _check_same(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    if changed := [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]:
        raise InputError(
            f"A run is resumed with the plans that it began with. That of '{changed[0]}' is another one now: the "
            "number of classes or the library changed; put it back, or start a new run."
        )


def _where(federation: str) -> str:
    return f"over the federation '{federation}'" if federation else "as a simulation"


def _trees(plans: Mapping[str, Plan]) -> dict[str, dict[str, Any]]:
    return {name: plan.to_json() for name, plan in plans.items()}

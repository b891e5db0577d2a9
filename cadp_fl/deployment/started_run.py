"""A run over real sites that was started: which of Flower's runs it is, how far it has come, and how to stop it.

`run.json` in the run folder remembers it, and `progress.jsonl` has every step that its server app took.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cadp_fl.deployment.flower import superlink_of
from cadp_fl.errors import CadpError, FlowerError, InputError
from cadp_fl.outputs import write_durably
from cadp_fl.study.flower import note_end

__all__ = ["PROGRESS", "StartedRun", "run_status", "stop_run"]

RUN, PROGRESS = "run.json", "progress.jsonl"
MAX_PROGRESS_BYTES = 256 << 20


class StartedRun(BaseModel):
    """Which of Flower's runs fills a run folder.

    Attributes:
        federation: name of the federation.
        folder: of its coordinator.
        flower_run: Flower's id of the run.
        started: when it was started, or resumed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    federation: str
    folder: Path
    flower_run: Annotated[int, Field(ge=0, lt=2**64)]
    started: datetime

    @classmethod
    def of(cls, output: Path) -> "StartedRun | None":
        """Return the run that was started last into a folder, or None.

        Raises:
            InputError: its file cannot be read.
        """
        try:
            return cls.model_validate_json((output / RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise InputError(
                f"A run folder's {RUN} says which run it is of. That in '{output}' cannot be read; bring it back, or "
                "choose another folder."
            ) from error

    def store(self, output: Path) -> None:
        """Write down that the run was started into a folder."""
        write_durably(output / RUN, self.model_dump_json(indent=2).encode())

    def flower_status(self) -> str:
        """Return what Flower says of the run.

        Raises:
            CadpError: the SuperLink does not answer.
        """
        try:
            return superlink_of(self.folder).status(self.flower_run)
        except FlowerError as error:
            raise CadpError(
                f"A federation's SuperLink says what became of a run. It does not answer ({error}); start it with "
                f"cadp-fl coordinator serve {self.folder}"
            ) from error

    def ended(self) -> str:
        """Return what Flower says of the run if it is over, and nothing else; a SuperLink may be away for a while."""
        try:
            status = self.flower_status()
        except CadpError:
            return ""
        return status if _is_over(status) else ""

    def check_is_over(self, output: Path) -> None:
        """Check that the run in a folder does not go on.

        Raises:
            InputError: it does.
            CadpError: the SuperLink does not answer, so that nobody knows.
        """
        status = self.flower_status()
        if not _is_over(status):
            raise InputError(
                f"A folder has one run at a time. That in '{output}' goes on (Flower says '{status}'); look at it with "
                f"cadp-fl run --status --output {output}, or stop it with cadp-fl run --stop --output {output}."
            )


def _is_over(status: str) -> bool:
    return status.startswith("finished") or status == "unknown"


def run_status(output: Path) -> dict[str, Any]:
    """Return how far the run in a folder has come, as JSON values.

    Raises:
        InputError: the folder holds no run over real sites.
    """
    run = _started(output)
    steps = _steps(output / PROGRESS)
    try:
        flower = run.flower_status()
    except CadpError as error:
        flower = f"unknown. {error}"
    end = next((step for step in steps if step["step"] in ("done", "failed")), None)
    return {
        "federation": run.federation,
        "flower_run": run.flower_run,
        "flower": flower,
        "started": run.started.isoformat(timespec="seconds"),
        **_last_round(steps),
        "since": _changed(output / PROGRESS),
        "missing": [
            {"site": step["site"], "phase": step["phase"], "round": step["round"], "reason": step["failed"]}
            for step in steps
            if step["step"] == "answer" and "failed" in step
        ],
        "end": end and {"status": end.get("status", "failed"), "reason": end.get("reason", "")},
    }


def _last_round(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the round that a run is in, and which sites have answered in it or wait."""
    rounds = [step for step in steps if step["step"] in ("answer", "wait", "round") and step["phase"] != "account"]
    if not rounds:
        return {"phase": None, "round": None, "of": None, "answered": [], "waiting": []}
    last = rounds[-1]
    here = [step for step in rounds if (step["phase"], step["round"]) == (last["phase"], last["round"])]
    answered = {step["site"] for step in here if step["step"] == "answer" and "failed" not in step}
    waiting = {step["site"]: step["reason"] for step in here if step["step"] == "wait"}
    return {
        **{name: last[name] for name in ("phase", "round", "of")},
        "answered": sorted(answered),
        "waiting": [{"site": site, "reason": waiting[site]} for site in sorted(set(waiting) - answered)],
    }


def stop_run(output: Path) -> None:
    """Stop the run in a folder, and say so in its summary.

    Raises:
        InputError: the folder holds no run over real sites, or one that is over.
        CadpError: the SuperLink does not answer, or refuses.
    """
    run = _started(output)
    status = run.flower_status()
    if _is_over(status):
        raise InputError(f"A run is stopped while it goes on. That in '{output}' is over (Flower says '{status}').")
    superlink_of(run.folder).stop(run.flower_run)
    note_end(output, "The run was stopped (cadp-fl run --stop).")


def _started(output: Path) -> StartedRun:
    run = StartedRun.of(output)
    if run is None:
        raise InputError(f"A run over real sites left its {RUN}. '{output}' has none; check the path.")
    return run


def _steps(progress: Path) -> list[dict[str, Any]]:
    """Return the whole steps that a run has written."""
    if not progress.is_file() or progress.stat().st_size > MAX_PROGRESS_BYTES:
        return []
    return [json.loads(line) for line in progress.read_text(encoding="utf-8").split("\n")[:-1]]


def _changed(path: Path) -> str | None:
    if not path.is_file():
        return None
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")

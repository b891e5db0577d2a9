"""A roll call from the coordinator: one run of Flower's in which every connected site says what it is."""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from cadp_fl.errors import CadpError
from cadp_fl.federated.coordinator import CONNECTION, CoordinatorFolder
from cadp_fl.federated.flower_server import ROLL_CALL
from cadp_fl.study.app_folder import stage_app
from cadp_fl.study.environment import flower_environment

__all__ = ["ask_all"]

SECONDS = 120.0
COMMAND_SECONDS = 30.0
PAUSE_SECONDS, LOOK_SECONDS = 0.5, 5.0


def ask_all(folder: CoordinatorFolder) -> dict[str, Any]:
    """Return what every connected site says of itself, as `federated.roll_call` tells it. Nothing is spent.

    Raises:
        CadpError: Flower does not take the run, or it gives no result.
    """
    with tempfile.TemporaryDirectory(prefix="roll-call-", dir=folder.temporary) as temporary:
        place = Path(temporary)
        app, result = stage_app(place), place / ROLL_CALL
        settings = place / "run.toml"
        # JSON strings are TOML strings.
        settings.write_text(f"only-describe = true\noutput-dir = {json.dumps(temporary)}\n", encoding="utf-8")
        answer = _flwr(folder, "run", str(app), CONNECTION, "-c", str(settings))
        run = str(answer.get("run-id", ""))
        if not run:
            raise CadpError(f"Flower did not take the run: {str(answer.get('error-message', answer))[:300]}")
        _wait(folder, run, result)
        return dict(json.loads(result.read_text(encoding="utf-8")))


def _wait(folder: CoordinatorFolder, run: str, result: Path) -> None:
    """Return when the run's result is there.

    Raises:
        CadpError: it ended without one, or takes too long.
    """
    deadline, next_look = time.monotonic() + SECONDS, 0.0
    while not result.exists():
        is_over = False
        if time.monotonic() > next_look:
            is_over, next_look = _is_over(folder, run), time.monotonic() + LOOK_SECONDS
        if time.monotonic() > deadline:
            _flwr(folder, "stop", run, CONNECTION)
            is_over = True
        if is_over and not result.exists():
            raise CadpError(
                f"A roll call ends with a result. Run {run} gave none; see flwr log {run}, and the logs in "
                f"'{folder.logs}'."
            )
        time.sleep(PAUSE_SECONDS)


def _is_over(folder: CoordinatorFolder, run: str) -> bool:
    runs = _flwr(folder, "ls", CONNECTION, "--run-id", run).get("runs", [])
    return bool(runs) and str(runs[0].get("status", "")).startswith("finished")


def _flwr(folder: CoordinatorFolder, *arguments: str) -> dict[str, Any]:
    """Call Flower's command line, and return the JSON that it prints; none where it prints something else."""
    done = subprocess.run(
        ["flwr", *arguments, "--format", "json"],
        cwd=folder.flower,
        env=os.environ | flower_environment(folder.flower),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    try:
        return dict(json.loads(done.stdout[done.stdout.find("{") :]))
    except ValueError:
        return {"error-message": (done.stderr or done.stdout).strip() or "it said nothing"}

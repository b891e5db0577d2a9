"""A roll call from the coordinator: one run of Flower's in which every connected site says what it is."""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from cadp_fl.deployment.coordinator import CoordinatorFolder
from cadp_fl.deployment.flower import superlink_of
from cadp_fl.errors import CadpError
from cadp_fl.federated.flower_server import ROLL_CALL
from cadp_fl.study.flower import Flower, start_run

__all__ = ["ask_all"]

SECONDS = 120.0
PAUSE_SECONDS, LOOK_SECONDS = 0.5, 5.0


def ask_all(folder: CoordinatorFolder) -> dict[str, Any]:
    """Return what every connected site says of itself, as `federated.roll_call` returns it. Nothing is spent.

    Raises:
        CadpError: Flower does not take the run, or it gives no result.
    """
    flower = superlink_of(folder.path)
    with tempfile.TemporaryDirectory(prefix="roll-call-", dir=folder.temporary) as temporary:
        result = Path(temporary) / ROLL_CALL
        run = start_run(flower, {"only-describe": True, "output-dir": temporary})
        try:
            _wait(flower, run, result)
        except CadpError as error:
            raise CadpError(f"{error} See flwr log {run}, and the logs in '{folder.logs}'; try again.") from error
        return dict(json.loads(result.read_text(encoding="utf-8")))


def _wait(flower: Flower, run: int, result: Path) -> None:
    """Return when the run's result is there.

    Raises:
        CadpError: it ended without one, or takes too long.
    """
    deadline, next_look = time.monotonic() + SECONDS, time.monotonic() + LOOK_SECONDS
    while not result.exists():
        if time.monotonic() > deadline:
            flower.stop(run)
            raise CadpError(f"A roll call takes {SECONDS:.0f} s at most. This one took longer, and was stopped.")
        if time.monotonic() > next_look:
            status = flower.status(run)
            if status.startswith("finished") and not result.exists():
                raise CadpError(f"A roll call ends with a result. Flower says of this one: {status}.")
            next_look = time.monotonic() + LOOK_SECONDS
        time.sleep(PAUSE_SECONDS)

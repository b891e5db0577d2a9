"""Flower's own command line: start a run, follow its steps, ask what became of it.

Flower is only ever started as a command, quietly: it sends no telemetry, looks for no update and installs nothing. The
server app writes its steps to a file, which is followed here; one that dies says nothing, so Flower is asked too.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from cadp_fl.errors import CadpError, FlowerError
from cadp_fl.outputs import replaced_file
from cadp_fl.report.page import write_report
from cadp_fl.study.app_folder import stage_app
from cadp_fl.study.toml import toml_string

__all__ = ["Flower", "follow", "note_end", "start_run"]

PAUSE_SECONDS = 0.1
COMMAND_SECONDS = 120.0
LOG_SECONDS = 30.0
KNOWN_KEY = 23
"""Flower's code for a key that its database has, registered or removed."""


@dataclass(frozen=True)
class Flower:
    """A SuperLink, as Flower's command line knows it.

    Attributes:
        home: folder of Flower's config, which names the connection. Commands start there, since Flower takes a folder
            that is named like a connection for an app.
        connection: its name.
        environment: of the commands.
    """

    home: Path
    connection: str
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(self, app: Path, settings: Mapping[str, str | bool], *options: str) -> int:
        """Start a run of an app, and return its id.

        Args:
            app: folder of the Flower app.
            settings: the run config.
            options: of `flwr run`.

        Raises:
            FlowerError: Flower did not take it.
        """
        # A file, since Flower splits what stands on its command line at spaces and quotes.
        config = app.parent / "run.toml"
        config.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()), encoding="ascii")
        answer = self._call("run", str(app), self.connection, "-c", str(config), *options)
        if "run-id" not in answer:
            raise FlowerError(f"Flower did not take the run: {_said(answer)}")
        return int(answer["run-id"])

    def status(self, run_id: int) -> str:
        """Return what Flower says of a run, such as `running`, or `finished:failed` with its reason.

        One that it forgot is `unknown`.

        Raises:
            FlowerError: the SuperLink does not answer.
        """
        answer = self._call("ls", self.connection)
        if not answer.get("success"):
            raise FlowerError(_said(answer))
        for run in answer.get("runs", []):
            if str(run.get("run-id")) == str(run_id):
                status, details = str(run.get("status", "unknown")), str(run.get("status-details") or "")
                has_details = status.startswith("finished") and details not in ("", "N/A")
                return f"{status}, {details:.300}" if has_details else status
        return "unknown"

    def stop(self, run_id: int) -> None:
        """Stop a run.

        Raises:
            FlowerError: Flower did not.
        """
        answer = self._call("stop", str(run_id), self.connection)
        if not answer.get("success"):
            raise FlowerError(f"Flower did not stop the run: {_said(answer)}")

    def nodes(self) -> dict[str, str]:
        """Return the state of each node that is registered, by its id: registered, online or offline.

        Raises:
            FlowerError: the SuperLink does not answer.
        """
        answer = self._call("supernode", "list", self.connection)
        if not answer.get("success"):
            raise FlowerError(_said(answer))
        nodes = {str(node["node-id"]): str(node["status"]) for node in answer["nodes"]}
        return {node: status for node, status in nodes.items() if status != "unregistered"}

    def register(self, key: Path, name: str) -> str | None:
        """Let a node connect by its public key, and return its id; None where Flower knows the key, even a removed one.

        Raises:
            FlowerError: Flower did not.
        """
        answer = self._call("supernode", "register", str(key), self.connection, "--name", name)
        if answer.get("success"):
            return str(answer["node-id"])
        if f"code: {KNOWN_KEY}]" in str(answer.get("error-message")):
            return None
        raise FlowerError(f"Flower did not register '{name}': {_said(answer)}")

    def unregister(self, node: str) -> None:
        """Let a node connect no longer.

        Raises:
            FlowerError: Flower did not.
        """
        answer = self._call("supernode", "unregister", node, self.connection)
        if not answer.get("success"):
            raise FlowerError(f"Flower did not remove a node: {_said(answer)}")

    def keep_log(self, run_id: int, log: Path) -> None:
        """Append what a run's server app printed, which Flower keeps apart from its own log."""
        with log.open("ab") as stream, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["flwr", "log", str(run_id), self.connection, "--show"],
                cwd=self.home,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.DEVNULL,
                timeout=LOG_SECONDS,
                check=False,
            )

    def _call(self, *arguments: str) -> dict[str, Any]:
        """Call a command, and return the JSON that it prints."""
        try:
            finished = subprocess.run(
                ["flwr", *arguments, "--format", "json"],
                cwd=self.home,
                env=dict(self.environment),
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise FlowerError(f"Flower's command did not answer within {COMMAND_SECONDS:.0f} s.") from None
        start = finished.stdout.find("{")
        try:
            return dict(json.loads(finished.stdout[start:]))
        except ValueError:
            said = (finished.stderr or finished.stdout).strip().splitlines()
            raise FlowerError(f"Flower's command failed: {said[-1] if said else 'it said nothing'}") from None


def _toml(value: str | bool) -> str:
    return toml_string(value) if isinstance(value, str) else str(value).lower()


def _said(answer: Mapping[str, Any]) -> str:
    lines = str(answer.get("error-message") or "").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def start_run(flower: Flower, settings: Mapping[str, str | bool], *options: str) -> int:
    """Start a run of the project's own app, and return its id.

    Raises:
        FlowerError: Flower did not take it.
    """
    with tempfile.TemporaryDirectory(prefix="cadp-fl-app-") as folder:  # Flower has its own copy once it has the run
        return flower.run(stage_app(Path(folder)), settings, *options)


def follow(progress: Path, ended: Callable[[], str], *, look_seconds: float) -> Iterator[dict[str, Any]]:
    """Yield every step that a run writes until it says that it is done, or is found to be over.

    Args:
        progress: the file that the server app appends its steps to.
        ended: returns what Flower says of a run that is over, and nothing of one that goes on.
        look_seconds: time between two calls of `ended`.

    Raises:
        CadpError: the run failed.
        FlowerError: its server app died.
    """
    with progress.open(encoding="utf-8") as lines:
        tail, status, next_look = _Tail(lines), "", time.monotonic() + look_seconds
        while True:
            for step in tail.steps():
                if step["step"] == "failed":
                    raise CadpError(step["reason"])
                yield step
                if step["step"] == "done":
                    return
            if status:
                raise FlowerError(f"The server app died: Flower says '{status}'.")
            if time.monotonic() > next_look:
                status = ended()  # what it had written by then is read once more
                next_look = time.monotonic() + look_seconds
            if not status:
                time.sleep(PAUSE_SECONDS)


class _Tail:
    """The whole lines of a file that grows."""

    def __init__(self, lines: TextIO) -> None:
        self._lines, self._pending = lines, ""

    def steps(self) -> Iterator[dict[str, Any]]:
        """Yield what stands in the lines that are there by now."""
        while line := self._lines.readline():
            self._pending += line
            if self._pending.endswith("\n"):
                step, self._pending = json.loads(self._pending), ""
                yield step


def note_end(output: Path, reason: str) -> None:
    """Say why a run ended in what a server app that died has left: its summary and its report."""
    path = output / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if "failure" in summary:
        with replaced_file(path) as file:
            file.write_text(json.dumps(summary | {"failure": reason}, indent=2), encoding="utf-8")
        write_report(output)

"""What a run reports while it goes on: `metrics.jsonl` for the record, and progress for whoever watches."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from cadp_fl.errors import CadpError
from cadp_fl.site.protocol import Reply

__all__ = ["Recorder", "Watcher", "describe_step", "lines_to", "text_to"]

Watcher = Callable[[dict[str, Any]], None]


class Recorder:
    """Writes one line of metrics a round and phase, and passes every step on to a watcher.

    Args:
        metrics: the file that lines are appended to.
        watch: is called with each step, a JSON value with a `step` key: phases, answer, wait, round, done or
            failed.
        seconds: wall time of the phases before an interruption.
        metrics_bytes: length of the file that is kept; what comes after it is of a phase that begins again.
    """

    def __init__(
        self, metrics: Path, watch: Watcher, *, seconds: Mapping[str, float] | None = None, metrics_bytes: int = 0
    ) -> None:
        self._metrics = metrics
        self._watch = watch
        self._phase_seconds = dict(seconds or {})
        self._last = time.monotonic()
        self._started = self._last - sum(self._phase_seconds.values())
        if metrics.exists():
            os.truncate(metrics, metrics_bytes)

    @property
    def metrics_bytes(self) -> int:
        """Length of the file by now."""
        return self._metrics.stat().st_size if self._metrics.exists() else 0

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each phase so far, in seconds."""
        return {phase: round(seconds, 3) for phase, seconds in self._phase_seconds.items()}

    def phases(self, phases: dict[str, int], sites: int) -> None:
        """Announce what is to come: the number of rounds by phase, in order."""
        self._watch({"step": "phases", "phases": phases, "sites": sites})

    def answer(self, phase: str, round: int, of: int, site: str, answer: Reply | CadpError) -> None:
        """Report that a site answered, or how it failed."""
        step: dict[str, Any] = {"step": "answer", "phase": phase, "round": round, "of": of, "site": site}
        if isinstance(answer, Reply):
            step["figures"] = _figures(answer.content.get("simulation_only"))
        else:
            step["failed"] = str(answer)
        self._watch(step)

    def waits(self, phase: str, round: int, of: int, site: str, reason: str) -> None:
        """Report that a site answers later, and what it waits for."""
        self._watch({"step": "wait", "phase": phase, "round": round, "of": of, "site": site, "reason": reason})

    def round(self, phase: str, round: int, of: int, **figures: Any) -> None:
        """Write a round down; `figures` are JSON values."""
        now = time.monotonic()
        self._phase_seconds[phase] = self._phase_seconds.get(phase, 0.0) + now - self._last
        self._last = now
        line = {"phase": phase, "round": round, "of": of, **figures, "at_seconds": _milliseconds(now - self._started)}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._watch({"step": "round", **line})

    def done(self, status: str) -> None:
        """Report that everything is written."""
        self._watch({"step": "done", "status": status})

    def failed(self, reason: str) -> None:
        """Report that the run stopped, and why."""
        self._watch({"step": "failed", "reason": reason})


def _figures(untrusted: object) -> dict[str, float]:
    """Return the numbers of what a site sent beside its reply, and nothing else of it."""
    if not isinstance(untrusted, dict):
        return {}
    return {str(name)[:40]: value for name, value in list(untrusted.items())[:8] if isinstance(value, float)}


def _milliseconds(seconds: float) -> float:
    return round(seconds, 3)


def lines_to(path: Path) -> Watcher:
    """Return a watcher that appends every step to a file, one JSON value a line."""

    def watch(step: dict[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(step) + "\n")

    return watch


def text_to(stream: TextIO | None = None) -> Watcher:
    """Return a watcher that prints every round as a line of text."""

    def watch(step: dict[str, Any]) -> None:
        if text := describe_step(step):
            print(text, file=stream or sys.stdout, flush=True)

    return watch


def describe_step(step: dict[str, Any]) -> str:
    """Return one line of text on a step, or nothing where there is nothing to read."""
    if step["step"] == "round":
        figures = ", ".join(f"{name} {value:.4g}" for name, value in step.items() if _is_figure(name, value))
        return f"{step['phase']}  {step['round']}/{step['of']}" + (f"  {figures}" if figures else "")
    if step["step"] == "answer" and "failed" in step:
        return f"{step['phase']}  {step['round']}/{step['of']}  {step['site']} is missing: {step['failed']}"
    if step["step"] == "wait":
        return f"{step['phase']}  {step['round']}/{step['of']}  {step['site']} {step['reason']}"
    if step["step"] == "note":
        return str(step["text"])
    if step["step"] == "start":
        return str(step.get("text", "starting Flower's simulation engine (about 15 s)"))
    if step["step"] == "done":
        return f"{step['status']}: see report.html in the run folder"
    if step["step"] == "failed":
        return f"failed: {step['reason']}"
    return ""


def _is_figure(name: str, value: object) -> bool:
    return isinstance(value, float) and name != "at_seconds"

"""How a running study looks in a terminal, and its results."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cadp_fl.cli.complaints import complain
from cadp_fl.federated.recorder import Watcher, describe_step
from cadp_fl.privacy.claims import format_against, format_delta, format_epsilon
from cadp_fl.report.extent import methods_by_units
from cadp_fl.report.page import format_figure
from cadp_fl.report.share import format_share

__all__ = ["progress_to", "results_table", "show_results"]


@contextmanager
def progress_to(console: Console, *, silent: bool, transient: bool = False) -> Iterator[Watcher]:
    """Yield a watcher that draws a bar for each phase on a terminal, and prints a line a round elsewhere.

    Args:
        silent: draw and print nothing.
        transient: whether the bars go when the run ends.
    """
    if silent:
        yield lambda step: None
    elif console.is_terminal:
        with _bars(console, transient=transient) as bars:
            yield _Bars(bars).watch
    else:

        def watch(step: dict[str, Any]) -> None:
            if line := describe_step(step):
                console.print(line, markup=False, soft_wrap=True)

        yield watch


def _bars(console: Console, *, transient: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", justify="left", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}", markup=False),
        console=console,
        transient=transient,
    )


class _Bars:
    """One bar a phase; a step is one site's answer in one round."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._starting: TaskID | None = None

    def watch(self, step: dict[str, Any]) -> None:
        if step["step"] == "start":
            if self._starting is not None:
                self._progress.remove_task(self._starting)
            self._starting = self._progress.add_task(describe_step(step), total=None, news="")
        elif step["step"] == "phases":
            for phase, rounds in step["phases"].items():
                self._tasks[phase] = self._progress.add_task(phase, total=rounds, news="", start=False)
        elif step["step"] == "answer":
            if self._starting is not None:
                self._progress.remove_task(self._starting)
                self._starting = None
            self._answer(step)
        elif step["step"] in ("note", "wait"):
            self._progress.console.print(describe_step(step), markup=False, soft_wrap=True)
        elif step["step"] == "round" and step["phase"] in self._tasks:
            task = self._begin(step["phase"])
            self._progress.update(task, completed=step["round"], news=_figures(step))
        elif step["step"] == "round" and "accuracy" in step:
            train = next(name for name in reversed(self._tasks) if name.split("/")[0] == step["phase"].split("/")[0])
            self._progress.update(self._tasks[train], news=f"accuracy {format_share(step['accuracy'])}")

    def _answer(self, step: dict[str, Any]) -> None:
        if "failed" in step:
            self._progress.console.print(describe_step(step), markup=False, soft_wrap=True)
        elif step["phase"] in self._tasks:
            self._progress.update(
                self._begin(step["phase"]), news=f"{step['site']} answered{_figures(step.get('figures', {}))}"
            )

    def _begin(self, phase: str) -> TaskID:
        task = self._tasks[phase]
        self._progress.start_task(task)
        return task


def _figures(figures: dict[str, Any]) -> str:
    names = [name for name in ("bits_per_dim", "loss", "accuracy") if isinstance(figures.get(name), float)]
    texts = (format_share(figures[name]) if name == "accuracy" else f"{figures[name]:.3g}" for name in names)
    return "".join(f"  {name} {text}" for name, text in zip(names, texts, strict=True))


def show_results(console: Console, summary: dict[str, Any], output: Path, *, as_json: bool = False) -> None:
    """Print a run's results as a table or as JSON. Where they cannot be printed, the run is none the worse.

    Args:
        console: that outlasts its stream.
    """
    if as_json:
        console.file.write(f"{json.dumps(summary, indent=2)}\n")
        console.file.flush()
    else:
        results_table(console, summary, output)
    if (lost := getattr(console.file, "lost", None)) is not None and not isinstance(lost, BrokenPipeError):
        complain(f"The results could not be printed ({lost.strerror}). They are in '{output}'.")


def results_table(console: Console, summary: dict[str, Any], output: Path) -> None:
    """Print a run's table: figures, and what each method guarantees; then where its report is."""
    if summary["status"] != "complete":
        console.print(f"INCOMPLETE: {summary.get('failure', 'sites are missing')}", style="bold red", markup=False)
        for gap in summary["missing"]:
            console.print(f"  {gap['site']} in {gap['phase']}: {gap['reason']}", markup=False, soft_wrap=True)
    is_noised = any(row.get("noised", False) for row in summary["methods"].values())
    groups = methods_by_units(summary)
    on = f"tested on {groups[0][1]}" if len(groups) == 1 else "on which sites each was tested stands below"
    noised = ", with noise (\N{PLUS-MINUS SIGN} standard error)" if is_noised else ""
    table = Table(title=f"{summary['name']}: {on}{noised}", title_justify="left")
    for heading in ("method", "accuracy", "balanced", "AUROC", "epsilon", "guarantee"):
        table.add_column(heading, justify="left" if heading in ("method", "guarantee") else "right")
    for name, row in summary["methods"].items():
        figures = [format_figure(row, key) for key in ("accuracy", "balanced_accuracy", "auroc")]
        table.add_row(name, *figures, format_epsilon(row["epsilon"]), _guarantee(row))
    if summary["methods"]:
        console.print(table)
    for names, units in groups if len(groups) > 1 else ():
        console.print(f"{', '.join(names)}: tested on {units}.", markup=False, soft_wrap=True)
    for name, row in summary["methods"].items():
        if release := row.get("release"):
            console.print(f"{name} released {_release(release)}.", soft_wrap=True)
    for name, row in summary["methods"].items():
        if caution := row.get("caution"):
            console.print(f"{name}: {caution}", style="bold red", markup=False, soft_wrap=True)
    if summary.get("resumed"):
        console.print("This run was interrupted and resumed; privacy.json says what that means for its accounts.")
    if summary["methods"] and (together := summary.get("all_methods_together")):
        bound = "no bound, since something left unprotected"
        if together["epsilon"] is not None:
            bound = f"epsilon {format_epsilon(together['epsilon'])} at delta {format_delta(together['delta'])}"
        done = "All that was reserved is of" if "failure" in summary else "All methods were carried out on"
        console.print(
            f"{done} the same records: together {bound}; each site's ledger adds earlier runs too.", soft_wrap=True
        )
    console.print(
        f"epsilon at delta {summary['budget']['delta']:g} under '{summary['relation']}', the largest of the sites."
        + (" Noise was SEEDED: this run protects nothing." if summary["noise"] == "seeded" else ""),
        soft_wrap=True,
    )
    console.print(f"Report: {(output / 'report.html').resolve()}", markup=False, soft_wrap=True)


def _release(release: dict[str, Any]) -> str:
    dims = f"{release['latent_dims']} of {release['dims']} latent dimensions"
    if release.get("latent_epsilon") is not None:
        n, reason = release["shuffled_units"], release.get("not_shuffled")
        shuffled = f"shuffled among at least {n} units" if n else f"claimed without a shuffle, since {reason}"
        local = format_epsilon(release["local_epsilon"])
        return f"by the {release['mechanism']} mechanism: local epsilon {local}, {shuffled}; {dims}"
    if release["noise_std"] is None:
        return f"with NO protection: neither clip nor noise, {dims}"
    scale = "" if release["noise_scale"] is None else f" (scale {release['noise_scale']:.4g})"
    grid = "" if release.get("grid") is None else f" on a grid of {release['grid']:.4g}"
    return (
        f"by the {release['mechanism']} mechanism: clip norm {release['clip_norm']:.4g}, noise standard deviation "
        f"{release['noise_std']:.4g}{scale}{grid}, {dims}"
    )


def _guarantee(row: dict[str, Any]) -> str:
    if row["guarantee"] == "given-flow":
        conditional = format_epsilon(row["epsilon_if_flow_were_fixed"])
        return f"given-flow: flow NOT covered ({conditional} if it were fixed)" + format_against(row["against"])
    return row["guarantee"] + format_against(row["against"]) if row["guarantee"] == "end-to-end" else "none: no privacy"

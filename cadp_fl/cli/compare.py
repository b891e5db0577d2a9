"""The command that runs a study at several epsilons and seeds."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cadp_fl.cli.complaints import StoppedError
from cadp_fl.cli.console import outlasting
from cadp_fl.cli.options import AsJson, Override, Quiet
from cadp_fl.ending import stopping_at_once
from cadp_fl.errors import CadpError, InputError

if TYPE_CHECKING:
    from cadp_fl.federated.recorder import Watcher
    from cadp_fl.study.compare import Turn

__all__ = ["compare"]

DEFAULT_SEEDS = 5
SHOWN = ("method", "minus", "accuracy", "AUROC", "epsilon", "guarantee", "same image", "true label")


def compare(
    config: Annotated[Path, typer.Argument(help="A study config (YAML).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The comparison's folder: a new or an empty one.")],
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Of the budget. May be repeated; the study's own by default.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help=f"Number of seeds, from the study's own on; {DEFAULT_SEEDS} by default.", min=1, max=1000),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="One seed, instead of a number. May be repeated.")] = None,
    set_: Override = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the comparison in --output, from the last finished phase of its last cell; it may get "
            "more epsilons and seeds.",
        ),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a study at several epsilons and seeds, and compare its methods with intervals.

    Each epsilon and seed is a run of its own. Methods that spend no budget run
    once a seed. A seed has the same split at every epsilon, so that methods
    are compared seed by seed. A run that fails is named, is in no mean, and
    makes the exit status 1; --resume tries it again.
    """
    if seeds is not None and seed:
        raise InputError("Seeds are a number or a list. Found --seeds and --seed; give one of them.")
    with stopping_at_once():
        from cadp_fl.study.compare import compare_study

    console, silent = outlasting(), quiet or as_json
    try:
        tree = compare_study(
            config,
            output,
            set_ or [],
            epsilons=epsilon or [],
            seeds=seed or (DEFAULT_SEEDS if seeds is None else seeds),
            watching=lambda turn: _watching(console, turn, silent=silent),
            resume=resume,
        )
    except KeyboardInterrupt:
        raise StoppedError(
            f"Stopped. No process was left behind. '{output}' holds what was finished; go on with --resume."
            if output.exists()
            else "Stopped. Nothing was started."
        ) from None
    if as_json:
        console.file.write(f"{json.dumps(tree, indent=2)}\n")
        console.file.flush()
    else:
        _print_comparison(console, tree, output)
    if gaps := [cell["cell"] for cell in tree["cells"] if cell["status"] != "complete"]:
        raise CadpError(
            f"A comparison has every cell. {len(gaps)} of {len(tree['cells'])} are not complete, and in no mean: "
            f"{', '.join(gaps)}. Try them again with --resume; one that lost a site is run again if its folder in "
            f"'{output / 'cells'}' is removed."
        )


@contextmanager
def _watching(console: Console, turn: "Turn", *, silent: bool) -> Iterator["Watcher"]:
    """Say whose turn it is, and yield what shows its run."""
    from cadp_fl.cli.progress import progress_to

    if not silent:
        left = "" if turn.left is None else f", about {_clock(turn.left)} left"
        console.print(
            f"cell {turn.number} of {turn.of}: {turn.cell.name} ({', '.join(turn.cell.methods)}); elapsed "
            f"{_clock(turn.elapsed)}{left}",
            markup=False,
            soft_wrap=True,
        )
    with progress_to(console, silent=silent, transient=True) as watch:
        yield watch


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _print_comparison(console: Console, tree: dict[str, Any], output: Path) -> None:
    from cadp_fl.report.comparison_page import TEXT, notes_of, tables_of

    for comparison in tables_of(tree):
        shown = [index for index, heading in enumerate(comparison.headings) if heading in SHOWN]
        table = Table(title=comparison.title, title_justify="left")
        for index in shown:
            heading = comparison.headings[index]
            table.add_column(heading, justify="left" if heading in TEXT else "right", no_wrap=heading != "guarantee")
        for row in comparison.rows:
            table.add_row(*(row[index].partition(":")[0] for index in shown))
        console.print(table)
    for note in notes_of(tree):
        console.print(note, markup=False, soft_wrap=True)
    if tree["noise"] == "seeded":
        console.print("Noise was SEEDED: these runs protect nothing.")
    console.print(f"Report: {(output / 'comparison.html').resolve()}", markup=False, soft_wrap=True)

"""How running benchmarks look in a terminal, and their results."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cadp_fl.bench.run import Tick

__all__ = ["benchmarks_table", "ticks_to"]


@contextmanager
def ticks_to(console: Console, steps: int, *, silent: bool) -> Iterator[Tick]:
    """Yield a tick that moves a bar on a terminal, and prints a line a benchmark elsewhere."""
    if silent:
        yield lambda name: None
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=steps)
            yield lambda name: bar.update(task, advance=1, description=name)
    else:
        seen: set[str] = set()

        def tick(name: str) -> None:
            if name not in seen:
                console.print(f"{name} ...", markup=False)
            seen.add(name)

        yield tick


def benchmarks_table(console: Console, results: dict[str, Any]) -> None:
    """Print what benchmarks gave: rates, and the ratio with its spread over the turns."""
    table = Table(
        title=f"{results['device']}, {results['threads']} threads of {results['cores']} cores", title_justify="left"
    )
    for heading in ("benchmark", "ours", "reference", "unit", "ratio", "from", "to"):
        table.add_column(heading, justify="left" if heading in ("benchmark", "unit") else "right", no_wrap=True)
    for name, row in results["benchmarks"].items():
        ratios = (f"{ratio:.2f}" for ratio in (row["ratio"], *row["spread"]))
        table.add_row(name, _rate(row["ours"]), _rate(row["reference"]), row["unit"], *ratios)
    console.print(table)
    for name, row in results["benchmarks"].items():
        console.print(f"{name}: {row['title']}. Reference: {row['against']}.", markup=False, soft_wrap=True)
    console.print(
        "ratio: our rate over the reference's, both timed in turns; the median of the turns, and the least and largest."
        + (" A quick run shows that everything works; its figures mean little." if results["quick"] else ""),
        soft_wrap=True,
    )


def _rate(items: float) -> str:
    return f"{items / 1e6:,.1f} M" if items >= 1e6 else f"{items:,.0f}"

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
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
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
    for heading in ("benchmark", "ours", "reference", "unit", "ratio", "least to largest", "reference is"):
        table.add_column(heading, justify="right" if heading in ("ours", "reference", "ratio") else "left")
    for name, row in results["benchmarks"].items():
        least, largest = row["spread"]
        rates = (f"{row['ours']:,.0f}", f"{row['reference']:,.0f}")
        table.add_row(name, *rates, row["unit"], f"{row['ratio']:.2f}", f"{least:.2f} to {largest:.2f}", row["against"])
    console.print(table)
    console.print(
        "ratio: our rate over the reference's, both timed in turns; the median of the turns."
        + (" A quick run shows that everything works; its figures mean little." if results["quick"] else ""),
        soft_wrap=True,
    )

"""How a dry run looks in a terminal."""

import math

from rich.console import Console
from rich.table import Table

from cadp_fl.privacy.claims import format_against, format_epsilon
from cadp_fl.report.page import format_bytes
from cadp_fl.study.estimate import Estimate

__all__ = ["estimate_tables"]


def estimate_tables(console: Console, estimate: Estimate) -> None:
    """Print what a study will spend, by stage, and what it will take, by phase."""
    table = Table(title=f"Planned for each site, epsilon at delta {estimate.delta:g} in all", title_justify="left")
    for heading in ("method", "stage", "event", "replace-one", "add-or-remove"):
        table.add_column(heading, justify="right" if "-o" in heading else "left")
    for method, stage in ((method, stage) for method, stages in estimate.stages.items() for stage in stages):
        on_test, test_event = stage.units == "test", f"{stage.event}, delta {stage.delta:g}"
        unprotected = "exact test results" if on_test else "NOT protected"
        table.add_row(
            method,
            "test units" if on_test else stage.stage,
            unprotected if stage.epsilon is None else test_event if on_test else stage.event,
            _bound(stage.epsilon),
            _bound(stage.epsilon_add_remove),
        )
    for method, total in estimate.totals.items():
        table.add_row(
            method,
            "in all",
            f"end-to-end{format_against(estimate.against[method])}" if total is not None else "not end-to-end",
            _bound(total),
            "",
        )
    console.print(table)
    if estimate.noise == "seeded":
        console.print("Noise is SEEDED: this run would protect nothing, and no epsilon would hold.", soft_wrap=True)
    unused = estimate.unused_shares
    for share in dict.fromkeys(share for shares in unused.values() for share in shares):
        methods = ", ".join(name for name, shares in unused.items() if share in shares)
        console.print(
            f"budget.split.{share} has no effect on {methods}: there is no such stage beside the last one, which gets "
            "all that is left.",
            soft_wrap=True,
        )
    phases = Table(title="Bytes of one site, and wall time on this machine", title_justify="left")
    for heading in ("phase", "rounds", "down", "up", "time"):
        phases.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in estimate.phases:
        phases.add_row(
            phase.phase, str(phase.rounds), format_bytes(phase.down), format_bytes(phase.up), _duration(phase.seconds)
        )
    console.print(phases)
    console.print(
        f"In all about {_duration(estimate.seconds)} and {format_bytes(estimate.memory_bytes)} of memory, with "
        f"{estimate.sites_at_once} sites at a time; evaluations come on top. Nothing was run or written.",
        soft_wrap=True,
    )


def _bound(epsilon: float | None) -> str:
    return format_epsilon(math.inf if epsilon is None else epsilon)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

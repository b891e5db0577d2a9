"""cadp-fl doctor: what breaks federations in practice, on either side, and how to fix it."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cadp_fl.cli.console import console_to, plain
from cadp_fl.cli.options import AsJson

__all__ = ["doctor"]

STYLES = {"ok": "green", "warning": "yellow", "fault": "bold red", "skipped": "dim"}


def doctor(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            help="A site's folder or the node/ in it, or a coordinator's.",
            metavar="FOLDER",
            readable=False,  # the SuperNode's user may pass through its site's folder alone
        ),
    ],
    round_: Annotated[
        bool,
        typer.Option("--round", help="At a coordinator: also ask every connected site what it is, in a run of Flower."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what breaks federations in practice, and say how to fix each.

    Nothing is changed and no budget is spent. Run it as the user whose side it
    is. Exit status 1 if there is a fault.
    """
    from cadp_fl.doctor.diagnosis import diagnose

    debug = bool((context.parent or context).params.get("debug"))
    diagnosis = diagnose(folder, dummy_round=round_, debug=debug)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_json(), indent=2))
    else:
        console = console_to(soft_wrap=True)
        for finding in diagnosis.findings:
            line = Text(f"{finding.state:<8}", style=STYLES[finding.state])
            console.print(line.append(f" {finding.name}: {_line(finding.found)}", style="default"))
            if finding.fix and finding.state != "ok":
                console.print(Text(f"{'':<8}   Fix: {_line(finding.fix)}"))
        counts = {state: sum(each.state == state for each in diagnosis.findings) for state in STYLES}
        console.print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    if diagnosis.is_faulty:
        raise typer.Exit(1)


def _line(text: str) -> str:
    """Return a text, which another machine may have sent, as one line without control characters."""
    return " ".join(plain(text).splitlines())

"""Options that several commands share."""

from typing import Annotated

import typer

__all__ = ["AsJson", "Device", "Override", "Quiet", "Silent"]

Override = Annotated[
    list[str] | None, typer.Option("--set", help="Override one value: dotted.key=value. May be repeated.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
Silent = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and no progress.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:<index>.")]

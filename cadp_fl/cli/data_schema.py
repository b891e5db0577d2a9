"""The command that drafts a table's schema file, and turns one from and into what other tools keep."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cadp_fl.cli.options import Silent
from cadp_fl.errors import InputError

__all__ = ["schema"]


def schema(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A CSV or Parquet file of PUBLIC records; with --to-sdv or --to-frictionless, a schema file.",
            metavar="FILE",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it here, and print none.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of classes.")] = None,
    from_sdv: Annotated[Path | None, typer.Option("--from-sdv", help="SDV metadata of one table (JSON).")] = None,
    from_frictionless: Annotated[
        Path | None, typer.Option("--from-frictionless", help="A Frictionless Table Schema (JSON).")
    ] = None,
    to_sdv: Annotated[bool, typer.Option("--to-sdv", help="Turn the schema file FILE into SDV metadata.")] = False,
    to_frictionless: Annotated[
        bool, typer.Option("--to-frictionless", help="Turn the schema file FILE into a Frictionless Table Schema.")
    ] = False,
    quiet: Silent = False,
) -> None:
    """Draft the schema file of a table from PUBLIC records, or from other tools' metadata.

    A draft's bounds and categories are those of the records in FILE. Of private
    records that is a leak which no budget covers: draft from a public sample,
    correct what you know better, and give all sites the same file. SDV metadata
    has neither bounds nor categories; what is missing is named.
    """
    from cadp_fl.data.table_draft import LEAK, draft_of_sample
    from cadp_fl.data.table_metadata import from_frictionless as of_frictionless
    from cadp_fl.data.table_metadata import from_sdv as of_sdv
    from cadp_fl.data.table_metadata import to_frictionless as as_frictionless
    from cadp_fl.data.table_metadata import to_sdv as as_sdv
    from cadp_fl.data.table_schema import load_table_schema

    given = [path for path in (file, from_sdv, from_frictionless) if path is not None]
    if len(given) != 1 or (to_sdv and to_frictionless) or ((to_sdv or to_frictionless) and file is None):
        raise InputError(
            "A schema file is drafted from one file: FILE, --from-sdv or --from-frictionless; --to-sdv and "
            f"--to-frictionless turn a schema file FILE into one of theirs. Found {len(given)} files; give one."
        )
    if (to_sdv or to_frictionless) and file is not None:
        turned = (as_sdv if to_sdv else as_frictionless)(load_table_schema(file))
        text = json.dumps(turned, indent=2, ensure_ascii=False) + "\n"
    elif file is not None:
        if not quiet:
            typer.echo(LEAK, err=True)
        text = draft_of_sample(file, label).text()
    else:
        draft = of_sdv(from_sdv, label) if from_sdv is not None else of_frictionless(given[0], label)
        text = draft.text()
        for remark in [] if quiet else draft.remarks:
            typer.echo(remark, err=True)
    if output is None:
        typer.echo(text, nl=False)
        return
    _write(output, text)
    if not quiet:
        typer.echo(f"Wrote {output}.")


def _write(output: Path, text: str) -> None:
    from cadp_fl.outputs import new_file

    with new_file(output, "A schema file") as temporary:
        temporary.write_text(text, encoding="utf-8")

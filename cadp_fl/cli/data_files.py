"""The commands that look at records, bring them into one file, and forget what was decoded of them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cadp_fl.cli.console import console_to
from cadp_fl.cli.options import AsJson, DataKeys, Silent, data_keys
from cadp_fl.errors import InputError

__all__ = ["check", "clear_cache", "import_"]


def check(
    path: Annotated[
        Path, typer.Argument(help="A study config, a site.yaml, or a file or folder of records.", metavar="PATH")
    ],
    settings: DataKeys = None,
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with originals, for whoever may see them.")
    ] = None,
    study: Annotated[
        Path | None, typer.Option(help="Also write a study that simulates on these records, to begin with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what records there are, and whether they can be used. Nothing is sent.

    Counts by class, site and split, patients, repeated records, columns of a
    table, and what was left out. Ends with "ready", or with what is wrong and
    exit status 1. Of a file or folder alone it finds out the source, and prints
    the data: block that reads it.
    """
    from cadp_fl.standalone.check_data import look

    looked = look(path, data_keys(settings))
    found = looked.to_json()
    if html is not None:
        from cadp_fl.report.data_page import write_data_page

        write_data_page(html, found, looked.source.train)
    if study is not None and not looked.wrong:
        from cadp_fl.outputs import new_file
        from cadp_fl.standalone.check_data import study_of

        with new_file(study, "A study") as temporary:
            temporary.write_text(study_of(looked), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print(
            found,
            looked.config.model_dump(mode="json", exclude_unset=True),
            is_alone=path.suffix not in (".yaml", ".yml"),
        )
        if html is not None:
            typer.echo(f"Page, with originals, for whoever may see them: {html}")
        if study is not None and not looked.wrong:
            typer.echo(f"Next: cadp-fl simulate {study} --output runs/{study.stem}")
    if looked.wrong:
        raise typer.Exit(1)


def import_(
    path: Annotated[Path, typer.Argument(help="A folder of images, DICOM or NIfTI files.", metavar="SOURCE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, .npz.")],
    settings: DataKeys = None,
    quiet: Silent = False,
) -> None:
    """Turn a folder of images, DICOM or NIfTI files into one checked file.

    It is in MedMNIST's format (data.source: medmnist), with classes, patients,
    ids, sites and splits where they are known; beside it a contact sheet (.png)
    shows some images of each class. Both are private records: keep them so.
    """
    from cadp_fl.outputs import check_new, replaced_file
    from cadp_fl.report.data_page import contact_sheet
    from cadp_fl.standalone.check_data import look
    from cadp_fl.standalone.import_data import write_source

    if output.suffix != ".npz":
        raise InputError(f"An import is an .npz file. Found '{output.name}'; end its name with .npz.")
    check_new(output, "An import")
    looked = look(path, data_keys(settings))
    write_source(looked.source, output)
    output.chmod(0o600)
    sheet = output.with_suffix(".png")
    with replaced_file(sheet, mode=0o600) as temporary:
        temporary.write_bytes(contact_sheet(looked.source.train))
    if not quiet:
        _print(looked.to_json(), {"source": "medmnist", "path": str(output)}, is_alone=True)
        typer.echo(f"Wrote {output}, and {sheet} to look at. Both hold private records.")


def clear_cache(
    path: Annotated[
        Path, typer.Argument(help="A study config, a site.yaml or a folder of decoded images.", metavar="PATH")
    ],
) -> None:
    """Remove the decoded images that were kept for the next start."""
    from cadp_fl.config import load_site, load_study
    from cadp_fl.data.file_cache import clear_cache as clear

    folder: Path | str | None = path
    if path.is_file():
        data = load_site(path).data if path.name == "site.yaml" else load_study(path).data
        folder = None if data is None else data.cache
        if folder is None and path.name == "site.yaml":
            folder = path.parent / "cache"
    count = clear(folder) if isinstance(folder, Path) else 0
    typer.echo(f"Removed {count} file{'' if count == 1 else 's'} of decoded images.")


def _print(found: dict[str, Any], block: dict[str, Any], *, is_alone: bool) -> None:
    """Print what was found, for a person."""
    console = console_to(soft_wrap=True)
    table = Table("class", "training records", "test records")
    for name, counts in found["classes"].items():
        table.add_row(name, str(counts["train"]), "-" if counts["test"] is None else str(counts["test"]))
    console.print(table)
    if found["sites"]:
        sites = Table("site", "training records", "test records")
        for site in found["sites"]:
            sites.add_row(site["site"], str(site["train"]), str(site["test"]))
        console.print(sites)
    if found["columns"]:
        columns = Table("column", "type", "allowed", "missing", "distinct")
        for column in found["columns"]:
            allowed = column["allowed"]
            columns.add_row(
                column["name"], column["type"], allowed if len(allowed) < 50 else f"{allowed[:47]}...",
                str(column["missing"]), str(column["distinct"]),
            )  # fmt: skip
        console.print(columns)
    size = " x ".join(str(side) for side in found["shape"])
    of = f"{found['kind']}s of {size}" if found["kind"] == "image" else f"rows of {size} columns"
    patients = "" if found["patients"] is None else f", of {found['patients']} patients"
    console.print(f"{found['records']['train']} training records{patients}: {of}.")
    for remark in found["remarks"]:
        console.print(f"- {remark}", highlight=False)
    if is_alone:
        from cadp_fl.config.writer import dump_tree

        console.print("\nIn a config:", highlight=False)
        console.print(dump_tree({"data": block}).rstrip(), highlight=False, markup=False)
    for wrong in found["wrong"]:
        console.print(Text("wrong  ", style="bold red").append(wrong, style="default"))
    console.print(Text("ready", style="green") if found["ready"] else Text("not ready", style="bold red"))

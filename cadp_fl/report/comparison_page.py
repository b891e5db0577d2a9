"""A comparison for people: tables, notes and a picture, as one HTML file and as Markdown."""

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.claims import format_delta, format_epsilon
from cadp_fl.report.comparison import FIGURES, KEPT, cell_name
from cadp_fl.report.figures import EpsilonLine, epsilon_panels, image_grid
from cadp_fl.report.pairs import beside, read_pairs
from cadp_fl.report.rendering import render_page
from cadp_fl.report.share import format_share

__all__ = ["CELLS", "TEXT", "Table", "format_interval", "notes_of", "store_comparison", "tables_of", "write_comparison"]

TITLES = dict(zip(FIGURES, ("accuracy", "balanced", "AUROC", "macro F1"), strict=True))
AXES = dict(zip(FIGURES, ("accuracy", "balanced accuracy", "AUROC", "macro F1"), strict=True))
KEPT_TITLES = dict(
    zip(KEPT, ("same image", "same latent", "true label", "linear on releases", "quadratic on releases"), strict=True)
)
"""Of figures of what a release keeps: correlations within a class, a share, and two balanced accuracies."""

MAJORITY = "majority class"
DASHES = {"end-to-end": "-", "given-flow": "--", "none": ":"}
SEEDED = (
    "The privacy noise can be derived again from the seeds, so these runs protect nothing. The epsilons are those of "
    "the same runs with entropy noise."
)
TEXT = ("method", "minus", "guarantee", "against")
"""Headings of columns that hold words."""

CELLS = "cells"
"""Folder of the cells' runs."""

_GRID_COLUMNS = 12
_DRAWN = ("image_correlation", "label_agreement")

MEANING = {"end-to-end": "end-to-end", "given-flow": "given the flow only", "none": "no privacy"}


@dataclass(frozen=True)
class Table:
    """Cells of text in rows and columns.

    Attributes:
        title: what it is about.
        headings: of its columns.
        rows: as many cells each.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def store_comparison(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write `comparison.json`."""
    with replaced_file(folder / "comparison.json") as file:
        file.write_text(json.dumps(tree, indent=2), encoding="utf-8")


def write_comparison(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write `comparison.json` and what shows it: `comparison.html`, `comparison.md` and `comparison.png`."""
    store_comparison(folder, tree)
    picture, pairs = _picture(tree), _pairs(folder, tree)
    page = render_page(
        "comparison.html",
        {},
        comparison=tree,
        tables=tables_of(tree),
        notes=notes_of(tree),
        cautions=_cautions(tree),
        gaps=_gaps(tree),
        about=_about(tree),
        seeded=SEEDED if tree["noise"] == "seeded" else "",
        text=TEXT,
        picture=picture[0] if picture else None,
        pairs=pairs,
    )
    files = {"comparison.html": page.encode(), "comparison.md": _markdown(tree).encode()}
    if picture:
        files["comparison.png"] = picture[1]
    for name, data in files.items():
        shows_originals = bool(pairs) and name == "comparison.html"
        with replaced_file(folder / name, mode=0o600 if shows_originals else 0o644) as file:
            file.write_bytes(data)


def tables_of(tree: Mapping[str, Any]) -> list[Table]:
    """Return, for each epsilon, the table of methods and that of differences to the first one."""
    tables = []
    for table in tree["tables"]:
        tables.append(_methods(tree, table))
        if table["kept"]:
            tables.append(_kept(tree, table))
        if table["differences"]:
            tables.append(_differences(tree, table))
    return tables


def _methods(tree: Mapping[str, Any], table: Mapping[str, Any]) -> Table:
    seeds = len(tree["seeds"])
    rows = [
        (
            f"{name} (*)" if row["once_a_seed"] else name,
            *(format_interval(row["figures"][figure], seeds) for figure in FIGURES),
            *_claim(row),
            f"{row['seconds']:.0f}" if "seconds" in row else "-",
        )
        for name, row in table["methods"].items()
    ]
    reference = (MAJORITY, *(format_interval(tree["majority"][figure], seeds) for figure in FIGURES))
    headings = ("method", *TITLES.values(), "epsilon", "add/remove", "guarantee", "against", "seconds")
    return Table(f"{tree['name']} at epsilon {table['epsilon']:g}", headings, (*rows, (*reference, *["-"] * 5)))


def _kept(tree: Mapping[str, Any], table: Mapping[str, Any]) -> Table:
    rows = tuple(
        (name, *(format_interval(figures[figure], len(tree["seeds"])) for figure in KEPT))
        for name, figures in table["kept"].items()
    )
    title = f"What releases keep of their records, at epsilon {table['epsilon']:g}"
    return Table(title, ("method", *KEPT_TITLES.values()), rows)


def _claim(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return what the cells' summaries say of a method's privacy: epsilons, guarantee, against whom."""
    if "guarantee" not in row:
        return "-", "-", "no run is complete", "-"
    kind, said = row["guarantee"], MEANING[row["guarantee"]]
    if kind == "given-flow":
        said += (
            f": the flow is not covered. {format_epsilon(row['epsilon_if_flow_were_fixed'])} would hold had it been "
            "fixed without these records"
        )
    epsilons = format_epsilon(row["epsilon"]), format_epsilon(row["epsilon_add_remove"])
    return *epsilons, said, "-" if kind == "none" else row["against"]


def _differences(tree: Mapping[str, Any], table: Mapping[str, Any]) -> Table:
    rows = tuple(
        (other, *(format_interval(figures[figure], len(tree["seeds"]), signed=True) for figure in FIGURES))
        for other, figures in table["differences"].items()
    )
    title = f"{table['first']} minus each other method, paired by seed, at epsilon {table['epsilon']:g}"
    return Table(title, ("minus", *TITLES.values()), rows)


def format_interval(figure: Mapping[str, Any], seeds: int, *, signed: bool = False) -> str:
    """Return a mean with three digits and half its interval's width, rounded up; and of how many seeds, if not of all.

    Args:
        figure: `mean`, `half_width` and `runs`.
        seeds: number of seeds that there are.
        signed: whether a positive mean has a sign.
    """
    if figure["mean"] is None:
        return "-"
    text = f"{figure['mean']:+.3f}" if signed else format_share(figure["mean"])
    if figure["half_width"] is not None:
        half = Decimal(repr(figure["half_width"])).quantize(Decimal("0.001"), ROUND_CEILING)
        text += f" \N{PLUS-MINUS SIGN} {half}"
    return text if figure["runs"] == seeds else f"{text} ({figure['runs']} of {seeds} seeds)"


def notes_of(tree: Mapping[str, Any]) -> list[str]:
    """Return what a reader has to know to judge the tables, one sentence or a few each."""
    return [*_notes_on_seeds(tree), *_notes_on_claims(tree), *_notes_on_rows(tree)]


def _notes_on_seeds(tree: Mapping[str, Any]) -> list[str]:
    seeds, joined = tree["seeds"], ", ".join(map(str, tree["seeds"]))
    if len(seeds) == 1:
        return [
            f"One seed, {joined}: one run says nothing about how much another would differ, so no interval is given."
        ]
    return [
        f"Means over the seeds {joined}; after \N{PLUS-MINUS SIGN} stands half the width of a {tree['confidence']:.0%} "
        "t-interval. It shows how much a figure changes with the seed: with the split, the initial weights and the "
        "noise. The seeds share one set of records, so that what others would give is not in it; and with many "
        "intervals some miss.",
        "Differences are taken seed by seed, at the same split and test records, before their mean and interval.",
    ]


def _notes_on_claims(tree: Mapping[str, Any]) -> list[str]:
    rows = {name: row for table in tree["tables"] for name, row in table["methods"].items() if "guarantee" in row}
    if not rows:
        return []
    declared = dict.fromkeys(
        f"{name} rests on a declaration: {each}." for name, row in rows.items() for each in row["declared"]
    )
    return [
        f"Epsilon is for one {tree['unit']}, at delta {format_delta(tree['delta'])}, under '{tree['relation']}'; of "
        "the sites and seeds it is the largest. A method with a guarantee and one without are not equals, whatever "
        "their figures.",
        *declared,
        "Each method and each cell has ledgers of its own, so that a row says what would hold if only that method had "
        "been run, once. On real records all of these runs would compose, to more than any row says: what the methods "
        "of a cell compose to stands in its privacy.json, and each further cell adds to that.",
    ]


def _notes_on_rows(tree: Mapping[str, Any]) -> list[str]:
    methods = tree["tables"][0]["methods"]
    notes = [
        f"{MAJORITY}: always the most frequent class of the test records, whose exact counts only a simulation knows."
    ]
    if any(row["once_a_seed"] for row in methods.values()):
        notes.append("(*) spends no budget and does not depend on epsilon: run once a seed, the same at each epsilon.")
    if not tree["same_software"]:
        notes.append("The cells were run with different versions of the software; the versions above are the first's.")
    if tree["metrics"] == "noised":
        notes.append("Figures of methods are made of noised counts; that noise is part of what varies with the seed.")
    if "local" in methods:
        notes.append("Under local, each site's own classifier is tested on that site's own records, not a shared one.")
    if any(table["kept"] for table in tree["tables"]):
        notes.append(
            "What releases keep: same image and same latent are correlations of a release with its own record within a "
            "class, true label the share of released labels that are, and the last two the balanced accuracy on real "
            "test records of discriminants that saw releases alone. Only a simulation knows them."
        )
    return [*notes, "seconds: wall time of a method's own phases, mean over seeds, where and when this was run."]


def _cautions(tree: Mapping[str, Any]) -> list[str]:
    rows = [(name, row) for table in tree["tables"] for name, row in table["methods"].items()]
    return list(dict.fromkeys(f"{name}: {row['caution']}" for name, row in rows if "caution" in row))


def _gaps(tree: Mapping[str, Any]) -> list[str]:
    """Return the cells that are in no mean, and why."""
    return [
        f"{cell['cell']}: {cell['status']}{': ' + cell['reason'] if 'reason' in cell else ''}"
        for cell in tree["cells"]
        if cell["status"] != "complete"
    ]


def _picture(tree: Mapping[str, Any]) -> tuple[str, bytes] | None:
    """Draw every figure over epsilon, with a line a method; None where no run is complete."""
    panels = {AXES[figure]: _lines(tree, figure) for figure in FIGURES}
    if any(table["kept"] for table in tree["tables"]):
        panels |= {f"kept by releases: {KEPT_TITLES[figure]}": _lines(tree, figure) for figure in _DRAWN}
    panels = {
        name: lines for name, lines in panels.items() if any(not math.isnan(y) for each in lines for y in each.mean)
    }
    if not panels:
        return None
    return epsilon_panels(tree["epsilons"], panels)


def _lines(tree: Mapping[str, Any], figure: str) -> list[EpsilonLine]:
    """Return the lines of all methods, in their order; without values where a method has no such figure."""
    by_method = {name: [table["methods"][name] for table in tree["tables"]] for name in tree["tables"][0]["methods"]}
    lines = []
    for name, rows in by_method.items():
        kind = next((row["guarantee"] for row in rows if "guarantee" in row), None)
        figures = (
            row["figures"] | table["kept"].get(name, {}) for row, table in zip(rows, tree["tables"], strict=True)
        )
        found = [each.get(figure, {"mean": None, "half_width": None}) for each in figures]
        lines.append(
            EpsilonLine(
                name=f"{name} ({MEANING[kind]})" if kind else name,
                dashes=DASHES[kind] if kind else "-",
                mean=[_or_nan(each["mean"]) for each in found],
                half_width=[_or_nan(each["half_width"]) for each in found],
                flat=rows[0]["once_a_seed"],
            )
        )
    return lines


def _pairs(folder: Path, tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a grid of originals, each followed by its own release at every epsilon; None where none was kept.

    Of the first method, seed and site that has some: its originals are the same at every epsilon.
    """
    names = dict.fromkeys(name for table in tree["tables"] for name in table["kept"])
    for name, seed in itertools.product(names, tree["seeds"]):
        cells = [folder / CELLS / cell_name(epsilon, seed) for epsilon in tree["epsilons"]]
        for site in sorted(path.name for path in (cells[0] / "sites").glob("*")):
            found = [pairs for cell in cells if (pairs := read_pairs(cell, site, name)) is not None]
            if len(found) == len(cells) and all(found[0].has_originals_of(each) for each in found):
                columns = max(1, _GRID_COLUMNS // (1 + len(cells))) * (1 + len(cells))
                return {"method": name, "site": site, "seed": seed, "grid": image_grid(beside(found), columns)}
    return None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _markdown(tree: Mapping[str, Any]) -> str:
    """Return the tables and notes as Markdown that can be pasted into a page."""
    parts = [f"## {_escaped(tree['name'])}", _escaped(_about(tree))]
    if gaps := _gaps(tree):
        parts += ["**Incomplete.** These cells are in no mean:", _bullets(gaps)]
    if tree["noise"] == "seeded":
        parts.append(f"**Seeded noise.** {SEEDED}")
    parts += [f"**{_escaped(each)}**" for each in _cautions(tree)]
    for table in tables_of(tree):
        parts += [f"### {_escaped(table.title)}", _markdown_table(table)]
    return "\n\n".join([*parts, _bullets(notes_of(tree))]) + "\n"


def _about(tree: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (tree["software"] or {}).items())
    return f"Simulation of {tree['sites']} sites on {tree['dataset'] or 'unknown records'}" + (
        f" ({versions})." if versions else "."
    )


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines)


def _markdown_table(table: Table) -> str:
    lines = [table.headings, *table.rows]
    text = ["| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines]
    rule = "|" + "|".join("---" if heading in TEXT else "---:" for heading in table.headings) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_|<\[])", r"\\\1", " ".join(text.split()))

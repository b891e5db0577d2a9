"""One HTML file that a person can judge a run by. It needs nothing beside it, and loads nothing from elsewhere."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import DataError, InputError
from cadp_fl.evaluation.pairs import pooled
from cadp_fl.json_text import parse_json
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.claims import format_against, format_epsilon
from cadp_fl.privacy.events import EVENTS
from cadp_fl.release.bundle import Bundle, open_bundle
from cadp_fl.report.extent import methods_by_units, released
from cadp_fl.report.figures import curves, image_grid
from cadp_fl.report.pairs import MAX_ROWS, beside, read_arrays, read_pairs
from cadp_fl.report.rendering import render_page
from cadp_fl.report.rows import associations, marginals, rows_as_text
from cadp_fl.report.share import format_share

__all__ = ["format_bytes", "format_figure", "write_report"]

COLUMNS = 8
ROWS = 8
"""Released rows that a page shows as they are."""


def write_report(folder: Path) -> Path:
    """Write `report.html` from what a run folder holds, and return its path.

    Raises:
        InputError: the folder holds no run.
    """
    summary, privacy = _json(folder / "summary.json"), _json(folder / "privacy.json")
    metrics = _metrics(folder / "metrics.jsonl")
    kept = {site["site"]: _bundles(folder, site["site"]) for site in summary["sites"]}
    bundles = {site: own[0] for site, own in kept.items() if own}
    pictures, pairs, rows = _pictures(folder, bundles), _pairs(folder, summary), _rows(folder, bundles)
    page = render_page(
        "report.html",
        {"figure": format_figure, "epsilon": format_epsilon, "against": format_against, "size": format_bytes},
        summary=summary,
        privacy=privacy,
        sites=[_site(site, kept[site["site"]], privacy["methods"].values()) for site in summary["sites"]],
        tested=methods_by_units(summary),
        reserved={site for method in privacy["methods"].values() for site in method["sites"]},
        pictures=pictures,
        pairs=pairs,
        rows=rows,
        record="image" if rows is None else "row",
        kept={name: row["fidelity"] for name, row in summary["methods"].items() if "fidelity" in row},
        manifest=next(iter(bundles.values())).manifest if bundles else None,
        left=_left(summary, privacy),
        bits=_bits(metrics),
        accuracy=_accuracy(metrics),
    )
    has_originals = bool(pairs) or any("originals" in picture for picture in pictures)
    has_originals = has_originals or (rows is not None and rows["has_originals"])
    with replaced_file(folder / "report.html", mode=0o600 if has_originals else 0o644) as file:  # as the preview's
        file.write_text(page, encoding="utf-8")
    return folder / "report.html"


def _site(entry: dict[str, Any], bundles: list[Bundle], methods: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return a site's entry with the number and bytes of its released records."""
    manifests = [bundle.manifest for bundle in bundles]
    records = {re.sub(r"-release-\d+$", "", each.event_id): each.records for each in manifests}
    return entry | {
        "released": released(records, methods, entry["site"]),
        "released_bytes": sum(each.bytes for each in manifests),
    }


def _left(summary: dict[str, Any], privacy: dict[str, Any]) -> dict[str, str]:
    """Return in one line what was computed from records and left the sites, by method."""
    return {
        name: "; ".join([*_what_left(method), *_what_left(privacy["test_units"]["methods"].get(name, {}), of="test ")])
        + ("; the true label of each record" if _has_true_labels(summary, method) else "")
        for name, method in privacy["methods"].items()
    }


def _what_left(method: dict[str, Any], of: str = "") -> list[str]:
    """Return what left under a method's events, in words, once each; all that was planned where a site did not say."""
    events = [
        event
        for site in method.get("sites", {}).values()
        for event in (site["events"] if site["spent"] is None else site["spent"])
        if event["kind"] != "declared-public"
    ]
    words = (
        f"{event['what']}, unprotected" if "what" in event else of + EVENTS[event["kind"]].left for event in events
    )
    return list(dict.fromkeys(words))


def _has_true_labels(summary: dict[str, Any], method: dict[str, Any]) -> bool:
    """Return whether a method's releases hold the labels as they are."""
    return summary["labels"] == "public" and any("records" in each for each in _what_left(method))


def _pictures(folder: Path, bundles: dict[str, Bundle]) -> list[dict[str, Any]]:
    """Return, by site, a grid of originals beside a grid of what was released, one row a class."""
    pictures = []
    for site, bundle in bundles.items():
        preview = read_arrays(folder / "sites" / site / "preview.npz", "images", "labels")
        released = next(bundle.parts())  # in random order, so the first shard shows what all are like
        if released.schema.kind == "row":
            continue
        names = released.schema.classes
        labels = [label for label in range(len(names)) if (released.labels == label).any()][:MAX_ROWS]
        grids = {"released": image_grid([released.records[released.labels == label] for label in labels], COLUMNS)}
        if preview is not None and preview[0].shape[1:] == released.records.shape[1:]:
            images, own = preview
            grids["originals"] = image_grid([images[own == label] for label in labels], COLUMNS)
        pictures.append({"site": site, "classes": [names[label] for label in labels], **grids})
    return pictures


def _rows(folder: Path, bundles: dict[str, Bundle]) -> dict[str, Any] | None:
    """Return what is shown of released rows of all sites together, beside originals where a simulation kept some."""
    parts = [next(bundle.parts()) for bundle in bundles.values()]
    if not parts or parts[0].schema.kind != "row":
        return None
    schema, kept = parts[0].schema, []
    for site in bundles:
        stored = read_arrays(folder / "sites" / site / "preview.npz", "rows", "labels")
        if stored is not None:
            kept.append(_dataset_or_none(schema, *stored))
    named = [("released", pooled(parts))]
    originals = [each for each in kept if each is not None]
    if len(originals) == len(bundles):
        named.insert(0, ("real", pooled(originals)))
    return {
        "columns": [*(column.name for column in schema.columns), "label"],
        "marginals": marginals(named),
        "associations": associations(named),
        "sample": rows_as_text(named[-1][1], ROWS),
        "has_originals": len(named) > 1,
    }


def _dataset_or_none(schema: Schema, rows: np.ndarray, labels: np.ndarray) -> Dataset | None:
    """Return stored rows, or None where they are damaged."""
    try:
        return Dataset(schema, rows, labels)
    except DataError:
        return None


def _pairs(folder: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, by method, a grid in which each original stands beside its own released record, of one site."""
    grids = []
    for name in summary["methods"]:
        for site in (entry["site"] for entry in summary["sites"]):
            pairs = read_pairs(folder, site, name)
            if pairs is None:
                continue
            grids.append({"method": name, "site": site, "grid": image_grid(beside([pairs]), COLUMNS)})
            break
    return grids


def _bits(metrics: list[dict[str, Any]]) -> str | None:
    """Draw the sites' bits per dimension over the rounds of the flow."""
    lines = [line for line in metrics if "bits_per_dim" in line]
    if not lines:
        return None
    rounds = [line["round"] for line in lines]
    sites = sorted(lines[0].get("simulation_only", {}).get("bits_per_dim", {}))
    series = {
        site: (rounds, [line["simulation_only"]["bits_per_dim"].get(site, np.nan) for line in lines]) for site in sites
    }
    return curves(series, "round", "bits per dimension (training)")


def _accuracy(metrics: list[dict[str, Any]]) -> str | None:
    """Draw each method's accuracy over its training, where one was evaluated more than once."""
    series: dict[str, tuple[list[float], list[float]]] = {}
    for line in metrics:
        if line["phase"].endswith("/evaluate") and "accuracy" in line:
            x, y = series.setdefault(line["phase"].split("/")[0], ([], []))
            x.append(100 * line["round"] / line["of"])
            y.append(line["accuracy"])
    if not any(len(x) > 1 for x, _ in series.values()):
        return None  # each was evaluated once, when it was final
    return curves(series, "share of the method's training (%)", "accuracy on real records")


def _bundles(folder: Path, site: str) -> list[Bundle]:
    """Return a site's releases that the run folder holds: in `releases/`, and `releases-<method>/` of other methods."""
    return [open_bundle(place / site) for place in sorted(folder.glob("releases*")) if (place / site).is_dir()]


def _json(path: Path) -> dict[str, Any]:
    try:
        tree: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"A run folder holds {path.name}. '{path.parent}' does not; give one that ended.") from error
    return tree


def _metrics(path: Path) -> list[dict[str, Any]]:
    try:
        return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"A run folder holds {path.name}. That in '{path.parent}' cannot be read; bring it back."
        ) from error


def format_figure(figures: dict[str, Any], name: str) -> str:
    """Return a figure with three digits, and its standard error if it was made of noised counts."""
    error = figures.get("standard_errors", {}).get(name)
    return format_share(figures[name]) + ("" if error is None else f" \N{PLUS-MINUS SIGN} {error:.3f}")


def format_bytes(count: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"

"""How far a run came, in words: on which sites' test records a figure is, and what became of releases."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["methods_by_units", "named_sites", "released"]


def named_sites(sites: Sequence[str], of: int) -> str:
    """Return `all 3 sites`, or how many of a study's sites they are, and which."""
    return f"all {of} sites" if len(sites) == of else f"{len(sites)} of {of} sites ({', '.join(sites) or 'none'})"


def _units_of(row: Mapping[str, Any], unit: str) -> str:
    """Return the test units that the figures of a method are from, as its row of a summary has them."""
    if "tested" not in row:  # a summary of an earlier version
        return f"held-out real {unit}s"
    found = row["tested"]
    return f"{found['units']} held-out real {unit}s of {named_sites(found['sites'], found['of'])}"


def methods_by_units(summary: Mapping[str, Any]) -> list[tuple[list[str], str]]:
    """Return the methods of a summary, those that were tested on the same units together, and what those are."""
    groups: dict[str, list[str]] = {}
    for name, row in summary["methods"].items():
        groups.setdefault(_units_of(row, summary.get("unit", "record")), []).append(name)
    return [(names, on) for on, names in groups.items()]


def released(kept: Mapping[str, int], methods: Iterable[Mapping[str, Any]], site: str) -> str:
    """Return how many records of a site's releases a run folder holds, or what became of those that it does not.

    Args:
        kept: number of records by method.
        methods: what `privacy.json` says of each method.
    """
    if kept:
        return (
            ", ".join(f"{name}: {count}" for name, count in kept.items()) if len(kept) > 1 else f"{sum(kept.values())}"
        )
    accounts = [method["sites"][site] for method in methods if site in method["sites"]]
    planned = [account for account in accounts if _releases(account["events"])]
    if any(account["spent"] is not None and _releases(account["spent"]) for account in planned):
        return "made; not kept here"
    return "not known" if any(account["spent"] is None for account in planned) else "0"


def _releases(events: Iterable[Mapping[str, Any]]) -> bool:
    return any(event["stage"] == "release" for event in events)

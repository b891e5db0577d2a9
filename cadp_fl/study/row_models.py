"""What models learn from rows that a method released or draws: added to a simulation's results, with real rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cadp_fl.config import StudyConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset
from cadp_fl.evaluation.pairs import pooled
from cadp_fl.evaluation.rows import drawn_rows, marginal_distance, models_on
from cadp_fl.flow.storage import load_flow
from cadp_fl.release.dataset import load_release

__all__ = ["add_models_on_rows"]

DRAWN = 20_000
"""Rows that a flow draws, or as many as there are real ones, if those are more."""


def add_models_on_rows(
    study: StudyConfig,
    sites: Sequence[SiteData],
    summary: dict[str, Any],
    *,
    releases: Mapping[str, Path],
    flows: Mapping[str, Path],
) -> bool:
    """Add `real_rows`, and `rows` of every method that released rows or has a flow; return whether there was any.

    Args:
        sites: their records.
        summary: of the run.
        releases: folder of every method's releases.
        flows: file of every method's flow.
    """
    train, test = (pooled([getattr(data, split) for data in sites]) for split in ("train", "test"))
    if train.schema.kind != "row" or train.schema.attributes or not len(test):
        return False
    summary["real_rows"] = models_on(train, test)
    for name, row in summary["methods"].items():
        found = {}
        if name in releases and all((releases[name] / site).is_dir() for site in study.sites.site_names):
            found["released"] = _released([releases[name] / site for site in study.sites.site_names])
        if name in flows and flows[name].is_file():
            found["drawn"] = drawn_rows(load_flow(flows[name])[0], train, max(DRAWN, len(train)), seed=study.seed)
        if found:
            row["rows"] = {
                kind: {**models_on(rows, test), "marginals": marginal_distance(rows, train)}
                for kind, rows in found.items()
            }
    return True


def _released(folders: Sequence[Path]) -> Dataset:
    """Return the released rows of all sites."""
    loaded = load_release(*folders)
    return Dataset(loaded.schema, loaded.records.numpy(), loaded.labels.numpy())

"""What each method's releases keep of their records: added to a simulation's results, which knows both."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadp_fl.config import StudyConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.data.units import Units
from cadp_fl.evaluation.fidelity import fidelity_of, message_of
from cadp_fl.evaluation.pairs import Pairs, pairs_of, pooled
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.storage import load_flow
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.events import events_from_json
from cadp_fl.release.bundle import open_bundle
from cadp_fl.release.privatize import release_directions, released_dims
from cadp_fl.report.page import write_report
from cadp_fl.study.row_models import add_models_on_rows
from cadp_fl.study.simulated_sites import ORDERS

__all__ = ["add_fidelity"]

_SHOWN = 4
"""Pairs of each class that a report shows."""


def add_fidelity(study: StudyConfig, sites: Sequence[SiteData], folder: Path) -> None:
    """Add what releases keep to `summary.json`, and to the report; originals beside their own releases too.

    A release whose order is not known any more is left out: that of a run before an interruption, say.
    """
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    names = [name for name, row in summary["methods"].items() if "release" in row]
    folders = {name: folder / (f"releases-{name}" if place else "releases") for place, name in enumerate(names)}
    measured = {
        name: pairs
        for name, releases in folders.items()
        if releases.is_dir() and (pairs := _all_pairs(study, sites, folder, releases, _flow_file(folder, name)))
    }
    if not measured and sites[0].train.schema.kind == "image":
        return
    privacy: dict[str, Any] = json.loads((folder / "privacy.json").read_text(encoding="utf-8"))
    flows = {name: _flow_file(folder, name) for name, method in privacy["methods"].items() if _has_flow(method)}
    if not add_models_on_rows(study, sites, summary, releases=folders, flows=flows) and not measured:
        return
    held_out = pooled([data.test for data in sites])
    for name, pairs in measured.items():
        summary["methods"][name]["fidelity"] = fidelity_of(
            list(pairs.values()), held_out, message=_message(privacy["methods"][name]), seed=study.seed
        )
        for site, each in pairs.items():
            _keep(folder / "sites" / site / f"pairs-{name}.npz", each)
    with replaced_file(folder / "summary.json") as file:
        file.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    write_report(folder)


def _all_pairs(
    study: StudyConfig, sites: Sequence[SiteData], folder: Path, releases: Path, flow_file: Path
) -> dict[str, Pairs]:
    """Return the pairs of every site whose order is known."""
    flow, _ = load_flow(flow_file)
    found = {
        site: _pairs(study, data, folder / "sites" / site, releases / site, flow)
        for site, data in zip(study.sites.site_names, sites, strict=True)
    }
    return {site: pairs for site, pairs in found.items() if pairs is not None}


def _has_flow(method: Mapping[str, Any]) -> bool:
    events = [event for site in method["sites"].values() for event in site["events"]]
    return any(event.get("stage") in ("flow", "moments") for event in events)


def _flow_file(folder: Path, method: str) -> Path:
    own = folder / "models" / f"flow-{method}.safetensors"
    return own if own.exists() else folder / "models" / "flow.safetensors"


def _pairs(study: StudyConfig, data: SiteData, site: Path, release: Path, flow: ConditionalFlow) -> Pairs | None:
    """Return a site's originals and their released records; None where their order is not known."""
    if not release.is_dir():
        return None
    bundle = open_bundle(release)
    path = site / ORDERS / f"{bundle.manifest.event_id}.npy"
    if not path.is_file():
        return None
    order = np.load(path, allow_pickle=False)
    return pairs_of(
        bundle,
        data.train,
        Units.of(data.train, study.budget.unit, study.budget.records_per_unit),
        order,
        flow,
        directions=release_directions(study.release, flow),
        latent_dims=released_dims(study.release, flow),
        device=torch.device("cpu"),
    )


def _message(method: Mapping[str, Any]) -> tuple[float, float]:
    """Return (epsilon, delta) of what one unit sends by itself, of any site of a method."""
    site = next(iter(method["sites"].values()))
    return message_of(events_from_json(site["events"]), float(site["delta"]))


def _keep(path: Path, pairs: Pairs) -> None:
    """Keep a few originals of every class beside their releases, for the report alone."""
    labels = pairs.originals.labels
    chosen = np.concatenate([np.flatnonzero(labels == label)[:_SHOWN] for label in np.unique(labels)])
    with replaced_file(path, mode=0o600) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            originals=pairs.originals.records[chosen],
            released=pairs.released.records[chosen],
            labels=labels[chosen],
        )

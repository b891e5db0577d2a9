"""What each method's releases keep of their records: added to a simulation's results, which knows both."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cadp_fl.config import StudyConfig
from cadp_fl.data.codec import codec_of
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset
from cadp_fl.data.units import Units
from cadp_fl.evaluation.fidelity import Pairs, fidelity_of, pooled
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.storage import load_flow
from cadp_fl.outputs import replaced_file
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.events import events_from_json
from cadp_fl.release.bundle import open_bundle
from cadp_fl.release.dataset import load_release
from cadp_fl.release.privatize import release_directions, released_dims
from cadp_fl.report.page import write_report
from cadp_fl.study.simulated_sites import ORDERS

__all__ = ["add_fidelity"]

_SHOWN = 4
"""Pairs of each class that a report shows."""

_BATCH = 512


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
    if not measured:
        return
    privacy: dict[str, Any] = json.loads((folder / "privacy.json").read_text(encoding="utf-8"))
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


def _flow_file(folder: Path, method: str) -> Path:
    own = folder / "models" / f"flow-{method}.safetensors"
    return own if own.exists() else folder / "models" / "flow.safetensors"


def _pairs(study: StudyConfig, data: SiteData, site: Path, release: Path, flow: ConditionalFlow) -> Pairs | None:
    """Return a site's originals and their released records; None where their order is not known."""
    if not release.is_dir():
        return None
    manifest = open_bundle(release).manifest
    path = site / ORDERS / f"{manifest.event_id}.npy"
    if not path.is_file():
        return None
    order = np.load(path, allow_pickle=False)
    units = Units.of(data.train, study.budget.unit, study.budget.records_per_unit)
    originals, blank = units.take(data.train, order)
    loaded = load_release(release)
    released = Dataset(
        loaded.schema, loaded.records.numpy(), loaded.labels.numpy(), attributes=_array(loaded.attributes)
    )
    kept = np.flatnonzero(~blank)
    kept = kept[np.argsort(order[kept], kind="stable")]  # by original, so that every run of a split shows the same ones
    originals, released = originals.select(kept), released.select(kept)
    return Pairs(originals, released, _latents(study, flow, originals), _latents(study, flow, released))


def _array(values: torch.Tensor | None) -> np.ndarray | None:
    return None if values is None else values.numpy()


@torch.no_grad()
def _latents(study: StudyConfig, flow: ConditionalFlow, records: Dataset) -> np.ndarray:
    """Return the latents that a release privatizes, of records under their own labels, float64 (records, k)."""
    directions, kept = release_directions(study.release, flow), released_dims(study.release, flow)
    codec, parts = codec_of(records.schema), []
    for start in range(0, len(records), _BATCH):
        part = slice(start, start + _BATCH)
        condition = condition_of(torch.from_numpy(records.condition[part]), flow.conditions)
        z, _ = flow.encode(codec.to_unit(torch.from_numpy(records.records[part])), condition)
        turned = z if directions is None else directions.turn(z)
        parts.append(turned[:, :kept].double().numpy())
    return np.concatenate(parts)


def _message(method: Mapping[str, Any]) -> tuple[float, float]:
    """Return (epsilon, delta) of what one unit sends by itself in a release, its label with it."""
    site = next(iter(method["sites"].values()))
    events = [event for event in events_from_json(site["events"]) if event.stage in ("release", "labels")]
    delta = float(site["delta"])
    local = [event.local_epsilon for event in events if event.local_epsilon is not None]
    return (sum(local), 0.0) if local else (epsilon_of(events, delta), delta)


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

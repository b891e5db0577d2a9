"""Originals beside their own released records: for whoever knows the order of a release, while it is known."""

from dataclasses import dataclass

import numpy as np
import torch

from cadp_fl.data.codec import codec_of
from cadp_fl.data.schema import Dataset
from cadp_fl.data.units import Units
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.directions import Directions
from cadp_fl.release.bundle import Bundle

__all__ = ["Pairs", "pairs_of", "pooled"]

_BATCH = 512


@dataclass(frozen=True, eq=False)
class Pairs:
    """Originals of one site and their released records, in one order, whose labels may differ.

    Attributes:
        originals: records with their true labels.
        released: their released records.
        original_latents: of the originals, float64 (records, k), those that the release privatized.
        released_latents: of the released ones.
    """

    originals: Dataset
    released: Dataset
    original_latents: np.ndarray
    released_latents: np.ndarray

    def __len__(self) -> int:
        return len(self.originals)


def pairs_of(
    bundle: Bundle,
    records: Dataset,
    units: Units,
    order: np.ndarray,
    flow: ConditionalFlow,
    *,
    directions: Directions | None,
    latent_dims: int,
    device: torch.device,
    most: int | None = None,
) -> Pairs:
    """Return the originals of a release beside their released records, blanks left out, in the originals' order.

    Args:
        bundle: of the release.
        records: that were released.
        units: that contributed them.
        order: place in `units.slots` of every released record, int64: as `release_order` returned it.
        flow: that encoded them, on `device`.
        directions: that its latents were turned to; None for latents as they are.
        latent_dims: k, the latents that were privatized.
        most: of the first released records, how many: the order is uniform, so that these are a uniform sample.

    Raises:
        ExchangeError: the bundle is damaged.
    """
    released = _first(bundle, len(order) if most is None else most)
    order = order[: len(released)]
    originals, blank = units.take(records, order)
    kept = np.flatnonzero(~blank)
    kept = kept[np.argsort(order[kept], kind="stable")]  # by original, so that every run of a split shows the same ones
    originals, released = originals.select(kept), released.select(kept)
    latents = [_latents(flow, each, directions, latent_dims, device) for each in (originals, released)]
    return Pairs(originals, released, *latents)


def pooled(parts: list[Dataset]) -> Dataset:
    """Return the records of several data sets of one schema together."""
    attributes = [part.attributes for part in parts if part.attributes is not None]
    return Dataset(
        parts[0].schema,
        np.concatenate([part.records for part in parts]),
        np.concatenate([part.labels for part in parts]),
        attributes=np.concatenate(attributes) if attributes else None,
    )


def _first(bundle: Bundle, count: int) -> Dataset:
    """Return the first released records; no shard behind them is read."""
    parts: list[Dataset] = []
    for part in bundle.parts():
        parts.append(part.select(np.arange(min(len(part), count))))
        count -= len(parts[-1])
        if not count:
            break
    return pooled(parts)


@torch.no_grad()
def _latents(
    flow: ConditionalFlow, records: Dataset, directions: Directions | None, latent_dims: int, device: torch.device
) -> np.ndarray:
    """Return the latents that a release privatizes, of records under their own labels, float64 (records, k)."""
    codec, parts = codec_of(records.schema), [np.empty((0, latent_dims))]
    for start in range(0, len(records), _BATCH):
        part = slice(start, start + _BATCH)
        condition = condition_of(torch.from_numpy(records.condition[part]).to(device), flow.conditions)
        x = codec.to_unit(torch.from_numpy(records.records[part]).to(device))
        z, _ = flow.encode(x, condition)
        turned = z if directions is None else directions.turn(z)
        parts.append(turned[:, :latent_dims].double().cpu().numpy())
    return np.concatenate(parts)

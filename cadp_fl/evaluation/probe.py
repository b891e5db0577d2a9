"""The flow of a server that means harm, and a release through it: what an audit attacks is what ships.

    image -> z        each pixel of the first channel spells a latent: zero, +-C, +-HUGE C, or one that is not finite
    z' -> image       24 bits of each latent, whether all are finite, and which condition it was decoded under

`privatize` protects records whatever flow a server sends, so this one is fair: it encodes two records as any two
latents, and hides nothing of what it decodes. Where records have attributes, which are public, they number the units,
so that an auditor finds each again in a release whose order is secret.

A flow has one inverse, and this one has none: it reads and writes with two different scales. No server can send it,
since a site builds flows from a fixed list of layers. An audit is stronger with it: a claim holds for every flow.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.units import Units
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.events import RandomizedResponse
from cadp_fl.privacy.mechanisms import Mechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release import privatize as release_path
from cadp_fl.release.privatize import ReleaseSettings

__all__ = ["BLACK", "HUGE", "NOT_FINITE", "OVERFLOW", "ZERO", "Probe", "ProbeFlow", "Released", "spelled"]

HUGE = 1e6
"""Length of a latent before the clip, in units of C: the clip has to do its work."""

NOT_FINITE = 1e300
"""What a value that is not finite counts as: the right record's, so that a clip which lets it through is seen."""

ZERO, OVERFLOW, BLACK = 128, 255, 0
"""Grey levels of a latent of zero, of one that is not finite, and of -HUGE C: a blank's, if it were encoded."""

_UNIT_STEP, _HUGE_STEP = 1, 126
_REACH = 32.0
"""Latents are spelled up to there, in units of the largest that an honest release is expected to have."""

_BITS = 24
_PART_RECORDS = 4096


def spelled(signs: np.ndarray, *, huge: bool = True) -> np.ndarray:
    """Return the grey levels of latents with some signs, -1, 0 or 1: of length C, or HUGE C; uint8, as `signs`."""
    return (ZERO + signs * (_HUGE_STEP if huge else _UNIT_STEP)).astype(np.uint8)


class ProbeFlow(ConditionalFlow):
    """Reads latents from images and writes them into images, whatever the condition.

    Args:
        dims: of a latent.
        conditions: length of the condition.
        clip_norm: C, the length of a latent of one.
        reach: largest latent that can be told from larger ones.
    """

    def __init__(self, dims: int, conditions: int, *, clip_norm: float, reach: float) -> None:
        nn.Module.__init__(self)  # not the layers of a flow
        self.dims, self.conditions, self.shape = dims, conditions, (3, 1, dims + 1)
        self._reach = reach
        levels = torch.zeros(256)
        for sign in (-1, 1):
            levels[ZERO + sign * _UNIT_STEP] = sign * clip_norm
            levels[ZERO + sign * _HUGE_STEP] = sign * HUGE * clip_norm
        levels[OVERFLOW], levels[BLACK] = math.nan, -HUGE * clip_norm
        self._levels = levels

    def swift_batch(self, records: int) -> int:
        """Return `records`: nothing here takes memory."""
        return records

    def encode(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents that images spell, (batch, dims), and no log-determinant."""
        z = self._levels[(x[:, 0, 0, : self.dims] * 256).long()]
        return z, z.new_zeros(len(z))

    def decode(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return images that spell latents and the condition, (batch, 3, 1, dims + 1)."""
        steps = ((z.double() / (2 * self._reach) + 0.5).nan_to_num(nan=0.0) * 2**_BITS).clamp(0, 2**_BITS - 1).long()
        levels = torch.zeros(len(z), *self.shape, dtype=torch.long)
        for channel in range(3):
            levels[:, channel, 0, : self.dims] = steps >> (8 * (2 - channel)) & 255
        levels[:, 0, 0, self.dims] = torch.isfinite(z).all(dim=1).long()
        levels[:, 1, 0, self.dims] = condition.argmax(dim=1)
        return (levels.float() + 0.5) / 256

    def read(self, images: np.ndarray) -> np.ndarray:
        """Return the latents that images spell, float64 (records, dims); `NOT_FINITE` where one was not."""
        levels = images[:, :, 0, : self.dims].astype(np.int64)
        steps = (levels[:, 0] << 16) + (levels[:, 1] << 8) + levels[:, 2]
        values = ((steps + 0.5) / 2**_BITS - 0.5) * 2 * self._reach
        return np.where(images[:, 0, 0, self.dims, None] == 0, NOT_FINITE, values)


@dataclass(frozen=True, eq=False)
class Released:
    """What a reader of a release has, in the order of the release.

    Attributes:
        units: number of each record's unit, int64 (records,); 0 where records have a label instead of attributes.
        noised: the latents that carry something of a record, float64 (records, k), without the shrinkage.
        fresh: the others, float64 (records, dims - k).
        labels: that records left with, int64 (records,).
        conditions: that they were decoded under, int64 (records,), where they have a label.
    """

    units: np.ndarray
    noised: np.ndarray
    fresh: np.ndarray
    labels: np.ndarray
    conditions: np.ndarray


class Probe:
    """Releases records through `privatize` with a `ProbeFlow`.

    Args:
        mechanism: of the releases.
        kept: k, latents that carry something of a record.
        fresh: latents beside them.
        clip_norm: C.
        labels: how labels are covered; None where they are public, and records have attributes that number units, or
            where the mechanism covers them itself.
        classes: number of classes.
        numbers: units that attributes can number.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        kept: int,
        fresh: int,
        *,
        clip_norm: float,
        labels: RandomizedResponse | None = None,
        classes: int = 2,
        numbers: int = 1 << 16,
    ) -> None:
        self._settings = ReleaseSettings(mechanism, kept, "typical-set", labels)
        bits = 0 if self._settings.response else max(1, (numbers - 1).bit_length())
        self._bits = np.arange(bits)
        self.schema = Schema(
            name="audit",
            shape=(3, 1, kept + fresh + 1),
            classes=tuple(map(str, range(classes))),
            attributes=tuple(f"bit {bit}" for bit in range(bits)),
        )
        self._factor = self._settings.factor
        reach = _REACH * (1 + self._factor * clip_norm)
        self._flow = ProbeFlow(kept + fresh, self.schema.conditions, clip_norm=clip_norm, reach=reach)

    def release(
        self,
        levels: np.ndarray,
        *,
        noise: NoiseSource,
        labels: np.ndarray | None = None,
        patients: np.ndarray | None = None,
        records_per_unit: int = 1,
        brightness: np.ndarray | None = None,
        part_records: int = _PART_RECORDS,
        crowds: int = 1,
    ) -> Released:
        """Return a release of records, or several ones behind each other.

        Args:
            levels: what they spell, uint8 (records, k); the other latents are zero, or (records, dims) of all.
            noise: of this release alone.
            labels: true ones, int64 (records,), 0 by default.
            patients: number of the unit that each record is of, from 0; each is a unit of its own by default.
            records_per_unit: m.
            brightness: of a pixel that the flow does not read, uint8 (records,).
            crowds: releases, each of as many of the units, in an order of its own; drawn and decoded together.
        """
        images = np.full((len(levels), *self.schema.shape), ZERO, dtype=np.uint8)
        images[:, 0, 0, : levels.shape[1]] = levels
        images[:, 2, 0, -1] = 0 if brightness is None else brightness
        owners = np.arange(len(levels)) if patients is None else patients
        records = Dataset(
            self.schema,
            images,
            np.zeros(len(levels), dtype=np.int64) if labels is None else labels,
            patients,
            (owners[:, None] >> self._bits & 1).astype(np.uint8) if len(self._bits) else None,
        )
        units = Units.of(records, "record" if patients is None else "patient", records_per_unit)
        parts, _ = release_path.privatize(
            self._flow,
            records,
            self._settings,
            noise=noise,
            device=torch.device("cpu"),
            units=units,
            part_records=part_records,
            order=None if crowds == 1 else _orders(units, crowds, noise),
        )
        return self._read(list(parts))

    def _read(self, parts: list[Dataset]) -> Released:
        images = np.concatenate([part.records for part in parts])
        values, kept = self._flow.read(images), self._settings.latent_dims
        numbered = [part.attributes for part in parts if part.attributes is not None]
        finite = values[:, :kept] != NOT_FINITE
        return Released(
            units=np.concatenate(numbered).astype(np.int64) @ (1 << self._bits)
            if numbered
            else np.zeros(len(images), dtype=np.int64),
            noised=np.where(finite, values[:, :kept] / self._factor, NOT_FINITE),
            fresh=values[:, kept:],
            labels=np.concatenate([part.labels for part in parts]),
            conditions=images[:, 1, 0, -1].astype(np.int64),
        )


def _orders(units: Units, crowds: int, noise: NoiseSource) -> np.ndarray:
    """Return the order of releases behind each other, each of its own share of the units and as a release draws it."""
    each = Units(units.records[: len(units) // crowds])
    orders = (release_path.release_order(each, noise.child("crowd", crowd)) for crowd in range(crowds))
    return np.concatenate([order + crowd * len(each.slots) for crowd, order in enumerate(orders)])

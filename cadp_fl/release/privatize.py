"""x -> x': encode, clip, perturb, shrink, decode. The content-aware mechanism of the paper.

    z = f(x; y)        z1 = clip(z[:k]; C) + noise        x' = f^-1([s z1, u]; y'),  u ~ N(0, I)

The condition y is the label, or the attributes where records have some: the noise never touches it. Where labels are
public, y' = y. Where they are covered, y' is drawn once by randomized response, and a record is decoded under y' alone:
decoding under y would show it. Noise comes after encoding, so the mechanism protects whatever flow a server sends. All
that follows it (shrinking, fresh dimensions, decoding, quantization) is post-processing and costs nothing.

References:
    Tölle, Köthe, André, Meder, Engelhardt: Content-aware differential privacy with conditional invertible neural
    networks, arXiv 2207.14625.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cadp_fl.config import ReleaseConfig
from cadp_fl.data.schema import Dataset
from cadp_fl.data.units import Units
from cadp_fl.device import PhysicalBatch
from cadp_fl.errors import ConfigError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.training import dequantize, quantize
from cadp_fl.privacy.clipped_normal import ClippedNormal
from cadp_fl.privacy.events import Event, RandomizedResponse
from cadp_fl.privacy.labels import randomize_labels
from cadp_fl.privacy.mechanisms import Mechanism, mechanism_type
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.manifest import ReleaseParameters

__all__ = ["SHRINKAGES", "ReleaseSettings", "check_release", "privatize", "released_dims"]

BATCH_RECORDS = 512
MAX_BATCH_VALUES = 1 << 23
"""Latent values that are drawn and decoded at once, whatever the size of a record."""

MAX_PART_BYTES = 32 << 20
"""Bytes of pixels and attributes in one part of a release, and so in one message."""


def _typical_set(clipped: ClippedNormal, noise_variance: float) -> float:
    """Return 1 / sqrt(E|clip(z)|^2 / k + v): the noised latent gets the prior's variance."""
    return 1 / math.sqrt(clipped.power + noise_variance)


def _posterior_mean(clipped: ClippedNormal, noise_variance: float) -> float:
    """Return the s that minimises E|z - s (clip(z) + noise)|^2: (E<z, clip(z)> / k) / (E|clip(z)|^2 / k + v)."""
    return clipped.overlap / (clipped.power + noise_variance)


SHRINKAGES: dict[str, Callable[[ClippedNormal, float], float]] = {
    "typical-set": _typical_set,
    "posterior-mean": _posterior_mean,
}
"""The factor s of a noised latent, from what the clip leaves of the prior and the noise's variance v: public numbers
alone."""


@dataclass(frozen=True)
class ReleaseSettings:
    """How latents become records.

    Attributes:
        mechanism: clips and perturbs.
        latent_dims: k, the number of leading latent dimensions that carry a record's information.
        shrinkage: name of the factor s.
        labels: what a released label costs; None where labels are public, and left as they are.
    """

    mechanism: Mechanism
    latent_dims: int
    shrinkage: str
    labels: RandomizedResponse | None = None

    @property
    def factor(self) -> float:
        """The factor s of a noised latent."""
        own = self.mechanism
        return SHRINKAGES[self.shrinkage](own.clipped_normal(self.latent_dims), own.noise_variance)

    def parameters(self, dims: int) -> ReleaseParameters:
        """Return every number of the release by a flow of `dims` dimensions, as its manifest states them."""
        return ReleaseParameters(
            **self.mechanism.parameters(),
            latent_dims=self.latent_dims,
            dims=dims,
            shrinkage=self.shrinkage,
            label_epsilon=None if self.labels is None else self.labels.epsilon,
        )

    @property
    def cost(self) -> tuple[Event, ...]:
        """What a release of every unit costs."""
        return (*([self.labels] if self.labels else []), self.mechanism.event())

    @property
    def correlation(self) -> float:
        """Correlation of a noised latent with its record's, for a record that follows the flow."""
        clipped = self.mechanism.clipped_normal(self.latent_dims)
        return clipped.overlap / math.sqrt(clipped.power + self.mechanism.noise_variance)


def released_dims(release: ReleaseConfig, flow: ConditionalFlow) -> int:
    """Return how many leading latent dimensions a release privatizes: by default those that move the image."""
    return release.latent_dims or flow.leading_dims


def check_release(
    mechanism: str, shrinkage: str, latent_dims: int = 0, dims: int = 0, *, labels: str = "public", attributes: int = 0
) -> None:
    """Check that a release names what exists, and fits a flow and records with some attributes.

    Args:
        latent_dims: that are privatized.
        dims: of the flow; without one, only the rest is checked.

    Raises:
        ConfigError: it does not.
    """
    mechanism_type(mechanism)
    if shrinkage not in SHRINKAGES:
        raise ConfigError(f"Unknown shrinkage '{shrinkage}'. Choose one of: {', '.join(sorted(SHRINKAGES))}.")
    if latent_dims > dims:
        raise ConfigError(
            f"release.latent_dims is at most the flow's {dims} dimensions. Found {latent_dims}; lower it, or leave it "
            "out."
        )
    if labels != "public" and attributes:
        raise ConfigError(
            f"Randomized response is for records with a label and nothing beside it. These have {attributes} "
            "attributes; set release.labels: public, or leave the attributes out."
        )


def privatize(
    flow: ConditionalFlow,
    records: Dataset,
    settings: ReleaseSettings,
    *,
    noise: NoiseSource,
    device: torch.device,
    units: Units | None = None,
    part_records: int = 4096,
) -> tuple[Iterator[Dataset], tuple[Event, ...]]:
    """Return m privatized records for every unit, in a secret random order and in parts, and what all of it costs.

    A part is computed when it is asked for, so that memory stays flat.

    Args:
        flow: on `device`; any flow, also a hostile one.
        records: the training records of a site.
        noise: of this release alone.
        units: what contributes which records; each record by default.
        part_records: records in each part but the last; fewer where they would take more than `MAX_PART_BYTES`.
    """
    flow.eval()
    units = units or Units.of(records, "record")
    record_bytes = flow.dims + len(records.schema.attributes)
    part_records = min(part_records, max(1, MAX_PART_BYTES // record_bytes))
    order = noise.child("order").permutation(len(units.slots))
    places = [order[start : start + part_records] for start in range(0, len(order), part_records)]
    batch = _Batch(flow, settings, noise, device)
    return (batch.privatize(*units.take(records, chosen)) for chosen in places), settings.cost


class _Batch:
    """Privatizes a batch of records after the other."""

    def __init__(
        self, flow: ConditionalFlow, settings: ReleaseSettings, noise: NoiseSource, device: torch.device
    ) -> None:
        self._flow, self._settings, self._device = flow, settings, device
        self._perturbation, self._prior = noise.child("perturbation"), noise.child("prior")
        self._responses = noise.child("labels")
        self._factor = settings.factor
        self._size = min(BATCH_RECORDS, max(1, MAX_BATCH_VALUES // flow.dims))
        self._physical = PhysicalBatch(flow.swift_batch(self._size))

    @torch.no_grad()
    def privatize(self, records: Dataset, blank: np.ndarray) -> Dataset:
        """Return a privatized record for each record, in their order.

        Args:
            blank: bool (records,): which have the zero latent, whatever their image.
        """
        released = np.empty_like(records.images)
        said = self._respond(records)
        levels, blanks = records.schema.levels, torch.from_numpy(blank)[:, None].to(self._device)
        for start in range(0, len(records), self._size):
            part = slice(start, start + self._size)
            images = torch.from_numpy(records.images[part]).to(self._device)
            latents = self._encode(dequantize(images, levels), self._condition(records.condition[part]))
            latents = torch.where(blanks[part], torch.zeros_like(latents), latents)
            x = self._decode(self._perturb(latents), self._condition(said.condition[part]))
            released[part] = quantize(x, levels).cpu().numpy()
        return Dataset(records.schema, released, said.labels, attributes=said.attributes)

    def _respond(self, records: Dataset) -> Dataset:
        """Return the records with the labels that they leave with: y'."""
        if self._settings.labels is None:
            return records
        classes = len(records.schema.classes)
        said = randomize_labels(records.labels, classes, self._settings.labels, self._responses)
        return Dataset(records.schema, records.images, said)

    def _condition(self, values: np.ndarray) -> torch.Tensor:
        return condition_of(torch.from_numpy(values).to(self._device), self._flow.conditions)

    def _encode(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return z = f(x; y), (batch, dims)."""
        return torch.cat(self._physical.each(len(x), lambda part: self._flow.encode(x[part], condition[part])[0]))

    def _perturb(self, latents: torch.Tensor) -> torch.Tensor:
        """Return [s (clip(z[:k]) + noise), u], (batch, dims), with u from the prior."""
        kept = self._settings.latent_dims
        noised = self._settings.mechanism(latents[:, :kept], noise=self._perturbation) * self._factor
        fresh = self._prior.normal((len(latents), latents.shape[1] - kept), 1.0, like=latents)
        return torch.cat([noised, fresh], dim=1)

    def _decode(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return x' = f^-1(z; y), (batch, channels, height, width)."""
        return torch.cat(
            self._physical.each(len(latents), lambda part: self._flow.decode(latents[part], condition[part]))
        )

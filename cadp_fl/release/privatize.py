"""x -> x': encode, clip, perturb, shrink, decode. The content-aware mechanism of the paper.

    z = f(x; y)        z1 = clip(z[:k]; C) + noise        x' = f^-1([s z1, u]; y),  u ~ N(0, I)

The label y is the condition: the noise never touches it. Noise comes after encoding, so the mechanism protects
whatever flow a server sends. All that follows it (shrinking, fresh dimensions, decoding, quantization) is
post-processing and costs nothing.

References:
    Tölle, Köthe, André, Meder, Engelhardt: Content-aware differential privacy with conditional invertible neural
    networks, arXiv 2207.14625.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cadp_fl.data.schema import Dataset
from cadp_fl.errors import ConfigError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.training import dequantize, quantize
from cadp_fl.privacy.accounting import ReleaseEvent
from cadp_fl.privacy.clipped_normal import ClippedNormal
from cadp_fl.privacy.mechanisms import Mechanism, mechanism_type
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["SHRINKAGES", "ReleaseSettings", "check_release", "privatize"]


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
    """

    mechanism: Mechanism
    latent_dims: int
    shrinkage: str

    @property
    def factor(self) -> float:
        """The factor s of a noised latent."""
        own = self.mechanism
        return SHRINKAGES[self.shrinkage](own.clipped_normal(self.latent_dims), own.noise_variance)

    @property
    def correlation(self) -> float:
        """Correlation of a noised latent with its record's, for a record that follows the flow."""
        clipped = self.mechanism.clipped_normal(self.latent_dims)
        return clipped.overlap / math.sqrt(clipped.power + self.mechanism.noise_variance)


def check_release(mechanism: str, shrinkage: str, latent_dims: int, dims: int) -> None:
    """Check that a release names what exists, and fits a flow of `dims` dimensions.

    Raises:
        ConfigError: it does not.
    """
    mechanism_type(mechanism)
    if shrinkage not in SHRINKAGES:
        raise ConfigError(f"Unknown shrinkage '{shrinkage}'. Choose one of: {', '.join(sorted(SHRINKAGES))}.")
    if latent_dims > dims:
        raise ConfigError(f"release.latent_dims is at most the flow's {dims} dimensions. Found {latent_dims}.")


@torch.no_grad()
def privatize(
    flow: ConditionalFlow,
    records: Dataset,
    settings: ReleaseSettings,
    *,
    noise: NoiseSource,
    device: torch.device,
    batch_size: int = 1024,
) -> tuple[Dataset, ReleaseEvent]:
    """Return one privatized record for every record, in a secret random order, and what that cost.

    Args:
        flow: on `device`; any flow, also a hostile one.
        records: the training records of a site.
        noise: of this release alone.
    """
    flow.eval()
    perturbation, prior = noise.child("perturbation"), noise.child("prior")
    released = np.empty_like(records.images)
    for start in range(0, len(records), batch_size):
        part = slice(start, start + batch_size)
        images = torch.from_numpy(records.images[part]).to(device)
        condition = condition_of(torch.from_numpy(records.labels[part]).to(device), flow.conditions)
        latents, _ = flow.encode(dequantize(images, records.schema.levels), condition)
        noised = settings.mechanism(latents[:, : settings.latent_dims], noise=perturbation) * settings.factor
        fresh = prior.normal((len(images), flow.dims - settings.latent_dims), 1.0, like=latents)
        decoded = flow.decode(torch.cat([noised, fresh], dim=1), condition)
        released[part] = quantize(decoded, records.schema.levels).cpu().numpy()
    order = noise.child("order").permutation(len(records))
    return Dataset(records.schema, released[order], records.labels[order]), settings.mechanism.event()

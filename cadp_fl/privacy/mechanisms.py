"""Mechanisms: clip a latent, add noise, and say what it cost.

To add one, write a class with the members of `Mechanism` and put it into `MECHANISMS`.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

from cadp_fl.errors import ConfigError
from cadp_fl.privacy.accounting import LatentGaussian, calibrate_noise
from cadp_fl.privacy.clipping import clip_l2
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["MECHANISMS", "GaussianMechanism", "Mechanism", "mechanism_type"]


class Mechanism(Protocol):
    """M(z) = clip(z; C) + noise, with what it costs."""

    name: ClassVar[str]

    @property
    def clip_norm(self) -> float:
        """C: a latent's norm after clipping."""
        ...

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise."""
        ...

    def event(self) -> LatentGaussian:
        """Return what one release of every record costs."""
        ...

    def __call__(self, latents: torch.Tensor, /, *, noise: NoiseSource) -> torch.Tensor:
        """Return noised latents (records, dims), each of its own record alone."""
        ...


@dataclass(frozen=True)
class GaussianMechanism:
    """M(z) = clip_2(z; C) + N(0, sigma^2 I). Replacing the record moves clip_2(z; C) by up to 2 C.

    Attributes:
        clip_norm: C.
        noise_std: sigma.

    References:
        Balle, Wang: Improving the Gaussian mechanism for differential privacy, arXiv 1805.06530.
    """

    name: ClassVar[str] = "gaussian"
    clip_norm: float
    noise_std: float

    @classmethod
    def calibrated(cls, clip_norm: float, epsilon: float, delta: float) -> "GaussianMechanism":
        """Return the mechanism with the least noise that costs at most (epsilon, delta) under replace-one."""
        noise_std = calibrate_noise(lambda std: [cls(clip_norm, std).event()], epsilon, delta, clip_norm=clip_norm)
        return cls(clip_norm, noise_std)

    @property
    def sensitivity(self) -> float:
        """Largest L2 distance of two clipped latents: 2 C."""
        return 2 * self.clip_norm

    def event(self) -> LatentGaussian:
        """Return what one release of every record costs."""
        return LatentGaussian(stage="release", clip_norm=self.clip_norm, noise_std=self.noise_std)

    def __call__(self, latents: torch.Tensor, *, noise: NoiseSource) -> torch.Tensor:
        """Return noised latents (records, dims), each of its own record alone."""
        clipped = clip_l2(latents, self.clip_norm)
        return clipped + noise.normal(tuple(clipped.shape), self.noise_std, like=clipped)


MECHANISMS: dict[str, type[GaussianMechanism]] = {GaussianMechanism.name: GaussianMechanism}


def mechanism_type(name: str) -> type[GaussianMechanism]:
    """Return the mechanism of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in MECHANISMS:
        raise ConfigError(f"Unknown mechanism '{name}'. Choose one of: {', '.join(sorted(MECHANISMS))}.")
    return MECHANISMS[name]

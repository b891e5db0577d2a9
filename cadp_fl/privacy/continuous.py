"""The release mechanisms of the textbook: Gaussian and Laplace noise on real numbers, and none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from cadp_fl.privacy.accounting import calibrate_laplace, calibrate_noise
from cadp_fl.privacy.clipped_normal import ClippedNormal, clipped_normal_l1, clipped_normal_l2
from cadp_fl.privacy.clipping import clip_l1, clip_l2
from cadp_fl.privacy.events import (
    LatentGaussian,
    LatentGaussianGrid,
    LatentLaplace,
    ProtectedEvent,
    ReleaseEvent,
    Unprotected,
)
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["RELEASED_RECORDS", "GaussianMechanism", "LaplaceMechanism", "NoMechanism"]

RELEASED_RECORDS = Unprotected(stage="release", what="records released without clipping or noise")


@dataclass(frozen=True)
class GaussianMechanism:
    """M(z) = clip_2(z; C) + N(0, sigma^2 I). Replacing the record moves clip_2(z; C) by up to 2 C.

    The cost is that of real numbers. The low bits of a sum of floats reveal more; `GridGaussianMechanism` leaves none.

    Attributes:
        clip_norm: C.
        noise_std: sigma.
        records_per_unit: m, the records that one privacy unit contributes; they move by up to 2 C sqrt(m) together.

    References:
        Balle, Wang: Improving the Gaussian mechanism for differential privacy, arXiv 1805.06530.
    """

    name: ClassVar[str] = "gaussian"
    clip_norm: float
    noise_std: float
    records_per_unit: int = 1

    @classmethod
    def calibrated(
        cls,
        clip_norm: float,
        epsilon: float,
        delta: float,
        *,
        records_per_unit: int = 1,
        beside: Sequence[ProtectedEvent] = (),
    ) -> Self:
        """Return the mechanism with the least noise that costs, with all beside it, at most (epsilon, delta)."""
        noise_std = calibrate_noise(
            lambda std: [*beside, cls(clip_norm, std, records_per_unit).event()], epsilon, delta, clip_norm=clip_norm
        )
        return cls(clip_norm, noise_std, records_per_unit)

    @classmethod
    def from_event(cls, event: ReleaseEvent) -> Self | None:
        """Return the mechanism whose event this is, or None if it has no event of this kind."""
        if not isinstance(event, LatentGaussian):
            return None
        return cls(event.clip_norm, event.noise_std, event.records_per_unit)

    @property
    def sensitivity(self) -> float:
        """Largest L2 distance of the clipped latents of two units: 2 C sqrt(m)."""
        return 2 * self.clip_norm * math.sqrt(self.records_per_unit)

    def event(self) -> LatentGaussian | LatentGaussianGrid:
        """Return what one release of every record costs."""
        return LatentGaussian(
            stage="release",
            clip_norm=self.clip_norm,
            noise_std=self.noise_std,
            records_per_unit=self.records_per_unit,
        )

    def parameters(self) -> dict[str, float | None]:
        """Return C, sigma and m."""
        return {
            "clip_norm": self.clip_norm,
            "noise_std": self.noise_std,
            "noise_scale": None,
            "records_per_unit": self.records_per_unit,
        }

    @property
    def noise_variance(self) -> float:
        """Variance of the noise in each dimension: sigma^2."""
        return self.noise_std**2

    def clipped_normal(self, dims: int) -> ClippedNormal:
        """Return what the clip leaves of a standard normal latent of `dims` dimensions."""
        return clipped_normal_l2(self.clip_norm, dims)

    def __call__(self, latents: torch.Tensor, *, noise: NoiseSource) -> torch.Tensor:
        """Return noised latents (records, dims), each of its own record alone."""
        clipped = clip_l2(latents, self.clip_norm)
        return clipped + noise.normal(tuple(clipped.shape), self.noise_std, like=clipped)


@dataclass(frozen=True)
class LaplaceMechanism:
    """M(z) = clip_1(z; C) + Laplace(b)^k. Replacing the record moves clip_1(z; C) by up to 2 C in L1.

    It is 2 C / b differentially private, with no delta.

    Attributes:
        clip_norm: C, of the L1 norm.
        noise_scale: b; the noise's standard deviation is sqrt(2) b.
        records_per_unit: m, the records that one privacy unit contributes; they move by up to 2 C m together.

    References:
        Dwork, McSherry, Nissim, Smith: Calibrating noise to sensitivity in private data analysis, TCC 2006.
    """

    name: ClassVar[str] = "laplace"
    clip_norm: float
    noise_scale: float
    records_per_unit: int = 1

    @classmethod
    def calibrated(
        cls,
        clip_norm: float,
        epsilon: float,
        delta: float,
        *,
        records_per_unit: int = 1,
        beside: Sequence[ProtectedEvent] = (),
    ) -> Self:
        """Return the mechanism with the least noise that costs, with all beside it, at most (epsilon, delta)."""
        if beside:
            noise_scale = calibrate_noise(
                lambda scale: [*beside, cls(clip_norm, scale, records_per_unit).event()],
                epsilon,
                delta,
                clip_norm=clip_norm,
            )
        else:
            noise_scale = calibrate_laplace(epsilon, clip_norm=clip_norm, records_per_unit=records_per_unit)
        return cls(clip_norm, noise_scale, records_per_unit)

    @classmethod
    def from_event(cls, event: ReleaseEvent) -> Self | None:
        """Return the mechanism whose event this is, or None if it has no event of this kind."""
        if not isinstance(event, LatentLaplace):
            return None
        return cls(event.clip_norm, event.noise_scale, event.records_per_unit)

    @property
    def sensitivity(self) -> float:
        """Largest L1 distance of the clipped latents of two units: 2 C m."""
        return 2 * self.clip_norm * self.records_per_unit

    def event(self) -> LatentLaplace:
        """Return what one release of every record costs."""
        return LatentLaplace(
            stage="release",
            clip_norm=self.clip_norm,
            noise_scale=self.noise_scale,
            records_per_unit=self.records_per_unit,
        )

    def parameters(self) -> dict[str, float | None]:
        """Return C, the standard deviation sqrt(2) b, b and m."""
        return {
            "clip_norm": self.clip_norm,
            "noise_std": math.sqrt(2) * self.noise_scale,
            "noise_scale": self.noise_scale,
            "records_per_unit": self.records_per_unit,
        }

    @property
    def noise_variance(self) -> float:
        """Variance of the noise in each dimension: 2 b^2."""
        return 2 * self.noise_scale**2

    def clipped_normal(self, dims: int) -> ClippedNormal:
        """Return what the clip leaves of a standard normal latent of `dims` dimensions."""
        return clipped_normal_l1(self.clip_norm, dims)

    def __call__(self, latents: torch.Tensor, *, noise: NoiseSource) -> torch.Tensor:
        """Return noised latents (records, dims), each of its own record alone."""
        clipped = clip_l1(latents, self.clip_norm)
        return clipped + noise.laplace(tuple(clipped.shape), self.noise_scale, like=clipped)


@dataclass(frozen=True)
class NoMechanism:
    """M(z) = z: neither clip nor noise, so no protection. For comparison in a simulation; a real site refuses it."""

    name: ClassVar[str] = "none"

    @classmethod
    def calibrated(
        cls,
        clip_norm: float,
        epsilon: float,
        delta: float,
        *,
        records_per_unit: int = 1,
        beside: Sequence[ProtectedEvent] = (),
    ) -> Self:
        """Return the mechanism. It meets no budget: its event is unprotected."""
        return cls()

    @classmethod
    def from_event(cls, event: ReleaseEvent) -> Self | None:
        """Return the mechanism whose event this is, or None if it has no event of this kind."""
        return cls() if isinstance(event, Unprotected) else None

    def event(self) -> Unprotected:
        """Return that the records left without protection."""
        return RELEASED_RECORDS

    def parameters(self) -> dict[str, float | None]:
        """Return None for each: there is neither clip nor noise."""
        return {"clip_norm": None, "noise_std": None, "noise_scale": None}

    @property
    def noise_variance(self) -> float:
        """Variance of the noise in each dimension: 0."""
        return 0.0

    def clipped_normal(self, dims: int) -> ClippedNormal:
        """Return that nothing is clipped."""
        return ClippedNormal(power=1.0, overlap=1.0)

    def __call__(self, latents: torch.Tensor, *, noise: NoiseSource) -> torch.Tensor:
        """Return the latents as they are."""
        return latents

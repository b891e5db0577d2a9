"""The hardened release mechanism: a clipped latent on a grid, and Gaussian noise that is exactly rounded to it."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from cadp_fl.privacy.clipping import clip_l2
from cadp_fl.privacy.continuous import GaussianMechanism
from cadp_fl.privacy.events import LatentGaussianGrid, ReleaseEvent, grid_of
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["GridGaussianMechanism"]


@dataclass(frozen=True)
class GridGaussianMechanism(GaussianMechanism):
    """M(z) = gamma (trunc(clip_2(z; C) / gamma) + round(N(0, (sigma / gamma)^2 I))), the release without low bits.

    Truncation towards zero lengthens no vector, so any two records' integers n, n' are within 2 C / gamma. The noise is
    a continuous Gaussian, rounded exactly, and n is an integer: n + round(N) = round(n + N). So this is the Gaussian
    mechanism on n gamma, post-processed, at the same cost. Whatever the record, all integers can come out, and what
    floating point does with a latent's low bits never leaves. All that follows is of those integers alone; in the
    latent's dtype they are exact where it holds them (float32 up to 2^24 steps), and else rounded, each by itself.

    Time is not covered: a value in two million takes a millisecond longer, where its noise is beyond 5.2
    sigma or next to a half-integer. That depends on the noise alone.

    gamma is a power of two of sigma's magnitude and of nothing else; an event that asks for another is refused. The
    noise's variance is sigma^2 + gamma^2 / 12, six parts in a billion above what is stated.

    Attributes:
        clip_norm: C.
        noise_std: sigma.
        records_per_unit: m, the records that one privacy unit contributes; they move by up to 2 C sqrt(m) together.

    Raises:
        pydantic.ValidationError: C and sigma are so far apart that float64 would not hold the integers.

    References:
        Mironov: On significance of the least significant bits for differential privacy, CCS 2012.
        Haney, Desfontaines, Hartman, Shrestha, Hay: Precision-based attacks and interval refining: how to break, then
        fix, differential privacy on finite computers, arXiv 2207.13793.
        Balle, Wang: Improving the Gaussian mechanism for differential privacy, arXiv 1805.06530.
    """

    name: ClassVar[str] = "grid-gaussian"

    def __post_init__(self) -> None:
        self.event()

    @classmethod
    def from_event(cls, event: ReleaseEvent) -> Self | None:
        """Return the mechanism whose event this is, or None if it has no event of this kind."""
        if not isinstance(event, LatentGaussianGrid):
            return None
        return cls(event.clip_norm, event.noise_std, event.records_per_unit)

    @property
    def grid(self) -> float:
        """The grid's step gamma."""
        return grid_of(self.noise_std)

    def event(self) -> LatentGaussianGrid:
        """Return what one release of every record costs."""
        return LatentGaussianGrid(
            stage="release",
            clip_norm=self.clip_norm,
            noise_std=self.noise_std,
            grid=self.grid,
            records_per_unit=self.records_per_unit,
        )

    def parameters(self) -> dict[str, float | None]:
        """Return C, sigma, gamma and m."""
        return super().parameters() | {"grid": self.grid}

    def __call__(self, latents: torch.Tensor, *, noise: NoiseSource) -> torch.Tensor:
        """Return noised latents (records, dims), each of its own record alone."""
        clipped = clip_l2(latents.double(), self.clip_norm)  # float64: its margin holds for latents of any dtype
        steps = clipped.mul_(1 / self.grid).trunc_().long()
        steps += noise.rounded_normal(tuple(steps.shape), self.noise_std / self.grid, like=steps)
        return steps.double().mul_(self.grid).to(latents.dtype)

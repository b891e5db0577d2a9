"""Broken mechanisms that claim what the honest ones do: an audit that lets one of them pass is worth nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cadp_fl.privacy.clipping import CLIP_MARGIN, clip_l1, clip_l2
from cadp_fl.privacy.mechanisms import GaussianMechanism, LaplaceMechanism
from cadp_fl.privacy.noise import NoiseSource

__all__ = [
    "Control",
    "clip_that_lets_nan_through",
    "column_sum_clip",
    "frobenius_clip",
    "noise_for_sensitivity_c",
    "noise_of_epsilon_ten",
    "noise_repeated_by_releases",
    "noise_shared_by_a_batch",
    "spectral_clip",
]

Honest = GaussianMechanism | LaplaceMechanism
Release = Callable[[Honest, torch.Tensor, NoiseSource], torch.Tensor]


@dataclass(frozen=True)
class Control:
    """A mechanism with the event, and so the claim, of an honest one, that releases in a way of its own."""

    honest: Honest
    release: Release

    @property
    def name(self):
        return self.honest.name

    def event(self):
        return self.honest.event()

    def parameters(self):
        return self.honest.parameters()

    def calibrated(self, *budget, **unit):
        return Control(self.honest.calibrated(*budget, **unit), self.release)

    def clipped_normal(self, dims):
        return self.honest.clipped_normal(dims)

    @property
    def noise_variance(self):
        return self.honest.noise_variance

    def __call__(self, latents, *, noise):
        return self.release(self.honest, latents, noise)


def noise_for_sensitivity_c(honest, latents, noise):
    """Any two clipped latents are within 2 C; this has noise enough for C."""
    if isinstance(honest, GaussianMechanism):
        return GaussianMechanism(honest.clip_norm, honest.noise_std / 2)(latents, noise=noise)
    return LaplaceMechanism(honest.clip_norm, honest.noise_scale / 2)(latents, noise=noise)


def noise_of_epsilon_ten(honest, latents, noise):
    """The noise of epsilon 10, whatever is claimed."""
    return type(honest).calibrated(honest.clip_norm, 10.0, 1e-5)(latents, noise=noise)


def column_sum_clip(honest, latents, noise):
    """The 1-norm of a batch as a matrix is the largest sum of a column: a batch of one is hardly clipped."""
    return _clipped_as_a_matrix(honest, latents, noise, order=1)


def spectral_clip(honest, latents, noise):
    """The 2-norm of a batch as a matrix is its largest singular value: orthogonal records share one bound."""
    return _clipped_as_a_matrix(honest, latents, noise, order=2)


def frobenius_clip(honest, latents, noise):
    """The batch as one long vector. That is private: any two batches are within 2 C of each other."""
    return _clipped_as_a_matrix(honest, latents, noise, order="fro")


def _clipped_as_a_matrix(honest, latents, noise, *, order):
    latents = latents.nan_to_num(nan=0.0, posinf=0.0).double()
    norm = torch.linalg.matrix_norm(latents, ord=order).clamp_min(1e-30)
    factor = (honest.clip_norm * (1 - CLIP_MARGIN) / norm).clamp_max(1.0)
    return _perturb(honest, (latents * factor).float(), noise, tuple(latents.shape))


def noise_shared_by_a_batch(honest, latents, noise):
    """One noise vector for all records of a batch."""
    return _perturb(honest, _clip(honest, latents), noise, (1, latents.shape[1]))


def noise_repeated_by_releases(honest, latents, noise):
    """A generator that is seeded again for each batch."""
    return honest(latents, noise=NoiseSource.from_seed(0))


def clip_that_lets_nan_through(honest, latents, noise):
    """A record that overflowed stands out."""
    finite = torch.isfinite(latents).all(dim=1, keepdim=True)
    return torch.where(finite, honest(latents, noise=noise), torch.nan)


def _clip(honest, latents):
    clip = clip_l2 if isinstance(honest, GaussianMechanism) else clip_l1
    return clip(latents, honest.clip_norm)


def _perturb(honest, clipped, noise, shape):
    if isinstance(honest, GaussianMechanism):
        return clipped + noise.normal(shape, honest.noise_std, like=clipped)
    return clipped + noise.laplace(shape, honest.noise_scale, like=clipped)

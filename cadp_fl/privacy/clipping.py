"""clip(z; C): scale a record's vector into the ball of radius C. Per record, never per batch."""

import torch

from cadp_fl.errors import PrivacyError

__all__ = ["CLIP_MARGIN", "MAX_NORM", "clip_factors", "clip_l1", "clip_l2", "is_clippable"]

CLIP_MARGIN = 1e-5
"""Vectors are clipped to C (1 - CLIP_MARGIN), so that float32 rounding never leaves one outside of C. The rounding of
an entry is relative to that entry, so the margin holds for either norm in any number of dimensions."""


MAX_NORM = 1e30
"""A longer vector counts as not finite: its factor would fall below what float32 can hold exactly."""


def is_clippable(norms: torch.Tensor) -> torch.Tensor:
    """Return for every norm, float64 (records,), whether its vector can be scaled; if not, it counts as zero."""
    return norms <= MAX_NORM


def clip_factors(norms: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """Return min(1, C (1 - margin) / norm) of every record; 0 where it cannot be scaled.

    Args:
        norms: float64, (records,).
        clip_norm: C, above zero.

    Raises:
        PrivacyError: C is not positive.
    """
    if not clip_norm > 0:
        raise PrivacyError(f"clip_norm must be positive. Found {clip_norm}; set it in the study config.")
    bound = clip_norm * (1 - CLIP_MARGIN)
    factors = (bound / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1.0)
    return torch.where(is_clippable(norms), factors, torch.zeros_like(factors))


def clip_l2(latents: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """Return latents of L2 norm at most C, each clipped by itself; any two are within 2 C.

    A latent with an entry that is not finite, or near overflow, becomes zero, silently: an error here would reveal
    that the record is there.

    Args:
        latents: (records, dims).
        clip_norm: C, above zero.

    Returns:
        (records, dims), in the dtype of `latents`.

    Raises:
        PrivacyError: C is not positive.
    """
    return _clip(latents, clip_norm, order=2)


def clip_l1(latents: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """Return latents of L1 norm at most C, each clipped by itself; any two are within 2 C in that norm.

    It scales a latent, as `clip_l2` does, rather than project it onto the ball: the direction stays. A latent with an
    entry that is not finite, or near overflow, becomes zero, silently.

    Args:
        latents: (records, dims).
        clip_norm: C, above zero.

    Returns:
        (records, dims), in the dtype of `latents`.

    Raises:
        PrivacyError: C is not positive.
    """
    return _clip(latents, clip_norm, order=1)


def _clip(latents: torch.Tensor, clip_norm: float, *, order: int) -> torch.Tensor:
    norms = torch.linalg.vector_norm(latents.double(), ord=order, dim=1)
    factors = clip_factors(norms, clip_norm)[:, None]
    return torch.where(is_clippable(norms)[:, None], latents, torch.zeros_like(latents)) * factors.to(latents.dtype)

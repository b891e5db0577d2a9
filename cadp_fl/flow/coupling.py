"""Coupling blocks: FrEIA's GLOW, RNVP and GIN, given the condition apart from the input.

    y1 = exp(s(x2, y)) x1 + t(x2, y)        y2 = exp(s'(y1, y)) x2 + t'(y1, y)

FrEIA joins condition and input before a subnet, for which a condition must be spread over the pixels: with ten classes
and two input channels that makes the first convolution six times as large. Here a subnet gets both, and does as it
likes. To add a block, derive it in the same way and put it into `COUPLINGS`.

References:
    Kingma, Dhariwal: Glow, arXiv 1807.03039. Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, arXiv
    1605.08803. Sorrenson, Rother, Köthe: Disentanglement by nonlinear ICA with general incompressible-flow networks
    (GIN), arXiv 2001.04872.
"""

from collections.abc import Callable
from typing import Any

import FrEIA.modules as fm
import torch

__all__ = ["COUPLINGS", "coupling_block"]

Pair = tuple[torch.Tensor, torch.Tensor]


class _Conditional:
    """Hands (half, condition) to the subnets of a FrEIA coupling block, where FrEIA would hand over one tensor."""

    split_len1: int
    split_len2: int
    _coupling1: Callable[..., Any]
    _coupling2: Callable[..., Any]

    def forward(self, x: Pair, rev: bool = False) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return the block's output and log-determinant for (input, condition); its inverse if `rev`."""
        inputs, condition = x
        x1, x2 = torch.split(inputs, [self.split_len1, self.split_len2], dim=1)
        if rev:
            y2, j2 = self._coupling2(x2, (x1, condition), rev=True)
            y1, j1 = self._coupling1(x1, (y2, condition), rev=True)
        else:
            y1, j1 = self._coupling1(x1, (x2, condition))
            y2, j2 = self._coupling2(x2, (y1, condition))
        return torch.cat((y1, y2), 1), j1 + j2


class _Glow(_Conditional, fm.GLOWCouplingBlock):
    """Affine, scale and shift from one subnet a half."""


class _Rnvp(_Conditional, fm.RNVPCouplingBlock):
    """Affine, scale and shift from a subnet each."""


class _Gin(_Conditional, fm.GINCouplingBlock):
    """Affine and volume-preserving: its log-determinant is 0."""


COUPLINGS: dict[str, type[torch.nn.Module]] = {"glow": _Glow, "gin": _Gin, "rnvp": _Rnvp}


def coupling_block(
    kind: str, dims: tuple[int, ...], subnet: Callable[[int, int], torch.nn.Module], clamp: float
) -> torch.nn.Module:
    """Return a block of a kind on inputs (batch, *dims).

    Args:
        subnet: builds a network from (channels in, channels out) that takes (half of the input, condition).
        clamp: largest log-scale (soft).
    """
    return COUPLINGS[kind]([dims], subnet_constructor=subnet, clamp=clamp)

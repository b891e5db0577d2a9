"""Fixed permutations of channels before each coupling block: soft ones (rotations) and hard ones.

A soft permutation is a random rotation, a d x d matrix; beyond `MAX_SOFT_DIMS` it would cost more than the blocks, so
a hard one takes its place. Both draw from numpy's global generator, which whoever builds a flow seeds and puts back.
"""

import math

import FrEIA.modules as fm
import numpy as np
import torch
from torch import nn

__all__ = ["MAX_SOFT_DIMS", "PERMUTATIONS", "HardPermutation", "Rotation", "permutation"]

MAX_SOFT_DIMS = 512


class HardPermutation(nn.Module):
    """x -> x[perm] over channels; dims is (channels, ...)."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.permute = fm.PermuteRandom([dims])

    def forward(self, x: torch.Tensor, rev: bool = False) -> torch.Tensor:
        """Return x permuted along dimension 1, or put back if `rev`. The log-determinant is 0."""
        order: torch.Tensor = self.permute.perm_inv if rev else self.permute.perm
        return x.index_select(1, order)  # FrEIA's own indexing takes a slower road back through autograd


class Rotation(nn.Module):
    """x -> R x over channels, with a fixed random rotation R; dims is (channels, ...).

    R is made of Givens rotations with rational sines and cosines, by additions and products of single numbers, so that
    every machine computes the same bits; linear-algebra libraries do not, and sites compare hashes of fixed parts.
    """

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.from_numpy(_random_rotation(dims[0])))

    def forward(self, x: torch.Tensor, rev: bool = False) -> torch.Tensor:
        """Return x rotated along dimension 1, or turned back if `rev`. The log-determinant is 0."""
        assert isinstance(self.matrix, torch.Tensor)
        matrix = (self.matrix.T if rev else self.matrix).to(x.dtype)
        if x.dim() == 2:
            return nn.functional.linear(x, matrix)
        return nn.functional.conv2d(x, matrix[:, :, None, None])


PERMUTATIONS: dict[str, type[nn.Module]] = {"soft": Rotation, "hard": HardPermutation}


def permutation(kind: str, dims: tuple[int, ...]) -> nn.Module:
    """Return a permutation of a kind; a soft one only up to `MAX_SOFT_DIMS` channels."""
    return PERMUTATIONS[kind if dims[0] <= MAX_SOFT_DIMS else "hard"](dims)


def _random_rotation(dims: int) -> np.ndarray:
    """Return a rotation, float64 (dims, dims), in which every output depends on every input."""
    matrix = np.eye(dims)
    for _ in range(2 + math.ceil(math.log2(dims)) if dims > 1 else 0):
        matrix = matrix[np.random.permutation(dims)]
        first, second = matrix[0 : dims - 1 : 2], matrix[1:dims:2]
        half_tangent = np.random.uniform(-1, 1, (dims // 2, 1))
        cosine = (1 - half_tangent * half_tangent) / (1 + half_tangent * half_tangent)
        sine = 2 * half_tangent / (1 + half_tangent * half_tangent)
        turned = np.empty_like(matrix)
        turned[0 : dims - 1 : 2] = cosine * first - sine * second
        turned[1:dims:2] = sine * first + cosine * second
        turned[dims - dims % 2 :] = matrix[dims - dims % 2 :]
        matrix = turned
    return matrix

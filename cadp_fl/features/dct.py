"""The orthonormal DCT-II, and its lowest frequencies apart from all others.

References:
    Ahmed, Natarajan, Rao: Discrete cosine transform, IEEE Transactions on Computers 1974.
"""

import math
from functools import lru_cache

import torch

__all__ = ["LowFrequencies", "dct_matrix"]


class LowFrequencies:
    """x (batch, channels, height, width) to its lowest coefficients (batch, channels k^2) and all others: orthogonal.

    The lowest frequencies come first among them: they are in order of i + j, then of i, then of channels.

    Args:
        shape: (channels, height, width) of an image.
        size: k, at most the shorter side.

    Attributes:
        dims: number of the lowest ones.
        frequencies: (i, j, channel) of each of them.
    """

    def __init__(self, shape: tuple[int, int, int], size: int) -> None:
        channels, height, width = shape
        self._shape = shape
        pairs = sorted(((i, j) for i in range(size) for j in range(size)), key=lambda pair: (sum(pair), pair))
        self.frequencies = [(i, j, channel) for i, j in pairs for channel in range(channels)]
        self.dims = len(self.frequencies)
        low = [(channel * height + i) * width + j for i, j, channel in self.frequencies]
        self._order = low + sorted(set(range(math.prod(shape))) - set(low))

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the lowest coefficients of images and all others, (batch, dims) and (batch, pixels - dims)."""
        _, height, width = self._shape
        coefficients = (dct_matrix(height, like=x) @ x @ dct_matrix(width, like=x).T).flatten(1)
        ordered = coefficients[:, torch.tensor(self._order, device=x.device)]
        return ordered[:, : self.dims], ordered[:, self.dims :]

    def join(self, low: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return the images of some coefficients; the inverse of `split`."""
        _, height, width = self._shape
        ordered = torch.cat([low, others], dim=1)
        coefficients = torch.empty_like(ordered)
        coefficients[:, torch.tensor(self._order, device=low.device)] = ordered
        return dct_matrix(height, like=low).T @ coefficients.view(-1, *self._shape) @ dct_matrix(width, like=low)


def dct_matrix(size: int, *, like: torch.Tensor) -> torch.Tensor:
    """Return D, (size, size), with D[i, n] = c_i cos(pi (2 n + 1) i / (2 size)), orthogonal.

    It is no buffer of a module: sites compare hashes of fixed tensors, and cosines differ in their last bits between
    machines.
    """
    return _dct_matrix(size).to(dtype=like.dtype, device=like.device)


@lru_cache(maxsize=64)
def _dct_matrix(size: int) -> torch.Tensor:
    index = torch.arange(size, dtype=torch.float64, device="cpu")
    matrix = torch.cos(math.pi * (2 * index + 1) * index[:, None] / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix

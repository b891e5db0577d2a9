"""The front end of a warm-started flow: x -> (the lowest frequencies of an image, all others), orthogonal and public.

    v = D x D^T, the orthonormal DCT-II of every channel
    low = v[i, j] (1 + i + j)^-p for i, j < k        rest = v[i, j] / detail for all others

Nothing of it depends on records: not the size k, not the power p, not the detail. Few numbers hold most of an image,
so that moments of those are told with little noise; what is fine is drawn afresh.

References:
    Ahmed, Natarajan, Rao: Discrete cosine transform, IEEE Transactions on Computers 1974.
"""

import math
from functools import lru_cache

import torch
from torch import nn

__all__ = ["LowPass", "dct_matrix"]


class LowPass(nn.Module):
    """x (batch, channels, height, width) to low (batch, channels k^2) and rest (batch, channels (h w - k^2)).

    The lowest frequencies come first in `low`: it is in order of i + j, then of i, then of channels.

    Args:
        shape: (channels, height, width) of an image.
        size: k, at most the shorter side.
        power: p, from 0: how much less a higher one of the lowest frequencies counts.
        detail: standard deviation that the others have under the flow.
    """

    def __init__(self, shape: tuple[int, int, int], *, size: int, power: float, detail: float) -> None:
        super().__init__()
        channels, height, width = shape
        self.shape, self._power, self._detail = shape, power, detail
        pairs = [(i, j) for i in range(size) for j in range(size)]
        self._frequencies = [
            (i, j, channel) for i, j in sorted(pairs, key=lambda pair: (sum(pair), pair)) for channel in range(channels)
        ]
        low = [(channel * height + i) * width + j for i, j, channel in self._frequencies]
        others = sorted(set(range(math.prod(shape))) - set(low))
        self._order = torch.tensor(low + others)
        self.dims = len(low)
        self.log_det = -power * sum(math.log(1 + i + j) for i, j, _ in self._frequencies)
        self.log_det -= len(others) * math.log(detail)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (low, rest) of images; the log-determinant is the constant `log_det`."""
        _, height, width = self.shape
        coefficients = (dct_matrix(height, like=x) @ x @ dct_matrix(width, like=x).T).flatten(1)
        ordered = coefficients[:, self._order.to(x.device)]
        return ordered[:, : self.dims] * self._scales(x), ordered[:, self.dims :] / self._detail

    def inverse(self, low: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return x, (batch, channels, height, width), of low (batch, dims) and rest."""
        _, height, width = self.shape
        ordered = torch.cat([low / self._scales(low), rest * self._detail], dim=1)
        coefficients = torch.empty_like(ordered)
        coefficients[:, self._order.to(low.device)] = ordered
        return dct_matrix(height, like=low).T @ coefficients.view(-1, *self.shape) @ dct_matrix(width, like=low)

    def _scales(self, like: torch.Tensor) -> torch.Tensor:
        """Return (1 + i + j)^-p of every coefficient of `low`, (dims,)."""
        return like.new_tensor([(1 + i + j) ** -self._power for i, j, _ in self._frequencies])


def dct_matrix(size: int, *, like: torch.Tensor) -> torch.Tensor:
    """Return D, (size, size), with D[i, n] = c_i cos(pi (2 n + 1) i / (2 size)), orthogonal.

    It is no buffer of a module: sites compare hashes of fixed tensors, and cosines differ in their last bits between
    machines.
    """
    return _dct_matrix(size).to(dtype=like.dtype, device=like.device)


@lru_cache(maxsize=64)
def _dct_matrix(size: int) -> torch.Tensor:
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * index + 1) * index[:, None] / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix

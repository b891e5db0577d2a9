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

    The order of `low` is that of channels, then rows, then columns.

    Args:
        shape: (channels, height, width) of an image.
        size: k, at most the shorter side.
        power: p, from 0: how much less a higher one of the lowest frequencies counts.
        detail: standard deviation that the others have under the flow.
    """

    def __init__(self, shape: tuple[int, int, int], *, size: int, power: float, detail: float) -> None:
        super().__init__()
        self.shape, self.size, self.power, self.detail = shape, size, power, detail
        channels = shape[0]
        self.dims = channels * size * size
        rest = math.prod(shape) - self.dims
        frequencies = [1 + row + column for row in range(size) for column in range(size)]
        self.log_det = -channels * power * sum(math.log(each) for each in frequencies) - rest * math.log(detail)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (low, rest) of images; the log-determinant is the constant `log_det`."""
        height, width = self.shape[1:]
        coefficients = dct_matrix(height, like=x) @ x @ dct_matrix(width, like=x).T
        is_low = self._is_low(x.device)
        low = coefficients[:, :, : self.size, : self.size] * self._scales(x)
        return low.flatten(1), coefficients.flatten(2)[:, :, ~is_low].flatten(1) / self.detail

    def inverse(self, low: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return x, (batch, channels, height, width), of low (batch, dims) and rest."""
        channels, height, width = self.shape
        is_low = self._is_low(low.device)
        flat = low.new_empty(len(low), channels, height * width)
        scales = self._scales(low).flatten()
        flat[:, :, is_low] = low.view(len(low), channels, -1) / scales
        flat[:, :, ~is_low] = rest.view(len(low), channels, height * width - len(scales)) * self.detail
        coefficients = flat.view(-1, channels, height, width)
        return dct_matrix(height, like=low).T @ coefficients @ dct_matrix(width, like=low)

    def _scales(self, like: torch.Tensor) -> torch.Tensor:
        """Return (1 + i + j)^-p, (k, k)."""
        index = torch.arange(self.size, device=like.device, dtype=torch.float64)
        return (1 + index[:, None] + index).pow(-self.power).to(like.dtype)

    def _is_low(self, device: torch.device) -> torch.Tensor:
        """Tell of every coefficient, row by row, whether it is one of the lowest; bool (height width,)."""
        _, height, width = self.shape
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        return ((rows[:, None] < self.size) & (columns < self.size)).flatten()


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

"""Fixed public features in front of a linear layer: phi(x), of norm 1, from an image x. Nothing here is learned.

The gradient of a linear layer on phi is (p - y) phi^T. Where |phi| = 1 its norm is that of p - y, so that clipping it
for privacy loses little, and noise on the layer's weights moves a logit by no more than that of one weight, however
long phi is. Which features there are, and how many, follows from an image's shape alone, which is public.

References:
    Tramèr, Boneh: Differentially private learning needs better features (or much more data), arXiv 2011.11660.
"""

import math

import torch
from torch import nn

from cadp_fl.data.codec import RowShape
from cadp_fl.features.dct import dct_matrix
from cadp_fl.features.front_end import RowFrontEnd
from cadp_fl.features.gradients import by_direction

__all__ = ["BlockGradients", "LowPassDct", "RowNumbers"]


class LowPassDct(nn.Module):
    """phi = c / |c|, c the k x k lowest coefficients of each channel's orthonormal two-dimensional DCT-II.

    An image's mean is damped, since exposure sets it and it would be most of the norm.

    Args:
        size: k; a side that is shorter has fewer coefficients.
        mean_weight: factor of the constant coefficient.

    References:
        Ahmed, Natarajan, Rao: Discrete cosine transform, IEEE Transactions on Computers, 1974.
    """

    def __init__(self, size: int = 8, *, mean_weight: float = 0.2) -> None:
        super().__init__()
        self.size = size
        self.mean_weight = mean_weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (batch, channels * k * k) of images (batch, channels, height, width)."""
        rows, columns = (dct_matrix(side, like=images)[: self.size] for side in images.shape[2:])
        coefficients = rows @ images @ columns.T
        coefficients[:, :, 0, 0] *= self.mean_weight
        return _unit(coefficients.flatten(1))


class BlockGradients(nn.Module):
    """phi = h / |h|, h the histograms of the directions of an image's gradients, cell by cell, less their mean.

    Each pixel adds the length of its gradient, central differences of the channel in which it is longest, to the two
    directions next to its own, in proportion to how near they are. Histograms are means over cells; those of 2 x 2
    neighbouring cells make a block, which is divided by its norm. Blocks overlap. Adding a constant to an image changes
    nothing, and scaling its contrast little.

    Args:
        directions: number of directions on the whole circle.
        cell: pixels along a cell, about; a side has 4 to 12 cells, fewer if it has fewer pixels.

    References:
        Dalal, Triggs: Histograms of oriented gradients for human detection, CVPR 2005.
    """

    def __init__(self, directions: int = 12, cell: float = 5.6) -> None:
        super().__init__()
        self.directions = directions
        self.cell = cell

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (batch, blocks * 4 * directions) of images (batch, channels, height, width)."""
        tall, wide = (_cells_along(side, self.cell) for side in images.shape[2:])
        cells = nn.functional.adaptive_avg_pool2d(self.by_direction(images), (tall, wide))
        blocks = nn.functional.unfold(cells, (min(2, tall), min(2, wide)))
        norms = (blocks.square().sum(dim=1, keepdim=True) + _FLAT**2).sqrt()
        histograms = (blocks / norms).flatten(1)
        return _unit(histograms - histograms.mean(dim=1, keepdim=True))

    def by_direction(self, images: torch.Tensor) -> torch.Tensor:
        """Return the length of every pixel's gradient, shared out to directions: (batch, directions, height, width)."""
        around = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
        along_rows = (around[:, :, 1:-1, 2:] - around[:, :, 1:-1, :-2]) / 2
        along_columns = (around[:, :, 2:, 1:-1] - around[:, :, :-2, 1:-1]) / 2
        return by_direction(along_columns, along_rows, self.directions, turn=2 * math.pi)


_FEWEST_CELLS, _MOST_CELLS = 4, 12

_FLAT = 0.005
"""Gradient, in ranges of a pixel from black to white, below which a block counts as flat and is not stretched."""


def _cells_along(side: int, length: float) -> int:
    """Return the number of cells along a side, given in pixels."""
    return min(side, max(_FEWEST_CELLS, min(_MOST_CELLS, round(side / length))))


class RowNumbers(nn.Module):
    """phi = (a v, b), of norm at most 1: a row's numbers as `RowFrontEnd` scales them, and a constant.

    Args:
        shape: of a row's x.
        constant_weight: b; a^2 = 1 - b^2.
    """

    def __init__(self, shape: RowShape, *, constant_weight: float = 0.3) -> None:
        super().__init__()
        self._front: RowFrontEnd = RowFrontEnd(shape)
        self._constant = constant_weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return features (batch, numbers + 1) of rows in [-0.5, 0.5], (batch, numbers)."""
        numbers = self._front.of_values(inputs + 0.5)
        constant = torch.full_like(numbers[:, :1], self._constant)
        return torch.cat([math.sqrt(1 - self._constant**2) * numbers, constant], dim=1)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors (batch, dims) of norm 1, each by itself; zero stays zero."""
    return nn.functional.normalize(vectors, dim=1)

"""A descriptor of an image's edges: smooth histograms of oriented gradients, of norm 1, and few numbers.

Every pixel adds the length of its gradient to the two orientations next to its own and to the cells around it. The
histograms, to a power below 1 so that strong edges do not drown weak ones, are scaled to norm 1 together, and given by
their lowest frequencies, over cells and over orientations. Everything is of one image by itself, and of its shape
alone: nothing is learned.

References:
    Dalal, Triggs: Histograms of oriented gradients for human detection, CVPR 2005.
"""

import math

import torch
from torch import nn

from cadp_fl.features.dct import dct_matrix

__all__ = ["OrientedGradients", "by_direction"]

ORIENTATIONS = 4
"""Of a line, so on half a circle."""

MOST_CELLS, POWER, BELOW = 7, 0.6, 5.5
"""Cells along a side; of histograms; frequencies that are kept, in cycles over the image and over the orientations."""

_BLUR = 0.7 / 28
"""Standard deviation of the blur before gradients, in sides of an image."""


class OrientedGradients:
    """h (batch, dims) of norm at most 1 for images (batch, channels, height, width); 0 for a constant image.

    Args:
        shape: (channels, height, width) of an image.

    Attributes:
        dims: length of h.
        frequencies: of each number, in cycles over image and orientations together.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        _, height, width = shape
        self._sides = (height, width)
        self._cells = tuple(max(1, min(MOST_CELLS, side // 2)) for side in self._sides)
        rows, columns = (torch.arange(count, dtype=torch.float64, device="cpu") for count in self._cells)
        _, turns = _circle(ORIENTATIONS)
        all_of_them = (turns[:, None, None] ** 2 + rows[:, None] ** 2 + columns**2).sqrt().flatten()
        self._kept = (all_of_them < BELOW).nonzero().flatten().tolist()
        self.frequencies = all_of_them[self._kept].tolist()
        self.dims = len(self._kept)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return h of images."""
        by_orientation = self._by_orientation(_blurred(x))
        tall, wide = (_windows(side, count, like=x) for side, count in zip(self._sides, self._cells, strict=True))
        histograms = (tall @ by_orientation @ wide.T).clamp_min(0).pow(POWER)
        histograms = nn.functional.normalize(histograms.flatten(1), dim=1, eps=1e-9).view_as(histograms)
        basis, _ = _circle(ORIENTATIONS)
        rows, columns = (dct_matrix(count, like=x) for count in self._cells)
        smooth = rows @ torch.einsum("po,bohw->bphw", basis.to(x), histograms) @ columns.T
        return smooth.flatten(1)[:, torch.tensor(self._kept, device=x.device)]

    def _by_orientation(self, x: torch.Tensor) -> torch.Tensor:
        """Return the length of every pixel's gradient by its orientation, (batch, ORIENTATIONS, height, width)."""
        down, across = torch.zeros_like(x), torch.zeros_like(x)
        down[:, :, 1:-1] = x[:, :, 2:] - x[:, :, :-2]
        across[:, :, :, 1:-1] = x[:, :, :, 2:] - x[:, :, :, :-2]
        return by_direction(down, across, ORIENTATIONS, turn=math.pi)


def by_direction(down: torch.Tensor, across: torch.Tensor, count: int, *, turn: float) -> torch.Tensor:
    """Return the length of every pixel's gradient, shared out to the two directions next to its own.

    Args:
        down: along columns, (batch, channels, height, width); of the channels, that counts in which it is longest.
        across: along rows, likewise.
        count: number of directions.
        turn: angle that they go round: 2 pi for directions, pi for the orientations of a line.

    Returns:
        (batch, count, height, width).
    """
    length, channel = torch.hypot(down, across).max(dim=1, keepdim=True)
    angle = torch.atan2(down.gather(1, channel), across.gather(1, channel))
    place = (angle / turn * count).remainder(count)
    apart = (place - torch.arange(count, device=down.device).view(1, -1, 1, 1)).abs()
    return length * (1 - torch.minimum(apart, count - apart)).clamp_min(0)


def _blurred(x: torch.Tensor) -> torch.Tensor:
    """Return images after a Gaussian blur along rows and columns."""
    for axis, side in ((2, x.shape[2]), (3, x.shape[3])):
        std = _BLUR * side
        reach = max(1, math.ceil(4 * std))
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device).to(x.dtype) / std).square())
        along = (kernel / kernel.sum()).view(1, 1, *((-1, 1) if axis == 2 else (1, -1))).expand(x.shape[1], 1, -1, -1)
        padding = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        x = nn.functional.conv2d(nn.functional.pad(x, padding, mode="replicate"), along, groups=x.shape[1])
    return x


def _windows(side: int, cells: int, *, like: torch.Tensor) -> torch.Tensor:
    """Return triangular windows around the cells' middles, (cells, side)."""
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) * side / cells
    pixels = torch.arange(side, dtype=torch.float64) + 0.5
    return (1 - (pixels - middles[:, None]).abs() / (side / cells)).clamp_min(0).to(like)


def _circle(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an orthonormal Fourier basis on a circle of `count` points, in rows, and the turns of each, float64.

    On the CPU, also where a flow is built without memory for its weights: how many numbers are kept depends on it.
    """
    angle = 2 * math.pi * torch.arange(count, dtype=torch.float64, device="cpu") / count
    rows, turns = [torch.ones_like(angle)], [0.0]
    for turn in range(1, count // 2 + 1):
        waves = [torch.cos(turn * angle)] + ([torch.sin(turn * angle)] if 2 * turn < count else [])
        rows += waves
        turns += [float(turn)] * len(waves)
    return nn.functional.normalize(torch.stack(rows), dim=1), torch.tensor(turns, dtype=torch.float64, device="cpu")

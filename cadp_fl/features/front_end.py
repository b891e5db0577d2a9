"""The fixed, public front end of a warm-started flow: a record as a few numbers that matter, and all that is left.

Of an image:

    v(x) = (alpha clip(low; C) / C, sqrt(1 - alpha^2) h)        |v| <= 1

with `low` the lowest DCT coefficients of x - offset, and h a descriptor of the image's edges. The descriptor is a
function of the image that no flow could undo; it stands beside the image, so that what is known of v tells classes
apart, and leaves when v is made an image again. What the clip cuts off, the contrast, is kept apart: no image is lost.

Of a row with m columns, of which none is longer than 1:

    v(x) = (2 x - 1 of a number, h - 1 / K of one of K categories, to norm 1) / sqrt(m)        |v| <= 1

Nothing here depends on records: moments of v are released under a bound that no record can break.
"""

import math

import torch
from torch import nn

from cadp_fl.config import FrontEndConfig
from cadp_fl.data.codec import RowShape
from cadp_fl.features.dct import LowFrequencies
from cadp_fl.features.gradients import OrientedGradients

__all__ = ["FrontEnd", "ImageFrontEnd", "RowFrontEnd", "front_end_of"]


class FrontEnd(nn.Module):
    """x (batch, ...) in [0, 1] to v (batch, dims) with |v| <= 1, and what else x is.

    It has no weights.

    Attributes:
        dims: length of v.
        record_dims: how many of them, the first ones, a record is made from again.
        rest_dims: number of all other coefficients.
        frequencies: float64 (dims,), of every number of v, in half cycles over an image; 0 without an order.
        kinds: int64 (dims,): numbers of one kind have a scale of their own.
        has_contrast: whether a record has one, which the clip cuts off.
        is_on_sphere: whether |v| is 1 of most records.
    """

    dims: int
    record_dims: int
    rest_dims: int
    frequencies: torch.Tensor
    kinds: torch.Tensor
    has_contrast: bool
    is_on_sphere: bool

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return v (batch, dims); the contrast that the clip cut off, at least 1, (batch,); and the rest (batch, ...).

        The rest are all other coefficients, in units in which they are about standard normal.
        """
        raise NotImplementedError

    def record(self, v: torch.Tensor, contrast: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return x of the first numbers of v, the contrast and the rest, as `forward` gave them."""
        raise NotImplementedError


class ImageFrontEnd(FrontEnd):
    """Of images, (batch, channels, height, width)."""

    has_contrast = True

    def __init__(self, config: FrontEndConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._low = LowFrequencies(shape, min(config.size, *shape[1:]))
        self._descriptor = None if config.descriptor == "none" else OrientedGradients(shape)
        self._offset, self._detail = config.offset, config.detail
        self._norm = config.contrast * math.sqrt(math.prod(shape))
        self._weight = 1.0 if self._descriptor is None else config.image_weight
        self.record_dims = self._low.dims
        self.dims = self.record_dims + (self._descriptor.dims if self._descriptor else 0)
        self.rest_dims = math.prod(shape) - self.record_dims
        self.kinds = (torch.arange(self.dims, device="cpu") >= self.record_dims).long()
        self.is_on_sphere = True
        low = [math.hypot(i, j) for i, j, _ in self._low.frequencies]
        self.frequencies = torch.tensor(
            low + (self._descriptor.frequencies if self._descriptor else []), dtype=torch.float64, device="cpu"
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return v, the contrast, and the rest in units of `detail`."""
        low, rest = self._low.split(x - self._offset)
        contrast = (low.norm(dim=1) / self._norm).clamp_min(1.0)
        parts = [self._weight * low / (self._norm * contrast[:, None])]
        if self._descriptor is not None:
            parts.append(math.sqrt(1 - self._weight**2) * self._descriptor(x))
        return torch.cat(parts, dim=1), contrast, rest / self._detail

    def record(self, v: torch.Tensor, contrast: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return an image."""
        low = v[:, : self.record_dims] / self._weight * (self._norm * contrast[:, None])
        return self._low.join(low, rest * self._detail) + self._offset


class RowFrontEnd(FrontEnd):
    """Of rows, (batch, numbers)."""

    has_contrast, is_on_sphere = False, False

    def __init__(self, shape: RowShape) -> None:
        super().__init__()
        self.dims = self.record_dims = shape[0]
        self.rest_dims = 0
        self.frequencies = torch.zeros(self.dims, dtype=torch.float64, device="cpu")
        self.kinds = torch.zeros(self.dims, dtype=torch.int64, device="cpu")
        factors, offsets, spread = torch.full((self.dims,), 2.0), torch.full((self.dims,), 0.5), torch.ones(self.dims)
        for kind, place in shape.parts:
            width = place.stop - place.start
            if kind == "category" and width > 1:
                factors[place], offsets[place] = math.sqrt(width / (width - 1)), 1 / width
            elif kind == "number-or-missing":
                factors[place.stop - 1], offsets[place.stop - 1] = 1.0, 0.0
            if kind == "category":
                self.kinds[place], spread[place] = 1, 2.0
            elif kind == "number-or-missing":
                spread[place.stop - 1] = 2.0
        self._factors, self._offsets = factors / math.sqrt(len(shape.blocks)), offsets
        self._spread = spread  # 0 and 1 are in the middle of two levels, at x = 1/4 and 3/4

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return v, a contrast of 1, and an empty rest."""
        v = self.of_values((x - 0.5) * self._spread.to(x) + 0.5)
        return v, torch.ones_like(v[:, 0]), v[:, :0]

    def of_values(self, values: torch.Tensor) -> torch.Tensor:
        """Return v of numbers from 0 to 1, of which those of categories are 0 or 1."""
        return (values - self._offsets.to(values)) * self._factors.to(values)

    def record(self, v: torch.Tensor, contrast: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return a row's numbers."""
        values = v / self._factors.to(v) + self._offsets.to(v)
        return (values - 0.5) / self._spread.to(v) + 0.5


def front_end_of(config: FrontEndConfig, shape: tuple[int, ...]) -> FrontEnd:
    """Return the front end of records whose x has a shape.

    Args:
        shape: (channels, height, width) of an image, or a `RowShape`.
    """
    if isinstance(shape, RowShape):
        return RowFrontEnd(shape)
    channels, height, width = shape
    return ImageFrontEnd(config, (channels, height, width))

"""The fixed, public front end of a warm-started flow: an image as a few numbers that matter, and all that is left.

    v(x) = (alpha clip(low; C) / C, sqrt(1 - alpha^2) h)        |v| <= 1

with `low` the lowest DCT coefficients of x - offset, and h a descriptor of the image's edges. The descriptor is a
function of the image that no flow could undo; it stands beside the image, so that what is known of v tells classes
apart, and leaves when v is made an image again. What the clip cuts off, the contrast, is kept apart: no image is lost.

Nothing here depends on records: moments of v are released under a bound that no record can break.
"""

import math

import torch
from torch import nn

from cadp_fl.config import FrontEndConfig
from cadp_fl.features.dct import LowFrequencies
from cadp_fl.features.gradients import OrientedGradients

__all__ = ["FrontEnd"]


class FrontEnd(nn.Module):
    """x (batch, channels, height, width), pixels in [0, 1], to v (batch, dims) with |v| <= 1, and what else x is.

    It has no weights.

    Attributes:
        dims: length of v.
        image_dims: how many of them, the first ones, an image is made from again.
        rest_dims: number of all other coefficients.
        frequencies: float64 (dims,), of every number of v, in half cycles over the image.
    """

    def __init__(self, config: FrontEndConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._low = LowFrequencies(shape, min(config.size, *shape[1:]))
        self._descriptor = None if config.descriptor == "none" else OrientedGradients(shape)
        self._offset, self._detail = config.offset, config.detail
        self._norm = config.contrast * math.sqrt(math.prod(shape))
        self._weight = 1.0 if self._descriptor is None else config.image_weight
        self.image_dims = self._low.dims
        self.dims = self.image_dims + (self._descriptor.dims if self._descriptor else 0)
        self.rest_dims = math.prod(shape) - self.image_dims
        low = [math.hypot(i, j) for i, j, _ in self._low.frequencies]
        self.frequencies = torch.tensor(
            low + (self._descriptor.frequencies if self._descriptor else []), dtype=torch.float64, device="cpu"
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return v (batch, dims); the contrast that the clip cut off, at least 1, (batch,); and the rest (batch, ...).

        The rest are all other coefficients in units of `detail`.
        """
        low, rest = self._low.split(x - self._offset)
        contrast = (low.norm(dim=1) / self._norm).clamp_min(1.0)
        parts = [self._weight * low / (self._norm * contrast[:, None])]
        if self._descriptor is not None:
            parts.append(math.sqrt(1 - self._weight**2) * self._descriptor(x))
        return torch.cat(parts, dim=1), contrast, rest / self._detail

    def image(self, v: torch.Tensor, contrast: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """Return x of the first numbers of v, the contrast and the rest, as `forward` gave them."""
        low = v[:, : self.image_dims] / self._weight * (self._norm * contrast[:, None])
        return self._low.join(low, rest * self._detail) + self._offset

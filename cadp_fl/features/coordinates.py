"""x <-> (u, others): where a record lies as seen from a centre, in the ball that moments are taken in.

    u = (v(x) - c) / max(|v(x) - c|, R)        |u| <= 1

v is the front end's, c a noised mean of it. What the ball cuts off is a contrast, and stands among the others with the
front end's own and with the coefficients that v leaves out, so that a record comes back from its coordinates whole. The
prior of a contrast is log-normal, around `spread`, which follows from the centre, and around a public constant.
"""

import torch
from torch import nn

from cadp_fl.config import FrontEndConfig
from cadp_fl.features.front_end import front_end_of

__all__ = ["Coordinates"]

SPREAD_STD = 0.1
IMAGE_CONTRAST, IMAGE_CONTRAST_STD = 1.5, 0.2
"""Under the flow: of the logarithm of |v - c| and of that of an image's contrast, the latter around its own."""


class Coordinates(nn.Module):
    """Records x (batch, ...) to u (batch, dims) and others (batch, other_dims), and back.

    The others are the rest of the coefficients, the logarithm of |v - c| where it is cut off, and that of the record's
    own contrast, if it has one; standard normal under the flow. The centre and the spread come with the moments, and
    are trained by no gradient.
    """

    def __init__(self, config: FrontEndConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.front = front_end_of(config, shape)
        self.radius = config.radius
        self.dims, self.other_dims = self.front.dims, self.front.rest_dims + 1 + self.front.has_contrast
        self.centre = nn.Parameter(torch.zeros(self.dims))
        self.spread = nn.Parameter(torch.ones(1))
        """Distance from the centre at which records are drawn, (1,)."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return u and the others."""
        v, image_contrast, rest = self.front(x)
        apart = v - self.centre
        contrast = apart.norm(dim=1).clamp_min(self.radius)
        apart_log = (contrast / self.spread).log() / SPREAD_STD
        parts = [rest, apart_log[:, None]]
        if self.front.has_contrast:
            parts.append((image_contrast / IMAGE_CONTRAST).log()[:, None] / IMAGE_CONTRAST_STD)
        return apart / contrast[:, None], torch.cat(parts, dim=1)

    def inverse(self, u: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Return records. What u says of a descriptor is left out."""
        rest, apart_log, image_log = others.split([self.front.rest_dims, 1, int(self.front.has_contrast)], dim=1)
        contrast = self.spread * (apart_log[:, 0] * SPREAD_STD).exp()
        if self.front.has_contrast:
            image_contrast = IMAGE_CONTRAST * (image_log[:, 0] * IMAGE_CONTRAST_STD).exp()
        else:
            image_contrast = torch.ones_like(contrast)
        return self.front.record(self.centre + contrast[:, None] * u, image_contrast, rest)

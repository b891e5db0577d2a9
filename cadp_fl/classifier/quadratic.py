"""A quadratic discriminant: log N(u; mu_y, Sigma_y) of every class, on the coordinates of a fixed front end.

It is fitted in closed form. Where records are drawn from a flow whose affine layer is most of it, no other classifier
needs fewer of them to come as near to the flow's own Bayes rule.

References:
    Hastie, Tibshirani, Friedman: The elements of statistical learning, section 4.3.
"""

import torch
from torch import nn

from cadp_fl.config import FrontEndConfig
from cadp_fl.features.coordinates import Coordinates

__all__ = ["QuadraticDiscriminant"]

RIDGE = 1e-3
"""Added to every covariance, in units of its mean variance: so few records of a class never make it singular."""


class QuadraticDiscriminant(nn.Module):
    """Images in [-0.5, 0.5], (batch, channels, height, width), to logits (batch, classes) of equally likely classes."""

    def __init__(self, config: FrontEndConfig, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.coordinates = Coordinates(config, shape)
        dims = self.coordinates.dims
        self.mean = nn.Parameter(torch.zeros(classes, dims))
        self.whitening = nn.Parameter(torch.eye(dims).repeat(classes, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return log N(u; mu_y, Sigma_y) of every class, but for a constant."""
        u, _ = self.coordinates(images + 0.5)
        white = torch.einsum("cij,bcj->bci", self.whitening.tril(), u[:, None] - self.mean)
        log_det = self.whitening.diagonal(dim1=1, dim2=2).abs().log().sum(dim=1)
        return log_det - 0.5 * white.square().sum(dim=2)

    @torch.no_grad()
    def fit(self, u: torch.Tensor, labels: torch.Tensor) -> None:
        """Set mean and covariance of every class to those of some records, in place; those of all where it has none.

        Args:
            u: coordinates, (records, dims), seen from this classifier's centre.
            labels: int64, (records,).
        """
        for label in range(len(self.mean)):
            own = u[labels == label].double()
            own = own if len(own) else u.double()
            mean = own.mean(dim=0)
            covariance = (own - mean).T @ (own - mean) / len(own)
            covariance += RIDGE * covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(len(mean)).to(covariance)
            inverse = torch.linalg.inv(torch.linalg.cholesky(covariance))
            self.mean[label] = mean.to(self.mean)
            self.whitening[label] = inverse.tril().to(self.whitening)

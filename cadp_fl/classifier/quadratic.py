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
from cadp_fl.features.discriminant import log_densities, whitening_of

__all__ = ["QuadraticDiscriminant"]


class QuadraticDiscriminant(nn.Module):
    """Records in [-0.5, 0.5], (batch, ...), to logits (batch, classes) of equally likely classes."""

    def __init__(self, config: FrontEndConfig, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.coordinates = Coordinates(config, shape)
        dims = self.coordinates.dims
        self.mean = nn.Parameter(torch.zeros(classes, dims))
        self.whitening = nn.Parameter(torch.eye(dims).repeat(classes, 1, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return log N(u; mu_y, Sigma_y) of every class, but for a constant."""
        u, _ = self.coordinates(inputs + 0.5)
        return log_densities(u, self.mean, self.whitening)

    @torch.no_grad()
    def fit(self, u: torch.Tensor, labels: torch.Tensor, *, ridge: float) -> None:
        """Set mean and covariance of every class to those of some records, in place; those of all where it has none.

        Args:
            u: coordinates, (records, dims), seen from this classifier's centre.
            labels: int64, (records,).
            ridge: rho, added to every covariance in units of the mean variance; above zero.
        """
        of_class = [u[labels == label].double() for label in range(len(self.mean))]
        of_class = [own if len(own) else u.double() for own in of_class]
        means = torch.stack([own.mean(dim=0) for own in of_class])
        covariances = torch.stack(
            [(own - mean).T @ (own - mean) / len(own) for own, mean in zip(of_class, means, strict=True)]
        )
        self.mean.copy_(means)
        self.whitening.copy_(whitening_of(covariances, ridge))

"""u = W_y (x - mu_y): the affine conditional layer that a flow is warm-started with.

With a standard normal u, x of a class is normal with mean mu_y and covariance (W_y^T W_y)^-1. W_y is lower triangular
with a positive diagonal, so that its log-determinant is the sum of the diagonal's logarithms.
"""

import torch
from torch import nn

from cadp_fl.features.discriminant import whitening_of

__all__ = ["ConditionalAffine"]


class ConditionalAffine(nn.Module):
    """An affine map of its own for every class; new, the identity.

    Its weights come from moments (`cadp_fl.flow.moments`) and are trained by no gradient.

    Args:
        classes: length of the condition, which is one-hot.
        dims: of x and u, (batch, dims).
        numbers: of a row, where records are rows.
    """

    def __init__(self, classes: int, dims: int, numbers: int = 0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(classes, dims))
        self.whitening = nn.Parameter(torch.eye(dims).repeat(classes, 1, 1))
        """W, (classes, dims, dims); what is above its diagonal does not count."""
        self.thresholds = nn.Parameter(torch.zeros(classes, numbers)) if numbers else None
        """t, (classes, numbers); see `cadp_fl.flow.thresholds`. None of images."""
        self.shares = nn.Parameter(torch.full((classes,), 1 / classes)) if numbers else None
        """Of all rows, each class's, (classes,). None of images, which are drawn of every class alike."""

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return u (batch, dims) and the log-determinant (batch,)."""
        y = condition.argmax(dim=1)
        whitening = self.whitening.tril()
        u = torch.bmm(whitening[y], (x - self.mean[y]).unsqueeze(2)).squeeze(2)
        return u, whitening.diagonal(dim1=1, dim2=2).abs().log().sum(dim=1)[y]

    def smoothed(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mu and W of the normal distributions with covariances Sigma_y + rho lambda I, in float64.

        Args:
            ridge: rho, in units of lambda, the mean variance of all directions and classes.
        """
        eye = torch.eye(self.mean.shape[1], dtype=torch.float64, device=self.mean.device)
        factors = torch.linalg.solve_triangular(self.whitening.double().tril(), eye, upper=False)
        return self.mean.double(), whitening_of(factors @ factors.mT, ridge)

    def inverse(self, u: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return x (batch, dims)."""
        y = condition.argmax(dim=1)
        x = torch.empty_like(u)
        for label in range(len(self.mean)):
            here = y == label
            solved = torch.linalg.solve_triangular(self.whitening[label].tril(), u[here].T, upper=False)
            x[here] = solved.T + self.mean[label]
        return x

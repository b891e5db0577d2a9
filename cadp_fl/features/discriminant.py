"""log N(u; mu_y, Sigma_y + rho lambda I): discriminants of normal classes, with a ridge.

A covariance that was estimated from few numbers, or from noised ones, has directions in which it is far too small, and
a discriminant looks at those first. A ridge takes that away.

References:
    Friedman: Regularized discriminant analysis, JASA 1989.
"""

import torch

__all__ = ["log_densities", "whitening_of"]


def whitening_of(covariances: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return W with (W^T W)^-1 = Sigma_y + rho lambda I, lower triangular, (classes, dims, dims).

    Args:
        covariances: Sigma, (classes, dims, dims).
        ridge: rho, in units of lambda, the mean variance of all directions and classes.

    A matrix that is no covariance, as a hostile server's weights may give, yields some matrix or NaN, and no error.
    """
    level = covariances.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-12)
    eye = torch.eye(covariances.shape[1], dtype=covariances.dtype, device=covariances.device)
    factors, _ = torch.linalg.cholesky_ex(covariances + ridge * level * eye)
    whitening: torch.Tensor = torch.linalg.solve_triangular(factors, eye.expand_as(factors), upper=False)
    return whitening


def log_densities(u: torch.Tensor, means: torch.Tensor, whitening: torch.Tensor) -> torch.Tensor:
    """Return log N(u; mu_y, (W_y^T W_y)^-1) of every class but for a constant, (batch, classes).

    Args:
        u: (batch, dims).
        means: mu, (classes, dims).
        whitening: W, (classes, dims, dims), of which what is above the diagonal does not count.
    """
    white = torch.einsum("cij,bcj->bci", whitening.tril(), u[:, None] - means)
    log_det = whitening.diagonal(dim1=1, dim2=2).abs().log().sum(dim=1)
    return log_det - 0.5 * white.square().sum(dim=2)

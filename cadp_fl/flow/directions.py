"""Directions of a flow's latents: which of them move the image most, from the flow alone.

    t = R^T z        the first of t move the image most

A standard normal latent turned by an orthogonal matrix is one again, so a release may carry the first k of t in place
of the first k of z. R has the eigenvectors of E[J^T J] as its columns, by falling eigenvalue, with J the Jacobian of
the decoder at latents from the prior of all classes. No record has a part in it: with the flow it is public, and costs
nothing. One matrix serves all classes, so that what a latent says of a record stays what it is where the record leaves
under another label.
"""

import copy
import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from cadp_fl.errors import ExchangeError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of

__all__ = ["Directions", "leading_directions"]

_DRAWS = 64
"""Latents from the prior at which a decoder that is not linear is looked at."""

_STEP = 1e-3
"""Of a difference quotient, in standard deviations of a latent."""

_DECODED = 2048
"""Latents that are decoded at once."""

_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Directions:
    """An orthogonal matrix on the first latents of a flow.

    Attributes:
        matrix: R, float64 (dims, dims), with directions as columns.
    """

    matrix: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray, flow: ConditionalFlow) -> "Directions":
        """Return the directions that came with a request.

        Any would protect records alike; those that are not orthogonal would make a release other than what it says.

        Raises:
            ExchangeError: they are none for a flow.
        """
        dims = flow.coarse_dims
        if array.dtype != np.float64 or array.shape != (dims, dims):
            raise ExchangeError(
                f"Directions are an orthogonal matrix of {dims} latents, float64. Found {array.dtype} of shape "
                f"{array.shape}; send those of the flow."
            )
        off = np.abs(array.T @ array - np.eye(dims)).max()
        if not off <= _TOLERANCE:
            raise ExchangeError(
                f"Directions are an orthogonal matrix, to {_TOLERANCE:g}. Found one that is off by {off:.2g}; send "
                "those of the flow."
            )
        return cls(array)

    @cached_property
    def sha256(self) -> str:
        """Hash of shape and bytes, which shows that all sites used the same."""
        return hashlib.sha256(repr(self.matrix.shape).encode() + self.matrix.astype("<f8").tobytes()).hexdigest()

    def turn(self, z: torch.Tensor) -> torch.Tensor:
        """Return [R^T z of the first latents, the others], (batch, dims)."""
        return self._times(z, self.matrix)

    def turn_back(self, t: torch.Tensor) -> torch.Tensor:
        """Return z of turned latents, (batch, dims)."""
        return self._times(t, self.matrix.T)

    def _times(self, z: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
        dims = len(matrix)
        return torch.cat([z[:, :dims] @ torch.tensor(matrix).to(z), z[:, dims:]], dim=1)


def leading_directions(flow: ConditionalFlow) -> Directions:
    """Return the directions of a flow's coarse latents, those that move the image most first.

    The Jacobian of a warm-started flow without trained blocks is a matrix for each class; any other flow is looked at
    at latents from the prior.
    """
    is_affine = flow.affine is not None and not len(flow.dense.couplings)
    values, vectors = np.linalg.eigh(_of_affine(flow) if is_affine else _of_differences(flow))
    return Directions(np.ascontiguousarray(vectors[:, np.argsort(-values, kind="stable")]))


def _of_affine(flow: ConditionalFlow) -> np.ndarray:
    """Return the sum over classes of J^T J, with J the map from latents to an image's lowest frequencies."""
    assert flow.affine is not None, "a warm-started flow has one"
    whitening = flow.affine.whitening.detach().double().cpu().tril()
    eye = torch.eye(whitening.shape[1], dtype=torch.float64)
    jacobians = torch.linalg.solve_triangular(whitening, eye, upper=False)[:, : flow.leading_dims]
    total: np.ndarray = (jacobians.mT @ jacobians).sum(dim=0).numpy()
    return total


@torch.no_grad()
def _of_differences(flow: ConditionalFlow) -> np.ndarray:
    """Return the sum of J^T J over fixed draws from the prior, by difference quotients in float64 on the processor."""
    exact = copy.deepcopy(flow).cpu().double().eval()
    dims, classes = flow.coarse_dims, flow.conditions
    draws = max(1, math.ceil(_DRAWS / classes)) * classes
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(draws, flow.dims, generator=generator, dtype=torch.float64)
    conditions = condition_of(torch.arange(draws) % classes, classes).double()
    steps = _STEP * torch.eye(dims, flow.dims, dtype=torch.float64)
    total = np.zeros((dims, dims))
    for z, condition in zip(latents, conditions, strict=True):
        moved = torch.cat([z + steps, z - steps])
        images = torch.cat(
            [exact.decode(part, condition.expand(len(part), -1)).flatten(1) for part in moved.split(_DECODED)]
        )
        jacobian = ((images[:dims] - images[dims:]) / (2 * _STEP)).numpy()
        total += jacobian @ jacobian.T
    return total

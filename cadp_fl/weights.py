"""The tensors of a module that may cross: trainable floating-point ones, by name. All others are rebuilt.

Averaging a whole state dict would corrupt a flow: its permutations are integers there. Each site builds the fixed
parts from config and seed, and `structure_sha256` proves that all built the same.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from cadp_fl.errors import ExchangeError

__all__ = [
    "average",
    "check_arrays",
    "get_weights",
    "set_weights",
    "structure_sha256",
    "trainable_parameters",
    "weights_sha256",
]


def get_weights(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a copy of every trainable floating-point parameter, on the CPU, by name."""
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in trainable_parameters(module).items()}


def set_weights(module: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy weights into a module's trainable parameters.

    Raises:
        ExchangeError: a name, shape or dtype is not the module's, or a value is not finite.
    """
    parameters = trainable_parameters(module)
    check_arrays(weights, get_weights(module))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(weights[name])))


def check_arrays(arrays: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Check that arrays have the names, shapes and dtypes of others, and finite values.

    Raises:
        ExchangeError: they do not; the message names the first that differs.
    """
    if set(arrays) != set(expected):
        odd = sorted(set(arrays) ^ set(expected))[0]
        raise ExchangeError(f"Both sides exchange the same tensors. '{odd}' is on one side only; compare the configs.")
    for name, array in arrays.items():
        if array.shape != expected[name].shape or array.dtype != expected[name].dtype:
            raise ExchangeError(
                f"Tensor '{name}' is {expected[name].dtype} of shape {expected[name].shape}. Found {array.dtype} of "
                f"shape {array.shape}; compare the configs."
            )
        if not np.isfinite(array).all():
            raise ExchangeError(f"Weights are finite. Tensor '{name}' is not; lower the learning rate.")


def average(weights: Mapping[str, Mapping[str, np.ndarray]], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return sum_k n_k w_k / sum_k n_k over the sites that sent weights, added up in float64 in order of name.

    Args:
        weights: by site, then by tensor name.
        sizes: n_k, the sites' declared numbers of records.

    References:
        McMahan et al.: Communication-efficient learning of deep networks from decentralized data, arXiv 1602.05629.
    """
    sites = sorted(weights)
    total = sum(sizes[site] for site in sites)
    averaged = {}
    for name, first in weights[sites[0]].items():
        summed = np.zeros(first.shape, dtype=np.float64)
        for site in sites:
            summed += weights[site][name].astype(np.float64) * sizes[site]
        averaged[name] = (summed / total).astype(first.dtype)
    return averaged


def weights_sha256(weights: Mapping[str, np.ndarray]) -> str:
    """Return the hash of named arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        _add(digest, name, weights[name])
    return digest.hexdigest()


def structure_sha256(module: nn.Module) -> str:
    """Return the hash of all that is rebuilt: fixed tensors with their values, trainable ones with their shapes."""
    digest = hashlib.sha256()
    trainable = trainable_parameters(module)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().numpy()
        if name in trainable:
            digest.update(f"{name} {array.dtype} {array.shape};".encode())
        else:
            _add(digest, name, array)
    return digest.hexdigest()


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return every trainable floating-point parameter, by name."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    }


def _add(digest: "hashlib._Hash", name: str, array: np.ndarray) -> None:
    digest.update(f"{name} {array.dtype} {array.shape};".encode())
    digest.update(np.ascontiguousarray(array).tobytes())

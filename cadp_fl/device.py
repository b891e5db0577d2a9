"""Which device computes. Chosen once, at the edge; from there on, tensors decide."""

import re

import torch

from cadp_fl.errors import ConfigError

__all__ = ["resolve_device"]


def resolve_device(name: str) -> torch.device:
    """Return the device that a config names.

    Args:
        name: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:<index>`.

    Raises:
        ConfigError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:<index>. Found '{name}'.")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match.group(1) or 0)
    if index >= found:
        raise ConfigError(f"device '{name}' needs GPU {index}. This machine has {found}; use auto or cpu.")
    return torch.device("cuda", index)

"""Conditions: what the flow is told about a record, and what privacy noise therefore never touches."""

import torch

__all__ = ["one_hot"]


def one_hot(labels: torch.Tensor, classes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the one-hot condition (records, classes) of labels, int64 (records,)."""
    return torch.nn.functional.one_hot(labels, classes).to(dtype)

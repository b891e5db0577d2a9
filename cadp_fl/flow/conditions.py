"""Conditions: what the flow is given about a record, and what privacy noise therefore never touches."""

import torch

__all__ = ["condition_of"]


def condition_of(labels: torch.Tensor, dims: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the condition (records, dims) of labels: one-hot of classes, multi-hot of attributes.

    Args:
        labels: int64, (records,) for the class of each record, below `dims`; or integers, (records, dims), for
            attributes that a record has (1) or lacks (0).
        dims: length of the condition.
    """
    if labels.dim() == 1:
        return torch.nn.functional.one_hot(labels, dims).to(dtype)
    return labels.to(dtype)

"""Classifiers that begin with fixed features: these apart, to be computed once and not in each step."""

import torch
from torch import nn

from cadp_fl.classifier.training import as_input
from cadp_fl.device import PhysicalBatch
from cadp_fl.features.linear import BlockGradients, LowPassDct, RowNumbers

__all__ = ["features_of", "split_features"]

_BATCH = 256
"""Images whose features are computed at once, to begin with."""


def split_features(model: nn.Module) -> tuple[nn.Module | None, nn.Module]:
    """Return a classifier's fixed features, None if it has none of ours, and the rest of it, which is learned.

    A class derived from one of ours may do anything in its forward, so it counts as learned.
    """
    if isinstance(model, nn.Sequential) and len(model) and type(model[0]) in (LowPassDct, BlockGradients, RowNumbers):
        return model[0], model[1:]
    return None, model


@torch.no_grad()
def features_of(features: nn.Module | None, inputs: torch.Tensor) -> torch.Tensor:
    """Return the features of records, float32 (records, dims); without any, what a classifier takes.

    Args:
        inputs: of a codec, (records, ...), on the device that computes.

    Raises:
        MemoryLimitError: a single image does not fit.
    """
    if features is None:
        return as_input(inputs)
    return torch.cat(PhysicalBatch(_BATCH).each(len(inputs), lambda part: features(as_input(inputs[part]))))

"""The networks inside a coupling block: (x, y) -> the parameters of an affine map.

The condition y enters after the first layer, one value a hidden channel, so that it is never spread over pixels. The
last layer starts at zero, so that a new block is the identity.
"""

from typing import TypeVar

import torch
from torch import nn

__all__ = ["ConvolutionalSubnet", "DenseSubnet"]

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class ConvolutionalSubnet(nn.Module):
    """conv3x3(relu(conv3x3(x) + W y)).

    Args:
        channels_in: channels of x, (batch, channels_in, height, width).
        channels_out: channels of the result, (batch, channels_out, height, width).
        hidden: channels in between.
        conditions: length of y, (batch, conditions).
    """

    def __init__(self, channels_in: int, channels_out: int, *, hidden: int, conditions: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, hidden, 3, padding=1)
        self.condition = nn.Linear(conditions, hidden, bias=False)
        self.last = _zeroed(nn.Conv2d(hidden, channels_out, 3, padding=1))

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the parameters of the coupling for (x, y)."""
        x, condition = inputs
        # Channels last where there are many of them; the coupling itself works on a few, and is faster without.
        hidden = self.first(x.contiguous(memory_format=torch.channels_last))
        conditioned = self.condition(condition)[:, :, None, None]
        # In place where no one will ask for gradients; hooks on a layer, such as Opacus', forbid it where they will.
        hidden = torch.relu_(hidden + conditioned if torch.is_grad_enabled() else hidden.add_(conditioned))
        parameters: torch.Tensor = self.last(hidden)
        return parameters.contiguous()


class DenseSubnet(nn.Module):
    """linear(relu(linear(x) + W y)), (batch, dims_in) to (batch, dims_out); `conditions` is the length of y."""

    def __init__(self, dims_in: int, dims_out: int, *, hidden: int, conditions: int) -> None:
        super().__init__()
        self.first = nn.Linear(dims_in, hidden)
        self.condition = nn.Linear(conditions, hidden, bias=False)
        self.last = _zeroed(nn.Linear(hidden, dims_out))

    def forward(self, inputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the parameters of the coupling for (x, y)."""
        x, condition = inputs
        parameters: torch.Tensor = self.last(torch.relu_(self.first(x) + self.condition(condition)))
        return parameters


def _zeroed(layer: Layer) -> Layer:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer

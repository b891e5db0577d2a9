"""The networks inside a coupling block. Their last layer starts at zero, so that a new block is the identity."""

from torch import nn

__all__ = ["convolutional_subnet", "dense_subnet"]


def convolutional_subnet(channels_in: int, channels_out: int, *, hidden: int) -> nn.Sequential:
    """Return (batch, channels_in, h, w) -> (batch, channels_out, h, w) by two 3 x 3 convolutions."""
    return _zero_last(
        nn.Sequential(
            nn.Conv2d(channels_in, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, channels_out, 3, padding=1)
        )
    )


def dense_subnet(dims_in: int, dims_out: int, *, hidden: int) -> nn.Sequential:
    """Return (batch, dims_in) -> (batch, dims_out) by two linear layers."""
    return _zero_last(nn.Sequential(nn.Linear(dims_in, hidden), nn.ReLU(), nn.Linear(hidden, dims_out)))


def _zero_last(network: nn.Sequential) -> nn.Sequential:
    last = network[-1]
    assert isinstance(last, (nn.Conv2d, nn.Linear))
    assert last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network

"""f(x; y) = z and its inverse: a conditional invertible neural network.

    x in [0, 1] --(x - 1/2) s--> [ downsample, coupling blocks ] per scale --> flatten, dense coupling blocks --> z

Every coupling block is told the condition y. Under the flow, z is standard normal:

    log p(x | y) = log N(f(x; y); 0, I) + log |det df/dx|

References:
    Ardizzone, Lüth, Kruse, Rother, Köthe: Guided image generation with conditional invertible neural networks,
    arXiv 1907.02392. Kingma, Dhariwal: Glow, arXiv 1807.03039.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import FrEIA.framework as ff
import FrEIA.modules as fm
import numpy as np
import torch
from torch import nn

from cadp_fl.config import FlowConfig
from cadp_fl.errors import ConfigError
from cadp_fl.flow.subnets import convolutional_subnet, dense_subnet

__all__ = ["DOWNSAMPLINGS", "ConditionalFlow", "check_flow"]

DOWNSAMPLINGS: dict[str, type[nn.Module]] = {
    "haar": fm.HaarDownsampling,
    "checkerboard": fm.IRevNetDownsampling,
}


class ConditionalFlow(nn.Module):
    """A conditional normalizing flow from images to a flat standard normal latent.

    The same config, shape, classes and seed build the same flow on every site.

    Args:
        config: architecture.
        shape: (channels, height, width) of an image.
        classes: length of the condition.
        seed: of the initial weights and of the fixed permutations.

    Raises:
        ConfigError: the architecture does not fit the shape.
    """

    def __init__(self, config: FlowConfig, shape: tuple[int, int, int], classes: int, *, seed: int) -> None:
        super().__init__()
        check_flow(config, shape)
        self.shape = shape
        self.classes = classes
        self.dims = math.prod(shape)
        self.input_scale = config.input_scale
        with _fixed_randomness(seed):
            self.graph, self._condition_shapes = _build(config, shape, classes)

    def encode(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z = f(x; y) and log |det df/dx|.

        Args:
            x: (batch, channels, height, width), pixels in [0, 1].
            condition: (batch, classes).

        Returns:
            z (batch, dims) and the log-determinant (batch,).
        """
        z, log_det = self.graph((x - 0.5) * self.input_scale, c=self._conditions(condition))
        return z, log_det + self.dims * math.log(self.input_scale)

    def decode(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return x = f^-1(z; y), (batch, channels, height, width); not clamped to [0, 1].

        Args:
            z: (batch, dims).
            condition: (batch, classes).
        """
        x: torch.Tensor = self.graph(z, c=self._conditions(condition), rev=True, jac=False)[0]
        return x / self.input_scale + 0.5

    def log_prob(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return log p(x | y) in nats, (batch,), for x (batch, channels, height, width)."""
        z, log_det = self.encode(x, condition)
        return -0.5 * (z.square().sum(dim=1) + self.dims * math.log(2 * math.pi)) + log_det

    def sample(self, condition: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        """Return x ~ p(x | y), (batch, channels, height, width), for a condition (batch, classes)."""
        z = torch.randn(len(condition), self.dims, generator=generator, device=condition.device, dtype=condition.dtype)
        return self.decode(z, condition)

    def _conditions(self, condition: torch.Tensor) -> list[torch.Tensor]:
        """Spread the condition over the pixels of every scale, (batch, classes, h, w), and keep it flat at the end."""
        return [
            condition[:, :, None, None].expand(-1, -1, *shape[1:]) if len(shape) == 3 else condition
            for shape in self._condition_shapes
        ]


def check_flow(config: FlowConfig, shape: tuple[int, int, int]) -> None:
    """Check that an architecture fits images of a shape.

    Raises:
        ConfigError: a downsampling is unknown, or the image cannot be halved as often as there are scales.
    """
    if config.downsampling not in DOWNSAMPLINGS:
        raise ConfigError(
            f"Unknown downsampling '{config.downsampling}'. Choose one of: {', '.join(sorted(DOWNSAMPLINGS))}."
        )
    factor = 2 ** len(config.scales)
    if shape[1] % factor or shape[2] % factor:
        raise ConfigError(
            f"Every scale of a flow halves the image. {len(config.scales)} scales need sides that {factor} divides. "
            f"Found {shape[1]} x {shape[2]}; use fewer scales."
        )


def _build(config: FlowConfig, shape: tuple[int, int, int], classes: int) -> tuple[ff.GraphINN, list[tuple[int, ...]]]:
    nodes: list[ff.Node] = [ff.InputNode(*shape, name="input")]
    conditions: list[ff.ConditionNode] = []
    channels, height, width = shape
    for scale in config.scales:
        nodes.append(ff.Node(nodes[-1], DOWNSAMPLINGS[config.downsampling], {}))
        channels, height, width = channels * 4, height // 2, width // 2
        conditions.append(ff.ConditionNode(classes, height, width))
        subnet = partial(convolutional_subnet, hidden=scale.channels)
        nodes.extend(_coupling_blocks(nodes[-1], scale.blocks, subnet, conditions[-1], config.clamp))
    nodes.append(ff.Node(nodes[-1], fm.Flatten, {}))
    if config.dense.blocks:
        conditions.append(ff.ConditionNode(classes))
        subnet = partial(dense_subnet, hidden=config.dense.width)
        nodes.extend(_coupling_blocks(nodes[-1], config.dense.blocks, subnet, conditions[-1], config.clamp))
    nodes.append(ff.OutputNode(nodes[-1], name="latent"))
    return ff.GraphINN([*nodes, *conditions]), [tuple(node.dims) for node in conditions]


def _coupling_blocks(
    last: ff.Node, count: int, subnet: Any, condition: ff.ConditionNode, clamp: float
) -> Iterator[ff.Node]:
    """Yield blocks of a fixed channel permutation and a GLOW coupling."""
    arguments: Mapping[str, Any] = {"subnet_constructor": subnet, "clamp": clamp}
    for _ in range(count):
        last = ff.Node(last, fm.PermuteRandom, {})
        yield last
        last = ff.Node(last, fm.GLOWCouplingBlock, dict(arguments), conditions=condition)
        yield last


@contextmanager
def _fixed_randomness(seed: int) -> Iterator[None]:
    """Seed torch's and numpy's global generators inside the block, and put both back after it.

    FrEIA draws permutations from numpy's global generator; noise drawn from it afterwards would repeat.
    """
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)

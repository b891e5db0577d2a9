"""The flow that one would write with FrEIA alone: the reference of the flow benchmarks.

The architecture of `ConditionalFlow` with hard permutations, given the condition as FrEIA does it: one-hot, spread over
the pixels of each scale, and joined with the input of every subnet.
"""

import math
from collections.abc import Callable

import FrEIA.framework as ff
import FrEIA.modules as fm
import numpy as np
import torch
from torch import nn

from cadp_fl.config import FlowConfig

__all__ = ["FreiaFlow"]


class FreiaFlow(nn.Module):
    """A GLOW flow as a `GraphINN`.

    Args:
        config: architecture; its permutations are hard, whatever it says.
        shape: (channels, height, width) of an image.
        classes: length of the one-hot condition.
        seed: of the initial weights and of the permutations.
    """

    def __init__(self, config: FlowConfig, shape: tuple[int, int, int], classes: int, *, seed: int) -> None:
        super().__init__()
        self.dims, self.input_scale = math.prod(shape), config.input_scale
        self.sides: list[tuple[int, int]] = []
        state = np.random.get_state()  # FrEIA seeds numpy's global generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.graph = self._build(config, shape, classes, seed)
        np.random.set_state(state)

    def _build(self, config: FlowConfig, shape: tuple[int, int, int], classes: int, seed: int) -> nn.Module:
        nodes, conditions = [ff.InputNode(*shape)], []

        def add_blocks(count: int, subnet: Callable[[int, int], nn.Module], condition: nn.Module) -> None:
            for _ in range(count):
                nodes.append(ff.Node(nodes[-1], fm.PermuteRandom, {"seed": (seed + len(nodes)) % 2**32}))
                glow = {"subnet_constructor": subnet, "clamp": config.clamp}
                nodes.append(ff.Node(nodes[-1], fm.GLOWCouplingBlock, glow, conditions=condition))

        height, width = shape[1:]
        for scale in config.scales:
            height, width = height // 2, width // 2
            self.sides.append((height, width))
            conditions.append(ff.ConditionNode(classes, height, width))
            nodes.append(ff.Node(nodes[-1], fm.HaarDownsampling, {}))
            add_blocks(scale.blocks, _convolutions(scale.channels), conditions[-1])
        nodes.append(ff.Node(nodes[-1], fm.Flatten, {}))
        conditions.append(ff.ConditionNode(classes))
        add_blocks(config.dense.blocks, _layers(config.dense.width), conditions[-1])
        graph: nn.Module = ff.GraphINN([*nodes, ff.OutputNode(nodes[-1]), *conditions])
        return graph

    def encode(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z (batch, dims) and log |det df/dx| (batch,), of x (batch, channels, height, width)."""
        z, log_det = self.graph((x - 0.5) * self.input_scale, c=self._spread(condition))
        return z, log_det + self.dims * math.log(self.input_scale)

    def decode(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return x (batch, channels, height, width), of z (batch, dims)."""
        x: torch.Tensor = self.graph(z, c=self._spread(condition), rev=True)[0]
        return x / self.input_scale + 0.5

    def log_prob(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return log p(x | y) in nats, (batch,)."""
        z, log_det = self.encode(x, condition)
        return -0.5 * (z.square().sum(dim=1) + self.dims * math.log(2 * math.pi)) + log_det

    def _spread(self, condition: torch.Tensor) -> list[torch.Tensor]:
        return [*(condition[:, :, None, None].expand(-1, -1, *side) for side in self.sides), condition]


def _convolutions(hidden: int) -> Callable[[int, int], nn.Module]:
    return lambda channels_in, channels_out: nn.Sequential(
        nn.Conv2d(channels_in, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, channels_out, 3, padding=1)
    )


def _layers(hidden: int) -> Callable[[int, int], nn.Module]:
    return lambda dims_in, dims_out: nn.Sequential(nn.Linear(dims_in, hidden), nn.ReLU(), nn.Linear(hidden, dims_out))

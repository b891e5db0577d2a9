"""f(x; y) = z and its inverse: a conditional invertible neural network.

    x in [0, 1] --(x - 1/2) s--> [ downsample, coupling blocks, split ] per scale --> dense coupling blocks --> z

Every coupling block is given the condition y. Under the flow, z is standard normal:

    log p(x | y) = log N(f(x; y); 0, I) + log |det df/dx|

What leaves at a split is a latent already. In z the coarsest dimensions come first: those of the dense blocks, then
what left at the last scale, up to what left at the first.

With a warm start, the coarsest dimensions are those of a public front end, whose affine layer is known before any step:

    x --coordinates--> u --W_y (u - mu_y)--> dense coupling blocks --> z, and the other coordinates as they are

Its front end may hold a descriptor of the image beside the image's own lowest frequencies. Then z is longer than x, and
log p is that of a record's coordinates, the descriptor among them. It differs from log p(x | y) of a flow as above by
more than a constant, but is as good to tell classes apart: what is left out of it does not depend on y.

References:
    Ardizzone, Lüth, Kruse, Rother, Köthe: Guided image generation with conditional invertible neural networks,
    arXiv 1907.02392. Kingma, Dhariwal: Glow, arXiv 1807.03039. Dinh, Sohl-Dickstein, Bengio: Density estimation using
    Real NVP, arXiv 1605.08803 (splits).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import FrEIA.modules as fm
import numpy as np
import torch
from torch import nn

from cadp_fl.config import FlowConfig, ScaleConfig
from cadp_fl.data.codec import RowShape
from cadp_fl.device import swift_batch
from cadp_fl.errors import ConfigError
from cadp_fl.features.coordinates import Coordinates
from cadp_fl.features.front_end import front_end_of
from cadp_fl.flow.affine import ConditionalAffine
from cadp_fl.flow.coupling import COUPLINGS, coupling_block
from cadp_fl.flow.permutations import PERMUTATIONS, permutation
from cadp_fl.flow.subnets import ConvolutionalSubnet, DenseSubnet

__all__ = ["DOWNSAMPLINGS", "FLOW_CONTAINERS", "ConditionalFlow", "check_flow_names"]

DOWNSAMPLINGS: dict[str, type[nn.Module]] = {
    "haar": fm.HaarDownsampling,
    "checkerboard": fm.IRevNetDownsampling,
}

LogDet = torch.Tensor | float


class ConditionalFlow(nn.Module):
    """A conditional normalizing flow from records to a flat standard normal latent.

    The same config, shape, length of the condition and seed build the same flow on every site.

    Args:
        config: architecture.
        shape: of x of one record: (channels, height, width) of an image, or a `RowShape`.
        conditions: length of the condition.
        seed: of the initial weights and of the fixed permutations.

    Raises:
        ConfigError: the architecture does not fit the shape.
    """

    def __init__(self, config: FlowConfig, shape: tuple[int, ...], conditions: int, *, seed: int) -> None:
        super().__init__()
        check_flow_names(config)
        _check_fits(config, shape)
        self.shape = shape
        self.conditions = conditions
        self.dims = math.prod(shape)
        self.input_scale = config.input_scale
        self.clamp = config.clamp
        self.architecture = config.architecture()
        with _fixed_randomness(seed):
            scales: list[_Scale] = []
            for scale in () if config.is_warm else config.scales:
                channels, height, width = shape
                scales.append(_Scale(config, scale, (channels, height, width), conditions))
                shape = scales[-1].dims_on
            self.scales = nn.ModuleList(scales)
            self.coordinates = Coordinates(config.front_end, shape) if config.is_warm else None
            coarse = math.prod(shape) if self.coordinates is None else self.coordinates.dims
            numbers = self.shape[0] if isinstance(self.shape, RowShape) else 0
            self.affine = ConditionalAffine(conditions, coarse, numbers) if config.is_warm else None
            subnet = partial(DenseSubnet, hidden=config.dense.width, conditions=conditions)
            self.dense = _Blocks(config, config.dense.blocks, (coarse,), subnet)
        self._coarse_shape = shape
        self.coarse_dims = coarse
        self.leading_dims = self.dims
        if self.coordinates is not None:
            self.dims = coarse + self.coordinates.other_dims
            self.leading_dims = self.coordinates.front.record_dims

    def encode(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z = f(x; y) and log |det df/dx|.

        Args:
            x: (batch, *shape), in [0, 1].
            condition: (batch, conditions).

        Returns:
            z (batch, dims) and the log-determinant (batch,).
        """
        if self.coordinates is not None:
            u, others = self.coordinates(x)
            z, log_det = self.whiten(u, condition)
            return torch.cat([z, others], dim=1), log_det
        state = (x - 0.5) * self.input_scale
        log_det = state.new_full((len(x),), self.dims * math.log(self.input_scale))
        latents: list[torch.Tensor] = []
        for scale in self.scales:
            state, leaving, change = scale(state, condition)
            log_det = log_det + change
            latents[:0] = leaving
        state, change = self.dense(state.flatten(1), condition)
        return torch.cat([state, *latents], dim=1), log_det + change

    def decode(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return x = f^-1(z; y), (batch, *shape); not clamped to [0, 1].

        Of rows, thresholds t_y are added, which let drawn categories be as frequent as the moments say.


        Args:
            z: (batch, dims).
            condition: (batch, conditions).
        """
        state, rest = z[:, : self.coarse_dims], z[:, self.coarse_dims :]
        if self.coordinates is not None:
            x = self.coordinates.inverse(self.colour(state, condition), rest)
            thresholds = None if self.affine is None else self.affine.thresholds
            return x if thresholds is None else x + thresholds[condition.argmax(dim=1)]
        state = self.dense(state, condition, rev=True)[0]
        state = state.view(-1, *self._coarse_shape)
        for scale in reversed(self.scales):
            assert isinstance(scale, _Scale)
            leaving, rest = rest[:, : scale.dims_leaving], rest[:, scale.dims_leaving :]
            state = scale.inverse(state, leaving, condition)
        return state / self.input_scale + 0.5

    def whiten(self, u: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the coarse latents of a warm-started flow's coordinates u, (batch, coarse_dims), and log |det dz/du|.

        They are standard normal under the flow.
        """
        assert self.affine is not None, "a warm-started flow has one"
        white, log_det = self.affine(u, condition)
        z, change = self.dense(white, condition)
        return z, log_det + change

    def colour(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the coordinates u of coarse latents; the inverse of `whiten`."""
        assert self.affine is not None, "a warm-started flow has one"
        return self.affine.inverse(self.dense(z, condition, rev=True)[0], condition)

    def swift_batch(self, records: int) -> int:
        """Return how many of some records to encode, decode or train on at once: what the device is fastest at."""
        weight = next(each for each in self.parameters() if each.is_floating_point())
        x, condition = weight.new_zeros(1, *self.shape), weight.new_zeros(1, self.conditions)
        return swift_batch(records, self, lambda: self.encode(x, condition))

    def log_prob(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return log p(x | y) in nats, (batch,), for x (batch, *shape)."""
        z, log_det = self.encode(x, condition)
        return -0.5 * (z.square().sum(dim=1) + self.dims * math.log(2 * math.pi)) + log_det

    def sample(self, condition: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
        """Return x ~ p(x | y), (batch, *shape), for a condition (batch, conditions)."""
        z = torch.randn(len(condition), self.dims, generator=generator, device=condition.device, dtype=condition.dtype)
        return self.decode(z, condition)

    def frozen_names(self, parts: Iterable[str]) -> frozenset[str]:
        """Return the names of the parameters of some parts: `all`, `dense`, or `scales.<index>`.

        Raises:
            ConfigError: there is no such part.
        """
        names = [name for name, parameter in self.named_parameters() if parameter.requires_grad]
        frozen: set[str] = set()
        for part in parts:
            inside = [name for name in names if part == "all" or name.startswith(f"{part}.")]
            if not inside:
                known = ["all", *(f"scales.{index}" for index in range(len(self.scales))), "dense"]
                raise ConfigError(f"flow.pretrained.freeze names parts: {', '.join(known)}. Found '{part}'.")
            frozen.update(inside)
        return frozenset(frozen)


class _Scale(nn.Module):
    """A downsampling, coupling blocks, and a split: what goes on, and what is a latent already."""

    def __init__(self, config: FlowConfig, scale: ScaleConfig, shape: tuple[int, int, int], conditions: int) -> None:
        super().__init__()
        self.downsample = DOWNSAMPLINGS[config.downsampling]([shape])
        channels, height, width = shape[0] * 4, shape[1] // 2, shape[2] // 2
        subnet = partial(ConvolutionalSubnet, hidden=scale.channels, conditions=conditions)
        self.blocks = _Blocks(config, scale.blocks, (channels, height, width), subnet)
        going_on = channels if scale.split is None else min(channels - 1, max(1, round(scale.split * channels)))
        self.dims_on = (going_on, height, width)
        self.shape_leaving = (channels - going_on, height, width)
        self.dims_leaving = math.prod(self.shape_leaving)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], LogDet]:
        """Return what goes on (batch, *dims_on), a list of what leaves (batch, dims_leaving), the log-determinant."""
        x, log_det = self.blocks(self.downsample((x,))[0][0], condition)
        if not self.dims_leaving:
            return x, [], log_det
        return x[:, : self.dims_on[0]], [x[:, self.dims_on[0] :].flatten(1)], log_det

    def inverse(self, going_on: torch.Tensor, leaving: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return x, (batch, channels, height, width), of what went on and what left (batch, dims_leaving)."""
        joined = torch.cat([going_on, leaving.view(len(leaving), *self.shape_leaving)], dim=1)
        undone, _ = self.blocks(joined, condition, rev=True)
        x: torch.Tensor = self.downsample((undone,), rev=True)[0][0]
        return x


class _Blocks(nn.Module):
    """Coupling blocks, each after a fixed permutation of the channels."""

    def __init__(
        self, config: FlowConfig, count: int, dims: tuple[int, ...], subnet: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.permutations = nn.ModuleList(permutation(config.permutation, dims) for _ in range(count))
        self.couplings = nn.ModuleList(
            coupling_block(config.coupling, dims, subnet, config.clamp) for _ in range(count)
        )

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, rev: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return x after all blocks and the log-determinant; undone if `rev`."""
        log_det: LogDet = 0.0
        pairs = list(zip(self.permutations, self.couplings, strict=True))
        for permute, couple in reversed(pairs) if rev else pairs:
            if rev:
                x, change = couple((x, condition), rev=True)
                x = permute(x, rev=True)
            else:
                x, change = couple((permute(x), condition))
            log_det = log_det + change
        return x, log_det


FLOW_CONTAINERS: tuple[type[nn.Module], ...] = (ConditionalFlow, _Scale, _Blocks)
"""What holds a flow's layers together."""


def check_flow_names(config: FlowConfig) -> None:
    """Check that an architecture names what exists.

    Raises:
        ConfigError: a name is unknown.
    """
    for field, known in (("coupling", COUPLINGS), ("downsampling", DOWNSAMPLINGS), ("permutation", PERMUTATIONS)):
        name = getattr(config, field)
        if name not in known:
            raise ConfigError(f"Unknown {field} '{name}'. Choose one of: {', '.join(sorted(known))}.")


def _check_fits(config: FlowConfig, shape: tuple[int, ...]) -> None:
    """Check that a flow of an architecture can be built for records of a shape.

    Raises:
        ConfigError: the image cannot be halved as often as there are scales, or there is nothing to couple.
    """
    if config.is_warm:
        if front_end_of(config.front_end, shape).dims < 2:
            raise ConfigError("A coupling block needs two dimensions. The front end has one; raise its size.")
        return
    if not config.scales and not config.dense.blocks:
        raise ConfigError(
            "A flow without a warm start needs coupling blocks. Found no flow.scales, and flow.dense.blocks 0; give "
            "scales, or dense.blocks above zero."
        )
    if math.prod(shape) < 2:
        raise ConfigError(f"A coupling block needs two dimensions. A record of shape {tuple(shape)} has one; add some.")
    if config.scales and len(shape) != 3:
        raise ConfigError(
            "Each of flow.scales halves an image. These records are rows; remove flow.scales, and give "
            "flow.dense.blocks above zero."
        )
    scales, sides = len(config.scales), shape[1:]
    factor = 2**scales
    if any(side % factor for side in sides):
        fitting = max(count for count in range(scales) if not any(side % 2**count for side in sides))
        fewer = f"at most {fitting} of flow.scales" if fitting else "no flow.scales"
        dense = "" if fitting or config.dense.blocks else " and flow.dense.blocks above zero"
        larger = " x ".join(str(-(-side // factor) * factor) for side in sides)
        raise ConfigError(
            f"Each of flow.scales halves the image, so with {scales} of them its sides are multiples of {factor}. "
            f"Found images of {sides[0]} x {sides[1]}; use {fewer}{dense}, or images of {larger}."
        )


@contextmanager
def _fixed_randomness(seed: int) -> Iterator[None]:
    """Seed torch's and numpy's global generators inside the block, and put both back after it.

    Permutations are drawn from numpy's global generator; noise drawn from it afterwards would repeat.
    """
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)

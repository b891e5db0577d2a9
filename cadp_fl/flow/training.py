"""Maximum likelihood: minimise E[-log2 p(x | y)] / dims, in bits per dimension, without privacy."""

import math
from dataclasses import dataclass

import torch

from cadp_fl.config import FlowTrainingConfig
from cadp_fl.errors import TrainingError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import one_hot
from cadp_fl.schedule import cosine

__all__ = ["Progress", "bits_per_dim", "dequantize", "quantize", "train_flow"]


@dataclass(frozen=True)
class Progress:
    """Where a call stands in the whole of training: round `index` (from 0) of `rounds`."""

    index: int
    rounds: int


def dequantize(images: torch.Tensor, levels: int, offset: torch.Tensor | float = 0.5) -> torch.Tensor:
    """Return x = (v + u) / levels of grey levels v, so that x has a density on [0, 1].

    Args:
        images: uint8, (batch, channels, height, width); level v is stored as round(255 v / (levels - 1)).
        levels: number of grey levels.
        offset: u in [0, 1); uniform noise in training, 1/2 for the middle of each level.
    """
    values = torch.round(images.float() * ((levels - 1) / 255))
    return (values + offset) / levels


def quantize(x: torch.Tensor, levels: int) -> torch.Tensor:
    """Return the uint8 image of x, the inverse of `dequantize`; values outside of [0, 1] are clamped, NaN is 0."""
    values = torch.floor(torch.nan_to_num(x, nan=0.0) * levels).clamp(0, levels - 1)
    return torch.round(values * (255 / (levels - 1))).to(torch.uint8)


def bits_per_dim(flow: ConditionalFlow, images: torch.Tensor, labels: torch.Tensor, levels: int) -> torch.Tensor:
    """Return -log2 p(x | y) / dims + log2(levels) at the middle of each level, (batch,)."""
    log_prob = flow.log_prob(dequantize(images, levels), one_hot(labels, flow.classes))
    return -log_prob / (flow.dims * math.log(2)) + math.log2(levels)


def train_flow(
    flow: ConditionalFlow,
    images: torch.Tensor,
    labels: torch.Tensor,
    config: FlowTrainingConfig,
    *,
    levels: int,
    progress: Progress,
    generator: torch.Generator,
) -> float:
    """Train in place for one round, and return the mean loss in bits per dimension.

    Args:
        images: uint8, (records, channels, height, width), on the flow's device.
        labels: int64, (records,).
        generator: shuffles and dequantizes; on the flow's device. Not a source of privacy.

    Raises:
        TrainingError: the loss became infinite or NaN.
    """
    parameters = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    batches = math.ceil(len(labels) / config.batch_size)
    steps = config.local_epochs * batches
    total, seen = 0.0, 0
    flow.train()
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(labels), generator=generator, device=images.device)
        chosen = order[(step % batches) * config.batch_size :][: config.batch_size]
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine((progress.index + step / steps) / progress.rounds)
        noise = torch.rand(len(chosen), *flow.shape, generator=generator, device=images.device)
        log_prob = flow.log_prob(dequantize(images[chosen], levels, noise), one_hot(labels[chosen], flow.classes))
        loss = -log_prob.mean() / (flow.dims * math.log(2)) + math.log2(levels)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The flow's loss must stay finite. Found {loss.item()} at step {step + 1} of round "
                f"{progress.index + 1}; lower flow.training.learning_rate ({config.learning_rate:g}) or flow.clamp."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
        optimizer.step()
        total += loss.item() * len(chosen)
        seen += len(chosen)
    return total / seen

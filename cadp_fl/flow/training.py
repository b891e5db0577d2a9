"""Maximum likelihood: minimise E[-log2 p(x | y)] / dims, in bits per dimension, without privacy."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cadp_fl.config import FlowTrainingConfig
from cadp_fl.data.codec import Codec
from cadp_fl.device import PhysicalBatch, reduced_precision
from cadp_fl.errors import TrainingError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.schedule import cosine

__all__ = ["Progress", "bits_of", "bits_per_dim", "train_flow", "training_alone"]

STEPS_BETWEEN_LOOKS = 16


@dataclass(frozen=True)
class Progress:
    """Where a call stands in the whole of training: round `index` (from 0) of `rounds`."""

    index: int
    rounds: int


def bits_of(flow: ConditionalFlow, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Return -log2 p(x | y) / dims, (batch,), of x in [0, 1]."""
    return -flow.log_prob(x, condition) / (flow.dims * math.log(2))


def bits_per_dim(flow: ConditionalFlow, records: torch.Tensor, labels: torch.Tensor, codec: Codec) -> torch.Tensor:
    """Return -log2 p(x | y) / dims + log2(L) at the middle of each level, (batch,)."""
    return bits_of(flow, codec.to_unit(records), condition_of(labels, flow.conditions)) + codec.bits


def train_flow(
    flow: ConditionalFlow,
    records: torch.Tensor,
    labels: torch.Tensor,
    config: FlowTrainingConfig,
    *,
    codec: Codec,
    progress: Progress,
    generator: torch.Generator,
    frozen: Collection[str] = (),
    on_epoch: Callable[[int, float], None] | None = None,
) -> float:
    """Train in place for one round, and return the mean loss in bits per dimension.

    Args:
        records: as they are stored, (records, ...), on the flow's device.
        labels: of the condition, (records,) or (records, conditions); see `condition_of`.
        codec: of the records.
        generator: shuffles and dequantizes; on the flow's device. Not a source of privacy.
        frozen: names of parameters that stay as they are.
        on_epoch: is called after each pass with its number, from 1, and its mean loss in bits per dimension.

    Raises:
        TrainingError: the loss became infinite or NaN.
    """
    parameters = [each for name, each in flow.named_parameters() if each.requires_grad and name not in frozen]
    optimizer = torch.optim.Adam(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    batches = math.ceil(len(labels) / config.batch_size)
    steps = config.local_epochs * batches
    physical = PhysicalBatch(flow.swift_batch(min(config.batch_size, len(labels))))
    total, seen = torch.zeros((), dtype=torch.float64, device=records.device), 0
    before = torch.zeros_like(total)

    def bits(nats: torch.Tensor, count: int) -> float:
        return nats.item() / (count * flow.dims * math.log(2)) + codec.bits

    flow.train()
    with reduced_precision(), training_alone(flow, parameters):
        for step in range(steps):
            if step % batches == 0:
                order = torch.randperm(len(labels), generator=generator, device=records.device)
            chosen = order[(step % batches) * config.batch_size :][: config.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * cosine((progress.index + step / steps) / progress.rounds)
            offset = torch.rand(len(chosen), *flow.shape, generator=generator, device=records.device)
            x = codec.to_unit(records[chosen], offset)
            condition = condition_of(labels[chosen], flow.conditions)
            optimizer.zero_grad(set_to_none=True)
            total += _accumulate_gradients(flow, x, condition, physical, restart=optimizer.zero_grad)
            seen += len(chosen)
            torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
            optimizer.step()
            # Rarely, since each look waits for the device; a loss that is not finite stays so.
            if ((step + 1) % STEPS_BETWEEN_LOOKS == 0 or step + 1 == steps) and not torch.isfinite(total):
                raise TrainingError(
                    f"The flow's loss must stay finite. Found {total.item() / seen} by step {step + 1} of round "
                    f"{progress.index + 1}; lower flow.training.learning_rate ({config.learning_rate:g}) or flow.clamp "
                    f"({flow.clamp:g})."
                )
            if on_epoch is not None and (step + 1) % batches == 0:
                on_epoch((step + 1) // batches, bits(total - before, len(labels)))
                before = total.clone()
    return bits(total, seen)


def _accumulate_gradients(
    flow: ConditionalFlow,
    x: torch.Tensor,
    condition: torch.Tensor,
    physical: PhysicalBatch,
    *,
    restart: Callable[[], None],
) -> torch.Tensor:
    """Add the gradients of the batch's mean loss in bits per dimension, and return -sum log p(x | y) in nats."""
    scale = 1 / (len(x) * flow.dims * math.log(2))

    def of_part(part: slice) -> torch.Tensor:
        loss = -flow.log_prob(x[part], condition[part]).sum()
        (loss * scale).backward()
        return loss.detach().double()

    return torch.stack(physical.each(len(x), of_part, restart=restart)).sum()


@contextmanager
def training_alone(flow: ConditionalFlow, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Compute gradients of these parameters alone inside the block."""
    others = [each for each in flow.parameters() if each.requires_grad and not any(each is kept for kept in parameters)]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        for parameter in flow.parameters():
            parameter.grad = None

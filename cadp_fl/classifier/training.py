"""Cross-entropy on labelled records: the central classifier, and the local rounds of a federated one."""

import math
from collections.abc import Iterator

import torch
from torch import nn

from cadp_fl.config import CentralTrainingConfig
from cadp_fl.device import PhysicalBatch, reduced_precision, swift_batch
from cadp_fl.errors import TrainingError
from cadp_fl.schedule import cosine

__all__ = ["as_input", "log_odds", "train_class_balanced", "train_epochs"]


def as_input(inputs: torch.Tensor) -> torch.Tensor:
    """Return numbers in [-0.5, 0.5], float32, of what a codec gives for classifiers: bytes of 0 to 255, or the same.

    Around zero, by a public constant: a gradient that is clipped for privacy would else go mostly to the mean grey.
    """
    return inputs.float() / 255 - 0.5 if inputs.dtype == torch.uint8 else inputs


def train_class_balanced(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    config: CentralTrainingConfig,
    *,
    checkpoints: int,
    generator: torch.Generator,
) -> Iterator[float]:
    """Train in place on batches in which every class is equally likely, and yield the mean loss at each checkpoint.

    Args:
        inputs: of a codec, (records, ...); batches are moved to the model's device.
        labels: int64, (records,).
        checkpoints: number of pauses, the last one at the end of training.
        generator: draws the batches; on the CPU.

    Raises:
        TrainingError: the loss became infinite or NaN.
    """
    counts = torch.bincount(labels.cpu()).clamp_min(1)
    weights = (1.0 / counts.double())[labels.cpu()]
    steps = max(checkpoints, config.epochs * math.ceil(len(labels) / config.batch_size))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    pauses = {round((index + 1) * steps / checkpoints) for index in range(checkpoints)}
    physical = _physical_batch(model, inputs, config.batch_size)
    total, seen = 0.0, 0
    model.train()
    for step in range(steps):
        chosen = torch.multinomial(weights, config.batch_size, replacement=True, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine(step / steps)
        total += _step(model, optimizer, inputs[chosen.to(inputs.device)], labels[chosen.to(labels.device)], physical)
        seen += 1
        if step + 1 in pauses:
            yield total / seen
            total, seen = 0.0, 0


def train_epochs(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> float:
    """Train in place for some passes over the records, without privacy, and return the mean loss.

    Args:
        inputs: of a codec, (records, ...); batches are moved to the model's device.
        labels: int64, (records,).
        generator: shuffles.

    Raises:
        TrainingError: the loss became infinite or NaN.
    """
    physical = _physical_batch(model, inputs, batch_size)
    total, seen = 0.0, 0
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=generator, device=generator.device).split(batch_size):
            chosen = chosen.to(inputs.device)
            total += _step(model, optimizer, inputs[chosen], labels[chosen], physical) * len(chosen)
            seen += len(chosen)
    return total / seen


def _physical_batch(model: nn.Module, inputs: torch.Tensor, records: int) -> PhysicalBatch:
    one = torch.zeros(1, *inputs.shape[1:], device=next(model.parameters()).device)
    return PhysicalBatch(swift_batch(records, model, lambda: model(one)))


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    physical: PhysicalBatch,
) -> float:
    device = next(model.parameters()).device

    def add_gradients(part: slice) -> float:
        logits = model(as_input(inputs[part].to(device)))
        loss = nn.functional.cross_entropy(logits, labels[part].to(device), reduction="sum") / len(labels)
        loss.backward()
        return loss.item()

    optimizer.zero_grad(set_to_none=True)
    with reduced_precision():
        value = sum(physical.each(len(labels), add_gradients, restart=optimizer.zero_grad))
    if not math.isfinite(value):
        raise TrainingError(f"A classifier's loss must stay finite. Found {value}; lower its learning rate.")
    optimizer.step()
    return value


@torch.no_grad()
def log_odds(model: nn.Module, inputs: torch.Tensor, *, batch_size: int = 1024) -> torch.Tensor:
    """Return log p(y | x) / (1 - p(y | x)), float64 (records, classes), of what a codec gives, (records, ...).

    Taken from the logits, s_y - logsumexp of all others, so that a score near certainty keeps its digits.
    """
    model.eval()
    device = next(model.parameters()).device
    physical = _physical_batch(model, inputs, batch_size)
    return torch.cat(
        physical.each(len(inputs), lambda part: _log_odds(model(as_input(inputs[part].to(device))).double()))
    )


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    columns = [
        logits[:, label] - logits.masked_fill(own[label], -math.inf).logsumexp(dim=1) for label in range(len(own))
    ]
    return torch.stack(columns, dim=1)

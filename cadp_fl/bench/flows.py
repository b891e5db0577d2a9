"""Flows: training steps, and encode with decode, against the same architecture written with FrEIA alone."""

import math
from functools import partial

import torch
from torch import nn

from cadp_fl.bench.contest import Benchmark, Contender, Contest, Setting
from cadp_fl.bench.freia import FreiaFlow
from cadp_fl.config import FlowConfig, FlowTrainingConfig
from cadp_fl.data.codec import Pixels
from cadp_fl.device import PhysicalBatch, reduced_precision
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.training import Progress, train_flow

__all__ = [
    "ENCODE_DECODE",
    "FLOW_TRAINING",
    "FLOW_TRAINING_SMALL",
    "CODEC",
    "PAPER_FLOW",
    "SHAPE",
    "SMALL_FLOW",
    "synthetic_records",
]

SHAPE = (1, 28, 28)
LEVELS = 256
CODEC = Pixels(LEVELS)
PAPER_FLOW = FlowConfig.model_validate(
    {"scales": [{"blocks": 4, "channels": 128}] * 2, "dense": {"blocks": 2, "width": 392}, "permutation": "hard"}
)
SMALL_FLOW = FlowConfig.model_validate(
    {"scales": [{"blocks": 4, "channels": 32}] * 2, "dense": {"blocks": 2, "width": 128}, "permutation": "hard"}
)


def synthetic_records(count: int, classes: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return uint8 images (count, *SHAPE) and int64 labels (count,), each uniform."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, LEVELS, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    return images.to(device), torch.randint(0, classes, (count,), generator=generator).to(device)


def _training(setting: Setting, *, config: FlowConfig, classes: int, batch_size: int, steps: int) -> Contest:
    batch_size, steps = (8, 1) if setting.quick else (batch_size, steps)
    images, labels = synthetic_records(steps * batch_size, classes, setting.device)
    training = FlowTrainingConfig(batch_size=batch_size, local_epochs=1, learning_rate=5e-4)
    generator = torch.Generator(setting.device).manual_seed(2)
    flow = ConditionalFlow(config, SHAPE, classes, seed=3).to(setting.device)
    freia = FreiaFlow(config, SHAPE, classes, seed=3).to(setting.device)
    parameters = [each for each in freia.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay, betas=(0.9, 0.99)
    )

    def ours() -> None:
        train_flow(flow, images, labels, training, codec=CODEC, progress=Progress(0, 1), generator=generator)

    def reference() -> None:
        for chosen in torch.randperm(len(labels), device=setting.device).split(batch_size):
            values = images[chosen].float()
            x = (values + torch.rand_like(values)) / LEVELS
            condition = nn.functional.one_hot(labels[chosen], classes).float()
            optimizer.zero_grad()
            loss = -freia.log_prob(x, condition).mean() / (freia.dims * math.log(2))
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, training.max_gradient_norm)
            optimizer.step()

    def reference_at_our_precision() -> None:
        with reduced_precision():
            reference()

    return Contest(Contender(len(labels), ours), Contender(len(labels), reference_at_our_precision))


def _encode_decode(setting: Setting) -> Contest:
    classes = 10
    images, labels = synthetic_records(16 if setting.quick else 512, classes, setting.device)
    x, condition = CODEC.to_unit(images), condition_of(labels, classes)
    flow = ConditionalFlow(PAPER_FLOW, SHAPE, classes, seed=3).to(setting.device).eval()
    freia = FreiaFlow(PAPER_FLOW, SHAPE, classes, seed=3).to(setting.device).eval()

    @torch.no_grad()
    def there_and_back(flow: ConditionalFlow | FreiaFlow, part: slice) -> torch.Tensor:
        return flow.decode(flow.encode(x[part], condition[part])[0], condition[part])

    def ours() -> None:
        physical = PhysicalBatch(flow.swift_batch(len(labels)))
        physical.each(len(labels), lambda part: there_and_back(flow, part))

    return Contest(Contender(len(labels), ours), Contender(len(labels), lambda: there_and_back(freia, slice(None))))


FLOW_TRAINING = Benchmark(
    title="train the paper's MNIST flow: 28 x 28, 10 classes, 128 channels, batches of 128",
    reference="the same architecture as a FrEIA graph, in a plain Adam loop",
    unit="images",
    prepare=partial(_training, config=PAPER_FLOW, classes=10, batch_size=128, steps=2),
)
FLOW_TRAINING_SMALL = Benchmark(
    title="train a small flow: 28 x 28, 2 classes, 32 channels, batches of 64",
    reference="the same architecture as a FrEIA graph, in a plain Adam loop",
    unit="images",
    prepare=partial(_training, config=SMALL_FLOW, classes=2, batch_size=64, steps=6),
)
ENCODE_DECODE = Benchmark(
    title="encode and decode 512 images with the paper's MNIST flow",
    reference="forward and reverse of the same architecture as a FrEIA graph",
    unit="images",
    prepare=_encode_decode,
)

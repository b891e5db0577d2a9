"""Flows under DP-SGD: against the same flow's plain training, and against Opacus' hooks."""

from functools import partial

import torch

from cadp_fl.bench.contest import Benchmark, Contender, Contest, Setting
from cadp_fl.bench.flows import CODEC, PAPER_FLOW, SHAPE, SMALL_FLOW, synthetic_records
from cadp_fl.config import FlowConfig, FlowTrainingConfig
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.per_record import PER_RECORD_LAYERS
from cadp_fl.flow.training import Progress, train_flow
from cadp_fl.privacy.dpsgd import Loss, opacus_gradients, train_dp_sgd
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.noise import NoiseSource

__all__ = ["DP_FLOW_OPACUS", "DP_FLOW_TRAINING", "DP_FLOW_TRAINING_LARGE"]

CLASSES = 10
EVENT = PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=1.0, sampling_rate=1.0, steps=1)
"""One step on all records, so that every batch has the size that the benchmark names."""


def _nats(images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> Loss:
    conditions = condition_of(labels, CLASSES)

    def loss(model: torch.nn.Module, records: torch.Tensor) -> torch.Tensor:
        assert isinstance(model, ConditionalFlow)
        offset = torch.rand(len(records), *SHAPE, generator=generator, device=records.device)
        return -model.log_prob(CODEC.to_unit(images[records], offset), conditions[records])

    return loss


def _dp_step(flow: ConditionalFlow, loss: Loss, count: int, device: torch.device) -> None:
    train_dp_sgd(
        flow,
        loss,
        EVENT,
        units=torch.arange(count, device=device)[:, None],
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=5e-4, fused=True),
        noise=NoiseSource.from_entropy(),
        covered=PER_RECORD_LAYERS,
    )


def _against_plain(setting: Setting, *, config: FlowConfig, batch_size: int) -> Contest:
    batch_size = 8 if setting.quick else batch_size
    images, labels = synthetic_records(batch_size, CLASSES, setting.device)
    training = FlowTrainingConfig(batch_size=batch_size, local_epochs=1, learning_rate=5e-4)
    generator = torch.Generator(setting.device).manual_seed(2)
    flow, plain = (ConditionalFlow(config, SHAPE, CLASSES, seed=3).to(setting.device) for _ in range(2))
    loss = _nats(images, labels, generator)

    def reference() -> None:
        train_flow(plain, images, labels, training, codec=CODEC, progress=Progress(0, 1), generator=generator)

    return Contest(
        Contender(batch_size, lambda: _dp_step(flow, loss, batch_size, setting.device)),
        Contender(batch_size, reference),
    )


def _against_opacus(setting: Setting) -> Contest:
    batch_size = 8 if setting.quick else 128
    images, labels = synthetic_records(batch_size, CLASSES, setting.device)
    generator = torch.Generator(setting.device).manual_seed(2)
    flow, theirs = (ConditionalFlow(SMALL_FLOW, SHAPE, CLASSES, seed=3).to(setting.device) for _ in range(2))
    loss = _nats(images, labels, generator)
    parameters = [each for each in theirs.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=5e-4, fused=True)

    def reference() -> None:
        gradients = opacus_gradients(theirs, loss, torch.arange(batch_size, device=setting.device))
        norms = torch.stack([each.flatten(1).norm(dim=1) for each in gradients]).norm(dim=0)
        factors = (EVENT.clip_norm / norms).clamp_max(1.0)
        for parameter, each in zip(parameters, gradients, strict=True):
            total = torch.einsum("i,i...", factors, each)
            parameter.grad = (total + EVENT.noise_std * torch.randn_like(total)) / batch_size
        optimizer.step()
        optimizer.zero_grad()

    return Contest(
        Contender(batch_size, lambda: _dp_step(flow, loss, batch_size, setting.device)),
        Contender(batch_size, reference),
    )


DP_FLOW_TRAINING = Benchmark(
    title="a DP-SGD step of a small flow: 28 x 28, 10 classes, 32 channels, batches of 128",
    reference="a step of the same flow's training without privacy, at the same batch",
    unit="images",
    prepare=partial(_against_plain, config=SMALL_FLOW, batch_size=128),
)
DP_FLOW_TRAINING_LARGE = Benchmark(
    title="a DP-SGD step of the paper's MNIST flow: 28 x 28, 10 classes, 128 channels, batches of 512",
    reference="a step of the same flow's training without privacy, at the same batch",
    unit="images",
    prepare=partial(_against_plain, config=PAPER_FLOW, batch_size=512),
)
DP_FLOW_OPACUS = Benchmark(
    title="a DP-SGD step of a small flow: 28 x 28, 10 classes, 32 channels, batches of 128",
    reference="Opacus' per-record gradients of the same batch at once, clipped, summed and noised in float32",
    unit="images",
    prepare=_against_opacus,
)

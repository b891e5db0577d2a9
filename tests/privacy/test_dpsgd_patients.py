"""DP-SGD whose unit is a patient: the clip is of the mean gradient of a patient's records."""

import pytest
import torch
from torch import nn

from cadp_fl.classifier.models import build_classifier
from cadp_fl.config import ClassifierConfig
from cadp_fl.privacy.dpsgd import cross_entropy_of, train_dp_sgd
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.noise import NoiseSource

UNITS = torch.tensor([[0, 1, -1], [2, -1, -1], [3, 4, 5], [6, 7, -1]])


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()


def data(count=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 2, 2, generator=generator, dtype=torch.float64), torch.arange(count) % 3


def step(network, images, labels, clip=0.3, physical=1024, rate=1.0, steps=1):
    event = PoissonGaussian(
        stage="classifier", clip_norm=clip, noise_std=1e-9, sampling_rate=rate, steps=steps
    )  # fmt: skip
    train_dp_sgd(
        network,
        cross_entropy_of(images, labels),
        event,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        noise=NoiseSource.from_seed(0),
        units=UNITS,
        physical_batch=physical,
    )
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


def oracle(clip=0.3):
    """One patient at a time: the gradient of its mean loss, clipped, summed, over the number of patients."""
    network, (images, labels) = model(), data()
    start = torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])
    total = torch.zeros_like(start)
    for row in UNITS:
        own = row[row >= 0]
        loss = nn.functional.cross_entropy(network(images[own]), labels[own])
        gradient = torch.cat([each.reshape(-1) for each in torch.autograd.grad(loss, list(network.parameters()))])
        total += gradient * min(1.0, clip * (1 - 1e-5) / gradient.norm())
    return start - total / len(UNITS)


@pytest.mark.parametrize("physical", [1024, 6, 1])
@pytest.mark.parametrize("clip", [0.3, 100.0])
def test_a_step_is_that_of_a_patient_at_a_time(physical, clip):
    torch.testing.assert_close(step(model(), *data(), clip, physical), oracle(clip), rtol=0, atol=1e-7)


def test_replacing_all_records_of_a_patient_moves_the_sum_by_at_most_2_c():
    images, labels = data()
    other = images.clone()
    other[3:6] = -1e4 * images[3:6]
    moved = step(model(), images, labels) - step(model(), other, labels)
    assert 0.1 / len(UNITS) < moved.norm() <= 2 * 0.3 / len(UNITS)


def test_a_patient_with_one_overflowing_record_counts_as_zero():
    images, labels = data()
    images[4] = float("inf")
    spoiled = step(model(), images, labels)
    images[3:6] = 0.0
    images[3, 0, 0, 0] = float("nan")
    assert torch.isfinite(spoiled).all()
    assert torch.equal(spoiled, step(model(), images, labels))


def test_patients_are_sampled_and_not_records(monkeypatch):
    asked = []
    sample = NoiseSource.poisson_sample
    monkeypatch.setattr(NoiseSource, "poisson_sample", lambda self, *how: asked.append(how) or sample(self, *how))
    assert torch.isfinite(step(model(), *data(), rate=0.5, steps=3)).all()
    assert asked == [(len(UNITS), 0.5)] * 3


def hostile(seed):
    """A network whose every feature is 1, whatever the record, and whose logits are sums of them that cancel.

    What is left is what float32 rounds, which depends on how many records are computed at once.
    """
    network = build_classifier(ClassifierConfig(model="cnn", width=16), (1, 28, 28), 2, seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network[4].bias.fill_(1.0)
        for row in network[8].weight:
            half = torch.randn(len(row) // 2, generator=generator) * 1e6
            row.copy_(torch.cat([half, -half])[torch.randperm(len(row), generator=generator)])
        network[10].weight.copy_(torch.randn(network[10].weight.shape, generator=generator) * 1e-3)
    return network


@pytest.mark.parametrize("seed", range(8))
def test_the_number_of_a_patients_records_moves_no_other_patients_gradient(seed):
    """All records are alike here, so a patient with five of them gives the same mean gradient as one with one."""
    patients, m = 3, 5
    images, labels = torch.zeros(patients * m, 1, 28, 28), torch.arange(patients).repeat_interleave(m) % 2
    event = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=1e-9, sampling_rate=1.0, steps=1)

    def gradient(records_of_the_first):
        units = torch.full((patients, m), -1)
        units[:, 0] = torch.arange(patients) * m
        units[0, :records_of_the_first] = torch.arange(records_of_the_first)
        network, made = hostile(seed), {}

        def optimizer(parameters):
            made["parameters"] = parameters
            return _Recording(parameters, made)

        train_dp_sgd(
            network, cross_entropy_of(images, labels), event, optimizer=optimizer, noise=NoiseSource.from_seed(0),
            units=units,
        )  # fmt: skip
        return made["gradient"] * patients

    torch.testing.assert_close(gradient(1), gradient(5), rtol=0, atol=1e-5)


class _Recording(torch.optim.SGD):
    """Keeps the gradient that it is given: beside weights of 1e6, float32 would not hold a step along it."""

    def __init__(self, parameters, made):
        super().__init__(parameters, lr=1.0)
        self._made = made

    def step(self, closure=None):
        self._made["gradient"] = torch.cat([each.grad.reshape(-1) for each in self._made["parameters"]])

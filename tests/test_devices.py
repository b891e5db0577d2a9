"""Tensors decide the device. A default device that holds no values finds every tensor that was made without one."""

import numpy as np
import pytest
import torch
from torch import nn

from cadp_fl.classifier.fixed import features_of
from cadp_fl.classifier.models import build_classifier
from cadp_fl.classifier.training import as_input, log_odds, train_class_balanced, train_epochs
from cadp_fl.config import CentralTrainingConfig, ClassifierConfig, FlowConfig, FlowTrainingConfig
from cadp_fl.data.codec import Pixels
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.device import PhysicalBatch, reduced_precision, resolve_device
from cadp_fl.errors import ConfigError
from cadp_fl.features.linear import BlockGradients, LowPassDct
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.training import Progress, bits_per_dim, train_flow
from cadp_fl.privacy.dpsgd import cross_entropy_of, train_dp_sgd
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.mechanisms import GaussianMechanism, GridGaussianMechanism, LaplaceMechanism, NoMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.privatize import ReleaseSettings, privatize

CPU = torch.device("cpu")
SCHEMA = Schema(name="x", shape=(1, 8, 8), classes=("a", "b", "c"))


def records(count=24):
    generator = np.random.default_rng(0)
    return Dataset(SCHEMA, generator.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), np.arange(count) % 3)


def tensors():
    data = records()
    return torch.from_numpy(data.images), torch.from_numpy(data.labels)


def generator():
    return torch.Generator(device="cpu").manual_seed(0)


def flow():
    scales = [{"blocks": 1, "channels": 4, "split": 0.5}, {"blocks": 1, "channels": 4}]
    return ConditionalFlow(FlowConfig(scales=scales, permutation="soft"), (1, 8, 8), 3, seed=0)


@pytest.fixture
def trap():
    """Make every tensor that names no device one without values; mixing it with another, or reading it, fails."""
    made = flow(), build_classifier(ClassifierConfig(width=4), (1, 8, 8), 3, seed=0)
    with torch.device("meta"):
        yield made


def test_the_trap_works(trap):
    with pytest.raises((RuntimeError, NotImplementedError)):
        (torch.zeros(3) + torch.ones(3, device="cpu")).tolist()


def test_a_flow_makes_no_tensor_without_its_inputs_device(trap):
    network, images, labels = trap[0], *tensors()
    config = FlowTrainingConfig(local_epochs=1, batch_size=10)
    loss = train_flow(
        network, images, labels, config, codec=Pixels(256), progress=Progress(0, 1), generator=generator()
    )
    assert np.isfinite(loss)
    assert bits_per_dim(network, images, labels, Pixels(256)).device == CPU


@pytest.mark.parametrize(
    "mechanism",
    [GaussianMechanism(2.0, 1.0), GridGaussianMechanism(2.0, 1.0), LaplaceMechanism(2.0, 1.0), NoMechanism()],
)
def test_a_release_makes_no_tensor_without_its_inputs_device(trap, mechanism):
    settings = ReleaseSettings(mechanism, 8, "typical-set")
    parts, _ = privatize(trap[0], records(), settings, noise=NoiseSource.from_seed(0), device=CPU)
    assert sum(len(part) for part in parts) == 24


def test_a_classifier_makes_no_tensor_without_its_inputs_device(trap):
    network, images, labels = trap[1], *tensors()
    config = CentralTrainingConfig(epochs=1, batch_size=10)
    list(train_class_balanced(network, images, labels, config, checkpoints=1, generator=generator()))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    train_epochs(network, images, labels, epochs=1, batch_size=10, optimizer=optimizer, generator=generator())
    assert log_odds(network, images).device == CPU


@pytest.mark.parametrize("features", [LowPassDct(), BlockGradients()])
def test_features_make_no_tensor_without_their_inputs_device(trap, features):
    assert features_of(features, tensors()[0]).isfinite().all()


def test_dp_sgd_makes_no_tensor_without_its_inputs_device(trap):
    images, labels = tensors()
    event = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=1.0, sampling_rate=0.5, steps=2)
    train_dp_sgd(
        trap[1], cross_entropy_of(as_input(images), labels), event, units=torch.arange(24, device=CPU)[:, None],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), noise=NoiseSource.from_seed(0),
    )  # fmt: skip
    assert all(torch.isfinite(parameter).all() for parameter in trap[1].parameters())


def test_a_part_that_does_not_fit_is_halved_until_it_does():
    batch, seen, restarts = PhysicalBatch(12), [], []

    def compute(part):
        if part.stop - part.start > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(part)
        return part.stop - part.start

    assert sum(batch.each(7, compute, restart=lambda: restarts.append(1))) == 7
    assert batch.records == 1
    assert len(restarts) == 2
    assert [part.start for part in seen] == list(range(7))


def test_another_error_is_not_taken_for_a_lack_of_memory():
    def compute(part):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        PhysicalBatch(4).each(4, compute)


def test_full_precision_outside_and_reduced_inside(monkeypatch):
    """Inverses and norms need float32; gradient steps do not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    flags = (lambda: torch.backends.cuda.matmul.allow_tf32), (lambda: torch.backends.cudnn.allow_tf32)
    assert [flag() for flag in flags] == [False, False]
    with reduced_precision():
        assert [flag() for flag in flags] == [True, True]
    assert [flag() for flag in flags] == [False, False]
    with pytest.raises(ConfigError, match="This process sees 2"):
        resolve_device("cuda:2")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_flow_inverts_and_a_release_stays_there():
    device = resolve_device("cuda")
    network, data = flow().to(device), records()
    settings = ReleaseSettings(GaussianMechanism(2.0, 1.0), 8, "typical-set")
    parts, _ = privatize(network, data, settings, noise=NoiseSource.from_seed(0), device=device)
    assert sum(len(part) for part in parts) == 24
    x = torch.rand(4, 1, 8, 8, device=device)
    condition = nn.functional.one_hot(torch.arange(4, device=device) % 3, 3).float()
    assert (network.decode(network.encode(x, condition)[0], condition) - x).abs().max() < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_rounds_noise_to_the_integers_that_a_processor_does():
    on_cpu, on_gpu = (
        NoiseSource.from_seed(0).rounded_normal((1_000_000,), 5000.0, like=torch.zeros(1, device=device))
        for device in ("cpu", "cuda")
    )
    assert torch.equal(on_cpu, on_gpu.cpu())

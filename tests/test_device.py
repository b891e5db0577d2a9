"""How much is computed at once; nothing but speed depends on it."""

import pytest
import torch
from torch import nn

from cadp_fl import device
from cadp_fl.config import FlowConfig, FlowTrainingConfig
from cadp_fl.data.codec import Pixels
from cadp_fl.device import swift_batch
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.training import Progress, train_flow
from cadp_fl.weights import get_weights

WIDE = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 2))
BYTES = 8 * 16 * 4
"""Of the widest output of one record, 1 x 4 x 4."""


def swift(records, network=WIDE):
    return swift_batch(records, network, lambda: network(torch.zeros(1, 1, 4, 4)))


@pytest.mark.parametrize(("fitting", "records", "parts"), [(100, 64, 64), (50, 64, 32), (40, 128, 32), (1, 7, 1)])
def test_a_layers_output_fits_the_cache_in_about_equal_parts(monkeypatch, fitting, records, parts):
    monkeypatch.setattr(device, "CACHE_BYTES", fitting * BYTES)
    assert swift(records) == parts


def test_a_record_that_is_too_large_for_the_cache_is_computed_alone(monkeypatch):
    monkeypatch.setattr(device, "CACHE_BYTES", 1)
    assert swift(9) == 1


def test_looking_at_a_network_leaves_it_as_it_was():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout()).train()
    before, generator = {name: each.clone() for name, each in network.state_dict().items()}, torch.get_rng_state()
    swift(9, network)
    assert network.training
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert not any(layer._forward_hooks for layer in network.modules())  # noqa: SLF001


def test_training_in_parts_that_fit_the_cache_is_training_on_the_batch(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (48, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (48,), generator=generator)
    trained = []
    for fitting, parts in ((16, 16), (5, 4)):
        monkeypatch.setattr(device, "CACHE_BYTES", fitting * BYTES)
        flow = ConditionalFlow(FlowConfig(scales=[{"blocks": 1, "channels": 8}]), (1, 8, 8), 3, seed=1)
        assert flow.swift_batch(16) == parts
        train_flow(
            flow,
            images,
            labels,
            FlowTrainingConfig(local_epochs=1, batch_size=16, learning_rate=1e-3),
            codec=Pixels(256),
            progress=Progress(0, 1),
            generator=torch.Generator().manual_seed(2),
        )
        trained.append(get_weights(flow))
    for name, whole in trained[0].items():
        assert torch.from_numpy(whole).allclose(torch.from_numpy(trained[1][name]), atol=1e-4), name

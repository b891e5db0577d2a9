"""DP-SGD against a micro-batch-of-one oracle that uses no hooks."""

import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from cadp_fl.errors import MemoryLimitError, PrivacyError
from cadp_fl.privacy.clipping import CLIP_MARGIN
from cadp_fl.privacy.dpsgd import WeightAverage, check_layers, cross_entropy_of, opacus_gradients, train_dp_sgd
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.noise import NoiseSource

SILENT = 1e-9
"""A noise standard deviation that leaves nothing to see."""


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


def records(count=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 6, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)


def event(clip_norm=0.5, noise_std=SILENT, rate=1.0, steps=1):
    return PoissonGaussian(
        stage="classifier", clip_norm=clip_norm, noise_std=noise_std, sampling_rate=rate, steps=steps
    )


def train(network, images, labels, what, *, seed=0, learning_rate=1.0, class_weights=None, **more):
    train_dp_sgd(
        network,
        cross_entropy_of(images, labels, class_weights),
        what,
        units=torch.arange(len(labels))[:, None],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=learning_rate),
        noise=NoiseSource.from_seed(seed),
        **more,
    )
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def record_gradients(network, images, labels):
    """Return one flat gradient a record, each from a batch of one."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        network.zero_grad()
        nn.functional.cross_entropy(network(image[None]), label[None]).backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    return torch.stack(rows).double()


def clipped(gradients, clip_norm):
    norms = gradients.norm(dim=1, keepdim=True)
    return gradients * (clip_norm * (1 - CLIP_MARGIN) / norms).clamp_max(1.0)


@pytest.mark.parametrize("clip_norm", [0.05, 0.5, 1e6])
def test_a_step_is_the_clipped_sum_of_micro_batches_over_q_n(clip_norm):
    images, labels = records()
    start = torch.cat([parameter.detach().flatten() for parameter in model().parameters()])
    expected = start - clipped(record_gradients(model(), images, labels), clip_norm).sum(dim=0) / len(labels)
    moved = train(model(), images, labels, event(clip_norm))
    torch.testing.assert_close(moved.double(), expected.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_class_weights_scale_gradients_before_they_are_clipped(clip_norm):
    images, labels = records()
    weights = torch.tensor([0.25, 1.0, 4.0])
    start = torch.cat([parameter.detach().flatten() for parameter in model().parameters()])
    weighted = record_gradients(model(), images, labels) * weights[labels][:, None]
    expected = start - clipped(weighted, clip_norm).sum(dim=0) / len(labels)
    moved = train(model(), images, labels, event(clip_norm), class_weights=weights)
    torch.testing.assert_close(moved.double(), expected.double(), rtol=1e-4, atol=1e-6)


def test_no_class_weight_moves_a_record_beyond_the_clip():
    """What a step costs does not depend on weights, which a server sends."""
    images, labels = records(1)
    start = torch.cat([parameter.detach().flatten() for parameter in model().parameters()])
    for weight in (1e-3, 1.0, 1e3, 1e30):
        moved = train(model(), images, labels, event(0.5), class_weights=torch.full((3,), weight))
        assert (moved - start).norm() <= 0.5


def test_no_noise_and_an_infinite_clip_give_back_plain_sgd():
    images, labels = records()
    plain = model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in plain.parameters()])
    moved = train(model(), images, labels, event(1e6, steps=3), learning_rate=0.5)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)


def test_the_divisor_is_the_public_q_n_and_not_the_sample():
    images, labels = records(40)
    sampled = NoiseSource.from_seed(0).child("samples").poisson_sample(40, 0.25)
    assert len(sampled) != 10
    start = torch.cat([parameter.detach().flatten() for parameter in model().parameters()])
    gradients = clipped(record_gradients(model(), images[sampled], labels[sampled]), 0.5)
    moved = train(model(), images, labels, event(rate=0.25))
    torch.testing.assert_close(moved.double(), start.double() - gradients.sum(dim=0) / 10, rtol=1e-4, atol=1e-6)


def test_noise_has_the_standard_deviation_of_the_event():
    images, labels = records(4)
    start = torch.cat([parameter.detach().flatten() for parameter in model().parameters()])
    # The clip leaves nothing of the gradients; fifty steps add 50 sigma^2, each step divided by n.
    moved = train(model(), images, labels, event(clip_norm=1e-6, noise_std=1e-3, steps=50))
    assert (moved - start).std().item() == pytest.approx(1e-3 * math.sqrt(50) / 4, rel=0.15)


def test_an_empty_sample_still_takes_its_noised_step():
    images, labels = records(4)
    start = torch.cat([parameter.detach().flatten() for parameter in model().parameters()])
    what = event(noise_std=1.0, rate=1e-9)
    assert len(NoiseSource.from_seed(0).child("samples").poisson_sample(4, 1e-9)) == 0
    moved = train(model(), images, labels, what)
    assert ((moved - start) * 4e-9).std().item() == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
def test_a_record_without_a_finite_gradient_counts_as_zero_and_shows_nothing(bad):
    images, labels = records(6)
    images[2] = bad
    others = [0, 1, 3, 4, 5]
    start = torch.cat([parameter.detach().flatten() for parameter in model().parameters()])
    expected = clipped(record_gradients(model(), images[others], labels[others]), 0.5).sum(dim=0) / 6
    moved = train(model(), images, labels, event())
    torch.testing.assert_close(moved.double(), start.double() - expected, rtol=1e-4, atol=1e-6)


def test_one_record_moves_the_sum_by_no_more_than_two_c_whatever_the_weights():
    images, labels = records(8)
    changed = images.clone()
    changed[3] = 1 - changed[3]
    for scale in (1.0, 1e4, 1e18):
        hostile = [model(seed=5), model(seed=5)]
        for network in hostile:
            for parameter in network.parameters():
                parameter.data *= scale
        start = torch.cat([parameter.detach().flatten() for parameter in hostile[0].parameters()]).double()
        moves = [
            train(net, each, labels, event()).double() for net, each in zip(hostile, (images, changed), strict=True)
        ]
        # Large weights swallow a small move in float32, which can only round; allow for that rounding.
        rounding = 2 * start.norm() * torch.finfo(torch.float32).eps
        assert ((moves[0] - moves[1]) * 8).norm() <= 2 * 0.5 + 8 * rounding


def test_training_leaves_a_plain_model_behind():
    images, labels = records()
    network = model()
    names = {name for name, _ in network.named_parameters()}
    train(network, images, labels, event())
    assert {name for name, _ in network.named_parameters()} == names
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(hasattr(parameter, "grad_sample") for parameter in network.parameters())
    network(images).sum().backward()


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.Dropout(0.5), nn.InstanceNorm2d(4, track_running_stats=True)])
def test_a_layer_that_may_mix_records_is_refused_by_name(layer):
    with pytest.raises(PrivacyError, match=f"Found {type(layer).__name__} at '1'"):
        check_layers(nn.Sequential(nn.Conv2d(1, 4, 3), layer))


def test_opacus_leaves_logging_as_it_was():
    images, labels = records(2)
    opacus_gradients(model(), cross_entropy_of(images, labels), torch.arange(2))
    assert not [handler for handler in logging.root.handlers if type(handler) is logging.StreamHandler]


def test_the_same_seed_repeats_and_another_does_not():
    images, labels = records()
    runs = [train(model(), images, labels, event(noise_std=0.1, rate=0.5, steps=3), seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2])


def test_running_out_of_memory_halves_the_physical_batch_and_never_the_sample(monkeypatch):
    images, labels = records(40)
    what = event(noise_std=0.5, rate=0.6, steps=3)
    seen, room = [], 1000
    plain = nn.functional.cross_entropy

    def cross_entropy(logits, targets, **settings):
        if len(targets) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(len(targets))
        return plain(logits, targets, **settings)

    monkeypatch.setattr(nn.functional, "cross_entropy", cross_entropy)
    whole = train(model(), images, labels, what)
    samples = list(seen)
    assert max(samples) > 10
    room = 5
    seen.clear()
    parts = train(model(), images, labels, what)
    assert max(seen) <= 5
    assert sum(seen) == sum(samples)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    room = 0
    with pytest.raises(MemoryLimitError, match="A record must fit into memory"):
        train(model(), images, labels, what)


def start_of(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).double()


def brightened(images, labels, factors):
    """A loss whose images are multiplied by factors in turn, and the factors that each call was given."""
    seen = []

    def loss(network, chosen):
        of_each = torch.tensor(factors)[torch.arange(len(chosen)) % len(factors)]
        seen.append((chosen, of_each))
        changed = images[chosen] * of_each[:, None, None, None]
        return nn.functional.cross_entropy(network(changed), labels[chosen], reduction="none")

    return loss, seen


@pytest.mark.parametrize(("physical_batch", "at_most"), [(None, 15), (1, 3), (7, 6)])
def test_a_records_copies_are_averaged_before_the_clip(physical_batch, at_most):
    (images, labels), factors, network = records(5), [0.5, 1.0, 2.0], model()
    copied = torch.stack([record_gradients(model(), images * factor, labels) for factor in factors]).mean(dim=0)
    loss, seen = brightened(images, labels, factors)
    train_dp_sgd(
        network, loss, event(0.3), units=torch.arange(5)[:, None], copies=3, noise=NoiseSource.from_seed(0),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0), physical_batch=physical_batch,
    )  # fmt: skip
    expected = start_of(model()) - clipped(copied, 0.3).sum(dim=0) / 5
    torch.testing.assert_close(start_of(network), expected, rtol=1e-4, atol=1e-6)
    assert max(len(chosen) for chosen, _ in seen) == at_most
    assert all((chosen.view(-1, 3) == chosen.view(-1, 3)[:, :1]).all() for chosen, _ in seen[physical_batch is None :])


def test_copies_of_a_patients_records_are_averaged_with_them_and_blanks_are_not():
    (images, labels), network = records(3), model()
    units = torch.tensor([[0, 1], [2, -1]])
    loss, _ = brightened(images, labels, [0.5, 2.0])
    train_dp_sgd(
        network, loss, event(0.3), units=units, copies=2, noise=NoiseSource.from_seed(0),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
    )  # fmt: skip
    copied = torch.stack([record_gradients(model(), images * factor, labels) for factor in (0.5, 2.0)]).mean(dim=0)
    of_patients = torch.stack([copied[:2].mean(dim=0), copied[2]])
    expected = start_of(model()) - clipped(of_patients, 0.3).sum(dim=0) / 2
    torch.testing.assert_close(start_of(network), expected, rtol=1e-4, atol=1e-6)


def test_copies_that_are_alike_change_nothing():
    images, labels = records()
    one, three = (train(model(), images, labels, event(0.3), copies=copies) for copies in (1, 3))
    torch.testing.assert_close(three, one, rtol=0, atol=1e-6)


def test_the_schedule_multiplies_the_learning_rate_by_the_share_of_steps_done():
    images, labels = records()
    asked, rates = [], []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    def schedule(position):
        asked.append(position)
        return 1 - position

    train_dp_sgd(
        model(), cross_entropy_of(images, labels), event(steps=4), units=torch.arange(12)[:, None], schedule=schedule,
        optimizer=lambda parameters: Watched(parameters, lr=0.8), noise=NoiseSource.from_seed(0),
    )  # fmt: skip
    assert asked == [0, 0.25, 0.5, 0.75]
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_an_average_of_weights_weighs_older_ones_less_and_forgets_the_start(decay):
    images, labels = records()
    network, by_hand = model(), []
    average = WeightAverage(network, decay)
    for steps in (1, 2, 3):
        by_hand.append(train(model(), images, labels, event(noise_std=0.1, steps=steps)))
    last = train(network, images, labels, event(noise_std=0.1, steps=3), average=average)
    assert torch.equal(last, by_hand[-1])
    shares = torch.tensor([decay**2, decay, 1.0])
    average.replace()
    expected = (torch.stack(by_hand) * shares[:, None]).sum(dim=0) / shares.sum()
    torch.testing.assert_close(start_of(network).float(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_an_average_that_never_forgets_is_refused(decay):
    with pytest.raises(PrivacyError, match="its decay is in"):
        WeightAverage(model(), decay)


def test_training_leaves_frozen_weights_and_the_mode_as_they_were():
    images, labels = records()
    network = model().eval()
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    train(network, images, labels, event(noise_std=1.0))
    assert torch.equal(network[0].weight, before)
    assert [each.requires_grad for each in network.parameters()] == [False, False, True, True, True, True]
    assert not network.training


class Scaled(nn.Linear):
    """Not what it derives from."""

    def forward(self, inputs):
        return super().forward(2 * inputs)


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.shift = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Scaled(4, 2), "Found bias, weight of Scaled at '1'; freeze it"),
        (Shifted(), "Found shift of Shifted at '1'; freeze it"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "Found circular at '1'; use zeros"),
        (nn.ReLU(inplace=True), "in-place ReLU at '1'; leave inplace out"),
    ],
)
def test_what_is_vouched_for_still_trains_covered_layers_alone(layer, message):
    with pytest.raises(PrivacyError, match=message):
        check_layers(nn.Sequential(nn.Conv2d(1, 4, 3), layer), [Scaled, Shifted])


def test_a_weight_that_a_hook_makes_of_others_is_refused():
    with pytest.warns(FutureWarning):
        layer = torch.nn.utils.weight_norm(nn.Linear(4, 2))
    with pytest.raises(PrivacyError, match="Found weight_g, weight_v of Linear at '0'"):
        check_layers(nn.Sequential(layer))


def test_a_class_derived_from_a_covered_layer_is_not_covered():
    class Centred(nn.Sequential):
        def forward(self, inputs):
            return super().forward(inputs - inputs.mean(dim=0))

    with pytest.raises(PrivacyError, match="Found Centred at 'the top'"):
        check_layers(Centred(nn.Flatten(), nn.Linear(4, 2)))

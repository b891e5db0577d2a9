"""DP-SGD on a flow: what it spends it for, beside a flow that is public."""

import copy

import pytest
import torch

from cadp_fl.classifier.training import as_input
from cadp_fl.config import DataConfig, FlowConfig, FlowTrainingConfig
from cadp_fl.data.codec import Pixels
from cadp_fl.data.sources import load_source
from cadp_fl.flow.bayes import FlowBayes
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.private_training import train_flow_privately
from cadp_fl.flow.training import Progress, bits_per_dim, train_flow
from cadp_fl.privacy.accounting import calibrate_noise, epsilon_of
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.noise import NoiseSource

FLOW = FlowConfig(dense={"blocks": 4, "width": 64})
LEVELS, EPSILON, DELTA = 17, 3.0, 1e-5


def halves():
    """Return images and labels of digits: 898 public records, 700 private ones, and 199 to test on."""
    train = load_source(DataConfig(source="digits")).train
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))
    images, labels = torch.from_numpy(train.images)[order], torch.from_numpy(train.labels)[order]
    return [(images[part], labels[part]) for part in (slice(0, 898), slice(898, 1598), slice(1598, None))]


def dimmed(images):
    """Return images as of another scanner, at six tenths of their brightness."""
    levels = torch.round(images.float() * ((LEVELS - 1) / 255))
    return torch.round(torch.round(0.6 * levels) * (255 / (LEVELS - 1))).to(torch.uint8)


def new_flow():
    return ConditionalFlow(FLOW, (1, 8, 8), 10, seed=0)


@torch.no_grad()
def figures(flow, images, labels):
    """Return bits per dimension, and the accuracy of Bayes' rule."""
    predicted = FlowBayes(flow, codec=Pixels(LEVELS))(as_input(images)).argmax(dim=1)
    return bits_per_dim(flow, images, labels, Pixels(LEVELS)).mean().item(), (predicted == labels).float().mean().item()


def privately(flow, images, labels, event, *, learning_rate, frozen=()):
    trained = copy.deepcopy(flow)
    train_flow_privately(
        trained,
        images,
        labels,
        event,
        units=torch.arange(len(labels))[:, None],
        copies=2,
        learning_rate=learning_rate,
        codec=Pixels(LEVELS),
        progress=Progress(0, 1),
        noise=NoiseSource.from_seed(0),
        frozen=frozen,
    )
    return trained


@pytest.mark.slow
@pytest.mark.parametrize(("change", "learning_rate"), [(lambda images: images, 1e-4), (dimmed, 3e-3)])
def test_a_public_flow_tuned_under_privacy_beats_a_new_one_at_the_same_epsilon(change, learning_rate):
    """The same noised steps on the same records, each start with the best of several learning rates."""
    public, private, test = halves()
    start = new_flow()
    config = FlowTrainingConfig(rounds=1, local_epochs=60)
    generator = torch.Generator().manual_seed(1)
    train_flow(start, change(public[0]), public[1], config, levels=17, progress=Progress(0, 1), generator=generator)

    def steps(noise_std):
        return PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=noise_std, sampling_rate=0.3, steps=60)

    event = steps(calibrate_noise(lambda std: [steps(std)], EPSILON, DELTA, clip_norm=1.0))
    assert 0.98 * EPSILON <= epsilon_of([event], DELTA) <= EPSILON
    before = figures(start, *test)
    tuned = figures(privately(start, *private, event, learning_rate=learning_rate), *test)
    scratch = figures(privately(new_flow(), *private, event, learning_rate=1e-2), *test)
    assert scratch[0] < figures(new_flow(), *test)[0] - 0.5, "learns something too"
    assert tuned[0] < scratch[0] - 0.5
    assert tuned[1] > scratch[1] + 0.2
    assert tuned[0] < before[0], "tuning is worth its epsilon"
    assert tuned[1] >= before[1] - 0.02


def test_a_step_of_next_to_no_noise_goes_down_the_mean_loss_of_all_records():
    """One Adam step from zero moments goes by the sign of the gradient alone: the mean loss falls."""
    _, (images, labels), _ = halves()
    images, labels = images[:100], labels[:100]
    event = PoissonGaussian(stage="flow", clip_norm=1e3, noise_std=1e-6, sampling_rate=1.0, steps=20)
    trained = privately(new_flow(), images, labels, event, learning_rate=1e-3)
    assert figures(trained, images, labels)[0] < figures(new_flow(), images, labels)[0] - 0.01


def test_frozen_parts_stay_bit_for_bit_and_nothing_is_left_behind():
    _, (images, labels), _ = halves()
    event = PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=1.0, sampling_rate=0.1, steps=2)
    start = new_flow()
    frozen = [name for name, each in start.named_parameters() if each.requires_grad and ".0." in name]
    trained = privately(start, images, labels, event, learning_rate=1e-2, frozen=frozen)
    moved = {
        name
        for (name, ours), theirs in zip(trained.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(ours, theirs)
    }
    assert moved
    assert not moved & set(frozen)
    for ours, theirs in zip(trained.parameters(), start.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad
        assert ours.grad is None


def test_one_source_of_noise_gives_one_flow():
    _, (images, labels), _ = halves()
    event = PoissonGaussian(stage="flow", clip_norm=1.0, noise_std=1.0, sampling_rate=0.1, steps=2)
    first, second = (privately(new_flow(), images, labels, event, learning_rate=1e-2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from cadp_fl.config import FlowConfig
from cadp_fl.data.codec import Pixels
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import ConfigError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.privacy.mechanisms import (
    RELEASED_RECORDS,
    GaussianMechanism,
    GridGaussianMechanism,
    LaplaceMechanism,
    NoMechanism,
)
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.privatize import ReleaseSettings, check_release, privatize

SCHEMA = Schema(name="x", shape=(1, 4, 4), classes=("a", "b", "c"))
CPU = torch.device("cpu")


def records(count, seed=0):
    generator = np.random.default_rng(seed)
    return Dataset(
        SCHEMA, generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8), generator.integers(0, 3, count)
    )


def flow():
    return ConditionalFlow(FlowConfig(scales=[{"blocks": 1, "channels": 4}]), (1, 4, 4), 3, seed=1)


def settings(noise_std=3.0, clip_norm=2.0, latent_dims=4, shrinkage="typical-set"):
    return ReleaseSettings(GaussianMechanism(clip_norm, noise_std), latent_dims, shrinkage)


def release(data, how, seed=0, **arguments):
    parts, cost = privatize(flow(), data, how, noise=NoiseSource.from_seed(seed), device=CPU, **arguments)
    released = list(parts)
    return (
        Dataset(
            SCHEMA,
            np.concatenate([each.images for each in released]),
            np.concatenate([each.labels for each in released]),
        ),
        cost,
    )


EVERY = pytest.mark.parametrize(
    "mechanism",
    [GaussianMechanism(2.0, 0.5), GridGaussianMechanism(2.0, 0.5), LaplaceMechanism(2.0, 0.5), NoMechanism()],
    ids=lambda own: own.name,
)


@EVERY
def test_every_record_is_released_once_with_its_label_and_its_cost(mechanism):
    data = records(50)
    released, cost = release(data, ReleaseSettings(mechanism, 4, "typical-set"))
    assert released.schema == SCHEMA
    assert np.array_equal(released.class_counts(), data.class_counts())
    assert cost == (mechanism.event(),)


def test_the_order_is_secret():
    data = records(200)
    order = NoiseSource.from_seed(0).child("order").permutation(200)
    released, _ = release(data, settings())
    assert np.array_equal(released.labels, data.labels[order])
    assert not np.array_equal(released.labels, data.labels)


@EVERY
def test_record_release_ignores_its_batch(mechanism):
    data, how = records(40), ReleaseSettings(mechanism, 4, "typical-set")
    whole, _ = release(data, how)
    parts, _ = release(data, how, part_records=7)
    assert np.abs(whole.images.astype(int) - parts.images.astype(int)).max() <= 1
    assert (whole.images == parts.images).mean() > 0.999


@EVERY
def test_changing_a_record_changes_its_own_release_alone(mechanism):
    how = ReleaseSettings(mechanism, 4, "typical-set")
    data, order = records(30), NoiseSource.from_seed(0).child("order").permutation(30)
    images = data.images.copy()
    images[5] = 255 - images[5]
    before, _ = release(data, how)
    after, _ = release(Dataset(SCHEMA, images, data.labels), how)
    differs = (before.images != after.images).any(axis=(1, 2, 3))
    assert set(order[differs]) == {5}


@pytest.mark.parametrize("mechanism", [GaussianMechanism(1e6, 1e-9), LaplaceMechanism(1e6, 1e-9), NoMechanism()])
@pytest.mark.parametrize("shrinkage", ["typical-set", "posterior-mean"])
def test_no_noise_a_wide_clip_and_all_dimensions_give_the_records_back(mechanism, shrinkage):
    data = records(20)
    order = NoiseSource.from_seed(0).child("order").permutation(20)
    released, _ = release(data, ReleaseSettings(mechanism, 16, shrinkage))
    assert np.array_equal(released.images, data.images[order])


def test_a_released_latent_is_the_shrunk_noised_clip_and_fresh_prior():
    """The identity flow lets a test read the latents off the pixels, as a reader of a release could."""
    count, how = 4000, settings(noise_std=1.0, clip_norm=1.0)
    data = Dataset(SCHEMA, np.full((count, 1, 4, 4), 255, np.uint8), np.zeros(count, np.int64))
    captured = []
    network = flow()
    original = network.decode
    network.decode = lambda z, condition: captured.append(z) or original(z, condition)
    list(privatize(network, data, how, noise=NoiseSource.from_seed(1), device=CPU)[0])
    latents = torch.cat(captured)
    encoded, _ = network.encode(
        Pixels(256).to_unit(torch.from_numpy(data.images)), condition_of(torch.zeros(count).long(), 3)
    )
    centre = encoded[:, :4] / encoded[:, :4].norm(dim=1, keepdim=True)
    assert kstest(((latents[:, :4] / how.factor - centre) / 1.0).detach().flatten().numpy(), "norm").pvalue > 1e-4
    assert kstest(latents[:, 4:].detach().flatten().numpy(), "norm").pvalue > 1e-4


def test_on_a_grid_what_is_decoded_is_the_factor_times_integers_of_the_grid():
    mechanism, captured, network = GridGaussianMechanism(2.0, 3.0), [], flow()
    how, original = ReleaseSettings(mechanism, 4, "typical-set"), network.decode
    network.decode = lambda z, condition: captured.append(z) or original(z, condition)
    list(privatize(network, records(50), how, noise=NoiseSource.from_seed(1), device=CPU)[0])
    steps = (torch.cat(captured)[:, :4].double() / how.factor / mechanism.grid).round()
    assert torch.equal(torch.cat(captured)[:, :4], (steps * mechanism.grid).float() * how.factor)


def test_without_a_mechanism_nothing_is_shrunk_and_the_cost_is_that_nothing_is_protected():
    for shrinkage in ("typical-set", "posterior-mean"):
        how = ReleaseSettings(NoMechanism(), 4, shrinkage)
        assert (how.factor, how.correlation) == (1.0, 1.0)
    assert release(records(5), how)[1] == (RELEASED_RECORDS,)


@pytest.mark.parametrize("kind", [GaussianMechanism, LaplaceMechanism])
def test_the_typical_set_keeps_the_priors_variance_and_the_posterior_mean_shrinks_more(kind):
    z = torch.randn(100_000, 9, generator=torch.Generator().manual_seed(0))
    for amount, clip_norm in ((0.5, 3.0), (3.0, 1.0), (10.0, 20.0)):
        how = ReleaseSettings(kind(clip_norm, amount), 9, "typical-set")
        noised = how.mechanism(z, noise=NoiseSource.from_seed(1))
        assert (noised * how.factor).var().item() == pytest.approx(1.0, rel=0.01)
        best = (z * noised).sum() / noised.square().sum()
        posterior = ReleaseSettings(how.mechanism, 9, "posterior-mean").factor
        assert posterior == pytest.approx(best.item(), abs=0.01)
        assert posterior < how.factor
        measured = torch.corrcoef(torch.stack([z.flatten(), noised.flatten()]))[0, 1].item()
        assert how.correlation == pytest.approx(measured, abs=0.01)


def attributed(labels, attributes):
    schema = SCHEMA.model_copy(update={"attributes": ("hat", "young", "smiling")})
    return Dataset(schema, records(30).images, labels, attributes=attributes)


def test_a_record_with_attributes_is_decoded_under_them_and_not_under_its_label():
    generator = torch.Generator().manual_seed(0)
    network = flow()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))

    def released(labels, attributes):
        parts, cost = privatize(
            network, attributed(labels, attributes), settings(), noise=NoiseSource.from_seed(0), device=CPU
        )
        (part,) = parts
        assert cost == (settings().mechanism.event(),)
        return part

    order = NoiseSource.from_seed(0).child("order").permutation(30)
    labels, attributes = np.arange(30) % 3, np.random.default_rng(1).integers(0, 2, (30, 3), dtype=np.uint8)
    before = released(labels, attributes)
    assert np.array_equal(before.attributes, attributes[order])
    assert np.array_equal(before.labels, labels[order])
    other_labels = released((labels + 1) % 3, attributes)
    assert np.array_equal(before.images, other_labels.images)
    changed = attributes.copy()
    changed[5, 1] ^= 1
    differs = (before.images != released(labels, changed).images).any(axis=(1, 2, 3))
    assert set(order[differs]) == {5}


def test_a_release_is_computed_a_part_at_a_time():
    parts, _ = privatize(flow(), records(100), settings(), noise=NoiseSource.from_seed(0), device=CPU, part_records=30)
    assert [len(part) for part in parts] == [30, 30, 30, 10]


def test_running_out_of_memory_changes_nothing_of_a_release(monkeypatch):
    whole, _ = release(records(40), settings())
    plain = ConditionalFlow.encode

    def encode(self, x, condition):
        if len(x) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, x, condition)

    monkeypatch.setattr(ConditionalFlow, "encode", encode)
    parts, _ = release(records(40), settings())
    assert np.abs(whole.images.astype(int) - parts.images.astype(int)).max() <= 1
    assert (whole.images == parts.images).mean() > 0.999


def test_a_hostile_flow_releases_nothing_that_is_not_an_image():
    network = flow()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.fill_(1e30)
    parts, _ = privatize(network, records(10), settings(), noise=NoiseSource.from_seed(0), device=CPU)
    (released,) = parts
    assert released.images.shape == (10, 1, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("gauss", "typical-set", 4, 16), "Unknown mechanism 'gauss'"),
        (("gaussian", "none", 4, 16), "Unknown shrinkage 'none'"),
        (("gaussian", "typical-set", 17, 16), "at most the flow's 16 dimensions. Found 17"),
    ],
)
def test_a_release_that_does_not_fit_is_refused(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_release(*arguments)

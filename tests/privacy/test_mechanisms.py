import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from cadp_fl.errors import ConfigError
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.events import LatentGaussian, LatentLaplace, Unprotected
from cadp_fl.privacy.gaussian import gaussian_delta
from cadp_fl.privacy.mechanisms import (
    MECHANISMS,
    RELEASED_RECORDS,
    GaussianMechanism,
    GridGaussianMechanism,
    LaplaceMechanism,
    NoMechanism,
    mechanism_of,
    mechanism_type,
)
from cadp_fl.privacy.noise import NoiseSource

FALSE_ALARM = 1e-4
"""Probability at which a statistical test with a fresh key would fail by chance; the keys are fixed."""

CALIBRATED = [kind.calibrated(2.0, 3.0, 1e-5) for kind in MECHANISMS.values()]
EVERY = pytest.mark.parametrize("mechanism", CALIBRATED)


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 10.0])
def test_calibration_is_analytic_for_sensitivity_two_c(epsilon):
    mechanism = GaussianMechanism.calibrated(4.0, epsilon, 1e-5)
    assert mechanism.sensitivity == 8.0
    assert gaussian_delta(epsilon, mechanism.noise_std, 8.0) <= 1e-5
    assert gaussian_delta(epsilon, mechanism.noise_std * 0.999, 8.0) > 1e-5
    assert 0.999 * epsilon <= epsilon_of([mechanism.event()], 1e-5) <= epsilon


@pytest.mark.parametrize("epsilon", [0.7, 1.0, 3.0, 10.0])
def test_laplace_calibration_is_two_c_over_epsilon(epsilon):
    mechanism = LaplaceMechanism.calibrated(4.0, epsilon, 1e-5)
    assert mechanism.noise_scale == pytest.approx(8.0 / epsilon, rel=1e-15)
    assert epsilon_of([mechanism.event()], 1e-5) == pytest.approx(epsilon, rel=1e-15)
    assert epsilon_of([mechanism.event()], 1e-5) <= epsilon


def adversarial_pairs(dims):
    """Return pairs of latents (pairs, dims) that a hostile flow could make of two records."""
    generator = torch.Generator().manual_seed(dims)
    one = torch.eye(dims)[:4] * 1e6
    flat = torch.ones(1, dims) * torch.tensor([[1e-3], [1.0], [1e9]])
    mixed = torch.randn(50, dims, generator=generator) * 10 ** torch.linspace(-3, 20, 50)[:, None]
    left = torch.cat([one, one, flat, mixed])
    right = torch.cat([-one, one.roll(1, 0), -flat, mixed.flip(0)])
    return left, right


@pytest.mark.parametrize(("kind", "order"), [(GaussianMechanism, 2), (LaplaceMechanism, 1)])
@pytest.mark.parametrize("dims", [4, 16, 784])
def test_no_two_records_are_further_apart_than_the_sensitivity_and_some_are_that_far(kind, order, dims):
    """The same noise falls out of the difference, which leaves that of the clipped latents."""
    mechanism = kind(3.0, 1e-9)
    left, right = (mechanism(latents, noise=NoiseSource.from_seed(1)).double() for latents in adversarial_pairs(dims))
    distances = torch.linalg.vector_norm(left - right, ord=order, dim=1)
    assert distances.max().item() <= mechanism.sensitivity == 6.0
    assert distances.max().item() == pytest.approx(6.0, rel=2e-5)


def test_the_privacy_loss_of_laplace_noise_is_at_most_its_epsilon_and_reaches_it():
    """log p(out | z) - log p(out | z') over drawn outputs and pairs: |out - z'|_1 - |out - z|_1, over b."""
    mechanism = LaplaceMechanism.calibrated(3.0, 1.5, 1e-5)
    silent = LaplaceMechanism(3.0, 1e-9)
    left, right = (silent(latents, noise=NoiseSource.from_seed(2)).double() for latents in adversarial_pairs(16))
    losses = []
    for seed in range(20):
        out = mechanism(adversarial_pairs(16)[0], noise=NoiseSource.from_seed(seed)).double()
        losses.append(((out - right).abs() - (out - left).abs()).sum(dim=1) / mechanism.noise_scale)
    assert torch.cat(losses).max().item() <= 1.5
    assert torch.cat(losses).max().item() == pytest.approx(1.5, rel=1e-4)


def test_what_comes_out_is_the_clipped_latent_plus_noise_of_its_own():
    latents = torch.tensor([[30.0, 40.0], [0.3, 0.4]]).repeat(20_000, 1)
    out = GaussianMechanism(1.0, 2.0)(latents, noise=NoiseSource.from_seed(1))
    centre = torch.tensor([[0.6, 0.8], [0.3, 0.4]]).repeat(20_000, 1)
    assert kstest(((out - centre) / 2.0).flatten().numpy(), "norm").pvalue > FALSE_ALARM


def test_what_comes_out_of_laplace_is_the_l1_clipped_latent_plus_laplace_noise():
    latents = torch.tensor([[30.0, -50.0], [0.3, 0.4]]).repeat(20_000, 1)
    out = LaplaceMechanism(1.0, 2.0)(latents, noise=NoiseSource.from_seed(1))
    centre = torch.tensor([[0.375, -0.625], [0.3, 0.4]]).repeat(20_000, 1)
    noise = ((out - centre) / 2.0).numpy()
    assert kstest(noise.flatten(), "laplace").pvalue > FALSE_ALARM
    assert abs(np.corrcoef(noise.T)[0, 1]) < 4 / math.sqrt(len(noise))


@pytest.mark.parametrize("mechanism", [each for each in CALIBRATED if each.name != "privunit"])  # see test_privunit
def test_a_records_release_ignores_its_batch(mechanism):
    latents = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)) * 5
    other = latents.clone()
    other[1:] = torch.tensor(1e25)
    other[2] = torch.tensor(math.nan)
    alone = mechanism(latents[:1], noise=NoiseSource.from_seed(1))
    for batch in (latents, other):
        assert torch.equal(mechanism(batch, noise=NoiseSource.from_seed(1))[:1], alone)


@pytest.mark.parametrize("mechanism", [GaussianMechanism(1e6, 0.0), LaplaceMechanism(1e6, 0.0), NoMechanism()])
def test_no_noise_and_a_wide_clip_give_the_latent_back(mechanism):
    latents = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mechanism(latents, noise=NoiseSource.from_seed(1)), latents)


@pytest.mark.parametrize("kind", [GaussianMechanism, LaplaceMechanism])
def test_a_wide_clip_and_much_noise_leave_the_noise_alone(kind):
    latents = torch.full((50_000, 1), math.nan)
    mechanism = kind(1.0, 7.0)
    out = mechanism(latents, noise=NoiseSource.from_seed(3))
    assert out.var().item() == pytest.approx(mechanism.noise_variance, rel=0.05)
    assert mechanism.parameters()["noise_std"] ** 2 == pytest.approx(mechanism.noise_variance)


@EVERY
def test_a_mechanism_and_its_event_give_each_other(mechanism):
    assert mechanism_of(mechanism.name, mechanism.event()) == mechanism
    assert mechanism.event().stage == "release"


def test_without_a_mechanism_nothing_is_protected_and_the_parameters_say_so():
    mechanism = NoMechanism.calibrated(4.0, 1.0, 1e-5)
    assert epsilon_of([mechanism.event()], 1e-5) == math.inf
    assert set(mechanism.parameters().values()) == {None}


GAUSSIAN = LatentGaussian(stage="release", clip_norm=1.0, noise_std=2.0)
GRID = GridGaussianMechanism(1.0, 2.0).event()
LAPLACE = LatentLaplace(stage="release", clip_norm=1.0, noise_scale=2.0)


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("gaussian", LAPLACE),
        ("gaussian", RELEASED_RECORDS),
        ("laplace", GAUSSIAN),
        ("laplace", RELEASED_RECORDS),
        ("none", GAUSSIAN),
        ("none", LAPLACE),
        ("none", Unprotected(stage="release", what="nothing to see")),
        ("none", RELEASED_RECORDS.model_copy(update={"stage": "flow"})),
        ("laplace", LAPLACE.model_copy(update={"stage": "flow"})),
        ("gaussian", GRID),
        ("grid-gaussian", GAUSSIAN),
        ("grid-gaussian", GRID.model_copy(update={"stage": "flow"})),
        ("grid-gaussian", GRID.model_copy(update={"grid": 2.0**-10})),
    ],
)
def test_an_event_of_another_mechanism_is_refused(name, event):
    with pytest.raises(ConfigError, match="A release's event is that of its mechanism"):
        mechanism_of(name, event)


def test_an_unknown_mechanism_is_named():
    with pytest.raises(ConfigError, match="Choose one of: gaussian, grid-gaussian, laplace, none"):
        mechanism_type("gauss")

"""PrivUnit: the density that it says, from draws that never saw the record."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ks_2samp, kstest

from cadp_fl.privacy.mechanisms import MECHANISMS, PrivUnitMechanism, mechanism_of
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.shuffling import best_threshold, gain_of, mass_beyond


def mechanism(epsilon, **fields):
    return PrivUnitMechanism(epsilon, best_threshold(epsilon), **fields)


def released(epsilon, latents, seed=1):
    return mechanism(epsilon)(latents, noise=NoiseSource.from_seed(seed))


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 5.0])
def test_a_latent_lies_on_its_records_side_as_often_as_the_densities_say(epsilon):
    count, q = 40_000, mass_beyond(best_threshold(epsilon))
    u = torch.tensor([3.0, -4.0, 0.0, 12.0])
    v = released(epsilon, u.repeat(count, 1))
    along = (v @ (u / u.norm())).numpy()
    inside = along >= best_threshold(epsilon)
    p = q * math.exp(epsilon) / (q * math.exp(epsilon) + 1 - q)
    assert binomtest(int(inside.sum()), count, p).pvalue > 1e-6
    assert along.mean() == pytest.approx(gain_of(best_threshold(epsilon), epsilon), abs=6 / math.sqrt(count))
    across = (v @ (torch.tensor([4.0, 3.0, 0.0, 0.0]) / 5)).numpy()
    assert kstest(across, "norm").pvalue > 1e-6


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_no_half_space_tells_two_records_apart_by_more_than_epsilon(epsilon):
    count = 60_000
    u = torch.eye(3)[:1].repeat(count, 1)
    ours, theirs = (released(epsilon, sign * u, seed) for sign, seed in ((1.0, 1), (-1.0, 2)))
    counts = [int((v[:, 0] >= best_threshold(epsilon)).sum()) for v in (ours, theirs)]
    ratio = math.log(counts[0] / counts[1])
    assert ratio == pytest.approx(epsilon, abs=6 / math.sqrt(min(counts)))


@pytest.mark.parametrize(("epsilon", "dims"), [(1.0, 2), (4.0, 3), (6.0, 16)])
def test_the_moments_of_a_released_latent_are_those_that_shrinkage_is_made_of(epsilon, dims):
    z = torch.randn(20_000, dims, generator=torch.Generator().manual_seed(5))
    v, moments = released(epsilon, z), mechanism(epsilon).clipped_normal(dims)
    assert float(v.square().mean()) == pytest.approx(moments.power, rel=0.02)
    assert float((z * v).mean()) == pytest.approx(moments.overlap, rel=0.03)
    assert np.abs(np.corrcoef(v.T.numpy()) - np.eye(dims)).max() < 0.04
    assert v.mean(dim=0).abs().max() < 0.05


@pytest.mark.parametrize("latent", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0], [-math.inf, math.nan]])
def test_a_latent_without_a_direction_gets_a_draw_from_the_prior(latent):
    v = released(5.0, torch.tensor(latent).repeat(20_000, 1))
    assert torch.isfinite(v).all()
    for column in v.T.numpy():
        assert kstest(column, "norm").pvalue > 1e-6


@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1e30, 3e38])
def test_only_the_direction_of_a_latent_matters(scale):
    z = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]).repeat(50, 1)
    assert torch.equal(released(3.0, z * scale), released(3.0, z))


def test_what_is_released_is_a_draw_that_never_saw_the_record():
    """Of one stream, two records get the same first draw, or one of them a later one: no bit of it is computed."""
    first = [released(0.5, torch.tensor([[1.0, 0.0]]), seed) for seed in range(300)]
    second = [released(0.5, torch.tensor([[-0.6, 0.8]]), seed) for seed in range(300)]
    prior = [released(0.5, torch.zeros(1, 2), seed) for seed in range(300)]
    kept = sum(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert 150 < kept < 300
    assert sum(torch.equal(a, b) for a, b in zip(first, prior, strict=True)) > 150


def test_how_many_draws_others_take_says_nothing_of_a_record():
    """Records share a stream, and each takes draws until one is kept: whose they are is known before they are drawn."""
    u = torch.tensor([[0.6, -0.8]])
    far, near = (torch.cat([u, other.repeat(3, 1)]) for other in (-u, torch.zeros(1, 2)))
    first = [
        np.concatenate([released(3.0, batch, seed + start)[:1] @ u.T for seed in range(3000)]).ravel()
        for batch, start in ((far, 0), (near, 10_000))
    ]
    assert ks_2samp(*first).pvalue > 1e-6


def test_a_release_is_the_same_whatever_the_precision_of_the_latents():
    z = torch.randn(400, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    one, other = released(3.0, z), released(3.0, z.float())
    assert (one.float() - other).abs().amax(dim=1).eq(0).float().mean() > 0.99  # a direction may be at a border
    assert (one.dtype, other.dtype) == (torch.float64, torch.float32)


def test_it_takes_as_many_draws_as_it_says():
    for epsilon, draws in ((3.0, 6.0), (8.0, 300.0)):
        assert mechanism(epsilon).draws == pytest.approx(draws, rel=0.15)


def test_its_event_gives_it_back():
    made = mechanism(3.0, label_epsilon=2.0, classes=10, shuffled_units=500, records_per_unit=2)
    assert mechanism_of("privunit", made.event()) == made
    assert MECHANISMS["privunit"] is PrivUnitMechanism
    assert (made.labels.epsilon, made.labels.records_per_unit) == (2.0, 2)
    assert mechanism(3.0).labels is None

"""Moments of a clipped normal against Monte Carlo of its own: the clip itself, applied to drawn latents."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from cadp_fl.privacy.clipped_normal import ClippedNormal, clipped_normal_l1, clipped_normal_l2
from cadp_fl.privacy.clipping import clip_l1, clip_l2


@pytest.mark.parametrize(("clip", "moments"), [(clip_l1, clipped_normal_l1), (clip_l2, clipped_normal_l2)])
@pytest.mark.parametrize("dims", [1, 2, 3, 9, 64, 784])
@pytest.mark.parametrize("share", [0.2, 0.9, 1.1, 3.0])
def test_the_moments_are_those_of_latents_that_were_clipped(clip, moments, dims, share):
    """The radius is a share of a typical norm. A million values and more: errors of 0.003 are four deviations."""
    typical = dims * math.sqrt(2 / math.pi) if clip is clip_l1 else math.sqrt(dims)
    z = torch.randn(max(4000, 2_000_000 // dims), dims, generator=torch.Generator().manual_seed(dims))
    clipped = clip(z, share * typical)
    expected = moments(share * typical, dims)
    assert expected.power == pytest.approx(clipped.square().mean().item(), abs=4e-3)
    assert expected.overlap == pytest.approx((z * clipped).mean().item(), abs=4e-3)


@pytest.mark.parametrize("clip_norm", [0.3, 1.0, 2.5])
def test_in_one_dimension_both_clips_are_the_same_and_quadrature_agrees(clip_norm):
    power = quad(lambda z: min(abs(z), clip_norm) ** 2 * norm.pdf(z), -12, 12, points=[-clip_norm, clip_norm])[0]
    overlap = quad(lambda z: abs(z) * min(abs(z), clip_norm) * norm.pdf(z), -12, 12, points=[-clip_norm, clip_norm])[0]
    for moments in (clipped_normal_l1(clip_norm, 1), clipped_normal_l2(clip_norm, 1)):
        assert moments.power == pytest.approx(power, abs=1e-9)
        assert moments.overlap == pytest.approx(overlap, abs=1e-9)


@pytest.mark.parametrize("dims", [1, 5, 16384])
def test_a_wide_clip_leaves_everything_and_a_narrow_one_nothing(dims):
    for moments in (clipped_normal_l1, clipped_normal_l2):
        wide, narrow = moments(1e6, dims), moments(1e-6, dims)
        assert (wide.power, wide.overlap) == pytest.approx((1.0, 1.0), abs=1e-9)
        assert max(narrow.power, narrow.overlap) < 1e-5


def test_the_same_numbers_always_and_no_global_generator_is_touched():
    state = np.random.get_state()[1].copy()
    clipped_normal_l1.cache_clear()
    first = clipped_normal_l1(5.0, 16)
    clipped_normal_l1.cache_clear()
    assert clipped_normal_l1(5.0, 16) == first
    assert isinstance(first, ClippedNormal)
    assert np.array_equal(np.random.get_state()[1], state)

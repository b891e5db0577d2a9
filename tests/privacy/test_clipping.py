import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cadp_fl.errors import PrivacyError
from cadp_fl.privacy.clipping import clip_l1, clip_l2

BOTH = pytest.mark.parametrize(("clip", "order"), [(clip_l1, 1), (clip_l2, 2)])


@BOTH
@given(
    scale=st.floats(1e-30, 3e37),
    clip_norm=st.floats(1e-6, 1e6),
    dims=st.integers(1, 200),
    seed=st.integers(0, 10**6),
)
def test_a_clipped_latent_is_never_outside_of_the_ball(clip, order, scale, clip_norm, dims, seed):
    latents = torch.randn(8, dims, generator=torch.Generator().manual_seed(seed)) * scale
    norms = torch.linalg.vector_norm(clip(latents, clip_norm).double(), ord=order, dim=1)
    assert (norms <= clip_norm).all()


def adversarial_latents(dims):
    """Return latents (records, dims) made to round badly: equal entries, a spike, wide ranges, subnormals."""
    generator = torch.Generator().manual_seed(dims)
    equal = torch.linspace(0.9, 1.1, 16)[:, None].expand(16, dims) * (1 + 2**-23)
    spike = torch.full((1, dims), 1e-3).index_fill(1, torch.tensor([0]), 1e25)
    wide = torch.exp(torch.rand(4, dims, generator=generator) * 120 - 60) * torch.randn(4, dims, generator=generator)
    subnormal = torch.full((1, dims), 3e-39).index_fill(1, torch.tensor([0]), 7.0)
    return torch.cat([equal, spike, wide, subnormal, -equal])


@BOTH
@pytest.mark.parametrize("dims", [1, 3, 784, 16384])
@pytest.mark.parametrize("clip_norm", [1e-6, 0.3, 1.0, 7.7, 1e6])
def test_rounding_leaves_no_adversarial_latent_outside_of_the_ball(clip, order, dims, clip_norm):
    """Norms summed exactly, in Python's own arithmetic; and the margin is not wider than it has to be."""
    clipped = clip(adversarial_latents(dims), clip_norm)
    for latent in clipped[:: max(1, dims // 200)].double().tolist():
        norm = math.fsum(abs(entry) for entry in latent) if order == 1 else math.sqrt(math.fsum(e * e for e in latent))
        assert norm <= clip_norm
    longest = torch.linalg.vector_norm(clipped.double(), ord=order, dim=1).max().item()
    assert longest == pytest.approx(clip_norm, rel=2e-5) or clip_norm == 1e6


@BOTH
def test_two_clipped_latents_are_within_two_c_and_opposite_ones_that_far(clip, order):
    corners = torch.tensor([[1e3, 0.0, 0.0], [-1e3, 0.0, 0.0], [0.0, 50.0, -50.0], [0.2, 0.1, 0.0], [9.0, 9.0, 9.0]])
    clipped = clip(torch.cat([corners, -corners]), 1.5).double()
    distances = torch.linalg.vector_norm(clipped[:, None] - clipped[None], ord=order, dim=2)
    assert distances.max().item() <= 3.0
    assert distances.max().item() == pytest.approx(3.0, rel=2e-5)


def test_a_latent_inside_of_the_ball_is_left_alone():
    latents = torch.tensor([[0.3, 0.4], [0.0, 0.0]])
    assert torch.equal(clip_l2(latents, 1.0), latents)


def test_clipping_keeps_the_direction():
    latents = torch.tensor([[30.0, 40.0]])
    torch.testing.assert_close(clip_l2(latents, 1.0), torch.tensor([[0.6, 0.8]]), rtol=2e-5, atol=0)


def test_an_l1_clip_bounds_the_sum_of_magnitudes():
    latents = torch.tensor([[30.0, -40.0], [0.3, 0.4]])
    torch.testing.assert_close(clip_l1(latents, 1.0), torch.tensor([[3 / 7, -4 / 7], [0.3, 0.4]]), rtol=2e-5, atol=0)


@BOTH
def test_clipping_a_record_ignores_its_batch(clip, order):
    latents = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * 10
    together = clip(latents, 2.0)
    alone = torch.cat([clip(latent[None], 2.0) for latent in latents])
    assert torch.equal(together, alone)


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_latent_that_is_not_finite_becomes_zero_and_spoils_no_other(clip, order, bad):
    latents = torch.tensor([[1.0, bad, 2.0], [0.1, 0.2, 0.3]])
    clipped = clip(latents, 1.0)
    assert torch.equal(clipped[0], torch.zeros(3))
    assert torch.equal(clipped[1], latents[1])


def test_a_latent_too_long_to_scale_in_float32_becomes_zero():
    """Its factor would be subnormal, and 1e-6 / 3e38 came out as 1.7 C."""
    assert torch.equal(clip_l2(torch.full((1, 4), 3e38), 1e-6), torch.zeros(1, 4))
    assert clip_l2(torch.full((1, 4), 1e29), 1e-6).norm().item() == pytest.approx(1e-6, rel=1e-4)


@BOTH
@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_a_clip_norm_is_positive(clip, order, clip_norm):
    with pytest.raises(PrivacyError, match="clip_norm must be positive"):
        clip(torch.ones(1, 2), clip_norm)

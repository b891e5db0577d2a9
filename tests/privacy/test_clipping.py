import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cadp_fl.errors import PrivacyError
from cadp_fl.privacy.clipping import clip_l2


@given(
    scale=st.floats(1e-30, 3e37),
    clip_norm=st.floats(1e-6, 1e6),
    dims=st.integers(1, 200),
    seed=st.integers(0, 10**6),
)
def test_a_clipped_latent_is_never_outside_of_the_ball(scale, clip_norm, dims, seed):
    latents = torch.randn(8, dims, generator=torch.Generator().manual_seed(seed)) * scale
    norms = torch.linalg.vector_norm(clip_l2(latents, clip_norm).double(), dim=1)
    assert (norms <= clip_norm).all()


def test_a_latent_inside_of_the_ball_is_left_alone():
    latents = torch.tensor([[0.3, 0.4], [0.0, 0.0]])
    assert torch.equal(clip_l2(latents, 1.0), latents)


def test_clipping_keeps_the_direction():
    latents = torch.tensor([[30.0, 40.0]])
    torch.testing.assert_close(clip_l2(latents, 1.0), torch.tensor([[0.6, 0.8]]), rtol=2e-5, atol=0)


def test_clipping_a_record_ignores_its_batch():
    latents = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) * 10
    together = clip_l2(latents, 2.0)
    alone = torch.cat([clip_l2(latent[None], 2.0) for latent in latents])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_latent_that_is_not_finite_becomes_zero_and_spoils_no_other(bad):
    latents = torch.tensor([[1.0, bad, 2.0], [0.1, 0.2, 0.3]])
    clipped = clip_l2(latents, 1.0)
    assert torch.equal(clipped[0], torch.zeros(3))
    assert torch.equal(clipped[1], latents[1])


def test_a_latent_too_long_to_scale_in_float32_becomes_zero():
    """Its factor would be subnormal, and 1e-6 / 3e38 came out as 1.7 C."""
    assert torch.equal(clip_l2(torch.full((1, 4), 3e38), 1e-6), torch.zeros(1, 4))
    assert clip_l2(torch.full((1, 4), 1e29), 1e-6).norm().item() == pytest.approx(1e-6, rel=1e-4)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_a_clip_norm_is_positive(clip_norm):
    with pytest.raises(PrivacyError, match="clip_norm must be positive"):
        clip_l2(torch.ones(1, 2), clip_norm)

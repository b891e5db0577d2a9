"""The front end of a warm-started flow, and the affine layer behind it."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from cadp_fl.config import FlowConfig
from cadp_fl.errors import ConfigError
from cadp_fl.flow.affine import ConditionalAffine
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.low_pass import LowPass, dct_matrix

SHAPE = (3, 8, 12)


def images(count=4, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("size", [1, 2, 7, 28])
def test_the_dct_is_orthogonal(size):
    matrix = dct_matrix(size, like=torch.zeros(1).double())
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double())


def test_the_lowest_frequencies_are_scipys():
    x = images()
    low, _ = LowPass(SHAPE, size=3, power=0.0, detail=1.0)(x)
    expected = dctn(x.numpy(), axes=(2, 3), norm="ortho")
    places = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (1, 2), (2, 1), (2, 2)]
    ordered = np.stack([expected[:, :, i, j] for i, j in places], axis=1)
    np.testing.assert_allclose(low.view(4, 9, 3).numpy(), ordered, atol=1e-12)


def test_a_power_weighs_down_higher_frequencies():
    x = images()
    plain, _ = LowPass(SHAPE, size=4, power=0.0, detail=1.0)(x)
    weighed, _ = LowPass(SHAPE, size=4, power=0.7, detail=1.0)(x)
    ratio = (weighed / plain).view(4, 16, 3)
    torch.testing.assert_close(ratio[:, -1], torch.full((4, 3), 7.0**-0.7).double())


def test_without_power_and_detail_it_keeps_every_norm():
    x = images()
    low, rest = LowPass(SHAPE, size=4, power=0.0, detail=1.0)(x)
    torch.testing.assert_close(torch.cat([low, rest], dim=1).norm(dim=1), x.flatten(1).norm(dim=1))


@pytest.mark.parametrize("size", [1, 5, 8])
def test_its_inverse_gives_the_image_back(size):
    front, x = LowPass(SHAPE, size=size, power=0.7, detail=0.02), images()
    torch.testing.assert_close(front.inverse(*front(x)), x)


def test_an_affine_layer_makes_a_class_of_known_moments_standard_normal():
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn(3, 4, 4, generator=generator).tril().double()
    means = torch.randn(3, 4, generator=generator).double()
    layer = ConditionalAffine(3, 4).double()
    with torch.no_grad():
        layer.mean.copy_(means)
        layer.whitening.copy_(torch.linalg.inv(factors))
        labels = torch.arange(3).repeat(2)
        u = torch.randn(6, 4, generator=generator).double()
        x = torch.stack([factors[y] @ each + means[y] for y, each in zip(labels, u, strict=True)])
        back, log_det = layer(x, condition_of(labels, 3))
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(log_det, -torch.linalg.slogdet(factors).logabsdet[labels])


def test_without_details_samples_hold_low_frequencies_alone():
    config = FlowConfig(
        warm_start="moments", low_pass={"size": 3, "power": 0.0, "detail": 1e-6}, dense={"blocks": 2, "width": 8}
    )
    flow = ConditionalFlow(config, (1, 8, 8), 2, seed=0)
    x = flow.sample(condition_of(torch.tensor([0, 1]), 2), generator=torch.Generator().manual_seed(2))
    coefficients = dctn(x.detach().numpy(), axes=(2, 3), norm="ortho")
    assert np.abs(coefficients[:, :, :3, :3]).min() > 1e-4
    coefficients[:, :, :3, :3] = 0
    assert np.abs(coefficients).max() < 1e-4


def test_a_front_end_larger_than_the_image_is_refused():
    config = FlowConfig(warm_start="moments", low_pass={"size": 9, "power": 0.0})
    with pytest.raises(ConfigError, match=r"flow.low_pass.size is at most"):
        ConditionalFlow(config, (1, 8, 8), 2, seed=0)

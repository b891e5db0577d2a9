"""The front end of a warm-started flow: what is known of an image, bounded, and nothing of it lost."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from cadp_fl.config import FrontEndConfig
from cadp_fl.features.dct import LowFrequencies, dct_matrix
from cadp_fl.features.front_end import ImageFrontEnd
from cadp_fl.features.gradients import OrientedGradients

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 16, 20)]


def images(shape, count=5, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("size", [1, 2, 7, 28])
def test_the_dct_is_orthogonal(size):
    matrix = dct_matrix(size, like=torch.zeros(1).double())
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double())


def test_the_lowest_frequencies_are_scipys():
    x = images((3, 8, 12))
    low, _ = LowFrequencies((3, 8, 12), 3).split(x)
    expected = dctn(x.numpy(), axes=(2, 3), norm="ortho")
    places = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (1, 2), (2, 1), (2, 2)]
    ordered = np.stack([expected[:, :, i, j] for i, j in places], axis=1)
    np.testing.assert_allclose(low.view(5, 9, 3).numpy(), ordered, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_splitting_frequencies_keeps_norms_and_joins_again(shape):
    x, frequencies = images(shape), LowFrequencies(shape, 4)
    low, others = frequencies.split(x)
    torch.testing.assert_close(torch.cat([low, others], dim=1).norm(dim=1), x.flatten(1).norm(dim=1))
    torch.testing.assert_close(frequencies.join(low, others), x)


@pytest.mark.parametrize("descriptor", ["oriented-gradients", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_v_has_a_norm_of_at_most_one_and_the_image_comes_back(shape, descriptor):
    front = ImageFrontEnd(FrontEndConfig(descriptor=descriptor), shape)
    x = torch.cat([images(shape), torch.zeros(1, *shape), torch.ones(1, *shape), 1e6 * images(shape, 1)])
    v, contrast, rest = front(x)
    assert v.shape == (len(x), front.dims)
    assert front.frequencies.shape == (front.dims,)
    assert v.norm(dim=1).max() <= 1 + 1e-12
    assert contrast.min() >= 1
    torch.testing.assert_close(front.record(v, contrast, rest), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_v_of_a_record_ignores_the_others(shape):
    front, x = ImageFrontEnd(FrontEndConfig(), shape), images(shape)
    together = front(x)[0]
    others = torch.cat([x[:1], 1e3 * x[1:]])
    assert torch.equal(front(others)[0][0], together[0])
    for index in range(len(x)):
        torch.testing.assert_close(front(x[index : index + 1])[0][0], together[index], rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_descriptor_sees_edges_and_no_brightness(shape):
    descriptor, x = OrientedGradients(shape), images(shape)
    torch.testing.assert_close(descriptor(x + 0.25), descriptor(x))
    torch.testing.assert_close(descriptor(3 * x), descriptor(x))
    assert descriptor(torch.full_like(x, 0.5)).abs().max() == 0
    assert descriptor(x).shape == (len(x), descriptor.dims)
    assert descriptor(x).norm(dim=1).max() <= 1 + 1e-12


def test_a_turned_edge_has_the_descriptor_of_the_turned_image():
    """A quarter turn of the image turns every orientation by a quarter turn too, and the cells with it."""
    shape, stripes = (1, 28, 28), torch.zeros(1, 1, 28, 28).double()
    stripes[:, :, :, ::4] = 1
    upright, lying = (OrientedGradients(shape)(each) for each in (stripes, stripes.transpose(2, 3)))
    assert upright.norm() == pytest.approx(lying.norm().item(), abs=1e-9)
    assert (upright - lying).norm() > 0.5

"""Coordinates around a centre: in the unit ball whatever the record and the centre, and a record comes back whole."""

import pytest
import torch

from cadp_fl.config import FrontEndConfig
from cadp_fl.features.coordinates import IMAGE_CONTRAST, IMAGE_CONTRAST_STD, SPREAD_STD, Coordinates

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 16, 20)]


def images(shape, count=6, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)).double()


def coordinates(shape, *, centre=0.0, radius=0.3, spread=0.8, descriptor="none"):
    """Return coordinates seen from a centre of some distance from zero."""
    made = Coordinates(FrontEndConfig(descriptor=descriptor, radius=radius), shape).double()
    with torch.no_grad():
        made.centre.copy_(centre * torch.nn.functional.normalize(torch.arange(1.0, made.dims + 1), dim=0))
        made.spread.fill_(spread)
    return made


@pytest.mark.parametrize("radius", [1e-3, 0.3, 2.0])
@pytest.mark.parametrize("descriptor", ["oriented-gradients", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_u_is_in_the_unit_ball_and_v_is_as_far_from_the_centre_as_it_says(shape, descriptor, radius):
    made, x = coordinates(shape, centre=0.5, radius=radius, descriptor=descriptor), images(shape)
    x = torch.cat([x, torch.zeros_like(x[:1]), 1e3 * x[:1]])
    u, others = made(x)
    assert u.shape == (len(x), made.dims)
    assert others.shape == (len(x), made.other_dims)
    assert u.norm(dim=1).max() <= 1 + 1e-12
    apart = made.front(x)[0] - made.centre
    beyond = apart.norm(dim=1) > radius
    torch.testing.assert_close(u[~beyond], apart[~beyond] / radius)
    torch.testing.assert_close(u[beyond], torch.nn.functional.normalize(apart[beyond], dim=1))


@pytest.mark.parametrize("radius", [1e-3, 0.3, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_record_inside_and_outside_of_the_ball_comes_back_from_its_coordinates(shape, radius):
    made, x = coordinates(shape, centre=0.5, radius=radius), images(shape)
    x = torch.cat([x, torch.zeros_like(x[:1]), torch.ones_like(x[:1]), 1e3 * x[:1]])
    contrast = (made.front(x)[0] - made.centre).norm(dim=1)
    assert (contrast > 1e-3).all()
    torch.testing.assert_close(made.inverse(*made(x)), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_descriptor_stands_beside_the_image_and_takes_nothing_from_it(shape):
    made, x = coordinates(shape, centre=0.3, descriptor="oriented-gradients"), images(shape)
    torch.testing.assert_close(made.inverse(*made(x)), x)
    u, others = made(x)
    u[:, made.front.record_dims :] = 0
    torch.testing.assert_close(made.inverse(u, others), x)


def test_both_contrasts_are_logarithms_in_units_of_their_spread_under_the_flow():
    made, x = coordinates((1, 8, 8), centre=0.5, spread=0.8), images((1, 8, 8))
    v, image_contrast, rest = made.front(x)
    _, others = made(x)
    torch.testing.assert_close(others[:, :-2], rest)
    contrast = (v - made.centre).norm(dim=1).clamp_min(0.3)
    torch.testing.assert_close(others[:, -2], (contrast / 0.8).log() / SPREAD_STD)
    torch.testing.assert_close(others[:, -1], (image_contrast / IMAGE_CONTRAST).log() / IMAGE_CONTRAST_STD)


@pytest.mark.parametrize("centre", [10.0, 1e6, 1e18])
def test_a_centre_far_from_all_records_lets_none_out_of_the_ball(centre):
    u, _ = coordinates((1, 8, 8), centre=centre)(images((1, 8, 8)))
    assert u.norm(dim=1).max() <= 1 + 1e-12


def test_a_broken_record_leaves_the_others_alone():
    made, x = coordinates((1, 8, 8), centre=0.5), images((1, 8, 8))
    broken = x.clone()
    broken[0] = float("nan")
    for ours, theirs in zip(made(x), made(broken), strict=True):
        assert torch.equal(ours[1:], theirs[1:])


def test_a_centre_that_is_not_finite_makes_no_coordinate_that_looks_like_one():
    made = coordinates((1, 8, 8))
    with torch.no_grad():
        made.centre.fill_(float("nan"))
    assert made(images((1, 8, 8)))[0].isnan().all()

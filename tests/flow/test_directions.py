"""Directions of a flow: orthogonal, those that move the image most first, from the flow alone."""

import numpy as np
import pytest
import torch

from cadp_fl.config import FlowConfig
from cadp_fl.errors import ExchangeError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.directions import Directions, leading_directions

CLASSES, SHAPE = 3, (1, 8, 8)


def affine_flow(seed=0):
    flow = ConditionalFlow(FlowConfig(warm_start="moments", dense={"blocks": 0}), SHAPE, CLASSES, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        noise = torch.randn(flow.affine.whitening.shape, generator=generator)
        flow.affine.whitening.copy_(3 * torch.eye(flow.coarse_dims) + noise.tril())
        flow.affine.whitening.diagonal(dim1=1, dim2=2).abs_().add_(1.0)
    return flow


def convolutional_flow():
    flow = ConditionalFlow(
        FlowConfig(scales=[{"blocks": 2, "channels": 8}], dense={"blocks": 1, "width": 16}), SHAPE, CLASSES, seed=0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            if parameter.is_floating_point() and parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return flow.eval()


FLOWS = [affine_flow, convolutional_flow]


def moved(flow, directions, column, draws=64):
    """Return how far the image moves on average along a direction of the turned latents."""
    generator = torch.Generator().manual_seed(7)
    t = torch.randn(draws, flow.dims, generator=generator, dtype=torch.float64)
    condition = condition_of(torch.arange(draws) % CLASSES, CLASSES).double()
    step = torch.zeros(flow.dims, dtype=torch.float64)
    step[column] = 1e-3
    exact = flow.double()
    with torch.no_grad():
        images = [exact.decode(directions.turn_back(t + sign * step), condition) for sign in (1, -1)]
    return float((images[0] - images[1]).flatten(1).norm(dim=1).square().mean().sqrt()) / 2e-3


@pytest.mark.parametrize("make", FLOWS)
def test_they_are_orthogonal_and_turning_is_undone(make):
    flow = make()
    found = leading_directions(flow)
    np.testing.assert_allclose(found.matrix.T @ found.matrix, np.eye(flow.coarse_dims), atol=1e-9)
    z = torch.randn(20, flow.dims, dtype=torch.float64)
    turned = found.turn(z)
    torch.testing.assert_close(found.turn_back(turned), z)
    torch.testing.assert_close(turned.norm(dim=1), z.norm(dim=1))
    assert torch.equal(turned[:, flow.coarse_dims :], z[:, flow.coarse_dims :])


@pytest.mark.parametrize("make", FLOWS)
def test_the_first_move_the_image_most(make):
    flow = make()
    found = leading_directions(flow)
    sizes = [moved(flow, found, column) for column in (0, 3, 8, 15)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.3 * sizes[-1]


def test_of_an_affine_flow_no_other_direction_moves_the_image_as_much():
    flow = affine_flow()
    found, generator = leading_directions(flow), np.random.default_rng(0)
    first = moved(flow, found, 0)
    for _ in range(20):
        random = np.linalg.qr(generator.normal(size=(flow.coarse_dims,) * 2))[0]
        assert moved(flow, Directions(random), 0) < first


@pytest.mark.parametrize("make", FLOWS)
def test_they_depend_on_the_flow_alone(make):
    one = leading_directions(make())
    torch.manual_seed(99)
    assert leading_directions(make()).sha256 == one.sha256
    assert Directions(one.matrix[:, ::-1].copy()).sha256 != one.sha256


def test_what_comes_with_a_request_is_checked():
    flow = affine_flow()
    found = leading_directions(flow).matrix
    assert np.array_equal(Directions.of(found, flow).matrix, found)
    for broken in (found.astype(np.float32), found[:2], found[:, :3], found[None], 2 * found, found * np.nan):
        with pytest.raises(ExchangeError, match="an orthogonal matrix"):
            Directions.of(broken, flow)

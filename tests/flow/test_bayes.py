"""argmax_y p(x | y): Bayes' rule of the flow itself, in closed form where the flow is affine."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal

from cadp_fl.classifier.training import as_input
from cadp_fl.config import FlowConfig
from cadp_fl.data.codec import Pixels
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.flow.bayes import FlowBayes
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of

SCHEMA = Schema(name="x", shape=(1, 8, 8), classes=("a", "b", "c"), levels=17)
COLD = FlowConfig(scales=[{"blocks": 2, "channels": 4}], dense={"blocks": 2, "width": 8})
WARM = FlowConfig(warm_start="moments", front_end={"size": 3}, dense={"blocks": 2, "width": 8})


def images(count=20, levels=17, shape=(1, 8, 8)):
    """Return uint8 images of some grey levels, stored as the library stores them."""
    values = torch.randint(0, levels, (count, *shape), generator=torch.Generator().manual_seed(0))
    return torch.round(values * (255 / (levels - 1))).to(torch.uint8)


def stirred(flow, scale=0.1):
    """Return a flow whose blocks do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, each in flow.named_parameters():
            if each.requires_grad and not name.startswith(("coordinates", "affine")):
                each.add_(scale * torch.randn(each.shape, generator=generator))
    return flow


def double(x):
    """Return what `as_input` does, in float64."""
    return x.double() / 255 - 0.5


def middles(x, levels=17):
    return Pixels(levels).to_unit(x).double()


def warm(blocks=2):
    """Return a warm-started flow with an affine layer of its own for every class."""
    config = WARM.model_copy(update={"dense": WARM.dense.model_copy(update={"blocks": blocks})})
    flow, generator = ConditionalFlow(config, SCHEMA.shape, 3, seed=0), torch.Generator().manual_seed(2)
    with torch.no_grad():
        flow.coordinates.centre.fill_(0.05)
        flow.affine.mean.copy_(0.3 * torch.randn(flow.affine.mean.shape, generator=generator))
        flow.affine.whitening.add_(0.1 * torch.randn(flow.affine.whitening.shape, generator=generator).tril())
    return flow


def each_class(count):
    return [condition_of(torch.full((count,), y), 3, torch.float64) for y in range(3)]


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_of_a_cold_flow_it_is_the_log_probability_of_every_class(levels):
    flow, x = stirred(ConditionalFlow(COLD, SCHEMA.shape, 3, seed=0)).double(), images(levels=levels)
    expected = torch.stack([flow.log_prob(middles(x, levels), each) for each in each_class(len(x))], dim=1)
    found = FlowBayes(flow, codec=Pixels(levels))(double(x))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))


@pytest.mark.parametrize("blocks", [0, 2])
def test_of_an_affine_flow_it_is_the_normal_densities_in_closed_form(blocks):
    flow, x = warm(blocks).double(), images()
    u = flow.coordinates(middles(x))[0].detach()
    found = FlowBayes(flow, codec=Pixels(17))(double(x)).detach()
    for y in range(3):
        whitening = flow.affine.whitening[y].detach().tril()
        normal = multivariate_normal(flow.affine.mean[y].detach(), torch.linalg.inv(whitening.T @ whitening))
        constant = flow.coarse_dims * math.log(2 * math.pi) / 2
        expected = torch.from_numpy(normal.logpdf(u)) + constant
        torch.testing.assert_close(found[:, y], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ridge", [0.5, 1.5])
def test_a_ridge_widens_the_normal_densities_of_the_affine_layer_below_any_blocks(ridge):
    flow, x = warm(0).double(), images()
    u = flow.coordinates(middles(x))[0].detach()
    inverses = [torch.linalg.inv(whitening.detach().tril()) for whitening in flow.affine.whitening]
    covariances = [inverse @ inverse.T for inverse in inverses]
    level = torch.stack(covariances).diagonal(dim1=1, dim2=2).mean() * torch.eye(flow.coarse_dims).double()
    found = FlowBayes(flow, codec=Pixels(17), ridge=ridge)(double(x)).detach()
    for y in range(3):
        normal = multivariate_normal(flow.affine.mean[y].detach(), covariances[y] + ridge * level)
        expected = torch.from_numpy(normal.logpdf(u)) + flow.coarse_dims * math.log(2 * math.pi) / 2
        torch.testing.assert_close(found[:, y], expected, rtol=0, atol=1e-5)
    above = warm().double()  # its blocks are the identity, but for permutations
    with torch.no_grad():
        above.load_state_dict(flow.state_dict(), strict=False)
    torch.testing.assert_close(
        FlowBayes(above, codec=Pixels(17), ridge=ridge)(double(x)).detach(), found, rtol=0, atol=1e-9
    )
    cold = ConditionalFlow(COLD, SCHEMA.shape, 3, seed=0).double()
    found, plain = (FlowBayes(cold, codec=Pixels(17), ridge=each)(double(x)) for each in (ridge, 0.0))
    assert torch.equal(found, plain)


def test_of_a_warm_flow_it_leaves_out_what_no_class_has_a_part_in():
    """log p(x | y) of the whole record differs from it by one number for all classes of that record."""
    flow, x = stirred(warm()).double(), images()
    whole = torch.stack([flow.log_prob(middles(x), each) for each in each_class(len(x))], dim=1)
    found = FlowBayes(flow, codec=Pixels(17))(double(x))
    apart = whole - found
    torch.testing.assert_close(apart, apart[:, :1].expand(-1, 3), rtol=0, atol=1e-6)
    assert (found.std(dim=1) > 1e-3).all(), "it tells classes apart"


def test_one_shift_of_all_classes_changes_no_decision_and_no_score():
    """Densities that differ from a record's by one number, as those of its others do, are the same classifier."""
    rule, x = FlowBayes(stirred(warm()), codec=Pixels(17)), images()
    logits = rule(as_input(x))
    shifted = logits + torch.linspace(-500, 500, len(x))[:, None]
    assert torch.equal(shifted.argmax(dim=1), logits.argmax(dim=1))
    torch.testing.assert_close(shifted.softmax(dim=1), logits.softmax(dim=1), rtol=1e-3, atol=1e-4)


def test_the_score_of_a_record_ignores_the_others():
    rule, x = FlowBayes(stirred(warm()), codec=Pixels(17)), images()
    alone = torch.cat([rule(as_input(x[row : row + 1])) for row in range(len(x))])
    torch.testing.assert_close(rule(as_input(x)), alone, rtol=1e-4, atol=1e-3)


def test_records_with_attributes_are_refused():
    schema = SCHEMA.model_copy(update={"attributes": ("hat", "young")})
    with pytest.raises(ConfigError, match="These records have 2 attributes; leave the attributes out"):
        FlowBayes.of(WARM, schema, seed=0)


@pytest.mark.parametrize("config", [COLD, WARM])
def test_a_rule_of_a_config_is_that_of_the_flow_which_the_config_builds(config):
    rule = FlowBayes.of(config, SCHEMA, seed=3)
    flow = ConditionalFlow(config, SCHEMA.shape, 3, seed=3)
    torch.testing.assert_close(rule(as_input(images())), FlowBayes(flow, codec=Pixels(17))(as_input(images())))


def test_weights_that_are_no_whitening_give_no_error():
    affine = FlowConfig(warm_start="moments", dense={"blocks": 0})
    flow = ConditionalFlow(affine, (1, 8, 8), 3, seed=0)
    with torch.no_grad():
        flow.affine.whitening.zero_()
    assert FlowBayes(flow, codec=Pixels(17), ridge=1.0)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)

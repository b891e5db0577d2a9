"""Flows under DP-SGD: gradients against autograd on one record at a time, and what is refused by name."""

import FrEIA.framework as ff
import FrEIA.modules as fm
import pytest
import torch
from torch import nn

from cadp_fl.config import FlowConfig
from cadp_fl.errors import PrivacyError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.per_record import PER_RECORD_LAYERS
from cadp_fl.privacy.clipping import CLIP_MARGIN
from cadp_fl.privacy.dpsgd import check_layers, opacus_gradients, train_dp_sgd
from cadp_fl.privacy.events import PoissonGaussian
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.per_record import ClippedGradients

SHAPE, CLASSES = (1, 8, 8), 3


def flow(**architecture):
    scales = [{"blocks": 2, "channels": 6, "split": 0.5}, {"blocks": 2, "channels": 10}]
    config = FlowConfig.model_validate({"scales": scales, "dense": {"blocks": 2, "width": 12}} | architecture)
    made = ConditionalFlow(config, SHAPE, CLASSES, seed=0)
    torch.manual_seed(1)
    for parameter in made.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)  # a new block is the identity, whose first layers have no gradient
    return made


def records(count=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(count, *SHAPE, generator=generator)
    return images.to(dtype), condition_of(torch.arange(count) % CLASSES, CLASSES).to(dtype)


def nats(images, conditions):
    return lambda model, chosen: -model.log_prob(images[chosen], conditions[chosen])


def trained(model):
    return [each for each in model.parameters() if each.requires_grad]


def one_at_a_time(model, loss, count):
    """Return every record's gradient, float64 (count, weights)."""
    rows = []
    for record in range(count):
        gradients = torch.autograd.grad(loss(model, torch.tensor([record])).sum(), trained(model))
        rows.append(torch.cat([each.flatten() for each in gradients]).double())
    return torch.stack(rows)


def clipped_sum(model, loss, clip_norm, present):
    with ClippedGradients(model, clip_norm) as gradients:
        gradients.add(lambda: loss(model, torch.arange(present.numel())), present)
        return torch.cat([each.flatten() for each in gradients.sums])


def check_against_oracle(model, loss, count, rtol):
    each = one_at_a_time(model, loss, count)
    norms = each.norm(dim=1, keepdim=True)
    for clip_norm in (norms.median().item(), 1e9):
        for rows in (1, 2):
            units = each.view(-1, rows, each.shape[1]).mean(dim=1)
            factors = (clip_norm * (1 - CLIP_MARGIN) / units.norm(dim=1, keepdim=True)).clamp_max(1.0)
            expected = (units * factors).sum(dim=0)
            found = clipped_sum(model, loss, clip_norm, torch.ones(count // rows, rows, dtype=torch.bool))
            assert (found - expected).norm() <= rtol * expected.norm()


@pytest.mark.parametrize("coupling", ["glow", "gin", "rnvp"])
@pytest.mark.parametrize("permutation", ["soft", "hard"])
@pytest.mark.parametrize("downsampling", ["haar", "checkerboard"])
def test_a_flow_has_the_gradients_of_a_record_at_a_time(coupling, permutation, downsampling):
    model = flow(coupling=coupling, permutation=permutation, downsampling=downsampling)
    check_layers(model, PER_RECORD_LAYERS)
    check_against_oracle(model, nats(*records()), 4, rtol=1e-5)
    check_against_oracle(model.double(), nats(*records(dtype=torch.float64)), 4, rtol=1e-8)


def test_a_flow_of_dense_blocks_alone_has_them_too():
    check_against_oracle(flow(scales=[]).double(), nats(*records(dtype=torch.float64)), 4, rtol=1e-8)


def test_a_flow_has_the_gradients_that_opacus_computes():
    model, loss = flow(), nats(*records())
    by_opacus = torch.cat([each.flatten(1) for each in opacus_gradients(model, loss, torch.arange(4))], dim=1).double()
    found = clipped_sum(model, loss, 1e9, torch.ones(4, 1, dtype=torch.bool))
    torch.testing.assert_close(found, by_opacus.sum(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_opacus, one_at_a_time(model, loss, 4), rtol=1e-3, atol=1e-3)


def subnet(channels_in, channels_out):
    return nn.Sequential(
        nn.Conv2d(channels_in, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Tanh(), nn.Conv2d(6, channels_out, 1)
    )


FREIA_BLOCKS = [
    fm.AffineCouplingOneSided,
    fm.ConditionalAffineTransform,
    fm.GINCouplingBlock,
    fm.GLOWCouplingBlock,
    fm.NICECouplingBlock,
    fm.RNVPCouplingBlock,
]


def freia_flow(block):
    """Return FrEIA's own graph: downsample, then twice a permutation and a block, then flat."""
    torch.manual_seed(0)
    nodes, condition = [ff.InputNode(*SHAPE)], ff.ConditionNode(CLASSES, 4, 4)
    nodes.append(ff.Node(nodes[-1], fm.HaarDownsampling, {}))
    for seed in range(2):
        nodes.append(ff.Node(nodes[-1], fm.PermuteRandom, {"seed": seed}))
        nodes.append(ff.Node(nodes[-1], block, {"subnet_constructor": subnet}, conditions=condition))
    nodes.append(ff.Node(nodes[-1], fm.Flatten, {}))
    return ff.GraphINN([*nodes, condition, ff.OutputNode(nodes[-1])])


@pytest.mark.parametrize("block", FREIA_BLOCKS)
def test_freias_own_blocks_have_the_gradients_of_a_record_at_a_time(block):
    model, (images, conditions) = freia_flow(block).double(), records(dtype=torch.float64)
    check_layers(model, PER_RECORD_LAYERS)
    spread = conditions[:, :, None, None].expand(-1, -1, 4, 4)

    def loss(net, chosen):
        z, log_det = net(images[chosen], c=[spread[chosen]])
        return z.square().sum(dim=1) / 2 - log_det

    check_against_oracle(model, loss, 4, rtol=1e-8)


@pytest.mark.parametrize(
    ("layer", "instead"),
    [
        (lambda: fm.AllInOneBlock([(4, 4, 4)], subnet_constructor=subnet), "use GLOWCouplingBlock"),
        (lambda: fm.ActNorm([SHAPE]), "learns its start from a batch"),
        (lambda: fm.OrthogonalTransform([(4,)]), "a fixed permutation"),
        (lambda: fm.LearnedElementwiseScaling([SHAPE]), "one of: Linear"),
        (lambda: nn.BatchNorm2d(4), "use GroupNorm"),
        (lambda: nn.MultiheadAttention(4, 2), "use Linear layers"),
        (lambda: nn.ConvTranspose2d(2, 2, 3), "use Conv2d"),
    ],
)
def test_what_has_weights_of_its_own_or_mixes_records_is_refused_by_name(layer, instead):
    made = layer()
    with pytest.raises(PrivacyError, match=f"Found {type(made).__name__} at '1'.*{instead}"):
        check_layers(nn.Sequential(nn.Conv2d(1, 4, 3), made), PER_RECORD_LAYERS)


def test_a_block_with_a_subnet_that_mixes_records_is_refused():
    block = fm.GLOWCouplingBlock(
        [(4, 4, 4)], subnet_constructor=lambda i, o: nn.Sequential(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o))
    )
    with pytest.raises(PrivacyError, match=r"Found BatchNorm2d at '0\.subnet1\.1'"):
        check_layers(nn.Sequential(block), PER_RECORD_LAYERS)


def test_a_flow_is_refused_where_its_classes_are_not_named():
    with pytest.raises(PrivacyError, match="Found ConditionalFlow at 'the top'"):
        check_layers(flow())


def test_dp_sgd_without_noise_and_clip_is_plain_gradient_descent_on_a_flow():
    images, conditions = records(6)
    frozen, plain = flow(), flow()
    for model in (frozen, plain):
        model.dense.couplings[0].requires_grad_(False)
    before = {name: each.clone() for name, each in frozen.named_parameters()}
    loss = nats(images, conditions)
    optimizer = torch.optim.SGD(trained(plain), lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        loss(plain, torch.arange(6)).mean().backward()
        optimizer.step()
    train_dp_sgd(
        frozen,
        loss,
        PoissonGaussian(stage="flow", clip_norm=1e6, noise_std=1e-9, sampling_rate=1.0, steps=3),
        units=torch.arange(6)[:, None],
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-4),
        noise=NoiseSource.from_seed(0),
        covered=PER_RECORD_LAYERS,
    )
    for (name, found), expected in zip(frozen.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if name.startswith("dense.couplings.0"):
            assert torch.equal(found, before[name])

"""Clipped sums against autograd on one unit at a time, and against weights that an attacker would choose."""

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cadp_fl.errors import PrivacyError
from cadp_fl.privacy.clipping import CLIP_MARGIN
from cadp_fl.privacy.dpsgd import cross_entropy_of, opacus_gradients
from cadp_fl.privacy.per_record import ClippedGradients, Factors, squared_norms

LAYERS = {
    "linear": (nn.Linear(12, 7), (12,)),
    "linear without a bias": (nn.Linear(12, 7, bias=False), (12,)),
    "a wide linear": (nn.Linear(40, 30), (40,)),
    "linear on rows": (nn.Linear(4, 3), (6, 4)),
    "linear on rows and columns": (nn.Linear(3, 2, bias=False), (2, 5, 3)),
    "a wide linear on rows": (nn.Linear(40, 30), (3, 40)),
    "convolution": (nn.Conv2d(3, 5, 3, padding=1), (3, 6, 6)),
    "convolution to fewer channels": (nn.Conv2d(8, 2, 3, padding=1), (8, 6, 5)),
    "convolution to fewer channels, unpadded": (nn.Conv2d(8, 2, (3, 2)), (8, 6, 5)),
    "convolution to fewer channels, dilated": (nn.Conv2d(8, 2, 3, padding=(1, 2), dilation=(2, 1)), (8, 7, 6)),
    "convolution to fewer channels, padded beyond its kernel": (nn.Conv2d(8, 2, 3, padding=3), (8, 4, 4)),
    "convolution without a bias": (nn.Conv2d(3, 5, 3, bias=False), (3, 6, 6)),
    "strided": (nn.Conv2d(3, 4, 3, stride=(2, 1), padding=1), (3, 7, 6)),
    "strided to fewer channels": (nn.Conv2d(6, 2, 3, stride=2), (6, 8, 7)),
    "dilated": (nn.Conv2d(2, 4, (2, 3), dilation=(3, 2), padding=(1, 2)), (2, 8, 7)),
    "grouped": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (6, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5)),
    "1 x 1": (nn.Conv2d(4, 6, 1), (4, 5, 5)),
    "1 x 1 to fewer channels": (nn.Conv2d(6, 2, 1), (6, 5, 5)),
    "padded on one side": (nn.Conv2d(6, 2, (2, 4), padding="same"), (6, 5, 6)),
    "group norm": (nn.GroupNorm(2, 6), (6, 4, 5)),
    "group norm of vectors": (nn.GroupNorm(3, 6), (6,)),
}


def weights_of(model):
    return [each for each in model.parameters() if each.requires_grad]


def flat(tensors):
    return torch.cat([each.detach().reshape(-1).double() for each in tensors])


def clipped_sum(model, clip_norm, losses, present, parts=1):
    """Return the sum, flat, over units that are passed through the model in some parts of equal size."""
    with ClippedGradients(model, clip_norm) as gradients:
        for part in torch.arange(len(present)).chunk(parts):
            gradients.add(lambda part=part: losses(model, part), present[part])
        return flat(gradients.sums)


def oracle(model, clip_norm, losses, present):
    """One unit at a time: the gradient of its mean loss by autograd, clipped, added up."""
    total = torch.zeros_like(flat(weights_of(model)))
    for unit in range(len(present)):
        if present[unit].any():
            gradients = torch.autograd.grad(
                losses(model, torch.tensor([unit]))[present[unit]].mean(), weights_of(model), allow_unused=True
            )
            gradient = flat(
                [
                    torch.zeros_like(weight) if each is None else each
                    for each, weight in zip(gradients, weights_of(model), strict=True)
                ]
            )
            total += gradient * (clip_norm * (1 - CLIP_MARGIN) / gradient.norm()).clamp_max(1.0)
    return total


def energies(inputs):
    """Return a loss of each row, of inputs (units, rows, ...): not linear in what the model makes of them."""

    def losses(model, units):
        outputs = model(inputs[units].flatten(0, 1))
        return (outputs.flatten(1).sin().sum(dim=1) * 3).exp().clamp_max(50) + outputs.flatten(1).square().sum(dim=1)

    return losses


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("clip_norm", [0.5, 1e9])
def test_the_sum_is_that_of_a_unit_at_a_time(name, rows, clip_norm):
    torch.manual_seed(3)
    layer, shape = LAYERS[name]
    layer = layer.double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    losses, present = energies(torch.randn(5, rows, *shape, dtype=torch.float64)), torch.ones(5, rows, dtype=torch.bool)
    expected = oracle(layer, clip_norm, losses, present)
    # The norm of a unit of several rows is bounded from above, by 2^-30 of a square that bounds it.
    torch.testing.assert_close(clipped_sum(layer, clip_norm, losses, present), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("name", ["linear", "convolution", "group norm"])
def test_what_is_frozen_stays_out_of_sum_and_norm(name, frozen):
    torch.manual_seed(3)
    layer, shape = LAYERS[name]
    layer = layer.double()
    getattr(layer, frozen).requires_grad_(False)
    try:
        losses, present = energies(torch.randn(4, 2, *shape, dtype=torch.float64)), torch.ones(4, 2, dtype=torch.bool)
        found = clipped_sum(layer, 0.5, losses, present)
        assert len(found) < sum(each.numel() for each in layer.parameters())
        torch.testing.assert_close(found, oracle(layer, 0.5, losses, present), rtol=1e-7, atol=1e-7)
    finally:
        getattr(layer, frozen).requires_grad_(True)


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1), nn.Tanh(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 8), nn.ReLU(), nn.Linear(8, 3),
    ).to(dtype)  # fmt: skip


def pictures(units=6, rows=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(units, rows, 1, 6, 6, generator=generator, dtype=dtype)


def classified(inputs):
    labels = torch.arange(inputs.shape[0])[:, None].expand(inputs.shape[:2]) % 3

    def losses(model, units):
        return nn.functional.cross_entropy(
            model(inputs[units].flatten(0, 1)), labels[units].reshape(-1), reduction="none"
        )

    return losses


PRESENT = torch.tensor([[True, True, False, True], [True, False, False, False], [True, True, True, True]] * 2)


@pytest.mark.parametrize("clip_norm", [0.05, 1e9])
@pytest.mark.parametrize("parts", [1, 2, 6])
def test_the_mean_of_what_is_present_of_a_unit_is_clipped(clip_norm, parts):
    losses = classified(pictures(6, 4))
    expected = oracle(network(), clip_norm, losses, PRESENT)
    torch.testing.assert_close(
        clipped_sum(network(), clip_norm, losses, PRESENT, parts), expected, rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_in_how_many_parts_units_pass_changes_rounding_alone(parts):
    losses, present = classified(pictures(dtype=torch.float32)), torch.ones(6, 1, dtype=torch.bool)
    whole, split = (clipped_sum(network(torch.float32), 0.3, losses, present, each) for each in (1, parts))
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-6)


def test_gradients_are_those_of_opacus():
    model, images, labels = network(torch.float32), pictures(dtype=torch.float32).flatten(0, 1), torch.arange(6) % 3
    expected = torch.cat(
        [each.flatten(1) for each in opacus_gradients(model, cross_entropy_of(images, labels), torch.arange(6))], dim=1
    ).double()
    losses = classified(images[:, None])
    for unit in range(6):
        one = clipped_sum(model, 1e9, lambda net, _, unit=unit: losses(net, torch.tensor([unit])), torch.ones(1, 1) > 0)
        torch.testing.assert_close(one, expected[unit], rtol=1e-4, atol=1e-6)


class Twice(nn.Module):
    """A layer that is called twice, and a weight that two layers share."""

    def __init__(self):
        super().__init__()
        self.linear, self.other, self.last = nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20, bias=False)
        self.last.weight = self.other.weight
        self.wide, self.narrow = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1, stride=2)
        self.narrow.weight = self.wide.weight

    def forward(self, x):
        x = self.last(torch.tanh(self.other(self.linear(torch.tanh(self.linear(x))))))
        square = torch.cat([x, x[:, :16]], dim=1).view(-1, 4, 3, 3)
        return self.wide(square).flatten(1).sum(dim=1) + self.narrow(square).flatten(1).square().sum(dim=1)


@pytest.mark.parametrize("rows", [1, 2])
def test_gradients_of_a_shared_weight_add_up_before_the_norm(rows):
    torch.manual_seed(0)
    model, inputs = Twice().double(), torch.randn(4, rows, 20, dtype=torch.float64)

    def losses(model, units):
        return model(inputs[units].flatten(0, 1))

    present = torch.ones(4, rows, dtype=torch.bool)
    for clip_norm in (0.1, 1e9):
        expected = oracle(model, clip_norm, losses, present)
        torch.testing.assert_close(clipped_sum(model, clip_norm, losses, present), expected, rtol=1e-7, atol=1e-9)


def test_what_is_clipped_is_neither_the_data_nor_another_layers_gradient():
    """Two layers whose outputs are added get one and the same gradient; nothing may be scaled in place."""
    model = nn.ModuleList([nn.Linear(20, 30), nn.Linear(20, 30)]).double()
    inputs, present = torch.randn(4, 20, dtype=torch.float64), torch.ones(4, 1, dtype=torch.bool)
    before = inputs.clone()

    def losses(net, units):
        return (net[0](inputs[units]) + net[1](inputs[units])).square().sum(dim=1)

    expected = oracle(model, 0.1, losses, present)
    found = clipped_sum(model, 0.1, lambda net, _: (net[0](inputs) + net[1](inputs)).square().sum(dim=1), present)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(inputs, before)


def test_a_layer_that_is_not_reached_has_no_gradient():
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "unused": nn.Linear(4, 2)}).double()
    inputs, present = torch.randn(3, 4, dtype=torch.float64), torch.ones(3, 1, dtype=torch.bool)
    found = clipped_sum(model, 1.0, lambda net, units: net["used"](inputs[units]).square().sum(dim=1), present)
    assert (found[:10] != 0).any()
    assert (found[10:] == 0).all()


def test_no_units_and_no_records_add_nothing():
    losses = classified(pictures(6, 4))
    assert (clipped_sum(network(), 1.0, losses, torch.zeros(6, 4, dtype=torch.bool)) == 0).all()
    with ClippedGradients(network(), 1.0) as gradients:
        assert (flat(gradients.sums) == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -3e38, 1e25])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_unit_that_overflows_leaves_the_others_as_they_were_to_the_bit(bad, rows):
    inputs = pictures(6, rows, torch.float32)
    spoiled = inputs.clone()
    spoiled[2, -1] = bad
    present = torch.ones(6, rows, dtype=torch.bool)
    without = present.clone()
    without[2] = False
    hostile = network(torch.float32)
    for parameter in hostile[0].parameters():
        parameter.data *= 1e15
    hostile[1] = nn.Tanh()  # a norm would hide how large its input is
    found = clipped_sum(hostile, 0.3, classified(spoiled), present)
    assert torch.isfinite(found).all()
    if not math.isfinite(bad):
        assert torch.equal(found, clipped_sum(hostile, 0.3, classified(inputs), without))
    spoiled[2, -1] = math.nan
    counted_as_zero = clipped_sum(hostile, 0.3, classified(spoiled), present)
    assert (found - counted_as_zero).norm() <= 0.3


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.lists(st.floats(-12, 18), min_size=8, max_size=8),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([0.01, 1.0, 30.0]),
)
def test_no_unit_moves_the_sum_by_more_than_c_whatever_the_weights(seed, exponents, opposed, rows, clip_norm):
    """Weights of any size, and such that huge activations cancel."""
    model = network(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for parameter, exponent in zip(model.parameters(), [*exponents, *exponents], strict=False):
        half = torch.randn(parameter.shape, generator=generator) * 10.0**exponent
        if opposed and len(parameter) % 2 == 0:
            half[len(half) // 2 :] = -half[: len(half) // 2]
        parameter.data = half
    inputs = torch.randn(3, rows, 1, 6, 6, generator=generator)
    if opposed:
        inputs[:, -1] = -inputs[:, 0]
    present = torch.ones(3, rows, dtype=torch.bool)
    losses = classified(inputs)
    alone = clipped_sum(model, clip_norm, lambda net, _: losses(net, torch.tensor([1])), present[:1])
    assert torch.isfinite(alone).all()
    assert alone.norm() <= clip_norm
    whole = clipped_sum(model, clip_norm, losses, present)
    present[1] = False
    assert (whole - clipped_sum(model, clip_norm, losses, present)).norm() <= clip_norm * (1 + 1e-9)


@pytest.mark.parametrize("size", [1.0, 1e8, 1e30])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_norm_of_factors_is_never_below_that_of_their_exact_product(size, rows):
    """Rows that cancel but for their last digits, in exact arithmetic."""
    generator = torch.Generator().manual_seed(rows)
    for _ in range(30):
        a = torch.randn(rows, 4, generator=generator) * size
        d = torch.randn(rows, 3, generator=generator) / size
        if rows > 1:
            a[-1], d[-1] = a[0] * (1 + 2**-23), -d[0]
        exact = Fraction(0)
        for row in range(3):
            for column in range(4):
                entry = sum(Fraction(d[r, row].item()) * Fraction(a[r, column].item()) for r in range(rows))
                exact += entry * entry
        found = Fraction(squared_norms(Factors(a.double()[None], d.double()[None])).item())
        lengths = sum(a[r].double().norm().item() * d[r].double().norm().item() for r in range(rows))
        assert exact * (1 - Fraction(2) ** -40) <= found
        assert found <= exact * (1 + Fraction(2) ** -40) + (
            Fraction(lengths) ** 2 * Fraction(2) ** -29 if rows > 1 else 0
        )


@pytest.mark.parametrize("positions", [1, 20])
def test_a_unit_whose_rows_cancel_is_still_clipped(positions):
    """Two records whose gradients, 1e12 long, differ by what float32 rounds: what is left of the sum is that alone."""
    model, clip_norm = nn.Linear(30, 20, bias=False), 1.0
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(positions, 30, generator=generator) * 1e6
    inputs, slopes = torch.stack([first, first * (1 + 2**-22)]), torch.randn(20, generator=generator) * 1e6
    signs = torch.tensor([1.0, -1.0])

    def losses(net, _):
        return (net(inputs) * slopes).sum(dim=(1, 2)) * signs

    found = clipped_sum(model, clip_norm, losses, torch.ones(1, 2, dtype=torch.bool))
    assert 0 < found.norm() <= clip_norm


def test_a_mean_over_the_batch_is_refused():
    model, inputs = network(), pictures().flatten(0, 1)
    with (
        ClippedGradients(model, 1.0) as gradients,
        pytest.raises(PrivacyError, match=r"\(6,\)\. Found a tensor of \(\)"),
    ):
        gradients.add(lambda: model(inputs).square().mean(), torch.ones(6, 1) > 0)


def test_a_layer_that_does_not_get_the_batch_first_is_refused():
    model, inputs = nn.Linear(6, 2), torch.randn(4, 6)
    with ClippedGradients(model, 1.0) as gradients, pytest.raises(PrivacyError, match="got 2 rows for 4 records"):
        gradients.add(lambda: model(inputs.view(2, 2, 6)).sum(dim=2).reshape(-1), torch.ones(4, 1) > 0)


def test_an_input_that_changes_in_place_is_refused():
    model, inputs = nn.Linear(6, 2), torch.randn(4, 6)

    def losses():
        outputs = model(inputs)
        inputs.mul_(2)
        return outputs.sum(dim=1)

    with ClippedGradients(model, 1.0) as gradients, pytest.raises(PrivacyError, match="Linear was changed in place"):
        gradients.add(losses, torch.ones(4, 1) > 0)


def test_a_model_is_left_as_it_was():
    model = network()
    model[3].bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    clipped_sum(model, 1.0, classified(pictures()), torch.ones(6, 1, dtype=torch.bool))
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in model)  # noqa: SLF001


def test_a_pass_computes_no_gradient_of_weights_or_data():
    model, inputs = network(), pictures().flatten(0, 1)
    asked = []
    losses = classified(inputs[:, None])

    def watched(net, units):
        asked.extend(each.requires_grad for each in (inputs, *net.parameters()))
        return losses(net, units)

    clipped_sum(model, 1.0, watched, torch.ones(6, 1, dtype=torch.bool))
    assert not any(asked)
    assert inputs.grad is None


def test_sums_add_up_until_they_are_cleared():
    losses, present = classified(pictures()), torch.ones(6, 1, dtype=torch.bool)
    model, units, seen = network(), torch.arange(6), []
    with ClippedGradients(model, 1.0) as gradients:
        for _ in range(3):
            gradients.add(lambda: losses(model, units), present)
            seen.append(flat(gradients.sums))
        gradients.restart()
        assert (flat(gradients.sums) == 0).all()
    for fewer, more in pairwise(seen):
        torch.testing.assert_close(more - fewer, seen[0])

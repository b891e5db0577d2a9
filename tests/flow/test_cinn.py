"""One list of properties that every flow passes."""

import hashlib

import FrEIA.modules as fm
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cadp_fl.config import DenseConfig, FlowConfig, FlowTrainingConfig, ScaleConfig
from cadp_fl.data.codec import Pixels
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError, DataError, MemoryLimitError, TrainingError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.permutations import MAX_SOFT_DIMS, HardPermutation, Rotation, permutation
from cadp_fl.flow.storage import FlowCard, load_flow, save_flow
from cadp_fl.flow.training import Progress, bits_per_dim, train_flow
from cadp_fl.schedule import cosine
from cadp_fl.weights import get_weights, set_weights, structure_sha256

CONFIGS = {
    "convolutional": FlowConfig(scales=[{"blocks": 2, "channels": 8}] * 2, dense={"blocks": 1, "width": 16}),
    "convolutional-only": FlowConfig(scales=[{"blocks": 2, "channels": 8}], dense={"blocks": 0}),
    "checkerboard": FlowConfig(scales=[{"blocks": 1, "channels": 8}], downsampling="checkerboard"),
    "dense": FlowConfig(dense={"blocks": 3, "width": 16}),
    "gin": FlowConfig(coupling="gin", scales=[{"blocks": 2, "channels": 8}], dense={"blocks": 2, "width": 16}),
    "rnvp": FlowConfig(coupling="rnvp", scales=[{"blocks": 2, "channels": 8}], dense={"blocks": 2, "width": 16}),
    "soft": FlowConfig(permutation="soft", scales=[{"blocks": 2, "channels": 8}], dense={"blocks": 2, "width": 16}),
    "split": FlowConfig(
        scales=[{"blocks": 2, "channels": 8, "split": 0.5}, {"blocks": 2, "channels": 8, "split": 0.25}],
        dense={"blocks": 2, "width": 16},
        permutation="soft",
    ),
    "warm": FlowConfig(warm_start="moments", front_end={"size": 3, "detail": 0.5}, dense={"blocks": 2, "width": 16}),
    "warm-image": FlowConfig(
        warm_start="moments", front_end={"size": 3, "descriptor": "none"}, dense={"blocks": 1, "width": 16}
    ),
    "split-only": FlowConfig(scales=[{"blocks": 2, "channels": 8, "split": 0.25}] * 2, dense={"blocks": 0}),
}
SHAPE = (1, 8, 8)


def build(name, shape=SHAPE, seed=3, shake=0.05):
    """Return a flow whose blocks are no longer the identity."""
    flow = ConditionalFlow(CONFIGS[name], shape, 5, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            if parameter.requires_grad:
                parameter += shake * torch.randn(parameter.shape, generator=generator)
    return flow


def batch(count, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator), condition_of(
        torch.randint(0, 5, (count,), generator=generator), 5
    )


every_flow = pytest.mark.parametrize("name", list(CONFIGS))
every_cold_flow = pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if not config.is_warm])


@every_flow
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("shape", [SHAPE, (3, 4, 8)])
def test_decode_inverts_encode_in_float32(name, count, shape):
    flow = build(name, shape)
    x, condition = batch(count, shape)
    with torch.no_grad():
        z, log_det = flow.encode(x, condition)
        back = flow.decode(z, condition)
        again, _ = flow.encode(flow.decode(z, condition), condition)
    assert (z.shape, log_det.shape) == ((count, flow.dims), (count,))
    assert (back - x).abs().max() < 1e-4
    assert (again - z).abs().max() < 1e-3


@every_flow
def test_decode_inverts_encode_after_training(name):
    flow = ConditionalFlow(CONFIGS[name], SHAPE, 5, seed=1)
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (64, *SHAPE), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 5, (64,), generator=generator)
    config = FlowTrainingConfig(local_epochs=5, batch_size=16)
    train_flow(flow, images, labels, config, codec=Pixels(256), progress=Progress(0, 1), generator=generator)
    x, condition = Pixels(256).to_unit(images), condition_of(labels, 5)
    with torch.no_grad():
        assert (flow.decode(flow.encode(x, condition)[0], condition) - x).abs().max() < 1e-4


@every_cold_flow
def test_the_log_determinant_is_that_of_autograds_jacobian(name):
    flow = build(name, (1, 4, 4)).double()
    x, condition = batch(2, (1, 4, 4))
    x, condition = x.double(), condition.double()
    _, log_det = flow.encode(x, condition)
    for index in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda image, index=index: flow.encode(image.view(1, 1, 4, 4), condition[index][None])[0].flatten(),
            x[index].flatten(),
        )
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(log_det[index].item(), abs=1e-8)


@every_flow
def test_log_prob_is_the_change_of_variables(name):
    flow = build(name).double()
    x, condition = batch(3)
    z, log_det = flow.encode(x.double(), condition.double())
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=1)
    torch.testing.assert_close(flow.log_prob(x.double(), condition.double()), prior + log_det)


@every_flow
def test_a_record_ignores_its_batch(name):
    flow = build(name).double()
    x, condition = batch(5)
    z, log_det = flow.encode(x.double(), condition.double())
    for index in range(5):
        own = slice(index, index + 1)
        alone, own_log_det = flow.encode(x[own].double(), condition[own].double())
        torch.testing.assert_close(alone, z[own], rtol=0, atol=1e-12)
        torch.testing.assert_close(own_log_det, log_det[own], rtol=0, atol=1e-11)


@every_flow
def test_the_condition_reaches_the_latent_and_gradients_reach_every_parameter(name):
    flow = build(name)
    x, condition = batch(4)
    z, _ = flow.encode(x, condition)
    other, _ = flow.encode(x, condition.roll(1, dims=1))
    assert (z - other).abs().max() > 1e-4
    flow.log_prob(x, condition).sum().backward()
    for parameter_name, parameter in flow.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name


@every_cold_flow
def test_a_new_flow_permutes_and_scales_alone(name):
    flow = ConditionalFlow(CONFIGS[name], SHAPE, 5, seed=0)
    x, condition = batch(3)
    z, log_det = flow.encode(x, condition)
    assert z.norm(dim=1).tolist() == pytest.approx(((x - 0.5) * 2).flatten(1).norm(dim=1).tolist(), rel=1e-5)
    assert log_det.tolist() == pytest.approx([64 * np.log(2.0)] * 3, rel=1e-5)


@every_flow
def test_samples_repeat_with_their_generator(name):
    flow = build(name)
    condition = condition_of(torch.tensor([0, 1, 2]), 5)
    first, second = (flow.sample(condition, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == (3, *SHAPE)
    assert torch.equal(first, second)


@every_flow
def test_one_config_and_seed_build_one_flow(name):
    first, second, other = (ConditionalFlow(CONFIGS[name], SHAPE, 5, seed=seed) for seed in (1, 1, 2))
    assert structure_sha256(first) == structure_sha256(second) != structure_sha256(other)
    for left, right in zip(get_weights(first).values(), get_weights(second).values(), strict=True):
        assert np.array_equal(left, right)


def test_building_a_flow_leaves_global_generators_alone():
    """FrEIA seeds numpy's global generator; noise drawn from it afterwards would repeat."""
    np.random.seed(5)
    torch.manual_seed(5)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    ConditionalFlow(CONFIGS["convolutional"], SHAPE, 5, seed=1)
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())


def test_decoding_leaves_the_latent_as_it_was():
    """FrEIA's Haar transform scales its input in place on the way back; coupling blocks must stand before it."""
    flow = build("convolutional-only")
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    kept = z.clone()
    flow.decode(z, condition_of(torch.tensor([0, 1]), 5))
    assert torch.equal(z, kept)


def test_weights_move_between_flows_and_fixed_parts_do_not():
    source, target = build("convolutional", seed=1), ConditionalFlow(CONFIGS["convolutional"], SHAPE, 5, seed=1)
    weights = get_weights(source)
    assert not any("perm" in name or "haar" in name for name in weights)
    assert all(array.dtype == np.float32 for array in weights.values())
    set_weights(target, weights)
    x, condition = batch(2)
    assert torch.equal(source.encode(x, condition)[0], target.encode(x, condition)[0])


@pytest.mark.parametrize(
    ("config", "shape", "sentence"),
    [
        (CONFIGS["convolutional"], (1, 6, 8), "multiples of 4. Found images of 6 x 8; use at most 1"),
        (FlowConfig(scales=[{}], downsampling="wavelet"), SHAPE, "Unknown downsampling 'wavelet'"),
        (FlowConfig(scales=[{}], coupling="nice"), SHAPE, "Unknown coupling 'nice'. Choose one of: gin, glow, rnvp"),
        (FlowConfig(scales=[{}], permutation="none"), SHAPE, "Unknown permutation 'none'. Choose one of: hard, soft"),
        (FlowConfig(), (1, 1, 1), "A coupling block needs two dimensions"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(config, shape, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ConditionalFlow(config, shape, 5, seed=0)


@given(levels=st.integers(2, 256), offset=st.floats(0.01, 0.99))
@settings(max_examples=60)
def test_quantize_inverts_dequantize_at_every_level(levels, offset):
    stored = torch.round(torch.arange(levels) * (255 / (levels - 1))).to(torch.uint8).view(-1, 1, 1, 1)
    x = Pixels(levels).to_unit(stored, offset)
    assert 0 <= x.min() <= x.max() < 1.0001
    assert torch.equal(Pixels(levels).from_unit(x), stored)


def test_quantize_takes_anything():
    x = torch.tensor([-3.0, 7.0, float("nan"), float("inf"), -float("inf")]).view(-1, 1, 1, 1)
    assert Pixels(256).from_unit(x).flatten().tolist() == [0, 255, 0, 255, 0]


def test_bits_per_dimension_of_uniform_data_under_a_uniform_density():
    """A flow that is the identity on [0, 1] scaled by s has a Gaussian density; check the arithmetic by hand."""
    flow = ConditionalFlow(CONFIGS["dense"], (1, 2, 2), 5, seed=0)
    images = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    z = (1 - 0.5 / 256 - 0.5) * 2.0
    nats = 0.5 * z**2 + 0.5 * np.log(2 * np.pi) - np.log(2.0)
    measured = bits_per_dim(flow, images, torch.tensor([0]), Pixels(256))
    assert measured.item() == pytest.approx(nats / np.log(2) + 8, rel=1e-5)


def test_training_lowers_the_bits():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 5
    images = (labels.view(-1, 1, 1, 1) * 40 + torch.randint(0, 30, (64, *SHAPE), generator=generator)).to(torch.uint8)
    flow = ConditionalFlow(CONFIGS["dense"], SHAPE, 5, seed=0)
    before = bits_per_dim(flow, images, labels, Pixels(256)).mean().item()
    config = FlowTrainingConfig(local_epochs=20, batch_size=16)
    train_flow(flow, images, labels, config, codec=Pixels(256), progress=Progress(0, 1), generator=generator)
    assert bits_per_dim(flow, images, labels, Pixels(256)).mean().item() < before - 1


def test_the_coarsest_latents_come_first():
    """What a release privatizes is the leading dimensions; those of a split scale stand behind the dense ones."""
    flow = build("split")
    x, condition = batch(2)
    fine, coarse = [each.dims_leaving for each in flow.scales]
    z, _ = flow.encode(x, condition)
    assert (fine, coarse) == (32, 24)
    state, leaving, _ = flow.scales[0]((x - 0.5) * flow.input_scale, condition)
    torch.testing.assert_close(z[:, -fine:], leaving[0])
    torch.testing.assert_close(z[:, -fine - coarse : -fine], flow.scales[1](state, condition)[1][0])


@pytest.mark.parametrize("dims", [1, 2, 3, 7, 64, 512])
def test_a_soft_permutation_is_a_rotation_that_mixes_all(dims):
    np.random.seed(dims)
    matrix = Rotation((dims,)).matrix
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(dims, dtype=torch.float64), rtol=0, atol=1e-12)
    assert dims < 3 or (matrix != 0).double().mean() > 0.9


def test_a_soft_permutation_has_the_same_bits_on_every_machine():
    """Sites compare hashes of fixed parts, so a rotation must not pass through a linear-algebra library."""
    np.random.seed(1)
    digest = hashlib.sha256(Rotation((48,)).matrix.numpy().tobytes()).hexdigest()
    assert digest[:16] == "dfd6d181101faa0b"


def test_a_soft_permutation_is_hard_where_it_would_be_large():
    assert isinstance(permutation("soft", (MAX_SOFT_DIMS, 2, 2)), Rotation)
    assert isinstance(permutation("soft", (MAX_SOFT_DIMS + 1,)), HardPermutation)


def test_gin_preserves_volume():
    flow = build("gin")
    x, condition = batch(3)
    assert flow.encode(x, condition)[1].tolist() == pytest.approx([64 * np.log(2.0)] * 3, rel=1e-6)


def test_attributes_condition_a_flow_as_classes_do():
    flow = build("convolutional")
    classes = torch.tensor([0, 3])
    attributes = torch.zeros(2, 5, dtype=torch.int64).scatter(1, classes[:, None], 1)
    assert torch.equal(condition_of(classes, 5), condition_of(attributes, 5))
    x, _ = batch(2)
    both = condition_of(torch.ones(2, 5, dtype=torch.int64), 5)
    assert (flow.encode(x, both)[0] - flow.encode(x, condition_of(classes, 5))[0]).abs().max() > 1e-4


def freia_loop(flow):
    """The same function by FrEIA's own means: conditions spread over the pixels, joined to the input."""

    def encode(x, condition):
        state = (x - 0.5) * flow.input_scale
        log_det = torch.full((len(x),), flow.dims * np.log(flow.input_scale))
        for scale in [*flow.scales, None]:
            state = state.flatten(1) if scale is None else scale.downsample((state,))[0][0]
            blocks = flow.dense if scale is None else scale.blocks
            for permute, couple in zip(blocks.permutations, blocks.couplings, strict=True):
                state = permute(state)
                plain = fm.GLOWCouplingBlock(
                    [tuple(state.shape[1:])],
                    [(flow.conditions, *state.shape[2:])],
                    subnet_constructor=lambda *_: None,
                    clamp=couple.clamp,
                )
                plain.subnet1, plain.subnet2 = (
                    lambda u, net=net: net(
                        (
                            u[:, : -flow.conditions],
                            u[:, -flow.conditions :].flatten(2)[..., 0] if u.dim() == 4 else u[:, -flow.conditions :],
                        )
                    )
                    for net in (couple.subnet1, couple.subnet2)
                )
                spread = condition
                if state.dim() == 4:
                    spread = condition[:, :, None, None].expand(-1, -1, *state.shape[2:])
                (state,), change = plain((state,), [spread])
                log_det = log_det + change
        return state, log_det

    return encode


def test_a_coupling_block_is_freias():
    flow = build("convolutional")
    x, condition = batch(3)
    ours, theirs = flow.encode(x, condition), freia_loop(flow)(x, condition)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


def test_frozen_parts_stay_as_they_are_and_the_others_move():
    flow = build("convolutional")
    before = get_weights(flow)
    images = torch.randint(0, 256, (16, *SHAPE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    frozen = flow.frozen_names(["scales.0", "dense"])
    train_flow(
        flow, images, torch.zeros(16, dtype=torch.int64), FlowTrainingConfig(local_epochs=1), codec=Pixels(256),
        progress=Progress(0, 1), generator=torch.Generator().manual_seed(0), frozen=frozen,
    )  # fmt: skip
    moved = {name for name, array in get_weights(flow).items() if not np.array_equal(array, before[name])}
    assert moved
    assert not moved & frozen
    assert all(name.startswith("scales.1.") for name in moved)
    assert flow.frozen_names(["all"]) == set(before)
    with pytest.raises(ConfigError, match=r"all, scales.0, scales.1, dense. Found 'scales.7'"):
        flow.frozen_names(["scales.7"])


def test_running_out_of_memory_halves_the_physical_batch_and_changes_nothing(monkeypatch):
    images = torch.randint(0, 256, (24, *SHAPE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels = torch.arange(24) % 5
    sizes, room = [], 24

    def train():
        flow = ConditionalFlow(CONFIGS["convolutional"], SHAPE, 5, seed=0)
        plain = flow.log_prob

        def log_prob(x, condition):
            if len(x) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(len(x))
            return plain(x, condition)

        flow.log_prob = log_prob
        generator = torch.Generator().manual_seed(2)
        config = FlowTrainingConfig(local_epochs=2, batch_size=24)
        loss = train_flow(flow, images, labels, config, codec=Pixels(256), progress=Progress(0, 1), generator=generator)
        return loss, get_weights(flow)

    whole, whole_weights = train()
    sizes, room = [], 7
    parts, part_weights = train()
    assert max(sizes) == 6
    assert parts == pytest.approx(whole, rel=1e-6)
    for name, array in whole_weights.items():
        np.testing.assert_allclose(part_weights[name], array, atol=1e-5)
    room = 0
    with pytest.raises(MemoryLimitError, match=r"A record must fit into memory\. One does not"):
        train()


def test_each_pass_reports_its_own_loss_and_listening_changes_nothing():
    images = torch.randint(0, 256, (20, *SHAPE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    reported, weights, losses = [], [], []
    for on_epoch in (None, lambda epoch, loss: reported.append((epoch, loss))):
        flow = ConditionalFlow(CONFIGS["dense"], SHAPE, 5, seed=0)
        config = FlowTrainingConfig(local_epochs=3, batch_size=8)
        generator = torch.Generator().manual_seed(2)
        losses.append(
            train_flow(
                flow, images, torch.arange(20) % 5, config, codec=Pixels(256), progress=Progress(0, 1),
                generator=generator,
                on_epoch=on_epoch,
            )
        )  # fmt: skip
        weights.append(get_weights(flow))
    assert [epoch for epoch, _ in reported] == [1, 2, 3]
    assert np.mean([loss for _, loss in reported]) == pytest.approx(losses[0]) == losses[1]
    assert all(np.array_equal(array, weights[1][name]) for name, array in weights[0].items())


def test_training_stops_on_a_loss_that_is_not_finite_and_says_what_to_lower():
    flow = ConditionalFlow(CONFIGS["dense"], SHAPE, 5, seed=0)
    images, labels = torch.zeros(32, *SHAPE, dtype=torch.uint8), torch.zeros(32, dtype=torch.int64)
    with torch.no_grad():
        next(each for each in flow.parameters() if each.requires_grad).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"lower flow.training.learning_rate \(0.002\) or flow.clamp \(1.5\)"):
        train_flow(
            flow, images, labels, FlowTrainingConfig(), codec=Pixels(256), progress=Progress(0, 1),
            generator=torch.Generator(),
        )  # fmt: skip


def test_the_schedule_is_a_cosine_from_one_to_a_twentieth():
    assert [cosine(position) for position in (-1, 0, 0.5, 1, 2)] == pytest.approx([1, 1, 0.525, 0.05, 0.05])


@pytest.mark.parametrize(
    "larger",
    [
        {"dense": DenseConfig.model_construct(blocks=1, width=10**15)},
        {"dense": DenseConfig.model_construct(blocks=1, width=10**30)},
        {"dense": DenseConfig(blocks=128, width=4096)},
        {
            "scales": (ScaleConfig.model_construct(blocks=10**9, channels=32, split=None),),
            "dense": DenseConfig(blocks=0),
        },
    ],
)
def test_a_stored_flow_takes_no_memory_that_its_file_does_not_hold(tmp_path, larger):
    schema = Schema(name="x", shape=(1, 8, 8), classes=("a", "b"))
    small = FlowConfig(dense={"blocks": 1, "width": 8})
    flow = FlowCard(small, schema, 0, "public").build()
    save_flow(tmp_path / "flow.safetensors", flow, FlowCard(small.model_copy(update=larger), schema, 0, "public"))
    with pytest.raises(DataError, match=r"says how to build it|has tensors|its description says|fits into memory"):
        load_flow(tmp_path / "flow.safetensors")
    save_flow(tmp_path / "flow.safetensors", flow, FlowCard(small, schema, 0, "public"))
    load_flow(tmp_path / "flow.safetensors")

"""Fixed features: what they are, what leaves them alone, and that a record's are its own."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import nn

from cadp_fl.classifier.fixed import features_of, split_features
from cadp_fl.classifier.models import CLASSIFIERS, build_classifier
from cadp_fl.classifier.storage import ClassifierCard, load_classifier, save_classifier
from cadp_fl.classifier.training import as_input
from cadp_fl.config import ClassifierConfig
from cadp_fl.data.schema import Schema
from cadp_fl.features.linear import BlockGradients, LowPassDct

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 17, 30), (1, 5, 7), (1, 1, 1), (2, 3, 1), (3, 224, 224)]
FRONT_ENDS = [LowPassDct(), BlockGradients()]


def pixels(shape=(1, 28, 28), count=6, seed=0):
    """Return uint8 images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator).to(torch.uint8)


def images(*shape, **settings):
    """Return images as classifiers get them, in [-0.5, 0.5]."""
    return as_input(pixels(*shape, **settings))


@pytest.mark.parametrize("features", FRONT_ENDS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features_have_norm_one_and_a_length_that_the_shape_tells(features, shape):
    phi, others = features(images(shape)), features(images(shape, count=2, seed=1))
    assert phi.shape[1] == others.shape[1]
    norms = phi.double().norm(dim=1)
    assert ((norms - 1).abs() < 1e-5).logical_or(norms == 0).all()
    assert (norms > 0).all() or min(shape[1:]) < 4, "only an image of a few pixels may have no feature"


@pytest.mark.parametrize("features", FRONT_ENDS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("level", [-0.5, 0.0, 0.5])
def test_features_of_a_constant_image_are_finite(features, level):
    phi = features(torch.full((2, 3, 12, 12), level))
    assert torch.isfinite(phi).all()
    assert (phi.norm(dim=1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("features", FRONT_ENDS, ids=lambda each: type(each).__name__)
def test_a_records_features_are_its_own(features):
    """Whatever stands beside it: other images, none, or some that are not finite."""
    batch = images(count=9)
    whole = features_of(features, pixels(count=9))
    for row in range(9):
        torch.testing.assert_close(features(batch[row : row + 1])[0], whole[row], rtol=0, atol=1e-6)
    beside = batch.clone()
    beside[1:] = math.nan
    assert torch.equal(features(beside)[0], features(batch)[0])


@pytest.mark.parametrize("size", [3, 8, 28])
def test_low_frequencies_are_those_of_the_orthonormal_dct(size):
    x = images((2, 28, 20)).double()
    kept = dctn(x.numpy(), axes=(2, 3), norm="ortho")[:, :, :size, :size].copy()
    kept[:, :, 0, 0] *= 0.2
    expected = kept.reshape(len(x), -1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(LowPassDct(size)(x).numpy(), expected, atol=1e-12)


def test_all_frequencies_keep_angles_between_images():
    """The transform is orthogonal: with every coefficient, undamped, only the norm is gone."""
    x = images((1, 9, 9)).double()
    phi, flat = LowPassDct(9, mean_weight=1.0)(x), nn.functional.normalize(x.flatten(1), dim=1)
    torch.testing.assert_close(phi @ phi.T, flat @ flat.T)


def test_contrast_changes_no_low_frequency():
    x = images().double()
    torch.testing.assert_close(LowPassDct()(0.3 * x), LowPassDct()(x))


def test_brightness_changes_no_gradient():
    x = images().double()
    torch.testing.assert_close(BlockGradients()(x + 0.1), BlockGradients()(x))


def test_contrast_hardly_changes_oriented_gradients():
    x = images().double()
    assert (BlockGradients()(0.3 * x) - BlockGradients()(x)).norm(dim=1).max() < 0.01


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_quarter_turn_of_an_image_turns_its_directions_by_a_quarter(turns):
    x = images((1, 20, 20), count=1).double()
    features = BlockGradients(directions=12)
    plain, turned = (features.by_direction(each) for each in (x, torch.rot90(x, turns, (2, 3))))
    torch.testing.assert_close(turned, torch.rot90(plain, turns, (2, 3)).roll(-3 * turns, dims=1))


def test_a_ramp_points_where_it_rises():
    """Along the rows: direction 0. At 45 degrees, between directions 1 and 2 of 12: half to each. Backwards: 6."""
    side = torch.arange(16.0, dtype=torch.float64)
    right, down = side.expand(16, 16), side[:, None].expand(16, 16)
    ramps = torch.stack([right, right + down, -right])[:, None] / 100
    inner = BlockGradients(directions=12).by_direction(ramps)[:, :, 2:-2, 2:-2].mean(dim=(2, 3))
    expected = torch.zeros(3, 12, dtype=torch.float64)
    expected[0, 0], expected[1, 1], expected[1, 2], expected[2, 6] = 0.01, 2**0.5 / 200, 2**0.5 / 200, 0.01
    torch.testing.assert_close(inner, expected)


def test_the_length_of_a_gradient_is_shared_out_whole():
    x = images((1, 11, 13)).double()
    rows, columns = np.gradient(np.pad(x[:, 0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge"), axis=(1, 2))
    length = np.hypot(rows, columns)[:, 1:-1, 1:-1]
    np.testing.assert_allclose(BlockGradients().by_direction(x).sum(dim=1).numpy(), length, atol=1e-12)


def test_of_several_channels_the_longest_gradient_counts():
    x = images((1, 12, 12)).double()
    faint = torch.cat([0.1 * x.flip(0), x, torch.zeros_like(x)], dim=1)
    whole = BlockGradients().by_direction(torch.cat([faint, 10 * x], dim=1))
    torch.testing.assert_close(whole, BlockGradients().by_direction(10 * x))


def test_features_are_split_from_what_is_learned_and_shared_with_the_model():
    for name in set(CLASSIFIERS) - {"logistic"}:
        model = build_classifier(ClassifierConfig(model=name, width=4), (1, 12, 12), 3, seed=0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(1))
        fixed, learned = split_features(model)
        x = images((1, 12, 12))
        of_pixels = features_of(fixed, pixels((1, 12, 12)))
        torch.testing.assert_close(learned(of_pixels), model(x), rtol=1e-4, atol=1e-4)
        assert [id(each) for each in learned.parameters()] == [id(each) for each in model.parameters()]
        assert (fixed is not None) == (name in ("linear-dct", "linear-hog"))


def test_a_class_derived_from_ours_counts_as_learned():
    class Leaky(LowPassDct):
        pass

    model = nn.Sequential(Leaky(), nn.Linear(64, 2))
    assert split_features(model) == (None, model)


def test_features_hold_no_tensor_so_that_sites_agree_on_their_structure():
    """Cosines differ in their last bits between machines, and sites compare hashes of fixed tensors."""
    for features in FRONT_ENDS:
        assert not list(features.parameters())
        assert not list(features.buffers())


@pytest.mark.parametrize("name", ["linear-dct", "linear-hog", "tanh-cnn"])
def test_a_stored_classifier_on_features_answers_the_same(tmp_path, name):
    config, x = ClassifierConfig(model=name, width=4), images((1, 12, 12))
    schema = Schema(name="x", shape=(1, 12, 12), classes=("a", "b", "c"))
    model = build_classifier(config, schema.shape, 3, seed=0)
    with torch.no_grad():
        next(model.parameters()).normal_(generator=torch.Generator().manual_seed(0))
    save_classifier(tmp_path / "c.safetensors", model, ClassifierCard(config, schema, 0, "dp-sgd"))
    again, card = load_classifier(tmp_path / "c.safetensors")
    assert card.config.model == name
    assert torch.equal(again(x), model(x))

"""From noised moments to normal distributions: exact without noise, smooth under it, finite whatever was released."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from cadp_fl.config import FlowConfig
from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.moments import NoisedMoments, check_parts, fit_affine, fit_classes
from cadp_fl.flow.storage import FlowCard, flow_sha256, load_flow, save_flow
from cadp_fl.privacy.moments import Moments

CLASSES, DIMS, EACH = 3, 6, 4000
FREQUENCIES = np.array([0.0, 1.0, 2.0, 0.0, 1.0, 3.0])
BLOCK = np.array([False, False, False, True, True, True])
PARTS = ("counts", "sums", "shared", "second")
FAINT = 1e-9


def drawn(seed=0):
    """Return u, (CLASSES * EACH, DIMS), of three normal distributions with labels; means differ as a prior has it."""
    generator, differ = np.random.default_rng(seed), 0.2 * (1 + FREQUENCIES) ** -0.75
    parts = [
        differ * generator.normal(size=DIMS)
        + generator.normal(size=(EACH, DIMS)) @ generator.normal(0, 0.1, (DIMS, DIMS))
        for _ in range(CLASSES)
    ]
    return np.concatenate(parts), np.repeat(np.arange(CLASSES), EACH)


def moments_of(u, labels, **noise):
    """Return exact moments that say they have some noise, none to speak of by default."""
    by_class = [u[labels == label] for label in range(CLASSES)]
    second = np.stack([own.T @ own for own in by_class])
    counts, sums = np.array([float(len(own)) for own in by_class]), np.stack([own.sum(axis=0) for own in by_class])
    return Moments(counts, sums, second.sum(axis=0), second, dict.fromkeys(PARTS, FAINT) | noise)


def noised(moments, records=CLASSES * EACH):
    return NoisedMoments(np.zeros(DIMS), moments, records)


def fitted(moments, records=CLASSES * EACH):
    return fit_classes(noised(moments, records), FREQUENCIES, BLOCK)


def floor(u, labels):
    """Return what is added to every covariance: a twentieth of the mean variance within classes, or of 0.05 in all."""
    within = np.mean([np.cov(u[labels == label].T, bias=True) for label in range(CLASSES)], axis=0)
    return 0.05 * max(np.trace(within), 0.05) / len(within) * np.eye(len(within))


@pytest.mark.parametrize("left_out", [None, "shared"])
def test_without_noise_the_fit_is_each_classes_mean_and_covariance(left_out):
    u, labels = drawn()
    moments = moments_of(u, labels)
    if left_out:
        noise = {name: std for name, std in moments.noise.items() if name != left_out}
        moments = replace(moments, **{left_out: None}, noise=noise)
    found = fitted(moments)
    for label in range(CLASSES):
        own = u[labels == label]
        np.testing.assert_allclose(found.means[label], own.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(found.covariances[label], np.cov(own.T, bias=True) + floor(u, labels), atol=1e-9)


def test_without_second_moments_of_classes_they_share_the_covariance_within_them():
    u, labels = drawn()
    moments = moments_of(u, labels)
    noise = {name: std for name, std in moments.noise.items() if name != "second"}
    found = fitted(replace(moments, second=None, noise=noise))
    within = np.mean([np.cov(u[labels == label].T, bias=True) for label in range(CLASSES)], axis=0)
    within += floor(u, labels)
    np.testing.assert_allclose(found.covariances, np.repeat(within[None], CLASSES, axis=0), atol=1e-9)


def test_the_more_noise_the_classes_second_moments_have_the_more_is_shared():
    u, labels = drawn()
    apart = []
    for std in (FAINT, 30.0, 300.0, 1e9):
        covariances = fitted(moments_of(u, labels, second=std)).covariances
        apart.append(float(np.square(covariances - covariances.mean(axis=0)).sum()))
    assert apart[0] > apart[1] > apart[2] > apart[3]
    assert apart[3] < 1e-20


def test_with_second_moments_of_noise_alone_a_diagonal_that_falls_with_frequency_is_left():
    found = fitted(moments_of(*drawn(), shared=1e9, second=1e9)).covariances
    np.testing.assert_allclose(found, np.repeat(np.diag(np.diag(found[0]))[None], CLASSES, axis=0), atol=1e-12)
    for own in (BLOCK, ~BLOCK):
        powers = np.diff(np.log(np.diag(found[0])[own])) / np.diff(np.log1p(FREQUENCIES[own]))
        np.testing.assert_allclose(powers, powers[0], atol=1e-9)
        assert powers[0] <= 1e-12


def test_with_sums_of_noise_alone_most_of_what_tells_classes_apart_is_taken_off_and_not_all():
    """All would leave a classifier nothing but chance where a class's mean is known a little."""
    u, labels = drawn()
    exact, blurred = (fitted(moments_of(u, labels, sums=std)).means - u.mean(axis=0) for std in (FAINT, 1e9))
    ratios = blurred / exact
    assert ratios.min() > 0
    assert ratios.max() < 0.6


@pytest.mark.parametrize("length", [0.01, 1.0, 3.0, 30.0])
def test_means_are_averaged_over_the_posterior_of_how_far_apart_they_lie(length):
    """Against quadrature: with kappa = noise / (t + noise) uniform, its posterior is kappa^(p / 2) e^(-kappa S / 2)."""
    std, each, dims = 200.0, 1000.0, 5
    apart = length * std / each * np.array([[1.0, -0.5, 0.3, 0.0, 2.0]]) / np.sqrt(5.34)
    sums = each * np.concatenate([apart, -apart])
    second = np.stack([np.eye(dims) * each] * 2)
    moments = Moments(np.full(2, each), sums, second.sum(axis=0), second, dict.fromkeys(PARTS, FAINT) | {"sums": std})
    means = fit_classes(NoisedMoments(np.zeros(dims), moments, 2000), np.zeros(dims), np.zeros(dims, dtype=bool)).means
    s, p = 2 * length**2, 2 * dims
    mass, first = (
        quad(lambda k, power=power: k ** (p / 2 + power) * np.exp(-k * s / 2), 0, 1, epsabs=1e-30)[0]
        for power in (0, 1)
    )
    np.testing.assert_allclose(means[0], (1 - first / mass) * apart[0], rtol=2e-3)


def test_noise_draws_means_together_and_frees_none_of_them():
    u, labels = drawn()
    apart = [np.abs(fitted(moments_of(u, labels, sums=std)).means - u.mean(axis=0)) for std in (FAINT, 300.0, 3000.0)]
    assert (apart[0] >= apart[1]).all()
    assert (apart[1] >= apart[2]).all()
    assert apart[2].max() < apart[0].max() / 2


def noisy(seed=0):
    """Return moments with the noise that they say they have."""
    generator, noise = np.random.default_rng(seed), {"counts": 20.0, "sums": 400.0, "shared": 400.0, "second": 300.0}
    exact = moments_of(*drawn(), **noise)
    parts = {
        name: getattr(exact, name) + generator.normal(0, noise[name], getattr(exact, name).shape) for name in PARTS
    }
    for name in ("shared", "second"):
        parts[name] = (parts[name] + parts[name].swapaxes(-1, -2)) / 2
    return replace(exact, **parts)


def test_under_noise_the_fit_is_nearer_to_the_truth_than_what_was_released():
    """Summed over twenty draws of the noise: less squared error, and of covariances less than half."""
    exact, errors = fitted(moments_of(*drawn())), np.zeros((2, 2))
    for seed in range(20):
        blurred = noisy(seed)
        means = blurred.sums / blurred.counts[:, None]
        second = blurred.second / blurred.counts[:, None, None] - means[:, :, None] * means[:, None, :]
        found = fitted(blurred)
        for row, (m, s) in enumerate(((found.means, found.covariances), (means, second))):
            errors[row] += np.square(m - exact.means).sum(), np.square(s - exact.covariances).sum()
    assert errors[0, 0] < errors[1, 0]
    assert errors[0, 1] < 0.5 * errors[1, 1]


def test_classes_in_another_order_give_the_same_distributions_in_that_order():
    moments, order = noisy(), [2, 0, 1]
    other = replace(moments, **{name: getattr(moments, name)[order] for name in ("counts", "sums", "second")})
    ours, theirs = fitted(moments), fitted(other)
    np.testing.assert_allclose(theirs.means, ours.means[order], atol=1e-12)
    np.testing.assert_allclose(theirs.covariances, ours.covariances[order], atol=1e-12)


def test_more_records_under_as_much_more_noise_give_the_same_distributions():
    moments = noisy()
    more = {name: 7 * getattr(moments, name) for name in PARTS}
    more = replace(moments, **more, noise={name: 7 * std for name, std in moments.noise.items()})
    ours, theirs = fitted(moments), fitted(more, records=7 * CLASSES * EACH)
    np.testing.assert_allclose(theirs.means, ours.means, atol=1e-9)
    np.testing.assert_allclose(theirs.covariances, ours.covariances, atol=1e-9)


def test_directions_without_variance_keep_some_though_nothing_is_drawn_there():
    u, labels = drawn()
    u[:, 0] = 0.0
    for covariance in fitted(moments_of(u, labels)).covariances:
        assert covariance[0, 0] == pytest.approx(floor(u, labels)[0, 0], rel=1e-4)


def filled(value):
    """Return moments all of whose numbers are one value."""
    shapes = {"counts": (CLASSES,), "sums": (CLASSES, DIMS), "shared": (DIMS, DIMS), "second": (CLASSES, DIMS, DIMS)}
    return {name: np.full(shapes[name], value) for name in PARTS}


def hostile(seed, scale):
    generator = np.random.default_rng(seed)
    parts = {name: scale * generator.normal(size=part.shape) for name, part in filled(0.0).items()}
    return parts | {name: parts[name] + parts[name].swapaxes(-1, -2) for name in ("shared", "second")}


ABSURD = [
    *(filled(value) for value in (0.0, -1.0, -1e6, 1e12, 1e300, -1e300)),
    *(hostile(seed, scale) for seed, scale in enumerate((1e-3, 1.0, 1e3, 1e9, 1e150, 1e300))),
    filled(0.0) | {"counts": np.array([-50.0, 0.0, 90.0])},
    filled(0.0) | {"second": np.full((CLASSES, DIMS, DIMS), -1e9)},
]


@pytest.mark.parametrize("std", [1e-9, 10.0, 1e9])
@pytest.mark.parametrize("parts", ABSURD)
def test_whatever_is_released_every_covariance_is_positive_definite_and_every_number_finite(parts, std):
    found = fitted(Moments(**parts, noise=dict.fromkeys(PARTS, std)), records=40)
    assert np.isfinite(found.means).all()
    assert np.isfinite(found.covariances).all()
    for covariance in found.covariances:
        np.testing.assert_allclose(covariance, covariance.T, rtol=0, atol=1e-12 * np.trace(covariance))
        assert np.isfinite(np.linalg.inv(np.linalg.cholesky(covariance))).all()


def test_a_class_with_a_negative_noised_count_counts_as_a_small_share_of_all_and_no_less():
    u, labels = drawn()
    moments = moments_of(u, labels)
    few = fitted(replace(moments, counts=np.array([-300.0, EACH, 2 * EACH])))
    same = fitted(replace(moments, counts=np.array([0.02 * CLASSES * EACH, EACH, 2 * EACH])))
    np.testing.assert_array_equal(few.means, same.means)
    np.testing.assert_array_equal(few.covariances, same.covariances)


@pytest.mark.parametrize("left_out", [("counts",), ("sums",), ("shared", "second")])
def test_a_part_that_a_flow_is_made_of_cannot_be_left_out(left_out):
    moments = moments_of(*drawn())
    without = replace(
        moments,
        **dict.fromkeys(left_out),
        noise={name: std for name, std in moments.noise.items() if name not in left_out},
    )
    with pytest.raises(ConfigError, match=r"A weight is 0; give flow\.moments\.count_weight"):
        fitted(without)
    with pytest.raises(ConfigError, match="A warm start needs counts, sums and a second moment"):
        check_parts(without.arrays())


def warm(blocks=2):
    config = FlowConfig(
        warm_start="moments", front_end={"size": 2, "descriptor": "none"}, dense={"blocks": blocks, "width": 8}
    )
    return ConditionalFlow(config, (1, 4, 4), CLASSES, seed=0)


def moments_for(flow):
    """Return exact moments of drawn coordinates for a flow of four of them."""
    u, labels = drawn()
    u = u[:, :4] / 4
    return u, labels, NoisedMoments(np.full(4, 0.1), moments_of(u, labels), len(u))


def test_the_flows_coordinates_are_of_the_released_normal_distributions():
    """20,000 drawn of each class; every mean and covariance within 6 of its standard errors, 42 figures."""
    flow = warm()
    u, labels, moments = moments_for(flow)
    fit_affine(flow, moments)
    generator, count = torch.Generator().manual_seed(0), 20_000
    for label in range(CLASSES):
        condition = condition_of(torch.full((count,), label), CLASSES)
        with torch.no_grad():
            found = flow.colour(torch.randn(count, 4, generator=generator), condition).double().numpy()
        mean = u[labels == label].mean(axis=0)
        covariance = np.cov(u[labels == label].T, bias=True) + floor(u, labels)
        variances = np.diag(covariance)
        assert (np.abs(found.mean(axis=0) - mean) < 6 * np.sqrt(variances / count)).all()
        error = np.sqrt((covariance**2 + np.outer(variances, variances)) / count)
        assert (np.abs(np.cov(found.T) - covariance) < 6 * error).all()


def test_a_fitted_flow_sees_records_from_the_released_centre_and_its_blocks_do_nothing_yet():
    flow = warm()
    before = {name: each.clone() for name, each in flow.named_parameters()}
    u, _, moments = moments_for(flow)
    fit_affine(flow, moments)
    assert flow.coordinates.centre.tolist() == pytest.approx([0.1] * 4)
    assert flow.coordinates.spread.item() == pytest.approx((1 - 0.04) ** 0.5)
    moved = {name for name, each in flow.named_parameters() if not torch.equal(each, before[name])}
    assert moved == {"coordinates.centre", "coordinates.spread", "affine.mean", "affine.whitening"}
    condition = condition_of(torch.arange(CLASSES), CLASSES)
    white, log_det = flow.affine(torch.from_numpy(u[:3]).float(), condition)
    z, whole = flow.whiten(torch.from_numpy(u[:3]).float(), condition)
    torch.testing.assert_close(z.sort(dim=1).values.square().sum(dim=1), white.square().sum(dim=1))
    torch.testing.assert_close(whole, log_det)


@pytest.mark.parametrize("parts", ABSURD)
def test_weights_of_a_fitted_flow_are_finite_whatever_was_released(parts):
    flow = warm()
    cut = {
        name: part[..., :4] if name == "sums" else part[..., :4, :4] for name, part in parts.items() if part.ndim > 1
    }
    moments = Moments(**{"counts": parts["counts"]} | cut, noise=dict.fromkeys(PARTS, 3.0))
    fit_affine(flow, NoisedMoments(np.zeros(4), moments, 40))
    assert all(torch.isfinite(each).all() for each in flow.parameters())


@pytest.mark.parametrize("front_end", [{"size": 2, "descriptor": "none"}, {}])
def test_a_warm_started_flow_comes_back_from_its_file(tmp_path, front_end):
    """Its shapes are checked before memory is taken for it, front end and all."""
    config = FlowConfig(warm_start="moments", front_end=front_end, dense={"blocks": 2, "width": 8})
    card = FlowCard(config, Schema(name="x", shape=(1, 8, 8), classes=("a", "b", "c")), 3, "private", "seeded")
    flow, generator = card.build(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in (flow.coordinates.centre, flow.coordinates.spread, flow.affine.mean, flow.affine.whitening):
            each.add_(0.1 * torch.randn(each.shape, generator=generator))
    save_flow(tmp_path / "flow", flow, card)
    back, found = load_flow(tmp_path / "flow")
    assert (found, flow_sha256(back)) == (card, flow_sha256(flow))
    x, condition = torch.rand(3, 1, 8, 8, generator=generator), condition_of(torch.arange(3), 3)
    torch.testing.assert_close(back.log_prob(x, condition), flow.log_prob(x, condition), rtol=0, atol=0)

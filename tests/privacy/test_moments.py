"""Laws of noised moments: how far a record moves them, that integers hold them exactly, and what the noise is."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize
from scipy.stats import kstest, norm

from cadp_fl.errors import ExchangeError, PrivacyError
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.events import GaussianMoments, GaussianSum
from cadp_fl.privacy.gaussian import gaussian_delta
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.moments import Moments, clipped_sum, joint_moments, packed, unpacked
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.sensitivity import moments_sensitivity

FALSE_ALARM = 1e-4
"""Probability at which a statistical test with a fresh key would fail by chance; the keys are fixed."""

WEIGHTS = [
    (0.25, 1.0, 1.0, 1.0),
    (0.25, 1.0, 1.0, 0.0),
    (0.25, 1.0, 0.5, 0.5),
    (0.0, 1.0, 0.5, 0.5),
    (0.0, 0.5, 1.0, 0.0),
    (0.0, 0.0, 2.0, 0.0625),
    (0.0, 2.0, 0.0, 0.0),
    (3.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 1.0),
]


class Silence:
    """A source of noise that gives none, so that what is noised can be seen."""

    def rounded_normal(self, shape, std, like):
        return torch.zeros(shape, dtype=torch.int64)


def moments_event(weights=(0.25, 1.0, 1.0, 1.0), noise_std=9.0, clip_norm=2.0, **changes):
    names = ("count_weight", "sum_weight", "shared_weight", "class_weight")
    return GaussianMoments(
        stage="moments", noise_std=noise_std, clip_norm=clip_norm, **dict(zip(names, weights, strict=True)), **changes
    )


def sum_event(noise_std=30.0, clip_norm=2.0, **changes):
    return GaussianSum(stage="moments", noise_std=noise_std, clip_norm=clip_norm, **changes)


def phi(u, label, weights, classes=2):
    """Return the joint vector of one record, written out: every entry of u u^T, no triangle."""
    a, b, s, w = weights
    of_class = np.eye(classes)[label]
    square = np.outer(u, u)
    parts = (a * of_class, b * np.outer(of_class, u), s * square, w * np.multiply.outer(of_class, square))
    return np.concatenate([part.ravel() for part in parts])


def joint_vector(moments, weights):
    """Return the joint vector that released parts belong to: weights and the two places of an entry put back."""
    parts = (moments.counts, moments.sums, moments.shared, moments.second)
    return np.concatenate([w * part.ravel() for w, part in zip(weights, parts, strict=True) if part is not None])


def furthest_apart(weights, labels, dims=3, starts=12):
    """Return the largest |phi(u, y) - phi(v, z)| over the unit ball that a local search from many starts finds."""
    generator, best = np.random.default_rng(0), 0.0

    def within(point):
        return [vector / max(1.0, np.linalg.norm(vector)) for vector in (point[:dims], point[dims:])]

    for _ in range(starts):
        start = generator.normal(size=2 * dims) * generator.uniform(0.2, 2)
        found = minimize(
            lambda point: -np.linalg.norm(np.subtract(*map(phi, within(point), labels, [weights] * 2))),
            start,
            method="Nelder-Mead",
            options={"maxiter": 4000, "xatol": 1e-7, "fatol": 1e-10},
        )
        best = max(best, -found.fun)
    return best


@pytest.mark.parametrize("weights", WEIGHTS)
def test_no_two_records_are_further_apart_than_the_sensitivity_and_some_are_as_far(weights):
    best = max(furthest_apart(weights, labels) for labels in ((0, 0), (0, 1)))
    assert moments_sensitivity(*weights, replaces=True) == pytest.approx(best, rel=1e-6)
    longest = np.linalg.norm(phi(np.eye(3)[0], 0, weights))
    assert moments_sensitivity(*weights, replaces=False) == pytest.approx(longest)


def test_neither_a_changed_label_nor_a_changed_record_is_always_the_worst_and_opposites_need_not_be():
    def found(weights):
        return furthest_apart(weights, (0, 0)), furthest_apart(weights, (0, 1))

    within, across = found((0.0, 1.0, 1.0, 1.0))
    assert within > across
    within, across = found((1.0, 1.0, 0.0, 1.0))
    assert within < across
    opposites = np.linalg.norm(phi(np.eye(3)[0], 0, (0, 1, 1, 1)) - phi(-np.eye(3)[0], 0, (0, 1, 1, 1)))
    assert furthest_apart((0.0, 1.0, 1.0, 1.0), (0, 0)) > 1.2 * opposites


@settings(max_examples=300)
@given(
    weights=st.tuples(*[st.just(0.0) | st.floats(1 / 16, 16)] * 4),
    radii=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    cosine=st.floats(-1, 1),
    changes_label=st.booleans(),
)
def test_no_angle_and_no_shorter_record_exceeds_the_sensitivity(weights, radii, cosine, changes_label):
    u = np.array([radii[0], 0.0])
    v = radii[1] * np.array([cosine, math.sqrt(1 - cosine**2)])
    apart = np.linalg.norm(phi(u, 0, weights) - phi(v, int(changes_label), weights))
    assert apart <= moments_sensitivity(*weights, replaces=True) * (1 + 1e-12)
    assert np.linalg.norm(phi(u, 0, weights)) <= moments_sensitivity(*weights, replaces=False) * (1 + 1e-12)


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize(
    ("relation", "of_sum", "of_moments"), [(Relation.REPLACE_ONE, 2.0, 2.5), (Relation.ADD_OR_REMOVE_ONE, 1.0, 1.75)]
)
def test_sums_and_moments_cost_what_the_closed_form_says(m, relation, of_sum, of_moments):
    """At a = 1/4, b = s = w = 1: 2 + 4 + 1/4 = 6.25 within a class, above 2 (3 + 1/16) = 6.125 across."""
    for event, sensitivity in (
        (sum_event(30.0, clip_norm=3.0, records_per_unit=m), 3.0 * m * of_sum),
        (moments_event(noise_std=9.0, records_per_unit=m), m * of_moments),
    ):
        epsilon = epsilon_of([event], 1e-5, relation)
        assert gaussian_delta(epsilon, event.noise_std, sensitivity) == pytest.approx(1e-5, rel=1e-6)
    both = epsilon_of([sum_event(20.0, records_per_unit=m), moments_event(records_per_unit=m)], 1e-5, relation)
    mu = math.hypot(2.0 * m * of_sum / 20.0, m * of_moments / 9.0)
    assert gaussian_delta(both, 1.0, mu) == pytest.approx(1e-5, rel=1e-6)


def hostile_features(dims, radius):
    """Return rows (places, dims) long along an axis, long everywhere, half a step past a multiple, or no numbers."""
    generator = np.random.default_rng(dims)
    axes, flat = np.eye(dims)[:2], np.ones((1, dims))
    rows = [axes * 1e6, -axes * 1e6, axes * radius, axes * radius / 3, flat, -flat, flat * 1e-3, flat * 1e28, flat * 0]
    rows += [generator.normal(size=(20, dims)) * 10 ** np.linspace(-8, 25, 20)[:, None]]
    rows += [flat * bad for bad in (math.nan, math.inf, -math.inf, 1e308, 5e-324)]
    half = radius / math.sqrt(dims) * (1 - 1e-4)
    return np.concatenate([*rows, np.floor(flat * half * 2**12) / 2**12 + 2.0**-13])


def measured(features, labels, event, classes=2, centre=None, noise=None, **named):
    centre = np.zeros(features.shape[1]) if centre is None else centre
    return joint_moments(features, labels, event, classes=classes, centre=centre, noise=noise or Silence(), **named)


@pytest.mark.parametrize("dims", [1, 2, 36, 100])
@pytest.mark.parametrize(("clip_norm", "noise_std"), [(2.0, 9.0), (1e-3, 0.5), (4.6, 1e4), (1e6, 200.0)])
def test_no_record_is_longer_than_one_on_the_grid(dims, clip_norm, noise_std):
    """In Python's integers: its sum is u, of squared norm at most 1 / gamma^2, and its second moment u u^T."""
    event = moments_event(noise_std=noise_std, clip_norm=clip_norm)
    steps = round(1 / event.grid)
    longest = 0
    for row in hostile_features(dims, clip_norm):
        moments = measured(row[None], np.array([1]), event)
        u = [int(value) for value in moments.sums[1] * steps]
        assert (np.array(u, dtype=float) == moments.sums[1] * steps).all()
        assert sum(value**2 for value in u) <= steps**2
        longest = max(longest, sum(value**2 for value in u))
        assert (moments.second[1] * float(steps**2) == np.outer(u, u)).all()
        assert (moments.shared == moments.second[1]).all()
        assert moments.counts.tolist() == [0, 1]
        assert not moments.second[0].any()
    assert longest > 0.97 * steps**2 or noise_std == 1e4


@pytest.mark.parametrize("weights", [(0.25, 1.0, 1.0, 1.0), (0.25, 1.0, 0.5, 0.5), (1.0, 1.0, 1.0, 0.0)])
@pytest.mark.parametrize("dims", [4, 100])
def test_replacing_a_record_moves_what_is_noised_by_no_more_than_the_sensitivity(weights, dims):
    """Ten classes, of the real size; the worst pair comes within a hundredth of it."""
    event, generator = moments_event(weights, clip_norm=2.0), np.random.default_rng(1)
    others, labels = generator.normal(size=(30, dims)), generator.integers(0, 10, 31)
    sensitivity, centre = moments_sensitivity(*weights, replaces=True), generator.normal(size=dims)
    squares = weights[2] ** 2 + weights[3] ** 2
    cosine = max(-1.0, -(weights[1] ** 2) / (2 * squares))
    axis = np.eye(dims)
    angled = cosine * axis[0] + math.sqrt(1 - cosine**2) * axis[1]
    ends = [axis[0], -axis[0], axis[1], angled, 0 * axis[0], 0.5 * angled, axis[0] * math.nan]
    moved = []
    for (u, y), (v, z) in itertools.combinations(itertools.product(ends, (0, 7)), 2):
        released = [
            measured(np.vstack([others, centre + 100 * end]), np.append(labels[:30], label), event, 10, centre)
            for end, label in ((u, y), (v, z))
        ]
        moved.append(np.linalg.norm(np.subtract(*(joint_vector(each, weights) for each in released))))
    assert 0.99 * sensitivity <= max(moved) <= sensitivity


@pytest.mark.parametrize("dims", [1, 5, 100])
@pytest.mark.parametrize("noise_std", [1e-3, 30.0, 1e5])
def test_replacing_a_record_moves_a_clipped_sum_by_no_more_than_twice_the_clip_norm(dims, noise_std):
    event = sum_event(noise_std, clip_norm=2.0)
    sums = [clipped_sum(row[None], event, noise=Silence()) for row in hostile_features(dims, 2.0)]
    assert all((each / event.grid == np.round(each / event.grid)).all() for each in sums)
    longest = max(sum(Fraction(value) ** 2 for value in each.tolist()) for each in sums)
    assert longest <= 4
    moved = max(np.linalg.norm(a - b) for a, b in itertools.combinations(sums, 2))
    assert moved <= 4
    assert moved > 3.9 or noise_std == 1e5


def test_sums_are_exact_whatever_the_order():
    generator, event = np.random.default_rng(2), moments_event(noise_std=0.3, clip_norm=3.0)
    features, labels = generator.normal(size=(500, 8)), generator.integers(0, 3, 500)
    whole = measured(features, labels, event, 3)
    rows = [measured(row[None], np.array([label]), event, 3) for row, label in zip(features, labels, strict=True)]
    for name in ("counts", "sums", "shared", "second"):
        exact = sum(np.vectorize(Fraction)(getattr(row, name)) for row in rows)
        assert (np.vectorize(Fraction)(getattr(whole, name)) == exact).all()
    order = generator.permutation(500)
    again = measured(features[order], labels[order], event, 3)
    assert all((part == again.arrays()[name]).all() for name, part in whole.arrays().items())
    assert clipped_sum(features, sum_event(), noise=Silence()).tolist() == pytest.approx(
        clipped_sum(features[order], sum_event(), noise=Silence()).tolist(), abs=0
    )


def test_without_noise_they_are_the_moments_of_the_clipped_records():
    generator, event = np.random.default_rng(3), moments_event(clip_norm=2.0)
    features, labels, centre = generator.normal(size=(4000, 6)), generator.integers(0, 3, 4000), np.full(6, 0.1)
    moments, grid = measured(features, labels, event, 3, centre), event.grid
    centred = features - centre
    u = centred / np.maximum(2.0, np.linalg.norm(centred, axis=1, keepdims=True))
    for label in range(3):
        mine = u[labels == label]
        assert moments.counts[label] == len(mine)
        assert np.abs(moments.sums[label] / len(mine) - mine.mean(axis=0)).max() < grid / 4
        assert np.abs(moments.second[label] - mine.T @ mine).max() < 4 * grid * len(mine)
    assert moments.shared == pytest.approx(u.T @ u, abs=4 * grid * len(u))


def test_a_part_of_weight_zero_is_left_out():
    features, labels = np.zeros((3, 2)), np.array([0, 1, 1])
    for weights in WEIGHTS:
        moments = measured(features, labels, moments_event(weights, noise_std=4.0), noise=NoiseSource.from_seed(1))
        parts = [moments.counts, moments.sums, moments.shared, moments.second]
        assert [part is not None for part in parts] == [weight > 0 for weight in weights]
        assert set(moments.arrays()) == set(moments.noise)


def test_a_blank_adds_nothing():
    generator = np.random.default_rng(4)
    features, labels, blank = generator.normal(size=(40, 5)), generator.integers(0, 2, 40), np.arange(40) % 3 == 0
    whole = measured(features, labels, moments_event(), blank=blank)
    kept = measured(features[~blank], labels[~blank], moments_event())
    assert all((part == kept.arrays()[name]).all() for name, part in whole.arrays().items())
    assert (
        clipped_sum(features, sum_event(), noise=Silence(), blank=blank)
        == clipped_sum(features[~blank], sum_event(), noise=Silence())
    ).all()
    assert (features[blank] != 0).any()


def test_features_stay_as_they_are():
    features = np.random.default_rng(5).normal(size=(10, 3)) * 9
    before = features.copy()
    clipped_sum(features, sum_event(), noise=Silence())
    measured(features, np.zeros(10, dtype=np.int64), moments_event())
    assert (features == before).all()


@pytest.mark.parametrize("centre", [math.nan, math.inf, 1e308, -1e308])
def test_a_hostile_centre_makes_records_zero_and_nothing_else(centre):
    features = hostile_features(4, 2.0)
    labels = np.zeros(len(features), dtype=np.int64)
    moments = measured(features, labels, moments_event(), 2, np.full(4, centre))
    assert all(np.isfinite(part).all() for part in moments.arrays().values())
    assert (moments.counts, moments.sums.any()) == (pytest.approx([len(features), 0]), False)


def test_the_noise_of_every_part_is_normal_of_the_deviation_that_is_stated():
    weights, dims, classes = (0.25, 1.0, 0.5, 2.0), 40, 10
    event = moments_event(weights, noise_std=9.0)
    generator = np.random.default_rng(6)
    features, labels = generator.normal(size=(50, dims)), generator.integers(0, classes, 50)
    still = measured(features, labels, event, classes)
    upper = np.triu(np.ones((dims, dims), dtype=bool), 1)
    found = {"counts": [], "sums": [], "shared": [], "second": []}
    off = {"shared": [], "second": []}
    for seed in range(40):
        noised = measured(features, labels, event, classes, noise=NoiseSource.from_seed(seed))
        for name, seen in found.items():
            residual = getattr(noised, name) - getattr(still, name)
            grid = event.grid if name in ("counts", "sums") else event.grid**2
            assert (residual / grid == np.round(residual / grid)).all()
            if name in off:
                assert (residual == np.swapaxes(residual, -1, -2)).all()
                off[name].append(residual[..., upper].ravel())
                residual = np.diagonal(residual, axis1=-2, axis2=-1)
            seen.append(residual.ravel())
    for (name, seen), weight in zip(found.items(), weights, strict=True):
        assert kstest(np.concatenate(seen) / (9.0 / weight), "norm").pvalue > FALSE_ALARM
        assert noised.noise[name] == pytest.approx(9.0 / weight, rel=1e-12)
        assert noised.noise[name] >= 9.0 / weight
    for name, weight in (("shared", 0.5), ("second", 2.0)):
        assert kstest(np.concatenate(off[name]) / (9.0 / weight / math.sqrt(2)), "norm").pvalue > FALSE_ALARM
    independent = np.corrcoef(found["second"][0].reshape(classes, dims)[0], found["shared"][0])[0, 1]
    assert abs(independent) < 0.7


def test_the_noise_of_a_sum_is_normal_of_the_share_that_one_site_adds():
    for shares in (1, 4):
        event = sum_event(30.0, shares=shares)
        noised = clipped_sum(np.zeros((3, 20_000)), event, noise=NoiseSource.from_seed(1))
        assert kstest(noised / (30.0 / math.sqrt(shares)), "norm").pvalue > FALSE_ALARM
        assert (noised / event.grid == np.round(noised / event.grid)).all()
        assert 2**20 <= event.share_std / event.grid < 2**21


@pytest.mark.parametrize("shares", [1, 3, 7, 10_000])
def test_shares_of_noise_add_up_to_no_less_than_what_is_claimed(shares):
    for event in (sum_event(30.0, shares=shares), moments_event(noise_std=9.0, shares=shares)):
        assert Fraction(event.share_std) ** 2 * shares >= Fraction(event.noise_std) ** 2
        assert event.share_std * math.sqrt(shares) == pytest.approx(event.noise_std, rel=1e-12)
        assert epsilon_of([event], 1e-5) == epsilon_of([event.model_copy(update={"shares": 1})], 1e-5)


@pytest.mark.parametrize(("shares", "std"), [(2, 0.5), (3, 0.6), (3, 0.8), (3, 1.0), (8, 0.8), (8, 1.1)])
def test_a_sum_of_rounded_normals_is_post_processing_of_one_normal_but_for_the_bound(shares, std):
    """The law of the sum, by convolution, against that of round(N(0, K s^2) + K - 1 uniforms), by quadrature."""
    reach = 60
    integers = np.arange(-reach, reach + 1)
    one = norm.cdf((integers + 0.5) / std) - norm.cdf((integers - 0.5) / std)
    added = one
    for _ in range(shares - 1):
        added = np.convolve(added, one)
    fine = 400  # steps of the quadrature in one of the grid
    at = np.arange(-reach * fine, reach * fine + 1) / fine
    density = norm.pdf(at, scale=std * math.sqrt(shares))
    box = np.ones(fine + 1) / fine
    box[[0, -1]] /= 2
    for _ in range(shares):
        density = np.convolve(density, box, mode="same")
    law = density[::fine]
    middle = len(added) // 2
    error = np.abs(added[middle - reach : middle + reach + 1] - law).max()
    assert error <= shares**2 * math.exp(-((math.pi * std) ** 2)) + 1e-6
    assert law.sum() == pytest.approx(1, abs=1e-6)


def test_sites_add_up_exactly_and_so_do_their_variances():
    event, generator = moments_event(shares=3), np.random.default_rng(7)
    sites = [
        measured(generator.normal(size=(30, 4)), generator.integers(0, 2, 30), event, noise=NoiseSource.from_seed(seed))
        for seed in range(4)
    ]
    total = Moments.total(sites)
    for name, part in total.arrays().items():
        exact = sum(np.vectorize(Fraction)(site.arrays()[name]) for site in sites)
        assert (np.vectorize(Fraction)(part) == exact).all()
        assert total.noise[name] == pytest.approx(math.sqrt(4 / 3) * moments_event().part_stds[name])
    with pytest.raises(ExchangeError, match="same parts"):
        Moments.total([])
    with pytest.raises(ExchangeError, match="same parts"):
        Moments.total([sites[0], measured(np.zeros((1, 3)), np.array([0]), event)])


def test_moments_survive_their_arrays():
    event, generator = moments_event((0.25, 1.0, 0.0, 1.0)), np.random.default_rng(8)
    moments = measured(
        generator.normal(size=(30, 4)), generator.integers(0, 2, 30), event, noise=NoiseSource.from_seed(1)
    )
    arrays = moments.arrays()
    assert {name: part.shape for name, part in arrays.items()} == {"counts": (2,), "sums": (2, 4), "second": (2, 10)}
    again = Moments.of(arrays, event, classes=2, dims=4)
    assert again.shared is None
    assert (again.second == moments.second).all()
    assert again.noise == moments.noise == event.part_stds
    for wrong in (
        {"counts": arrays["counts"]},
        arrays | {"shared": np.zeros(10)},
        arrays | {"sums": arrays["sums"].T},
        arrays | {"sums": arrays["sums"].astype(np.float32)},
        arrays | {"counts": np.array([1.0, math.nan])},
    ):
        with pytest.raises(ExchangeError):
            Moments.of(wrong, event, classes=2, dims=4)


@given(st.integers(1, 12), st.integers(0, 3))
def test_a_triangle_unpacks_to_what_was_packed(dims, count):
    matrices = np.random.default_rng(dims).normal(size=(count, dims, dims))
    matrices += np.swapaxes(matrices, -1, -2)
    assert (unpacked(packed(matrices), dims) == matrices).all()
    assert packed(matrices).shape == (count, dims * (dims + 1) // 2)


@settings(max_examples=300)
@given(
    weights=st.tuples(*[st.just(0.0) | st.floats(1 / 16, 16)] * 4),
    noise_std=st.floats(-4, 9).map(lambda exponent: 10**exponent),
    shares=st.sampled_from([1, 3, 100]),
)
def test_an_event_that_is_accepted_has_noise_that_integers_hold_and_hide_behind(weights, noise_std, shares):
    try:
        event = moments_event(weights, noise_std, shares=shares)
    except ValidationError:
        assert (
            not any(weights) or not 0.1 <= noise_std / math.sqrt(shares) <= 1e4 or max(weights) > 1 > 0.5 > min(weights)
        )
        return
    assert math.frexp(event.grid)[0] == 0.5
    assert 2.0**-16 <= event.grid <= 2.0**-4
    for name, std in event.part_stds.items():
        assert 2**6 <= std / event.grid ** (1 if name in ("counts", "sums") else 2) <= 2**30


def test_an_event_without_a_part_is_refused():
    for wrong in ((0.0,) * 4, (0.01, 1.0, 1.0, 1.0), (1.0, 1.0, -1.0, 1.0), (17.0, 1.0, 1.0, 1.0)):
        with pytest.raises(ValidationError):
            moments_event(wrong)


def test_more_records_than_float64_adds_up_are_refused():
    event = sum_event(1e-6, clip_norm=1e6)
    with pytest.raises(PrivacyError, match="below 2\\^52"):
        clipped_sum(np.zeros((3, 1)), event, noise=Silence())

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import chisquare, kstest

from cadp_fl.errors import BudgetError
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.claims import UNNAMED_FLOW, claim_of
from cadp_fl.privacy.events import LatentGaussian, LatentGaussianGrid, PoissonGaussian, events_from_json, grid_of
from cadp_fl.privacy.grid import GridGaussianMechanism
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.mechanisms import GaussianMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Plan

FALSE_ALARM = 1e-4
"""Probability at which a statistical test with a fresh key would fail by chance; the keys are fixed."""

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Silence:
    """A source of noise that gives none, so that what is noised can be seen."""

    def rounded_normal(self, shape, std, like):
        return torch.zeros(shape, dtype=torch.int64)


def integers_of(latents, mechanism, noise=None):
    """Return what is released, in steps of the grid, as Python's integers; (records, dims)."""
    released = mechanism(latents.double(), noise=noise or Silence())  # float64 holds each of them
    steps = (released / mechanism.grid).tolist()
    assert all(step.is_integer() for row in steps for step in row)
    return [[int(step) for step in row] for row in steps]


def squared_norms(latents, mechanism):
    """Return |n|^2 of each record's integers before noise, exactly."""
    return [sum(step**2 for step in row) for row in integers_of(latents, mechanism)]


def squared_radius(mechanism):
    """Return (C / gamma)^2, exactly."""
    return (Fraction(mechanism.clip_norm) / Fraction(mechanism.grid)) ** 2


def adversarial_latents(dims, radius):
    """Return latents (records, dims) that are long along an axis, everywhere, half a step past an integer, or odd."""
    generator = torch.Generator().manual_seed(dims)
    axis, flat = torch.eye(dims)[:2], torch.ones(1, dims)
    rows = [axis * 1e6, -axis * 1e6, axis * radius, flat * 1e-3, flat, -flat, flat * 1e20]
    rows += [torch.randn(20, dims, generator=generator) * 10 ** torch.linspace(-8, 25, 20)[:, None]]
    rows += [flat * bad for bad in (math.nan, math.inf, -math.inf, 3e38, 1e-45)]
    return torch.cat([row.double() for row in rows])


@pytest.mark.parametrize("dims", [1, 4, 277, 784])
@pytest.mark.parametrize(("clip_norm", "noise_std"), [(4.0, 30.0), (1e-3, 8.0), (0.02, 8.0), (1e6, 1e6), (1.0, 1e-4)])
def test_no_record_is_longer_on_the_grid_than_the_clip_norm_and_so_no_two_further_apart_than_twice_that(
    dims, clip_norm, noise_std
):
    mechanism = GridGaussianMechanism(clip_norm, noise_std)
    assert max(squared_norms(adversarial_latents(dims, clip_norm), mechanism)) <= squared_radius(mechanism)
    assert mechanism.sensitivity == 2 * clip_norm


@example(steps=10.0, entry=0.6, dims=277, exponent=0)  # rounding to the nearest would lengthen it to 16.6 steps
@example(steps=5.0, entry=0.9999999, dims=25, exponent=3)
@given(steps=st.floats(0.1, 2.0**30), entry=st.floats(0, 4), dims=st.integers(1, 400), exponent=st.integers(-20, 20))
def test_truncation_lengthens_no_vector(steps, entry, dims, exponent):
    """A vector of equal entries, of any number of steps each, with one that tops it up to the sphere."""
    noise_std = math.ldexp(1.0, exponent)
    clip_norm = steps * grid_of(noise_std)
    if not 1e-6 <= clip_norm <= 1e6:
        return
    mechanism = GridGaussianMechanism(clip_norm, noise_std)
    flat = torch.full((1, dims), entry * mechanism.grid, dtype=torch.float64)
    topped = torch.cat([flat, torch.full((1, 1), 10 * clip_norm, dtype=torch.float64)], dim=1)
    for latents in (flat, 1e6 * flat, topped):
        assert max(squared_norms(latents, mechanism)) <= squared_radius(mechanism)


def test_rounding_in_the_clip_itself_takes_no_record_past_it():
    """An eighth of a step below an integer number of steps: a factor rounded up would reach that integer."""
    mechanism = GridGaussianMechanism(2.0**16 + 7 * 2.0**-36, 2.0**-21)
    latents = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e7 + 2.0**18
    assert squared_radius(mechanism) == (2**49 + Fraction(7, 8)) ** 2
    assert max(squared_norms(latents, mechanism)) <= squared_radius(mechanism)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_clip_holds_for_latents_of_any_precision(dtype):
    mechanism = GridGaussianMechanism(3.3, 1e-3)
    generator = torch.Generator().manual_seed(0)
    latents = (torch.randn(500, 16, generator=generator) * 100).to(dtype)
    assert max(squared_norms(latents, mechanism)) <= squared_radius(mechanism)
    released = mechanism(latents, noise=Silence())
    assert released.dtype == dtype
    assert torch.linalg.vector_norm(released.double(), dim=1).min().item() == pytest.approx(3.3, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    latents=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=8, max_size=8),
    seed=st.integers(0, 2**32),
    budget=st.sampled_from([(4.0, 30.0), (1e-6, 1e-3), (1e6, 1e6), (0.7, 0.1)]),
)
def test_whatever_the_latent_what_leaves_is_finite_and_on_the_grid(dtype, latents, seed, budget):
    mechanism = GridGaussianMechanism(*budget)
    released = mechanism(torch.tensor([latents], dtype=dtype), noise=NoiseSource.from_seed(seed))
    assert all((value / mechanism.grid).is_integer() for value in released.flatten().tolist())


def test_noise_is_added_to_the_integers_so_that_every_record_can_give_every_one():
    """n + k for noise k, the same whatever the record: each output of one is, for another k, one of any other."""
    mechanism, latents = GridGaussianMechanism(4.0, 30.0), adversarial_latents(16, 4.0)
    noise = NoiseSource.from_seed(1).rounded_normal(tuple(latents.shape), 30.0 / mechanism.grid, like=latents)
    still, noised = integers_of(latents, mechanism), integers_of(latents, mechanism, NoiseSource.from_seed(1))
    assert (torch.tensor(noised) - torch.tensor(still)).equal(noise)
    assert 4096 <= 30.0 / mechanism.grid < 8192


def test_latents_that_share_their_integers_leave_as_the_same_bits():
    """Where the Gaussian mechanism, with the same noise, lets their low bits through."""
    latents = torch.full((100, 4), 0.3)
    nudged = torch.nextafter(latents, torch.ones(()))
    for kind, same in ((GridGaussianMechanism, True), (GaussianMechanism, False)):
        first, second = (kind(4.0, 1.0)(each, noise=NoiseSource.from_seed(1)) for each in (latents, nudged))
        assert torch.equal(first, second) is same


def test_in_floats_an_output_can_rule_a_record_out_for_certain_and_on_the_grid_none_does():
    """What float32 adds to 0.99999 and lands within 1/2 of zero is a multiple of 2^-24; what it adds to 0 need not be.

    The attack of Mironov (2012), on one dimension. On the grid both records give the same multiples.
    """
    near, far = torch.zeros(100_000, 1), torch.full((100_000, 1), 1e6)

    def ruled_out(mechanism, latents, step):
        released = mechanism(latents, noise=NoiseSource.from_seed(1)).double()
        inner = released[released.abs() < 0.5]
        return (inner / step != (inner / step).round()).sum().item() / len(released)

    assert ruled_out(GaussianMechanism(1.0, 1.0), far, 2.0**-24) == 0
    assert ruled_out(GaussianMechanism(1.0, 1.0), near, 2.0**-24) > 0.2
    for latents in (near, far):
        assert ruled_out(GridGaussianMechanism(1.0, 1.0), latents, 2.0**-12) == 0


@pytest.mark.parametrize("value", [0.0, 0.1, math.pi / 3, 2.0**-30, 1e30, math.nan])
def test_the_low_bits_of_what_leaves_are_uniform_whatever_the_record(value):
    mechanism = GridGaussianMechanism(4.0, 1.0)
    latents = torch.full((20_000, 8), value)
    found = torch.tensor(integers_of(latents, mechanism, NoiseSource.from_seed(7)))
    assert chisquare(np.bincount((found % 64).flatten().numpy(), minlength=64)).pvalue > FALSE_ALARM


def test_what_comes_out_is_the_clipped_latent_plus_normal_noise_to_less_than_a_step():
    latents = torch.tensor([[30.0, 40.0], [0.3, 0.4]]).repeat(20_000, 1)
    mechanism = GridGaussianMechanism(1.0, 2.0)
    out = mechanism(latents, noise=NoiseSource.from_seed(1))
    centre = torch.tensor([[0.6, 0.8], [0.3, 0.4]]).repeat(20_000, 1)
    assert kstest(((out - centre) / 2.0).flatten().numpy(), "norm").pvalue > FALSE_ALARM
    still = mechanism(latents, noise=Silence())
    assert (still - centre).abs().max().item() < mechanism.grid + 2e-5
    assert (still.abs() <= centre).all()


@pytest.mark.parametrize("std", [1e-3, 0.1, 1.0, 7.4612, 30.0, 4096.0, 1e6])
def test_the_grid_is_a_power_of_two_of_the_noise_alone(std):
    assert math.frexp(grid_of(std))[0] == 0.5
    assert 4096 <= std / grid_of(std) < 8192
    assert GridGaussianMechanism(1.0, std).grid == GridGaussianMechanism(2.0, std).grid == grid_of(std)


@pytest.mark.parametrize("relation", list(Relation))
def test_it_costs_what_the_gaussian_mechanism_does_alone_and_composed(relation):
    others = [PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=2.0, sampling_rate=0.1, steps=10)]
    for std in (2.0, 7.4612, 30.0):
        on_grid, in_floats = GridGaussianMechanism(1.0, std).event(), GaussianMechanism(1.0, std).event()
        assert epsilon_of([on_grid], 1e-5, relation) == epsilon_of([in_floats], 1e-5, relation)
        together = (epsilon_of([event, *others], 1e-5, relation, grid=1e-3) for event in (on_grid, in_floats))
        assert next(together) == next(together)


@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_it_is_calibrated_as_the_gaussian_mechanism_is(epsilon):
    on_grid, in_floats = (kind.calibrated(4.0, epsilon, 1e-5) for kind in (GridGaussianMechanism, GaussianMechanism))
    assert (on_grid.clip_norm, on_grid.noise_std) == (in_floats.clip_norm, in_floats.noise_std)
    assert epsilon_of([on_grid.event()], 1e-5) <= epsilon


def test_a_budget_that_no_noise_meets_is_refused():
    with pytest.raises(BudgetError, match="Some noise must meet the budget"):
        GridGaussianMechanism.calibrated(4.0, 1e-9, 1e-5)


def test_an_event_is_read_back_with_its_grid():
    event = GridGaussianMechanism(1.0, 7.4612).event()
    assert events_from_json([event.model_dump()]) == (event,)
    assert event.model_dump() == {
        "kind": "latent-gaussian-grid", "stage": "release", "clip_norm": 1.0, "noise_std": 7.4612, "grid": 2.0**-10,
        "records_per_unit": 1,
    }  # fmt: skip
    assert GridGaussianMechanism.from_event(event) == GridGaussianMechanism(1.0, 7.4612)
    assert GridGaussianMechanism.from_event(LatentGaussian(stage="release", clip_norm=1.0, noise_std=7.4612)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"grid": 0.001}, "power of two"),
        ({"grid": 3.0}, "power of two"),
        ({"grid": math.inf}, "finite"),
        ({"grid": math.nan}, "finite"),
        ({"grid": 0.0}, "greater than 0"),
        ({"grid": -0.5}, "greater than 0"),
        ({"grid": 4.0}, "from noise_std / 2"),
        ({"grid": 2.0**-21}, "from noise_std / 2"),
        ({"clip_norm": 1e6, "noise_std": 1e-9, "grid": 2.0**-42}, r"at most 2\^50 grids"),
        ({"clip_norm": 1e7}, "clip_norm"),
        ({"noise_std": 0.0}, "noise_std"),
    ],
)
def test_an_event_whose_integers_would_not_be_exact_is_refused(changes, reason):
    with pytest.raises(ValidationError, match=reason):
        LatentGaussianGrid(**{"stage": "release", "clip_norm": 1.0, "noise_std": 2.0, "grid": 2.0**-11} | changes)


def test_a_mechanism_without_such_an_event_cannot_be_made():
    with pytest.raises(ValidationError):
        GridGaussianMechanism(1e6, 1e-9)


def test_a_plan_that_releases_on_a_grid_has_to_name_its_flow():
    claim = claim_of(Plan("m", (GridGaussianMechanism(1.0, 7.4612).event(),), 1e-5))
    assert claim.guarantee == "given-flow"
    assert claim.unprotected == (UNNAMED_FLOW.what,)


def test_a_seed_repeats_a_release_and_another_or_a_child_does_not():
    mechanism, latents = GridGaussianMechanism(4.0, 30.0), torch.ones(4, 8)
    sources = [NoiseSource.from_seed(1), NoiseSource.from_seed(1), NoiseSource.from_seed(2)]
    first, again, other = (mechanism(latents, noise=source) for source in sources)
    child = mechanism(latents, noise=NoiseSource.from_seed(1).child("perturbation"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, child)

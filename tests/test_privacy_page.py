"""The numbers on the privacy page are computed, not remembered."""

import math
import re

import pytest
import torch

from cadp_fl.config import BudgetConfig, MomentsConfig
from cadp_fl.errors import CadpError, PolicyError
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.claims import relation_of
from cadp_fl.privacy.cohort import Cohort
from cadp_fl.privacy.events import LatentGaussian, PoissonGaussian
from cadp_fl.privacy.losses import Relation
from cadp_fl.privacy.privunit import PrivUnitMechanism
from cadp_fl.privacy.sensitivity import moments_sensitivity
from cadp_fl.privacy.shuffling import best_threshold
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
BOTH = (Relation.REPLACE_ONE, Relation.ADD_OR_REMOVE_ONE)


def release(noise_std, m=1):
    return LatentGaussian(stage="release", clip_norm=1.0, noise_std=noise_std, records_per_unit=m)


def steps(rate, noise_std, count):
    return PoissonGaussian(
        stage="classifier", clip_norm=1.0, noise_std=noise_std, sampling_rate=rate, steps=count
    )  # fmt: skip


@pytest.mark.parametrize(
    ("event", "texts"),
    [
        (release(7.4612), ("1.000", "0.469")),
        (steps(0.1, 2.0, 1), (".460", ".369")),
        (steps(0.064, 1.1, 500), ("14.25", "8.31")),
    ],
)
def test_the_epsilons_of_the_page_are_the_accountants(event, texts):
    for relation, text in zip(BOTH, texts, strict=True):
        assert text in PAGE
        assert epsilon_of([event], 1e-5, relation) == pytest.approx(float(text), rel=0.01)


@pytest.mark.parametrize(
    ("units", "central", "text"),
    [(480, 1.0, "3.12"), (1500, 1.0, "4.12"), (60000, 1.0, "7.63"), (480, 3.0, "5.14"), (1500, 3.0, "5.98")],
)
def test_the_local_epsilons_of_the_page_are_the_accountants(units, central, text):
    assert text in PAGE
    made = PrivUnitMechanism.calibrated(1.0, central, 1e-5, cohort=Cohort(units))
    assert made.latent_epsilon == pytest.approx(float(text), abs=0.006)


def test_a_released_latent_is_longer_than_the_priors_by_what_the_page_says():
    moments = PrivUnitMechanism(5.0, best_threshold(5.0)).clipped_normal(8)
    assert "by a fifth at\neps 5 and k = 8" in PAGE
    assert math.sqrt(moments.power) == pytest.approx(1.2, abs=0.01)


@pytest.mark.parametrize(("m", "text"), [(5, "2.44"), (10, "3.62")])
def test_the_cost_of_a_patient_is_the_accountants(m, text):
    assert f"{text} " in PAGE
    assert epsilon_of([release(7.4612, m)], 1e-5) == pytest.approx(float(text), abs=0.006)


def test_the_classical_formula_adds_too_little_noise_above_8_4():
    def excess(epsilon):
        return epsilon_of([release(2 * math.sqrt(2 * math.log(1.25e5)) / epsilon)], 1e-5) - epsilon

    assert "above 8.4" in PAGE
    assert excess(8.3) < 0 < excess(8.5)


def test_the_sensitivities_of_moments_are_those_of_the_page():
    def within_and_across(a, b, s, w):
        squares = s**2 + w**2
        cosine = max(-1, -(b**2) / (2 * squares))
        return 2 * b**2 * (1 - cosine) + 2 * squares * (1 - cosine**2), 2 * (a**2 + b**2 + squares)

    assert "they are 6.25 and\n6.125, so D = 2.5" in PAGE
    assert within_and_across(0.25, 1, 1, 1) == (6.25, 6.125)
    assert moments_sensitivity(0.25, 1, 1, 1, replaces=True) == 2.5
    assert "at a = b = w = 1 they are 4.5 and 6" in PAGE
    assert within_and_across(1, 1, 0, 1) == (4.5, 6)
    assert moments_sensitivity(1, 1, 0, 1, replaces=True) ** 2 == pytest.approx(6)
    assert "1.75 in the first case" in PAGE
    assert moments_sensitivity(0.25, 1, 1, 1, replaces=False) == 1.75


def test_the_noise_of_moments_on_the_page_is_what_a_budget_gives():
    budget = Budget.of(BudgetConfig(epsilon=1.0, delta=1e-5), "public")
    centre, moments = budget.moments_events(MomentsConfig(sum_weight=1, shared_weight=1), 0.3, beside=())
    assert "sigma = 9.57" in PAGE
    assert moments.noise_std == pytest.approx(9.57, abs=0.005)
    assert "33.37 C" in PAGE
    assert centre.noise_std == pytest.approx(33.37, abs=0.005)


def test_the_error_of_a_sum_of_shares_is_below_what_the_page_says():
    assert "less than 10^-8700" in PAGE
    assert 2 * math.log10(10_000) - (math.pi * 64) ** 2 / 2 / math.log(10) < -8_700  # off a diagonal, s is 64 / sqrt(2)


@pytest.mark.parametrize(("batch", "mean"), [(1, 187), (2, 127), (128, 5.4)])
def test_a_clip_by_column_sums_leaves_these_norms(batch, mean):
    generator = torch.Generator().manual_seed(0)
    norms = []
    for _ in range(50):
        z = torch.randn(batch, 784, generator=generator)
        norms.append((z / torch.linalg.matrix_norm(z, ord=1)).abs().sum(dim=1).max())
    assert f"{mean}" in PAGE
    assert torch.stack(norms).mean() == pytest.approx(mean, rel=0.05)


def test_the_relations_of_the_page_are_those_that_are_printed():
    for unit in ("record", "patient"):
        for labels in ("public", "covered"):
            assert f"| {unit} | {labels} | {relation_of(unit, labels)} |" in PAGE


def test_every_refusal_of_a_policy_has_its_number_on_the_page():
    codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE) for code in row.split(",")}
    pending, numbered = [CadpError], set()
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if issubclass(kind, PolicyError) and kind is not PolicyError:
            numbered.add(kind.code)
    assert numbered == codes - {301, 302, 303, 304}

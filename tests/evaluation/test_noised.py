"""Noised evaluations: what one test unit can move, what the noise is, and what the figures made of it are worth."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from cadp_fl.errors import ExchangeError
from cadp_fl.evaluation.noised import (
    NOISED_BINS,
    NoisedEvaluation,
    evaluation_event,
    histograms_in,
    noised_metrics_of,
    pool_noised,
    table_of,
)
from cadp_fl.evaluation.utility import evaluate, metrics_of
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.events import GaussianHistogram
from cadp_fl.privacy.histogram import noised_counts
from cadp_fl.privacy.noise import NoiseSource
from tests.evaluation.test_utility import scores

NAMES = ("accuracy", "balanced_accuracy", "auroc", "macro_f1")


def flat(log_odds, labels):
    return np.concatenate([part.ravel() for part in table_of(log_odds, labels)])


def any_record(classes, generator):
    """Return log-odds of a record that a server could bring about with weights of its choice, NaN and infinity too."""
    row = generator.normal(size=classes) * 10.0 ** generator.uniform(-3, 5)
    return np.where(generator.random(classes) < 0.2, generator.choice([np.nan, np.inf, -np.inf, 0.0], classes), row)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("m", [1, 3])
def test_replacing_a_unit_moves_the_table_by_at_most_m_times_the_root_of_2h(classes, m):
    """Units of up to m records, each replaced by any other; and the bound is met."""
    generator = np.random.default_rng(classes)
    rest, labels = scores(20, classes)
    bound, largest = m * math.sqrt(2 * histograms_in(classes)), 0.0

    def unit(size):
        return [(any_record(classes, generator), int(generator.integers(classes))) for _ in range(size)]

    def table(unit):
        rows = np.array([row for row, _ in unit]).reshape(-1, classes)
        return flat(np.concatenate([rest, rows]), np.append(labels, [label for _, label in unit]).astype(np.int64))

    certain = np.full(classes, -1e4)
    extremes = [[(np.where(np.arange(classes) == k, 1e4, certain), k)] * m for k in (0, 1)]
    extremes.append([(np.where(np.arange(classes) == 1, 2.0, np.full(classes, -2.0)), 0)] * m)
    units = [unit(generator.integers(1, m + 1)) for _ in range(25)] + extremes
    for one, other in itertools.combinations(units, 2):
        moved = np.linalg.norm(table(one) - table(other))
        assert moved <= bound + 1e-9
        largest = max(largest, moved)
    assert largest == pytest.approx(bound)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_a_record_counts_once_in_each_of_h_histograms(classes):
    confusion, histograms = table_of(*scores(50, classes))
    assert confusion.sum() == 50
    assert (histograms.sum(axis=(1, 2)) == 50).all()
    assert histograms_in(classes) == 1 + len(histograms) == (2 if classes == 2 else classes + 1)


@pytest.mark.parametrize(("epsilon", "classes", "m"), [(0.5, 2, 1), (3.0, 10, 1), (3.0, 2, 4), (50.0, 3, 1)])
def test_an_evaluation_costs_its_budget_and_no_more(epsilon, classes, m):
    event = evaluation_event(epsilon, 1e-4, classes, m)
    assert (event.times, event.histograms, event.records_per_unit) == (1, histograms_in(classes), m)
    assert 0.99 * epsilon < epsilon_of([event], 1e-4) <= epsilon


def test_the_noise_has_the_events_standard_deviation():
    """Kolmogorov-Smirnov on 200,000 draws; a false alarm in a thousand, had the generator not been fixed."""
    event = GaussianHistogram(stage="evaluation", histograms=2, noise_std=3.0)
    counts = np.random.default_rng(0).integers(0, 300, (400, 500))
    noise = noised_counts(counts, event, noise=NoiseSource.from_seed(0)) - counts
    law = norm.cdf(np.arange(-20, 20) + 0.5, scale=3.0) - norm.cdf(np.arange(-20, 20) - 0.5, scale=3.0)
    seen = np.array([(noise == value).mean() for value in range(-20, 20)])
    assert np.abs(seen - law).max() < 5 * np.sqrt(law.max() / noise.size)
    assert noise.std() == pytest.approx((9 + 1 / 12) ** 0.5, rel=0.01)


def test_a_noised_count_is_a_whole_number_whatever_the_count():
    """It has no low bits, which of a sum of floats would be finer if the count was zero than if it was five."""
    event = GaussianHistogram(stage="evaluation", histograms=2, noise_std=3.0)
    for count in (0, 5, 10**6):
        counts = noised_counts(np.full(1000, count), event, noise=NoiseSource.from_seed(1))
        assert (counts == np.round(counts)).all()
        assert len(np.unique(counts)) > 10


def noised(log_odds, labels, noise_std, generator, *, public=True):
    confusion, histograms = table_of(log_odds, labels)
    return NoisedEvaluation(
        confusion + generator.normal(0, noise_std, confusion.shape),
        histograms + generator.normal(0, noise_std, histograms.shape),
        noise_std**2,
        len(labels) if public else None,
    )


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_next_to_no_noise_gives_the_exact_figures(classes, public):
    log_odds, labels = scores(3000, classes)
    names = tuple("abcdefg"[:classes])
    exact = metrics_of(evaluate(log_odds, labels), names)
    found = noised_metrics_of(noised(log_odds, labels, 1e-3, np.random.default_rng(0), public=public), names)
    assert found.accuracy == pytest.approx(exact.accuracy, abs=1e-4)
    assert found.balanced_accuracy == pytest.approx(exact.balanced_accuracy, abs=1e-4)
    assert found.macro_f1 == pytest.approx(exact.macro_f1, abs=1e-4)
    assert found.auroc == pytest.approx(exact.auroc, abs=0.017), "30 bins do for a ranking"


@pytest.mark.parametrize("factor", [0.1, 30.0])
def test_coarse_bins_keep_a_ranking_at_any_scale_of_the_scores(factor):
    log_odds, labels = scores(3000, 2)
    exact = metrics_of(evaluate(log_odds, labels), ("a", "b")).auroc
    found = noised_metrics_of(noised(log_odds * factor, labels, 1e-3, np.random.default_rng(0)), ("a", "b"))
    assert found.auroc == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("classes", [2, 4])
def test_figures_are_right_on_average_and_their_standard_errors_are_those_of_draw_and_noise(classes, public):
    """Against 400 draws of test records and noise from one population; clipped counts would put AUROC near .5."""
    generator, names, spread = np.random.default_rng(classes), tuple("abcd"[:classes]), []
    truth = metrics_of(evaluate(*scores(100_000, classes, seed=99)), names)
    for seed in range(400):
        log_odds, labels = scores(600, classes, seed=seed)
        metrics = noised_metrics_of(noised(log_odds, labels, 3.0, generator, public=public), names)
        spread.append(
            [(getattr(metrics, name) - getattr(truth, name)) / metrics.standard_errors[name] for name in NAMES]
        )
    bias, ratio = np.mean(spread, axis=0), np.std(spread, axis=0)
    assert np.abs(bias).max() < 0.3
    for name, each in zip(NAMES, ratio, strict=True):
        assert (0.5 if name == "auroc" else 0.85) < each < 1.15, name


def test_the_noise_of_an_accuracy_has_the_variance_that_is_derived():
    """(K - 1) s^2 / n^2 where n is public: less than the K s^2 / n^2 of the diagonal alone."""
    log_odds, labels = scores(500, 2)
    generator = np.random.default_rng(3)
    found = [noised_metrics_of(noised(log_odds, labels, 8.0, generator), ("a", "b")).accuracy for _ in range(4000)]
    assert np.std(found) == pytest.approx(8.0 / 500, rel=0.05)
    assert np.mean(found) == pytest.approx(metrics_of(evaluate(log_odds, labels), ("a", "b")).accuracy, abs=1e-3)


@pytest.mark.parametrize("noise_std", [1e-3, 8.0, 40.0])
def test_the_standard_error_of_an_accuracy_is_that_of_draw_and_noise_together(noise_std):
    """a (1 - a) / n + (K - 1) s^2 / n^2, of one table; the first term is estimated, so within its own noise."""
    log_odds, labels = scores(2000, 3)
    found = noised_metrics_of(noised(log_odds, labels, noise_std, np.random.default_rng(3)), tuple("abc"))
    drawn = found.accuracy * (1 - found.accuracy) / 2000
    expected = math.sqrt(drawn + 2 * noise_std**2 / 2000**2)
    assert found.standard_errors["accuracy"] == pytest.approx(expected, rel=0.05)


def test_pooling_sites_adds_counts_and_variances():
    generator = np.random.default_rng(0)
    parts = [noised(*scores(100, 3, seed), std, generator) for seed, std in ((0, 2.0), (1, 3.0))]
    both = pool_noised(parts)
    assert (both.variance, both.records) == (13.0, 200)
    assert np.array_equal(both.confusion, parts[0].confusion + parts[1].confusion)
    assert pool_noised([parts[0], replace(parts[1], records=None)]).records is None


def test_what_the_noise_outweighs_is_null_with_the_reason():
    generator = np.random.default_rng(0)
    some = noised_metrics_of(noised(*scores(300, 5), 30.0, generator), tuple("abcde"))
    assert some.accuracy is not None
    assert some.balanced_accuracy is some.macro_f1 is some.auroc is None
    assert set(some.undefined) == {"balanced_accuracy", "macro_f1", "auroc"}
    assert "noise outweighs the test records of some class" in some.undefined["auroc"]
    none = noised_metrics_of(noised(*scores(20, 5), 300.0, generator, public=False), tuple("abcde"))
    empty = noised_metrics_of(noised(np.zeros((0, 2)), np.zeros(0, np.int64), 1.0, generator), ("a", "b"))
    for found, reason in ((none, "the noise outweighs the test records"), (empty, "no test record")):
        assert found.to_json()["undefined"] == dict.fromkeys(NAMES, reason)
        assert found.to_json()["noised"] is True


def test_figures_stay_in_their_range_whatever_the_noise():
    generator = np.random.default_rng(0)
    for noise_std in (1.0, 10.0, 100.0, 1e4):
        for public in (True, False):
            for classes in (2, 4):
                evaluation = noised(*scores(50, classes), noise_std, generator, public=public)
                found = noised_metrics_of(evaluation, tuple("abcd"[:classes]))
                for name in NAMES:
                    value = getattr(found, name)
                    assert value is None or 0 <= value <= 1
                    assert (value is None) == (name in found.undefined) == (name not in found.standard_errors)


def test_exact_figures_carry_no_mark_of_noise():
    assert not {"noised", "standard_errors"} & set(metrics_of(evaluate(*scores(50, 2)), ("a", "b")).to_json())


@pytest.mark.parametrize(
    ("confusion", "histograms"),
    [
        (np.zeros((2, 2), np.int64), np.zeros((1, 2, NOISED_BINS.number), np.int64)),
        (np.zeros((2, 3)), np.zeros((1, 2, NOISED_BINS.number))),
        (np.zeros((2, 2)), np.zeros((2, 2, NOISED_BINS.number))),
        (np.zeros((2, 2)), np.zeros((1, 2, 1000))),
        (np.zeros(()), np.zeros((1, 2, NOISED_BINS.number))),
        (np.full((2, 2), np.nan), np.zeros((1, 2, NOISED_BINS.number))),
        (np.zeros((2, 2)), np.full((1, 2, NOISED_BINS.number), np.inf)),
    ],
)
def test_noised_counts_that_do_not_fit_are_refused(confusion, histograms):
    with pytest.raises(ExchangeError):
        NoisedEvaluation(confusion, histograms, 1.0, 10)

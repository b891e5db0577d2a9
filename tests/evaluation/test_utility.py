import numpy as np
import pytest
from scipy.special import expit, logsumexp
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from cadp_fl.errors import ExchangeError
from cadp_fl.evaluation.utility import BINS, Evaluation, evaluate, metrics_of, pool


def scores(count, classes, seed=0, skill=2.0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    logits = generator.normal(size=(count, classes)) * 2
    logits[np.arange(count), labels] += skill
    others = [np.delete(logits, label, axis=1) for label in range(classes)]
    return np.stack([logits[:, k] - logsumexp(rest, axis=1) for k, rest in enumerate(others)], axis=1), labels


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_figures_are_scikit_learns(classes):
    log_odds, labels = scores(800, classes)
    found = metrics_of(evaluate(log_odds, labels), tuple("abcdefg"[:classes]))
    predicted, p = log_odds.argmax(axis=1), expit(log_odds)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    expected = roc_auc_score(labels, p[:, 1] if classes == 2 else p, multi_class="ovr")
    assert found.auroc == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("factor", [1e-3, 30.0, 300.0])
def test_a_ranking_survives_logits_that_noise_has_blown_up(factor):
    """Bins that end at 15 tied them: .984 was shown as .500."""
    log_odds, labels = scores(2000, 2)
    exact = roc_auc_score(labels, log_odds[:, 1])
    assert metrics_of(evaluate(log_odds * factor, labels), ("a", "b")).auroc == pytest.approx(exact, abs=6e-3)


def test_pooling_sites_is_evaluating_their_records_together():
    log_odds, labels = scores(300, 3)
    parts = [evaluate(log_odds[part], labels[part]) for part in (slice(0, 100), slice(100, 300))]
    together, whole = pool(parts), evaluate(log_odds, labels)
    assert np.array_equal(together.confusion, whole.confusion)
    assert np.array_equal(together.histograms, whole.histograms)


def test_a_record_counts_once_in_every_histogram():
    log_odds, labels = scores(50, 4)
    histograms = evaluate(log_odds, labels).histograms
    assert histograms.shape == (4, 2, BINS)
    assert (histograms.sum(axis=(1, 2)) == 50).all()
    assert (histograms[:, 0].sum(axis=1) == np.bincount(labels, minlength=4)).all()


def test_certain_scores_fall_into_the_outer_bins():
    histograms = evaluate(np.array([[np.inf, -np.inf], [-2e4, 2e4]]), np.array([0, 1])).histograms
    assert histograms[0, 0, BINS - 1] == histograms[0, 1, 0] == 1


def test_a_broken_model_is_counted_and_not_an_error():
    confusion = evaluate(np.full((4, 3), np.nan), np.array([0, 1, 2, 2])).confusion
    assert confusion[:, 0].tolist() == [1, 1, 2]


def test_undefined_figures_are_null_with_the_reason():
    log_odds, labels = scores(60, 3)
    held = labels < 2
    found = metrics_of(evaluate(log_odds[held], labels[held]), ("a", "b", "c"))
    assert found.auroc is None
    assert found.to_json()["undefined"] == {"auroc": "no test record of class c"}
    assert found.accuracy is not None
    empty = metrics_of(evaluate(log_odds[:0], labels[:0]), ("a", "b", "c"))
    assert set(empty.undefined) == {"accuracy", "balanced_accuracy", "auroc", "macro_f1"}


@pytest.mark.parametrize(
    ("confusion", "histograms"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2, BINS))),
        (np.zeros((2, 2)), np.zeros((2, 2, 10))),
        (np.full((2, 2), -1), np.zeros((2, 2, BINS))),
        (np.ones((2, 2)), np.zeros((2, 2, BINS))),
        (np.zeros(()), np.zeros((2, 2, BINS))),
    ],
)
def test_counts_that_do_not_fit_are_refused(confusion, histograms):
    with pytest.raises(ExchangeError):
        Evaluation(confusion.astype(np.int64), histograms.astype(np.int64))


def test_counts_are_integers():
    with pytest.raises(ExchangeError, match="int64"):
        Evaluation(np.full((2, 2), np.inf), np.full((2, 2, BINS), np.inf))

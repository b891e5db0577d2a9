"""Randomized response: what it reveals of a label, and what it costs."""

import math

import numpy as np
import pytest

from cadp_fl.privacy.events import RandomizedResponse
from cadp_fl.privacy.labels import class_counts_of, lie_probability, randomize_labels
from cadp_fl.privacy.noise import NoiseSource

CASES = pytest.mark.parametrize(("epsilon", "classes"), [(0.1, 2), (1.0, 3), (2.5, 10), (20.0, 1000), (1e-3, 2)])


def event(epsilon):
    return RandomizedResponse(stage="labels", epsilon=epsilon)


@CASES
def test_the_odds_of_two_answers_are_at_most_e_to_the_epsilon(epsilon, classes):
    lie = lie_probability(epsilon, classes)
    assert epsilon - 1e-5 <= math.log((1 - lie) / (lie / (classes - 1))) <= epsilon


@CASES
def test_answers_have_the_probabilities_that_the_event_says(epsilon, classes):
    """Each frequency within 5 standard errors: false alarm below 1e-4."""
    count, label = 200_000, classes - 1
    said = randomize_labels(np.full(count, label), classes, event(epsilon), NoiseSource.from_seed(3))
    lie = lie_probability(epsilon, classes)
    expected = np.full(classes, lie / (classes - 1))
    expected[label] = 1 - lie
    found = np.bincount(said, minlength=classes) / count
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9).all()


def test_each_answer_is_of_its_own_label_alone():
    labels = np.arange(1000) % 4
    other = labels.copy()
    other[17] = (other[17] + 1) % 4
    before, after = (randomize_labels(each, 4, event(1.0), NoiseSource.from_seed(0)) for each in (labels, other))
    assert set(np.flatnonzero(before != after)) == {17}


def test_counts_are_estimated_without_bias_from_answers_alone():
    labels = np.repeat([0, 1, 2], [6000, 3000, 1000])
    estimates = [
        class_counts_of(
            np.bincount(randomize_labels(labels, 3, event(1.0), NoiseSource.from_seed(seed)), minlength=3), event(1.0)
        )
        for seed in range(40)
    ]
    assert np.mean(estimates, axis=0) == pytest.approx([6000, 3000, 1000], abs=100)
    assert np.sum(estimates, axis=1) == pytest.approx(10_000)

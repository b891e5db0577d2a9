import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadp_fl.evaluation.intervals import t_interval

values = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_quantiles_are_the_closed_forms_of_one_and_two_degrees_of_freedom(confidence):
    p = (1 + confidence) / 2
    of_two = math.tan(math.pi * (p - 0.5))  # Cauchy
    assert t_interval([0.4, 0.6], confidence).half_width == pytest.approx(of_two * 0.1, rel=1e-9)
    of_three = (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    assert t_interval([1.0, 2.0, 3.0], confidence).half_width == pytest.approx(of_three / math.sqrt(3), rel=1e-9)


def test_it_covers_the_mean_of_a_normal_law_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(0.8, 0.02, (4000, 5))
    found = [t_interval(list(row), 0.95) for row in draws]
    covered = sum(abs(each.mean - 0.8) <= each.half_width for each in found)
    assert abs(covered / 4000 - 0.95) < 0.0135  # 3.9 standard errors: a false alarm in 10,000


@given(values, st.floats(-5, 5), st.floats(0.1, 5))
def test_it_moves_and_stretches_with_the_values(data, shift, scale):
    ours, theirs = t_interval(data, 0.95), t_interval([shift + scale * value for value in data], 0.95)
    assert theirs.mean == pytest.approx(shift + scale * ours.mean, abs=1e-9)
    assert theirs.half_width == pytest.approx(scale * ours.half_width, abs=1e-7)


def test_equal_runs_have_no_width_and_one_run_has_no_interval():
    assert t_interval([0.5, 0.5, 0.5], 0.95).half_width == 0
    alone = t_interval([0.5], 0.95)
    assert (alone.mean, alone.half_width, alone.runs) == (0.5, None, 1)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadp_fl.report.comparison_page import format_interval
from cadp_fl.report.page import format_figure
from cadp_fl.report.share import format_share


@given(st.floats(0, 1))
def test_a_share_of_1_000_is_printed_for_1_alone(value):
    text = format_share(value)
    assert (text == "1.000") == (value == 1)
    assert abs(float(text) - value) <= 0.0005 + (0.0005 if text == "0.999" else 1e-12)


@pytest.mark.parametrize(("value", "text"), [(0.9995, "0.999"), (1 - 1e-9, "0.999"), (1.0, "1.000"), (0.9994, "0.999")])
def test_every_table_rounds_a_share_the_same_way(value, text):
    assert format_figure({"accuracy": value}, "accuracy") == text
    assert format_interval({"mean": value, "half_width": None, "runs": 5}, 5) == text


def test_a_share_that_is_not_known_is_a_dash():
    assert format_share(None) == "-"

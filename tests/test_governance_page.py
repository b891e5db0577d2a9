"""What the governance page says of epsilon and delta is computed."""

import math
import re

import pytest

from cadp_fl.config import PolicyConfig
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "governance.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \| ([\d.]+) % \|$", re.M)


def _digits(text):
    return len(text.partition(".")[2])


@pytest.mark.parametrize("row", ROW.findall(PAGE))
def test_what_an_epsilon_means_for_one_person_is_what_bayes_rule_says(row):
    factor = math.exp(float(row[0]))
    even, suspicion = (odds * factor / (1 + odds * factor) for odds in (1.0, 0.01 / 0.99))
    for text, value in zip(row[1:], (factor, 100 * even, 100 * suspicion), strict=True):
        assert float(text) == round(value, _digits(text))


def test_the_page_has_the_epsilons_that_people_ask_for():
    assert [float(row[0]) for row in ROW.findall(PAGE)] == [0, 0.5, 1, 3, 10]


@pytest.mark.parametrize("units", [100, 2000, 10**4, 10**5, 10**7])
def test_a_bounded_delta_gives_away_nobody_with_a_chance_of_one_in_a_hundred(units):
    assert units * min(1 / (100 * units), units**-1.5) <= 0.01 * (1 + 1e-12)
    assert units / (10 * units) == pytest.approx(0.1)


def test_every_key_of_a_policy_that_the_page_explains_has_its_default():
    """Keys that are not there yet are skipped: the page and the policy are written side by side."""
    settings = dict(re.findall(r"`([a-z_.]+): ([\w.]+)`(?=[^|\n]*\|[^|\n]*\|$)", PAGE, re.M))
    assert {"unprotected", "made_flows", "review", "most_plans"} <= set(settings)
    fields = PolicyConfig.model_fields
    for key, value in settings.items():
        if key in fields:
            assert str(fields[key].default).lower() == value.lower(), key

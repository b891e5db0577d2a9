"""Laws of a dry run."""

from pathlib import Path

import pytest

from cadp_fl.study.estimate import estimate_study

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["quickstart", "rehearsal"])
def test_what_is_shipped_can_be_estimated(name):
    tree = estimate_study(CONFIGS / f"{name}.yaml", []).to_json()
    assert tree["totals"]["cadp"] == pytest.approx(3.0, abs=1e-3)

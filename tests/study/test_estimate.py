"""Laws of a dry run."""

from pathlib import Path

import pytest

from cadp_fl.errors import ConfigError
from cadp_fl.study.estimate import estimate_study

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["quickstart", "rehearsal", "mnist8k", "pneumonia"])
def test_what_is_shipped_can_be_estimated(name):
    tree = estimate_study(CONFIGS / f"{name}.yaml", []).to_json()
    assert tree["totals"]["cadp"] == pytest.approx(3.0, abs=1e-3)


WARM = ["flow.warm_start=moments", "methods={cadp: {}, flow-samples: {}, dp-sgd: {rounds: 1}, fedavg: {rounds: 1}}"]


def test_shares_of_stages_that_a_method_lacks_are_named():
    def unused(split, *more):
        more = more or ("release={mechanism: grid-gaussian, clip_norm: 4.0, labels: public}",)
        return estimate_study(CONFIGS / "quickstart.yaml", [*WARM, f"budget.split={split}", *more]).unused_shares

    assert unused("{}") == {}
    assert unused("{moments: 0.9, labels: 0.1}") == {
        "cadp": ("labels",),
        "flow-samples": ("moments", "labels"),
        "dp-sgd": ("moments", "labels"),
    }
    covered = unused("{labels: 0.1}", "release.labels=covered")
    assert "cadp" not in covered
    assert covered["dp-sgd"] == ("labels",)


def test_a_fit_in_closed_form_is_no_training_of_many_epochs():
    tree = estimate_study(CONFIGS / "quickstart.yaml", WARM).to_json()
    seconds = {phase["phase"]: (phase["rounds"], phase["seconds"]) for phase in tree["phases"]}
    for phase in ("cadp/central", "flow-samples/central"):
        assert seconds[phase][0] == 1
        assert seconds[phase][1] < 60, "20,000 coordinates take about a second"


@pytest.mark.parametrize("method", ["cadp: {model: quadratic}", "flow-samples: {model: quadratic}"])
def test_a_discriminant_of_coordinates_needs_a_flow_that_has_some(method):
    cold = ["flow.warm_start=none", "flow.privacy=dp-sgd", f"methods={{{method}}}"]
    with pytest.raises(ConfigError, match=r"is fitted to the coordinates of a warm start\. This study has none"):
        estimate_study(CONFIGS / "quickstart.yaml", cold)

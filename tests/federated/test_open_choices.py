"""A study over real sites names what a simulation settles by their public sizes, or nothing is reserved anywhere."""

import json
import re

import pytest

from cadp_fl.config import DataConfig, load_study
from cadp_fl.data.schema import Schema
from cadp_fl.data.sources import load_source
from cadp_fl.errors import ConfigError
from cadp_fl.federated import flower_server
from cadp_fl.federated.open_choices import check_choices
from cadp_fl.release.cohort import is_cohort_open
from cadp_fl.report.results import SiteEntry
from cadp_fl.study.run import check_study
from tests.conftest import ROOT
from tests.hospitals import Hospitals

SITES = ("north", "east", "south")
PRIVUNIT = "release={mechanism: privunit, labels: covered}"
SCHEMA = Schema(name="x", shape=(1, 8, 8), classes=tuple("0123456789"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(flower_server, "JOIN_SECONDS", 0.0)


def hospitals(folder, *overrides):
    return Hospitals(folder, "methods=[cadp]", PRIVUNIT, *overrides, labels="covered")


def stopped(study):
    """Return why a run stopped, after a look that no site spent or promised anything."""
    with pytest.raises(ConfigError, match="A study over real sites names") as refused:
        study.go()
    assert all(study.reserved(name) == () for name in SITES)
    summary = json.loads((study.folder / "summary.json").read_text())
    assert summary["status"] == "incomplete"
    assert summary["failure"] == str(refused.value)
    return str(refused.value)


def test_what_a_study_leaves_open_is_named_with_the_values_that_a_simulation_finds(tmp_path):
    asked = hospitals(tmp_path / "open", "budget.epsilon=1.0")
    said = stopped(asked)
    simulated = check_study(asked.study).study
    keys = {
        "release.shuffled_units": simulated.release.shuffled_units,
        "release.label_classes": simulated.release.label_classes,
        "flow.moments.ask": simulated.flow.moments.ask,
    }
    assert keys["flow.moments.ask"] == "few"
    named = dict(re.findall(r"([a-z._]+\.(?:shuffled_units|label_classes|ask)): (\w+)", said))
    assert named == {key: str(value) for key, value in keys.items()}
    assert "Nothing was reserved" in said
    complete = hospitals(tmp_path / "named", "budget.epsilon=1.0", *(f"{key}={value}" for key, value in named.items()))
    assert complete.go() == "complete"
    release = json.loads((complete.folder / "summary.json").read_text())["methods"]["cadp"]["release"]
    assert (release["shuffled_units"], release["not_shuffled"]) == (keys["release.shuffled_units"], None)


@pytest.mark.parametrize("choice", ["release.amplification=none", "release.shuffled_units=0"])
def test_who_says_that_each_message_is_claimed_by_itself_is_not_asked_again(tmp_path, choice):
    asked = hospitals(tmp_path, choice)
    assert not is_cohort_open(asked.study)
    assert asked.go() == "complete"


def entries(*sizes, counts=None):
    return {f"s{place}": SiteEntry(size, 10, counts) for place, size in enumerate(sizes)}


def study(*overrides):
    return load_study(ROOT / "configs" / "quickstart.yaml", ["methods=[cadp]", *overrides])


def test_where_labels_are_public_a_unit_hides_in_the_smallest_class():
    public = study("release.labels=public", "budget.epsilon=10")
    with pytest.raises(ConfigError, match=r"add release\.shuffled_units: 7 \("):
        check_choices(public, SCHEMA, entries(5000, 4000, counts={"0": 7, "1": 9, "2": 0}))


def test_a_choice_is_asked_for_only_where_the_sizes_decide_it():
    named = study("release.shuffled_units=400", "release.label_classes=10", "budget.epsilon=1")
    check_choices(named, SCHEMA, entries(50_000, 50_000))
    with pytest.raises(ConfigError, match=r"add flow\.moments\.ask: few \("):
        check_choices(named, SCHEMA, entries(400, 400))
    for said in ("all", "few"):
        own = ["release.shuffled_units=400", "release.label_classes=10", "budget.epsilon=1", f"flow.moments.ask={said}"]
        check_choices(study(*own), SCHEMA, entries(400, 400))
    check_choices(study("methods=[dp-sgd]"), SCHEMA, entries(400, 400))


def test_a_study_of_rows_over_real_sites_names_the_defaults_of_rows():
    rows = load_source(DataConfig(source="breast-cancer")).schema
    named = ["release.shuffled_units=100", "release.label_classes=2", "flow.moments.ask=all", "flow.scales=[]"]
    own = study("methods={cadp: {}, dp-sgd: {}}", *named)
    with pytest.raises(ConfigError) as caught:
        check_choices(own, rows, entries(400, 400))
    keys = dict(re.findall(r"([a-z_.-]+): ([a-z0-9.]*[a-z0-9])", str(caught.value).partition("add ")[2]))
    assert keys == {
        "flow.front_end.radius": "0.32",
        "flow.moments.count_weight": "0.5",
        "flow.moments.sum_weight": "1.0",
        "classifier.model": "logistic",
        "methods.dp-sgd.model": "logistic",
    }
    said = [f"{key}={value}" for key, value in keys.items()]
    check_choices(study("methods={cadp: {}, dp-sgd: {}}", *named, *said), rows, entries(400, 400))

"""Laws of how many numbers a warm start asks for."""

import numpy as np
import pytest

from cadp_fl.config import dump_study, load_study
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.federated.methods.parts.dp_flow import moments_of
from cadp_fl.federated.open_choices import noise_of_a_mean
from cadp_fl.study.asking import training_units
from cadp_fl.study.run import check_study
from tests.conftest import ROOT


def checked(config, *overrides):
    return check_study(load_study(config, [*overrides]))


def noise(study, sites):
    return noise_of_a_mean(study, sites[0].train.schema, training_units(study, sites))


def test_few_numbers_are_asked_for_where_noise_on_a_mean_is_longer_than_any_record(quickstart):
    only = "methods=[flow-samples]"
    tight, roomy = (checked(quickstart, only, f"budget.epsilon={epsilon}") for epsilon in (1, 3))
    assert tight.study.flow.moments.ask == "few"
    assert roomy.study.flow.moments.ask == "auto"
    assert roomy.study.flow.front_end.descriptor == "oriented-gradients"
    front_end, moments = tight.study.flow.front_end, tight.study.flow.moments
    assert (front_end.descriptor, front_end.size) == ("none", 5)
    assert (moments.class_weight, moments.shared_weight, moments.sum_weight) == (0.0, 0.1, 1.0)
    assert "second" not in moments_of(tight.study)[1].part_stds
    asked = load_study(quickstart, [only, "budget.epsilon=1"])
    assert noise(asked, tight.sites) >= 1 > noise(roomy.study, roomy.sites)
    assert noise(tight.study, tight.sites) < noise(asked, tight.sites) / 2


def test_what_a_study_says_itself_stays(quickstart):
    tight = ["methods=[flow-samples]", "budget.epsilon=1"]
    assert checked(quickstart, *tight, "flow.moments.ask=all").study.flow.front_end.size == 6
    own = checked(quickstart, *tight, "flow.front_end.size=4", "flow.moments.shared_weight=0.2").study.flow
    assert (own.moments.ask, own.front_end.size, own.front_end.descriptor) == ("few", 4, "none")
    assert (own.moments.shared_weight, own.moments.class_weight) == (0.2, 0.0)
    cold = checked(quickstart, "methods=[cadp-given-flow]", "budget.epsilon=1", "flow.warm_start=none").study.flow
    assert cold.moments.ask == "auto"


def test_few_numbers_mean_the_same_asked_for_by_hand_and_in_a_stored_study(quickstart, tmp_path):
    by_rule = checked(quickstart, "methods=[flow-samples]", "budget.epsilon=1").study
    by_hand = load_study(quickstart, ["methods=[flow-samples]", "budget.epsilon=1", "flow.moments.ask=few"])
    assert by_hand.flow == by_rule.flow
    stored = tmp_path / "config.yaml"
    stored.write_text(dump_study(by_rule))
    assert load_study(stored) == by_rule
    assert check_study(load_study(stored)).study == by_rule


def test_what_decides_is_public_a_patient_with_more_records_changes_nothing():
    """Under patients the number of records is none of the public numbers: m of each patient are counted."""
    study = load_study(
        ROOT / "configs" / "quickstart.yaml",
        ["methods=[flow-samples]", "budget.epsilon=1.4", "budget.unit=patient", "budget.records_per_patient=2"],
    )
    lengths = [noise(study, [patients(400, records_of_the_first=records)] * 3) for records in (1, 400)]
    assert lengths[0] == lengths[1]


def patients(count, *, records_of_the_first):
    ids = np.concatenate([np.zeros(records_of_the_first, dtype=np.int64), np.arange(1, count)])
    images, labels = np.zeros((len(ids), 1, 8, 8), dtype=np.uint8), np.zeros(len(ids), dtype=np.int64)
    schema = Schema(name="x", shape=(1, 8, 8), classes=tuple("0123456789"))
    records = Dataset(schema, images, labels, patients=ids)
    return SiteData(records, records.select(np.zeros(0, dtype=np.int64)))


@pytest.mark.parametrize(
    "overrides",
    [
        ["methods=[cadp]", "budget.epsilon=0.5", "flow.moments.shared_weight=0"],
        ["methods=[fedavg]", "sites.count=2", "sites.names=[a, b]", "flow.moments.noise=aggregator"],
    ],
)
def test_a_study_that_is_valid_stays_so(overrides, quickstart):
    checked(quickstart, *overrides)


def test_a_descriptor_that_a_study_asks_for_is_not_scaled_away(quickstart):
    own = load_study(quickstart, ["flow.moments.ask=few", "flow.front_end.descriptor=oriented-gradients"]).flow
    assert own.front_end.image_weight < 1


def test_a_stored_study_at_a_smaller_epsilon_asks_as_its_config_would(quickstart, tmp_path):
    stored = tmp_path / "config.yaml"
    stored.write_text(dump_study(load_study(quickstart, ["methods=[flow-samples]"])))
    few, original = (
        checked(stored, "budget.epsilon=0.5"),
        checked(quickstart, "methods=[flow-samples]", "budget.epsilon=0.5"),
    )
    assert few.study.flow == original.study.flow


@pytest.mark.parametrize("value", ["some", "[]"])
def test_another_number_is_refused_by_its_key(value, quickstart):
    with pytest.raises(Exception, match=r"flow\.moments\.ask"):
        load_study(quickstart, [f"flow.moments.ask={value}"])

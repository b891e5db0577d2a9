"""Laws of how many numbers a warm start asks for."""

import pytest

from cadp_fl.config import dump_study, load_study
from cadp_fl.federated.methods.parts.dp_flow import moments_of
from cadp_fl.study.asking import noise_of_a_mean
from cadp_fl.study.run import check_study


def checked(config, *overrides):
    return check_study(load_study(config, [*overrides]))


def test_few_numbers_are_asked_for_where_noise_on_a_mean_is_longer_than_any_record(quickstart):
    only = "methods=[flow-samples]"
    tight, roomy = (checked(quickstart, only, f"budget.epsilon={epsilon}") for epsilon in (1, 3))
    assert tight.study.flow.moments.ask == "few"
    assert roomy.study.flow.moments.ask == "auto"
    assert roomy.study.flow.front_end.descriptor == "oriented-gradients"
    front_end, moments = tight.study.flow.front_end, tight.study.flow.moments
    assert (front_end.descriptor, front_end.size, front_end.image_weight) == ("none", 5, 1.0)
    assert (moments.class_weight, moments.shared_weight, moments.sum_weight) == (0.0, 0.1, 1.0)
    assert "second" not in moments_of(tight.study)[1].part_stds
    asked = load_study(quickstart, [only, "budget.epsilon=1"])
    assert noise_of_a_mean(asked, tight.sites) >= 1 > noise_of_a_mean(roomy.study, roomy.sites)
    assert noise_of_a_mean(tight.study, tight.sites) < noise_of_a_mean(asked, tight.sites) / 2


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


@pytest.mark.parametrize("value", ["some", "[]"])
def test_another_number_is_refused_by_its_key(value, quickstart):
    with pytest.raises(Exception, match=r"flow\.moments\.ask"):
        load_study(quickstart, [f"flow.moments.ask={value}"])

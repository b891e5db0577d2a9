"""A flow that is called public had no private record in it, as far as anyone can tell."""

import numpy as np
import pytest
import torch

from cadp_fl.config import load_study
from cadp_fl.data.codec import Pixels
from cadp_fl.data.sources import load_source
from cadp_fl.errors import ConfigError, InputError
from cadp_fl.flow.storage import FlowCard, flow_sha256, load_flow, read_card, save_flow
from cadp_fl.flow.training import bits_per_dim
from cadp_fl.standalone.pretrain import pretrain
from cadp_fl.weights import get_weights


@pytest.fixture
def study(quickstart, tiny_overrides):
    return load_study(quickstart, [*tiny_overrides, "flow.training.local_epochs=2"])


def changed(study, *overrides, tmp_path):
    from cadp_fl.config import dump_study

    (tmp_path / "study.yaml").write_text(dump_study(study))
    return load_study(tmp_path / "study.yaml", overrides)


def stored(study, path, trained_on):
    card = FlowCard(study.flow, load_source(study.data).schema, 5, trained_on)
    flow = card.build()
    save_flow(path, flow, card)
    return flow


def test_a_pretrained_flow_is_stored_as_public_and_explains_its_records(study, tmp_path):
    steps = []
    made = pretrain(study, tmp_path / "deep" / "flow.safetensors", watch=steps.append)
    flow, card = load_flow(tmp_path / "deep" / "flow.safetensors")
    assert (card.trained_on, card.seed, card.dataset.name) == ("public", study.seed, "digits")
    assert flow_sha256(flow) == made["sha256"]
    assert (made["records"], made["epochs"]) == (1797, 4)
    rounds = [step for step in steps if step["step"] == "round"]
    assert steps[0]["phases"] == {"pretrain": 4}
    assert [step["round"] for step in rounds] == [1, 2, 3, 4]
    assert rounds[-1]["bits_per_dim"] == made["bits_per_dim"] < rounds[0]["bits_per_dim"]
    train = load_source(study.data).train
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    with torch.no_grad():
        before, after = (bits_per_dim(each, images, labels, Pixels(17)).mean() for each in (card.build(), flow))
    assert after < before


def test_one_seed_pretrains_one_flow(study, tmp_path):
    made = [pretrain(study, tmp_path / name, watch=lambda step: None) for name in ("a", "b")]
    assert made[0]["sha256"] == made[1]["sha256"]


def test_pretraining_goes_on_from_a_public_flow_and_keeps_what_is_frozen(study, tmp_path):
    first = stored(study, tmp_path / "first.safetensors", "public")
    start = f"{{path: {tmp_path / 'first.safetensors'}, trained_on: public, freeze: [dense]}}"
    study = changed(study, f"flow.pretrained={start}", tmp_path=tmp_path)
    pretrain(study, tmp_path / "second.safetensors", watch=lambda step: None)
    second, card = load_flow(tmp_path / "second.safetensors")
    assert (card.seed, card.trained_on) == (5, "public")
    before, after = get_weights(first), get_weights(second)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved
    assert not any(name.startswith("dense.") for name in moved)


@pytest.mark.parametrize(
    ("declared", "stated", "says"),
    [("private", "public", "as flow.pretrained.trained_on says"), ("public", "private", "as the file says")],
)
def test_a_flow_that_is_made_from_a_private_one_is_never_called_public(study, tmp_path, declared, stated, says):
    stored(study, tmp_path / "first.safetensors", stated)
    start = f"{{path: {tmp_path / 'first.safetensors'}, trained_on: {declared}}}"
    study = changed(study, f"flow.pretrained={start}", tmp_path=tmp_path)
    with pytest.raises(ConfigError, match=says):
        pretrain(study, tmp_path / "second.safetensors", watch=lambda step: None)
    assert not (tmp_path / "second.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["flow.training.rounds=0"], "Found flow.training.rounds 0"),
        (["flow.pretrained.freeze=[all]"], r"freeze \[all\]"),
        (["flow.pretrained.freeze=[scales.0, dense]"], "freeze that names every part"),
    ],
)
def test_a_study_that_trains_no_flow_is_refused(study, tmp_path, overrides, found):
    stored(study, tmp_path / "first.safetensors", "public")
    start = f"flow.pretrained={{path: {tmp_path / 'first.safetensors'}, trained_on: public}}"
    study = changed(study, start, *overrides, tmp_path=tmp_path)
    with pytest.raises(ConfigError, match=found):
        pretrain(study, tmp_path / "second.safetensors", watch=lambda step: None)


def test_a_pretrained_flow_of_another_architecture_is_refused(study, tmp_path):
    stored(study, tmp_path / "first.safetensors", "public")
    start = f"flow.pretrained={{path: {tmp_path / 'first.safetensors'}, trained_on: public}}"
    study = changed(study, start, "flow.clamp=1.0", tmp_path=tmp_path)
    with pytest.raises(ConfigError, match=r"flow.clamp is 1.0 in the study and 1.5"):
        pretrain(study, tmp_path / "second.safetensors", watch=lambda step: None)


def test_a_file_is_never_written_over(study, tmp_path):
    stored(study, tmp_path / "flow.safetensors", "private")
    with pytest.raises(InputError, match="A stored flow is never written over another file"):
        pretrain(study, tmp_path / "flow.safetensors", watch=lambda step: None)
    assert read_card(tmp_path / "flow.safetensors").trained_on == "private"

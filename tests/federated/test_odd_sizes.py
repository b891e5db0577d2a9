"""Images of any size: a method refuses what it cannot build, and nothing that it does not use."""

import re

import numpy as np
import pytest

from cadp_fl.data.schema import Schema
from cadp_fl.errors import ConfigError
from cadp_fl.flow.storage import FlowCard, save_flow
from cadp_fl.site.protocol import ACTIONS
from cadp_fl.study.estimate import estimate_study
from cadp_fl.study.run import check_study
from tests.federated.test_private_flow import COLD, DP_SGD, WARM, config_of
from tests.federated.test_workflow import Run

SIDES = [(7, 7), (5, 9), (1, 3)]
WITHOUT_SCALES = "{fedavg: {rounds: 1}, local: {epochs: 1}, dp-sgd: {rounds: 1, local_steps: 1}, moments: {}, "
WITHOUT_SCALES += "dp-sgd-dct: {rounds: 1, local_steps: 1}, dp-sgd-cnn: {rounds: 1, local_steps: 1}, flow-samples: {}, "
WITHOUT_SCALES += "flow-bayes: {}, cadp: {}}"
WITH_SCALES = ("cadp-given-flow", "cadp", "flow-samples", "flow-bayes")


def run_of(folder, sides, *overrides):
    """Return a run over images of two classes, a dark and a bright one, of some sides."""
    generator, labels = np.random.default_rng(0), np.arange(240) % 2
    images = generator.integers(0, 156, (240, *sides)) + 100 * labels[:, None, None]
    np.savez(folder / "odd.npz", train_images=images.astype(np.uint8), train_labels=labels)
    data = "data={source: medmnist, classes: [dark, bright]}", f"data.path={folder / 'odd.npz'}"
    return Run(config_of(folder), *data, "sites.partition={kind: iid}", "release.latent_dims=null", *overrides)


@pytest.mark.parametrize("sides", SIDES)
def test_methods_without_scales_take_images_of_any_size(tmp_path, sides):
    run = run_of(tmp_path, sides, WARM, f"methods={WITHOUT_SCALES}")
    check_study(run.study)
    assert run.go() == "complete"
    assert len(run.json("summary.json")["methods"]) == 9
    assert len(estimate_study(run.folder / "config.yaml", []).phases) > 9


@pytest.mark.parametrize("method", WITH_SCALES)
def test_a_method_whose_flow_has_scales_names_them_and_what_works(tmp_path, method):
    overrides = (COLD, *DP_SGD, f"methods=[fedavg, {method}]", "flow.scales=[{channels: 4}, {channels: 4}]")
    run = run_of(tmp_path, (6, 7), *overrides, "flow.dense.blocks=0")
    with pytest.raises(ConfigError, match=f"Method {method}: Each of flow.scales halves") as caught:
        check_study(run.study)
    assert "use no flow.scales and flow.dense.blocks above zero, or images of 8 x 8." in str(caught.value)
    check_study(run_of(tmp_path, (6, 7), *overrides, "flow.dense.blocks=1", "flow.scales=[]").study)
    check_study(run_of(tmp_path, (8, 8), *overrides, "flow.dense.blocks=0").study)
    with pytest.raises(ConfigError, match=r"use at most 1 of flow.scales, or images of 8 x 12\.$"):
        check_study(run_of(tmp_path, (6, 10), *overrides).study)
    check_study(run_of(tmp_path, (6, 10), *overrides, "flow.scales=[{channels: 4}]").study)


def test_a_run_whose_records_do_not_fit_ends_before_a_site_sets_anything_aside(tmp_path):
    run = run_of(tmp_path, (7, 7), COLD, "methods=[fedavg, cadp-given-flow]")
    with pytest.raises(ConfigError, match=r"Method cadp-given-flow: Each of flow\.scales"):
        run.go()
    assert {message.metadata.message_type for message in run.grid.sent} == {ACTIONS["describe"]}


@pytest.mark.parametrize("sides", SIDES)
def test_a_flow_without_scales_and_blocks_is_refused_by_the_method_that_would_train_it(tmp_path, sides):
    overrides = (WARM, "flow.scales=[]", "flow.dense.blocks=0")
    check_study(run_of(tmp_path, sides, *overrides, "methods=[moments, fedavg]").study)
    with pytest.raises(ConfigError, match=r"needs coupling blocks.* give scales, or dense.blocks above zero"):
        check_study(run_of(tmp_path, sides, *overrides, "methods=[cadp-given-flow]").study)
    check_study(run_of(tmp_path, sides, *overrides[:2], "methods=[cadp-given-flow]").study)


def test_what_only_a_release_uses_is_checked_where_one_is_made(tmp_path):
    overrides = (WARM, "release.latent_dims=99")
    check_study(run_of(tmp_path, (7, 7), *overrides, "methods=[moments, dp-sgd, fedavg, local]").study)
    with pytest.raises(ConfigError, match=r"Method cadp: release.latent_dims is at most .* (\d+) dim.* 99") as caught:
        check_study(run_of(tmp_path, (7, 7), *overrides, "methods=[moments, cadp]").study)
    largest = re.search(r"the flow's (\d+) dimensions", str(caught.value))[1]
    check_study(run_of(tmp_path, (7, 7), WARM, f"release.latent_dims={largest}", "methods=[cadp]").study)


def test_a_stored_flow_is_compared_with_the_records_where_one_is_used(tmp_path):
    stored = tmp_path / "flow.safetensors"
    schema = Schema(name="others", shape=(1, 8, 8), classes=("dark", "bright"))
    card = FlowCard(run_of(tmp_path, (8, 8), COLD).study.flow.architecture(), schema, 0, "public")
    save_flow(stored, card.build(), card)
    start = (COLD, f"flow.pretrained={{path: {stored}, trained_on: public, freeze: [all]}}")
    check_study(run_of(tmp_path, (8, 8), *start, "methods=[cadp]").study)
    check_study(run_of(tmp_path, (7, 7), *start, "methods=[dp-sgd, fedavg, local]").study)
    for method in ("cadp", "flow-samples", "flow-bayes", "cadp-given-flow"):
        with pytest.raises(ConfigError, match=f"Method {method}: A pretrained flow fits the records. Their shape"):
            check_study(run_of(tmp_path, (7, 7), *start, f"methods=[fedavg, {method}]").study)

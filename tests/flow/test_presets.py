"""The paper's published architectures: each is built, trained and inverted."""

import pytest
import torch

from cadp_fl.config import FlowConfig, FlowTrainingConfig, load_study
from cadp_fl.data.codec import Pixels
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.training import Progress, train_flow
from tests.conftest import ROOT

SHAPES = {
    "mnist": ((1, 28, 28), 10),
    "chest-xray": ((1, 128, 128), 2),
    "oct": ((1, 128, 128), 4),
    "celeba": ((3, 128, 128), 40),
}


def preset(name, monkeypatch, narrowed):
    monkeypatch.setenv("CADP_FL_DATA", "/data")
    tree = load_study(ROOT / "configs" / "paper" / f"{name}.yaml").flow.cold().model_dump()
    for scale in tree["scales"]:
        scale["channels"] //= narrowed
    tree["dense"]["width"] //= narrowed
    return FlowConfig.model_validate(tree)


def records(name, count):
    shape, conditions = SHAPES[name]
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, shape[0], 4, 4, generator=generator)
    images = (torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear") * 255).to(torch.uint8)
    if name == "celeba":
        return images, torch.randint(0, 2, (count, conditions), generator=generator)
    return images, torch.randint(0, conditions, (count,), generator=generator)


def train_and_invert(name, config, steps):
    shape, conditions = SHAPES[name]
    flow = ConditionalFlow(config, shape, conditions, seed=1)
    images, labels = records(name, 8)
    training = FlowTrainingConfig(local_epochs=steps, batch_size=8, learning_rate=config.training.learning_rate)
    train_flow(
        flow,
        images,
        labels,
        training,
        codec=Pixels(256),
        progress=Progress(0, 1),
        generator=torch.Generator().manual_seed(0),
    )
    x, condition = Pixels(256).to_unit(images), condition_of(labels, conditions)
    with torch.no_grad():
        z, log_det = flow.encode(x, condition)
        assert torch.isfinite(log_det).all()
        assert (flow.decode(z, condition) - x).abs().max() < 1e-4


def test_the_presets_are_the_published_architectures(monkeypatch):
    mnist, xray, celeba = (preset(name, monkeypatch, 1) for name in ("mnist", "chest-xray", "celeba"))
    assert [(each.blocks, each.channels) for each in mnist.scales] == [(4, 128)] * 2
    assert (mnist.dense.blocks, mnist.dense.width, mnist.clamp) == (2, 392, 1.5)
    assert [(each.blocks, each.split) for each in xray.scales] == [(4, None)] * 4
    assert (xray.dense.blocks, xray.dense.width, xray.clamp) == (4, 1024, 1.5)
    assert preset("oct", monkeypatch, 1).model_copy(update={"training": xray.training}) == xray
    assert [(each.blocks, each.split) for each in celeba.scales] == [(6, None), (6, 0.5), (6, 0.5), (6, 0.25)]
    assert (celeba.dense.blocks, celeba.dense.width, celeba.clamp) == (12, 1024, 1.2)


def test_celeba_is_given_its_40_attributes_and_learns_one(monkeypatch):
    monkeypatch.setenv("CADP_FL_DATA", "/data")
    data = load_study(ROOT / "configs" / "paper" / "celeba.yaml").data
    assert (data.label, len(data.attributes)) == ("Smiling", SHAPES["celeba"][1])
    assert (data.attributes[0], data.attributes[31], data.attributes[39]) == ("5_o_Clock_Shadow", "Smiling", "Young")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "celeba" else name for name in SHAPES]
)
def test_a_preset_at_an_eighth_of_its_width_inverts_after_20_steps(name, monkeypatch):
    train_and_invert(name, preset(name, monkeypatch, 8), 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_preset_at_its_full_width_inverts_after_20_steps(name, monkeypatch):
    train_and_invert(name, preset(name, monkeypatch, 1), 20)

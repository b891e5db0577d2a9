"""A study of records with public attributes: the flow is given them, they leave, and every output says so."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cadp_fl.config import AttributesConfig
from cadp_fl.data.schema import Dataset
from cadp_fl.errors import ConfigError
from cadp_fl.flow.storage import flow_sha256, load_flow
from cadp_fl.privacy.mechanisms import NoMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.bundle import open_bundle
from cadp_fl.release.dataset import load_release
from cadp_fl.release.privatize import ReleaseSettings, privatize
from cadp_fl.standalone.central import ClassifierOptions, train_central
from cadp_fl.standalone.export import export
from cadp_fl.standalone.pretrain import pretrain
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions
from cadp_fl.study.estimate import estimate_study
from cadp_fl.study.run import check_study
from tests.conftest import PORTRAITS, ROOT, TINY, write_portraits
from tests.federated.test_workflow import Run, printed
from tests.standalone.conftest import contents

NAMES = ("hat", "smiling", "young")
RELATION = "replace one record, keep its label and attributes"
SITES = ("north", "east", "south")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    settings = [f"{key}={value}" for key, value in TINY.items()]
    settings += [PORTRAITS, "sites.partition.min_records=20", f"data.path={write_portraits(folder / 'portraits.npz')}"]
    run = Run(
        {
            "config": str(ROOT / "configs" / "quickstart.yaml"),
            "output-dir": str(folder / "out"),
            "set": "; ".join(settings),
        }
    )
    check_study(run.study)
    assert run.go() == "complete"
    return run


def test_every_output_says_that_label_and_attributes_are_kept(complete):
    summary, privacy = complete.json("summary.json"), complete.json("privacy.json")
    assert summary["relation"] == privacy["relation"] == RELATION
    for method in (*summary["methods"].values(), *privacy["methods"].values()):
        assert method["relation"] == RELATION
    assert summary["public_attributes"] == privacy["public_attributes"] == list(NAMES)
    assert f"'{RELATION}'" in privacy["statement"]
    assert f"under '{RELATION}'" in printed(complete)
    page = (complete.folder / "report.html").read_text()
    assert "hat, smiling, young" in page
    assert "leaves with its true label and attributes." in page
    for site in SITES:
        assert open_bundle(complete.folder / "releases" / site).manifest.claim.relation == RELATION


def test_no_output_claims_that_the_label_alone_is_kept(complete):
    for path in complete.folder.rglob("*"):
        if path.suffix in (".json", ".html", ".jsonl"):
            for part in path.read_text().split("keep its label")[1:]:
                assert part.startswith(" and attributes"), path
    assert "keep its label'" not in printed(complete)


def test_the_flow_is_given_the_attributes_and_the_classifier_learns_one(complete):
    flow, card = load_flow(complete.folder / "models" / "flow.safetensors")
    assert (flow.conditions, card.dataset.attributes) == (3, NAMES)
    assert card.dataset.classes == ("not smiling", "smiling")
    released = load_release(*(complete.folder / "releases" / site for site in SITES))
    assert tuple(released.attributes.shape) == (240, 3)
    assert released.attributes[:, 1].tolist() == released.labels.tolist()
    with np.load(complete.study.data.path) as stored:
        stored_labels = np.concatenate([stored["train_labels"], stored["val_labels"]])
    assert np.array_equal(np.sort(released.attributes.numpy() @ (1, 2, 4)), np.sort(stored_labels @ (1, 2, 4)))


def test_a_release_by_hand_is_the_federations_byte_for_byte(complete, tmp_path):
    flow = complete.folder / "models" / "flow.safetensors"
    made = make_release(flow, complete.folder / "config.yaml", tmp_path / "x", ReleaseOptions(site="north"))
    assert contents(tmp_path / "x") == contents(complete.folder / "releases" / "north")
    assert f"'{RELATION}'" in made.statement


def test_single_phases_follow_the_attributes_of_the_flow(complete, tmp_path):
    made = pretrain(complete.study, tmp_path / "flow.safetensors", watch=lambda step: None)
    flow, card = load_flow(tmp_path / "flow.safetensors")
    assert (made["sha256"], card.dataset.attributes) == (flow_sha256(flow), NAMES)
    options = ReleaseOptions(epsilon=3.0, delta=1e-4, clip_norm=4.0)
    data = complete.study.data.path
    claim = make_release(tmp_path / "flow.safetensors", data, tmp_path / "x", options).manifest.claim
    assert (claim.guarantee, claim.relation) == ("end-to-end", RELATION)
    tested = train_central(
        [tmp_path / "x"],
        tmp_path / "m.safetensors",
        ClassifierOptions(model="linear", epochs=1),
        study=None,
        test=data,
        watch=lambda step: None,
    )["test"]
    assert tested["records"] == 60
    export([tmp_path / "x"], "medmnist", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as stored:
        assert np.array_equal(stored["train_attributes"], load_release(tmp_path / "x").attributes)


def test_a_flow_of_other_attributes_is_refused(complete, tmp_path):
    flow = complete.folder / "models" / "flow.safetensors"
    start = f"flow.pretrained={{path: {flow}, trained_on: private}}"
    for data, sentence in (
        ("data.attributes=[smiling, hat, young]", "attribute 0 is smiling, that of the stored one hat"),
        ("data={source: digits}", "shape|number of attributes is 0, that of the stored one 3"),
    ):
        run = Run(complete.config | {"output-dir": str(tmp_path / "x")}, data, start)
        with pytest.raises(ConfigError, match=sentence):
            check_study(run.study)


def test_a_flow_of_the_same_attributes_fits_whatever_is_learned(complete, tmp_path):
    flow = complete.folder / "models" / "flow.safetensors"
    start = f"flow.pretrained={{path: {flow}, trained_on: private}}"
    check_study(Run(complete.config | {"output-dir": str(tmp_path / "x")}, "data.label=hat", start).study)


def test_an_estimate_knows_the_attributes(complete):
    estimate = estimate_study(complete.folder / "config.yaml", [])
    phases = {phase.phase: phase for phase in estimate.phases}
    assert phases["cadp-given-flow/fetch"].up % (64 + 8 + 3) == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"randomize": ["hat"]}, {"hat": 0.5}),
        ({"randomize": ["young", "hat"], "probability": {"young": 0.8}}, {"hat": 0.5, "young": 0.8}),
        ({"keep": ["smiling", "hat"]}, {"young": 0.5}),
        ({"keep": ["smiling"], "randomize": ["young", "hat"]}, {"hat": 0.5, "young": 0.5}),
    ],
)
def test_attributes_that_are_not_kept_are_drawn(given, expected):
    assert AttributesConfig.model_validate(given).randomized(NAMES, "smiling") == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"randomize": ["beard"]}, "'beard' is none of them"),
        ({"keep": ["hat"], "randomize": ["hat"]}, "Found 'hat' in both"),
        ({"keep": ["smiling"], "randomize": ["hat"]}, "Found none for 'young'"),
        ({"randomize": ["smiling"]}, "A record leaves under its class, which is the attribute 'smiling'"),
        ({"keep": ["hat"]}, "A record leaves under its class"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AttributesConfig.model_validate(given).randomized(NAMES, "smiling")


def test_randomized_attributes_leave_as_drawn_and_say_nothing_of_the_record(complete, tmp_path):
    """The same records with all of them turned around release the same attributes, draw for draw."""
    settings = ReleaseSettings(NoMechanism(), 4, "typical-set")
    settings = replace(settings, randomized={"hat": 0.2, "young": 0.9})
    flow, card = load_flow(complete.folder / "models" / "flow.safetensors")
    generator = np.random.default_rng(0)
    attributes = generator.integers(0, 2, (4000, 3)).astype(np.uint8)
    images = np.zeros((4000, *card.dataset.shape), dtype=np.uint8)
    data = Dataset(card.dataset, images, attributes[:, 1].astype(np.int64), attributes=attributes)
    turned = replace(data, attributes=np.stack([1 - attributes[:, 0], attributes[:, 1], 1 - attributes[:, 2]], axis=1))
    order = np.arange(4000)
    released = []
    for records in (data, turned):
        noise = NoiseSource.from_seed(3)
        parts, _ = privatize(flow, records, settings, noise=noise, device=torch.device("cpu"), order=order)
        released.append(np.concatenate([part.attributes for part in parts]))
    np.testing.assert_array_equal(released[0], released[1])
    np.testing.assert_array_equal(released[0][:, 1], attributes[:, 1])
    assert np.abs(released[0].mean(axis=0)[[0, 2]] - (0.2, 0.9)).max() < 0.03


def test_a_study_randomizes_attributes_and_its_manifests_say_which(complete, tmp_path):
    overrides = [
        "release.attributes={keep: [smiling], probability: {hat: 0.25}}",
        "methods=[cadp-given-flow]",
    ]
    config = complete.config | {"output-dir": str(tmp_path / "out")}
    run = Run(config, *overrides)
    check_study(run.study)
    assert run.go() == "complete"
    for site in SITES:
        parameters = open_bundle(tmp_path / "out" / "releases" / site).manifest.parameters
        assert parameters.randomized_attributes == {"hat": 0.25, "young": 0.5}
    released = load_release(*(tmp_path / "out" / "releases" / site for site in SITES))
    assert released.attributes[:, 1].tolist() == released.labels.tolist()
    assert 0.1 < released.attributes[:, 0].float().mean() < 0.4
    with pytest.raises(ConfigError, match="'beard' is none of them"):
        check_study(Run(config, "release.attributes={randomize: [beard]}", "methods=[cadp-given-flow]").study)

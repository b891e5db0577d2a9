"""A classifier on releases is the federation's where its settings are."""

import numpy as np
import pytest
import torch

from cadp_fl.classifier.storage import load_classifier
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import ConfigError, ExchangeError, InputError
from cadp_fl.evaluation.utility import evaluate, metrics_of
from cadp_fl.standalone.central import ClassifierOptions, train_central
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions
from cadp_fl.weights import get_weights

QUICK = ClassifierOptions(model="linear", epochs=1)


def quiet(step):
    pass


@pytest.fixture
def release(scans, flow_file, tmp_path):
    options = ReleaseOptions(epsilon=3.0, delta=1e-4, clip_norm=4.0, noise="seeded", seed=1)
    make_release(flow_file("public"), scans, tmp_path / "release", options)
    return tmp_path / "release"


@pytest.mark.parametrize("epochs", [1, 7])
def test_the_weights_are_those_of_the_federations_central_classifier(federation, tmp_path, epochs):
    """Whatever the number of pauses: a federation has five, and a central training one an epoch."""
    run, study = federation, federation.study
    if epochs != 1:
        run = type(federation)(
            federation.config | {"output-dir": str(tmp_path / "run")}, f"classifier.central.epochs={epochs}"
        )
        assert run.go() == "complete"
        study = run.study
    folders = sorted((run.folder / "releases").iterdir())
    steps = []
    made = train_central(
        folders, tmp_path / "m.safetensors", ClassifierOptions(), study=study, test=None, watch=steps.append
    )
    expected, _ = load_classifier(run.folder / "models" / "classifier-cadp-given-flow.safetensors")
    model, card = load_classifier(tmp_path / "m.safetensors")
    for name, array in get_weights(expected).items():
        np.testing.assert_array_equal(get_weights(model)[name], array)
    assert (card.method, card.noise, card.seed) == ("train-central", "seeded", 7)
    assert len([step for step in steps if step["step"] == "round"]) == max(5, epochs)
    assert [release["site"] for release in made["releases"]] == ["east", "north", "south"]
    assert {release["guarantee"] for release in made["releases"]} == {"given-flow"}
    assert "test" not in made


def test_options_override_the_studys_settings_and_the_defaults(federation, release, tmp_path):
    options = ClassifierOptions(
        model="linear", width=3, epochs=1, batch_size=9, learning_rate=0.5, weight_decay=0.25, seed=4, device="cpu"
    )
    for name, folder, study in (
        ("a", release, None),
        ("b", federation.folder / "releases" / "east", federation.study),
    ):
        train_central([folder], tmp_path / name, options, study=study, test=None, watch=quiet)
        _, card = load_classifier(tmp_path / name)
        assert (card.config.model, card.config.width, card.seed) == ("linear", 3, 4)
        central = card.config.central
        assert (central.epochs, central.batch_size, central.learning_rate, central.weight_decay) == (1, 9, 0.5, 0.25)


def test_test_figures_are_those_of_the_files_test_split(release, scans, tmp_path):
    made = train_central([release], tmp_path / "m", QUICK, study=None, test=scans, watch=quiet)
    model, card = load_classifier(tmp_path / "m")
    with np.load(scans) as stored:
        images, labels = stored["test_images"][:, None], stored["test_labels"][:, 0].astype(np.int64)
    tested = Dataset(card.dataset, images, labels)
    logits = model(torch.from_numpy(images).float() / 255 - 0.5).double().detach().numpy()
    expected = metrics_of(evaluate(logits - logits[:, ::-1], tested.labels), card.dataset.classes).to_json()
    assert made["test"].pop("records") == 20
    assert made["test"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (ClassifierOptions(model="vgg"), "Unknown classifier 'vgg'"),
        (ClassifierOptions(epochs=0), "'classifier.central.epochs'.*Found 0"),
        (ClassifierOptions(device="gpu"), "device must be auto"),
    ],
)
def test_a_wrong_setting_is_refused_and_writes_nothing(release, tmp_path, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train_central([release], tmp_path / "m", options, study=None, test=None, watch=quiet)
    assert not (tmp_path / "m").exists()


def test_test_records_that_do_not_fit_are_refused_before_training(release, tmp_path):
    def train(**arrays):
        np.savez(tmp_path / "test.npz", **arrays)
        train_central([release], tmp_path / "m", QUICK, study=None, test=tmp_path / "test.npz", watch=pytest.fail)

    split = {"train_images": np.zeros((2, 8, 8), np.uint8), "train_labels": np.arange(2)}
    with pytest.raises(InputError, match="has none; add test_images and test_labels"):
        train(**split)
    wide = {f"{name}_images": np.zeros((2, 8, 9), np.uint8) for name in ("train", "test")}
    with pytest.raises(InputError, match=r"\(1, 8, 8\) \(channels, height, width\). Those of .* are \(1, 8, 9\)"):
        train(**split | wide, test_labels=np.arange(2))
    with pytest.raises(InputError, match="There is none at"):
        train_central([release], tmp_path / "m", QUICK, study=None, test=tmp_path / "no.npz", watch=pytest.fail)


def test_folders_that_are_no_releases_of_one_schema_are_refused(release, federation, scans, flow_file, tmp_path):
    def train(*folders):
        train_central(folders, tmp_path / "m", QUICK, study=None, test=None, watch=pytest.fail)

    with pytest.raises(InputError, match="Found none; name one or more"):
        train()
    with pytest.raises(InputError, match=r"holds a manifest.json"):
        train(tmp_path)
    with pytest.raises(InputError, match="is named twice"):
        train(release, release.parent / "." / release.name)
    with pytest.raises(InputError, match="share one schema"):
        train(release, federation.folder / "releases" / "east")
    other = Schema(name="others", shape=(1, 8, 8), classes=("normal", "ill"))
    options = ReleaseOptions(epsilon=3.0, delta=1e-4, clip_norm=4.0)
    make_release(flow_file("private", other), scans, tmp_path / "other", options)
    with pytest.raises(InputError, match="share one schema"):
        train(release, tmp_path / "other")
    shard = next((release / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ExchangeError, match="A shard is what the manifest says"):
        train(release)
    assert not (tmp_path / "m").exists()

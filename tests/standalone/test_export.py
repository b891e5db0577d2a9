"""An export holds every record of its releases once, under its label, and nothing outside its own folder."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cadp_fl.config import DataConfig
from cadp_fl.data.columns import Column
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.sources import load_source
from cadp_fl.errors import ExchangeError, InputError
from cadp_fl.release.bundle import write_bundle
from cadp_fl.release.dataset import load_release
from cadp_fl.release.manifest import ReleaseClaim, ReleaseHead, ReleaseParameters, manifest_from_json
from cadp_fl.standalone.export import export

CLASSES = ("no finding", "../up", "..", "/etc/passwd", "README.md", "a b", "a/b", "Übel", "A_B")

GIVEN_FLOW = ReleaseClaim(
    guarantee="given-flow", relation="r", epsilon=None, epsilon_if_flow_were_fixed=2.991, delta=1e-5
)


def bundle(
    folder,
    site="north",
    classes=CLASSES,
    channels=1,
    shards=(7, 5),
    side=8,
    seed=0,
    noise="seeded",
    claim=GIVEN_FLOW,
    schema=None,
):
    schema = schema or Schema(name="x", shape=(channels, side, side), classes=classes)
    generator = np.random.default_rng(seed)
    levels = [column.codes for column in schema.columns] or 256
    parts = [
        Dataset(
            schema,
            generator.integers(0, levels, (count, *schema.shape), dtype=schema.dtype),
            generator.integers(0, len(schema.classes), count),
        )
        for count in shards
    ]
    head = ReleaseHead(
        site=site,
        dataset=schema,
        mechanism="gaussian",
        parameters=ReleaseParameters(
            clip_norm=1.0, noise_std=8.0, latent_dims=2, dims=int(np.prod(schema.shape)), shrinkage="typical-set"
        ),
        noise=noise,
        claim=claim,
        flow_sha256="0" * 64,
        event_id="m-release-1",
    )
    write_bundle(head, parts, folder)
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_a_medmnist_export_is_read_back_by_the_source_of_that_name(tmp_path, channels):
    folders = [bundle(tmp_path / name, name, channels=channels, seed=seed) for seed, name in enumerate("ab")]
    assert export(folders, "medmnist", tmp_path / "x.npz") == 24
    source = load_source(DataConfig(source="medmnist", path=tmp_path / "x.npz", classes=CLASSES))
    released = load_release(*folders)
    np.testing.assert_array_equal(source.train.images, released.images)
    np.testing.assert_array_equal(source.train.labels, released.labels)
    assert source.test is None
    with np.load(tmp_path / "x.npz", allow_pickle=False) as stored:
        assert set(stored) == {"train_images", "train_labels", "releases"}
        assert stored["train_labels"].shape == (24, 1)
        assert stored["train_images"].shape == ((24, 8, 8) if channels == 1 else (24, 8, 8, 3))
        assert tuple(manifest_from_json(text) for text in stored["releases"].tolist()) == released.manifests


def test_the_same_releases_give_the_same_file(tmp_path):
    folder = bundle(tmp_path / "a")
    for name in ("x.npz", "y.npz"):
        export([folder], "medmnist", tmp_path / name)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_export_holds_every_record_once_in_the_folder_of_its_class(tmp_path, channels):
    folders = [bundle(tmp_path / name, name, channels=channels, seed=seed) for seed, name in enumerate("ab")]
    assert export(folders, "png", tmp_path / "out") == 24
    released = load_release(*folders)
    paths = sorted((tmp_path / "out").rglob("*.png"), key=lambda path: path.name)
    assert [path.name for path in paths] == [f"{number:02d}.png" for number in range(1, 25)]
    folder_of = {}
    for path, image, label in zip(paths, released.images.numpy(), released.labels.tolist(), strict=True):
        pixels = np.asarray(Image.open(path))
        np.testing.assert_array_equal(pixels[None] if channels == 1 else np.moveaxis(pixels, 2, 0), image)
        assert folder_of.setdefault(label, path.parent) == path.parent
    assert len(set(folder_of.values())) == len(folder_of)


def test_a_class_cannot_name_a_path(tmp_path):
    export([bundle(tmp_path / "a", shards=(200,))], "png", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]
    inside = {path.name for path in (tmp_path / "out").iterdir()}
    assert inside == {
        "README.md", "manifests", "no_finding", "up", "class", "etc_passwd", "README.md-4", "a_b", "a_b-6", "bel",
        "A_B-8",
    }  # fmt: skip
    for path in (tmp_path / "out").rglob("*"):
        assert Path(os.path.realpath(path)).is_relative_to(tmp_path / "out")
        assert not path.is_symlink()


def test_a_png_export_says_what_it_is(tmp_path):
    export([bundle(tmp_path / "a", "north"), bundle(tmp_path / "b", "east", noise="entropy")], "png", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "24 records of 2 releases of 'x'" in text
    assert "| north | 12 | gaussian | given-flow | none (3.00 if the flow were fixed) | 1e-05 | r |" in text
    assert "Noise was SEEDED" in text
    for number, site in enumerate(("north", "east"), start=1):
        copy = tmp_path / "out" / "manifests" / f"00{number}-{site}.json"
        assert manifest_from_json(copy.read_text()).site == site


def test_a_readme_of_pictures_repeats_on_what_a_claim_rests(tmp_path):
    claim = ReleaseClaim(
        guarantee="end-to-end", relation="r", epsilon=1.0, epsilon_if_flow_were_fixed=None, delta=1e-5,
        declared=("a flow of records that are public",),
    )  # fmt: skip
    folders = [bundle(tmp_path / str(number), seed=number, claim=claim) for number in range(2)]
    export(folders, "png", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.count("rests on a declaration: a flow of records that are public.") == 1
    assert "their epsilons and deltas add" in text


@pytest.mark.parametrize(("kind", "name"), [("medmnist", "x.npz"), ("png", "x")])
def test_an_export_is_whole_or_not_there(tmp_path, kind, name):
    folder = bundle(tmp_path / "a")
    damaged = folder / "shards" / "00001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ExchangeError, match="A shard is what the manifest says"):
        export([folder], kind, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="never written over"):
        export([bundle(tmp_path / "b")], kind, tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


ROWS = Schema(
    name="ward",
    shape=(2,),
    classes=("healthy", "ill"),
    columns=(
        Column(name="age", type="integer", lower=18, upper=90, missing=True),
        Column(name="sex", type="category", categories=("f", "m")),
    ),
    label_column="diagnosis",
)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_are_exported_with_the_schema_file_that_reads_them_and_a_warning(tmp_path, kind):
    folders = [bundle(tmp_path / name, name, schema=ROWS, seed=seed) for seed, name in enumerate("ab")]
    out = tmp_path / "out"
    assert export(folders, kind, out) == 24
    source = load_source(DataConfig(source="table", path=out / f"records.{kind}", columns=out / "columns.yaml"))
    released = load_release(*folders)
    np.testing.assert_array_equal(source.train.records, released.records)
    np.testing.assert_array_equal(source.train.labels, released.labels)
    assert source.schema == ROWS
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "columns.yaml", "manifests", f"records.{kind}"]
    text = (out / "README.md").read_text()
    assert "significance" in text
    assert "arXiv 2403.13612" in text
    assert "Every row here" in text
    assert [path.name for path in sorted((out / "manifests").iterdir())] == ["001-a.json", "002-b.json"]
    for other in ("png", "medmnist"):
        with pytest.raises(InputError, match="choose csv and parquet"):
            export(folders, other, tmp_path / "x")


def test_an_unknown_format_and_a_folder_without_a_release_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"Unknown format 'tiff'. Choose one of: csv, medmnist, parquet, png"):
        export([bundle(tmp_path / "a")], "tiff", tmp_path / "x")
    with pytest.raises(InputError, match=r"Records of 'x' are images, and 'csv' is for rows; choose medmnist and png"):
        export([tmp_path / "a"], "csv", tmp_path / "x")
    with pytest.raises(InputError, match=r"holds a manifest.json"):
        export([tmp_path], "png", tmp_path / "x")


@pytest.mark.parametrize("kind", ["medmnist", "png"])
def test_memory_is_that_of_a_shard_whatever_the_number_of_shards(tmp_path, kind):
    peaks = []
    for shards in (2, 12):
        folder = bundle(tmp_path / f"{shards}", classes=("a", "b"), shards=(16,) * shards, side=96)
        tracemalloc.start()
        export([folder], kind, tmp_path / f"out-{shards}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]

"""The commands of single phases: what they print, their exit status, and that they write nothing over."""

import json

import numpy as np
import pytest
from PIL import Image

from cadp_fl.release.bundle import open_bundle
from tests.cli.test_cli import call
from tests.standalone.conftest import SCHEMA, contents


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


@pytest.fixture
def bundle(run, scans, flow_file, tmp_path):
    arguments = ["--data", scans, "--epsilon", 3, "--delta", "1e-4", "--clip-norm", 4, "--noise", "seeded", "--seed", 1]
    code, _, err = run("privatize", "--flow", flow_file("public"), *arguments, "--output", tmp_path / "b", "--quiet")
    assert (code, err) == (0, "")
    return tmp_path / "b"


@pytest.fixture
def model(run, bundle, tmp_path):
    code, _, err = run("train-central", bundle, "--output", tmp_path / "m", "--model", "linear", "--epochs", 1, "-q")
    assert (code, err) == (0, "")
    return tmp_path / "m"


@pytest.mark.parametrize("command", ["pretrain", "privatize", "train-central", "predict", "export"])
def test_every_command_helps_with_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: cadp-fl {command}" in out


def test_the_help_says_what_is_declared_public_and_that_no_ledger_is_kept(run):
    assert "you DECLARE THEM PUBLIC by calling it" in run("pretrain", "--help")[1]
    help_ = " ".join(run("privatize", "--help")[1].split())
    assert "NO LEDGER: without them this command remembers nothing" in help_
    assert "Labels are public by declaration" in help_


def test_pretrain_shows_every_epoch_and_whom_the_flow_can_serve(run, quickstart, tiny_overrides, tmp_path):
    overrides = [part for override in tiny_overrides for part in ("--set", override)]
    code, out, err = run("pretrain", quickstart, *overrides, "--output", tmp_path / "f.safetensors")
    assert (code, err) == (0, "")
    assert "pretrain  1/2  bits_per_dim" in out
    assert "pretrain  2/2  bits_per_dim" in out
    assert "you declared that the 1797 training records of 'digits' are" in out
    code, out, err = run("pretrain", quickstart, *overrides, "--output", tmp_path / "f.safetensors", "--json")
    assert (code, out) == (2, "")
    assert err.startswith("cadp-fl: A stored flow is never written over another file.")
    code, out, _ = run("pretrain", quickstart, *overrides, "--output", tmp_path / "g.safetensors", "--json")
    assert (code, json.loads(out)["trained_on"]) == (0, "public")


def test_privatize_prints_the_guarantee_and_that_releases_compose(run, federation, tmp_path):
    flow, config = federation.folder / "models" / "flow.safetensors", federation.folder / "config.yaml"
    arguments = ["privatize", "--flow", flow, "--data", config, "--site", "north"]
    code, out, err = run(*arguments, "--output", tmp_path / "x")
    assert (code, err) == (0, "")
    assert f"Release: {tmp_path / 'x'}" in out
    assert "NO end-to-end guarantee" in out
    assert "another release of the same records composes with this one" in out
    assert contents(tmp_path / "x") == contents(federation.folder / "releases" / "north")
    code, out, _ = run(*arguments, "--output", tmp_path / "y", "--json", "--epsilon", "1")
    printed = json.loads(out)
    assert printed["manifest"]["claim"]["epsilon_if_flow_were_fixed"] == pytest.approx(1, abs=0.01)
    assert "keeps no ledger" in printed["composition"]


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--epsilon", "3", "--delta", "1e-4"], 2, "Found no --clip-norm"),
        (["--epsilon", "3", "--delta", "0.1", "--clip-norm", "4"], 2, "at most 1 / (10 n)"),
        (["--epsilon", "3", "--delta", "1e-4", "--clip-norm", "4", "--mechanism", "none"], 1, "A real site releases"),
    ],
)
def test_a_release_that_may_not_be_is_one_sentence(run, scans, flow_file, tmp_path, arguments, status, sentence):
    command = ["privatize", "--flow", flow_file("public"), "--data", scans, "--output", tmp_path / "x"]
    code, out, err = run(*command, *arguments)
    assert (code, out, err.count("\n")) == (status, "", 1)
    assert sentence in err
    assert not (tmp_path / "x").exists()


def test_train_central_says_what_its_releases_claim_and_how_good_it_is(run, bundle, scans, tmp_path):
    arguments = ["train-central", bundle, "--model", "linear", "--epochs", 2, "--test", scans]
    code, out, err = run(*arguments, "--output", tmp_path / "m")
    assert (code, err) == (0, "")
    assert "train-central  5/5  loss" in out
    assert "site: 80 records, guarantee none; noise was SEEDED" in out
    assert "On 20 real test records: accuracy 0." in out
    code, out, _ = run(*arguments, "--output", tmp_path / "n", "--json")
    assert json.loads(out)["test"]["records"] == 20
    code, _, err = run("train-central", bundle, "--set", "seed=3", "--output", tmp_path / "o")
    assert code == 2
    assert "Found --set seed=3 without --config" in err


def test_train_central_shows_a_conditional_epsilon_as_one(run, federation, tmp_path):
    config = federation.folder / "config.yaml"
    code, out, _ = run(
        "train-central", federation.folder / "releases" / "east", "--config", config, "--output", tmp_path / "m", "-q"
    )
    assert code == 0
    assert "guarantee given-flow, flow NOT covered (3.00 if it were fixed)" in out


def test_predict_prints_a_line_an_image(run, model, scans, tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    code, out, err = run("predict", model, tmp_path / "scan.png", scans)
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 21)
    path, label, probability = lines[0].split()
    assert (path, label in SCHEMA.classes, 0.5 <= float(probability) <= 1) == (str(tmp_path / "scan.png"), True, True)
    assert lines[-1].startswith(f"{scans}[19]  ")
    code, out, _ = run("predict", model, tmp_path / "scan.png", "--json")
    assert set(json.loads(out)) == {"file", "index", "class", "probability"}
    code, out, _ = run("predict", model, scans, "--output", tmp_path / "p.csv")
    assert out == f"Wrote 20 predictions to {tmp_path / 'p.csv'}.\n"
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 21
    code, out, err = run("predict", model, scans, "--output", tmp_path / "p.csv")
    assert (code, out, "never written over" in err) == (2, "", True)
    assert run("predict", model, scans, "--output", tmp_path / "q.csv", "--quiet")[1] == ""


def test_what_predict_leaves_out_is_printed_beside_the_lines(run, model, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "scan.png")
    (folder / "._scan.png").write_bytes(b"")
    code, out, err = run("predict", model, folder, "--json")
    assert (code, len(out.splitlines())) == (0, 1)
    assert err == f"Left out of '{folder}': 1 hidden (._scan.png).\n"
    assert run("predict", model, folder, "--output", tmp_path / "quiet.csv", "--quiet")[1:] == ("", "")


def test_an_image_that_cannot_be_read_is_one_sentence(run, model, scans, tmp_path):
    (tmp_path / "scan.png").write_text("no image")
    code, out, err = run("predict", model, scans, tmp_path / "scan.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "An image file holds a PNG or a JPEG. " in err
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "tall.png")
    code, _, err = run("predict", model, tmp_path / "tall.png")
    assert (code, "takes images of 8 x 8 pixels" in err, "has 8 x 9; pass --resize" in err) == (2, True, True)
    assert run("predict", model, tmp_path / "tall.png", "--resize")[0] == 0


def test_export_writes_either_format(run, bundle, tmp_path):
    code, out, err = run("export", bundle, "--to", "medmnist", tmp_path / "x.npz")
    assert (code, out, err) == (0, f"Wrote 80 records to {tmp_path / 'x.npz'}.\n", "")
    code, out, _ = run("export", bundle, "--to", "png", tmp_path / "x", "--json")
    assert json.loads(out) == {"format": "png", "output": str(tmp_path / "x"), "records": 80}
    counts = {name: len(list((tmp_path / "x" / name).iterdir())) for name in SCHEMA.classes}
    assert counts == open_bundle(bundle).manifest.released_labels
    assert run("export", bundle, "--to", "png", tmp_path / "y", "--quiet")[1] == ""
    code, _, err = run("export", bundle, "--to", "csv", tmp_path / "z")
    assert (code, "'csv' is for rows; choose medmnist and png" in err) == (2, True)
    code, _, err = run("export", bundle, "--to", "tiff", tmp_path / "z")
    assert (code, "Choose one of: csv, medmnist, parquet, png" in err) == (2, True)

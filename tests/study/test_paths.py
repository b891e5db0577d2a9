"""Paths that are no text, and texts that are no paths: refused before anything starts, or carried whole."""

import os
import shutil
from pathlib import Path

import pytest

from cadp_fl.config import Invitation, PolicyConfig, SiteConfig, load_study, parse
from cadp_fl.deployment.run import check_deployed
from cadp_fl.deployment.site_setup import make_site
from cadp_fl.errors import ConfigError, InputError
from cadp_fl.study.run import check_study
from tests.cli.test_cli import call
from tests.conftest import ROOT

POLICY = {"population": "p", "unit": "record", "epsilon": 3.0, "delta": 1e-5, "labels": "public"}
MEDMNIST = ("--set", "data={source: medmnist, path: records.npz}")
LATIN = b"l\xe4ger"


@pytest.fixture
def latin(tmp_path) -> Path:
    """Return a folder whose name is in Latin-1, with a study."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + LATIN))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has names in UTF-8 alone")
    shutil.copy(ROOT / "configs" / "quickstart.yaml", folder / "study.yaml")
    return folder


@pytest.fixture(autouse=True)
def no_flower(monkeypatch):
    def launched(*_, **__):
        raise AssertionError("the engine was started")

    monkeypatch.setattr("cadp_fl.study.run.simulate", launched)


@pytest.mark.parametrize("command", [["simulate", "--dry-run"], ["simulate"], ["compare", "--seeds", "1"]])
def test_records_in_a_folder_of_another_encoding_are_refused_at_once(monkeypatch, capsys, latin, tmp_path, command):
    more = [] if "--dry-run" in command else ["--output", tmp_path / "run"]
    code, _, err = call(monkeypatch, capsys, command[0], latin / "study.yaml", *command[1:], *MEDMNIST, *more)
    assert code == 2
    assert "A path (data.path) is printable text in UTF-8." in err
    assert "l\\udce4ger/records.npz'; rename it" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["simulate"], ["compare", "--seeds", "1"]])
def test_an_output_in_a_folder_of_another_encoding_is_refused(monkeypatch, capsys, latin, quickstart, command):
    code, _, err = call(monkeypatch, capsys, *command, quickstart, "--output", latin / "run")
    assert code == 2
    assert "A run folder has a path in UTF-8" in err
    assert "l\\udce4ger/run', in another encoding" in err
    assert not (latin / "run").exists()


@pytest.mark.parametrize("check", [check_study, check_deployed])
@pytest.mark.parametrize("key", ["name", "sites.names", "plugins"])
def test_every_text_of_a_study_is_unicode(quickstart, check, key):
    study = load_study(quickstart)
    bad = "l\udce4ger"
    updates = {
        "name": {"name": bad},
        "sites.names": {"sites": study.sites.model_copy(update={"names": ("a", bad, "c")})},
        "plugins": {"plugins": (f"/{bad}/p.py",)},
    }
    with pytest.raises(ConfigError, match=f"'{key}' is ") as raised:
        check(study.model_copy(update=updates[key]))
    str(raised.value).encode()


def test_a_folder_of_another_encoding_is_no_coordinators(monkeypatch, capsys, latin):
    hub = latin / "hub"
    code, _, err = call(
        monkeypatch, capsys, "coordinator", "init", hub, "--federation", "c", "--host", "localhost", "--no-proxy"
    )  # fmt: skip
    assert code == 2
    assert "A coordinator's folder has a path in UTF-8" in err
    assert not hub.exists()


def test_a_site_keeps_nothing_in_a_folder_of_another_encoding(latin, tmp_path):
    said = Invitation(federation="c", address="localhost:8443", certificate=None)
    policy = parse(PolicyConfig, POLICY)
    for folder, data in ((latin / "north", tmp_path / "x.npz"), (tmp_path / "north", latin / "x.npz")):
        records = {"source": "medmnist", "path": str(data), "classes": ["a", "b"]}
        config = parse(SiteConfig, {"site": "north", "dataset": "d", "data": records})
        with pytest.raises(InputError, match="has a path in UTF-8"):
            make_site(folder, config, policy, said)
        assert not folder.exists()

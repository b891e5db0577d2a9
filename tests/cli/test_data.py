"""Looking before running, and bringing a folder into one file, from the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from cadp_fl.cli import main as cli
from cadp_fl.config import DataConfig, load_study
from cadp_fl.data.sources import load_source
from cadp_fl.study.run import check_study
from tests.conftest import ROOT
from tests.data.test_imagefolder import grey, write, write_metadata


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `cadp-fl data ...` and return exit status, stdout and stderr."""

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["cadp-fl", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        printed = capsys.readouterr()
        return exited.value.code, printed.out, printed.err

    return command


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "scans"
    rows = []
    for number in range(60):
        write(root / "x" / f"{number}.png", grey(4 * number, side=20 + number % 5))
        rows.append(
            {
                "file_name": f"x/{number}.png",
                "label": "sick" if number % 2 else "well",
                "patient": f"p{number // 2}",
                "site": ("North", "South")[number // 2 % 2],
                "split": "test" if number >= 48 else "train",
            }
        )
    write_metadata(root, "csv", rows)
    return root


def test_a_folder_is_looked_at_without_a_config(run, folder):
    status, out, _ = run("check", folder)
    assert status == 0
    assert "source: imagefolder" in out
    assert out.rstrip().endswith("ready")
    assert "48 training records, of 24 patients: images of 1 x 28 x 28" in out
    status, out, _ = run("check", folder, "--json", "--set", "size=16")
    found = json.loads(out)
    assert found["classes"] == {"well": {"train": 24, "test": 6}, "sick": {"train": 24, "test": 6}}
    assert found["sites"] == [{"site": "north", "train": 24, "test": 6}, {"site": "south", "train": 24, "test": 6}]
    assert found["shape"] == [1, 16, 16]
    assert found["ready"] is True


def test_repeated_records_and_patients_are_remarked(run, folder):
    Image.open(folder / "x" / "0.png").save(folder / "x" / "2.png")
    _, out, _ = run("check", folder, "--json")
    remarks = " ".join(json.loads(out)["remarks"])
    assert "1 records are the same as another" in remarks
    assert "24 patients have several records, up to 2" in remarks


def test_what_is_wrong_is_in_the_exit_status(run, folder):
    status, out, _ = run("check", folder, "--set", "classes=[well, sick, dying]")
    assert status == 1
    assert "'dying' has none" in out
    assert "not ready" in out
    (folder / "x" / "3.png").write_bytes(b"damaged")
    status, _, err = run("check", folder)
    assert status == 2
    assert "1 cannot be used (x/3.png" in err
    status, _, err = run("check", folder / "nowhere")
    assert status == 2
    assert "there is nothing there" in err


@pytest.mark.parametrize("name", ["breast-cancer", "heart-disease", "quickstart"])
def test_a_study_is_looked_at_with_its_sites(run, name):
    status, out, _ = run("check", ROOT / "configs" / f"{name}.yaml", "--json")
    found = json.loads(out)
    assert status == 0
    assert len(found["sites"]) == (4 if name == "heart-disease" else 3)
    assert bool(found["columns"]) == (name != "quickstart")


def test_the_page_shows_originals_and_says_so(run, folder, tmp_path):
    page = tmp_path / "page.html"
    run("check", folder, "--html", page)
    assert page.stat().st_mode & 0o777 == 0o600
    text = page.read_text()
    assert "For whoever may see these records." in text
    assert "data:image/png;base64" in text
    run("check", ROOT / "configs" / "breast-cancer.yaml", "--html", page)
    assert "distribution of every column" in page.read_text()


def test_an_import_is_read_back_whole(run, folder, tmp_path):
    output = tmp_path / "scans.npz"
    status, out, _ = run("import", folder, "--output", output, "--set", "size=20")
    assert status == 0
    assert "source: medmnist" in out
    assert output.stat().st_mode & 0o777 == (tmp_path / "scans.png").stat().st_mode & 0o777 == 0o600
    direct = load_source(DataConfig(source="imagefolder", path=folder, size=20))
    imported = load_source(DataConfig(source="medmnist", path=output))
    for one, other in ((direct.train, imported.train), (direct.test, imported.test)):
        np.testing.assert_array_equal(one.records, other.records)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.sites, other.sites)
        assert len(np.unique(other.patients)) == len(np.unique(one.patients))
        assert other.ids is not None
    assert imported.site_names == ("north", "south")
    assert imported.schema.classes == ("sick", "well")
    status, _, err = run("import", folder, "--output", output)
    assert status == 2
    assert "never written over another file" in err
    status, _, err = run("import", folder, "--output", tmp_path / "x.zip")
    assert "end its name with .npz" in err


def test_the_cache_is_cleared(run, folder, tmp_path):
    cache = tmp_path / "cache"
    load_source(DataConfig(source="imagefolder", path=folder, cache=cache))
    _, out, _ = run("clear-cache", cache)
    assert "Removed 1 file of decoded images." in out
    _, out, _ = run("clear-cache", cache)
    assert "Removed 0 files" in out


def test_a_first_study_is_written_and_fits_the_records(run, folder, tmp_path):
    study = tmp_path / "study.yaml"
    status, out, _ = run("check", folder, "--set", "size=16", "--study", study)
    assert status == 0
    assert f"Next: cadp-fl simulate {study}" in out
    assert len(study.read_text().splitlines()) <= 30
    status, out, _ = run("check", study, "--json")
    assert status == 0
    assert [site["site"] for site in json.loads(out)["sites"]] == ["north", "south"]
    checked = check_study(load_study(study)).study
    assert checked.budget.unit == "patient"

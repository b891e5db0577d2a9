"""A real site whose records are a folder of files: made, looked at and released from, as any other."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cadp_fl.cli.main import app
from cadp_fl.config import FlowConfig, load_site
from cadp_fl.data.file_cache import cached_files
from cadp_fl.doctor.finding import examine
from cadp_fl.doctor.site import SITE_CHECKS, Site
from cadp_fl.flow.storage import FlowCard, flow_sha256, load_flow, save_flow
from cadp_fl.release.dataset import load_release
from cadp_fl.site.agent import command
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.open_site import read_records
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions
from tests.data.test_imagefolder import write
from tests.data.test_medical import write_dicom, write_nifti
from tests.site.agents import served

ANSWERS = ["--population", "ward", "--epsilon", "3", "--delta", "1e-5", "--labels", "public"]


def pixels(number):
    generator = np.random.default_rng(number)
    return generator.integers(0, 256, (20, 24)).astype(np.uint8)


def images(root):
    for number in range(300):
        write(root / ("ill" if number % 2 else "well") / f"{number:03d}.png", pixels(number))


def scans(root):
    for number in range(300):
        path = root / ("ill" if number % 2 else "well") / f"IM{number:03d}"
        write_dicom(path, pixels(number), patient=f"P{number // 2}", BurnedInAnnotation="NO")


def volumes(root):
    for number in range(300):
        values = np.stack([pixels(number)] * 3, axis=2)
        write_nifti(root / ("ill" if number % 2 else "well") / f"{number:03d}.nii.gz", values)


@pytest.fixture(params=[images, scans, volumes], ids=["imagefolder", "dicom", "nifti"])
def here(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "invitation.yaml").write_text("federation: wards\naddress: hub.example.org:9443\n")
    request.param(tmp_path / "mrs-smith")
    return tmp_path, {"images": "imagefolder", "scans": "dicom", "volumes": "nifti"}[request.param.__name__]


def init(source, *arguments):
    unit = ["--unit", "patient", "--records-per-patient", "2"] if source == "dicom" else ["--unit", "record"]
    given = ["--invitation", "invitation.yaml", "--data", "mrs-smith", "--dataset", "ward", "--classes", "well,ill"]
    result = CliRunner().invoke(app, ["site", "init", "north", *given, *unit, *ANSWERS, "--set", "size=16", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return SiteFolder(Path("north").absolute())


def test_a_site_reads_a_folder_in_every_command(here):
    root, source = here
    folder = init(source)
    config = load_site(folder.config)
    assert (config.data.source, config.data.size, config.data.cache) == (source, 16, root / "north" / "cache")
    assert cached_files(config.data.cache) == []
    uncached = config.model_copy(update={"data": config.data.model_copy(update={"cache": None})})
    schema = read_records(uncached).schema
    assert schema.name == "ward"
    card = FlowCard(FlowConfig(scales=[], dense={"blocks": 1, "width": 8}), schema, 0, "public")
    save_flow(root / "flow.safetensors", card.build(), card)
    policy = yaml.safe_load(folder.policy.read_text())
    policy |= {
        "min_class_units": 0,
        "review": False,
        "public_flows": [flow_sha256(load_flow(root / "flow.safetensors")[0])],
    }
    folder.policy.write_text(yaml.safe_dump(policy))
    with served(folder):
        described = command(folder, "status")
    assert "mrs-smith" not in json.dumps(described)
    (kept,) = cached_files(config.data.cache)
    assert kept.stat().st_mode & 0o777 == 0o600
    records = next(check for check in SITE_CHECKS if check.name == "records")
    findings = examine([records], Site(folder))
    assert "fault" not in {finding.state for finding in findings}
    assert any("a second copy of the records" in finding.found for finding in findings)
    assert len(read_records(config).train) == 300

    options = ReleaseOptions(epsilon=1.0, delta=1e-6, clip_norm=4.0)
    made = make_release(root / "flow.safetensors", folder.path, root / "bundle", options)
    assert 200 < made.manifest.records < 300  # of training records alone
    released = load_release(root / "bundle")
    assert released.schema.shape == (1, 16, 16)
    text = (root / "bundle" / "manifest.json").read_text()
    for private in ("mrs-smith", "IM0", "P1", ".png", "Doe"):
        assert private not in text


def test_a_broken_file_stops_the_site_in_one_sentence_or_is_left_out(here):
    root, source = here
    victim = next((root / "mrs-smith" / "ill").iterdir())
    victim.write_bytes(victim.read_bytes()[:150] if source == "dicom" else b"broken")
    with pytest.raises(Exception, match="1 cannot be used"):
        init(source)
    folder = init(source, "--set", "on_bad_record=skip")
    assert len(read_records(load_site(folder.config)).train) == 299

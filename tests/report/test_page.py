import json
import re

import numpy as np
import pytest

from cadp_fl.errors import ExchangeError, InputError
from cadp_fl.federated.flower_server import Workflow
from cadp_fl.report.figures import curves, image_grid
from cadp_fl.report.page import write_report
from clients.client_app import app as client_app
from tests.local_grid import LocalGrid


@pytest.fixture
def run(tiny, run_config, tmp_path):
    Workflow(tiny, tmp_path / "run", watch=lambda step: None).run(LocalGrid(client_app, 3, run_config), None)
    return tmp_path / "run"


def test_the_page_says_what_a_person_needs_to_judge(run):
    page = (run / "report.html").read_text()
    for method in ("cadp-given-flow", "dp-sgd", "fedavg"):
        assert method in page
    for part in ("the flow is not covered", "Seeded noise", "Not covered", "Assumptions", "clip norm C = 4"):
        assert part in page
    assert "replace one record, keep its label" in page
    assert "0.08 with the record's own: what the classifier learns comes mostly from the flow" in page
    assert "the 16 of 64 latent dimensions that carry a record" in page
    assert page.count("<figcaption>originals</figcaption>") == page.count("<figcaption>released</figcaption>") == 3
    assert page.count("data:image/svg+xml") == 2


def _lines(page):
    section = page[page.index("What left the sites, for each method") :]
    items = re.findall(r"<li><strong>(.*?)</strong>: (.*?)\.</li>", section[: section.index("</ul>")])
    return dict(items)


def test_one_line_a_method_says_what_left(run):
    lines = _lines((run / "report.html").read_text())
    privacy = json.loads((run / "privacy.json").read_text())
    assert list(lines) == list(privacy["methods"])
    assert "privatized records" in lines["cadp-given-flow"]
    assert "weights of a flow trained without differential privacy, unprotected" in lines["cadp-given-flow"]
    assert "the true label of each record" in lines["cadp-given-flow"]
    assert lines["dp-sgd"] == "weights after noised steps of DP-SGD; exact test results, unprotected"
    assert "records" not in lines["fedavg"]


def test_what_was_planned_and_never_spent_is_not_said_to_have_left(run):
    privacy = json.loads((run / "privacy.json").read_text())
    for site in privacy["methods"]["dp-sgd"]["sites"].values():
        site["spent"] = []
    for site in privacy["test_units"]["methods"]["dp-sgd"]["sites"].values():
        site["spent"] = []
    for site in privacy["methods"]["fedavg"]["sites"].values():
        site["spent"] = None  # a site that did not say: it counts as all
    (run / "privacy.json").write_text(json.dumps(privacy))
    lines = _lines(write_report(run).read_text())
    assert lines["dp-sgd"] == "nothing"
    assert "unprotected" in lines["fedavg"]


def test_the_page_is_one_file_that_loads_nothing(run):
    page = (run / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page)


def test_a_report_is_written_again_from_the_folder(run):
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    write_report(run)
    assert (run / "report.html").read_text() == before


def test_a_report_with_originals_is_for_its_owner_alone(run):
    assert (run / "report.html").stat().st_mode & 0o777 == 0o600
    for preview in (run / "sites").glob("*/preview.npz"):
        assert preview.stat().st_mode & 0o777 == 0o600
        preview.unlink()
    assert write_report(run).stat().st_mode & 0o777 == 0o644


def test_names_from_a_site_cannot_become_markup(run):
    summary = json.loads((run / "summary.json").read_text())
    summary["missing"] = [{"site": "x", "phase": "y", "reason": "<script>alert(1)</script>"}]
    summary["status"] = "incomplete"
    (run / "summary.json").write_text(json.dumps(summary))
    page = write_report(run).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_damaged_release_is_no_picture_in_a_report(run):
    shard = next((run / "releases" / "north" / "shards").iterdir())
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(ExchangeError, match="damaged or changed"):
        write_report(run)


@pytest.mark.parametrize("text", [None, "{", ""])
def test_a_folder_without_a_whole_run_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(InputError, match=r"A run folder holds summary\.json"):
        write_report(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_a_row_a_class(channels):
    rows = [np.zeros((count, channels, 8, 6), np.uint8) for count in (5, 2, 0)]
    uri, width, height = image_grid(rows, 4)
    assert uri.startswith("data:image/png;base64,")
    assert (width, height) == (4 * 7 - 1, 3 * 9 - 1)


def test_the_same_curves_draw_the_same_picture():
    series = {"a": ([1, 2], [0.5, 0.6]), "b": ([1], [0.4])}
    assert curves(series, "x", "y") == curves(series, "x", "y")

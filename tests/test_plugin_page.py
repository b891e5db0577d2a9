"""The code of docs/plugin.md, run as it stands there."""

import json
import re
import runpy

import pytest
import torch
from flwr.app import Context, RecordDict

from cadp_fl.config import load_study
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.mechanisms import MECHANISMS
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.study.run import check_study
from clients.client_app import app as client_app
from server.server_app import app as server_app
from tests.conftest import ROOT
from tests.local_grid import LocalGrid
from tests.test_examples import APPS, changed_lines
from tests.test_public_api import PAGE

BLOCK = re.compile(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def page(tmp_path, monkeypatch, own_registries):
    """Write the page's files into a folder, and work there."""
    for name, code in BLOCK.findall(PAGE.read_text()):
        with (tmp_path / name).open("a") as file:
            file.write(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_difference_on_the_page_is_that_of_the_example():
    block = re.search(r"<!-- difference -->\n```diff\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    shown = [line for line in block.splitlines() if not line.startswith(("+++", "---"))]
    assert shown == changed_lines()
    assert re.findall(r"^\+\+\+ after/digits_app/(.*)$", block, re.MULTILINE) == list(APPS)
    for page in (PAGE, ROOT / "README.md"):
        assert f"{len(shown)} lines:" in page.read_text()


def test_the_plugin_of_the_page_runs_its_study(page):
    run_config = {"config": str(page / "study.yaml"), "output-dir": str(page / "runs" / "stripes"), "set": ""}
    check_study(load_study(page / "study.yaml"))
    grid = LocalGrid(client_app, 2, run_config)
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config))
    summary = json.loads((page / "runs" / "stripes" / "summary.json").read_text())
    assert (summary["status"], summary["dataset"]) == ("complete", "stripes")
    assert {site["train"] for site in summary["sites"]} == {160}
    rows = summary["methods"]
    assert [row["guarantee"] for row in rows.values()] == ["given-flow", "end-to-end", "none"]
    assert rows["cadp-given-flow"]["release"]["mechanism"] == "gaussian-box"
    assert {row["classifier"] for row in rows.values()} == {"mlp"}
    assert rows["fedavg-momentum"]["accuracy"] > 0.8
    runpy.run_path(str(page / "use.py"))


def test_the_mechanism_of_the_page_keeps_what_it_promises(page):
    check_study(load_study(page / "study.yaml"))
    kind = MECHANISMS["gaussian-box"]
    mechanism = kind.calibrated(4.0, 3.0, 1e-5)
    assert 2.99 < epsilon_of([mechanism.event()], 1e-5) <= 3.0
    assert kind.from_event(mechanism.event()) == mechanism
    inf, nan = float("inf"), float("nan")
    latents = torch.tensor([[9.0] * 16, [0.0] * 16, [inf, -inf] * 8, [nan, 1e38] * 8, [0.1] * 16])
    quiet = kind(4.0, 1e-9)(latents, noise=NoiseSource.from_seed(0))
    assert quiet.double().norm(dim=1).max() <= 4.0
    assert torch.allclose(quiet[4], latents[4], atol=1e-6)


@pytest.mark.parametrize("clip_norm", [0.5, 4.0, 100.0])
def test_the_moments_of_the_pages_clip_are_those_of_a_sample(page, clip_norm):
    check_study(load_study(page / "study.yaml"))
    z = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    bound = clip_norm / 4
    moments = MECHANISMS["gaussian-box"](clip_norm, 1.0).clipped_normal(16)
    # The standard error of either mean is below 0.003.
    assert moments.power == pytest.approx(z.clamp(-bound, bound).square().mean().item(), abs=0.015)
    assert moments.overlap == pytest.approx((z * z.clamp(-bound, bound)).mean().item(), abs=0.015)

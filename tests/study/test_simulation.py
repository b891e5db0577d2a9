"""A simulation's sites from a file with patients and a test split of its own; no engine is started."""

import numpy as np
import pytest

from cadp_fl.config import load_study
from cadp_fl.errors import DataError
from cadp_fl.site.protocol import Request
from cadp_fl.study.run import check_study
from cadp_fl.study.simulated_sites import simulated_site


@pytest.fixture
def study(quickstart, tiny_overrides, tmp_path):
    generator = np.random.default_rng(0)
    named = {}
    for split, count in (("train", 200), ("val", 40), ("test", 60)):
        named[f"{split}_images"] = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        named[f"{split}_labels"] = (np.arange(count) // 2 % 2)[:, None]
        named[f"{split}_patients"] = np.array([f"{split}-{number // 2}" for number in range(count)])
    np.savez_compressed(tmp_path / "scans.npz", **named)
    settings = [
        "data={source: medmnist, classes: [normal, ill]}",
        f"data.path={tmp_path / 'scans.npz'}",
        "sites.partition.min_records=20",
        "budget.delta=1.0e-5",
    ]
    return load_study(quickstart, tiny_overrides + settings)


def test_the_sites_of_a_file_share_its_records(study, tmp_path):
    check_study(study)
    sites = [simulated_site(study, index, tmp_path / "run", {}) for index in range(3)]
    descriptions = [site.call(Request("describe")).content for site in sites]
    assert sum(each["train"] for each in descriptions) == 240
    assert sum(each["test"] for each in descriptions) == 60
    assert [each["dataset"]["classes"] for each in descriptions] == [["normal", "ill"]] * 3
    assert {path.parent.name for path in (tmp_path / "run" / "sites").rglob("preview.npz")} == {
        "north",
        "east",
        "south",
    }


def test_a_missing_file_is_found_before_anything_is_written(study, tmp_path):
    (tmp_path / "scans.npz").unlink()
    with pytest.raises(DataError, match=f"There is none at '{tmp_path / 'scans.npz'}'; check it"):
        check_study(study)

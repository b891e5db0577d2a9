"""What tests of the phases share: one federation's run, a file of records, and a flow for them."""

import numpy as np
import pytest

from cadp_fl.config import FlowConfig
from cadp_fl.data.schema import Schema
from cadp_fl.flow.storage import FlowCard, save_flow
from tests.conftest import ROOT, TINY
from tests.federated.test_workflow import Run

SCHEMA = Schema(name="public-scans", shape=(1, 8, 8), classes=("normal", "ill"))
FLOW = FlowConfig(scales=[{"blocks": 1, "channels": 4}], dense={"blocks": 1, "width": 8})


@pytest.fixture(scope="session")
def federation(tmp_path_factory):
    """A run of the paper's protocol on three simulated sites, with seeded noise."""
    run = Run(
        {
            "config": str(ROOT / "configs" / "quickstart.yaml"),
            "output-dir": str(tmp_path_factory.mktemp("federation") / "run"),
            "set": "; ".join(f"{key}={value}" for key, value in TINY.items() if not key.startswith("methods.")),
        },
        "methods=[cadp-given-flow]",
    )
    assert run.go() == "complete"
    return run


@pytest.fixture
def scans(tmp_path):
    """A MedMNIST file of 80 records to train on and 20 to test on."""
    generator = np.random.default_rng(0)
    named = {}
    for split, count in (("train", 60), ("val", 20), ("test", 20)):
        named[f"{split}_images"] = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        named[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez_compressed(tmp_path / "ward-3.npz", **named)
    return tmp_path / "ward-3.npz"


@pytest.fixture
def flow_file(tmp_path):
    """Return a function that stores a flow for the file, declared public or private."""

    def store(trained_on, schema=SCHEMA):
        path = tmp_path / f"flow-{trained_on}.safetensors"
        card = FlowCard(FLOW, schema, 3, trained_on)
        save_flow(path, card.build(), card)
        return path

    return store


def contents(folder):
    """Return the bytes of every file below a folder, by path."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

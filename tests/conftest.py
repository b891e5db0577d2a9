"""What tests share: where data lies, a tiny study, and torch on one thread."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

from cadp_fl.config import StudyConfig, load_study
from cadp_fl.study.plugins import REGISTRIES

ROOT = Path(__file__).resolve().parents[1]

settings.register_profile("laws", deadline=None)  # a busy machine breaks no law
settings.load_profile("laws")

os.environ.setdefault("CADP_FL_DATA", str(ROOT.parent / "shared" / "data"))
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

TINY = {
    "release": "{mechanism: grid-gaussian, clip_norm: 4.0, latent_dims: 16, labels: public}",
    "flow.warm_start": "none",
    "flow.scales": "[{blocks: 1, channels: 4}]",
    "flow.dense": "{blocks: 1, width: 8}",
    "flow.training.rounds": "2",
    "flow.training.local_epochs": "1",
    "classifier.width": "4",
    "classifier.central.epochs": "1",
    "methods": "{cadp-given-flow: {}, dp-sgd: {model: linear, rounds: 2, local_steps: 2, sampling_rate: 0.5, "
    "clip_norm: 1.0, learning_rate: 2.0}, fedavg: {rounds: 2, local_epochs: 1, batch_size: 32, learning_rate: 0.05}}",
}
"""Overrides that make the quickstart run in a second, and learn next to nothing: a method of each kind, without DP for
the flow."""


def write_portraits(path: Path) -> Path:
    """Write a multi-label file of 8 x 8 grey images: 240 to train on, 60 to test on, with three attributes each."""
    generator = np.random.default_rng(0)
    named = {}
    for split, count in (("train", 200), ("val", 40), ("test", 60)):
        attributes = generator.integers(0, 2, (count, 3), dtype=np.uint8)
        images = generator.integers(0, 100, (count, 8, 8), dtype=np.uint8)
        for column in range(3):
            images[:, 2 * column : 2 * column + 2] += 100 * attributes[:, column, None, None]
        named |= {f"{split}_images": images, f"{split}_labels": attributes}
    np.savez_compressed(path, **named)
    return path


PORTRAITS = "data={source: medmnist, label: smiling, attributes: [hat, smiling, young]}"
"""Override that reads such a file, beside its path."""


LONGEST = ("deployment", "study")
"""Folders whose tests wait most for processes. They are handed out first, so that no worker is left with them alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def quickstart() -> Path:
    return ROOT / "configs" / "quickstart.yaml"


@pytest.fixture
def tiny_overrides() -> list[str]:
    return [f"{key}={value}" for key, value in TINY.items()]


@pytest.fixture
def tiny(quickstart: Path, tiny_overrides: list[str]) -> StudyConfig:
    return load_study(quickstart, tiny_overrides)


@pytest.fixture
def run_config(quickstart: Path, tiny_overrides: list[str], tmp_path: Path) -> dict[str, Any]:
    return {"config": str(quickstart), "output-dir": str(tmp_path / "run"), "set": "; ".join(tiny_overrides)}


@pytest.fixture
def own_registries() -> Iterator[None]:
    """Let a test load plugins, and forget them afterwards."""
    before, modules = {name: dict(entries) for name, entries in REGISTRIES.items()}, set(sys.modules)
    yield
    for name, entries in REGISTRIES.items():
        entries.clear()
        entries.update(before[name])
    for module in [module for module in sys.modules if module not in modules and "plugin" in module]:
        del sys.modules[module]

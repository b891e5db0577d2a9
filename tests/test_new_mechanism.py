"""A mechanism with an event of its own touches three files: the package is copied, they are edited, and it is used."""

import os
import shutil
import subprocess
import sys

from tests.conftest import ROOT

EVENT = '''
class LatentCoarse(_GaussianRelease):
    """One release of every record's latent: Gaussian noise, rounded to a quarter afterwards."""

    notation: ClassVar[Notation | None] = Notation("coarse", "release", ("clip-norm", "noise-std"))

    kind: Literal["latent-coarse"] = "latent-coarse"
    clip_norm: _ClipNorm
    noise_std: _NoiseStd
    records_per_unit: _RecordsPerUnit = 1


class LatentLaplace('''

MECHANISM = '''"""Gaussian noise, rounded to a quarter."""

from dataclasses import dataclass
from typing import ClassVar

from cadp_fl.privacy.continuous import GaussianMechanism
from cadp_fl.privacy.events import LatentCoarse

__all__ = ["CoarseMechanism"]


@dataclass(frozen=True)
class CoarseMechanism(GaussianMechanism):
    """M(z) = round(4 (clip_2(z; C) + N(0, sigma^2 I))) / 4."""

    name: ClassVar[str] = "coarse"

    @classmethod
    def from_event(cls, event):
        if not isinstance(event, LatentCoarse):
            return None
        return cls(event.clip_norm, event.noise_std, event.records_per_unit)

    def event(self):
        return LatentCoarse(
            stage="release",
            clip_norm=self.clip_norm,
            noise_std=self.noise_std,
            records_per_unit=self.records_per_unit,
        )

    def __call__(self, latents, *, noise):
        return (4 * super().__call__(latents, noise=noise)).round() / 4
'''

EDITS = {
    "privacy/events.py": [
        ("\nclass LatentLaplace(", EVENT),
        ("ReleaseEvent = LatentGaussian |", "ReleaseEvent = LatentCoarse | LatentGaussian |"),
        ("ProtectedEvent = (\n    LatentGaussian\n", "ProtectedEvent = (\n    LatentCoarse\n    | LatentGaussian\n"),
    ],
    "privacy/mechanisms.py": [
        ("] = (\n    GaussianMechanism,\n", "] = (\n    CoarseMechanism,\n    GaussianMechanism,\n"),
        ("\n__all__", "from cadp_fl.privacy.coarse import CoarseMechanism\n\n__all__"),
    ],
}

USE = """
import sys
from pathlib import Path

import numpy as np
import yaml
from typer.testing import CliRunner

import cadp_fl
from cadp_fl.cli.main import app
from cadp_fl.config import FlowConfig
from cadp_fl.data.schema import Schema
from cadp_fl.flow.storage import FlowCard, flow_sha256, save_flow
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.events import EVENTS, LatentCoarse
from cadp_fl.privacy.notation import parse_event
from cadp_fl.release.bundle import open_bundle

folder = Path(sys.argv[1])
assert Path(cadp_fl.__file__).is_relative_to(folder)
records = np.random.default_rng(0)
np.savez(
    folder / "x.npz",
    train_images=records.integers(0, 256, (300, 8, 8), dtype=np.uint8),
    train_labels=records.integers(0, 2, 300),
)
config = FlowConfig(scales=[{"blocks": 1, "channels": 4}], dense={"blocks": 1, "width": 8})
card = FlowCard(config, Schema(name="x", shape=(1, 8, 8), classes=("a", "b")), 0, "public")
flow = card.build()
save_flow(folder / "flow.safetensors", flow, card)
policy = {
    "population": "p", "unit": "record", "epsilon": 3.0, "delta": 1e-5, "labels": "public", "review": False,
    "min_class_units": 0, "mechanisms": ["coarse"], "public_flows": [flow_sha256(flow)],
}
(folder / "policy.yaml").write_text(yaml.safe_dump(policy))
DurableLedger.create(folder / "ledger.db", population="p", unit="record")
made = make_release(
    folder / "flow.safetensors", folder / "x.npz", folder / "bundle",
    ReleaseOptions(
        epsilon=2.0, delta=1e-5, clip_norm=4.0, latent_dims=4, mechanism="coarse",
        policy=folder / "policy.yaml", ledger=folder / "ledger.db",
    ),
)
manifest = open_bundle(folder / "bundle").manifest
assert manifest.mechanism == "coarse" and manifest.claim.guarantee == "end-to-end", manifest
((plan, spent),) = DurableLedger.as_found(folder / "ledger.db").carried_out()
event = next(event for event in spent if isinstance(event, LatentCoarse))
assert 1.96 < plan.epsilon() <= 2.0
typed = f"coarse:clip-norm={event.clip_norm},noise-std={event.noise_std}"
assert parse_event(typed) == event
said = CliRunner().invoke(app, ["account", "epsilon", typed, "--delta", "1e-5"])
assert said.exit_code == 0 and "latent-coarse" in said.output, said.output
assert EVENTS["latent-coarse"].left == "privatized records"
shown = CliRunner().invoke(app, ["site", "ledger", "show", str(folder / "ledger.db")])
assert "end-to-end" in shown.output, shown.output
"""


def test_a_mechanism_with_an_event_of_its_own_touches_three_files(tmp_path):
    shutil.copytree(ROOT / "cadp_fl", tmp_path / "cadp_fl", ignore=shutil.ignore_patterns("__pycache__"))
    for name, edits in EDITS.items():
        path = tmp_path / "cadp_fl" / name
        text = path.read_text()
        for old, new in edits:
            assert text.count(old) == 1, (name, old)
            text = text.replace(old, new)
        path.write_text(text)
    (tmp_path / "cadp_fl" / "privacy" / "coarse.py").write_text(MECHANISM)
    finished = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr

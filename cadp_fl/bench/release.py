"""A release: encode, clip, perturb, decode and store, against a loop over records that writes a picture each.

And the same on a grid, and by PrivUnit, against the Gaussian mechanism in floating point.
"""

from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cadp_fl.bench.contest import Benchmark, Contender, Contest, Setting
from cadp_fl.bench.flows import SHAPE, SMALL_FLOW, synthetic_records
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.mechanisms import GaussianMechanism, GridGaussianMechanism, Mechanism, PrivUnitMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.shuffling import best_threshold
from cadp_fl.release.bundle import write_bundle
from cadp_fl.release.manifest import ReleaseClaim, ReleaseHead
from cadp_fl.release.privatize import ReleaseSettings, privatize

__all__ = ["RELEASE", "RELEASE_BY_PRIVUNIT", "RELEASE_ON_GRID"]

CLASSES = ("a", "b")
DIMS = 784
MECHANISM = GaussianMechanism(clip_norm=1.0, noise_std=1.0)
SETTINGS = ReleaseSettings(MECHANISM, latent_dims=16, shrinkage="typical-set")
SCHEMA = Schema(name="synthetic", shape=SHAPE, classes=CLASSES)
HEAD = ReleaseHead(
    site="bench",
    dataset=SCHEMA,
    mechanism=MECHANISM.name,
    parameters=SETTINGS.parameters(DIMS),
    noise="entropy",
    claim=ReleaseClaim(
        guarantee="none", relation="of synthetic records", epsilon=None, epsilon_if_flow_were_fixed=None, delta=1e-6
    ),
    flow_sha256="0" * 64,
    event_id="bench",
)


def _release(setting: Setting) -> Contest:
    bundled, pictures = (64, 8) if setting.quick else (2048, 100)
    images, labels = synthetic_records(bundled, len(CLASSES), torch.device("cpu"))
    records = Dataset(SCHEMA, images.numpy(), labels.numpy())
    flow = ConditionalFlow(SMALL_FLOW, SHAPE, len(CLASSES), seed=3).to(setting.device).eval()
    folders = (setting.folder / str(number) for number in count())

    def ours() -> None:
        _bundle(flow, records, SETTINGS, setting.device, next(folders))

    def reference() -> None:
        folder = next(folders)
        folder.mkdir()
        for number in range(pictures):
            released = _one_record(flow, records.records[number], int(records.labels[number]), setting.device)
            Image.fromarray(released).save(folder / f"{number:05d}.png")

    return Contest(Contender(bundled, ours), Contender(pictures, reference))


def _release_on_grid(setting: Setting) -> Contest:
    """Noise in every dimension, where the mechanism weighs most."""
    return _against_floats(setting, GridGaussianMechanism(clip_norm=1.0, noise_std=1.0), DIMS)


def _release_by_privunit(setting: Setting) -> Contest:
    """Some 35 draws for each latent of 8 dimensions."""
    return _against_floats(setting, PrivUnitMechanism(5.0, best_threshold(5.0)), 8)


def _against_floats(setting: Setting, mechanism: Mechanism, dims: int) -> Contest:
    """Return a release by a mechanism against one by the Gaussian mechanism in as many dimensions."""
    bundled = 64 if setting.quick else 2048
    images, labels = synthetic_records(bundled, len(CLASSES), torch.device("cpu"))
    records = Dataset(SCHEMA, images.numpy(), labels.numpy())
    flow = ConditionalFlow(SMALL_FLOW, SHAPE, len(CLASSES), seed=3).to(setting.device).eval()
    folders = (setting.folder / str(number) for number in count())
    ours, in_floats = (
        ReleaseSettings(each, latent_dims=dims, shrinkage="typical-set")
        for each in (mechanism, GaussianMechanism(clip_norm=1.0, noise_std=1.0))
    )
    return Contest(
        Contender(bundled, lambda: _bundle(flow, records, ours, setting.device, next(folders))),
        Contender(bundled, lambda: _bundle(flow, records, in_floats, setting.device, next(folders))),
    )


def _bundle(
    flow: ConditionalFlow, records: Dataset, settings: ReleaseSettings, device: torch.device, folder: Path
) -> None:
    """Privatize records and store them."""
    parts, _ = privatize(flow, records, settings, noise=NoiseSource.from_entropy(), device=device)
    described = {"mechanism": settings.mechanism.name, "parameters": settings.parameters(flow.dims)}
    write_bundle(HEAD.model_copy(update=described), parts, folder)


@torch.no_grad()
def _one_record(flow: ConditionalFlow, image: np.ndarray, label: int, device: torch.device) -> np.ndarray:
    """Return one privatized image, uint8 (height, width), of one image, uint8 (1, height, width)."""
    x = torch.from_numpy(image).to(device).float()[None] / 255
    condition = torch.eye(len(CLASSES), device=device)[label][None]
    z = flow.encode(x, condition)[0]
    kept, std = SETTINGS.latent_dims, MECHANISM.noise_std
    clipped = z[:, :kept] * (MECHANISM.clip_norm / z[:, :kept].norm()).clamp(max=1.0)
    noised = (clipped + std * torch.randn_like(clipped)) * SETTINGS.factor
    decoded = flow.decode(torch.cat([noised, torch.randn_like(z[:, kept:])], dim=1), condition)
    return (decoded[0, 0].clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()


RELEASE = Benchmark(
    title="release records with a small flow: privatize and store a bundle",
    reference="one record at a time, torch's noise, a PNG each",
    unit="images",
    prepare=_release,
)

RELEASE_ON_GRID = Benchmark(
    title="release records with noise in all of 784 latent dimensions, by the grid-gaussian mechanism",
    reference="the gaussian mechanism: below 1 is the price of exactness",
    unit="images",
    prepare=_release_on_grid,
)

RELEASE_BY_PRIVUNIT = Benchmark(
    title="release records by PrivUnit at a local epsilon of 5, in 8 latent dimensions",
    reference="the gaussian mechanism in as many: below 1 is the price of the draws",
    unit="images",
    prepare=_release_by_privunit,
)

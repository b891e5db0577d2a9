"""Sites in memory, and what they are asked, as a server would ask them.

A flow of zero weights is the identity: images are latents. Where records have attributes, which are public, they number
the records.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cadp_fl.config import FlowConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.evaluation.probe import Released
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.events import Event, RandomizedResponse
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.mechanisms import Mechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Plan
from cadp_fl.privacy.policy import open_policy
from cadp_fl.release.bundle import parse_shard
from cadp_fl.release.manifest import manifest_from_json
from cadp_fl.release.privatize import ReleaseSettings
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import FetchRequest, ReleaseRequest, ReserveRequest
from cadp_fl.site.site import Site
from cadp_fl.weights import get_weights

__all__ = ["CLASSES", "DELTA", "SHAPE", "Asked", "labelled_records", "numbered_records"]

DELTA = 1e-9
"""Of every plan."""

SHAPE = (1, 4, 4)
CLASSES = 3
"""Of records with a label, unless there are more."""

_SCALE = 16.0
"""Latents from -8 to 8 are told apart; a noised latent of variance 1 does not leave that range."""

_FLOW = FlowConfig.model_validate({"dense": {"blocks": 1, "width": 1}, "input_scale": _SCALE})


class Asked:
    """Sites in memory, and what they are asked; each has a noise source of its own.

    Args:
        folder: of their outboxes.
        noise: of the sites.
    """

    def __init__(self, folder: Path, noise: NoiseSource) -> None:
        self._folder, self._noise, self._requests = folder, noise, 0

    def site(self, name: str, records: Dataset) -> Site:
        """Return a site that trains and tests on records."""
        return Site(
            name,
            SiteData(records, records),
            ledger=MemoryLedger(),
            noise=self._noise.child(name),
            device=torch.device("cpu"),
            outbox=self._folder / name,
            simulation=True,
            policy=open_policy(),
        )

    def zeros(self, name: str, count: int) -> np.ndarray:
        """Return images of latents that are as good as zero: of either sign, by coins."""
        coins = self._noise.child("images", name).uniform(count * math.prod(SHAPE)) < 0.5
        return np.where(coins, np.uint8(127), np.uint8(128)).reshape(count, *SHAPE)

    def answer(self, site: Site, request: Callable[[str], Request], *events: Event, on_test: bool = False) -> Reply:
        """Return a site's answer to a request of a method, whose plan holds some events."""
        self._requests += 1
        method = f"audit-{self._requests}"
        plan = Plan(method, events, DELTA, split="test" if on_test else "train")
        site.call(Request("reserve", ReserveRequest(plans=(plan.to_json(),)).model_dump(mode="json")))
        return site.call(request(method))

    def release(self, site: Site, mechanism: Mechanism, labels: RandomizedResponse | None = None) -> Released:
        """Return a release of a site as a reader fetches it, in its order."""
        dims = math.prod(SHAPE)
        settings = ReleaseSettings(mechanism, dims, "typical-set", labels)
        conditions = site.call(Request("describe")).content["dataset"]
        flow = ConditionalFlow(_FLOW, SHAPE, Schema.model_validate(conditions).conditions, seed=0)
        weights = {name: np.zeros_like(array) for name, array in get_weights(flow).items()}

        def request(method: str) -> Request:
            asked = ReleaseRequest(
                method=method,
                flow=_FLOW,
                seed=0,
                mechanism=mechanism.name,
                event=mechanism.event(),
                labels=labels,
                latent_dims=dims,
                shrinkage="typical-set",
                shard_records=1024,
            )
            return Request("release", asked.model_dump(mode="json"), weights)

        manifest = manifest_from_json(str(self.answer(site, request, *settings.cost).content["manifest"]))
        parts = []
        for shard in manifest.shards:
            fetch = FetchRequest(event_id=manifest.event_id, shard=shard.name)
            data = site.call(Request("fetch", fetch.model_dump(mode="json"))).arrays["shard"].tobytes()
            parts.append(parse_shard(manifest, shard, data))
        images = np.concatenate([part.records for part in parts]).reshape(-1, dims)
        released = np.concatenate([part.labels for part in parts])
        numbers = [part.attributes for part in parts if part.attributes is not None]
        return Released(
            units=_numbers_of(np.concatenate(numbers)) if numbers else np.zeros(len(images), dtype=np.int64),
            noised=((images + 0.5) / 256 - 0.5) * _SCALE / settings.factor,
            fresh=np.zeros((len(images), 0)),
            labels=released,
            conditions=released,
        )


def numbered_records(images: np.ndarray) -> Dataset:
    """Return records whose attributes, which are public, number them."""
    bits = np.arange((len(images) - 1).bit_length())
    schema = Schema(
        name="audit", shape=SHAPE, classes=("0", "1"), attributes=tuple(f"bit {bit}" for bit in range(len(bits)))
    )
    attributes = (np.arange(len(images))[:, None] >> bits & 1).astype(np.uint8)
    return Dataset(schema, images, np.zeros(len(images), dtype=np.int64), attributes=attributes)


def _numbers_of(attributes: np.ndarray) -> np.ndarray:
    numbers: np.ndarray = attributes.astype(np.int64) @ (1 << np.arange(attributes.shape[1]))
    return numbers


def labelled_records(images: np.ndarray, labels: np.ndarray, classes: int = CLASSES) -> Dataset:
    """Return records with a label and no attributes."""
    schema = Schema(name="audit", shape=SHAPE, classes=tuple(map(str, range(classes))))
    return Dataset(schema, images, labels.astype(np.int64))

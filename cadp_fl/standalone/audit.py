"""An audit of a whole site: what `evaluation.audit` attacks part by part, asked of a real `Site` in memory.

The parts may be right and the site still use one noise source twice, spend on one event and draw by another, or leave a
unit out. So a site that holds made-up records is asked as a server would ask it, with a flow of zero weights, which is
the identity: images are latents. Records that are as good as zero leave their noise alone, for `laws`; black and white
ones are the worst pair. It reads nobody's records.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cadp_fl.config import ClassifierConfig, FlowConfig, FrontEndConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import ConfigError
from cadp_fl.evaluation.aggregates import noise_of_moments
from cadp_fl.evaluation.audit import AuditSettings, attack_result, audit, auditable, law_results
from cadp_fl.evaluation.bounds import gaussian_bound
from cadp_fl.evaluation.findings import AttackResult, Finding
from cadp_fl.evaluation.laws import FAIR_LIES, Law, laws_of_labels, laws_of_numbers, laws_of_release, laws_of_units
from cadp_fl.evaluation.noised import histograms_in
from cadp_fl.evaluation.probe import Released
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.accounting import epsilon_of
from cadp_fl.privacy.events import (
    Event,
    GaussianHistogram,
    GaussianMoments,
    GaussianSum,
    PoissonGaussian,
    RandomizedResponse,
)
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.mechanisms import GaussianMechanism
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Plan
from cadp_fl.privacy.policy import open_policy
from cadp_fl.release.bundle import parse_shard
from cadp_fl.release.manifest import manifest_from_json
from cadp_fl.release.privatize import ReleaseSettings
from cadp_fl.site.protocol import Reply, Request
from cadp_fl.site.requests import (
    ClassifierRequest,
    CountRequest,
    DpSgdTraining,
    EvaluateRequest,
    FetchRequest,
    MomentsRequest,
    ReleaseRequest,
    ReserveRequest,
)
from cadp_fl.site.site import Site
from cadp_fl.weights import get_weights

__all__ = ["SITE", "audit_all", "audit_site", "everything"]

SITE = "site"
"""What a whole site is called among all that is audited."""

_EPSILON, _DELTA, _CLIP_NORM = 3.0, 1e-9, 1.0
"""Of the site's releases: it is the site that is audited here, and not a claim."""

_UNITS, _CANARIES, _RECORDS = 2048, 8192, 60
_MANY_CLASSES, _CLASSES = 256, 3
_SHAPE = (1, 4, 4)
_SCALE = 16.0
"""Latents from -8 to 8 are told apart; a noised latent of variance 1 does not leave that range."""

_FLOW = FlowConfig.model_validate({"dense": {"blocks": 1, "width": 1}, "input_scale": _SCALE})
_FRONT_END = FrontEndConfig(size=4, descriptor="none")
_NOISE = 256.0
"""Standard deviation of what leaves beside a release: far above the steps that numbers are released in."""

_CALLS = 8
"""Of everything beside a release; pairs of them differ by their noise alone."""


def everything() -> tuple[str, ...]:
    """Return the names of all that can be audited."""
    return (*auditable(), SITE)


def audit_all(
    names: Sequence[str], epsilons: Sequence[float], settings: AuditSettings, *, noise: NoiseSource
) -> Iterator[Finding]:
    """Yield what an audit of everything that is named finds; half of the false alarms are the site's, if it is one.

    Raises:
        ConfigError: there is no such thing, or it claims nothing.
        BudgetError: no noise meets a budget.
    """
    unknown = [name for name in names if name not in everything() and name != "none"]
    if unknown:
        raise ConfigError(f"Unknown mechanism '{unknown[0]}'. Choose one of: {', '.join(sorted(everything()))}.")
    parts = [name for name in names if name != SITE]
    share = settings.false_alarm / (2 if parts and SITE in names else 1)
    if parts:
        yield from audit(parts, epsilons, replace(settings, false_alarm=share), noise=noise)
    if SITE in names:
        yield audit_site(settings, false_alarm=share, noise=noise.child(SITE))


def audit_site(settings: AuditSettings, *, false_alarm: float, noise: NoiseSource) -> Finding:
    """Ask a site for all that it offers under noise, and return what attacks on it certify and how its laws hold.

    Args:
        settings: how many draws; the claim is the site's own.
        false_alarm: probability that it is refuted if it does what it should.
        noise: of this call alone.
    """
    mechanism = GaussianMechanism.calibrated(_CLIP_NORM, _EPSILON, _DELTA)
    claim = epsilon_of([mechanism.event()], _DELTA)
    with tempfile.TemporaryDirectory(prefix="cadp-fl-audit-") as folder:
        asked = _Asked(Path(folder), noise)
        attack = _canaries(
            asked=asked,
            settings=settings,
            mechanism=mechanism,
            claim=claim,
            false_alarm=false_alarm / 2,
            noise=noise.child("coins"),
        )
        laws = (*_laws_of_releases(asked, mechanism), *_laws_of_what_is_beside(asked))
    return Finding(SITE, mechanism.parameters(), claim, (attack,), law_results(laws, false_alarm / 2))


class _Asked:
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
        coins = self._noise.child("images", name).uniform(count * math.prod(_SHAPE)) < 0.5
        return np.where(coins, np.uint8(127), np.uint8(128)).reshape(count, *_SHAPE)

    def answer(self, site: Site, request: Callable[[str], Request], *events: Event, on_test: bool = False) -> Reply:
        """Return a site's answer to a request of a method, whose plan holds some events."""
        self._requests += 1
        method = f"audit-{self._requests}"
        plan = Plan(method, events, _DELTA, split="test" if on_test else "train")
        site.call(Request("reserve", ReserveRequest(plans=(plan.to_json(),)).model_dump(mode="json")))
        return site.call(request(method))

    def release(self, site: Site, mechanism: GaussianMechanism, labels: RandomizedResponse | None = None) -> Released:
        """Return a release of a site as a reader fetches it, in its order."""
        dims = math.prod(_SHAPE)
        settings = ReleaseSettings(mechanism, dims, "typical-set", labels)
        conditions = site.call(Request("describe")).content["dataset"]
        flow = ConditionalFlow(_FLOW, _SHAPE, Schema.model_validate(conditions).conditions, seed=0)
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
        images = np.concatenate([part.images for part in parts]).reshape(-1, dims)
        released = np.concatenate([part.labels for part in parts])
        numbers = [part.attributes for part in parts if part.attributes is not None]
        return Released(
            units=_numbers_of(np.concatenate(numbers)) if numbers else np.zeros(len(images), dtype=np.int64),
            noised=((images + 0.5) / 256 - 0.5) * _SCALE / settings.factor,
            fresh=np.zeros((len(images), 0)),
            labels=released,
            conditions=released,
        )


def _canaries(
    asked: _Asked,
    settings: AuditSettings,
    mechanism: GaussianMechanism,
    claim: float,
    false_alarm: float,
    noise: NoiseSource,
) -> AttackResult:
    """Release black and white images, which end at the opposite ends of the ball, and tell which is which."""
    is_white = np.arange(_CANARIES) % 2 == 1
    images = np.where(is_white[:, None, None, None], np.uint8(255), np.uint8(0)) * np.ones(_SHAPE, dtype=np.uint8)
    site = asked.site("canaries", _numbered(images))

    def draw(count: int, _: NoiseSource) -> tuple[np.ndarray, np.ndarray]:
        left, right = [], []
        for _release in range(math.ceil(2 * count / _CANARIES)):
            released = asked.release(site, mechanism)
            white, sums = is_white[released.units], released.noised.sum(axis=1)
            left.append(sums[~white])
            right.append(sums[white])
        return np.concatenate(left), np.concatenate(right)

    return attack_result(
        name="black-and-white",
        draw=draw,
        count=max(1, settings.draws // 40),
        bound=gaussian_bound,
        claim=claim,
        delta=_DELTA,
        false_alarm=false_alarm,
        noise=noise,
    )


def _laws_of_releases(asked: _Asked, mechanism: GaussianMechanism) -> Iterator[Law]:
    numbered = asked.site("zeros", _numbered(asked.zeros("zeros", _UNITS)))
    first, second = (asked.release(numbered, mechanism) for _ in range(2))
    yield from laws_of_units(first.units, second.units, _UNITS, 1)
    yield from laws_of_release(first, second)
    labelled = asked.site("labels", _labelled(asked.zeros("labels", _UNITS), np.zeros(_UNITS, dtype=np.int64)))
    lies = RandomizedResponse(stage="labels", epsilon=FAIR_LIES)
    yield from laws_of_labels(*(asked.release(labelled, mechanism, lies) for _ in range(2)))


def _laws_of_what_is_beside(asked: _Asked) -> Iterator[Law]:
    """Yield the laws of the numbers of counts, sums, moments, steps of DP-SGD and evaluations."""
    labels = np.arange(_RECORDS) % _CLASSES
    site = asked.site("records", _labelled(asked.zeros("records", _RECORDS), labels))
    crowd = asked.site(
        "crowd", _labelled(asked.zeros("crowd", _RECORDS), np.arange(_RECORDS) % _MANY_CLASSES, _MANY_CLASSES)
    )
    yield from laws_of_numbers("counts", [_counts(asked, crowd) for _ in range(_CALLS)])
    yield from laws_of_numbers("sums", [_sums(asked, site) for _ in range(4 * _CALLS)])
    yield from laws_of_numbers("moments", [_moments(asked, site) for _ in range(_CALLS)])
    yield from laws_of_numbers("steps", [_step(asked, site) for _ in range(2 * _CALLS)])
    yield from laws_of_numbers("evaluations", [_evaluation(asked, site) for _ in range(_CALLS)])


def _counts(asked: _Asked, site: Site) -> np.ndarray:
    event = GaussianHistogram(stage="counts", histograms=1, noise_std=_NOISE)
    reply = asked.answer(
        site, lambda method: Request("count", CountRequest(method=method, event=event).model_dump(mode="json")), event
    )
    return np.array(list(reply.content["class_counts"].values())) / _NOISE


def _sums(asked: _Asked, site: Site) -> np.ndarray:
    event = GaussianSum(stage="moments", clip_norm=1.0, noise_std=_NOISE)
    settings = MomentsRequest(method="m", front_end=_FRONT_END, event=event).model_dump(mode="json")
    reply = asked.answer(site, lambda method: Request("moments", settings | {"method": method}), event)
    return reply.arrays["sum"] / _NOISE


def _moments(asked: _Asked, site: Site) -> np.ndarray:
    event = GaussianMoments(
        stage="moments",
        noise_std=_NOISE,
        clip_norm=1.0,
        count_weight=0.5,
        sum_weight=1.0,
        shared_weight=0.5,
        class_weight=0.5,
    )
    dims = _FRONT_END.size**2
    settings = MomentsRequest(method="m", front_end=_FRONT_END, event=event).model_dump(mode="json")
    centre = {"centre": np.zeros(dims)}
    reply = asked.answer(site, lambda method: Request("moments", settings | {"method": method}, centre), event)
    stds = noise_of_moments(event, _CLASSES, dims)
    return np.concatenate([reply.arrays[name].ravel() / std.ravel() for name, std in stds.items()])


def _step(asked: _Asked, site: Site) -> np.ndarray:
    """Return the weights after one step of all records, in units of its noise: they move by it divided by n."""
    event = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=_NOISE, sampling_rate=1.0, steps=1)
    training = DpSgdTraining(event=event, learning_rate=1.0, momentum=0.0)
    settings = ClassifierRequest(
        method="m", classifier=ClassifierConfig(model="linear"), seed=0, round=1, training=training
    ).model_dump(mode="json")
    weights = _classifier_weights()
    reply = asked.answer(
        site, lambda method: Request("train_classifier", settings | {"method": method}, weights), event
    )
    return np.concatenate([array.astype(np.float64).ravel() for array in reply.arrays.values()]) * _RECORDS / _NOISE


def _evaluation(asked: _Asked, site: Site) -> np.ndarray:
    event = GaussianHistogram(stage="evaluation", histograms=histograms_in(_CLASSES), noise_std=_NOISE)
    settings = EvaluateRequest(method="m", classifier=ClassifierConfig(model="linear"), seed=0, event=event).model_dump(
        mode="json"
    )
    weights = _classifier_weights()
    reply = asked.answer(
        site, lambda method: Request("evaluate", settings | {"method": method}, weights), event, on_test=True
    )
    return np.concatenate([array.ravel() for array in reply.arrays.values()]) / _NOISE


def _classifier_weights() -> dict[str, np.ndarray]:
    dims = math.prod(_SHAPE)
    return {"1.weight": np.zeros((_CLASSES, dims), dtype=np.float32), "1.bias": np.zeros(_CLASSES, dtype=np.float32)}


def _numbered(images: np.ndarray) -> Dataset:
    """Return records whose attributes, which are public, number them."""
    bits = np.arange((len(images) - 1).bit_length())
    schema = Schema(
        name="audit", shape=_SHAPE, classes=("0", "1"), attributes=tuple(f"bit {bit}" for bit in range(len(bits)))
    )
    attributes = (np.arange(len(images))[:, None] >> bits & 1).astype(np.uint8)
    return Dataset(schema, images, np.zeros(len(images), dtype=np.int64), attributes=attributes)


def _numbers_of(attributes: np.ndarray) -> np.ndarray:
    numbers: np.ndarray = attributes.astype(np.int64) @ (1 << np.arange(attributes.shape[1]))
    return numbers


def _labelled(images: np.ndarray, labels: np.ndarray, classes: int = _CLASSES) -> Dataset:
    schema = Schema(name="audit", shape=_SHAPE, classes=tuple(map(str, range(classes))))
    return Dataset(schema, images, labels.astype(np.int64))

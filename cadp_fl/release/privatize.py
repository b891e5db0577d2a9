"""x -> x': encode, clip, perturb, shrink, decode. The content-aware mechanism of the paper.

    z = f(x; y)        z1 = clip(z[:k]; C) + noise        x' = f^-1([s z1, u]; y'),  u ~ N(0, I)

PrivUnit, in place of clip and noise, draws z1 on the record's side of a half-space more often than not. Directions of
the flow may turn its latents first, and turn them back before decoding: see `cadp_fl.flow.directions`.

The condition y is the label, or the attributes where records have some: the noise never touches it. Where labels are
public, y' = y. Where they are covered, y' is drawn once by randomized response, and a record is decoded under y' alone:
decoding under y would show it. Attributes that are to be randomized are drawn from a public distribution, whatever a
record has, and it is decoded under these. Noise comes after encoding, so the mechanism protects whatever flow a server
sends. All that follows it (shrinking, fresh dimensions, decoding, quantization) is post-processing and costs nothing.

References:
    Tölle, Köthe, André, Meder, Engelhardt: Content-aware differential privacy with conditional invertible neural
    networks, arXiv 2207.14625.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from cadp_fl.config import AttributesConfig, ReleaseConfig
from cadp_fl.data.codec import codec_of
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.units import Units
from cadp_fl.device import PhysicalBatch
from cadp_fl.errors import ConfigError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.directions import Directions, leading_directions
from cadp_fl.privacy.budget import Budget
from cadp_fl.privacy.clipped_normal import ClippedNormal
from cadp_fl.privacy.cohort import Cohort, Labelled
from cadp_fl.privacy.events import Event, ProtectedEvent, RandomizedResponse
from cadp_fl.privacy.labels import randomize_labels
from cadp_fl.privacy.mechanisms import Mechanism, NoMechanism, PrivUnitMechanism, mechanism_type
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.manifest import ReleaseParameters

__all__ = [
    "SHRINKAGES",
    "ReleaseSettings",
    "check_release",
    "calibrated",
    "check_randomized",
    "clip_norm_of",
    "cohort_of",
    "privatize",
    "randomized_attributes",
    "release_directions",
    "release_order",
    "released_dims",
    "temperature_of",
]

BATCH_RECORDS = 512

PRIVUNIT_DIMS, PRIVUNIT_TEMPERATURE = 8, 0.5
"""By default: latents that PrivUnit releases, and the temperature of the others."""

MAX_BATCH_VALUES = 1 << 23
"""Latent values that are drawn and decoded at once, whatever the size of a record."""

MAX_PART_BYTES = 32 << 20
"""Bytes of pixels and attributes in one part of a release, and so in one message."""


def _typical_set(clipped: ClippedNormal, noise_variance: float) -> float:
    """Return 1 / sqrt(E|clip(z)|^2 / k + v): the noised latent gets the prior's variance."""
    return 1 / math.sqrt(clipped.power + noise_variance)


def _posterior_mean(clipped: ClippedNormal, noise_variance: float) -> float:
    """Return the s that minimises E|z - s (clip(z) + noise)|^2: (E<z, clip(z)> / k) / (E|clip(z)|^2 / k + v)."""
    return clipped.overlap / (clipped.power + noise_variance)


SHRINKAGES: dict[str, Callable[[ClippedNormal, float], float]] = {
    "typical-set": _typical_set,
    "posterior-mean": _posterior_mean,
}
"""The factor s of a noised latent, from what the clip leaves of the prior and the noise's variance v: public numbers
alone."""


@dataclass(frozen=True, eq=False)
class ReleaseSettings:
    """How latents become records.

    Attributes:
        mechanism: clips and perturbs.
        latent_dims: k, the number of leading latent dimensions that carry a record's information.
        shrinkage: name of the factor s.
        labels: what a released label costs beside the mechanism; None where labels are public, or the mechanism's own.
        directions: that the flow's latents are turned to; None for latents as they are.
        temperature: standard deviation of u.
        randomized: attributes that are drawn for each record, and how likely it is to have each.
    """

    mechanism: Mechanism
    latent_dims: int
    shrinkage: str
    labels: RandomizedResponse | None = None
    directions: Directions | None = None
    temperature: float = 1.0
    randomized: Mapping[str, float] = field(default_factory=dict)

    @property
    def response(self) -> RandomizedResponse | None:
        """How a released label is drawn; None where labels are left as they are."""
        return self.labels or (self.mechanism.labels if isinstance(self.mechanism, Labelled) else None)

    @property
    def factor(self) -> float:
        """The factor s of a noised latent."""
        own = self.mechanism
        return SHRINKAGES[self.shrinkage](own.clipped_normal(self.latent_dims), own.noise_variance)

    def parameters(self, dims: int) -> ReleaseParameters:
        """Return every number of the release by a flow of `dims` dimensions, as its manifest states them."""
        return ReleaseParameters(
            **self.mechanism.parameters(),
            latent_dims=self.latent_dims,
            dims=dims,
            shrinkage=self.shrinkage,
            label_epsilon=None if self.response is None else self.response.epsilon,
            directions_sha256=None if self.directions is None else self.directions.sha256,
            temperature=self.temperature,
            randomized_attributes=dict(self.randomized),
        )

    @property
    def cost(self) -> tuple[Event, ...]:
        """What a release of every unit costs."""
        return (*([self.labels] if self.labels else []), self.mechanism.event())

    @property
    def correlation(self) -> float:
        """Correlation of a noised latent with its record's, for a record that follows the flow."""
        clipped = self.mechanism.clipped_normal(self.latent_dims)
        return clipped.overlap / math.sqrt(clipped.power + self.mechanism.noise_variance)


def clip_norm_of(release: ReleaseConfig) -> float:
    """Return C; any number where the mechanism has no clip.

    Raises:
        ConfigError: the mechanism clips, and the config names no norm.
    """
    if release.clip_norm is None and release.mechanism not in (PrivUnitMechanism.name, NoMechanism.name):
        raise ConfigError(
            f"The mechanism {release.mechanism} clips latents to a norm that the study names. Found no "
            "release.clip_norm; give one, 4 say."
        )
    return release.clip_norm or 1.0


def calibrated(
    release: ReleaseConfig, budget: Budget, beside: Sequence[ProtectedEvent]
) -> tuple[Mechanism, tuple[RandomizedResponse, ...]]:
    """Return the mechanism that meets a budget with all that is beside it, and what labels cost beside it.

    Args:
        beside: other events of the plan, without those of labels.

    Raises:
        BudgetError: no noise meets the budget.
        ConfigError: the mechanism is unknown, or lacks a clip norm.
    """
    kind, clip_norm, m = mechanism_type(release.mechanism), clip_norm_of(release), budget.records_per_unit
    amount = (clip_norm, budget.epsilon, budget.delta)
    if issubclass(kind, Labelled):
        own = cohort_of(release, budget)
        return kind.calibrated(*amount, records_per_unit=m, beside=beside, cohort=own), ()
    labels = budget.label_events()
    return kind.calibrated(*amount, records_per_unit=m, beside=(*beside, *labels)), labels


def cohort_of(release: ReleaseConfig, budget: Budget) -> Cohort:
    """Return whom a release hides a unit among, as far as a study knows it."""
    is_covered = budget.labels == "covered"
    share = budget.split["labels"] if is_covered else 0.0
    if release.amplification == "none" or (is_covered and release.label_classes is None):
        return Cohort(label_share=share)
    return Cohort(release.shuffled_units or 0, (release.label_classes or 0) if is_covered else 0, share)


def released_dims(release: ReleaseConfig, flow: ConditionalFlow) -> int:
    """Return how many latent dimensions a release privatizes: by default 8 of PrivUnit, else those that move the image.

    PrivUnit's signal is one direction's, whatever their number, and is shared out among them.
    """
    if release.latent_dims:
        return release.latent_dims
    return min(PRIVUNIT_DIMS, flow.leading_dims) if release.mechanism == PrivUnitMechanism.name else flow.leading_dims


def temperature_of(release: ReleaseConfig) -> float:
    """Return the standard deviation of the latents that a release takes from the prior: half of it with PrivUnit.

    There is content to be seen beside them. It is post-processing, and costs nothing.
    """
    if release.temperature is not None:
        return release.temperature
    return PRIVUNIT_TEMPERATURE if release.mechanism == PrivUnitMechanism.name else 1.0


def release_directions(release: ReleaseConfig, flow: ConditionalFlow) -> Directions | None:
    """Return the directions that a release turns the flow's latents to; None for latents as they are."""
    chosen = release.directions or ("leading" if release.mechanism == PrivUnitMechanism.name else "first")
    return leading_directions(flow) if chosen == "leading" else None


def randomized_attributes(release: ReleaseConfig, schema: Schema) -> dict[str, float]:
    """Return the attributes that a release draws, and how likely it is to have each.

    Raises:
        ConfigError: the config names others than the records have, or the class itself.
    """
    if release.attributes is None:
        return {}
    return release.attributes.randomized(schema.attributes, schema.classes[-1])


def check_randomized(randomized: Mapping[str, float], schema: Schema) -> None:
    """Check that attributes which are to be drawn are those of records, and that none is the class.

    Raises:
        ConfigError: they are not.
    """
    AttributesConfig(randomize=tuple(randomized)).randomized(schema.attributes, schema.classes[-1])


def check_release(
    mechanism: str, shrinkage: str, latent_dims: int = 0, dims: int = 0, *, labels: str = "public", attributes: int = 0
) -> None:
    """Check that a release names what exists, and fits a flow and records with some attributes.

    Args:
        latent_dims: that are privatized.
        dims: of the flow; without one, only the rest is checked.

    Raises:
        ConfigError: it does not.
    """
    mechanism_type(mechanism)
    if shrinkage not in SHRINKAGES:
        raise ConfigError(f"Unknown shrinkage '{shrinkage}'. Choose one of: {', '.join(sorted(SHRINKAGES))}.")
    if latent_dims > dims:
        raise ConfigError(
            f"release.latent_dims is at most the flow's {dims} dimensions. Found {latent_dims}; lower it, or leave it "
            "out."
        )
    if labels != "public" and attributes:
        raise ConfigError(
            f"Randomized response is for records with a label and nothing beside it. These have {attributes} "
            "attributes; set release.labels: public, or leave the attributes out."
        )


def privatize(
    flow: ConditionalFlow,
    records: Dataset,
    settings: ReleaseSettings,
    *,
    noise: NoiseSource,
    device: torch.device,
    units: Units | None = None,
    part_records: int = 4096,
    order: np.ndarray | None = None,
) -> tuple[Iterator[Dataset], tuple[Event, ...]]:
    """Return m privatized records for every unit, in a secret random order and in parts, and what all of it costs.

    A part is computed when it is asked for, so that memory stays flat.

    Args:
        flow: on `device`; any flow, also a hostile one.
        records: the training records of a site.
        noise: of this release alone.
        units: what contributes which records; each record by default.
        part_records: records in each part but the last; fewer where they would take more than `MAX_PART_BYTES`.
        order: `release_order` of this noise, where the caller has to know it.
    """
    flow.eval()
    units = units or Units.of(records, "record")
    record_bytes = flow.dims + len(records.schema.attributes)
    part_records = min(part_records, max(1, MAX_PART_BYTES // record_bytes))
    order = release_order(units, noise) if order is None else order
    places = [order[start : start + part_records] for start in range(0, len(order), part_records)]
    batch = _Batch(flow, settings, noise, device)
    return (batch.privatize(*units.take(records, chosen)) for chosen in places), settings.cost


def release_order(units: Units, noise: NoiseSource) -> np.ndarray:
    """Return the place in `units.slots` of every record of a release, int64: a secret uniform permutation of them all.

    Args:
        noise: of this release alone.
    """
    return noise.child("order").permutation(len(units.slots))


class _Batch:
    """Privatizes a batch of records after the other."""

    def __init__(
        self, flow: ConditionalFlow, settings: ReleaseSettings, noise: NoiseSource, device: torch.device
    ) -> None:
        self._flow, self._settings, self._device = flow, settings, device
        self._perturbation, self._prior = noise.child("perturbation"), noise.child("prior")
        self._responses, self._draws = noise.child("labels"), noise.child("attributes")
        self._factor = settings.factor
        self._size = min(BATCH_RECORDS, max(1, MAX_BATCH_VALUES // flow.dims))
        self._physical = PhysicalBatch(flow.swift_batch(self._size))

    @torch.no_grad()
    def privatize(self, records: Dataset, blank: np.ndarray) -> Dataset:
        """Return a privatized record for each record, in their order.

        Args:
            blank: bool (records,): which have the zero latent, whatever their image.
        """
        released = np.empty_like(records.records)
        said = self._respond(records)
        codec, blanks = codec_of(records.schema), torch.from_numpy(blank)[:, None].to(self._device)
        for start in range(0, len(records), self._size):
            part = slice(start, start + self._size)
            x = codec.to_unit(torch.from_numpy(records.records[part]).to(self._device))
            latents = self._encode(x, self._condition(records.condition[part]))
            latents = torch.where(blanks[part], torch.zeros_like(latents), latents)
            x = self._decode(self._perturb(latents), self._condition(said.condition[part]))
            released[part] = codec.from_unit(x).cpu().numpy()
        return Dataset(records.schema, released, said.labels, attributes=said.attributes)

    def _respond(self, records: Dataset) -> Dataset:
        """Return the records with the labels, and the attributes, that they leave with: y'."""
        if self._settings.randomized:
            return self._randomized(records)
        if self._settings.response is None:
            return records
        classes = len(records.schema.classes)
        said = randomize_labels(records.labels, classes, self._settings.response, self._responses)
        return Dataset(records.schema, records.records, said)

    def _randomized(self, records: Dataset) -> Dataset:
        """Return the records with some attributes drawn, whatever they are: nothing of a record is in these."""
        assert records.attributes is not None, "they were checked"
        attributes = records.attributes.copy()
        for name, share in self._settings.randomized.items():
            drawn = self._draws.uniform(len(records)) < share
            attributes[:, records.schema.attributes.index(name)] = drawn
        return replace(records, attributes=attributes)

    def _condition(self, values: np.ndarray) -> torch.Tensor:
        return condition_of(torch.from_numpy(values).to(self._device), self._flow.conditions)

    def _encode(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return z = f(x; y), (batch, dims), turned to the release's directions."""
        z = torch.cat(self._physical.each(len(x), lambda part: self._flow.encode(x[part], condition[part])[0]))
        return z if self._settings.directions is None else self._settings.directions.turn(z)

    def _perturb(self, latents: torch.Tensor) -> torch.Tensor:
        """Return [s (clip(z[:k]) + noise), u], (batch, dims), with u from the prior."""
        kept = self._settings.latent_dims
        noised = self._settings.mechanism(latents[:, :kept], noise=self._perturbation) * self._factor
        fresh = self._prior.normal((len(latents), latents.shape[1] - kept), 1.0, like=latents)
        return torch.cat([noised, fresh * self._settings.temperature], dim=1)

    def _decode(self, latents: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return x' = f^-1(z; y), (batch, channels, height, width), of turned latents."""
        if self._settings.directions is not None:
            latents = self._settings.directions.turn_back(latents)
        return torch.cat(
            self._physical.each(len(latents), lambda part: self._flow.decode(latents[part], condition[part]))
        )

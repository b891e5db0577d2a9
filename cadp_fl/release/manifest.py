"""The manifest of a release: what it is, how it was made, what it cost, and which bytes it vouches for."""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from cadp_fl.config.names import EventId, SiteName
from cadp_fl.config.sentences import sentence_on
from cadp_fl.data.schema import MAX_ATTRIBUTES, Schema
from cadp_fl.errors import ExchangeError
from cadp_fl.privacy.claims import Claim, Guarantee
from cadp_fl.privacy.mechanisms import GaussianMechanism, GridGaussianMechanism, NoMechanism, PrivUnitMechanism

__all__ = [
    "MAX_MANIFEST_BYTES",
    "MAX_SHARD_BYTES",
    "Manifest",
    "ReleaseClaim",
    "ReleaseHead",
    "ReleaseParameters",
    "Shard",
    "manifest_from_json",
    "manifest_sha256",
    "manifest_to_json",
]

MAX_MANIFEST_BYTES = 8 << 20
MAX_SHARD_BYTES = 1 << 30
MAX_RELEASE_BYTES = 256 << 30

_Line = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\p{C}]+$")]
_Epsilon = Annotated[float, Field(ge=0, le=1e300, allow_inf_nan=False)] | None
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Model):
    """One file of a release."""

    name: str = Field(pattern=r"^[0-9]{5}\.npz$")
    sha256: _Sha256
    bytes: int = Field(ge=1, le=MAX_SHARD_BYTES)
    records: int = Field(ge=1, le=10**7)


class ReleaseParameters(_Model):
    """Every number of the mechanism, each by itself."""

    clip_norm: float | None = Field(gt=0, le=1e9, allow_inf_nan=False, description="C; null without a clip")
    noise_std: float | None = Field(
        gt=0, le=1e9, allow_inf_nan=False, description="standard deviation; null without noise"
    )
    noise_scale: float | None = Field(
        None, gt=0, le=1e9, allow_inf_nan=False, description="b of Laplace noise, else null"
    )
    grid: float | None = Field(
        None,
        gt=0,
        le=1e9,
        allow_inf_nan=False,
        description="gamma, of which noised latents are multiples; null without a grid",
    )
    latent_epsilon: float | None = Field(
        None, gt=0, le=20, description="of PrivUnit: a record's half-space against the other, else null"
    )
    threshold: float | None = Field(None, ge=0, le=8, description="g of PrivUnit, else null")
    shuffled_units: int = Field(
        0, ge=0, le=10**9, description="n: units shuffled together, at least; 0: the claim rests on no shuffle"
    )
    latent_dims: int = Field(ge=1, le=10**9)
    directions_sha256: _Sha256 | None = Field(
        None, description="hash of the matrices that the flow's latents were turned by; null where they were not"
    )
    temperature: float = Field(1.0, ge=0, le=1, description="standard deviation of the latents from the prior")
    dims: int = Field(ge=1, le=10**9)
    shrinkage: str
    label_epsilon: float | None = Field(
        None, gt=0, le=20, description="of each label's randomized response; null where labels are the true ones"
    )
    records_per_unit: int = Field(1, ge=1, le=1000, description="m: records that one privacy unit contributed")
    randomized_attributes: dict[_Line, Annotated[float, Field(gt=0, lt=1)]] = Field(
        {}, max_length=MAX_ATTRIBUTES, description="attributes that were drawn, and how likely it was to have each"
    )

    @model_serializer(mode="wrap")
    def _as_before_attributes_were_drawn(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what none of the attributes is, so that such a release is written as it always was."""
        tree: dict[str, Any] = handler(self)
        if not self.randomized_attributes:
            tree.pop("randomized_attributes", None)
        return tree

    @model_validator(mode="after")
    def _is_consistent(self) -> "ReleaseParameters":
        if (self.clip_norm is None) != (self.noise_std is None):
            raise ValueError("a release is clipped and noised, or neither")
        if (self.latent_epsilon is None) != (self.threshold is None) or (self.latent_epsilon and self.noise_std):
            raise ValueError("PrivUnit has an epsilon and a threshold, and neither clip nor noise")
        if self.shuffled_units and self.latent_epsilon is None:
            raise ValueError("a claim rests on a shuffle with PrivUnit alone")
        if self.noise_scale is not None and not math.isclose(
            self.noise_std or 0, math.sqrt(2) * self.noise_scale, rel_tol=1e-6
        ):
            raise ValueError("the standard deviation of Laplace noise is sqrt(2) times its scale")
        if self.grid is not None and self.noise_scale is not None:
            raise ValueError("Laplace noise has no grid")
        if self.grid is not None and (math.frexp(self.grid)[0] != 0.5 or not self.grid <= (self.noise_std or 0)):
            raise ValueError("a grid is a power of two, and at most the standard deviation of its noise")
        return self

    @property
    def protected(self) -> bool:
        """Whether records were clipped and noised, or drawn by PrivUnit."""
        return self.noise_std is not None or self.latent_epsilon is not None

    @property
    def is_gaussian(self) -> bool:
        """Whether noise is Gaussian, so that a claim has a delta."""
        return self.noise_std is not None and self.noise_scale is None

    @property
    def local_epsilon(self) -> float | None:
        """Epsilon of what one unit sent by itself, whatever the order; None but for PrivUnit."""
        if self.latent_epsilon is None:
            return None
        return self.records_per_unit * (self.latent_epsilon + (self.label_epsilon or 0.0))


class ReleaseClaim(_Model):
    """What the site may claim of the method that this release belongs to; it travels with the records."""

    guarantee: Guarantee
    relation: _Line
    epsilon: _Epsilon
    epsilon_if_flow_were_fixed: _Epsilon
    delta: float = Field(ge=0, lt=1, description="0 where the noise has none, as Laplace noise")
    declared: tuple[_Line, ...] = Field((), description="what the claim takes to be public")
    against: Literal["server", "recipients"] = Field(
        "server", description="recipients: of sums over sites, and not the aggregator that adds them up"
    )
    flow_made_of: tuple[_Line, ...] = Field(
        (), description="kinds of noised events that the flow is taken to be made of, where records had a part in it"
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> "ReleaseClaim":
        for guarantee, field in (("end-to-end", "epsilon"), ("given-flow", "epsilon_if_flow_were_fixed")):
            if (getattr(self, field) is not None) != (self.guarantee == guarantee):
                raise ValueError(f"a claim has an {field} if it is {guarantee}, and else none")
        return self

    def exceeds(self, allowed: "ReleaseClaim") -> bool:
        """Return whether this claims other than what is allowed, and no weaker guarantee."""
        order = ("none", "given-flow", "end-to-end")
        return self != allowed and order.index(self.guarantee) >= order.index(allowed.guarantee)

    @classmethod
    def of(cls, claim: Claim, relation: str) -> "ReleaseClaim":
        """Return what travels of a claim under a neighbouring relation."""
        return cls(
            guarantee=claim.guarantee,
            relation=relation,
            epsilon=claim.epsilon,
            epsilon_if_flow_were_fixed=claim.epsilon_if_flow_were_fixed,
            delta=claim.delta,
            declared=claim.declared,
            against=claim.against,
            flow_made_of=claim.flow_made_of,
        )


class ReleaseHead(_Model):
    """What a release says of itself before its records are counted."""

    schema_version: Literal[1] = 1
    site: SiteName = Field(description="pseudonym of the site")
    dataset: Schema
    mechanism: str
    parameters: ReleaseParameters
    noise: Literal["entropy", "seeded"] = Field(description="seeded noise can be derived again, and protects nothing")
    claim: ReleaseClaim
    flow_sha256: _Sha256 = Field(description="hash of the weights that encoded and decoded")
    event_id: EventId = Field(description="id of the event in the site's ledger")


class Manifest(ReleaseHead):
    """What a release says of itself. It holds no time, no order and no identity of a record."""

    released_labels: dict[str, Annotated[int, Field(ge=0, le=10**12)]] = Field(
        description="count of every released label"
    )
    shards: tuple[Shard, ...] = Field(min_length=1, max_length=100_000)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Manifest":
        if [shard.name for shard in self.shards] != [f"{number:05d}.npz" for number in range(len(self.shards))]:
            raise ValueError("shards are numbered from 00000 without a gap")
        if (self.mechanism == NoMechanism.name) == self.parameters.protected:
            raise ValueError(f"the mechanism '{NoMechanism.name}', and no other, has neither clip nor noise")
        if (self.mechanism == PrivUnitMechanism.name) != (self.parameters.latent_epsilon is not None):
            raise ValueError(f"the mechanism '{PrivUnitMechanism.name}', and no other, has an epsilon of each latent")
        if self.claim.delta == 0 and (self.parameters.shuffled_units or self.parameters.is_gaussian):
            raise ValueError("claim.delta is above 0 where noise is Gaussian, or the claim rests on a shuffle")
        if not self.parameters.protected and self.claim.guarantee != "none":
            raise ValueError("records released without clipping or noise carry no guarantee")
        on_grid = self.parameters.grid is not None
        if self.mechanism == (GaussianMechanism.name if on_grid else GridGaussianMechanism.name):
            raise ValueError(
                f"the mechanism '{GridGaussianMechanism.name}' states its grid, and '{GaussianMechanism.name}' has none"
            )
        record_bytes = math.prod(self.dataset.shape) * self.dataset.dtype.itemsize
        unpacked = self.records * (record_bytes + 8 + len(self.dataset.attributes))
        if unpacked > MAX_RELEASE_BYTES:
            raise ValueError(f"a release unpacks to at most {MAX_RELEASE_BYTES} bytes, this one to {unpacked}")
        return self

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def records(self) -> int:
        """Number of released records."""
        return sum(shard.records for shard in self.shards)


def manifest_from_json(text: str | bytes) -> Manifest:
    """Return the manifest that a JSON text holds.

    Raises:
        ExchangeError: it is too large, or not a manifest.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise ExchangeError(f"A manifest has at most {MAX_MANIFEST_BYTES} bytes. Found {len(text)}; refuse it.")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ExchangeError(f"A manifest follows the schema: {sentence_on(first, key)} Ask the site again.") from error


def manifest_to_json(manifest: Manifest) -> str:
    """Return the compact JSON of a manifest, for the wire."""
    return json.dumps(manifest.model_dump(mode="json"), separators=(",", ":"))


def manifest_sha256(manifest: Manifest) -> str:
    """Return the hash of a manifest on the wire: what is kept of a bundle beside it names it by this."""
    return hashlib.sha256(manifest_to_json(manifest).encode()).hexdigest()

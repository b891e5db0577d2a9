"""A release on the wire and on disk: a manifest, and shards of records that it vouches for.

    BUNDLE/manifest.json      what it is, how it was made, what it cost, and the sha256 of every shard
    BUNDLE/shards/NNNNN.npz   images uint8 (records, channels, height, width) and labels int64 (records,); no pickles

A shard's bytes are the same on the wire and on disk, and the same records give the same bytes. A reader trusts
nothing: it bounds every size before it allocates, verifies every hash before it parses, and opens no path that is
not a plain file below the folder.
"""

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import ExchangeError, InputError
from cadp_fl.npz import NpzError, open_npz
from cadp_fl.privacy.mechanisms import NoMechanism

__all__ = [
    "Bundle",
    "Manifest",
    "ReleaseClaim",
    "ReleaseParameters",
    "manifest_from_json",
    "manifest_to_json",
    "pack",
    "read_bundle",
    "unpack",
    "write_bundle",
]

MAX_MANIFEST_BYTES = 8 << 20
MAX_SHARD_BYTES = 1 << 30
MAX_RELEASE_BYTES = 8 << 30

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Shard(_Model):
    """One file of a release."""

    name: str = Field(pattern=r"^[0-9]{5}\.npz$")
    sha256: _Sha256
    bytes: int = Field(ge=1, le=MAX_SHARD_BYTES)
    records: int = Field(ge=1, le=10**7)


class ReleaseParameters(_Model):
    """Every number of the mechanism, each by itself."""

    clip_norm: float | None = Field(gt=0, allow_inf_nan=False, description="C; null without a clip")
    noise_std: float | None = Field(gt=0, allow_inf_nan=False, description="standard deviation; null without noise")
    noise_scale: float | None = Field(None, gt=0, allow_inf_nan=False, description="b of Laplace noise, else null")
    latent_dims: int = Field(ge=1)
    dims: int = Field(ge=1)
    shrinkage: str

    @model_validator(mode="after")
    def _is_consistent(self) -> "ReleaseParameters":
        if (self.clip_norm is None) != (self.noise_std is None):
            raise ValueError("a release is clipped and noised, or neither")
        if self.noise_scale is not None and not math.isclose(
            self.noise_std or 0, math.sqrt(2) * self.noise_scale, rel_tol=1e-6
        ):
            raise ValueError("the standard deviation of Laplace noise is sqrt(2) times its scale")
        return self

    @property
    def protected(self) -> bool:
        """Whether records were clipped and noised."""
        return self.noise_std is not None


class ReleaseClaim(_Model):
    """What the site may claim of the method that this release belongs to; it travels with the records."""

    guarantee: Literal["end-to-end", "given-flow", "none"]
    relation: str
    epsilon: float | None
    epsilon_if_flow_were_fixed: float | None
    delta: float


class Manifest(_Model):
    """What a release says of itself. It holds no time, no order and no identity of a record."""

    schema_version: Literal[1] = 1
    site: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$", description="pseudonym of the site")
    dataset: Schema
    mechanism: str
    parameters: ReleaseParameters
    noise: Literal["entropy", "seeded"] = Field(description="seeded noise can be derived again, and protects nothing")
    claim: ReleaseClaim
    flow_sha256: _Sha256 = Field(description="hash of the weights that encoded and decoded")
    event_id: str = Field(min_length=1, max_length=80, description="id of the event in the site's ledger")
    released_labels: dict[str, int] = Field(description="count of every released label")
    shards: tuple[_Shard, ...] = Field(min_length=1, max_length=100_000)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Manifest":
        if [shard.name for shard in self.shards] != [f"{number:05d}.npz" for number in range(len(self.shards))]:
            raise ValueError("shards are numbered from 00000 without a gap")
        if (self.mechanism == NoMechanism.name) == self.parameters.protected:
            raise ValueError(f"the mechanism '{NoMechanism.name}', and no other, has neither clip nor noise")
        if not self.parameters.protected and self.claim.guarantee != "none":
            raise ValueError("records released without clipping or noise carry no guarantee")
        unpacked = self.records * (math.prod(self.dataset.shape) + 8)
        if unpacked > MAX_RELEASE_BYTES:
            raise ValueError(f"a release unpacks to at most {MAX_RELEASE_BYTES} bytes, this one to {unpacked}")
        return self

    @property
    def records(self) -> int:
        """Number of released records."""
        return sum(shard.records for shard in self.shards)


@dataclass(frozen=True)
class Bundle:
    """A release: its manifest, and the bytes of each shard in the manifest's order."""

    manifest: Manifest
    shards: tuple[bytes, ...]


def pack(
    records: Dataset,
    *,
    site: str,
    mechanism: str,
    parameters: ReleaseParameters,
    noise: Literal["entropy", "seeded"],
    claim: ReleaseClaim,
    flow_sha256: str,
    event_id: str,
    shard_records: int,
) -> Bundle:
    """Return the bundle of privatized records, `shard_records` of them in a shard."""
    shards, entries = [], []
    for number, start in enumerate(range(0, len(records), shard_records)):
        part = records.select(np.arange(start, min(start + shard_records, len(records))))
        data = _npz(part)
        shards.append(data)
        entries.append(
            _Shard(
                name=f"{number:05d}.npz", sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), records=len(part)
            )
        )
    counts = records.class_counts()
    schema = records.schema
    manifest = Manifest(
        site=site,
        dataset=schema,
        mechanism=mechanism,
        parameters=parameters,
        noise=noise,
        claim=claim,
        flow_sha256=flow_sha256,
        event_id=event_id,
        released_labels={name: int(count) for name, count in zip(schema.classes, counts, strict=True)},
        shards=tuple(entries),
    )
    return Bundle(manifest, tuple(shards))


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
        raise ExchangeError(f"A manifest follows the schema. '{key}': {first['msg']}; ask the site again.") from error


def unpack(bundle: Bundle) -> Dataset:
    """Return the records of a bundle, after checking all of it.

    Raises:
        ExchangeError: a shard is missing, or its size, hash, shape or labels are not what the manifest says.
    """
    manifest = bundle.manifest
    schema = manifest.dataset
    if len(bundle.shards) != len(manifest.shards):
        raise ExchangeError(f"The manifest names {len(manifest.shards)} shards. Found {len(bundle.shards)}.")
    parts = []
    for shard, data in zip(manifest.shards, bundle.shards, strict=True):
        _check_bytes(shard, data)
        parts.append(_records(shard, data, schema))
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    records = Dataset(schema, images, labels)
    counts = {name: int(count) for name, count in zip(schema.classes, records.class_counts(), strict=True)}
    if counts != manifest.released_labels:
        raise ExchangeError("The manifest's counts are those of the released labels. They differ; refuse the release.")
    return records


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Write a bundle under a temporary name beside `folder`, and rename it when it is whole.

    Raises:
        InputError: the folder exists.
    """
    if folder.exists():
        raise InputError(f"A bundle is never overwritten. Found '{folder}'; choose another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (temporary / "shards").mkdir()
        for shard, data in zip(bundle.manifest.shards, bundle.shards, strict=True):
            _write(temporary / "shards" / shard.name, data)
        _write(temporary / "manifest.json", bundle.manifest.model_dump_json(indent=2).encode())
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_bundle(folder: Path) -> Bundle:
    """Return the bundle in a folder; every shard's size and hash is checked.

    Raises:
        ExchangeError: a file is missing, a link, too large, or not what the manifest says.
    """
    manifest = manifest_from_json(_read(folder / "manifest.json", MAX_MANIFEST_BYTES))
    return Bundle(manifest, tuple(_shards(folder, manifest)))


def _shards(folder: Path, manifest: Manifest) -> Iterator[bytes]:
    for shard in manifest.shards:
        data = _read(folder / "shards" / shard.name, shard.bytes)
        _check_bytes(shard, data)
        yield data


def _npz(records: Dataset) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=records.images, labels=records.labels)
    return buffer.getvalue()


def _check_bytes(shard: _Shard, data: bytes) -> None:
    if len(data) != shard.bytes or hashlib.sha256(data).hexdigest() != shard.sha256:
        raise ExchangeError(
            f"A shard is what the manifest says: {shard.bytes} bytes of sha256 {shard.sha256[:12]}... Shard "
            f"{shard.name} is not; it was damaged or changed, so ask the site again."
        )


def _records(shard: _Shard, data: bytes, schema: Schema) -> Dataset:
    expected = {
        "images": ((shard.records, *schema.shape), np.dtype(np.uint8)),
        "labels": ((shard.records,), np.dtype(np.int64)),
    }
    try:
        with open_npz(data, limit=MAX_SHARD_BYTES) as npz:
            if set(npz.names) != set(expected):
                raise NpzError(f"it holds {npz.listing}")
            for name, (shape, dtype) in expected.items():
                header = npz.header(name)
                if (header.shape, header.dtype) != (shape, dtype):
                    raise NpzError(f"{name} is {header.dtype} of shape {header.shape}")
            arrays = {name: npz.array(name) for name in expected}
    except NpzError as error:
        raise ExchangeError(f"A shard is an npz of images and labels. Shard {shard.name} is not: {error}.") from error
    if int(arrays["labels"].min()) < 0 or int(arrays["labels"].max()) >= len(schema.classes):
        raise ExchangeError(f"A released label is one of {len(schema.classes)} classes. Shard {shard.name} has others.")
    return Dataset(schema, arrays["images"], arrays["labels"])


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, limit: int) -> bytes:
    """Return a plain file's bytes, at most `limit` of them; a link, or a folder that is one, is refused."""
    if path.is_symlink() or path.parent.is_symlink() or not path.is_file():
        raise ExchangeError(f"A bundle holds plain files. '{path}' is missing or a link; restore it from the site.")
    if path.stat().st_size > limit:
        raise ExchangeError(f"'{path.name}' has at most {limit} bytes. Found {path.stat().st_size}; refuse the bundle.")
    return path.read_bytes()


def manifest_to_json(manifest: Manifest) -> str:
    """Return the compact JSON of a manifest, for the wire."""
    return json.dumps(manifest.model_dump(mode="json"), separators=(",", ":"))

"""A release on disk and on the wire, a shard at a time, so that memory stays flat whatever its size.

    BUNDLE/manifest.json      what it is, how it was made, what it cost, and the sha256 of every shard
    BUNDLE/shards/NNNNN.npz   images uint8 (records, channels, height, width), or rows int32 (records, columns), and
                              labels int64 (records,); where the schema has attributes, attributes uint8 (records,
                              attributes), 0 or 1; no pickles

A shard's bytes are the same on the wire and on disk, and the same records give the same bytes. A reader trusts
nothing: it bounds every size before it allocates, verifies every hash before it parses, and opens no path that is
not a plain file below the folder.
"""

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import DataError, ExchangeError, InputError
from cadp_fl.npz import NpzError, open_npz
from cadp_fl.release.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_SHARD_BYTES,
    Manifest,
    ReleaseHead,
    Shard,
    manifest_from_json,
)

__all__ = ["Bundle", "BundleWriter", "check_labels", "open_bundle", "parse_shard", "write_bundle"]

COMPRESSION = 1
"""zlib's level. What is decoded from noise hardly shrinks: level 6 takes twice as long to save another 2 %."""

_NAMES = {"image": "images", "row": "rows"}
"""What the array of records is called in a shard."""


class BundleWriter:
    """Writes a bundle under a temporary name beside its folder, and renames it when it is whole.

    Raises:
        InputError: the folder exists.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists():
            raise InputError(f"A bundle is never overwritten. Found '{folder}'; choose another folder.")
        self._folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        (self._temporary / "shards").mkdir()
        self._shards = 0

    def __len__(self) -> int:
        """Return the number of shards that were written."""
        return self._shards

    def __enter__(self) -> "BundleWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was written, unless the bundle is whole."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def add(self, name: str, data: bytes) -> None:
        """Write a shard; its bytes are on the disk when this returns."""
        _write(self._temporary / "shards" / name, data)
        self._shards += 1

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, and give the folder its name."""
        _write(self._temporary / "manifest.json", manifest.model_dump_json(indent=2).encode())
        self._temporary.chmod(0o755)
        self._temporary.rename(self._folder)


def write_bundle(head: ReleaseHead, parts: Iterable[Dataset], folder: Path) -> Manifest:
    """Write privatized records, each part as a shard, and return the manifest.

    Raises:
        InputError: the folder exists.
    """
    entries: list[Shard] = []
    counts = np.zeros(len(head.dataset.classes), dtype=np.int64)
    with BundleWriter(folder) as writer:
        for number, part in enumerate(parts):
            data, name = _npz(part), f"{number:05d}.npz"
            writer.add(name, data)
            counts += part.class_counts()
            entries.append(
                Shard(name=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), records=len(part))
            )
        manifest = Manifest(**dict(head), released_labels=_by_class(head.dataset, counts), shards=tuple(entries))
        writer.finish(manifest)
    return manifest


class Bundle:
    """A release in a folder, read a shard at a time. Made by `open_bundle`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self.manifest = manifest

    def data(self, name: str) -> bytes:
        """Return the bytes of a shard.

        Raises:
            ExchangeError: it is missing, a link, or not what the manifest says.
        """
        for shard in self.manifest.shards:
            if shard.name == name:
                data = _read(self._folder / "shards" / name, shard.bytes)
                _check_bytes(shard, data)
                return data
        raise ExchangeError(f"The manifest names {len(self.manifest.shards)} shards. '{name}' is none of them.")

    def parts(self) -> Iterator[Dataset]:
        """Yield the records of each shard, after checking it; at the end, the counts of their labels are checked.

        Raises:
            ExchangeError: a shard is not what the manifest says.
        """
        counts = np.zeros(len(self.manifest.dataset.classes), dtype=np.int64)
        for shard in self.manifest.shards:
            part = parse_shard(self.manifest, shard, self.data(shard.name))
            counts += part.class_counts()
            yield part
        check_labels(self.manifest, counts)


def open_bundle(folder: Path) -> Bundle:
    """Return the bundle in a folder. Its manifest is checked now, and each shard when it is read.

    Raises:
        ExchangeError: the manifest is missing, a link, too large, or no manifest.
    """
    return Bundle(folder, manifest_from_json(_read(folder / "manifest.json", MAX_MANIFEST_BYTES)))


def parse_shard(manifest: Manifest, shard: Shard, data: bytes) -> Dataset:
    """Return the records of a shard's bytes, after checking all of it.

    Raises:
        ExchangeError: its size, hash, shape, labels or attributes are not what the manifest says.
    """
    _check_bytes(shard, data)
    return _records(shard, data, manifest.dataset)


def check_labels(manifest: Manifest, counts: np.ndarray) -> None:
    """Check that a manifest's counts are those of the released labels, int64 (classes,).

    Raises:
        ExchangeError: they differ.
    """
    if _by_class(manifest.dataset, counts) != manifest.released_labels:
        raise ExchangeError("The manifest's counts are those of the released labels. They differ; refuse the release.")


def _by_class(schema: Schema, counts: np.ndarray) -> dict[str, int]:
    return {name: int(count) for name, count in zip(schema.classes, counts, strict=True)}


def _npz(records: Dataset) -> bytes:
    buffer = io.BytesIO()
    arrays = {_NAMES[records.schema.kind]: records.records, "labels": records.labels}
    if records.attributes is not None:
        arrays["attributes"] = records.attributes
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION) as archive:
        for name, array in arrays.items():
            # A member that is opened by name has a fixed date, so that the same records give the same bytes.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def _check_bytes(shard: Shard, data: bytes) -> None:
    if len(data) != shard.bytes or hashlib.sha256(data).hexdigest() != shard.sha256:
        raise ExchangeError(
            f"A shard is what the manifest says: {shard.bytes} bytes of sha256 {shard.sha256[:12]}... Shard "
            f"{shard.name} is not; it was damaged or changed, so ask the site again."
        )


def _records(shard: Shard, data: bytes, schema: Schema) -> Dataset:
    expected = {
        _NAMES[schema.kind]: ((shard.records, *schema.shape), schema.dtype),
        "labels": ((shard.records,), np.dtype(np.int64)),
    }
    if schema.attributes:
        expected["attributes"] = ((shard.records, len(schema.attributes)), np.dtype(np.uint8))
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
        raise ExchangeError(
            f"A shard is an npz of {' and '.join(expected)}. Shard {shard.name} is not: {error}."
        ) from error
    if int(arrays["labels"].min()) < 0 or int(arrays["labels"].max()) >= len(schema.classes):
        raise ExchangeError(f"A released label is one of {len(schema.classes)} classes. Shard {shard.name} has others.")
    if schema.attributes and int(arrays["attributes"].max()) > 1:
        raise ExchangeError(f"A released attribute is 0 or 1. Shard {shard.name} has others.")
    try:
        return Dataset(schema, arrays[_NAMES[schema.kind]], arrays["labels"], attributes=arrays.get("attributes"))
    except DataError as error:
        raise ExchangeError(f"A shard's records follow the manifest's schema. Shard {shard.name}: {error}") from error


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

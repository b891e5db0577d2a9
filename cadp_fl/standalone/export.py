"""Releases in other formats, for tools that do not read a bundle; shard by shard, so that memory stays flat.

    medmnist    OUT.npz: train_images uint8 (records, height, width) or (records, height, width, 3), train_labels int64
                (records, 1), train_attributes uint8 (records, attributes) where they have some, and releases: one
                manifest a release, as JSON text. There is no val and no test split: a reader takes splits that are
                there, and released records are for training.
    png         OUT/<class>/<number>.png, OUT/manifests/<number>-<site>.json and OUT/README.md
    csv         OUT/records.csv, valid under the schema file OUT/columns.yaml; manifests and README.md as above
    parquet     OUT/records.parquet, likewise; all rows are held in memory

The first two are for images, the others for rows.
Neither carries the hashes that make a bundle verifiable, beyond the copies of the manifests.
"""

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image

from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.table_writer import schema_text, write_csv, write_parquet
from cadp_fl.errors import InputError
from cadp_fl.outputs import new_file, new_folder
from cadp_fl.privacy.claims import format_against, format_epsilon
from cadp_fl.release.bundle import Bundle
from cadp_fl.release.manifest import Manifest, manifest_to_json
from cadp_fl.standalone.bundles import open_bundles

__all__ = ["FORMATS", "TESTS_CAUTION", "Format", "export"]

WHEN = (1980, 1, 1, 0, 0, 0)
README, MANIFESTS, COLUMNS = "README.md", "manifests", "columns.yaml"
RECORDS_CSV, RECORDS_PARQUET = "records.csv", "records.parquet"

TESTS_CAUTION = (
    "Do not test hypotheses on these rows as if they were patients: noise of differential privacy makes tests of "
    "significance find effects that are not there, the more the smaller epsilon is (Perez et al., arXiv 2403.13612)."
)
"""Stands beside every table that is released."""


@dataclass(frozen=True)
class Format:
    """How releases are written.

    Attributes:
        records: what it is for.
        write: writes them to a path.
    """

    records: Literal["image", "row"]
    write: Callable[[Sequence[Bundle], Path], None]


def export(folders: Sequence[Path], kind: str, output: Path) -> int:
    """Write the records of the releases in some folders in another format, and return how many there are.

    Raises:
        InputError: the format is unknown, there is something at `output`, or a folder holds no release.
        ExchangeError: a release is damaged or was changed; nothing is left of the output.
    """
    if kind not in FORMATS:
        raise InputError(f"Unknown format '{kind}'. Choose one of: {', '.join(sorted(FORMATS))}.")
    bundles = open_bundles(folders)
    schema = bundles[0].manifest.dataset
    if schema.kind != FORMATS[kind].records:
        fitting = " and ".join(name for name, each in sorted(FORMATS.items()) if each.records == schema.kind)
        raise InputError(
            f"A format is for images or for rows. Records of '{schema.name}' are {schema.kind}s, and '{kind}' is for "
            f"{FORMATS[kind].records}s; choose {fitting}."
        )
    FORMATS[kind].write(bundles, output)
    return sum(bundle.manifest.records for bundle in bundles)


def _parts(bundles: Sequence[Bundle]) -> Iterator[Dataset]:
    """Yield the records of every shard, each verified."""
    for bundle in bundles:
        yield from bundle.parts()


def _to_medmnist(bundles: Sequence[Bundle], output: Path) -> None:
    schema = bundles[0].manifest.dataset
    records = sum(bundle.manifest.records for bundle in bundles)
    channels, height, width = schema.image_shape
    shape = (records, height, width) if channels == 1 else (records, height, width, channels)
    labels: list[np.ndarray] = []
    attributes: list[np.ndarray] = []
    with new_file(output, "An export") as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        with _member(archive, "train_images") as member:
            _write_header(member, shape, np.dtype(np.uint8))
            for part in _parts(bundles):
                images = part.records[:, 0] if channels == 1 else np.moveaxis(part.records, 1, 3)
                member.write(np.ascontiguousarray(images).tobytes())
                labels.append(part.labels)
                if part.attributes is not None:
                    attributes.append(part.attributes)
        with _member(archive, "train_labels") as member:
            np.lib.format.write_array(member, np.concatenate(labels)[:, None], allow_pickle=False)
        if attributes:
            with _member(archive, "train_attributes") as member:
                np.lib.format.write_array(member, np.concatenate(attributes), allow_pickle=False)
        with _member(archive, "releases") as member:
            texts = np.array([manifest_to_json(bundle.manifest).encode() for bundle in bundles])
            np.lib.format.write_array(member, texts, allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open a member for writing; the same records give the same file."""
    info = zipfile.ZipInfo(f"{name}.npy", WHEN)
    info.compress_type = zipfile.ZIP_DEFLATED
    return archive.open(info, "w", force_zip64=True)


def _write_header(member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, described)


def _to_png(bundles: Sequence[Bundle], output: Path) -> None:
    manifests = [bundle.manifest for bundle in bundles]
    schema = manifests[0].dataset
    digits = len(str(sum(manifest.records for manifest in manifests)))
    with new_folder(output, "An export") as temporary:
        _describe(manifests, temporary)
        classes = [temporary / name for name in _folder_names(schema)]
        for folder in classes:
            folder.mkdir()
        number = 0
        for part in _parts(bundles):
            for image, label in zip(part.records, part.labels, strict=True):
                number += 1
                pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, 2)
                Image.fromarray(np.ascontiguousarray(pixels)).save(classes[label] / f"{number:0{digits}d}.png")


def _to_csv(bundles: Sequence[Bundle], output: Path) -> None:
    _to_table(bundles, output, RECORDS_CSV, write_csv)


def _to_parquet(bundles: Sequence[Bundle], output: Path) -> None:
    _to_table(bundles, output, RECORDS_PARQUET, write_parquet)


def _to_table(
    bundles: Sequence[Bundle], output: Path, name: str, write: Callable[[Path, Schema, Iterator[Dataset]], None]
) -> None:
    manifests = [bundle.manifest for bundle in bundles]
    schema = manifests[0].dataset
    with new_folder(output, "An export") as temporary:
        _describe(manifests, temporary)
        (temporary / COLUMNS).write_text(schema_text(schema), encoding="utf-8")
        write(temporary / name, schema, _parts(bundles))


def _describe(manifests: Sequence[Manifest], folder: Path) -> None:
    """Write what an export is, and copies of its manifests."""
    (folder / README).write_text(_readme(manifests), encoding="utf-8")
    (folder / MANIFESTS).mkdir()
    for number, manifest in enumerate(manifests, start=1):
        path = folder / MANIFESTS / f"{number:03d}-{manifest.site}.json"
        path.write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


def _folder_names(schema: Schema) -> list[str]:
    """Return a name for each class's folder: letters, digits, '.', '_' and '-' of the class's own, and no two alike."""
    taken = {README.lower(), MANIFESTS}
    names = []
    for label, name in enumerate(schema.classes):
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60] or "class"
        while safe.lower() in taken:
            safe = f"{safe}-{label}"
        taken.add(safe.lower())
        names.append(safe)
    return names


def _readme(manifests: Sequence[Manifest]) -> str:
    schema = manifests[0].dataset
    is_table = schema.kind == "row"
    shown = "the conditions are columns" if is_table else "which the images here do not show"
    condition = f"attributes ({shown})" if schema.attributes else "label"
    where = (
        f"The order of rows means nothing. `{COLUMNS}` is the schema file that all of them follow; its last column is "
        "the record's class."
        if is_table
        else "The folder is the record's class; its number means nothing."
    )
    lines = [
        "# Privatized records",
        "",
        f"Every {'row' if is_table else 'PNG'} here is a record that a site released: encoded by a conditional flow, "
        f"put through its release's mechanism in the latent space, and decoded under its {condition}. {where}",
        "",
        *([TESTS_CAUTION, ""] if is_table else []),
        f"They are {sum(manifest.records for manifest in manifests)} records of {len(manifests)} releases of "
        f"'{manifests[0].dataset.name}'. What was done to each and what may be claimed of it is in `manifests/`, "
        "copies of the releases' own; the files here carry no hashes, so that only the releases can be verified.",
        "",
        "| release | records | mechanism | guarantee | epsilon | delta | relation |",
        "|---|---|---|---|---|---|---|",
    ]
    for manifest in manifests:
        claim = manifest.claim
        epsilon = format_epsilon(claim.epsilon)
        if claim.guarantee == "given-flow":
            epsilon = f"none ({format_epsilon(claim.epsilon_if_flow_were_fixed)} if the flow were fixed)"
        lines.append(
            f"| {manifest.site} | {manifest.records} | {manifest.mechanism} | "
            f"{claim.guarantee}{format_against(claim.against)} | {epsilon} | {claim.delta:g} | {claim.relation} |"
        )
    for line in dict.fromkeys(line for manifest in manifests for line in manifest.claim.declared):
        lines += ["", f"End-to-end rests on a declaration: {line}."]
    sites = [manifest.site for manifest in manifests]
    if len(set(sites)) < len(sites):
        lines += ["", "Some are of one site: releases of the same records compose, and their epsilons and deltas add."]
    if any(manifest.noise == "seeded" for manifest in manifests):
        lines += ["", "Noise was SEEDED: whoever knows the seed can remove it, so these records are not protected."]
    if any(not manifest.parameters.protected for manifest in manifests):
        lines += ["", "Some were released WITHOUT clipping or noise: those are next to originals."]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Format] = {
    "csv": Format("row", _to_csv),
    "medmnist": Format("image", _to_medmnist),
    "parquet": Format("row", _to_parquet),
    "png": Format("image", _to_png),
}

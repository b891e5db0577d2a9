"""Records that are files: which there are and what is said of each, decoded one by one to one size.

A folder in the convention of Hugging Face's ImageFolder is read in one of two ways:

    [train|validation|test/]CLASS/.../FILE       the folder's name is the class; the first may be a split
    metadata.csv | .jsonl | .parquet             a row a file: its path, its class, and patient, id, split and site

The metadata file lies in the folder, in each split's folder, or where `data.metadata` says. A path in it is relative to
it, and leads to no other folder and over no link. A record's id is its path, where no column has another.

Whatever cannot be read is named in one sentence, or left out and counted (`data.on_bad_record: skip`). Memory is taken
once, for all records at their one size, whatever a file says of its own.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cadp_fl.config import DataConfig, RolesConfig
from cadp_fl.data.file_cache import FileCache
from cadp_fl.data.identities import codes_of, sites_of
from cadp_fl.data.images import DecodedImage, left_out_in_words, printable, walked
from cadp_fl.data.schema import Dataset, Schema, Source
from cadp_fl.errors import DataError, InputError

__all__ = ["Decoder", "FileRecord", "fitted", "listed", "source_of_files"]

SIDE, CHANNELS = 28, 1
"""Pixels a side, and channels, of an image where the config names none."""

MAX_FILES = 5_000_000
MAX_METADATA_BYTES = 2 << 30
MAX_BYTES = 32 << 30
"""Of all decoded images of a source."""

NAMED = 3
"""Bad files that a sentence names."""

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of splits in files and folders, in lower case. Validation records are trained on."""

MANY_BYTES = 64 << 10
"""Of a file, from which on several threads decode faster than one."""

AHEAD = 64
"""Files that wait for a thread, at most."""


@dataclass(frozen=True)
class FileRecord:
    """One record, before its file is opened.

    Attributes:
        path: of its file, absolute.
        name: path below the folder, with /: its id where no column says another.
        label: name of its class.
        patient: whose it is; None where it is not said.
        id: which record it is, where a column says so.
        split: train, validation or test; None where it is not said.
        site: of which hospital it is; None where it is not said.
        attributes: 1 or 0 for each of the source's; None where it has none.
    """

    path: Path
    name: str
    label: str
    patient: str | None = None
    id: str | None = None
    split: str | None = None
    site: str | None = None
    attributes: tuple[int, ...] | None = None


Decoder = Callable[[Path, DataConfig], DecodedImage]
"""Reads one file. Whatever is wrong with it is a DataError or an InputError that names it."""


@dataclass(frozen=True)
class _Bad:
    """A record that cannot be used, and why."""

    name: str
    why: str


def listed(config: DataConfig, suits: Callable[[Path], bool]) -> tuple[list[FileRecord], list[str]]:
    """Return the records of the folder `data.path`, in order, and what a person should know of what was left out.

    Args:
        suits: whether a file is of the source's kind, by its name or its first bytes.

    Raises:
        DataError: nothing is found, or what is said of the files cannot be read.
    """
    assert config.path is not None, "check_source asks for it"
    tables = _metadata_files(config)
    found, left_out = walked(config.path, suits)
    if len(found) > MAX_FILES:
        raise DataError(f"A folder has at most {MAX_FILES} files. '{printable(config.path)}' has more; divide it.")
    notes = left_out_in_words(config.path, left_out)
    if tables:
        records, bad, said = _of_metadata(config, tables, found)
        notes += said
    else:
        records, bad = _of_folders(config.path, found)
    if not records and not bad:
        raise DataError(
            f"Records are files in a folder for each class, or named in a metadata file. '{printable(config.path)}' "
            f"has none of this source's kind.{' ' + notes[0] if notes else ''} Check data.path and data.source."
        )
    return records, [*notes, *_refused_or_said(bad, config)]


def source_of_files(
    records: Sequence[FileRecord],
    decode: Decoder,
    config: DataConfig,
    *,
    name: str,
    notes: Sequence[str] = (),
    attributes: tuple[str, ...] = (),
) -> Source:
    """Return the records of files, decoded to one size.

    Args:
        decode: reads one file.
        name: of the data set.
        notes: what is known already, for a person.
        attributes: names of those that every record has; none by default.

    Raises:
        DataError: files cannot be read, or what is said of them does not fit together.
    """
    classes = config.classes or tuple(sorted({record.label for record in records}))
    if len(classes) < 2:
        raise DataError(
            f"A classifier needs two classes. All files are of '{classes[0] if classes else ''}'; add files of another "
            "class, or, if other sites have some, name all classes with data.classes."
        )
    known = {each: label for label, each in enumerate(classes)}
    strange = [_Bad(record.name, "its class is not one of data.classes") for record in records
               if record.label not in known]  # fmt: skip
    records = [record for record in records if record.label in known]
    said = _refused_or_said(strange, config)
    images, decoded, bad = _decoded(records, decode, config)
    said += _refused_or_said(bad, config)
    gone = {each.name for each in bad}
    kept = [place for place, record in enumerate(records) if record.name not in gone]
    if not kept:
        raise DataError("A source has records that can be read. None can; see what is wrong with data.on_bad_record.")
    if len(kept) < len(records):
        images, decoded = images[kept], [decoded[place] for place in kept]
        records = [records[place] for place in kept]
    schema = Schema(name=name[:80], shape=images.shape[1:], classes=classes, attributes=attributes)
    names, of_site = _sites(records)
    whole = Dataset(
        schema,
        images,
        np.array([known[record.label] for record in records], dtype=np.int64),
        _patients(records, decoded),
        np.array([record.attributes for record in records], dtype=np.uint8) if attributes else None,
        codes_of(
            [record.id or extra.id or record.name for record, extra in zip(records, decoded, strict=True)], "record"
        ),
        of_site,
    )
    done = sorted({note for extra in decoded for note in extra.notes})
    counts = {note: sum(note in extra.notes for extra in decoded) for note in done}
    said += [f"{count} images were {note}." for note, count in counts.items()]
    return _by_split(records, whole, names, (*notes, *said))


def fitted(pixels: np.ndarray, config: DataConfig) -> np.ndarray:
    """Return an image at the source's size, uint8 (channels, side, side).

    It is scaled with an antialiasing filter, as a whole between black bars or by its middle; grey of colours by luma.

    Args:
        pixels: uint8, (height, width) or (height, width, 3).
    """
    side, channels = config.size or SIDE, config.channels or CHANNELS
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    width, height = image.size
    if config.fit == "crop":
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        box, size = (left, top, left + edge, top + edge), (side, side)
    else:
        scale = side / max(width, height)
        box, size = (0, 0, width, height), (max(1, round(width * scale)), max(1, round(height * scale)))
    if (width, height) != size or box != (0, 0, width, height):
        image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    if size != (side, side):
        canvas = Image.new(image.mode, (side, side))
        canvas.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
        image = canvas
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _metadata_files(config: DataConfig) -> list[tuple[Path, str | None]]:
    """Return the files that say what of each record, each with the split that its folder is."""
    assert config.path is not None, "check_source asks for it"
    if config.metadata is not None:
        if not config.metadata.is_file():
            raise DataError(
                f"data.metadata is a CSV, JSON lines or Parquet file. There is none at '{printable(config.metadata)}'; "
                "check the path."
            )
        return [(config.metadata, None)]
    try:
        folders = sorted(each for each in config.path.iterdir() if each.is_dir() and each.name.lower() in SPLITS)
    except OSError as error:
        raise DataError(
            f"A folder of records can be listed. '{printable(config.path)}' cannot: {error.strerror}; check it."
        ) from error
    places = [(config.path, None), *((each, SPLITS[each.name.lower()]) for each in folders)]
    return [(place / name, split) for place, split in places for name in METADATA if (place / name).is_file()]


def _of_folders(folder: Path, found: Sequence[Path]) -> tuple[list[FileRecord], list[_Bad]]:
    """Return the records of class folders."""
    records, bad = [], []
    for path in found:
        parts = path.relative_to(folder).parts
        split = SPLITS.get(parts[0].lower()) if len(parts) > 2 else None
        below = parts[1:] if split else parts
        name = "/".join(parts)
        if len(below) < 2:
            bad.append(_Bad(name, "it lies in no class's folder"))
        else:
            records.append(FileRecord(path, name, below[0], split=split))
    return records, bad


def _of_metadata(
    config: DataConfig, tables: Sequence[tuple[Path, str | None]], found: Sequence[Path]
) -> tuple[list[FileRecord], list[_Bad], list[str]]:
    """Return the records that metadata files name."""
    assert config.path is not None, "check_source asks for it"
    there = set(found)
    records: list[FileRecord] = []
    bad: list[_Bad] = []
    seen: set[Path] = set()
    for table, split in tables:
        base = config.path if config.metadata is not None else table.parent
        for number, row in enumerate(_rows(table, config.roles), start=1):
            written = row.get(config.roles.file) or ""
            name = f"row {number} of {printable(table.name)}"
            path = (
                base / written if written and not os.path.isabs(written) and ".." not in Path(written).parts else None
            )
            if path is None:
                bad.append(_Bad(name, "its path leaves the folder, or is missing"))
            elif path not in there:
                why = "its file is none of this kind" if path.is_file() else "its file is not there"
                bad.append(_Bad(name, why))
            elif path in seen:
                bad.append(_Bad(name, "its file has a row already"))
            elif not row.get(config.roles.label):
                bad.append(_Bad(name, f"it has no '{config.roles.label}'"))
            else:
                seen.add(path)
                records.append(_of_row(path, path.relative_to(config.path).as_posix(), row, config.roles, split, bad))
    lacking = len(there - seen)
    notes = [f"{lacking} files have no row in the metadata, and were left out."] if lacking else []
    return [record for record in records if record.split is None or record.split in SPLITS.values()], bad, notes


def _of_row(
    path: Path, name: str, row: Mapping[str, str], roles: RolesConfig, split: str | None, bad: list[_Bad]
) -> FileRecord:
    said = (row.get(roles.split) or "").lower()
    if said and said not in SPLITS:
        bad.append(_Bad(name, f"its '{roles.split}' is not train, validation or test"))
    return FileRecord(
        path,
        name,
        row[roles.label],
        patient=row.get(roles.patient) or None,
        id=row.get(roles.id) or None,
        split=(SPLITS.get(said, "?") if said else split),
        site=row.get(roles.site) or None,
    )


def _rows(table: Path, roles: RolesConfig) -> Iterator[dict[str, str]]:
    """Yield the rows of a metadata file, values as text.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    name = printable(table)
    if table.stat().st_size > MAX_METADATA_BYTES:
        raise DataError(f"A metadata file has at most {MAX_METADATA_BYTES >> 30} GiB. '{name}' has more; divide it.")
    try:
        rows: Iterator[dict[str, Any]]
        if table.suffix.lower() == ".csv":
            with table.open(newline="", encoding="utf-8-sig") as file:
                rows = iter(list(csv.DictReader(file, strict=True)))
        elif table.suffix.lower() in (".jsonl", ".json"):
            with table.open(encoding="utf-8") as file:
                rows = iter([json.loads(line) for line in file if line.strip()])
        else:
            rows = iter(_polars().read_parquet(table, glob=False).to_dicts())
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise DataError(f"A line of JSON is a row: {{...}}. Line {number + 1} of '{name}' is none; correct it.")
            if number == 0 and (lacking := [each for each in (roles.file, roles.label) if each not in row]):
                raise DataError(
                    f"A metadata file has a column for the file and one for the class. '{name}' lacks '{lacking[0]}' "
                    f"among {', '.join(repr(str(each)) for each in islice(row, 8))}; name them with data.roles "
                    "({file: ..., label: ...})."
                )
            yield {str(key): str(value).strip() for key, value in row.items() if value is not None}
    except DataError:
        raise
    except (ValueError, csv.Error, OSError, RecursionError) as error:
        raise DataError(
            f"A metadata file is CSV (UTF-8, with a header), JSON lines or Parquet. '{name}' cannot be read; get the "
            "file again, or convert it."
        ) from error
    except Exception as error:  # polars has errors of its own
        raise DataError(f"A metadata file can be read. '{name}' cannot; get the file again, or convert it.") from error


def _polars() -> Any:
    try:
        import polars  # 200 MB that other sources need not have
    except ImportError as error:
        raise DataError(
            "A Parquet file is read by polars. It is not installed; run pip install 'cadp-fl[tables]', or give CSV."
        ) from error
    return polars


def _decoded(
    records: Sequence[FileRecord], decode: Decoder, config: DataConfig
) -> tuple[np.ndarray, list[DecodedImage], list[_Bad]]:
    """Return the images of records, uint8 (records, channels, side, side), what their files say, and which are bad."""
    side, channels = config.size or SIDE, config.channels or CHANNELS
    if len(records) * channels * side * side > MAX_BYTES:
        raise DataError(
            f"Decoded images take at most {MAX_BYTES >> 30} GiB of memory. {len(records)} of {channels} x {side} x "
            f"{side} take more; lower data.size."
        )
    cache = FileCache.of(config, [(record.path, record.name) for record in records], decode.__qualname__)
    if (stored := cache.load(len(records), (channels, side, side))) is not None:
        images, said, wrong = stored
        return images, said, [_Bad(records[place].name, why) for place, why in wrong.items()]
    images = np.zeros((len(records), channels, side, side), dtype=np.uint8)
    nothing = DecodedImage(np.zeros((0, 0), dtype=np.uint8))
    extras = [nothing] * len(records)
    found_wrong: dict[int, str] = {}

    def one(place: int) -> None:
        try:
            found = decode(records[place].path, config)
            images[place] = fitted(found.pixels, config)
            extras[place] = replace(found, pixels=nothing.pixels)
        except (DataError, InputError) as error:
            found_wrong[place] = _found(error, records[place].path)

    places = iter(range(len(records)))
    if _mean_bytes(records) < MANY_BYTES:  # threads would wait for each other longer than for a decoder
        for place in places:
            one(place)
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        waiting = [pool.submit(one, place) for place in islice(places, AHEAD)]
        while waiting:
            waiting.pop(0).result()
            waiting += [pool.submit(one, place) for place in islice(places, 1)]
    cache.save(images, extras, found_wrong)
    return images, extras, [_Bad(records[place].name, found_wrong[place]) for place in sorted(found_wrong)]


def _mean_bytes(records: Sequence[FileRecord]) -> float:
    """Return the size of a file, the mean of some of them; 0 without any."""
    some = records[:: max(1, len(records) // 100)]
    sizes = [record.path.stat().st_size for record in some if record.path.is_file()]
    return sum(sizes) / len(sizes) if sizes else 0.0


def _found(error: Exception, path: Path) -> str:
    """Return what an error found wrong with a file, without its rule, its way out and the file's path."""
    rule, _, rest = str(error).partition(". ")
    return (rest or rule).partition("; ")[0].replace(f"'{printable(path)}'", "it")


def _refused_or_said(bad: Sequence[_Bad], config: DataConfig) -> list[str]:
    """Return what is said of records that are left out.

    Raises:
        DataError: none is to be left out.
    """
    if not bad:
        return []
    first = "; ".join(f"{printable(each.name)}: {each.why.rstrip('.')}" for each in bad[:NAMED])
    named = f"{first}{'; ...' if len(bad) > NAMED else ''}"
    if config.on_bad_record == "skip":
        return [f"{len(bad)} records were left out ({named})."]
    raise DataError(
        f"Every record can be read and has a class. {len(bad)} cannot be used ({named}). Correct them, or leave such "
        "records out (data.on_bad_record: skip)."
    )


def _patients(records: Sequence[FileRecord], decoded: Sequence[DecodedImage]) -> np.ndarray | None:
    """Return the code of every record's patient, int64 (records,); None where no file says it."""
    names = [record.patient or extra.patient for record, extra in zip(records, decoded, strict=True)]
    known = [name for name in names if name is not None]
    if not known:
        return None
    if len(known) < len(names):
        raise DataError(
            f"Every record has a patient, or none has. {len(names) - len(known)} of {len(names)} have none; fill it "
            "in, or leave the column out."
        )
    return codes_of(known, "patient")


def _sites(records: Sequence[FileRecord]) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return the names of sites, and of which every record is; none where it is not said."""
    known = [record.site for record in records if record.site is not None]
    if not known:
        return (), None
    if len(known) < len(records):
        raise DataError(
            f"Every record has a site, or none has. {len(records) - len(known)} of {len(records)} have none; fill it "
            "in, or leave the column out."
        )
    return sites_of(known)


def _by_split(records: Sequence[FileRecord], whole: Dataset, names: tuple[str, ...], notes: tuple[str, ...]) -> Source:
    tested = np.array([record.split == "test" for record in records], dtype=bool)
    if not tested.any() or tested.all():
        return Source(whole, None, names, notes)
    return Source(whole.select(np.flatnonzero(~tested)), whole.select(np.flatnonzero(tested)), names, notes)

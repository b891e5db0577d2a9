"""Decoded images of files, kept for the next start: a second copy of private data, as closed as a key.

One npz file for each setting of size, channels and the like, named by its hash, mode 0600 in a folder of mode 0700. It
holds what the files were (names, sizes, times), by hash: if any differs, all are decoded again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.data.images import DecodedImage
from cadp_fl.npz import NpzError, open_npz
from cadp_fl.outputs import replaced_file

__all__ = ["FileCache", "cached_files", "clear_cache"]

VERSION = 1
"""Of decoding: what another one decoded is decoded again."""

SUFFIX = ".decoded.npz"
MAX_SAID_BYTES = 1 << 30


@dataclass(frozen=True)
class FileCache:
    """A place for the decoded images of some files.

    Attributes:
        path: of its file; None where nothing is kept.
        of_files: hash of the files' names, sizes and times.
    """

    path: Path | None
    of_files: str = ""

    @classmethod
    def of(cls, config: DataConfig, files: Sequence[tuple[Path, str]], decoder: str) -> "FileCache":
        """Return the place for some files, each with its name, under a config."""
        if not isinstance(config.cache, Path):
            return cls(None)
        settings = {
            key: str(getattr(config, key)) for key in ("path", "size", "channels", "fit", "window", "frame", "axis")
        }
        of_settings = hashlib.sha256(json.dumps([VERSION, decoder, settings]).encode()).hexdigest()
        digest = hashlib.sha256()
        for path, name in files:
            digest.update(f"{name}\0{_state(path)}\n".encode("utf-8", "surrogateescape"))
        return cls(config.cache / f"{of_settings[:24]}{SUFFIX}", digest.hexdigest())

    def load(
        self, count: int, shape: tuple[int, int, int]
    ) -> tuple[np.ndarray, list[DecodedImage], dict[int, str]] | None:
        """Return what was decoded of as many files, and which were bad; None where nothing, or other, is kept."""
        if self.path is None or not self.path.is_file():
            return None
        limit = count * int(np.prod(shape)) + MAX_SAID_BYTES
        try:
            with open_npz(self.path, limit=limit) as stored:
                said = json.loads(stored.array("said").tobytes())
                if said["of_files"] != self.of_files or stored.header("images").shape != (count, *shape):
                    return None
                images = stored.array("images")
            nothing = np.zeros((0, 0), dtype=np.uint8)
            extras = [DecodedImage(nothing)] * count
            for place, (notes, patient, record) in said["extras"].items():
                extras[int(place)] = DecodedImage(nothing, tuple(notes), patient, record)
            return images, extras, {int(place): why for place, why in said["wrong"].items()}
        except (NpzError, OSError, ValueError, KeyError, TypeError, IndexError):
            return None  # it is made again

    def save(self, images: np.ndarray, extras: Sequence[DecodedImage], wrong: Mapping[int, str]) -> None:
        """Keep what was decoded."""
        if self.path is None:
            return
        said = {
            "of_files": self.of_files,
            "extras": {
                place: (extra.notes, extra.patient, extra.id)
                for place, extra in enumerate(extras)
                if extra.notes or extra.patient or extra.id
            },
            "wrong": dict(wrong),
        }
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replaced_file(self.path, mode=0o600) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images, said=np.frombuffer(json.dumps(said).encode(), dtype=np.uint8))


def _state(path: Path) -> str:
    """Return a file's size and time; nothing of one that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


def cached_files(folder: Path) -> list[Path]:
    """Return the files of decoded images in a folder."""
    return sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []


def clear_cache(folder: Path) -> int:
    """Remove the files of decoded images in a folder, and return how many there were."""
    files = cached_files(folder)
    for file in files:
        file.unlink(missing_ok=True)
    return len(files)

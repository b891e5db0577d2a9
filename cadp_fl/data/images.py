"""Image files: which of a folder are images, and what the pixels of one are. One rule for every reader.

A folder
    .png .jpg .jpeg, in whatever case, in it and below, ordered by the bytes of their paths; each is one image
    left out, and named in a sentence: hidden files and folders (.ipynb_checkpoints, ._x.png, __MACOSX, Thumbs.db),
    links, since what they lead to would count twice or lies elsewhere, and files that are named otherwise

An image, as uint8 of one or three channels
    8 bits, grey or RGB     as it is stored: colour profiles and gamma are not applied
    EXIF orientation        turned upright
    1, 2 or 4 bits          scaled to 0 to 255
    a palette               its colours
    alpha                   dropped where every pixel is opaque, else refused: what is behind is not in the file
    several pictures        the first of a JPEG (MPO), which is its main one; an animated PNG is refused
    16 bits, a TIFF         refused where no range is given: which values are black and white is not in the file
    CMYK, floats            refused: colours of print, and what is white, are not in the file
    cut short, damaged, too large    refused by name

Whatever is not as it is stored is noted. No size is believed: an image's is checked before memory is taken for it.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cadp_fl.errors import DataError, InputError

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "DecodedImage",
    "ImageFolder",
    "left_out_in_words",
    "printable",
    "quiet",
    "read_image",
    "walked",
]

SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 1 << 26
NAMED = 3
"""Files of a kind that a sentence names."""

SYSTEM_NAMES = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"),
    *("system volume information", "lost+found"),
}
"""What systems leave in a folder, without a dot before the name; in lower case."""

PNG, JPEG, APPLE_DOUBLE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x00\x05\x16\x07"
HEAD_BYTES = 26
FORMATS = ("PNG", "JPEG")
TO_8_BITS = (
    "convert it, for example with np.round(np.interp(pixels, (LOW, HIGH), (0, 255))).astype(np.uint8), with one LOW "
    "and HIGH for the images of all sites"
)


class _Filters:
    """Filters of warnings while any thread reads: they are a whole process's.

    Args:
        raised: kinds of warnings that are errors; others are not shown.
    """

    def __init__(self, *raised: type[Warning]) -> None:
        self._raised, self._lock, self._readers = raised, threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
                for kind in self._raised:
                    warnings.simplefilter("error", kind)
                warnings.filterwarnings("ignore", message="Image appears to be a malformed MPO")  # its first is one
            self._readers += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._before.__exit__(None, None, None)


_DAMAGE_IS_AN_ERROR, _QUIET = _Filters(UserWarning), _Filters()
"""Pillow warns of damage, and of what is checked here anyway; readers of medical files warn with values of headers."""


def quiet() -> AbstractContextManager[None]:
    """Return a context in which no warning is shown."""
    return _QUIET


@dataclass(frozen=True)
class DecodedImage:
    """The pixels of an image file.

    Attributes:
        pixels: uint8, (height, width) if it is grey, else (height, width, 3).
        notes: what was done to what the file stores; each completes "an image was".
        patient: whose image it is, where the file says so.
        id: which image it is, where the file says so.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    patient: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds.

    Attributes:
        images: files of images, in order.
        left_out: why something else was left out, by reason: the paths below the folder, as text.
    """

    path: Path
    images: tuple[Path, ...]
    left_out: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, path: Path) -> "ImageFolder":
        """Return what a folder holds. No file is opened.

        Raises:
            DataError: it, or a folder below, cannot be listed.
        """
        images, left_out = walked(
            path, lambda each: each.suffix.lower() in SUFFIXES, f"not named {', '.join(SUFFIXES)}"
        )
        return cls(path, tuple(images), left_out)

    @property
    def sentence(self) -> str:
        """What was left out, in one sentence; empty if nothing was."""
        return "".join(left_out_in_words(self.path, self.left_out))


def walked(
    folder: Path, suits: Callable[[Path], bool], otherwise: str = "of another kind"
) -> tuple[list[Path], dict[str, tuple[str, ...]]]:
    """Return the files of a kind in a folder and below, in order, and why others were left out: names by reason.

    Args:
        suits: whether a file is of the kind.
        otherwise: the reason for those that are not.

    Raises:
        DataError: a folder cannot be listed.
    """
    found: list[Path] = []
    left_out: dict[str, list[str]] = {}
    for entry, reason in sorted(_entries(folder), key=lambda each: _parts(each[0], folder)):
        why = reason or ("" if suits(entry) else otherwise)
        if why:
            left_out.setdefault(why, []).append(printable(entry.relative_to(folder)))
        else:
            found.append(entry)
    return found, {reason: tuple(names) for reason, names in sorted(left_out.items())}


def left_out_in_words(folder: Path, left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what was left out of a folder, in one sentence, or none."""
    clauses = [f"{len(names)} {reason} ({_listed(names)})" for reason, names in left_out.items()]
    return [f"Left out of '{printable(folder)}': {'; '.join(clauses)}."] if clauses else []


def read_image(path: Path, *, window: tuple[float, float] | Literal["full"] | None = None) -> DecodedImage:
    """Return the pixels of an image file, upright.

    Args:
        window: of an image of 16 bits, the values that become black and white: two, or the ends of its type. None:
            such an image, and a TIFF, is refused.

    Raises:
        InputError: there is no file at the path.
        DataError: the file cannot be read, or its pixels cannot be read without a choice.
    """
    name = printable(path)
    if not path.is_file():
        raise InputError(f"Images are read from files. There is none at '{name}'; check the path.")
    try:
        with path.open("rb") as file, _DAMAGE_IS_AN_ERROR:
            return _read(file, name, window)
    except DataError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"An image file can be opened. '{name}' cannot: {error.strerror}; check it.") from error
        raise _damaged(name) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "more") from error
    except MemoryError as error:
        raise DataError(f"An image fits into memory. '{name}' does not; scale it down.") from error
    except Exception as error:  # decoders raise whatever they come across
        raise _damaged(name) from error


def printable(path: Path | str) -> str:
    """Return a path as text of one line that can be printed anywhere, with ? for what cannot."""
    text = os.fsencode(path).decode(errors="replace")
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "?" for each in text)


def _entries(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below a folder, and what is not looked into, each with the reason that leaves it out, or none.

    Raises:
        DataError: a folder cannot be listed.
    """
    try:
        with os.scandir(folder) as inside:
            entries = list(inside)
    except OSError as error:
        raise DataError(
            f"A folder of images can be listed. '{printable(folder)}' cannot: {error.strerror}; check its permissions."
        ) from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
            yield path, "hidden"
        elif entry.is_symlink():
            yield path, "reached by a link"
        elif entry.is_dir():
            yield from _entries(path)
        elif not entry.is_file():
            yield path, "neither file nor folder"
        else:
            yield path, ""


def _parts(path: Path, folder: Path) -> tuple[bytes, ...]:
    """Return what a path is ordered by: the same on every system, in every language."""
    return tuple(os.fsencode(part) for part in path.relative_to(folder).parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:NAMED], *(["..."] if len(names) > NAMED else [])])


def _read(file: IO[bytes], name: str, window: tuple[float, float] | Literal["full"] | None) -> DecodedImage:
    """Return the pixels of an open image file."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    bits = head[24] if head.startswith(PNG) and len(head) == HEAD_BYTES else 8
    try:
        image = Image.open(file, formats=FORMATS if window is None else (*FORMATS, "TIFF"))
    except UnidentifiedImageError as error:
        raise _unknown(head, name) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"{image.width} x {image.height}")
    if window is not None and image.mode in ("I;16", "I;16B", "I;16L"):
        return _of_16_bits(ImageOps.exif_transpose(image), name, window)
    if bits > 8 and not (window == "full" and image.mode == "RGB"):  # whose high bytes Pillow takes
        raise DataError(f"An image has up to 8 bits a channel. '{name}' has {bits}; {TO_8_BITS}.")
    frames = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and frames > 1:
        raise DataError(f"A file holds one image. '{name}' has {frames} pages; save one of them by itself.")
    if image.format == "PNG":
        if frames > 1:
            raise DataError(f"A file holds one image. '{name}' is animated, with {frames}; save one of them as PNG.")
        image.verify()  # checksums, which decoding leaves alone
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
    notes = ["taken as the first of several pictures in its file"] if frames > 1 else []
    if bits < 8 and image.mode != "P":
        notes.append(f"scaled from {bits} bit{'s' if bits > 1 else ''} a pixel to 8")
    upright = ImageOps.exif_transpose(image)
    if image.getexif().get(0x0112, 1) in range(2, 9):
        notes.append("turned upright by the EXIF orientation")
    return _of_one_mode(upright, name, notes)


def _of_16_bits(image: Image.Image, name: str, window: tuple[float, float] | Literal["full"]) -> DecodedImage:
    """Return the pixels of a grey image of 16 bits, black and white at the window's ends."""
    low, high = (0.0, 65535.0) if window == "full" else window
    values = np.asarray(image).astype(np.float32)
    if values.ndim != 2:
        raise DataError(f"An image of 16 bits is grey. '{name}' is not; convert it.")
    pixels = np.round(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    said = "its type" if window == "full" else f"the window {low:g} to {high:g}"
    return DecodedImage(pixels, (f"brought from 16 bits to 8 by {said}",))


def _of_one_mode(image: Image.Image, name: str, notes: list[str]) -> DecodedImage:
    """Return the pixels of an image of any mode, grey or RGB."""
    if image.mode == "P":
        notes.append("expanded from a palette to its colours")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        colour = image.mode not in ("1", "L", "LA")
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise DataError(
                f"An image is opaque: what lies behind one that is not is not in its file. '{name}' is transparent in "
                "part; flatten it onto the background that it is to have, or save it without transparency."
            )
        notes.append("taken without an alpha channel that was opaque")
        image = image.convert("RGB" if colour else "L")
    elif image.mode in ("1", "P"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode == "CMYK":
        raise DataError(
            f"An image is grey or RGB. '{name}' is CMYK, the colours of print, and which RGB they are is not in its "
            "file; convert it to RGB with the program that made it."
        )
    if image.mode not in ("L", "RGB"):
        raise DataError(f"An image is grey or RGB, of 8 bits a channel. '{name}' is {image.mode}; {TO_8_BITS}.")
    return DecodedImage(np.asarray(image), tuple(notes))


def _unknown(head: bytes, name: str) -> DataError:
    """Return what is wrong with a file that Pillow does not take for an image."""
    if not head:
        return DataError(
            f"An image file holds a PNG or a JPEG. '{name}' is empty; get the file again, or leave it out."
        )
    if head.startswith(APPLE_DOUBLE):
        return DataError(
            f"An image file holds a PNG or a JPEG. '{name}' is what macOS keeps beside a file (AppleDouble), and holds "
            "none; leave it out."
        )
    if head.startswith((PNG, JPEG)):
        return DataError(
            f"An image is a whole PNG, or a whole JPEG of 8 bits. '{name}' cannot be read: it is cut short, damaged, "
            "or a JPEG of a medical kind (12 bits, or lossless); get the file again, or convert it to PNG of 8 bits."
        )
    return DataError(
        f"An image file holds a PNG or a JPEG. '{name}' holds something else and cannot be read; convert it to PNG, or "
        "leave it out."
    )


def _damaged(name: str) -> DataError:
    return DataError(
        f"An image is a whole PNG or JPEG. '{name}' is cut short or damaged and cannot be read; get the file again, or "
        "leave it out."
    )


def _too_large(name: str, found: str) -> DataError:
    return DataError(f"An image has at most {MAX_PIXELS} pixels. '{name}' has {found}; scale it down.")

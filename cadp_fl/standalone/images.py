"""Images that a user names by their files, in the form that a classifier takes.

.png .jpg .jpeg   one image; see `cadp_fl.data.images`
a folder          all such images in it and below, in order of their paths; what is left out is reported
.npz              the array `images`, or else a MedMNIST file's `test_images`: uint8 (images, height, width),
                  (images, height, width, 3), or, as a release's shards have it, (images, channels, height, width)
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cadp_fl.data.images import SUFFIXES, ImageFolder, printable, read_image
from cadp_fl.data.remedies import pixels_as_bytes, shape_of_images
from cadp_fl.errors import DataError, InputError
from cadp_fl.npz import Npz, NpzError, open_npz

__all__ = ["Picture", "read_pictures"]

MAX_UNPACKED_BYTES = 16 << 30
TO_GREY = "turned from colour to grey, as the classifier takes it"


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        file: that it is from.
        index: its place in an npz, from 0; None for an image file.
        pixels: uint8, (channels, height, width).
    """

    file: Path
    index: int | None
    pixels: np.ndarray


def read_pictures(
    paths: Sequence[Path],
    shape: tuple[int, int, int],
    *,
    resize: bool,
    report: Callable[[str], None] = lambda sentence: None,
) -> Iterator[Picture]:
    """Yield every image that some paths name, in order, with the channels and the size of a shape.

    Grey becomes three equal channels, and colour its luminance.

    Args:
        shape: (channels, height, width).
        resize: whether an image of another size is resized (bilinear); otherwise it is refused.
        report: is called with sentences: what was left out of each folder, and what was changed in how many images.

    Raises:
        InputError: a path is none of the kinds above, or an image has another size.
        DataError: a file cannot be read.
    """
    changes: Counter[str] = Counter()
    count = 0
    for path in _files(paths, report):
        for index, name, pixels, notes in _of_npz(path) if path.suffix.lower() == ".npz" else _of_file(path):
            count += 1
            changes.update([*notes, *([TO_GREY] if pixels.ndim == 3 and shape[0] == 1 else [])])
            yield Picture(path, index, _fitted(pixels, name, shape, resize=resize))
    if changes:
        listed = "; ".join(f"{number} {change}" for change, number in sorted(changes.items()))
        report(f"Of {count} image{'s' if count > 1 else ''}: {listed}.")


def _files(paths: Sequence[Path], report: Callable[[str], None]) -> list[Path]:
    """Return the files of all paths, so that a wrong path is found before any is read."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            folder = ImageFolder.of(path)
            if not folder.images:
                raise InputError(
                    f"A folder of images holds {', '.join(SUFFIXES)} files. '{printable(path)}' holds none; check the "
                    f"path.{' ' if folder.left_out else ''}{folder.sentence}"
                )
            if folder.left_out:
                report(folder.sentence)
            files += folder.images
        elif not path.is_file():
            raise InputError(f"Images are read from files. There is none at '{printable(path)}'; check the path.")
        elif path.suffix.lower() not in (*SUFFIXES, ".npz"):
            raise InputError(
                f"Images are {', '.join(SUFFIXES)} files, folders of them, or .npz. Found '{printable(path)}'; convert "
                "it to PNG."
            )
        else:
            files.append(path)
    return files


_Found = tuple[int | None, str, np.ndarray, tuple[str, ...]]
"""An image's place in an npz, its name, its pixels (height, width) or (height, width, 3), and what was done to it."""


def _of_file(path: Path) -> Iterator[_Found]:
    decoded = read_image(path)
    yield None, printable(path), decoded.pixels, decoded.notes


def _of_npz(path: Path) -> Iterator[_Found]:
    name = printable(path)
    try:
        with open_npz(path, limit=MAX_UNPACKED_BYTES) as npz:
            images = _array(name, npz)
    except NpzError as error:
        raise DataError(f"An npz of images holds plain arrays. '{name}' does not: {error}; {error.remedy}.") from error
    for index, pixels in enumerate(images):
        yield index, f"{name}[{index}]", pixels, ()


def _array(file: str, npz: Npz) -> np.ndarray:
    """Return the images of an archive, uint8 (images, height, width) or (images, height, width, 3)."""
    name = next((each for each in ("images", "test_images") if each in npz.names), None)
    if name is None:
        raise DataError(
            f"An npz of images has an array images or test_images. '{file}' holds {npz.listing}; name it so."
        )
    header = npz.header(name)
    if header.dtype != np.uint8:
        raise DataError(f"Pixels are uint8, 0 to 255. '{name}' of '{file}' {pixels_as_bytes(name, npz.array(name))}.")
    shape = header.shape
    if 0 in shape:
        raise DataError(f"An image has pixels. '{name}' of '{file}' is {shape}, without any; store some.")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3 and shape[1] not in (1, 3)):
        raise DataError(
            f"Images are (images, height, width), with a last axis of 3 in colour. '{name}' of '{file}' is {shape}; "
            f"{shape_of_images(name, shape)}."
        )
    images = npz.array(name)
    if images.ndim == 4 and shape[3] != 3:
        images = np.moveaxis(images, 1, 3)
        images = images[..., 0] if shape[1] == 1 else images
    return np.ascontiguousarray(images)


def _fitted(pixels: np.ndarray, name: str, shape: tuple[int, int, int], *, resize: bool) -> np.ndarray:
    """Return the pixels of an image, (height, width) or (height, width, 3), as uint8 (channels, height, width)."""
    channels, height, width = shape
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        if not resize:
            raise InputError(
                f"The classifier takes images of {width} x {height} pixels. '{name}' has {image.width} x "
                f"{image.height}; pass --resize."
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    fitted = np.asarray(image)
    return fitted[None] if channels == 1 else np.ascontiguousarray(np.moveaxis(fitted, 2, 0))

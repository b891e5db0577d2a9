"""Images that a user names by their files, in the form that a classifier takes.

.png .jpg .jpeg   one image of 8 bits a channel
a folder          all such images in it and below, in order of their paths
.npz              the array `images`, or else a MedMNIST file's `test_images`: uint8 (images, height, width),
                  (images, height, width, 3), or, as a release's shards have it, (images, channels, height, width)
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cadp_fl.errors import DataError, InputError
from cadp_fl.npz import Npz, NpzError, open_npz

__all__ = ["Picture", "read_pictures"]

SUFFIXES = (".png", ".jpg", ".jpeg")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MAX_UNPACKED_BYTES = 16 << 30


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


def read_pictures(paths: Sequence[Path], shape: tuple[int, int, int], *, resize: bool) -> Iterator[Picture]:
    """Yield every image that some paths name, in order, with the channels and the size of a shape.

    Grey becomes three equal channels, colour its luminance, and transparency is dropped.

    Args:
        shape: (channels, height, width).
        resize: whether an image of another size is resized (bilinear); otherwise it is refused.

    Raises:
        InputError: a path is none of the kinds above, or an image has another size.
        DataError: a file cannot be read.
    """
    for path in _files(paths):
        if path.suffix.lower() == ".npz":
            yield from _of_npz(path, shape, resize=resize)
        else:
            yield Picture(path, None, _fitted(_open(path), str(path), shape, resize=resize))


def _files(paths: Sequence[Path]) -> list[Path]:
    """Return the files of all paths, so that a wrong path is found before any is read."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
            if not inside:
                raise InputError(f"A folder of images holds {', '.join(SUFFIXES)} files. '{path}' holds none.")
            files += inside
        elif not path.is_file():
            raise InputError(f"Images are read from files. There is none at '{path}'; check the path.")
        elif path.suffix.lower() not in (*SUFFIXES, ".npz"):
            raise InputError(f"Images are {', '.join(SUFFIXES)} files, folders of them, or .npz. Found '{path}'.")
        else:
            files.append(path)
    return files


def _open(path: Path) -> Image.Image:
    """Return the image in a file, upright, with 8 bits a channel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                if image.mode not in MODES:
                    raise DataError(
                        f"An image has 8 bits a channel. '{path}' has the mode {image.mode}; convert it to 8 bits."
                    )
                upright = ImageOps.exif_transpose(image)
                return upright.convert("RGBA") if "transparency" in upright.info else upright
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"An image is a whole PNG or JPEG file of a sane size. '{path}' cannot be read; get the file again."
        ) from error


def _fitted(image: Image.Image, name: str, shape: tuple[int, int, int], *, resize: bool) -> np.ndarray:
    """Return the pixels of an image, uint8 of a shape (channels, height, width)."""
    channels, height, width = shape
    if image.size != (width, height):
        if not resize:
            raise InputError(
                f"The classifier takes images of {width} x {height} pixels. '{name}' has {image.width} x "
                f"{image.height}; pass --resize."
            )
        image = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else np.ascontiguousarray(np.moveaxis(pixels, 2, 0))


def _of_npz(path: Path, shape: tuple[int, int, int], *, resize: bool) -> Iterator[Picture]:
    try:
        with open_npz(path, limit=MAX_UNPACKED_BYTES) as npz:
            images = _array(path, npz)
    except NpzError as error:
        raise DataError(f"An npz of images holds plain arrays. '{path}' does not: {error}; write it again.") from error
    for index, pixels in enumerate(images):
        yield Picture(path, index, _fitted(Image.fromarray(pixels), f"{path}[{index}]", shape, resize=resize))


def _array(path: Path, npz: Npz) -> np.ndarray:
    """Return the images of an archive, uint8 (images, height, width) or (images, height, width, 3)."""
    name = next((each for each in ("images", "test_images") if each in npz.names), None)
    if name is None:
        raise DataError(
            f"An npz of images has an array images or test_images. '{path}' holds {npz.listing}; name it so."
        )
    header = npz.header(name)
    if header.dtype != np.uint8:
        raise DataError(f"Pixels are uint8, 0 to 255. '{name}' of '{path}' is {header.dtype}; convert it.")
    shape = header.shape
    if 0 in shape or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3 and shape[1] not in (1, 3)):
        raise DataError(
            f"Images are (images, height, width), with a last axis of 3 in colour. '{name}' of '{path}' is {shape}; "
            "reshape it."
        )
    images = npz.array(name)
    if images.ndim == 4 and shape[3] != 3:
        images = np.moveaxis(images, 1, 3)
        images = images[..., 0] if shape[1] == 1 else images
    return np.ascontiguousarray(images)

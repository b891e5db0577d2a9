"""Folders of image files: PNG, JPEG and TIFF, in a folder for each class or named by a metadata file.

See `cadp_fl.data.files` for what a folder may be, and `cadp_fl.data.images` for what an image file may hold.
"""

from pathlib import Path

from cadp_fl.config import DataConfig
from cadp_fl.data.files import listed, source_of_files
from cadp_fl.data.images import SUFFIXES, DecodedImage, read_image
from cadp_fl.data.schema import Source

__all__ = ["decode_image", "is_image", "read_imagefolder"]

TIFF = (".tif", ".tiff")


def read_imagefolder(config: DataConfig) -> Source:
    """Return the images of the folder `data.path`.

    Raises:
        DataError: there is none, or some cannot be used.
    """
    assert config.path is not None, "check_source asks for it"
    records, notes = listed(config, is_image)
    return source_of_files(records, decode_image, config, name=config.path.resolve().name or "images", notes=notes)


def is_image(path: Path) -> bool:
    """Return whether a file is named as an image."""
    return path.suffix.lower() in (*SUFFIXES, *TIFF)


def decode_image(path: Path, config: DataConfig) -> DecodedImage:
    """Return the pixels of an image file. Of 16 bits, black and white are the type's ends, or those of `data.window`.

    Raises:
        InputError: there is no file.
        DataError: it cannot be read.
    """
    return read_image(path, window=config.window if isinstance(config.window, tuple) else "full")

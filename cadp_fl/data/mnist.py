"""MNIST and its kin by torchvision, from a folder, downloaded into it where they are not at hand."""

import contextlib
import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.data.schema import Dataset, Schema, Source
from cadp_fl.errors import DataError

__all__ = ["read_fashion_mnist", "read_mnist"]

DEFAULT_FOLDER = Path("~/.cache/cadp-fl")
SILENCE_SECONDS = 30.0


def read_mnist(config: DataConfig) -> Source:
    """Return MNIST: 60,000 and 10,000 grey images of 28 x 28 pixels of handwritten digits.

    Raises:
        DataError: it is not at hand and cannot be downloaded, or its files are damaged.
    """
    return _read("MNIST", "mnist", tuple(str(digit) for digit in range(10)), config)


def read_fashion_mnist(config: DataConfig) -> Source:
    """Return Fashion-MNIST: 60,000 and 10,000 grey images of 28 x 28 pixels of clothes.

    References:
        Xiao, Rasul, Vollgraf: Fashion-MNIST, a novel image dataset for benchmarking machine learning algorithms,
        arXiv 1708.07747.

    Raises:
        DataError: it is not at hand and cannot be downloaded, or its files are damaged.
    """
    classes = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    return _read("FashionMNIST", "fashion-mnist", classes, config)


def _read(torchvision_name: str, name: str, classes: tuple[str, ...], config: DataConfig) -> Source:
    folder = (config.path or DEFAULT_FOLDER).expanduser()
    reader = _reader(torchvision_name)
    files = folder / torchvision_name / "raw"
    _provide(reader, folder, files, config)
    train, test = (_dataset(reader, folder, files, name, classes, train=train) for train in (True, False))
    return Source(train, test)


def _reader(torchvision_name: str) -> Any:
    try:
        from torchvision import datasets  # imported here: seconds that other sources need not wait
    except (ImportError, RuntimeError, OSError) as error:
        raise DataError(
            f"This source reads by torchvision. It does not import here ({_reason(error)}); install the one that was "
            "made for your torch, from the same index."
        ) from error
    return getattr(datasets, torchvision_name)


def _provide(reader: Any, folder: Path, files: Path, config: DataConfig) -> None:
    """Download the files into the folder where they are not there."""
    wanted = [Path(resource).stem for resource, _ in reader.resources]
    missing = [each for each in wanted if not (files / each).is_file()]
    if not missing:
        return
    rule = f"Data source '{config.source}' reads {len(wanted)} files in '{files}'. '{missing[0]}' is missing"
    if not config.download:
        raise DataError(f"{rule}; put it there, or pass --set data.download=true.")
    try:
        with _silent():
            reader(folder, download=True)
    except Exception as error:  # of urllib, of sockets, of the disk, of torchvision's own checks
        raise DataError(
            f"{rule} and could not be downloaded ({_reason(error)}); put the files there, or name another folder with "
            "--set data.path=FOLDER."
        ) from error


def _dataset(reader: Any, folder: Path, files: Path, name: str, classes: tuple[str, ...], *, train: bool) -> Dataset:
    try:
        with _silent():
            split = reader(folder, train=train)
        images, labels = np.asarray(split.data), np.asarray(split.targets)
        schema = Schema(name=name, shape=(1, *images.shape[1:]), classes=classes)
        return Dataset(schema, images[:, None], labels.astype(np.int64))
    except Exception as error:  # torchvision asserts, and numpy and torch have errors of their own
        raise DataError(
            f"The files in '{files}' are those of {name}. They cannot be read ({_reason(error)}); remove that folder, "
            "and they are downloaded again."
        ) from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep torchvision's progress to itself, and give up on a server that is silent."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: BaseException) -> str:
    """Return the last line of an error, in a few words."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:160].rstrip(".")

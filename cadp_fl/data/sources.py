"""What can be read: one function a source, in one registry.

A source takes the data config and returns every record it has. To add one, write such a function and put it
into `SOURCES`.
"""

from collections.abc import Callable

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import ConfigError

__all__ = ["SOURCES", "check_source", "load_source"]


def _digits(_config: DataConfig) -> Dataset:
    """Return scikit-learn's bundled handwritten digits: 1,797 grey images of 8 x 8 pixels with 17 levels."""
    from sklearn.datasets import load_digits  # imported here: half a second that other commands need not wait

    bunch = load_digits()
    levels = 17
    images = np.round(bunch.images * (255 / (levels - 1))).astype(np.uint8)[:, None]
    schema = Schema(name="digits", shape=(1, 8, 8), classes=tuple(str(digit) for digit in range(10)), levels=levels)
    return Dataset(schema, images, bunch.target.astype(np.int64))


SOURCES: dict[str, Callable[[DataConfig], Dataset]] = {"digits": _digits}


def check_source(config: DataConfig) -> None:
    """Check that a config names a source and gives what it needs, without reading records.

    Raises:
        ConfigError: the source is unknown, or does not take a path.
    """
    if config.source not in SOURCES:
        raise ConfigError(f"Unknown data source '{config.source}'. Choose one of: {', '.join(sorted(SOURCES))}.")
    if config.path is not None:
        raise ConfigError(f"Data source '{config.source}' takes no path. Found '{config.path}'; remove data.path.")


def load_source(config: DataConfig) -> Dataset:
    """Return all records of the source that a config names.

    Raises:
        ConfigError: the source is unknown.
        DataError: the source cannot be read.
    """
    check_source(config)
    return SOURCES[config.source](config)

"""How a simulation deals one data set to its sites, and splits a site's records into training and test.

Only a simulation does this: a real site has its own records. Randomness comes from the study's seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cadp_fl.config import PartitionConfig
from cadp_fl.data.schema import Dataset
from cadp_fl.errors import ConfigError, DataError

__all__ = ["PARTITIONS", "SiteData", "check_partition", "deal"]

MAX_TRIES = 1000


@dataclass(frozen=True)
class SiteData:
    """The records of one site. Test records are disjoint from training records."""

    train: Dataset
    test: Dataset


def _iid(labels: np.ndarray, sites: int, _config: PartitionConfig, generator: np.random.Generator) -> np.ndarray:
    """Deal every record to a site, as evenly as can be."""
    return generator.permutation(np.arange(len(labels)) % sites)


def _dirichlet(labels: np.ndarray, sites: int, config: PartitionConfig, generator: np.random.Generator) -> np.ndarray:
    """Deal each class by shares drawn from Dirichlet(alpha).

    References:
        Hsu, Qi, Brown: Measuring the effects of non-identical data distribution, arXiv 1909.06335.
    """
    site_of = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(sites, config.alpha))
        bounds = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for site, part in enumerate(np.split(members, bounds)):
            site_of[part] = site
    return site_of


Partition = Callable[[np.ndarray, int, PartitionConfig, np.random.Generator], np.ndarray]
PARTITIONS: dict[str, Partition] = {"iid": _iid, "dirichlet": _dirichlet}


def check_partition(config: PartitionConfig) -> None:
    """Check that a config names a partition.

    Raises:
        ConfigError: the partition is unknown.
    """
    if config.kind not in PARTITIONS:
        raise ConfigError(f"Unknown partition '{config.kind}'. Choose one of: {', '.join(sorted(PARTITIONS))}.")


def deal(dataset: Dataset, sites: int, config: PartitionConfig, test_fraction: float, *, seed: int) -> list[SiteData]:
    """Return the records of every site, each split into training and test, stratified by class.

    Args:
        test_fraction: share of each class of each site that is held out, rounded.
        seed: of the deal and the split.

    Raises:
        ConfigError: the partition is unknown.
        DataError: no deal gives every site `config.min_records` training records and one test record.
    """
    check_partition(config)
    generator = np.random.default_rng(seed)
    for _ in range(MAX_TRIES):
        site_of = PARTITIONS[config.kind](dataset.labels, sites, config, generator)
        dealt = [
            _split(dataset.select(np.flatnonzero(site_of == site)), test_fraction, generator) for site in range(sites)
        ]
        if all(len(site.train) >= config.min_records and len(site.test) > 0 for site in dealt):
            return dealt
    raise DataError(
        f"Every site needs {config.min_records} training records and one test record. {len(dataset)} records in a "
        f"'{config.kind}' partition gave that to {sites} sites in none of {MAX_TRIES} tries; use fewer sites, a larger "
        "alpha or a smaller min_records."
    )


def _split(dataset: Dataset, test_fraction: float, generator: np.random.Generator) -> SiteData:
    held_out = np.zeros(len(dataset), dtype=bool)
    for label in np.unique(dataset.labels):
        members = generator.permutation(np.flatnonzero(dataset.labels == label))
        held_out[members[: round(test_fraction * len(members))]] = True
    return SiteData(dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out)))

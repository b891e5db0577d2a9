"""How a simulation deals a source's records to its sites, and splits a site's records into training and test.

Only a simulation does this: a real site has its own records. Patients are dealt, each with all its records; where a
source names none, every record is a patient. Randomness comes from the study's seed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from cadp_fl.config import PartitionConfig, StudyConfig
from cadp_fl.data.schema import Dataset, Source
from cadp_fl.errors import ConfigError, DataError

__all__ = ["PARTITIONS", "Patients", "SiteData", "check_partition", "deal", "deal_to_sites"]

MAX_TRIES = 1000


@dataclass(frozen=True)
class SiteData:
    """The records of one site. Test records are disjoint from training records, and so are their patients."""

    train: Dataset
    test: Dataset


@dataclass(frozen=True)
class Patients:
    """What is dealt.

    Attributes:
        labels: int64, (patients,): label of each one's first record.
        records: int64, (patients,): number of each one's records.
        of_record: int64, (records,): index of each record's patient.
    """

    labels: np.ndarray
    records: np.ndarray
    of_record: np.ndarray

    @staticmethod
    def of(dataset: Dataset) -> "Patients":
        """Return the patients of a data set."""
        if dataset.patients is None:
            each = np.arange(len(dataset))
            return Patients(dataset.labels, np.ones_like(each), each)
        _, first, of_record, records = np.unique(
            dataset.patients, return_index=True, return_inverse=True, return_counts=True
        )
        return Patients(dataset.labels[first], records, of_record)

    def __len__(self) -> int:
        return len(self.labels)


def _iid(patients: Patients, sites: int, _config: PartitionConfig, generator: np.random.Generator) -> np.ndarray:
    """Deal every patient to a site, as evenly as can be."""
    return generator.permutation(np.arange(len(patients)) % sites)


def _dirichlet(patients: Patients, sites: int, config: PartitionConfig, generator: np.random.Generator) -> np.ndarray:
    """Deal each class by shares of its own, drawn from Dirichlet(alpha).

    References:
        Hsu, Qi, Brown: Measuring the effects of non-identical data distribution, arXiv 1909.06335.
    """
    site_of = np.empty(len(patients), dtype=np.int64)
    for label in np.unique(patients.labels):
        members = generator.permutation(np.flatnonzero(patients.labels == label))
        shares = generator.dirichlet(np.full(sites, config.alpha))
        site_of[members] = _by_shares(patients.records[members], shares)
    return site_of


def _quantity(patients: Patients, sites: int, config: PartitionConfig, generator: np.random.Generator) -> np.ndarray:
    """Deal every class by the same shares, drawn from Dirichlet(alpha): sites differ in size and not in their mix."""
    site_of = np.empty(len(patients), dtype=np.int64)
    shares = generator.dirichlet(np.full(sites, config.alpha))
    for label in np.unique(patients.labels):
        members = generator.permutation(np.flatnonzero(patients.labels == label))
        site_of[members] = _by_shares(patients.records[members], shares)
    return site_of


def _label(patients: Patients, sites: int, config: PartitionConfig, generator: np.random.Generator) -> np.ndarray:
    """Give every site `classes_per_site` classes, in turn from a random order, and deal each class to its holders.

    Raises:
        ConfigError: that many classes a site are more than there are, or leave a class without a site.
        DataError: a class has fewer patients than sites that hold it.
    """
    classes, counts = np.unique(patients.labels, return_counts=True)
    held = config.classes_per_site
    if not len(classes) <= held * sites <= len(classes) * sites:
        raise ConfigError(
            f"A 'label' partition gives every class to a site, and a site no class twice. {held} for each of {sites} "
            f"sites does not fit {len(classes)} classes; set sites.partition.classes_per_site to "
            f"{-(-len(classes) // sites)} to {len(classes)}."
        )
    holders = -(-held * sites // len(classes))
    if counts.min() < holders:
        raise DataError(
            f"Up to {holders} sites share a class in this partition. Class {classes[counts.argmin()]} has "
            f"{counts.min()} patients; use fewer sites or classes a site."
        )
    order = generator.permutation(classes)
    held_by = order[np.arange(held * sites).reshape(sites, held) % len(classes)]
    site_of = np.empty(len(patients), dtype=np.int64)
    for label in classes:
        members = generator.permutation(np.flatnonzero(patients.labels == label))
        its_sites = np.flatnonzero((held_by == label).any(axis=1))
        site_of[members] = its_sites[np.arange(len(members)) % len(its_sites)]
    return site_of


Partition = Callable[[Patients, int, PartitionConfig, np.random.Generator], np.ndarray]
PARTITIONS: dict[str, Partition] = {"iid": _iid, "dirichlet": _dirichlet, "label": _label, "quantity": _quantity}
"""How patients are dealt: a function returns each one's site, int64 (patients,)."""

COLUMN = "column"
"""The partition that deals nothing: the source says of which site each record is."""


def check_partition(config: PartitionConfig) -> None:
    """Check that a config names a partition.

    Raises:
        ConfigError: the partition is unknown.
    """
    if config.kind not in (*PARTITIONS, COLUMN):
        known = ", ".join(sorted((*PARTITIONS, COLUMN)))
        raise ConfigError(f"Unknown partition '{config.kind}'. Choose one of: {known}.")


def deal_to_sites(study: StudyConfig, source: Source) -> list[SiteData]:
    """Return the records of every site of a study, in the order of its names; see `deal`.

    Raises:
        ConfigError: the partition is unknown, or does not fit the sites.
        DataError: no deal gives every site what it needs.
    """
    config, seed = study.sites, study.seed
    if config.partition.kind != COLUMN:
        return deal(source, config.count, config.partition, study.data.test_fraction, seed=seed)
    if not source.site_names:
        raise ConfigError(
            "A 'column' partition needs a source that says of which site each record is. This one does not; name the "
            "column with data.roles.site (in the schema file of a table, roles.site), or choose another partition."
        )
    if config.count != len(source.site_names):
        raise ConfigError(
            f"A 'column' partition has a site for each name in the column: {', '.join(source.site_names)}. The study "
            f"has {config.count}; set sites.count to {len(source.site_names)}."
        )
    if config.names is not None and set(config.names) != set(source.site_names):
        raise ConfigError(
            f"A 'column' partition's sites are those of the column: {', '.join(source.site_names)}. sites.names has "
            f"{', '.join(config.names)}; give the same, or leave sites.names out."
        )
    dealt = deal(source, config.count, config.partition, study.data.test_fraction, seed=seed)
    names = config.names or source.site_names
    return [dealt[source.site_names.index(name)] for name in names]


def deal(source: Source, sites: int, config: PartitionConfig, test_fraction: float, *, seed: int) -> list[SiteData]:
    """Return the records of every site, with a test set that has the mix of classes that its training set has.

    The source's own test records are dealt class by class in proportion to the training records; where it has none,
    a share of each class of each site is held out. No patient is divided.

    Args:
        test_fraction: share that is held out, rounded; not used where the source has test records.
        seed: of the deal and the split.

    Raises:
        ConfigError: the partition is unknown, or does not fit the number of sites and classes.
        DataError: a class has no training record, or no deal gives every site `config.min_records` training records
            and one test record.
    """
    check_partition(config)
    patients = Patients.of(source.train)
    _check_possible(source, patients, sites, config.min_records, test_fraction)
    generator = np.random.default_rng(seed)
    for _ in range(MAX_TRIES):
        site_of = _site_of(source, patients, sites, config, generator)
        if source.test is None:
            held_out = _held_out(patients, site_of, test_fraction, generator)
            train_site = np.where(held_out, -1, site_of)[patients.of_record]
            test_site = np.where(held_out, site_of, -1)[patients.of_record]
        else:
            train_site = site_of[patients.of_record]
            test_site = source.test.sites if config.kind == COLUMN else None
            if test_site is None:
                test_site = _deal_test(source.train, source.test, train_site, sites, generator)
        trained = _counts(source.train, train_site, sites)
        tested = np.bincount(test_site[test_site >= 0], minlength=sites)
        if trained.sum(axis=1).min() >= config.min_records and trained.sum(axis=0).min() > 0 and tested.min() > 0:
            test = source.train if source.test is None else source.test
            return [SiteData(_of_site(source.train, train_site, k), _of_site(test, test_site, k)) for k in range(sites)]
    raise DataError(
        f"Every site needs {config.min_records} training records and one test record, and every class a site. "
        f"{len(source.train)} records in a '{config.kind}' partition gave that to {sites} sites in none of {MAX_TRIES} "
        "tries; use fewer sites, a larger alpha or a smaller min_records."
    )


def _site_of(
    source: Source, patients: Patients, sites: int, config: PartitionConfig, generator: np.random.Generator
) -> np.ndarray:
    """Return the site of every patient, int64 (patients,).

    Raises:
        DataError: a patient has records of two sites.
    """
    if config.kind != COLUMN:
        return PARTITIONS[config.kind](patients, sites, config, generator)
    assert source.train.sites is not None, "the source names sites"
    lowest, highest = np.full(len(patients), sites), np.zeros(len(patients), dtype=np.int64)
    np.minimum.at(lowest, patients.of_record, source.train.sites)
    np.maximum.at(highest, patients.of_record, source.train.sites)
    if divided := int((lowest != highest).sum()):
        raise DataError(
            f"A patient is at one site. {divided} have records of two or more; give each one's records to one of them."
        )
    return highest


def _check_possible(source: Source, patients: Patients, sites: int, min_records: int, test_fraction: float) -> None:
    """Refuse at once what no deal can give."""
    train, test = source.train, source.test
    available, classes = len(train), len(train.schema.classes)
    if len(unheld := np.flatnonzero(train.class_counts() == 0)):
        raise DataError(
            f"Every class is held by a site. No training record is of class '{train.schema.classes[unheld[0]]}', whose "
            f"label is {unheld[0]}; add some, or number the labels without it and take its name out of data.classes."
        )
    if test is None:  # rounding keeps less than one patient of a class and a site from being held out
        kept = (1 - test_fraction) * len(train) + int(patients.records.max()) * sites * classes
        available = min(len(train) - sites, int(kept))
    if sites * min_records > available:
        raise DataError(
            f"{sites} sites with {min_records} training records each need {sites * min_records}. At most {available} "
            "are for training; use fewer sites or a smaller min_records."
        )
    tested = len(patients) // 2 if test is None else len(Patients.of(test))
    if sites > min(len(patients), tested):
        raise DataError(
            f"Every site needs a patient to train on and another to test on. {sites} sites share {len(patients)} "
            f"patients{'' if test is None else f' and {tested} for testing'}; use fewer sites."
        )


def _held_out(
    patients: Patients, site_of: np.ndarray, test_fraction: float, generator: np.random.Generator
) -> np.ndarray:
    """Return which patients are for testing: a share of each class of each site, and never all of them."""
    held_out = np.zeros(len(patients), dtype=bool)
    for members in _groups(site_of, patients.labels):
        shuffled = generator.permutation(members)
        records = patients.records[shuffled]
        chosen = _cut(records, np.array([round(test_fraction * int(records.sum()))])) == 0
        chosen[-1] = False
        held_out[shuffled[chosen]] = True
    return held_out


def _deal_test(
    train: Dataset, test: Dataset, train_site: np.ndarray, sites: int, generator: np.random.Generator
) -> np.ndarray:
    """Return the site of every test record: of each class, a site gets its share of that class's training records."""
    patients, trained = Patients.of(test), _counts(train, train_site, sites)
    site_of = np.empty(len(patients), dtype=np.int64)
    for label in np.unique(patients.labels):
        members = generator.permutation(np.flatnonzero(patients.labels == label))
        records = patients.records[members]
        counts = _largest_remainder(trained[:, label], int(records.sum()), generator)
        site_of[members] = _cut(records, np.cumsum(counts)[:-1])
    of_record: np.ndarray = site_of[patients.of_record]
    return of_record


def _largest_remainder(weights: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """Return whole numbers in proportion to weights, int64 (sites,), that add up to a total; ties fall at random."""
    counts, remainders = np.divmod(weights * total, weights.sum())
    order = generator.permutation(len(weights))
    largest = order[np.argsort(-remainders[order], kind="stable")]
    counts[largest[: total - counts.sum()]] += 1
    return counts


def _by_shares(records: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the site of each of a row of patients that is cut by shares, int64 (patients,)."""
    return _cut(records, np.round(np.cumsum(shares)[:-1] * records.sum()))


def _cut(records: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return which part each of a row of patients is in, if the row of their records is cut at bounds.

    A patient that a bound would divide goes where the middle of its records is.
    """
    parts: np.ndarray = np.searchsorted(bounds, np.cumsum(records) - records / 2, side="right")
    return parts


def _groups(site_of: np.ndarray, labels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the ascending indices of every site's patients of every class that it has, by site and class."""
    cells = site_of * (int(labels.max()) + 1) + labels
    order = np.argsort(cells.astype(np.min_scalar_type(int(cells.max()))), kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(cells[order])) + 1)


def _counts(dataset: Dataset, site_of: np.ndarray, sites: int) -> np.ndarray:
    """Return the number of records by site and class, int64 (sites, classes); site -1 is none."""
    classes = len(dataset.schema.classes)
    dealt = site_of >= 0
    cells = site_of[dealt] * classes + dataset.labels[dealt]
    return np.bincount(cells, minlength=sites * classes).reshape(sites, classes)


def _of_site(dataset: Dataset, site_of: np.ndarray, site: int) -> Dataset:
    return dataset.select(np.flatnonzero(site_of == site))

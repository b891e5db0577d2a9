import hashlib
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadp_fl.config import DataConfig, PartitionConfig, load_study
from cadp_fl.data.partition import PARTITIONS, deal
from cadp_fl.data.schema import Dataset, Schema, Source
from cadp_fl.data.sources import load_source
from cadp_fl.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def digits():
    return load_source(DataConfig(source="digits"))


def rows(dataset):
    return sorted(dataset.images.reshape(len(dataset), -1).tolist())


def fingerprint(sites):
    digest = hashlib.sha256()
    for part in (part for site in sites for part in (site.train, site.test)):
        digest.update(part.images.tobytes())
        digest.update(part.labels.tobytes())
    return digest.hexdigest()


def test_the_quickstarts_deal_stays_what_its_figures_were_measured_on(digits, quickstart):
    study = load_study(quickstart)
    dealt = deal(digits, study.sites.count, study.sites.partition, study.data.test_fraction, seed=study.seed)
    assert fingerprint(dealt) == "0de0abfe77853092d608b3f2efdf842b2cf2c10983f58e7b32600accde34ba1d"


@pytest.mark.parametrize(
    ("kind", "sites", "expected"),
    [
        ("iid", 7, "14d47b7afc4437b9076df098ef58221de28981f321172c8ef3bf8595f50d1ab2"),
        ("dirichlet", 7, "7e2e6c99dfb712a86cc74e5cf94551cf4b8d22b2c435b29288cdfbf1da39452d"),
    ],
)
def test_a_deal_that_took_several_tries_stays_what_it_was(digits, kind, sites, expected):
    assert fingerprint(deal(digits, sites, PartitionConfig(kind=kind), 0.2, seed=1)) == expected


@pytest.mark.parametrize("kind", sorted(PARTITIONS))
@pytest.mark.parametrize("sites", [2, 3, 7])
def test_a_deal_gives_every_record_once(digits, kind, sites):
    dealt = deal(digits, sites, PartitionConfig(kind=kind, classes_per_site=6), 0.2, seed=1)
    parts = [part for site in dealt for part in (site.train, site.test)]
    assert sorted(row for part in parts for row in rows(part)) == rows(digits.train)
    assert all(len(site.train) >= 20 and len(site.test) > 0 for site in dealt)


def test_a_seed_repeats_a_deal_and_another_does_not(digits):
    first, second, other = (deal(digits, 3, PartitionConfig(kind="dirichlet"), 0.2, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(a.train.images, b.train.images) for a, b in zip(first, second, strict=True))
    assert [len(site.train) for site in first] != [len(site.train) for site in other]


def test_the_test_split_is_stratified(digits):
    for site in deal(digits, 3, PartitionConfig(kind="iid"), 0.25, seed=0):
        total = site.train.class_counts() + site.test.class_counts()
        assert np.abs(site.test.class_counts() - 0.25 * total).max() <= 0.5


def test_a_small_alpha_skews_classes(digits):
    def skew(alpha):
        sites = deal(digits, 3, PartitionConfig(kind="dirichlet", alpha=alpha), 0.2, seed=3)
        counts = np.array([site.train.class_counts() for site in sites])
        return (counts.max(axis=0) / counts.sum(axis=0)).mean()

    assert skew(0.3) > skew(100.0) + 0.2


def test_a_site_of_a_quantity_partition_differs_in_size_and_not_in_its_mix(digits):
    dealt = deal(digits, 3, PartitionConfig(kind="quantity", alpha=1.0), 0.2, seed=3)
    counts = np.array([site.train.class_counts() + site.test.class_counts() for site in dealt])
    assert counts.sum(axis=1).max() > 2 * counts.sum(axis=1).min()
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    assert np.abs(counts - expected).max() < 2


@pytest.mark.parametrize(("sites", "held"), [(5, 2), (3, 4), (7, 3), (2, 10), (10, 1)])
def test_a_site_of_a_label_partition_holds_its_number_of_classes_and_every_class_a_site(digits, sites, held):
    config = PartitionConfig(kind="label", classes_per_site=held)
    counts = np.array([site.train.class_counts() for site in deal(digits, sites, config, 0.2, seed=3)])
    assert ((counts > 0).sum(axis=1) == held).all()
    holders = (counts > 0).sum(axis=0)
    assert holders.min() >= 1
    assert holders.max() - holders.min() <= 1


@pytest.mark.parametrize(("sites", "held"), [(3, 3), (2, 11), (2, 4)])
def test_a_label_partition_that_cannot_be_is_refused_with_the_range_that_can(digits, sites, held):
    with pytest.raises(ConfigError, match=rf"set sites.partition.classes_per_site to {-(-10 // sites)} to 10\.$"):
        deal(digits, sites, PartitionConfig(kind="label", classes_per_site=held), 0.2, seed=3)


SCHEMA = Schema(name="x", shape=(1, 2, 2), classes=("a", "b", "c"))


def numbered(labels, patients=None, start=0):
    """Return records whose pixels are their numbers."""
    labels = np.asarray(labels, dtype=np.int64)
    numbers = np.arange(start, start + len(labels), dtype=">u4")
    images = numbers.view(np.uint8).reshape(-1, 1, 2, 2)
    return Dataset(SCHEMA, images, labels, None if patients is None else np.asarray(patients, dtype=np.int64))


def numbers(dataset):
    return np.ascontiguousarray(dataset.images).reshape(len(dataset), 4).view(">u4")[:, 0].tolist()


@st.composite
def sources(draw):
    """Draw a source of three classes, with or without patients and a test split of its own."""
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    splits, named = [], draw(st.booleans())
    for start in range(1 + draw(st.booleans())):
        people = generator.integers(60, 90)
        sizes = generator.integers(1, 5, people) if named else np.ones(people, np.int64)
        of_record = np.repeat(np.arange(people), sizes)
        mixed = generator.random(len(of_record)) < 0.1
        labels = np.where(mixed, generator.integers(0, 3, len(of_record)), (of_record % 3))
        shuffled = generator.permutation(len(of_record))
        codes = 1000 * start + of_record[shuffled] if named else None
        splits.append(numbered(labels[shuffled], codes, 10_000 * start))
    return Source(*splits)


@given(
    source=sources(),
    kind=st.sampled_from(sorted(PARTITIONS)),
    sites=st.integers(2, 4),
    min_records=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_every_record_is_dealt_once_and_no_patient_is_divided(source, kind, sites, min_records, seed):
    config = PartitionConfig(kind=kind, alpha=5.0, min_records=min_records)
    dealt = deal(source, sites, config, 0.25, seed=seed)
    parts = [part for site in dealt for part in (site.train, site.test)]
    whole = numbers(source.train) + (numbers(source.test) if source.test else [])
    assert sorted(number for part in parts for number in numbers(part)) == whole
    if source.test is not None:
        assert sorted(number for site in dealt for number in numbers(site.test)) == numbers(source.test)
    if source.train.patients is not None:
        patients = [patient for part in parts for patient in set(part.patients.tolist())]
        assert len(patients) == len(set(patients))
    assert min(len(site.train) for site in dealt) >= min_records
    assert min(len(site.test) for site in dealt) >= 1
    assert sum(site.train.class_counts() for site in dealt).min() > 0


@given(kind=st.sampled_from(sorted(PARTITIONS)), seed=st.integers(0, 2**32), own_test=st.booleans())
def test_patients_of_one_record_each_are_dealt_as_records_are(kind, seed, own_test):
    labels, config = np.arange(300) % 3, PartitionConfig(kind=kind)
    plain = Source(numbered(labels), numbered(labels[:60]) if own_test else None)
    named = Source(numbered(labels, np.arange(300)), numbered(labels[:60], 300 + np.arange(60)) if own_test else None)
    one, other = (deal(source, 3, config, 0.2, seed=seed) for source in (plain, named))
    assert fingerprint(one) == fingerprint(other)


@given(kind=st.sampled_from(sorted(PARTITIONS)), seed=st.integers(0, 2**32), tests=st.integers(30, 90))
def test_a_site_is_tested_on_the_mix_that_it_trains_on(kind, seed, tests):
    """Of a class, a site gets its share of that class's training records, to within one record."""
    source = Source(numbered(np.arange(400) % 3), numbered(np.arange(tests) % 3))
    dealt = deal(source, 3, PartitionConfig(kind=kind), 0.5, seed=seed)
    trained = np.array([site.train.class_counts() for site in dealt])
    tested = np.array([site.test.class_counts() for site in dealt])
    exact = trained / trained.sum(axis=0) * tested.sum(axis=0)
    assert tested.sum(axis=0).tolist() == source.test.class_counts().tolist()
    assert np.abs(tested - exact).max() < 1
    assert not tested[trained == 0].any()


def test_a_test_record_that_cannot_be_shared_falls_at_random():
    """Three sites of the same size and mix share two test records of each class, so one site goes short of each."""
    config = PartitionConfig(kind="label", classes_per_site=3)
    source = Source(numbered(np.arange(90) % 3), numbered(np.arange(6) % 3))
    tested = [[len(site.test) for site in deal(source, 3, config, 0.2, seed=seed)] for seed in range(30)]
    assert np.min(tested) == 1
    assert np.ptp(np.mean(tested, axis=0)) < 1


def test_a_share_of_patients_is_held_out_by_records_and_never_the_last():
    labels = np.repeat(np.arange(3), 40)
    for fraction, expected in ((0.2, 30), (0.3, 30), (0.4, 60), (0.9, 90)):
        source = Source(numbered(labels, np.arange(120) // 10))
        dealt = deal(source, 1, PartitionConfig(kind="iid", min_records=1), fraction, seed=0)
        assert len(dealt[0].test) == expected
        assert dealt[0].train.class_counts().min() >= 10


@pytest.mark.parametrize(
    ("source", "min_records", "sentence"),
    [
        (Source(numbered(np.arange(60) % 3)), 21, "3 sites with 21 training records each need 63. At most 57 are for"),
        (Source(numbered(np.arange(60) % 3), numbered([0] * 9)), 21, "each need 63. At most 60 are for training"),
        (Source(numbered(np.arange(60) % 2)), 1, "Every class is held by a site. No training record is of class 'c'"),
        (Source(numbered([])), 1, "No training record is of class 'a'"),
        (Source(numbered(np.arange(60) % 3, np.arange(60) // 12)), 1, "3 sites share 5 patients; use fewer sites"),
        (Source(numbered(np.arange(60) % 3), numbered([0, 1])), 1, "3 sites share 60 patients and 2 for testing"),
    ],
)
def test_what_no_deal_can_give_is_refused_at_once_with_the_reason(source, min_records, sentence, monkeypatch):
    monkeypatch.setattr("cadp_fl.data.partition.MAX_TRIES", 0)
    with pytest.raises(DataError, match=sentence):
        deal(source, 3, PartitionConfig(min_records=min_records), 0.2, seed=0)


def test_a_class_of_fewer_patients_than_sites_share_it_is_refused():
    config = PartitionConfig(kind="label", classes_per_site=3, min_records=1)
    with pytest.raises(DataError, match=r"Up to 3 sites share a class in this partition\. Class 2 has 2 patients"):
        deal(Source(numbered([0] * 9 + [1] * 9 + [2] * 2)), 3, config, 0.2, seed=0)


def test_held_out_records_are_counted_before_a_deal_is_tried(digits, monkeypatch):
    """Of 1,797 records, 1,438 are for training at 0.2, so 3 x 500 cannot be."""
    monkeypatch.setattr("cadp_fl.data.partition.MAX_TRIES", 0)
    with pytest.raises(DataError, match="At most 1467 are for training"):
        deal(digits, 3, PartitionConfig(min_records=500), 0.2, seed=0)


def test_an_unlikely_deal_is_refused_with_the_reason(digits):
    config = PartitionConfig(kind="dirichlet", alpha=0.05, min_records=480)
    with pytest.raises(DataError, match="use fewer sites, a larger alpha or a smaller min_records"):
        deal(digits, 3, config, 0.2, seed=0)


@pytest.mark.parametrize("kind", sorted(PARTITIONS))
def test_seventy_thousand_records_are_dealt_in_a_second(kind):
    source = Source(numbered(np.arange(60_000) % 3), numbered(np.arange(10_000) % 3))
    started = time.process_time()
    deal(source, 20, PartitionConfig(kind=kind), 0.2, seed=0)
    assert time.process_time() - started < 1


def test_an_unknown_partition_is_refused(digits):
    with pytest.raises(ConfigError, match="Unknown partition 'random'"):
        deal(digits, 3, PartitionConfig(kind="random"), 0.2, seed=0)

import hashlib

import numpy as np
import pytest

from cadp_fl.config import DataConfig, PartitionConfig, load_study
from cadp_fl.data.partition import deal
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.sources import load_source
from cadp_fl.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def digits():
    return load_source(DataConfig(source="digits"))


def rows(dataset):
    return sorted(dataset.images.reshape(len(dataset), -1).tolist())


def test_digits_are_what_scikit_learn_bundles(digits):
    assert (len(digits), digits.schema.shape, digits.schema.levels) == (1797, (1, 8, 8), 17)
    assert set(np.unique(digits.images)) <= {round(255 * level / 16) for level in range(17)}
    assert digits.class_counts().sum() == 1797


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


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
@pytest.mark.parametrize("sites", [2, 3, 7])
def test_a_deal_gives_every_record_once(digits, kind, sites):
    dealt = deal(digits, sites, PartitionConfig(kind=kind), 0.2, seed=1)
    parts = [part for site in dealt for part in (site.train, site.test)]
    assert sorted(row for part in parts for row in rows(part)) == rows(digits)
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


def test_an_impossible_deal_is_refused_with_the_reason(digits):
    with pytest.raises(DataError, match="use fewer sites, a larger alpha or a smaller min_records"):
        deal(digits, 3, PartitionConfig(kind="iid", min_records=1000), 0.2, seed=0)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (DataConfig(source="digitz"), "Unknown data source 'digitz'. Choose one of: digits"),
        (DataConfig(source="digits", path="/x"), "takes no path"),
    ],
)
def test_a_wrong_source_is_refused(config, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_source(config)


def test_an_unknown_partition_is_refused(digits):
    with pytest.raises(ConfigError, match="Unknown partition 'random'"):
        deal(digits, 3, PartitionConfig(kind="random"), 0.2, seed=0)


SCHEMA = Schema(name="x", shape=(1, 2, 2), classes=("a", "b"))


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (np.zeros((2, 1, 2, 2), np.float32), np.zeros(2, np.int64), "Images are uint8"),
        (np.zeros((2, 1, 2, 3), np.uint8), np.zeros(2, np.int64), "Images are uint8"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.zeros(2, np.int32), "Labels are int64"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 2]), "A label is 0 to 1. Found 0 to 2"),
        (np.zeros((2, 1, 2, 2), np.uint8), np.array([-1, 0]), "A label is 0 to 1. Found -1 to 0"),
    ],
)
def test_records_that_break_the_schema_are_refused(images, labels, sentence):
    with pytest.raises(DataError, match=sentence):
        Dataset(SCHEMA, images, labels)

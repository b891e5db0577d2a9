import numpy as np
import pytest

from cadp_fl.config import StudyConfig
from cadp_fl.data.identities import code_of, codes_of, sites_of
from cadp_fl.data.partition import deal_to_sites
from cadp_fl.data.schema import Dataset, Schema, Source
from cadp_fl.errors import ConfigError, DataError

SCHEMA = Schema(name="x", shape=(1, 2, 2), classes=("a", "b"))


def test_a_code_depends_on_the_name_alone():
    assert codes_of(["b", "a", "b"], "patient").tolist() == [code_of("b"), code_of("a"), code_of("b")]
    assert 0 <= code_of("x") < 2**63


def test_sites_are_written_as_a_study_writes_them_and_in_order():
    names, of_record = sites_of(["VA Long Beach", "Cleveland", "VA Long Beach"])
    assert names == ("cleveland", "va-long-beach")
    assert of_record.tolist() == [1, 0, 1]


@pytest.mark.parametrize("names", [["a", "A"], ["--", "b"], ["", "b"]])
def test_names_that_cannot_be_told_apart_are_refused(names):
    with pytest.raises(DataError, match="a name of letters and digits of its own"):
        sites_of(names)


def source(sites, patients=None, site_names=("east", "west")):
    count = len(sites)
    return Source(
        Dataset(
            SCHEMA,
            np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), dtype=np.uint8),
            np.arange(count) % 2,
            None if patients is None else np.array(patients),
            sites=np.array(sites),
        ),
        site_names=site_names,
    )


def study(**sites):
    return StudyConfig.model_validate(
        {
            "name": "x",
            "seed": 1,
            "data": {"source": "digits"},
            "sites": {"count": 2, "partition": {"kind": "column", "min_records": 5}, **sites},
            "methods": {"fedavg": {}},
            "release": {"mechanism": "privunit", "labels": "covered"},
            "budget": {"epsilon": 1.0, "delta": 1e-5},
        }
    )


def test_a_column_of_site_names_makes_the_sites_in_the_order_of_the_study():
    sites = [0, 1, 1] * 20
    west, east = deal_to_sites(study(names=["west", "east"]), source(sites))
    for data, site in ((west, 1), (east, 0)):
        shown = np.concatenate([data.train.records[:, 0, 0, 0], data.test.records[:, 0, 0, 0]])
        assert sorted(shown.tolist()) == np.flatnonzero(np.array(sites) == site).tolist()
        assert len(data.test) > 0


@pytest.mark.parametrize(
    ("changes", "found", "sentence"),
    [
        ({"count": 3}, source([0, 1] * 20), "set sites.count to 2"),
        ({"names": ["north", "south"]}, source([0, 1] * 20), "leave sites.names out"),
        ({}, Source(source([0, 1] * 20).train.select(np.arange(40)), None, ("east", "west")), None),
    ],
)
def test_a_study_that_does_not_fit_the_column_is_refused(changes, found, sentence):
    if sentence is None:
        assert len(deal_to_sites(study(**changes), found)) == 2
        return
    with pytest.raises(ConfigError, match=sentence):
        deal_to_sites(study(**changes), found)


def test_a_source_without_the_column_says_how_to_name_it():
    records = source([0, 1] * 20).train
    plain = Source(Dataset(SCHEMA, records.records, records.labels))
    with pytest.raises(ConfigError, match=r"name the column with data\.roles\.site"):
        deal_to_sites(study(), plain)


def test_a_patient_of_two_sites_is_refused():
    with pytest.raises(DataError, match=r"A patient is at one site\. 1 have records of two or more"):
        deal_to_sites(study(), source([0, 1] * 20, patients=[7, 7, *range(100, 138)]))

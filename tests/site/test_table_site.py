"""A real site whose records are a table: made, looked at, asked and released from, as any other."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cadp_fl.cli.main import app
from cadp_fl.config import FlowConfig, dump_tree, load_site
from cadp_fl.data.table_schema import load_table_schema
from cadp_fl.doctor.finding import examine
from cadp_fl.doctor.site import SITE_CHECKS, Site
from cadp_fl.errors import CadpError, ConfigError, DataError, InputError
from cadp_fl.flow.storage import FlowCard, flow_sha256, load_flow, save_flow
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.release.dataset import load_release
from cadp_fl.site.agent import Agent, command
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.open_site import read_records, records_of
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions
from tests.site.agents import served

SCHEMA = {
    "name": "ward",
    "label": {"column": "ill", "classes": {"no": [0], "yes": [1]}},
    "columns": [
        {"name": "age", "type": "integer", "lower": 18, "upper": 90},
        {"name": "sex", "type": "category", "categories": ["f", "m"]},
        {"name": "dose", "type": "number", "lower": 0, "upper": 10, "missing": True},
    ],
    "roles": {"id": "row", "patient": "who"},
}
OWN = ["--invitation", "invitation.yaml", "--data", "mrs-smith.csv", "--columns", "columns.yaml", "--dataset", "ward"]
ANSWERS = ["--population", "ward", "--unit", "record", "--epsilon", "3", "--delta", "1e-5", "--labels", "public"]


def write_rows(path, order=range(400)):
    generator = np.random.default_rng(0)
    rows = [
        [f"r{n}", f"p{n // 2}", generator.integers(18, 91), "fm"[n % 2], round(generator.uniform(0, 10), 2), n % 2]
        for n in range(400)
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["row", "who", "age", "sex", "dose", "ill"], *(rows[n] for n in order)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "invitation.yaml").write_text("federation: wards\naddress: hub.example.org:9443\n")
    (tmp_path / "columns.yaml").write_text(dump_tree(SCHEMA))
    write_rows(tmp_path / "mrs-smith.csv")
    return tmp_path


def init(*arguments):
    result = CliRunner().invoke(app, ["site", "init", "north", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return SiteFolder(Path("north").absolute())


def edit(path, **changes):
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def flow(folder):
    schema = load_table_schema(folder / "columns.yaml").public
    card = FlowCard(FlowConfig(scales=[], dense={"blocks": 1, "width": 8}), schema, 0, "public")
    save_flow(folder / "flow.safetensors", card.build(), card)
    return folder / "flow.safetensors"


def data_of(folder):
    config = load_site(folder.config)
    return records_of(DurableLedger.as_found(folder.ledger), config, read_records(config))


def test_a_site_is_made_of_a_table_and_its_schema_file_names_the_classes(here):
    folder = init(*OWN, *ANSWERS)
    config = load_site(folder.config)
    assert (config.data.source, config.data.path, config.data.columns) == (
        "table",
        here / "mrs-smith.csv",
        here / "columns.yaml",
    )
    data = data_of(folder)
    assert data.train.schema.classes == ("no", "yes")
    assert len(data.train) + len(data.test) == 400
    assert not set(data.train.patients) & set(data.test.patients)
    with served(folder):
        described = command(folder, "status")
    assert "mrs-smith" not in json.dumps(described)
    for check in SITE_CHECKS:
        if check.name == "records":
            assert "fault" not in {finding.state for finding in examine([check], Site(folder))}


def test_who_is_tested_on_stays_where_rows_are_sorted_again_or_the_file_becomes_parquet(here):
    import polars as pl

    folder = init(*OWN, *ANSWERS)

    def sides():
        data = data_of(folder)
        return [set(part.ids.tolist()) for part in (data.train, data.test)]

    before = sides()
    write_rows(here / "mrs-smith.csv", order=reversed(range(400)))
    assert sides() == before
    pl.read_csv(here / "mrs-smith.csv").write_parquet(here / "mrs-smith.parquet")
    edit(folder.config, data={"source": "table", "path": "../mrs-smith.parquet", "columns": "../columns.yaml"})
    assert sides() == before


def test_a_site_without_ids_says_where_a_table_has_them_or_tests_on_nobody(here):
    (here / "columns.yaml").write_text(dump_tree(SCHEMA | {"roles": {}, "ignore": ["row", "who"]}))
    with pytest.raises(DataError, match=r"schema file of a table roles\.patient, roles\.id or roles\.split"):
        init(*OWN, *ANSWERS)
    folder = init(*OWN, *ANSWERS, "--test-fraction", "0")
    assert len(data_of(folder).test) == 0


def test_a_release_by_hand_of_a_tables_site_is_of_its_training_rows_alone(here):
    folder = init(*OWN, *ANSWERS)
    edit(folder.policy, min_class_units=0, review=False, public_flows=[flow_sha256(load_flow(flow(here))[0])])
    asked = {"delta": 1e-6, "clip_norm": 4.0}
    made = make_release(here / "flow.safetensors", folder.path, here / "bundle", ReleaseOptions(epsilon=1.0, **asked))
    assert made.manifest.records == len(data_of(folder).train)
    assert load_release(here / "bundle").schema.columns == load_table_schema(here / "columns.yaml").public.columns
    with pytest.raises(CadpError, match="All plans together"):
        make_release(here / "flow.safetensors", folder.path, here / "b", ReleaseOptions(epsilon=9.0, **asked))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--classes", "no,yes"], "names its classes"),
        ([], "Found no --dataset"),
    ],
)
def test_what_a_table_does_not_need_or_lacks_is_said(here, arguments, sentence):
    own = OWN if arguments else OWN[:-2]
    with pytest.raises(InputError, match=sentence):
        init(*own, *ANSWERS, *arguments)


def test_a_schema_file_that_is_gone_or_changed_stops_the_agent(here):
    folder = init(*OWN, *ANSWERS)
    (here / "columns.yaml").rename(here / "gone.yaml")
    with pytest.raises(ConfigError, match="schema file is a file"):
        Agent(folder)


def test_no_row_and_no_name_of_a_patient_is_in_what_a_bad_table_says(here):
    text = (here / "mrs-smith.csv").read_text().replace("r7,p3,", "r7,p3,secret-", 1)
    (here / "mrs-smith.csv").write_text(text)
    with pytest.raises(DataError) as refused:
        init(*OWN, *ANSWERS)
    assert "row 9 of 'mrs-smith.csv'" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_what_was_left_out_of_a_table_is_said_when_its_site_is_made_and_looked_at(here):
    text = (here / "mrs-smith.csv").read_text().replace("r7,p3,", "r7,p3,9", 1)
    (here / "mrs-smith.csv").write_text(text)
    columns = [SCHEMA["columns"][0] | {"outside": "clip"}, *SCHEMA["columns"][1:]]
    (here / "columns.yaml").write_text(dump_tree(SCHEMA | {"columns": columns}))
    result = CliRunner().invoke(app, ["site", "init", "north", *OWN, *ANSWERS])
    said = "Column 'age': 1 value outside the schema was brought to the nearest bound."
    assert said in result.output
    (records,) = [check for check in SITE_CHECKS if check.name == "records"]
    assert said in [finding.found for finding in examine([records], Site(SiteFolder(Path("north").absolute())))]


def test_a_site_may_be_named_in_its_table(here):
    (here / "columns.yaml").write_text(dump_tree(SCHEMA | {"files": "{site}.csv"}))
    folder = init(*OWN, *ANSWERS)
    assert read_records(load_site(folder.config)).site_names == ("mrs-smith",)

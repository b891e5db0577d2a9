"""What the page on records shows is read as it stands, and short."""

import re

import pytest

from cadp_fl.config import load_study
from cadp_fl.data.sources import SOURCES
from cadp_fl.data.table_schema import TableRoles, TableSchema, load_table_schema
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(kind):
    return re.findall(rf"<!-- {kind} -->\n```yaml\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("text", blocks("schema"))
def test_a_schema_file_of_the_page_is_one(tmp_path, text):
    (tmp_path / "columns.yaml").write_text(text)
    schema = load_table_schema(tmp_path / "columns.yaml")
    assert len(schema.public.columns) == len(schema.columns)


@pytest.mark.parametrize("text", blocks("config"))
def test_a_config_of_the_page_is_a_study_of_at_most_25_lines(tmp_path, text):
    assert len(text.splitlines()) <= 25
    (tmp_path / "study.yaml").write_text(text)
    study = load_study(tmp_path / "study.yaml")
    assert study.data.source in SOURCES


def test_every_key_of_a_schema_file_is_on_the_page():
    for model in (TableSchema, TableRoles):
        for key in model.model_fields:
            assert f"`{key}" in PAGE or f"{key}:" in PAGE, key

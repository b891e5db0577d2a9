"""Laws of JSON that another party, or a damaged file, may have written."""

from types import SimpleNamespace

import pytest

from cadp_fl.errors import CadpError, ExchangeError, InputError
from cadp_fl.federated.flower_client import decode
from cadp_fl.federated.journal import Journal
from cadp_fl.json_text import parse_json
from cadp_fl.release.manifest import manifest_from_json
from cadp_fl.report.page import write_report

DEEP = "[" * 100_000


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "", "{", "1" * 5000])
def test_what_is_no_json_that_can_be_followed_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"JSON|Expecting|digits"):
        parse_json(text)


def test_a_site_answers_deep_brackets_with_a_sentence():
    content = SimpleNamespace(config_records={"cadp-json": {"json": DEEP}}, array_records={"cadp-arrays": {}})
    with pytest.raises(ExchangeError, match="A message holds JSON and numpy arrays"):
        decode(content)


def test_a_manifest_of_deep_brackets_is_none():
    with pytest.raises(ExchangeError, match="A manifest follows the schema"):
        manifest_from_json(DEEP)


def test_files_of_deep_brackets_are_named(tmp_path):
    for name in ("summary.json", "privacy.json", "metrics.jsonl", "exchanges.jsonl"):
        (tmp_path / name).write_text(DEEP + "\n")
    with pytest.raises(InputError, match=r"A run folder holds summary\.json"):
        write_report(tmp_path)
    with pytest.raises(CadpError):
        Journal(tmp_path / "exchanges.jsonl")

"""Strings as TOML, by the two readers that read them: TOML's own, and Flower's command line."""

import tomllib

import pytest
from flwr.common.config import parse_config_args
from hypothesis import example, given
from hypothesis import strategies as st

from cadp_fl.study.toml import toml_string


@given(st.text())
@example('/data/\U0001f600/it\'s "here" = \\ \x00\x7f\x85\u2028')
@example("")
def test_every_text_is_read_as_it_was(text):
    written = toml_string(text)
    assert written.isascii()
    assert tomllib.loads(f"a = {written}") == {"a": text}
    assert parse_config_args([f"agent={written} site={written}"]) == {"agent": text, "site": text}


def test_what_is_no_text_is_never_written():
    with pytest.raises(ValueError, match="surrogates"):
        toml_string("/data/l\udce4ger")

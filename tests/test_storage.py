"""What is stored says what it is; anything else is refused by what was found, with the way out."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from cadp_fl.errors import DataError
from cadp_fl.standalone.predict import predict
from cadp_fl.storage import read_description, save_weights

WEIGHTS = {"w": np.zeros(3, np.float32)}


@pytest.mark.parametrize("kind", ["flow", "classifier"])
@pytest.mark.parametrize(
    "contents", [b"", b"abc", b"a text file, of some length\n" * 9, b"PK\x03\x04" * 99, b"\x00" * 64]
)
def test_a_file_of_something_else_is_refused_in_words_of_our_own(tmp_path, kind, contents):
    (tmp_path / "x").write_bytes(contents)
    with pytest.raises(DataError) as refused:
        read_description(tmp_path / "x", kind=kind)
    assert f"A stored {kind} is a safetensors file. '{tmp_path / 'x'}' holds something else, or is cut off" in str(
        refused.value
    )
    assert "header" not in str(refused.value)
    assert f"models/{kind}" in str(refused.value)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    save_weights(tmp_path / "x", WEIGHTS, kind="flow", description={})
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(DataError, match="or is cut off"):
        read_description(tmp_path / "x", kind="flow")


@pytest.mark.parametrize(("kind", "asked"), [("flow", "classifier"), ("classifier", "flow")])
def test_one_kind_in_place_of_another_is_named(tmp_path, kind, asked):
    save_weights(tmp_path / "x", WEIGHTS, kind=kind, description={})
    with pytest.raises(DataError, match=f"A stored {asked} is asked for. .* is a stored {kind}; give a {asked}"):
        read_description(tmp_path / "x", kind=asked)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "cadp-fl \x1b[31m 1"}])
def test_a_file_of_other_software_is_named_as_that_and_not_repeated(tmp_path, metadata):
    save_file(WEIGHTS, tmp_path / "x", metadata)
    with pytest.raises(DataError, match="is a safetensors file of other software; give a flow") as refused:
        read_description(tmp_path / "x", kind="flow")
    assert "\x1b" not in str(refused.value)


def test_another_format_is_named_as_another_version(tmp_path):
    save_file(WEIGHTS, tmp_path / "x", {"format": "cadp-fl flow 2"})
    with pytest.raises(DataError, match="stored by another version of cadp-fl, in format 2"):
        read_description(tmp_path / "x", kind="flow")


def test_predict_says_that_a_flow_is_no_classifier(tmp_path):
    save_weights(tmp_path / "flow.safetensors", WEIGHTS, kind="flow", description={})
    with pytest.raises(DataError, match=r"is a stored flow; give a classifier \(a run keeps its own at models/classif"):
        predict(tmp_path / "flow.safetensors", [tmp_path], resize=False, device="cpu")

"""A stored answer is given again as it was, or not at all."""

import hashlib
import os
import stat

import numpy as np
import pytest

from cadp_fl import outputs
from cadp_fl.errors import LedgerError
from cadp_fl.site.protocol import Reply
from cadp_fl.site.reply_store import ReplyStore

REPLY = Reply(
    {"structure": "abc", "figures": {"ünder": [1, 2.5, None, True]}},
    {
        "weights": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
        "counts": np.array([], dtype=np.int64),
        "shard": np.frombuffer(b"\x00\xff", dtype=np.uint8),
        "scale": np.array(2.0, dtype=np.float64),
        "mask": np.array([True, False]),
    },
)


@pytest.fixture
def answers(tmp_path):
    return ReplyStore(tmp_path / "answers")


def only_file(tmp_path):
    (path,) = (tmp_path / "answers").iterdir()
    return path


def test_an_answer_comes_back_as_it_was(answers, tmp_path):
    sha256 = answers.store("request/1", REPLY)
    loaded = ReplyStore(tmp_path / "answers").load("request/1", sha256)
    assert loaded.content == REPLY.content
    assert loaded.arrays.keys() == REPLY.arrays.keys()
    for name, array in REPLY.arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
        assert (loaded.arrays[name].dtype, loaded.arrays[name].shape) == (array.dtype, array.shape)


def test_the_same_answer_is_the_same_bytes_under_their_sha256(answers, tmp_path):
    backwards = Reply(dict(reversed(REPLY.content.items())), dict(reversed(REPLY.arrays.items())))
    assert answers.store("a", REPLY) == answers.store("a", backwards)
    path = only_file(tmp_path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == answers.store("a", REPLY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_another_answer_does_not_take_the_place_of_a_stored_one(answers):
    first = answers.store("a", REPLY)
    second = answers.store("a", Reply({"structure": "other"}))
    assert answers.load("a", first).content == REPLY.content
    assert answers.load("a", second).content == {"structure": "other"}


def test_a_request_id_is_no_path(answers, tmp_path):
    for request in ("../../outside", "/etc/passwd", "", "\ud800", "x" * 1000):
        answers.load(request, answers.store(request, Reply({"a": 1})))
    assert {path.name for path in tmp_path.iterdir()} == {"answers"}


def test_an_answer_of_another_request_is_not_given(answers):
    sha256 = answers.store("a", REPLY)
    with pytest.raises(LedgerError, match="cannot be read"):
        answers.load("b", sha256)


@pytest.mark.parametrize("change", ["flipped", "cut", "empty", "longer"])
def test_a_damaged_answer_is_refused(answers, tmp_path, change):
    sha256 = answers.store("a", REPLY)
    path = only_file(tmp_path)
    data = path.read_bytes()
    changed = {
        "flipped": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "empty": b"", "longer": data + b"\0",
    }  # fmt: skip
    path.write_bytes(changed[change])
    with pytest.raises(LedgerError, match="was changed"):
        answers.load("a", sha256)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}", b"\x05" + b"\0" * 7 + b"[[[[["], ids=repr
)
def test_bytes_that_are_no_answer_are_refused_even_under_their_own_hash(answers, tmp_path, data):
    answers.store("a", REPLY)
    sha256 = hashlib.sha256(data).hexdigest()
    path = only_file(tmp_path)
    path.with_name(f"{path.name[:33]}{sha256}.safetensors").write_bytes(data)
    with pytest.raises(LedgerError, match="one of cadp-fl's"):
        answers.load("a", sha256)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "linked folder"])
def test_only_a_plain_file_in_a_plain_folder_is_an_answer(answers, tmp_path, kind):
    sha256 = answers.store("a", REPLY)
    path = only_file(tmp_path)
    if kind == "linked folder":
        path.parent.rename(tmp_path / "elsewhere")
        path.parent.symlink_to(tmp_path / "elsewhere")
    else:
        path.rename(tmp_path / "elsewhere")
        {
            "link": lambda: path.symlink_to(tmp_path / "elsewhere"),
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
        }[kind]()
    with pytest.raises(LedgerError):
        answers.load("a", sha256)


def test_an_answer_above_the_limit_is_neither_stored_nor_read(answers, tmp_path):
    small = ReplyStore(tmp_path / "answers", limit=1000)
    with pytest.raises(LedgerError, match="at most 1000 bytes"):
        small.store("a", Reply({}, {"x": np.zeros(1000)}))
    sha256 = answers.store("a", Reply({}, {"x": np.zeros(1 << 22)}))
    with pytest.raises(LedgerError, match="at most 1000 bytes"):
        small.load("a", sha256)


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"x": object()}),
        Reply({"x": {1, 2}}),
        Reply({}, {"x": np.array(["text"])}),
        Reply({}, {"x": np.array([None])}),
        Reply({}, {"__metadata__": np.zeros(1)}),
    ],
)
def test_what_is_neither_json_nor_numbers_is_not_stored(answers, reply, tmp_path):
    with pytest.raises(LedgerError):
        answers.store("a", reply)
    assert not (tmp_path / "answers").exists()


@pytest.mark.parametrize("answer", ["", "../../x", "A" * 64, "0" * 63 + "/"])
def test_an_answer_is_named_by_a_sha256(answers, answer):
    with pytest.raises(LedgerError, match="named by its sha256"):
        answers.load("a", answer)


def test_an_answer_is_synced_then_named_then_its_folder_is_synced(answers, monkeypatch):
    seen = []
    real = {"fsync": os.fsync, "replace": os.replace}

    def fsync(handle):
        seen.append("sync folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync file")
        real["fsync"](handle)

    def replace(source, target, **named):
        seen.append("rename")
        real["replace"](source, target, **named)

    monkeypatch.setattr(outputs.os, "fsync", fsync)
    monkeypatch.setattr(outputs.os, "replace", replace)
    answers.store("a", REPLY)
    assert seen == ["sync file", "rename", "sync folder"]


def test_an_answer_that_cannot_be_stored_leaves_nothing(answers, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.os, "fsync", full)
    with pytest.raises(LedgerError, match="No space left on device"):
        answers.store("a", REPLY)
    assert not list((tmp_path / "answers").iterdir())

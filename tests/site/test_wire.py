"""Laws of what crosses the agent's socket."""

import socket
import threading

import numpy as np
import pytest

from cadp_fl.site.wire import MAX_HEADER_BYTES, WireError, pack, receive, send, unpack

ARRAYS = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(3, dtype=np.int64),
    "empty": np.zeros((0, 4), dtype=np.uint8),
    "flags": np.array([True, False]),
}


def _both_ends():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def test_what_is_packed_comes_back():
    content, arrays = unpack(pack({"a": [1, None, "ü"]}, ARRAYS, limit=10_000))
    assert content == {"a": [1, None, "ü"]}
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_an_array_in_any_order_keeps_its_values():
    array = np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4))
    _, arrays = unpack(pack({}, {"x": array[:, ::2]}, limit=10_000))
    np.testing.assert_array_equal(arrays["x"], array[:, ::2])


def test_arrays_that_came_can_be_written_to():
    _, arrays = unpack(bytearray(pack({}, {"x": np.zeros(3)}, limit=10_000)))
    arrays["x"][0] = 1  # torch refuses to share memory that cannot be


@pytest.mark.parametrize(
    "odd", [np.array([object()]), np.array(["text"]), np.array([1j])], ids=["objects", "text", "complex"]
)
def test_only_arrays_of_numbers_are_packed(odd):
    with pytest.raises(WireError, match="no array of numbers"):
        pack({}, {"odd": odd}, limit=10_000)


def test_what_is_larger_than_the_limit_is_not_packed():
    with pytest.raises(WireError, match="limit"):
        pack({}, {"x": np.zeros(1000)}, limit=7999)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 8,
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}",
        b"\x80\x04\x95" + b"pickle" * 10,
        (2).to_bytes(8, "little") + b"{}",
        (39).to_bytes(8, "little") + b'{"__metadata__":{"content":"[1, 2, 3]"}}',
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        pack({}, ARRAYS, limit=10_000)[:-1],
        pack({}, ARRAYS, limit=10_000) + b"x",
    ],
)
def test_other_bytes_are_refused(data):
    with pytest.raises(WireError):
        unpack(data)


def test_a_message_crosses_a_socket_in_pieces():
    ours, theirs = _both_ends()
    message = pack({}, {"x": np.zeros(300_000)}, limit=10_000_000)
    thread = threading.Thread(target=send, args=(ours, message))
    with ours, theirs:
        thread.start()
        assert bytes(receive(theirs, limit=10_000_000)) == message
        thread.join()


def test_a_length_beyond_the_limit_is_refused_before_anything_is_allocated():
    ours, theirs = _both_ends()
    with ours, theirs:
        ours.sendall((1 << 62).to_bytes(8, "big"))
        with pytest.raises(WireError, match="limit"):
            receive(theirs, limit=1000)


def test_a_message_that_ends_early_is_refused():
    ours, theirs = _both_ends()
    with theirs:
        with ours:
            ours.sendall((100).to_bytes(8, "big") + b"x" * 99)
        with pytest.raises(WireError, match="99 of 100"):
            receive(theirs, limit=1000)


def test_a_sender_that_drips_runs_out_of_time():
    ours, theirs = _both_ends()
    with ours, theirs:
        ours.sendall((100).to_bytes(8, "big") + b"x")
        with pytest.raises(TimeoutError):
            receive(theirs, limit=1000, seconds=0.05)

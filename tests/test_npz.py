import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cadp_fl import npz as module
from cadp_fl.npz import NpzError, open_npz

LIMIT = 1 << 20


def packed(compress=True, **named):
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, **named)
    return buffer.getvalue()


def zipped(**members):
    """Return a zip whose members are raw bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(shape, descr="|u1", values=b"", version=(1, 0)):
    """Return a member with a header that says anything."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + values


def read(data, name="x", limit=LIMIT):
    with open_npz(data, limit=limit) as npz:
        return npz.array(name)


PLAIN = st.sampled_from([np.uint8, np.int64, ">i4", np.float32, np.bool_, "<U3", "S2"])


@given(
    array=PLAIN.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0))),
    fortran=st.booleans(),
    compress=st.booleans(),
)
def test_what_numpy_saves_is_read_back(array, fortran, compress):
    found = read(packed(compress, x=np.array(array, order="F" if fortran else "C")))
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()
    assert found.flags.c_contiguous


def test_a_file_is_read_as_memory_is(tmp_path):
    (tmp_path / "x.npz").write_bytes(packed(x=np.arange(5), y=np.zeros(2)))
    with open_npz(tmp_path / "x.npz", limit=LIMIT) as npz:
        assert npz.names == ("x", "y")
        assert npz.array("x").tolist() == [0, 1, 2, 3, 4]
        assert (npz.header("y").shape, npz.header("y").dtype) == ((2,), np.float64)


def test_an_array_longer_than_one_read_is_whole():
    array = np.random.default_rng(0).integers(0, 256, 3 * module.MAX_READ_BYTES + 7, dtype=np.uint8)
    for compress in (True, False):
        assert np.array_equal(read(packed(compress, x=array), limit=1 << 30), array)


def test_arrays_are_joined_along_their_first_axis():
    one, two = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(3, dtype=np.uint8).reshape(1, 3)
    with open_npz(packed(one=np.asfortranarray(one), two=two, three=one.T, four=np.uint8(3)), limit=LIMIT) as npz:
        assert npz.array("one", "two").tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
        for other in ("three", "four"):
            with pytest.raises(NpzError, match=f"one and {other} differ in shape or type"):
                npz.array("one", other)


class Trap:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def test_a_pickle_is_refused_and_not_opened():
    with pytest.raises(NpzError, match="x holds Python objects"):
        read(packed(x=np.array([Trap()], dtype=object)))
    with pytest.raises(NpzError, match="x cannot be read"):
        read(zipped(x=pickle.dumps(Trap())))


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (npy((10**15,)), "truncated or too long"),
        (npy((2,), values=b"1"), "truncated or too long"),
        (npy((2,), values=b"123"), "truncated or too long"),
        (npy((2,), values=b"12", version=(3, 0)), r"npy format \(3, 0\)"),
        (npy((-2,), values=b"12"), "no plain array"),
        (npy((2,), descr=[("a", "|u1")], values=b"12"), "no plain array"),
        (npy((10**15,), descr="|S0"), "no plain array"),
        (npy((2,), descr="<M8[s]", values=bytes(16)), "no plain array"),
        (npy((0, 10**30)), "x cannot be read"),
        (npy((2,), descr="nonsense", values=b"12"), "x cannot be read"),
        (npy("((" * 4000), "x cannot be read"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + bytes(500_000), "x cannot be read"),
        (b"\x93NUM", "x cannot be read"),
        (b"", "x cannot be read"),
    ],
)
def test_a_member_that_is_not_what_it_says_is_refused(member, reason):
    with pytest.raises(NpzError, match=reason) as caught:
        read(zipped(x=member))
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_a_header_of_the_second_version_is_read():
    assert read(zipped(x=npy((2,), values=b"12", version=(2, 0)))).tolist() == [49, 50]


def test_a_bomb_is_refused_before_it_unpacks():
    bomb = packed(x=np.zeros(50_000_000, np.uint8))
    assert len(bomb) < 60_000
    with pytest.raises(NpzError, match="it unpacks to 50000128 bytes, and 1048576 is the limit"):
        read(bomb)


def test_the_limit_holds_for_all_arrays_together():
    data = packed(x=np.zeros(600_000, np.uint8), y=np.zeros(600_000, np.uint8))
    with pytest.raises(NpzError, match="is the limit"):
        read(data)
    assert len(read(data, limit=2 << 20)) == 600_000


def test_a_directory_that_lies_about_a_size_is_found():
    """The zip's directory says 130 bytes, and so does the header; 10,000 unpack."""
    data = bytearray(zipped(x=npy((2,), values=bytes(10_000))))
    short = len(npy((2,), values=bytes(2)))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", short)
    with pytest.raises(NpzError, match="Bad CRC-32"):
        read(bytes(data))


def test_a_stream_that_ends_early_leaves_no_value_unread():
    """Header and directory promise 10,000 bytes, 2 unpack, and their checksum is right."""
    data = bytearray(zipped(x=npy((10_000,), values=b"12")))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", len(npy((10_000,), values=bytes(10_000))))
    with pytest.raises(NpzError, match="x is truncated"):
        read(bytes(data))


def test_a_directory_without_end_is_refused_before_it_is_read(monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(100):
            archive.writestr(f"{number}.npy", b"")
    monkeypatch.setattr(module, "MAX_READ_BYTES", 1000)
    with pytest.raises(NpzError, match="directory is too long"):
        read(buffer.getvalue())


@pytest.mark.parametrize("compress", [True, False])
def test_a_changed_byte_of_the_values_is_found(compress):
    data = bytearray(packed(compress, x=np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)))
    data[3000] ^= 1
    with pytest.raises(NpzError, match=r"x cannot be read|x is truncated"):
        read(bytes(data))


@given(data=st.binary(max_size=200))
def test_garbage_is_one_exception(data):
    with pytest.raises(NpzError):
        read(data)


WHOLE = packed(x=np.arange(300, dtype=np.uint8))


@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_file_that_is_cut_anywhere_is_refused(cut):
    with pytest.raises(NpzError):
        read(WHOLE[:cut])


@given(at=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_a_changed_byte_anywhere_is_refused_or_without_effect(at, value):
    changed = bytearray(WHOLE)
    changed[at] = value
    try:
        with open_npz(bytes(changed), limit=LIMIT) as npz:
            found = [npz.array(name) for name in npz.names]
    except NpzError:
        return
    assert [array.tobytes() for array in found] in ([], [np.arange(300, dtype=np.uint8).tobytes()])


def test_no_member_is_read_twice_under_one_name():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.npy", npy((1,), values=b"1"))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("x.npy", npy((1,), values=b"2"))
    with pytest.raises(NpzError, match="there twice"):
        read(buffer.getvalue())


@pytest.mark.parametrize(
    ("name", "method", "reason"),
    [("x.txt", zipfile.ZIP_STORED, "'x.txt', which is no .npy"), ("x.npy", zipfile.ZIP_LZMA, "numpy does not write")],
)
def test_what_numpy_would_not_write_is_refused(name, method, reason):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, npy((1,), values=b"1"))
    with pytest.raises(NpzError, match=reason):
        read(buffer.getvalue())


def test_a_listing_is_short_and_printable():
    with open_npz(zipped(**{f"\x1b[31m{number}": b"" for number in range(20)}), limit=LIMIT) as npz:
        assert npz.listing.isprintable()
        assert npz.listing.endswith("11, ...")
    with open_npz(zipped(), limit=LIMIT) as npz:
        assert npz.listing == "nothing"


def test_a_file_that_cannot_be_opened_is_one_exception(tmp_path):
    with pytest.raises(NpzError, match="No such file or directory"):
        read(tmp_path / "none.npz")
    with pytest.raises(NpzError, match="Is a directory"):
        read(tmp_path)

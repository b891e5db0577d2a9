import io
import json
import os
import zipfile

import numpy as np
import pytest

from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import ExchangeError, InputError
from cadp_fl.release.bundle import (
    Bundle,
    ReleaseClaim,
    ReleaseParameters,
    manifest_from_json,
    manifest_to_json,
    pack,
    read_bundle,
    unpack,
    write_bundle,
)

SCHEMA = Schema(name="x", shape=(1, 4, 4), classes=("a", "b", "c"))


def records(count=25):
    generator = np.random.default_rng(0)
    return Dataset(
        SCHEMA, generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8), generator.integers(0, 3, count)
    )


def bundle(data=None):
    return pack(
        data or records(),
        site="north",
        mechanism="gaussian",
        parameters=ReleaseParameters(clip_norm=2, noise_std=3, latent_dims=4, dims=16, shrinkage="typical-set"),
        noise="seeded",
        claim=ReleaseClaim(
            guarantee="given-flow", relation="r", epsilon=None, epsilon_if_flow_were_fixed=3.0, delta=1e-5
        ),
        flow_sha256="0" * 64,
        event_id="cadp-1",
        shard_records=10,
    )


def forged(shards=None, **changes):
    """Return a bundle whose manifest vouches for other bytes or says something else."""
    import hashlib

    original = bundle()
    tree = original.manifest.model_dump(mode="json")
    shards = shards or original.shards
    for entry, data in zip(tree["shards"], shards, strict=False):
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    return Bundle(manifest_from_json(json.dumps(tree | changes)), tuple(shards))


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_what_was_packed_is_read_back_and_the_bytes_repeat(tmp_path):
    data = records()
    write_bundle(bundle(data), tmp_path / "north")
    read = read_bundle(tmp_path / "north")
    assert read == bundle(data)
    unpacked = unpack(read)
    assert np.array_equal(unpacked.images, data.images)
    assert np.array_equal(unpacked.labels, data.labels)
    assert [shard.records for shard in read.manifest.shards] == [10, 10, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["north"]


def test_a_manifest_says_nothing_of_time_or_order():
    assert set(json.loads(manifest_to_json(bundle().manifest))) == {
        "schema_version", "site", "dataset", "mechanism", "parameters", "noise", "claim", "flow_sha256", "event_id",
        "released_labels", "shards",
    }  # fmt: skip


def test_shards_rest_as_uint8():
    with np.load(io.BytesIO(bundle().shards[0]), allow_pickle=False) as stored:
        assert stored["images"].dtype == np.uint8


def test_a_bundle_is_never_overwritten(tmp_path):
    write_bundle(bundle(), tmp_path / "north")
    with pytest.raises(InputError, match="never overwritten"):
        write_bundle(bundle(), tmp_path / "north")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_bundle(bundle(), tmp_path / "north")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_byte_is_found(tmp_path):
    write_bundle(bundle(), tmp_path / "north")
    shard = tmp_path / "north" / "shards" / "00001.npz"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ExchangeError, match="Shard 00001"):
        read_bundle(tmp_path / "north")


@pytest.mark.parametrize("target", ["manifest.json", "shards/00000.npz", "shards"])
def test_no_link_is_followed(tmp_path, target):
    write_bundle(bundle(), tmp_path / "real")
    write_bundle(bundle(), tmp_path / "north")
    path = tmp_path / "north" / target
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink()
    path.symlink_to(tmp_path / "real" / target)
    with pytest.raises(ExchangeError, match="missing or a link"):
        read_bundle(tmp_path / "north")


@pytest.mark.parametrize("name", ["../../etc.npz", "/etc/x.npz", "0.npz", "00000.npz/../x"])
def test_a_shard_name_leads_nowhere_else(name):
    tree = json.loads(manifest_to_json(bundle().manifest))
    tree["shards"][0]["name"] = name
    with pytest.raises(ExchangeError, match=r"shards.0.name"):
        manifest_from_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": np.zeros((10, 1, 4, 4), np.float32), "labels": np.zeros(10, np.int64)}, "images is float32"),
        ({"images": np.zeros((10, 1, 4, 5), np.uint8), "labels": np.zeros(10, np.int64)}, "of shape"),
        ({"images": np.zeros((11, 1, 4, 4), np.uint8), "labels": np.zeros(11, np.int64)}, "of shape"),
        ({"images": np.zeros((10, 1, 4, 4), np.uint8), "labels": np.full(10, 3)}, "one of 3 classes"),
        ({"images": np.zeros((10, 1, 4, 4), np.uint8), "labels": np.full(10, -1)}, "one of 3 classes"),
        ({"images": np.zeros((10, 1, 4, 4), np.uint8)}, "it holds"),
        ({"images": np.zeros((10, 1, 4, 4), np.uint8), "labels": np.array([None] * 10)}, "labels"),
    ],
)
def test_a_shard_that_its_manifest_vouches_for_is_still_checked(arrays, reason):
    original = bundle().shards
    with pytest.raises(ExchangeError, match=reason):
        unpack(forged([npz(**arrays), *original[1:]]))


def test_a_bomb_is_refused_before_it_unpacks():
    """A header that promises more than the manifest is refused; so is content beyond the header."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape, dtype in (("images", (10, 1, 4, 4), np.uint8), ("labels", (10,), np.int64)):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.zeros(shape, dtype))
                member.write(bytes(50_000_000))
    with pytest.raises(ExchangeError, match="truncated or too long"):
        unpack(forged([buffer.getvalue(), *bundle().shards[1:]]))


@pytest.mark.parametrize("data", [b"", b"not a zip", bundle().shards[0][:200]])
def test_garbage_is_refused(data):
    with pytest.raises(ExchangeError):
        unpack(forged([data or b"x", *bundle().shards[1:]]))


def test_counts_must_be_those_of_the_released_labels():
    with pytest.raises(ExchangeError, match="counts"):
        unpack(forged(released_labels={"a": 1, "b": 2, "c": 22}))


def test_a_missing_shard_is_noticed():
    with pytest.raises(ExchangeError, match=r"names 3 shards\. Found 2"):
        unpack(Bundle(bundle().manifest, bundle().shards[:2]))


UNPROTECTED = {"clip_norm": None, "noise_std": None}
NO_CLAIM = {"guarantee": "none", "epsilon_if_flow_were_fixed": None}


def told(mechanism, parameters, claim=None):
    """Return a manifest's JSON with other parameters and another claim."""
    tree = json.loads(manifest_to_json(bundle().manifest))
    tree["mechanism"] = mechanism
    tree["parameters"] |= parameters
    tree["claim"] |= claim or {}
    return json.dumps(tree)


def test_a_manifest_says_that_nothing_was_clipped_or_noised():
    manifest = manifest_from_json(told("none", UNPROTECTED, NO_CLAIM))
    assert not manifest.parameters.protected
    assert manifest_from_json(manifest_to_json(manifest)) == manifest


def test_a_manifest_of_laplace_noise_has_its_scale_beside_its_standard_deviation():
    manifest = manifest_from_json(told("laplace", {"noise_scale": 3.0, "noise_std": 3.0 * 2**0.5}))
    assert manifest.parameters.noise_scale == 3.0


@pytest.mark.parametrize(
    ("mechanism", "parameters", "claim", "reason"),
    [
        ("none", {}, NO_CLAIM, "has neither clip nor noise"),
        ("gaussian", UNPROTECTED, NO_CLAIM, "has neither clip nor noise"),
        ("none", UNPROTECTED, None, "carry no guarantee"),
        ("gaussian", {"noise_std": None}, None, "clipped and noised, or neither"),
        ("gaussian", {"clip_norm": None}, None, "clipped and noised, or neither"),
        ("laplace", {"noise_scale": 3.0, "noise_std": 3.0}, None, "times its scale"),
        ("none", UNPROTECTED | {"noise_scale": 3.0}, NO_CLAIM, "times its scale"),
        ("gaussian", {"noise_std": 0.0}, None, "greater than 0"),
    ],
)
def test_a_manifest_whose_numbers_contradict_each_other_is_refused(mechanism, parameters, claim, reason):
    with pytest.raises(ExchangeError, match=reason):
        manifest_from_json(told(mechanism, parameters, claim))


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"schema_version": 2}', "x" * (9 << 20)])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(ExchangeError):
        manifest_from_json(text)

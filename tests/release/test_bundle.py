import hashlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
import torch

from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import ExchangeError, InputError
from cadp_fl.release.bundle import BundleWriter, open_bundle, write_bundle
from cadp_fl.release.dataset import load_release
from cadp_fl.release.manifest import (
    ReleaseClaim,
    ReleaseHead,
    ReleaseParameters,
    manifest_from_json,
    manifest_to_json,
)

SCHEMA = Schema(name="x", shape=(1, 4, 4), classes=("a", "b", "c"))


def records(count=25):
    generator = np.random.default_rng(0)
    return Dataset(
        SCHEMA, generator.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8), generator.integers(0, 3, count)
    )


HEAD = ReleaseHead(
    site="north",
    dataset=SCHEMA,
    mechanism="gaussian",
    parameters=ReleaseParameters(clip_norm=2, noise_std=3, latent_dims=4, dims=16, shrinkage="typical-set"),
    noise="seeded",
    claim=ReleaseClaim(guarantee="given-flow", relation="r", epsilon=None, epsilon_if_flow_were_fixed=3.0, delta=1e-5),
    flow_sha256="0" * 64,
    event_id="cadp-1",
)


def parts(data):
    return [data.select(np.arange(start, min(start + 10, len(data)))) for start in range(0, len(data), 10)]


def written(folder, data=None, **changes):
    """Write a bundle, and return it."""
    write_bundle(HEAD.model_copy(update=changes), parts(data or records()), folder)
    return open_bundle(folder)


def shards(bundle):
    return [bundle.data(shard.name) for shard in bundle.manifest.shards]


def joined(bundle):
    read = list(bundle.parts())
    return np.concatenate([part.images for part in read]), np.concatenate([part.labels for part in read])


def forged(folder, first=None, **changes):
    """Return a bundle whose manifest vouches for another first shard, or says something else."""
    original = written(folder)
    tree = original.manifest.model_dump(mode="json")
    if first is not None:
        (folder / "shards" / "00000.npz").write_bytes(first)
        tree["shards"][0] |= {"sha256": hashlib.sha256(first).hexdigest(), "bytes": len(first)}
    (folder / "manifest.json").write_text(json.dumps(tree | changes))
    return open_bundle(folder)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_what_was_written_is_read_back_and_the_bytes_repeat(tmp_path):
    data = records()
    first, second = written(tmp_path / "north", data), written(tmp_path / "again", data)
    assert first.manifest == second.manifest
    assert shards(first) == shards(second)
    images, labels = joined(first)
    assert np.array_equal(images, data.images)
    assert np.array_equal(labels, data.labels)
    assert [shard.records for shard in first.manifest.shards] == [10, 10, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "north"]


def test_released_records_are_a_torch_data_set(tmp_path):
    data, other = records(), records(7)
    written(tmp_path / "north", data)
    written(tmp_path / "south", other, site="south")
    read = load_release(tmp_path / "north", str(tmp_path / "south"))
    assert len(read) == 32
    assert [manifest.site for manifest in read.manifests] == ["north", "south"]
    image, label = read[26]
    assert (image.dtype, tuple(image.shape), label) == (torch.float32, (1, 4, 4), int(other.labels[1]))
    assert np.array_equal((image * 255).round().to(torch.uint8).numpy(), other.images[1])
    batch, labels = next(iter(torch.utils.data.DataLoader(read, batch_size=5)))
    assert (tuple(batch.shape), labels.tolist()) == ((5, 1, 4, 4), data.labels[:5].tolist())


def test_releases_of_two_schemas_are_not_read_as_one(tmp_path):
    written(tmp_path / "north")
    renamed = SCHEMA.model_copy(update={"name": "y"})
    write_bundle(
        HEAD.model_copy(update={"dataset": renamed}), [Dataset(renamed, *_arrays(records(3)))], tmp_path / "south"
    )
    with pytest.raises(InputError, match="share one schema"):
        load_release(tmp_path / "north", tmp_path / "south")
    with pytest.raises(InputError, match="Found none"):
        load_release()


def _arrays(data):
    return data.images, data.labels


def test_a_manifest_says_nothing_of_time_or_order(tmp_path):
    assert set(json.loads(manifest_to_json(written(tmp_path / "north").manifest))) == {
        "schema_version", "site", "dataset", "mechanism", "parameters", "noise", "claim", "flow_sha256", "event_id",
        "released_labels", "shards",
    }  # fmt: skip


def test_shards_rest_as_uint8(tmp_path):
    with np.load(io.BytesIO(shards(written(tmp_path / "north"))[0]), allow_pickle=False) as stored:
        assert stored["images"].dtype == np.uint8


def test_a_bundle_is_never_overwritten(tmp_path):
    written(tmp_path / "north")
    with pytest.raises(InputError, match="never overwritten"):
        written(tmp_path / "north")


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        written(tmp_path / "north")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_byte_is_found(tmp_path):
    written(tmp_path / "north")
    shard = tmp_path / "north" / "shards" / "00001.npz"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ExchangeError, match="Shard 00001"):
        joined(open_bundle(tmp_path / "north"))


@pytest.mark.parametrize("target", ["manifest.json", "shards/00000.npz", "shards"])
def test_no_link_is_followed(tmp_path, target):
    written(tmp_path / "real")
    written(tmp_path / "north")
    path = tmp_path / "north" / target
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink()
    path.symlink_to(tmp_path / "real" / target)
    with pytest.raises(ExchangeError, match="missing or a link"):
        joined(open_bundle(tmp_path / "north"))


@pytest.mark.parametrize("name", ["../../etc.npz", "/etc/x.npz", "0.npz", "00000.npz/../x"])
def test_a_shard_name_leads_nowhere_else(name, tmp_path):
    tree = json.loads(manifest_to_json(written(tmp_path / "north").manifest))
    tree["shards"][0]["name"] = name
    with pytest.raises(ExchangeError, match=r"shards.0.name"):
        manifest_from_json(json.dumps(tree))


NAMED = SCHEMA.model_copy(update={"attributes": ("hat", "young")})


def attributed(count=25):
    attributes = np.random.default_rng(1).integers(0, 2, (count, 2), dtype=np.uint8)
    return Dataset(NAMED, *_arrays(records(count)), attributes=attributes)


def test_a_release_carries_the_attributes_of_its_records(tmp_path):
    data = attributed()
    bundle = written(tmp_path / "north", data, dataset=NAMED)
    assert np.array_equal(np.concatenate([part.attributes for part in bundle.parts()]), data.attributes)
    assert load_release(tmp_path / "north").attributes.tolist() == data.attributes.tolist()
    assert bundle.manifest.dataset.attributes == ("hat", "young")
    assert shards(bundle) == shards(written(tmp_path / "again", data, dataset=NAMED))


def test_a_release_without_attributes_is_written_as_it_was_before_there_were_any(tmp_path):
    bundle = written(tmp_path / "north")
    assert "attributes" not in (tmp_path / "north" / "manifest.json").read_text()
    with np.load(io.BytesIO(shards(bundle)[0]), allow_pickle=False) as stored:
        assert set(stored) == {"images", "labels"}
    assert load_release(tmp_path / "north").attributes is None


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (None, "images and labels and attributes.*it holds images, labels"),
        (np.zeros((10, 2), np.int64), "attributes is int64"),
        (np.zeros((10, 3), np.uint8), "of shape"),
        (np.zeros((9, 2), np.uint8), "of shape"),
        (np.full((10, 2), 2, np.uint8), "A released attribute is 0 or 1"),
    ],
)
def test_attributes_that_a_manifest_vouches_for_are_still_checked(attributes, reason, tmp_path):
    arrays = {"images": np.zeros((10, 1, 4, 4), np.uint8), "labels": np.zeros(10, np.int64)}
    changed = npz(**arrays, **({} if attributes is None else {"attributes": attributes}))
    with pytest.raises(ExchangeError, match=reason):
        joined(forged(tmp_path / "north", changed, dataset=NAMED.model_dump(mode="json")))


def test_attributes_that_no_schema_names_are_refused(tmp_path):
    arrays = {"images": np.zeros((10, 1, 4, 4), np.uint8), "labels": np.zeros(10, np.int64)}
    with pytest.raises(ExchangeError, match="it holds images, labels, attributes"):
        joined(forged(tmp_path / "north", npz(**arrays, attributes=np.zeros((10, 2), np.uint8))))


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
def test_a_shard_that_its_manifest_vouches_for_is_still_checked(arrays, reason, tmp_path):
    with pytest.raises(ExchangeError, match=reason):
        joined(forged(tmp_path / "north", npz(**arrays)))


def test_a_bomb_is_refused_before_it_unpacks(tmp_path):
    """A header that promises more than the manifest is refused; so is content beyond the header."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape, dtype in (("images", (10, 1, 4, 4), np.uint8), ("labels", (10,), np.int64)):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.zeros(shape, dtype))
                member.write(bytes(50_000_000))
    with pytest.raises(ExchangeError, match="truncated or too long"):
        joined(forged(tmp_path / "north", buffer.getvalue()))


@pytest.mark.parametrize("data", [b"x", b"not a zip", npz(images=np.zeros(9))[:100]])
def test_garbage_is_refused(data, tmp_path):
    with pytest.raises(ExchangeError):
        joined(forged(tmp_path / "north", data))


def test_counts_must_be_those_of_the_released_labels(tmp_path):
    with pytest.raises(ExchangeError, match="counts"):
        joined(forged(tmp_path / "north", released_labels={"a": 1, "b": 2, "c": 22}))


def test_a_missing_shard_is_noticed(tmp_path):
    made = written(tmp_path / "north")
    (tmp_path / "north" / "shards" / "00002.npz").unlink()
    with pytest.raises(ExchangeError, match="missing or a link"):
        joined(made)
    with pytest.raises(ExchangeError, match=r"names 3 shards\. '00007.npz' is none"):
        made.data("00007.npz")


def test_a_bundle_that_is_not_finished_leaves_nothing(tmp_path):
    with BundleWriter(tmp_path / "north") as writer:
        writer.add("00000.npz", b"data")
        assert len(writer) == 1
    assert list(tmp_path.iterdir()) == []


UNPROTECTED = {"clip_norm": None, "noise_std": None}
TREE = HEAD.model_dump(mode="json") | {
    "released_labels": {"a": 1, "b": 0, "c": 0},
    "shards": [{"name": "00000.npz", "sha256": "0" * 64, "bytes": 10, "records": 1}],
}
NO_CLAIM = {"guarantee": "none", "epsilon_if_flow_were_fixed": None}


def manifest_text(mechanism, parameters, claim=None):
    """Return a manifest's JSON with other parameters and another claim."""
    tree = TREE | {"mechanism": mechanism}
    tree |= {"parameters": tree["parameters"] | parameters, "claim": tree["claim"] | (claim or {})}
    return json.dumps(tree)


def test_a_manifest_says_that_nothing_was_clipped_or_noised():
    manifest = manifest_from_json(manifest_text("none", UNPROTECTED, NO_CLAIM))
    assert not manifest.parameters.protected
    assert manifest_from_json(manifest_to_json(manifest)) == manifest


def test_a_manifest_of_laplace_noise_has_its_scale_beside_its_standard_deviation():
    manifest = manifest_from_json(manifest_text("laplace", {"noise_scale": 3.0, "noise_std": 3.0 * 2**0.5}))
    assert manifest.parameters.noise_scale == 3.0


def test_a_manifest_of_noise_on_a_grid_states_its_step_and_others_have_none():
    assert manifest_from_json(manifest_text("grid-gaussian", {"grid": 2.0**-11})).parameters.grid == 2.0**-11
    assert manifest_from_json(manifest_text("gaussian", {})).parameters.grid is None
    assert manifest_from_json(manifest_text("a-plugins-own", {"grid": 2.0**-11})).parameters.grid == 2.0**-11


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
        ("gaussian", {"noise_std": 0.0}, None, "is above 0"),
        ("gaussian", {"grid": 0.5}, None, "states its grid"),
        ("grid-gaussian", {}, None, "states its grid"),
        ("grid-gaussian", {"grid": 0.3}, None, "a power of two"),
        ("grid-gaussian", {"grid": 4.0}, None, "at most the standard deviation"),
        ("none", UNPROTECTED | {"grid": 0.5}, NO_CLAIM, "at most the standard deviation"),
        ("laplace", {"noise_scale": 3.0, "noise_std": 3.0 * 2**0.5, "grid": 0.5}, None, "Laplace noise has no grid"),
        ("gaussian", {}, {"guarantee": "end-to-end"}, "an epsilon if it is end-to-end"),
        ("gaussian", {}, {"guarantee": "none"}, "an epsilon_if_flow_were_fixed if it is given-flow"),
        ("gaussian", {}, {"epsilon": 1.0}, "an epsilon if it is end-to-end"),
        ("gaussian", {}, {"epsilon_if_flow_were_fixed": float("inf")}, "claim.epsilon_if_flow_were_fixed"),
        ("gaussian", {}, {"epsilon_if_flow_were_fixed": -1.0}, "claim.epsilon_if_flow_were_fixed"),
        ("gaussian", {}, {"delta": 0.0}, "claim.delta"),
        ("gaussian", {}, {"relation": "any |\n| at all"}, "claim.relation"),
        ("gaussian", {}, {"declared": ["\x1b[2J"]}, "claim.declared"),
    ],
)
def test_a_manifest_whose_numbers_contradict_each_other_is_refused(mechanism, parameters, claim, reason):
    with pytest.raises(ExchangeError, match=reason):
        manifest_from_json(manifest_text(mechanism, parameters, claim))


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"schema_version": 2}', "x" * (9 << 20)])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(ExchangeError):
        manifest_from_json(text)

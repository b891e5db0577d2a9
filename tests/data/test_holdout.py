"""Laws of who is tested on at a real site: by the rule that its ledger keeps, and by nothing else."""

import numpy as np
import pytest
from pydantic import ValidationError

from cadp_fl.config import DataConfig, SplitRule
from cadp_fl.data.holdout import rehearsal_rule, sides, split_rule
from cadp_fl.data.medmnist import read_medmnist
from cadp_fl.data.schema import Dataset, Schema, Source
from cadp_fl.errors import DataError

SCHEMA = Schema(name="x", shape=(1, 2, 2), classes=("a", "b"))
NONE = SplitRule(rule="none")


def _records(count, *, patients=None, ids=None, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 1, 2, 2), dtype=np.uint8)
    return Dataset(SCHEMA, images, rng.integers(0, 2, count), patients, ids=ids)


def _keys(dataset):
    return {image.tobytes() for image in dataset.images}


def _hash(by="ids", fraction=0.2):
    return SplitRule(rule="hash", ids=by, fraction=fraction, salt="5a" * 16)


def test_the_source_own_split_is_kept():
    source = Source(_records(20), _records(10, seed=1))
    rule = split_rule(source, 0.2)
    assert rule == SplitRule(rule="source")
    split = sides(source, rule)
    assert (split.train, split.test) == (source.train, source.test)


@pytest.mark.parametrize("by", ["patients", "ids"])
def test_everyone_is_on_one_side(by):
    source = Source(_records(1000, **{by: np.arange(1000)}))
    rule = split_rule(source, 0.2)
    assert (rule.rule, rule.ids, rule.fraction) == ("hash", by, 0.2)
    split = sides(source, rule)
    assert _keys(split.train) | _keys(split.test) == _keys(source.train)
    assert not set(getattr(split.train, by)) & set(getattr(split.test, by))
    assert 150 < len(split.test) < 250


def test_no_patient_is_divided_also_where_records_have_ids():
    patients = np.random.default_rng(3).integers(0, 200, 1000)
    source = Source(_records(1000, patients=patients, ids=np.arange(1000)))
    split = sides(source, split_rule(source, 0.3))
    assert not set(split.train.patients) & set(split.test.patients)


def test_every_ledger_has_a_salt_of_its_own():
    source = Source(_records(500, ids=np.arange(500)))
    first, second = split_rule(source, 0.2), split_rule(source, 0.2)
    assert first.salt != second.salt
    assert set(sides(source, first).test.ids) != set(sides(source, second).test.ids)


@pytest.mark.parametrize("by", ["patients", "ids"])
def test_rows_that_are_added_or_sorted_and_what_a_record_shows_move_nobody(by):
    rng, rule = np.random.default_rng(7), _hash(by)
    ids = rng.choice(10**6, 2000, replace=False)
    before = sides(Source(_records(2000, **{by: ids})), rule)
    was_tested = set(getattr(before.test, by))
    for changed in (np.append(10**6 + 1, ids), np.sort(ids), ids[::-1], rng.permutation(ids), ids[: len(ids) // 2]):
        after = sides(Source(_records(len(changed), seed=1, **{by: changed.copy()})), rule)
        assert set(getattr(after.test, by)) & set(ids) == was_tested & set(changed)


def test_a_later_export_moves_nobody_to_the_other_side(tmp_path):
    rng, rule = np.random.default_rng(5), _hash("patients")
    names = np.array([f"patient-{number:05d}" for number in range(400)])

    def export(path, chosen):
        images = rng.integers(0, 256, (len(chosen), 2, 2), dtype=np.uint8)
        np.savez(path, train_images=images, train_labels=np.zeros(len(chosen), int), train_patients=chosen)
        config = DataConfig(source="medmnist", path=path, classes=("a", "b"))
        return sides(read_medmnist(config), rule)

    before = export(tmp_path / "january.npz", names[:300])
    after = export(tmp_path / "february.npz", rng.permutation(names))
    assert set(before.train.patients) <= set(after.train.patients)
    assert set(before.test.patients) <= set(after.test.patients)


def test_a_file_may_say_which_record_is_which(tmp_path):
    names = np.array([f"scan-{number}" for number in range(300)])
    images = np.random.default_rng(0).integers(0, 256, (300, 2, 2), dtype=np.uint8)
    config = DataConfig(source="medmnist", path=tmp_path / "scans.npz", classes=("a", "b"))

    def export(order, cut):
        parts = {"train": order[:cut], "val": order[cut:]}
        arrays = {f"{split}_images": images[rows] for split, rows in parts.items()}
        arrays |= {f"{split}_labels": np.zeros(len(rows), int) for split, rows in parts.items()}
        arrays |= {f"{split}_ids": names[rows] for split, rows in parts.items()}
        np.savez(config.path, **arrays)
        return _keys(sides(read_medmnist(config), _hash()).test)

    rng = np.random.default_rng(1)
    assert export(np.arange(300), 200) == export(rng.permutation(300), 280) == export(rng.permutation(300), 20)


def test_a_record_whose_id_stands_twice_is_refused(tmp_path):
    arrays = {"train_images": np.zeros((3, 2, 2), np.uint8), "train_labels": np.arange(3) % 2}
    for ids in ([1, 2, 1], ["a", "b", "b"]):
        np.savez(tmp_path / "scans.npz", **arrays, train_ids=np.array(ids))
        with pytest.raises(DataError, match=r"id of its own\. Found 1 again"):
            read_medmnist(DataConfig(source="medmnist", path=tmp_path / "scans.npz"))
    tested = {"test_images": arrays["train_images"], "test_labels": arrays["train_labels"]}
    np.savez(tmp_path / "scans.npz", **arrays, **tested, train_ids=np.arange(3), test_ids=np.arange(2, 5))
    with pytest.raises(DataError, match="A record is trained on or tested on, not both"):
        read_medmnist(DataConfig(source="medmnist", path=tmp_path / "scans.npz"))


def test_where_nothing_says_who_is_who_nobody_is_held_out():
    source = Source(_records(100))
    with pytest.raises(DataError, match=r"neither ids nor a test split.*test_fraction: 0"):
        split_rule(source, 0.2)
    assert split_rule(source, 0.0) == NONE
    assert (len(sides(source, NONE).train), len(sides(source, NONE).test)) == (100, 0)


def test_where_nobody_is_tested_on_a_test_split_is_left_alone():
    split = sides(Source(_records(20), _records(10, seed=1)), NONE)
    assert (len(split.train), len(split.test)) == (20, 0)


@pytest.mark.parametrize(
    ("rule", "source", "reason"),
    [
        (SplitRule(rule="source"), Source(_records(50, ids=np.arange(50))), "no test split any more"),
        (_hash("ids"), Source(_records(50)), "no ids any more"),
        (_hash("patients"), Source(_records(50, ids=np.arange(50))), "no patients any more"),
        (
            _hash("ids"),
            Source(_records(50, ids=np.arange(50)), _records(9, ids=np.arange(50, 59))),
            "a test split of its own now",
        ),
        (_hash("ids", 0.001), Source(_records(2, ids=np.arange(2))), "one side empty"),
    ],
    ids=["split gone", "ids gone", "patients gone", "split added", "one side"],
)
def test_a_source_that_would_change_the_rule_is_refused(rule, source, reason):
    with pytest.raises(DataError, match=reason):
        sides(source, rule)


def test_a_rehearsals_records_stay_as_they_were_dealt():
    dealt = Source(_records(40), _records(10, seed=1))
    rule = rehearsal_rule(dealt)
    assert len(sides(dealt, rule).test) == 10
    swapped = Source(dealt.train.select(np.arange(40)[::-1]), dealt.test)
    for other in (swapped, Source(dealt.test, dealt.train), Source(_records(40, seed=9), dealt.test)):
        with pytest.raises(DataError, match="or how they are dealt, changed"):
            sides(other, rule)


@pytest.mark.parametrize(
    "tree",
    [
        {"rule": "hash"},
        {"rule": "hash", "ids": "rows", "fraction": 0.2, "salt": "0" * 32},
        {"rule": "hash", "ids": "ids", "fraction": 1.0, "salt": "0" * 32},
        {"rule": "hash", "ids": "ids", "fraction": 0.2, "salt": "pepper"},
        {"rule": "none", "fraction": 0.2},
        {"rule": "source", "salt": "0" * 32},
        {"rule": "rehearsal"},
        {"rule": "random"},
    ],
)
def test_a_rule_is_whole(tree):
    with pytest.raises(ValidationError):
        SplitRule.model_validate(tree)

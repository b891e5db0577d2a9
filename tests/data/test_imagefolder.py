"""Folders of images: what is read, what is said of the rest, and that nothing ends in a traceback."""

import csv
import json
import os
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from cadp_fl.config import DataConfig
from cadp_fl.data import files as files_module
from cadp_fl.data.file_cache import cached_files, clear_cache
from cadp_fl.data.files import fitted
from cadp_fl.data.identities import code_of
from cadp_fl.data.sources import load_source, source_for
from cadp_fl.errors import ConfigError, DataError


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def grey(value, side=28):
    return np.full((side, side), value, dtype=np.uint8)


def config(path, **changes):
    return DataConfig.model_validate({"source": "imagefolder", "path": str(path), **changes})


@pytest.fixture
def folder(tmp_path):
    """Three images of each of two classes, grey level 10 times the number."""
    root = tmp_path / "scans"
    for number in range(6):
        write(root / ("sick" if number % 2 else "well") / f"{number}.png", grey(10 * number))
    return root


def test_folders_are_classes_and_paths_are_ids(folder):
    source = load_source(config(folder))
    assert source.train.schema.classes == ("sick", "well")
    assert source.train.schema.shape == (1, 28, 28)
    shown = source.train.records[:, 0, 0, 0].tolist()
    assert shown == [10, 30, 50, 0, 20, 40]
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.train.ids.tolist()[0] == code_of("sick/1.png")
    assert (source.test, source.train.patients, source.site_names) == (None, None, ())


def test_splits_are_folders_and_validation_is_trained_on(tmp_path):
    for split, count in (("train", 3), ("validation", 2), ("test", 4)):
        for number in range(count):
            for name in ("a", "b"):
                write(tmp_path / split / name / f"{number}.png", grey(number))
    source = load_source(config(tmp_path))
    assert (len(source.train), len(source.test)) == (10, 8)
    assert source.train.schema.classes == ("a", "b")


ROWS = [
    {
        "file_name": f"x/{number}.png",
        "label": "sick" if number % 2 else "well",
        "patient": f"p{number // 2}",
        "site": ("North", "South Hospital")[number // 2 % 2],
        "split": "test" if number > 5 else "train",
        "id": f"r{number}",
    }
    for number in range(8)
]


def write_metadata(root, kind, rows=ROWS):
    root.mkdir(exist_ok=True)
    if kind == "csv":
        with (root / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    else:
        import polars

        polars.DataFrame(rows).write_parquet(root / "metadata.parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_metadata_file_says_who_where_and_what(tmp_path, kind):
    for number in range(8):
        write(tmp_path / "x" / f"{number}.png", grey(number))
    write_metadata(tmp_path, kind)
    source = load_source(config(tmp_path))
    assert source.train.records[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert source.test.records[:, 0, 0, 0].tolist() == [6, 7]
    assert source.train.labels.tolist() == [1, 0] * 3
    assert source.site_names == ("north", "south-hospital")
    assert source.train.sites.tolist() == [0, 0, 1, 1, 0, 0]
    assert source.train.patients.tolist() == [code_of(f"p{number // 2}") for number in range(6)]
    assert source.train.ids.tolist() == [code_of(f"r{number}") for number in range(6)]


def test_roles_name_other_columns_and_the_metadata_may_lie_elsewhere(tmp_path):
    for number in range(4):
        write(tmp_path / "images" / f"{number}.png", grey(number))
    rows = [{"path": f"{number}.png", "diagnosis": "ab"[number % 2]} for number in range(4)]
    write_metadata(tmp_path / "lists", "csv", rows)
    said = {"metadata": str(tmp_path / "lists" / "metadata.csv"), "roles": {"file": "path", "label": "diagnosis"}}
    source = load_source(config(tmp_path / "images", **said))
    assert source.train.labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"lacks 'file_name' among 'path', 'diagnosis'; name them with data\.roles"):
        load_source(config(tmp_path / "images", metadata=said["metadata"]))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"file_name": "../secret.png"}, "its path leaves the folder"),
        ({"file_name": "/etc/passwd"}, "its path leaves the folder"),
        ({"file_name": "x/99.png"}, "its file is not there"),
        ({"file_name": "x/link.png"}, "its file is none of this kind"),
        ({"file_name": "x/0.png"}, "its file has a row already"),
        ({"label": ""}, "it has no 'label'"),
        ({"split": "holdout"}, "its 'split' is not train, validation or test"),
    ],
)
def test_a_bad_row_is_named_or_left_out_and_counted(tmp_path, row, why):
    for number in range(8):
        write(tmp_path / "x" / f"{number}.png", grey(number))
    write(tmp_path.parent / "secret.png", grey(1))
    (tmp_path / "x" / "link.png").symlink_to(tmp_path.parent / "secret.png")
    write_metadata(tmp_path, "csv", [*ROWS[:-1], ROWS[-1] | row])
    with pytest.raises(DataError, match=f"1 cannot be used .*{why}"):
        load_source(config(tmp_path))
    source = load_source(config(tmp_path, on_bad_record="skip"))
    assert len(source.train) + len(source.test) == 7
    assert any(why in note and note.startswith("1 records were left out") for note in source.notes)


def test_what_is_no_image_is_left_out_and_named(folder):
    (folder / "well" / "notes.txt").write_text("x")
    (folder / "well" / ".hidden.png").write_bytes(b"x")
    write(folder / "stray.png", grey(1))
    with pytest.raises(DataError, match=r"stray\.png: it lies in no class's folder"):
        load_source(config(folder))
    source = load_source(config(folder, on_bad_record="skip"))
    assert len(source.train) == 6
    assert "notes.txt" in source.notes[0]
    assert ".hidden.png" in source.notes[0]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 20, b"\xff\xd8\xff\xe0" * 8])
def test_bad_files_are_a_sentence_with_a_count_and_names(folder, content):
    for number in range(5):
        (folder / "well" / f"bad{number}.png").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_source(config(folder))
    assert "5 cannot be used" in str(caught.value)
    assert str(caught.value).count("/bad") == 3
    assert len(str(caught.value)) < 500
    assert len(load_source(config(folder, on_bad_record="skip")).train) == 6


def test_warnings_are_what_they_were_after_many_threads_have_read(tmp_path):
    """Their filters are a whole process's, and every file is read under stricter ones."""
    noise = np.random.default_rng(0).integers(0, 256, (700, 700)).astype(np.uint8)
    for number in range(40):
        write(tmp_path / "ab"[number % 2] / f"{number}.png", noise // (1 + number))
    before = list(warnings.filters)
    found = load_source(config(tmp_path)).train
    assert list(warnings.filters) == before
    for number, record in zip([*range(0, 40, 2), *range(1, 40, 2)], sorted_by_name(found), strict=True):
        np.testing.assert_array_equal(record, fitted(noise // (1 + number), config("x")))


def sorted_by_name(records):
    """Return the images of files named 0.png to 39.png, those of class a first, by number."""
    names = {code_of(f"{'ab'[number % 2]}/{number}.png"): number for number in range(40)}
    order = np.argsort([(names[each] % 2, names[each])[0] * 100 + names[each] for each in records.ids.tolist()])
    return records.records[order]


@given(cut=st.integers(0, 400), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5),
       kind=st.sampled_from(["png", "jpg", "tif"]))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_a_mutated_file_is_read_or_a_sentence(tmp_path_factory, cut, flips, kind):
    root = tmp_path_factory.mktemp("mutated")
    good = write(root / "a" / "good.png", grey(3))
    write(root / "b" / "good.png", grey(4))
    victim = write(root / "a" / f"victim.{kind}", np.arange(400, dtype=np.uint8).reshape(20, 20))
    content = bytearray(victim.read_bytes())[: cut or None]
    for place, value in flips:
        if place < len(content):
            content[place] = value
    victim.write_bytes(content)
    try:
        found = len(load_source(config(root)).train)
    except DataError as error:
        found = "victim" in str(error)
    assert found in (3, True)
    assert good.is_file()


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (56, 28), (30, 100), (5, 7)])
def test_every_image_becomes_one_size(fit, height, width):
    pixels = np.full((height, width), 200, dtype=np.uint8)
    image = fitted(pixels, config("x", fit=fit, size=32))
    assert image.shape == (1, 32, 32)
    if fit == "crop":
        assert (image == 200).all()
    else:
        shown = (image > 0).sum()
        assert abs(shown - 32 * 32 * min(height, width) / max(height, width)) <= 2 * 32
    colours = fitted(np.stack([pixels] * 3, axis=2), config("x", fit=fit, channels=3, size=32))
    assert colours.shape == (3, 32, 32)


def test_sixteen_bits_are_brought_to_eight_by_the_type_or_by_the_window(tmp_path):
    ramp = np.linspace(0, 65535, 28 * 28).reshape(28, 28).astype(np.uint16)
    for name in ("a", "b"):
        write(tmp_path / name / "0.png", ramp)
        write(tmp_path / name / "1.tif", ramp)
    full = load_source(config(tmp_path)).train.records
    np.testing.assert_allclose(full[0, 0], np.round(ramp / 65535 * 255), atol=1)
    np.testing.assert_array_equal(full[0], full[1])
    window = load_source(config(tmp_path, window=[1000, 3000])).train.records
    np.testing.assert_allclose(window[0, 0], np.round(np.clip((ramp - 1000.0) / 2000, 0, 1) * 255), atol=1)
    with pytest.raises(ValidationError, match="a window goes from black to white"):
        config(tmp_path, window=[3000, 1000])


def test_a_class_that_is_not_named_is_refused_and_named_ones_may_be_absent(folder):
    with pytest.raises(DataError, match=r"3 cannot be used .*its class is not one of data\.classes"):
        load_source(config(folder, classes=["well", "other"]))
    source = load_source(config(folder, classes=["well", "sick", "dying"]))
    assert source.train.schema.classes == ("well", "sick", "dying")
    assert source.train.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_the_cache_is_read_in_place_of_files_and_made_again_when_a_file_changes(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = load_source(config(folder, cache=str(cache)))
    (kept,) = cached_files(cache)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert cache.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(files_module, "fitted", lambda *_: pytest.fail("decoded again"))
    second = load_source(config(folder, cache=str(cache)))
    np.testing.assert_array_equal(first.train.records, second.train.records)
    monkeypatch.undo()
    write(folder / "sick" / "1.png", grey(99))
    os.utime(folder / "sick" / "1.png", ns=(1, 1))
    assert load_source(config(folder, cache=str(cache))).train.records[0, 0, 0, 0] == 99
    assert len(cached_files(cache)) == 1
    load_source(config(folder, cache=str(cache), size=16))
    assert len(cached_files(cache)) == 2
    cached_files(cache)[0].write_bytes(b"damaged")
    np.testing.assert_array_equal(load_source(config(folder, cache=str(cache))).train.records.shape, (6, 1, 28, 28))
    assert clear_cache(cache) == 2
    assert cached_files(cache) == []


def test_an_error_names_the_source_that_reads_what_is_there(folder, tmp_path):
    with pytest.raises(DataError, match=r"read it with data\.source: imagefolder"):
        load_source(DataConfig(source="medmnist", path=folder))
    table = tmp_path / "x.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"read it with data\.source: table"):
        load_source(config(table))
    assert source_for(folder) == "imagefolder"
    with pytest.raises(ConfigError, match=r"pass --set data\.path=FOLDER"):
        load_source(DataConfig(source="imagefolder"))
    with pytest.raises(ConfigError, match=r"data\.size is for the sources that read it: .*imagefolder"):
        load_source(DataConfig(source="digits", size=32))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has none of this source's kind"):
        load_source(config(tmp_path / "empty"))

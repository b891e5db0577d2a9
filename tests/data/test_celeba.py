"""CelebA's own format on disk, in small."""

import numpy as np
import pytest

from cadp_fl.config import DataConfig
from cadp_fl.data.sources import load_source
from cadp_fl.errors import ConfigError, DataError
from tests.data.test_imagefolder import write

NAMES = ("Male", "Smiling", "Young")


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    attributes = generator.choice([-1, 1], (12, 3))
    for number in range(12):
        write(tmp_path / "img_align_celeba" / f"{number + 1:06d}.jpg", np.full((218, 178, 3), number * 20, np.uint8))
    rows = [f"{number + 1:06d}.jpg  {'  '.join(map(str, row))}" for number, row in enumerate(attributes)]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(["12", " ".join(NAMES), *rows]) + "\n")
    (tmp_path / "identity_CelebA.txt").write_text("".join(f"{n + 1:06d}.jpg {n // 2}\n" for n in range(12)))
    (tmp_path / "list_eval_partition.txt").write_text("".join(f"{n + 1:06d}.jpg {n // 4}\n" for n in range(12)))
    return tmp_path, attributes


def config(path, **changes):
    return DataConfig.model_validate({"source": "celeba", "path": str(path), "label": "Smiling", "size": 32, **changes})


def test_faces_have_their_attributes_a_class_a_person_and_a_split(folder):
    path, attributes = folder
    source = load_source(config(path))
    assert source.schema.attributes == NAMES
    assert source.schema.classes == ("not Smiling", "Smiling")
    assert source.schema.shape == (3, 32, 32)
    assert (len(source.train), len(source.test)) == (8, 4)
    np.testing.assert_array_equal(source.train.attributes, (attributes[:8] > 0).astype(np.uint8))
    np.testing.assert_array_equal(source.train.labels, (attributes[:8, 1] > 0).astype(int))
    assert len(np.unique(source.train.patients)) == 4
    assert source.train.records[3, 0, 16, 16] == pytest.approx(60, abs=2)


def test_lists_of_persons_and_splits_may_be_missing(folder):
    path, _ = folder
    (path / "identity_CelebA.txt").unlink()
    (path / "list_eval_partition.txt").unlink()
    source = load_source(config(path))
    assert (len(source.train), source.test, source.train.patients) == (12, None, None)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: (path / "list_attr_celeba.txt").unlink(), r"There is no 'list_attr_celeba\.txt'"),
        (lambda path: (path / "list_attr_celeba.txt").write_bytes(b"\xff\xfe\0"), "is text"),
        (lambda path: (path / "list_attr_celeba.txt").write_text("3\nA B\n../x.jpg 1 1\n"), "Line 3 is not"),
        (lambda path: (path / "list_attr_celeba.txt").write_text("3\nA Smiling\nx.jpg 1 7\n"), "Line 3 is not"),
        (lambda path: (path / "img_align_celeba" / "000003.jpg").unlink(), r"1 cannot be used \(000003\.jpg"),
    ],
)
def test_what_is_missing_or_damaged_is_one_sentence(folder, damage, sentence):
    path, _ = folder
    damage(path)
    with pytest.raises((DataError, ConfigError), match=f"{sentence}|data.label names"):
        load_source(config(path))


def test_a_missing_face_is_left_out_with_a_cache_too(folder, tmp_path):
    path, _ = folder
    (path / "img_align_celeba" / "000003.jpg").unlink()
    for _ in range(2):
        source = load_source(config(path, on_bad_record="skip", cache=str(tmp_path / "cache")))
        assert len(source.train) == 7


def test_the_class_is_one_of_the_attributes(folder):
    with pytest.raises(ConfigError, match=r"data\.label names the attribute .*Found 'Bald'"):
        load_source(config(folder[0], label="Bald"))

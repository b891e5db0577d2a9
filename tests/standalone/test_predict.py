"""Every image gets one class, or is refused with the reason."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from cadp_fl.classifier.storage import ClassifierCard, save_classifier
from cadp_fl.config import ClassifierConfig, FlowConfig
from cadp_fl.data.schema import Schema
from cadp_fl.errors import DataError, InputError
from cadp_fl.flow.storage import FlowCard, save_flow
from cadp_fl.standalone.images import read_pictures
from cadp_fl.standalone.predict import predict, write_csv

GREY, COLOUR = (1, 8, 8), (3, 8, 8)


def random(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def classifier(path, shape=GREY):
    card = ClassifierCard(ClassifierConfig(width=4), Schema(name="x", shape=shape, classes=("a", "b", "c")), 0, "m")
    model = card.build()
    save_classifier(path, model, card)
    return model


def read(*paths, shape=GREY, resize=False):
    return list(read_pictures(paths, shape, resize=resize))


def test_a_probability_is_the_softmax_of_the_likeliest_class(tmp_path):
    model = classifier(tmp_path / "m")
    images = random(300, 8, 8)
    np.savez(tmp_path / "x.npz", images=images)
    predictions = predict(tmp_path / "m", [tmp_path / "x.npz"], resize=False, device="cpu")
    expected = model(torch.from_numpy(images[:, None]).float() / 255 - 0.5).softmax(dim=1).max(dim=1)
    assert [each.label for each in predictions] == ["abc"[label] for label in expected.indices]
    np.testing.assert_allclose([each.probability for each in predictions], expected.values.detach(), rtol=1e-5)
    assert [each.index for each in predictions] == list(range(300))
    assert predictions[2].source == f"{tmp_path / 'x.npz'}[2]"


def test_an_image_is_the_same_from_every_kind_of_file(tmp_path):
    pixels = random(2, 8, 8)
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    for number, name in enumerate(("1.png", "deep/2.PNG")):
        Image.fromarray(pixels[number]).save(tmp_path / "folder" / name)
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    np.savez(tmp_path / "plain.npz", images=pixels, test_images=random(1, 8, 8))
    np.savez(tmp_path / "medmnist.npz", train_images=random(3, 8, 8), test_images=pixels)
    np.savez(tmp_path / "shard.npz", images=pixels[:, None], labels=np.zeros(2, np.int64))
    for name in ("folder", "plain.npz", "medmnist.npz", "shard.npz"):
        pictures = read(tmp_path / name)
        np.testing.assert_array_equal(np.stack([each.pixels for each in pictures]), pixels[:, None])
        assert [each.index for each in pictures] == ([None, None] if name == "folder" else [0, 1])


def test_images_get_the_channels_that_the_classifier_takes(tmp_path):
    grey, colour = random(8, 8), random(8, 8, 3)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(colour).convert("RGBA").save(tmp_path / "alpha.png")
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    np.savez(tmp_path / "grey.npz", images=grey[None])
    np.savez(tmp_path / "colour.npz", images=colour[None])
    np.savez(tmp_path / "shard.npz", images=np.moveaxis(colour, 2, 0)[None])
    luminance = np.asarray(Image.fromarray(colour).convert("L"))[None]
    for name, as_grey, as_colour in (
        ("grey.png", grey[None], np.repeat(grey[None], 3, axis=0)),
        ("grey.npz", grey[None], np.repeat(grey[None], 3, axis=0)),
        ("palette.png", grey[None], np.repeat(grey[None], 3, axis=0)),
        ("colour.png", luminance, np.moveaxis(colour, 2, 0)),
        ("colour.npz", luminance, np.moveaxis(colour, 2, 0)),
        ("shard.npz", luminance, np.moveaxis(colour, 2, 0)),
        ("alpha.png", luminance, np.moveaxis(colour, 2, 0)),
    ):
        np.testing.assert_array_equal(read(tmp_path / name)[0].pixels, as_grey, err_msg=name)
        np.testing.assert_array_equal(read(tmp_path / name, shape=COLOUR)[0].pixels, as_colour, err_msg=name)


def test_a_jpeg_is_read_upright(tmp_path):
    tall = np.zeros((16, 8), np.uint8)
    tall[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    Image.fromarray(tall).save(tmp_path / "x.jpg", exif=exif, quality=95)
    (picture,) = read(tmp_path / "x.jpg", shape=(1, 8, 16))
    assert picture.pixels[0, :, :6].max() < 40
    assert picture.pixels[0, :, 10:].min() > 215


@pytest.mark.parametrize("name", ["x.png", "x.npz"])
def test_another_size_is_refused_or_resized(tmp_path, name):
    pixels = np.full((10, 20), 77, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.savez(tmp_path / "x.npz", images=pixels[None])
    with pytest.raises(InputError, match=r"takes images of 8 x 8 pixels. '.*' has 20 x 10; pass --resize"):
        read(tmp_path / name)
    for shape in (GREY, COLOUR):
        (picture,) = read(tmp_path / name, shape=shape, resize=True)
        assert (picture.pixels.shape, set(picture.pixels.flat)) == (shape, {77})


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    classifier(tmp_path / "m")
    Image.fromarray(random(64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:600])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "text.npz").write_text("no archive")
    Image.fromarray(random(8, 8)).save(tmp_path / "gif.gif")
    (tmp_path / "gif.gif").rename(tmp_path / "gif.png")
    Image.fromarray(random(8, 8).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "other.npz", pictures=random(1, 8, 8))
    np.savez(tmp_path / "float.npz", images=np.zeros((1, 8, 8)))
    np.savez(tmp_path / "flat.npz", images=random(8, 8))
    np.savez(tmp_path / "planes.npz", images=random(1, 2, 8, 8))
    np.savez(tmp_path / "none.npz", images=random(0, 8, 8))
    cases = {
        "half.png": "cannot be read",
        "text.png": "cannot be read",
        "gif.png": "cannot be read",
        "deep.png": "8 bits a channel. .* has 16; convert it",
        "text.npz": "An npz of images holds plain arrays",
        "other.npz": "array images or test_images. .* holds pictures",
        "float.npz": "Pixels are uint8, 0 to 255. 'images' .* is float64",
        "flat.npz": r"is \(8, 8\)",
        "planes.npz": r"is \(1, 2, 8, 8\)",
        "none.npz": r"is \(0, 8, 8\)",
        "missing.png": "There is none at",
        "notes.txt": "folders of them, or .npz",
        "empty": "holds none",
    }
    for name, sentence in cases.items():
        with pytest.raises(InputError, match=sentence) as error:
            predict(tmp_path / "m", [tmp_path / name], resize=False, device="cpu")
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="A stored classifier is a safetensors file"):
        predict(tmp_path / "none", [tmp_path / "whole.png"], resize=False, device="cpu")


def test_what_is_left_out_and_changed_is_reported_once(tmp_path):
    folder = tmp_path / "scans"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    Image.fromarray(random(8, 8)).save(folder / "a.png")
    Image.fromarray(random(8, 8)).save(folder / ".ipynb_checkpoints" / "a-checkpoint.png")
    Image.fromarray(random(8, 8, 3)).save(folder / "b.png")
    Image.fromarray(random(8, 8)).convert("P").save(folder / "c.png")
    (folder / "._a.png").write_bytes(bytes.fromhex("0005160700020000"))
    (folder / "labels.csv").write_text("")
    np.savez(tmp_path / "x.npz", images=random(2, 8, 8, 3))
    sentences = []
    pictures = list(read_pictures([folder, tmp_path / "x.npz"], GREY, resize=False, report=sentences.append))
    assert [each.file.name for each in pictures] == ["a.png", "b.png", "c.png", "x.npz", "x.npz"]
    assert sentences == [
        f"Left out of '{folder}': 2 hidden (._a.png, .ipynb_checkpoints); 1 not named .png, .jpg, .jpeg (labels.csv).",
        "Of 5 images: 1 expanded from a palette to its colours; "
        "4 turned from colour to grey, as the classifier takes it.",
    ]
    sentences.clear()
    list(read_pictures([folder / "a.png"], GREY, resize=False, report=sentences.append))
    assert sentences == []


def test_a_folder_that_holds_no_image_names_what_it_holds(tmp_path):
    (tmp_path / "x" / ".cache").mkdir(parents=True)
    for name in ("1.dcm", "2.dcm", "3.tif", "4.tif"):
        (tmp_path / "x" / name).write_text("")
    with pytest.raises(InputError, match=r"holds none; check the path. Left out of '.*': 1 hidden \(.cache\); 4 not n"):
        read(tmp_path / "x")


def test_a_stored_flow_is_no_classifier(tmp_path):
    card = FlowCard(FlowConfig(), Schema(name="x", shape=GREY, classes=("a", "b")), 0, "public")
    save_flow(tmp_path / "flow", card.build(), card)
    with pytest.raises(DataError, match=r"is a stored flow; give a classifier"):
        predict(tmp_path / "flow", [tmp_path / "x.png"], resize=False, device="cpu")


def test_a_table_holds_every_prediction_and_replaces_nothing(tmp_path):
    classifier(tmp_path / "m")
    Image.fromarray(random(8, 8)).save(tmp_path / "a,b.png")
    np.savez(tmp_path / "x.npz", images=random(1, 8, 8))
    predictions = predict(tmp_path / "m", [tmp_path / "a,b.png", tmp_path / "x.npz"], resize=False, device="cpu")
    write_csv(predictions, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["index"]) for row in rows] == [
        (str(tmp_path / "a,b.png"), ""),
        (str(tmp_path / "x.npz"), "0"),
    ]
    assert [float(row["probability"]) for row in rows] == [each.probability for each in predictions]
    with pytest.raises(InputError, match="never written over"):
        write_csv(predictions, tmp_path / "out.csv")

"""One rule for image files: a file gives its own pixels, with a note where they were changed, or a sentence."""

import io
import os
import re
import socket
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cadp_fl.data import images as module
from cadp_fl.data.images import ImageFolder, printable, read_image
from cadp_fl.errors import DataError, InputError

ORIENTATION = 0x0112


def random(*shape, high=256):
    return np.random.default_rng(0).integers(0, high, shape, dtype=np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def png(width, height, depth, colour, rows, *chunks):
    """Return the bytes of a PNG of any depth and type of colour, from the bytes of its rows."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data = b"".join(b"\0" + row for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + b"".join(chunk(*each) for each in chunks)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def refused(path, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        read_image(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert text.endswith(".")
    return text


# Pixels


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_an_image_of_8_bits_is_read_as_it_is(tmp_path, shape):
    pixels = random(*shape)
    decoded = read_image(saved(tmp_path / "x.png", Image.fromarray(pixels)))
    assert np.array_equal(decoded.pixels, pixels)
    assert decoded.notes == ()
    profile = saved(tmp_path / "profile.png", Image.fromarray(pixels), icc_profile=b"any", gamma=0.1)
    assert np.array_equal(read_image(profile).pixels, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG"])
def test_an_image_is_turned_upright_whichever_way_the_camera_lay(tmp_path, orientation, suffix):
    upright = np.zeros((32, 16), np.uint8)
    upright[:16, :8] = 255  # top left is bright
    upright[16:, 8:] = 120
    turned = {  # how a camera stores it, for each of EXIF's orientations
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright.T[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"exif": exif} | ({} if suffix == "png" else {"quality": 100})
    decoded = read_image(saved(tmp_path / f"x.{suffix}", Image.fromarray(np.ascontiguousarray(turned)), **options))
    assert decoded.pixels.shape == upright.shape
    assert np.abs(decoded.pixels.astype(int) - upright).max() < 20
    assert decoded.notes == (("turned upright by the EXIF orientation",) if orientation > 1 else ())


def test_an_orientation_that_exif_does_not_know_changes_nothing(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 9
    decoded = read_image(saved(tmp_path / "x.png", Image.fromarray(random(5, 7)), exif=exif))
    assert np.array_equal(decoded.pixels, random(5, 7))
    assert decoded.notes == ()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_are_scaled_so_that_black_and_white_stay(tmp_path, bits):
    levels = random(4, 8, high=2**bits)
    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].reshape(-1)).tobytes() for row in levels]
    (tmp_path / "x.png").write_bytes(png(8, 4, bits, 0, rows))
    decoded = read_image(tmp_path / "x.png")
    assert np.array_equal(decoded.pixels, levels * (255 // (2**bits - 1)))
    assert decoded.notes == (f"scaled from {bits} bit{'s' if bits > 1 else ''} a pixel to 8",)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_becomes_its_colours(tmp_path, bits):
    image = Image.fromarray(random(5, 7, high=2**bits), "P")
    colours = random(2**bits, 3)
    image.putpalette(colours.tobytes())
    decoded = read_image(saved(tmp_path / "x.png", image, bits=bits))
    assert np.array_equal(decoded.pixels, colours[np.asarray(image)])
    assert decoded.notes == ("expanded from a palette to its colours",)


def transparent(kind, alpha):
    """Return an image with an alpha channel, its pixels, and what it is saved with."""
    pixels, opacity = random(5, 7, 3, high=200) + 1, np.full((5, 7), 255, np.uint8)
    opacity[2, 3] = alpha
    channel = Image.fromarray(opacity)
    if kind == "RGBA":
        image = Image.fromarray(pixels)
        image.putalpha(channel)
        return image, pixels, {}
    if kind == "LA":
        image = Image.fromarray(pixels[..., 0])
        image.putalpha(channel)
        return image, pixels[..., 0], {}
    if kind == "P":
        image = Image.fromarray(pixels[..., 0], "P")
        image.putpalette(np.arange(768, dtype=np.uint16).astype(np.uint8).tobytes())
        table = np.full(256, 255, np.uint8)
        table[int(pixels[2, 3, 0])] = alpha
        return image, np.asarray(image.convert("RGB")), {"transparency": table.tobytes()}
    grey = pixels[..., 0] if kind == "L" else pixels
    key = grey[2, 3] if alpha < 255 else np.zeros_like(grey[2, 3])
    return Image.fromarray(grey), grey, {"transparency": int(key) if kind == "L" else tuple(key.tolist())}


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB"])
def test_an_alpha_channel_is_dropped_where_it_says_nothing_and_refused_elsewhere(tmp_path, kind):
    image, pixels, options = transparent(kind, 255)
    decoded = read_image(saved(tmp_path / "x.png", image, **options))
    assert np.array_equal(decoded.pixels, pixels)
    assert decoded.notes[-1] == "taken without an alpha channel that was opaque"
    for alpha in (0, 254):
        image, _, options = transparent(kind, alpha)
        refused(saved(tmp_path / "y.png", image, **options), "transparent in part; flatten it onto the background")
    flat = Image.new("RGBA", image.size, "black")
    flat.alpha_composite(Image.open(tmp_path / "y.png").convert("RGBA"))
    read_image(saved(tmp_path / "y.png", flat.convert("RGB")))


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_more_than_8_bits_are_never_cut_to_8(tmp_path, colour):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    values = np.random.default_rng(0).integers(0, 1 << 16, (4, 8 * channels)).astype(">u2")
    (tmp_path / "x.png").write_bytes(png(8, 4, 16, colour, [row.tobytes() for row in values]))
    text = refused(tmp_path / "x.png", "has 16; convert it")
    code = re.search(r"np\.round.*np\.uint8\)", text)[0]
    pixels = eval(code, {"np": np, "pixels": values[:, :8], "LOW": 0, "HIGH": 65535})
    assert np.array_equal(read_image(saved(tmp_path / "y.png", Image.fromarray(pixels))).pixels, pixels)


def test_the_colours_of_print_are_refused(tmp_path):
    image = Image.fromarray(random(8, 8, 3)).convert("CMYK")
    refused(saved(tmp_path / "x.jpg", image), "is CMYK, the colours of print.* convert it to RGB")
    read_image(saved(tmp_path / "x.jpg", image.convert("RGB")))


def test_a_file_with_several_pictures_is_its_main_one_or_refused(tmp_path):
    frames = [Image.fromarray(random(8, 8, high=high)) for high in (50, 255)]
    main = read_image(saved(tmp_path / "one.jpg", frames[0], quality=95)).pixels
    path = saved(tmp_path / "x.mpo", frames[0], save_all=True, append_images=frames[1:], quality=95)
    path.rename(tmp_path / "x.jpg")
    decoded = read_image(tmp_path / "x.jpg")
    assert np.array_equal(decoded.pixels, main)
    assert decoded.notes == ("taken as the first of several pictures in its file",)
    saved(tmp_path / "x.png", frames[0], save_all=True, append_images=frames[1:])
    refused(tmp_path / "x.png", "is animated, with 2; save one of them as PNG")
    read_image(saved(tmp_path / "x.png", frames[0]))


def test_the_content_of_a_file_decides_not_its_name(tmp_path):
    path = saved(tmp_path / "x.jpg", Image.fromarray(random(8, 8)), format="PNG")
    assert np.array_equal(read_image(path).pixels, random(8, 8))
    for kind in ("GIF", "BMP", "TIFF", "WEBP"):
        refused(saved(tmp_path / "x.png", Image.fromarray(random(8, 8)), format=kind), "holds something else")
    Image.fromarray(random(8, 8).astype(np.float32)).save(tmp_path / "x.png", format="TIFF")
    refused(tmp_path / "x.png", "holds something else and cannot be read; convert it to PNG, or leave it out")


# Damage


def details():
    image = Image.fromarray(random(32, 24, 3))
    ImageDraw.Draw(image).ellipse((4, 4, 20, 28), fill=(250, 10, 10))
    return image


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_cut_anywhere_gives_all_its_pixels_or_a_sentence(tmp_path, kind):
    buffer, path = io.BytesIO(), tmp_path / "x.png"
    details().save(buffer, kind)
    whole = buffer.getvalue()
    path.write_bytes(whole)
    expected = read_image(path).pixels
    read = 0
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        try:
            assert np.array_equal(read_image(path).pixels, expected)
            read += 1
        except DataError:
            continue
    assert read <= 3  # where nothing but the end mark is missing


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_png_with_any_byte_changed_gives_its_pixels_or_a_sentence(tmp_path_factory, place, value):
    buffer = io.BytesIO()
    details().save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[int(place * len(data))] ^= value
    path = tmp_path_factory.mktemp("changed") / "x.png"
    path.write_bytes(bytes(data))
    try:
        assert np.array_equal(read_image(path).pixels, np.asarray(details()))
    except DataError:
        return


@given(data=st.binary(max_size=200), start=st.sampled_from([b"", module.PNG, module.JPEG, module.APPLE_DOUBLE]))
def test_any_bytes_are_a_sentence(tmp_path_factory, start, data):
    path = tmp_path_factory.mktemp("bytes") / "x.jpg"
    path.write_bytes(start + data)
    with pytest.raises(DataError, match=r"x\.jpg"):
        read_image(path)


def test_what_a_mac_keeps_beside_a_file_is_named(tmp_path):
    (tmp_path / "._x.png").write_bytes(module.APPLE_DOUBLE + bytes(100))
    refused(tmp_path / "._x.png", r"macOS keeps beside a file \(AppleDouble\), and holds none; leave it out")


def test_exif_that_is_damaged_is_not_passed_over(tmp_path):
    """Which way is up is in there."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = saved(tmp_path / "x.jpg", details(), exif=exif).read_bytes()
    (tmp_path / "x.jpg").write_bytes(data.replace(b"Exif\0\0MM\0*\0\0\0\x08\0\x01", b"Exif\0\0MM\0*\0\0\0\x08\0\x7f"))
    refused(tmp_path / "x.jpg", "damaged")


def test_an_image_is_bounded_before_memory_is_taken(tmp_path, monkeypatch):
    saved(tmp_path / "x.png", Image.fromarray(random(20, 20)))
    monkeypatch.setattr(module, "MAX_PIXELS", 399)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    refused(tmp_path / "x.png", "at most 399 pixels. '.*x.png' has 20 x 20; scale it down")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, which it applies at twice of it
    refused(tmp_path / "x.png", "at most 399 pixels. '.*x.png' has more; scale it down")


def test_a_header_that_promises_billions_of_pixels_is_refused(tmp_path):
    for side in (9_000, 65_000, 2**31 - 1):
        (tmp_path / "x.png").write_bytes(png(side, side, 8, 0, [b""]))
        refused(tmp_path / "x.png", "An image has at most 67108864 pixels")


def test_a_file_that_cannot_be_opened_is_a_sentence(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.png", Image.fromarray(random(8, 8)))
    with pytest.raises(InputError, match="There is none at"):
        read_image(tmp_path / "y.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="There is none at"):
        read_image(tmp_path / "pipe.png")

    def denied(self, *_args):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "open", denied)
    refused(path, "can be opened. '.*x.png' cannot: Permission denied; check it")


# Folders


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_the_images_of_a_folder_are_those_below_it_in_the_order_of_their_bytes(tmp_path):
    names = ["B.PNG", "a-1/x.png", "a/10.png", "a/9.jpeg", "a/Z.JpG", "b.jpg", "\u00e9.png", "z/y/x/w.png"]
    touch(tmp_path, *reversed(names))
    found = ImageFolder.of(tmp_path)
    relative = [str(each.relative_to(tmp_path)) for each in found.images]
    assert relative == sorted(names, key=lambda name: [part.encode() for part in name.split("/")])
    assert (found.left_out, found.sentence) == ({}, "")


HIDDEN = [
    *(".DS_Store", "._x.png", ".x.png", ".ipynb_checkpoints/x-checkpoint.png", ".git/x.png", "deep/.thumbs/x.png"),
    *("__MACOSX/._x.png", "__MACOSX/x.png", "Thumbs.db", "thumbs.DB", "Desktop.ini", "@eaDir/x.png/thumb.jpg"),
    "$RECYCLE.BIN/x.png",
]


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_hidden_or_a_systems_own_is_left_out_by_name(tmp_path, name):
    touch(tmp_path, "scan.png", name)
    found = ImageFolder.of(tmp_path)
    assert found.images == (tmp_path / "scan.png",)
    top = name if name.startswith("deep") else name.split("/")[0]
    assert found.sentence == f"Left out of '{tmp_path}': 1 hidden ({top.removesuffix('/x.png')})."


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path):
    touch(tmp_path, ".scans/x.png")
    assert ImageFolder.of(tmp_path / ".scans").images == (tmp_path / ".scans" / "x.png",)


def test_links_are_not_followed(tmp_path):
    touch(tmp_path, "in/a.png", "in/sub/b.png", "out/c.png")
    folder = tmp_path / "in"
    (folder / "copy.png").symlink_to(folder / "a.png")
    (folder / "far.png").symlink_to(tmp_path / "out" / "c.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "loop").symlink_to(folder)
    (tmp_path / "named").symlink_to(folder)  # whoever names a link, means what it leads to
    for path in (folder, tmp_path / "named"):
        found = ImageFolder.of(path)
        assert [each.name for each in found.images] == ["a.png", "b.png"]
        assert found.sentence == f"Left out of '{path}': 4 reached by a link (copy.png, far.png, gone.png, ...)."


def test_files_of_other_kinds_are_counted_and_never_opened(tmp_path):
    touch(tmp_path, "a.png", "1.dcm", "2.tif", "notes", "x.png~")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as unix:
        before = os.getcwd()
        os.chdir(tmp_path)  # a socket's path is short
        unix.bind("socket.png")
        os.chdir(before)
        found = ImageFolder.of(tmp_path)
    assert found.images == (tmp_path / "a.png",)
    assert found.sentence == (
        f"Left out of '{tmp_path}': 2 neither file nor folder (pipe.png, socket.png); "
        "4 not named .png, .jpg, .jpeg (1.dcm, 2.tif, notes, ...)."
    )


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "locked/b.png")
    scandir = os.scandir

    def denied(path):
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"locked' cannot: Permission denied; check its permissions\."):
        ImageFolder.of(tmp_path)


def test_a_name_is_printed_on_one_line_whatever_is_in_it(tmp_path):
    touch(tmp_path, "a\nb.txt", "c\x1b[31m.txt", os.fsdecode(b"d\xff.txt"))
    sentence = ImageFolder.of(tmp_path).sentence
    assert "(a?b.txt, c?[31m.txt, d\ufffd.txt)" in sentence
    assert printable("x\r\n\u202ey") == "x???y"

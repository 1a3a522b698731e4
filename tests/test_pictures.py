"""pictures.py: pictures of any kind, faults, frames, class folders."""

import io
import os
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from conftest import run
from PIL import Image, ImageDraw, ImageOps

from capsnet import memory, pictures
from capsnet.pictures import (
    DataError,
    fit_image,
    image_shape,
    list_classes,
    read_image,
)

FORMAT_OF = {".png": "PNG", ".jpg": "JPEG", ".bmp": "BMP", ".gif": "GIF"}
FORMAT_OF |= {".webp": "WEBP", ".tif": "TIFF"}


def picture(mode="RGB", size=(40, 30)):
    """A green ground with a red bar on the left, dark to bright in grey modes."""
    image = Image.new("RGB", size, (0, 200, 0))
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 4, size[1]), (100, 0, 0))
    return image.convert(mode)


def save(path, image, **options):
    image.save(path, **options)
    return path


def encoded(suffix, image=None):
    file = io.BytesIO()
    (image or picture()).save(file, FORMAT_OF[suffix])
    return file.getvalue()


def chunk(name, data):
    return (
        struct.pack(">I", len(data))
        + name
        + data
        + struct.pack(">I", zlib.crc32(name + data))
    )


def png(width, height, *chunks, depth=8, colour=0):
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(order, *entries):
    """A TIFF of 2 x 2 grey pixels, 10, 20, 30 and 40, with other or further entries.

    An entry is a tag, the type of its values (3 for 16 bits, 4 for 32), how many there
    are, and the value, or the bytes of several.
    """
    known = {256: 2, 257: 2, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 4}
    directory = {tag: (tag, 4, 1, value) for tag, value in known.items()}
    directory |= {entry[0]: entry for entry in entries}
    head, tail = b"", bytes([10, 20, 30, 40])
    for tag, kind, count, value in sorted(directory.values()):
        if isinstance(value, bytes):
            value, tail = 8 + len(tail), tail + value
        head += struct.pack(f"{order}HHII", tag, kind, count, value)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    start += struct.pack(f"{order}I", 8 + len(tail))
    return start + tail + struct.pack(f"{order}H", len(directory)) + head + bytes(4)


def is_valid(image):
    assert image.dtype == np.float32
    assert image.flags.c_contiguous and image.flags.writeable
    assert image.min() >= 0 and image.max() <= 1
    return True


# Kinds of pictures.


@pytest.mark.parametrize("suffix", FORMAT_OF)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats(tmp_path, suffix, mode):
    path = save(tmp_path / f"a{suffix}", picture(mode))
    image = read_image(path)
    assert is_valid(image)
    channels = 1 if mode == "L" and suffix != ".webp" else 3  # WebP has no grey
    assert image.shape == image_shape(path) == (30, 40, channels)
    expected = picture(mode).convert("L" if channels == 1 else "RGB")
    expected = np.asarray(expected, "float32").reshape(image.shape) / 255
    np.testing.assert_allclose(image.mean((0, 1)), expected.mean((0, 1)), atol=0.01)
    assert np.median(np.abs(image - expected)) < 0.01  # JPEG blurs the edge


def test_the_content_decides_not_the_extension(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".jpg"))
    assert read_image(str(path)).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [
        ("1", ".png", 1),
        ("1", ".bmp", 1),
        ("L", ".png", 1),
        ("LA", ".png", 1),
        ("I;16", ".png", 1),
        ("P", ".png", 3),
        ("P", ".bmp", 3),
        ("P", ".gif", 3),
        ("RGBA", ".png", 3),
        ("CMYK", ".jpg", 3),
        ("1", ".tif", 1),
        ("LA", ".tif", 1),
        ("I;16", ".tif", 1),
        ("P", ".tif", 3),
        ("RGBA", ".tif", 3),
        ("CMYK", ".tif", 3),
    ],
)
def test_modes(tmp_path, mode, suffix, channels):
    path = save(tmp_path / f"a{suffix}", picture(mode, (9, 5)))
    with Image.open(path) as image:
        assert image.mode == mode  # what is written is what this test is about
    image = read_image(path)
    assert is_valid(image)
    assert image.shape == image_shape(path) == (5, 9, channels)
    if channels == 3:
        expected = picture(mode, (9, 5)).convert("RGB")
        expected = np.asarray(expected, "float32") / 255
        tolerance = 0.2 if suffix == ".jpg" else 1e-6
        np.testing.assert_allclose(image, expected, atol=tolerance)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif"])
def test_a_palette_of_greys_is_grey(tmp_path, suffix):
    image = Image.new("P", (3, 1))
    image.putpalette([200, 200, 200, 10, 10, 10, 90, 90, 90])
    image.putdata([1, 0, 2])
    path = save(tmp_path / f"a{suffix}", image)
    assert image_shape(path) == (1, 3, 1)
    np.testing.assert_allclose(read_image(path)[0, :, 0] * 255, [10, 200, 90], 1e-5)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("order", "<>")
def test_16_bits_keep_their_precision(tmp_path, suffix, order):
    values = np.arange(0, 65536, 17, dtype=f"{order}u2").reshape(-1, 8)
    path = save(tmp_path / f"a{suffix}", Image.fromarray(values))
    image = read_image(path)
    assert is_valid(image)
    np.testing.assert_allclose(image[..., 0] * 65535, values, atol=0.01)
    assert image.max() == 1


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif"])
def test_of_several_frames_the_first_one_counts(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(read_image(path), np.full((6, 8, 3), [1.0, 0, 0]))


def test_grey_and_colour_on_request(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], "uint8")
    path = save(tmp_path / "colour.png", Image.fromarray(colours))
    luminance = [0.299, 0.587, 0.114]
    np.testing.assert_allclose(read_image(path, 1)[0, :, 0], luminance, atol=1e-6)
    grey = save(tmp_path / "grey.png", picture("L"))
    assert read_image(grey, 3).shape == (30, 40, 3)
    np.testing.assert_array_equal(read_image(grey, 3), read_image(grey).repeat(3, 2))
    with pytest.raises(DataError, match="expected 1 or 3 channels to read, got 2"):
        read_image(grey, 2)


# Each picture has two pixels: black at half opacity (or opaque), and a transparent one.
def half_rgba():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 128))
    image.putpixel((1, 0), (255, 0, 0, 0))
    return image, {}, (127 / 255, 1)


def half_la():
    image = Image.new("LA", (2, 1), (0, 128))
    image.putpixel((1, 0), (9, 0))
    return image, {}, (127 / 255, 1)


def grey_key():
    image = Image.new("L", (2, 1), 0)
    image.putpixel((1, 0), 77)
    return image, {"transparency": 77}, (0, 1)


def deep_grey_key():
    image = Image.fromarray(np.array([[0, 7700]], "uint16"))
    return image, {"transparency": 7700}, (0, 1)


def palette_key():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((1, 0), 1)
    return image, {"transparency": 1}, (0, 1)


@pytest.mark.parametrize(
    ("suffix", "make"),
    [
        *((".png", make) for make in (half_rgba, half_la, grey_key, deep_grey_key)),
        *((suffix, palette_key) for suffix in (".png", ".gif")),
        *((".tif", make) for make in (half_rgba, half_la)),
        (".webp", half_rgba),
    ],
)
def test_transparent_pixels_lie_over_white(tmp_path, suffix, make):
    image, options, expected = make()
    options |= {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a{suffix}", image, **options)
    pixels = read_image(path)
    assert is_valid(pixels) and pixels.shape == image_shape(path)
    for channel in range(pixels.shape[2]):
        np.testing.assert_allclose(pixels[0, :, channel], expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 77])
def test_photos_are_turned_upright(tmp_path, suffix, orientation):
    image = picture()
    ImageDraw.Draw(image).rectangle((30, 0, 40, 8), "blue")  # no symmetry left
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    path = save(tmp_path / f"a{suffix}", image, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image), "float32") / 255
    assert image_shape(path) == upright.shape
    np.testing.assert_allclose(read_image(path), upright, atol=1e-6)


def test_exif_data_behind_the_pixels_of_a_png_are_ignored_by_both(tmp_path):
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 6
    pixels = chunk(b"IDAT", zlib.compress(b"\0\1\2\3" * 2))
    data = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "late.png").write_bytes(png(3, 2, pixels, data))
    (tmp_path / "early.png").write_bytes(png(3, 2, data, pixels))
    for name, shape in ("late.png", (2, 3, 1)), ("early.png", (3, 2, 1)):
        assert image_shape(tmp_path / name) == shape
        assert read_image(tmp_path / name).shape == shape


def test_a_shape_needs_no_pixels(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png")[:60])
    assert image_shape(path) == (30, 40, 3)
    with pytest.raises(DataError):
        read_image(path)


# Faults.


def one_line(error, path):
    message = str(error.value)
    assert message.startswith(f"{path}: ") and message.splitlines() == [message]
    return message


KINDS = "expected a PNG, JPEG, BMP, GIF, WebP or TIFF picture, got something else"
DEPTHS = "a TIFF of 1 to 8 or 16 bits"
FAULTS = {
    "empty": (b"", KINDS),
    "text": (b"not a picture\n" * 99, KINDS),
    "of another kind": (b"P6 1 1 255 \0\0\0", KINDS),
    "no width": (png(0, 5, chunk(b"IDAT", b"")), "expected a PNG"),
    "no height": (png(5, 0, chunk(b"IDAT", b"")), "expected a PNG"),
    "too large": (png(65535, 65535, chunk(b"IDAT", b"")), "pixels, got more"),
    "header alone": (encoded(".jpg")[:20], "."),
    "other numbers": (tiff("<", (258, 4, 1, 32)), DEPTHS),
    "12 bits": (tiff("<", (258, 4, 1, 12)), DEPTHS),
    "fractions": (tiff("<", (258, 4, 1, 32), (339, 4, 1, 3)), DEPTHS),
    "100 million samples": (tiff("<", (277, 4, 1, 10**8)), "got something else"),
    "half a directory": (tiff(">")[:60], "got something else"),
}


@pytest.mark.parametrize("function", [read_image, image_shape])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_a_picture_is_refused(tmp_path, capfd, recwarn, function, fault):
    data, match = FAULTS[fault]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=match) as error:
        function(path)
    one_line(error, path)
    assert not recwarn.list and capfd.readouterr() == ("", "")


def locked(path, *arguments, **options):
    """In place of what opens pictures, since root may read anything."""
    raise PermissionError(13, "Permission denied", str(path))


NO_FILE = "got a folder, a pipe or a device"


@pytest.mark.parametrize("function", [read_image, image_shape])
@pytest.mark.parametrize(
    ("make", "opened", "match"),
    [
        (lambda path: None, Image.open, "No such file"),
        (lambda path: path.mkdir(), Image.open, NO_FILE),
        (lambda path: os.mkfifo(path), Image.open, NO_FILE),
        (lambda path: path.touch(), locked, "cannot be read: Permission denied"),
    ],
    ids=["nothing", "a folder", "a pipe", "locked"],
)
def test_what_cannot_be_read_is_refused(
    tmp_path, monkeypatch, function, make, opened, match
):
    path = tmp_path / "a.png"
    make(path)
    monkeypatch.setattr(pictures.Image, "open", opened)
    with pytest.raises(DataError, match=match) as error:
        function(path)
    one_line(error, path)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("suffix", FORMAT_OF)
def test_a_truncated_file_is_refused(tmp_path, capfd, recwarn, suffix, part):
    noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), "uint8")
    data = encoded(suffix, Image.fromarray(noise))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(DataError) as error:
        read_image(path)
    one_line(error, path)
    assert not recwarn.list and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", FORMAT_OF)
def test_damage_anywhere_gives_pixels_or_one_line(tmp_path, capfd, recwarn, suffix):
    options = {"exif": Image.Exif()}
    options["exif"][pictures.ORIENTATION] = 6
    if suffix == ".tif":  # unpacked by libtiff, which has much to say
        options["compression"] = "tiff_lzw"
    whole = save(tmp_path / f"whole{suffix}", picture(), **options).read_bytes()
    path = tmp_path / f"a{suffix}"
    draw = random.Random(0)
    messages = []
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(min(len(data), 400))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            assert is_valid(read_image(path))
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 5
    for message in messages:
        assert message.startswith(f"{path}: ") and message.splitlines() == [message]
    assert not recwarn.list and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("function", [read_image, image_shape])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_picture_with_gigabytes_behind_it(tmp_path, function, kind):
    path = save(tmp_path / f"one.{kind}", Image.new("L", (10, 10)))
    assert function(path) is not None
    os.truncate(path, 20 * 10**9)
    with pytest.raises(DataError, match="at most 536870912 bytes, got 2") as error:
        function(path)
    one_line(error, path)


@pytest.mark.parametrize("pixels", [101, 250])
@pytest.mark.parametrize("function", [read_image, image_shape])
def test_more_pixels_than_pillow_allows(tmp_path, monkeypatch, function, pixels):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    largest = save(tmp_path / "largest.png", Image.new("L", (10, 10)))
    assert function(largest) is not None
    path = save(tmp_path / "larger.png", Image.new("L", (pixels, 1)))
    with pytest.raises(DataError, match="at most 100 pixels, got more") as error:
        function(path)
    one_line(error, path)


# TIFF, which may hold anything.


@pytest.mark.parametrize("order", "<>")
def test_a_plain_tiff(tmp_path, order):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(order))
    assert image_shape(path) == (2, 2, 1)
    pixels = read_image(path)[..., 0] * 255
    np.testing.assert_allclose(pixels, [[10, 20], [30, 40]], rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_in_which_0_is_white(tmp_path, bits):
    path = tmp_path / "a.tif"
    path.write_bytes(
        tiff("<", (258, 4, 1, bits), (262, 4, 1, 0), (256, 4, 1, 16 // bits))
    )
    first = [10, 20] if bits == 8 else [10 + 256 * 20]
    pixels = read_image(path)[0, :, 0] * (2**bits - 1)
    np.testing.assert_allclose(pixels, [2**bits - 1 - n for n in first], rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "compression", "error"),
    [("1", "group4", 0), ("L", "jpeg", 0.05), ("RGB", "jpeg", 0.2)],
)
def test_tiffs_as_scanners_and_microscopes_write_them(
    tmp_path, mode, compression, error
):
    plain = save(tmp_path / "plain.tif", picture(mode))
    path = save(tmp_path / "a.tif", picture(mode), compression=compression)
    np.testing.assert_allclose(read_image(path), read_image(plain), atol=error)


def test_what_pillow_logs_of_a_tiff_is_not_printed(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(FAULTS["100 million samples"][0])
    # In a process of its own, as pytest handles what is logged.
    program = """
import sys
from capsnet.pictures import DataError, read_image
try:
    read_image(sys.argv[1])
except DataError:
    print("refused")
"""
    process = run(path, program=("-c", program))
    assert (process.stdout, process.stderr) == ("refused\n", "")


def test_a_tile_of_gigabytes_is_not_unpacked(tmp_path):
    path = tmp_path / "a.tif"
    sides = (322, 4, 1, 40_000), (323, 4, 1, 40_000)
    place = (324, 4, 1, 8), (325, 4, 1, 4)
    path.write_bytes(tiff("<", (259, 4, 1, 8), *sides, *place))
    with pytest.raises(DataError, match="within the picture, got 1600000000") as error:
        read_image(path)
    one_line(error, path)


# The size of the network's input.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (3, 3), (100, 30), (31, 90), (1, 500)])
@pytest.mark.parametrize("frame", [(28, 28), (20, 33), (1, 1)])
def test_an_image_fits_its_frame(size, frame, channels):
    image = np.random.default_rng(0).random((*size, channels)).astype("float32")
    image[0, 0], image[-1, -1] = 0, 1
    fitted = fit_image(image, *frame)
    assert is_valid(fitted) and fitted.shape == (*frame, channels)
    scale = min(frame[0] / size[0], frame[1] / size[1])
    h, w = (max(1, round(side * scale)) for side in size)
    assert h == frame[0] or w == frame[1]
    top, left = (frame[0] - h) // 2, (frame[1] - w) // 2
    # Bilinear and antialiased: the brightness stays.
    assert abs(fitted[top : top + h, left : left + w].mean() - image.mean()) < 0.15
    around = np.ones(frame, bool)
    around[top : top + h, left : left + w] = False
    edges = [image[0], image[-1], image[:, 0], image[:, -1]]
    ground = np.median(np.concatenate(edges), axis=0)
    np.testing.assert_array_equal(fitted[around] - ground, 0)


def test_an_image_of_the_right_size_is_copied():
    image = np.random.default_rng(0).random((5, 6, 3)).astype("float32")
    fitted = fit_image(image, 5, 6)
    np.testing.assert_array_equal(fitted, image)
    assert not np.shares_memory(fitted, image)


def test_resizing_is_antialiased_and_keeps_16_bits():
    stripes = np.zeros((64, 64, 1), "float32")
    stripes[:, ::2] = 1
    np.testing.assert_allclose(fit_image(stripes, 8, 8)[:, 1:-1], 0.5, atol=0.05)
    flat = np.full((64, 64, 1), 12345 / 65535, "float32")
    np.testing.assert_allclose(fit_image(flat, 9, 9) * 65535, 12345, atol=0.1)


# Folders.


def make_classes(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def test_classes_and_their_pictures_are_sorted_by_name(tmp_path):
    folder = make_classes(
        tmp_path, "dog/b.png", "dog/a.JPG", "cat/x.jpeg", "cat/y.bmp", "cat/z.gif"
    )
    classes = list_classes(str(folder))
    assert list(classes.items()) == [
        ("cat", [folder / "cat" / name for name in ("x.jpeg", "y.bmp", "z.gif")]),
        ("dog", [folder / "dog" / name for name in ("a.JPG", "b.png")]),
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["10", "9", "1_0"], ["10", "1_0", "9"]),
    ],
)
def test_numbers_are_sorted_as_numbers_if_all_are(tmp_path, names, expected):
    make_classes(tmp_path, *(f"{name}/a.png" for name in names))
    assert list(list_classes(tmp_path)) == expected


def test_what_is_hidden_or_no_picture_is_ignored(tmp_path, capsys):
    make_classes(
        tmp_path,
        "a/1.png",
        "a/.2.png",
        "a/notes.txt",
        "a/deeper.png/3.png",
        "b/4.png",
        ".hidden/5.png",
        "6.png",
    )
    assert list_classes(tmp_path) == {
        "a": [tmp_path / "a" / "1.png"],
        "b": [tmp_path / "b" / "4.png"],
    }
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}: files left out: 1 (1 .txt); pictures end in .png, .jpg, "
        ".jpeg, .bmp, .gif, .webp, .tif, .tiff\n"
        f"warning: {tmp_path}: pictures left out, as they are in no class folder: 1\n"
        f"warning: {tmp_path}: folders left out, as they are in a class folder: 1\n"
    )


def test_files_that_are_left_out_are_counted_by_extension(tmp_path, capsys):
    make_classes(tmp_path, "a/1.png", "b/1.webp", "b/2.tif", "b/3.TIFF")
    assert len(list_classes(tmp_path)["b"]) == 3
    assert capsys.readouterr().err == ""
    make_classes(tmp_path, "a/2.heic", "b/4.HEIC", "b/README", "b/5.\x1b[2J")
    list_classes(tmp_path)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ": files left out: 4 (2 .heic, 1 " in err
    assert "1 no extension" in err and "1 .\\x1b[2j" in err


@pytest.mark.parametrize(
    ("names", "where", "match"),
    [
        ([], ".", "expected a sub-folder of pictures for each class"),
        (["a.png"], ".", "expected a sub-folder of pictures for each class"),
        (["a/b.txt", "b/c.txt"], ".", "expected a sub-folder of pictures"),
        (["Train/a/b.png", "val/a/b.png"], ".", "found none in .Train, val."),
        (["a/b.png"], ".", "expected 2 to 1000 class folders, got 1"),
        (["a/b.png", "b/.c.png"], "b", "class folder without a picture"),
    ],
)
def test_too_few_classes_or_pictures_are_refused(tmp_path, names, where, match):
    make_classes(tmp_path, *names)
    with pytest.raises(DataError, match=match) as error:
        list_classes(tmp_path)
    one_line(error, tmp_path / where)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, name):
    make_classes(tmp_path, "file")
    with pytest.raises(DataError, match="cannot be read") as error:
        list_classes(tmp_path / name)
    one_line(error, tmp_path / name)


# Pictures that are made to do harm.


def test_a_picture_that_is_too_large_for_memory(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", picture(size=(40, 30)))
    monkeypatch.setattr(memory, "available_memory", lambda: 32 * 40 * 30 - 1)
    with pytest.raises(DataError, match="its pixels need about 0.0 GB") as error:
        read_image(path)
    one_line(error, path)
    monkeypatch.setattr(memory, "available_memory", lambda: 32 * 40 * 30)
    assert is_valid(read_image(path))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_memory_for_a_picture(tmp_path, mode):
    path = save(tmp_path / "a.png", Image.new(mode, (1000, 1000)))
    tracemalloc.start()  # which sees NumPy's memory, but not Pillow's
    for channels in (1, 3):
        read_image(path, channels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 26e6

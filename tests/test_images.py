"""images.py: pictures of any kind, faults, frames, class folders, photos of digits."""

import io
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageDraw, ImageOps

from capsnet import images, memory
from capsnet.images import (
    DataError,
    border_brightness,
    digit_box,
    fit_image,
    image_shape,
    list_classes,
    prepare_digit,
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
    "make", [half_rgba, half_la, grey_key, deep_grey_key, palette_key]
)
def test_transparent_pixels_lie_over_white(tmp_path, make):
    image, options, expected = make()
    path = save(tmp_path / "a.png", image, **options)
    pixels = read_image(path)
    assert is_valid(pixels) and pixels.shape == image_shape(path)
    for channel in range(pixels.shape[2]):
        np.testing.assert_allclose(pixels[0, :, channel], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("suffix", "make"), [(".tif", half_la), (".tif", half_rgba), (".webp", half_rgba)]
)
def test_transparent_pixels_of_other_formats_do_so_too(tmp_path, suffix, make):
    image, _, expected = make()
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a{suffix}", image, **options)
    pixels = read_image(path)
    assert is_valid(pixels) and pixels.shape == image_shape(path)
    for channel in range(pixels.shape[2]):
        np.testing.assert_allclose(pixels[0, :, channel], expected, atol=1e-6)


def test_a_transparent_gif_lies_over_white(tmp_path):
    image, options, expected = palette_key()
    path = save(tmp_path / "a.gif", image, **options)
    np.testing.assert_allclose(read_image(path, 1)[0, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 77])
def test_photos_are_turned_upright(tmp_path, suffix, orientation):
    image = picture()
    ImageDraw.Draw(image).rectangle((30, 0, 40, 8), "blue")  # no symmetry left
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    path = save(tmp_path / f"a{suffix}", image, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image), "float32") / 255
    assert image_shape(path) == upright.shape
    np.testing.assert_allclose(read_image(path), upright, atol=1e-6)


def test_exif_data_behind_the_pixels_of_a_png_are_ignored_by_both(tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
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


FAULTS = {
    "empty": (b"", "expected a PNG, JPEG, BMP, GIF, WebP or TIFF picture"),
    "text": (
        b"not a picture\n" * 99,
        "expected a PNG, JPEG, BMP, GIF, WebP or TIFF picture",
    ),
    "no width": (png(0, 5, chunk(b"IDAT", b"")), "expected a PNG"),
    "no height": (png(5, 0, chunk(b"IDAT", b"")), "expected a PNG"),
    "too large": (png(65535, 65535, chunk(b"IDAT", b"")), "pixels, got more"),
    "header alone": (encoded(".jpg")[:20], "."),
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


def make_folder(path, monkeypatch):
    path.mkdir()


def make_pipe(path, monkeypatch):
    os.mkfifo(path)


def make_nothing(path, monkeypatch):
    pass


def make_locked(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    save(path, picture())
    monkeypatch.setattr(images.Image, "open", refuse)  # root may read anything


def make_ppm(path, monkeypatch):
    picture().save(path, "PPM")


@pytest.mark.parametrize("function", [read_image, image_shape])
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (make_nothing, "No such file"),
        (make_folder, "got a folder, a pipe or a device"),
        *(
            [(make_pipe, "got a folder, a pipe or a device")]
            if hasattr(os, "mkfifo")  # Windows has no such files
            else []
        ),
        (make_locked, "cannot be read: Permission denied"),
        (
            make_ppm,
            "expected a PNG, JPEG, BMP, GIF, WebP or TIFF picture, got something else",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, monkeypatch, function, make, match):
    path = tmp_path / "a.png"
    make(path, monkeypatch)
    with pytest.raises(DataError, match=match) as error:
        function(path)
    one_line(error, path)


def test_a_message_is_one_line_whatever_the_name(tmp_path):
    with pytest.raises(DataError, match=r"a b\.png: cannot be read: ") as error:
        read_image(tmp_path / "a\nb.png")
    assert "\n" not in str(error.value)


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
    options["exif"][images.ORIENTATION] = 6
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


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiffs(tmp_path, mode, compression):
    plain = save(tmp_path / "plain.tif", picture(mode))
    path = save(tmp_path / "a.tif", picture(mode), compression=compression)
    assert path.read_bytes() != plain.read_bytes()
    assert image_shape(path) == image_shape(plain)
    np.testing.assert_array_equal(read_image(path), read_image(plain))


FAULTY_TIFFS = {
    "other numbers": (tiff("<", (258, 4, 1, 32)), "a TIFF of 1 to 8 or 16 bits"),
    "12 bits": (tiff("<", (258, 4, 1, 12)), "a TIFF of 1 to 8 or 16 bits"),
    "fractions": (
        tiff("<", (258, 4, 1, 32), (339, 4, 1, 3)),
        "a TIFF of 1 to 8 or 16 bits",
    ),
    "photo in it": (tiff("<", (259, 4, 1, 7)), "LZW, Deflate or PackBits, got jpeg"),
    "unknown layout": (
        tiff("<", (262, 4, 1, 4)),
        "a TIFF that Pillow reads, got anoth",
    ),
    "100 million samples": (tiff("<", (277, 4, 1, 10**8)), "a TIFF that Pillow reads"),
    "BigTIFF": (b"II+\0\x08\0\0\0" + bytes(99), "or TIFF picture, got something else"),
    "no directory": (b"II*\0\xff\xff\xff\xff", "cannot be read: "),
    "half a directory": (tiff(">")[:60], "cannot be read: "),
    "too many strips": (
        tiff("<", (273, 4, 100_001, bytes(400_004))),
        "at most 100000 strips or tiles",
    ),
    "a palette without end": (
        tiff("<", (262, 4, 1, 3), (320, 3, 10**6, bytes(2 * 10**6))),
        "at most 100000 strips or tiles",
    ),
}


@pytest.mark.parametrize("function", [read_image, image_shape])
@pytest.mark.parametrize("fault", FAULTY_TIFFS)
def test_tiffs_that_are_refused(tmp_path, capfd, recwarn, function, fault):
    data, match = FAULTY_TIFFS[fault]
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(DataError, match=match) as error:
        function(path)
    one_line(error, path)
    assert not recwarn.list and capfd.readouterr() == ("", "")


def test_what_pillow_logs_of_a_tiff_is_not_printed(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(FAULTY_TIFFS["100 million samples"][0])
    # In a process of its own, as pytest handles what is logged.
    program = """
import sys
from capsnet.images import DataError, read_image
try:
    read_image(sys.argv[1])
except DataError:
    print("refused")
"""
    process = subprocess.run(
        [sys.executable, "-c", program, path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (process.stdout, process.stderr) == ("refused\n", "")


def test_a_tile_of_gigabytes_is_not_unpacked(tmp_path):
    path = tmp_path / "a.tif"
    sides = (322, 4, 1, 40_000), (323, 4, 1, 40_000)
    place = (324, 4, 1, 8), (325, 4, 1, 4)
    path.write_bytes(tiff("<", (259, 4, 1, 8), *sides, *place))
    with pytest.raises(DataError, match="within the picture, got 1600000000") as error:
        read_image(path)
    one_line(error, path)


@pytest.mark.parametrize("tag", [34665, 34853, 330, 700, 65000])
def test_what_a_tiff_says_beside_its_pixels_is_not_read(tmp_path, tag):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff("<", (tag, 3, 10**6, bytes(2 * 10**6))))
    tracemalloc.start()
    assert read_image(path).shape == (2, 2, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # the file, and half of it again


# The size of the network's input.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(28, 28), (3, 3), (100, 30), (31, 90), (1, 500)])
@pytest.mark.parametrize("frame", [(28, 28), (20, 33), (1, 1)])
def test_an_image_fits_its_frame(size, frame, channels):
    image = np.random.default_rng(0).random((*size, channels)).astype("float32")
    image[0, 0], image[-1, -1] = 0, 1
    fitted = fit_image(image, *frame)
    assert is_valid(fitted) and fitted.shape == (*frame, channels)
    white = fit_image(np.ones_like(image), *frame)[..., 0]
    rows, columns = (np.flatnonzero(white.any(axis=axis)) for axis in (1, 0))
    h, w = len(rows), len(columns)
    assert h == frame[0] or w == frame[1]
    scale = min(frame[0] / size[0], frame[1] / size[1])
    assert (h, w) == tuple(max(1, round(side * scale)) for side in size)
    assert (rows[0], columns[0]) == ((frame[0] - h) // 2, (frame[1] - w) // 2)
    np.testing.assert_array_equal(white.sum(), h * w)
    # Bilinear and antialiased: the brightness stays.
    inside = fitted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert abs(inside.mean() - image.mean()) < 0.15


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
        (["a/b.png"], ".", "expected at least 2 class folders, got 1"),
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


# What sets of images look like.


@pytest.fixture(scope="module")
def mnist_images(mnist):
    _, (x_test, _) = mnist
    return x_test


def test_border_brightness_is_the_mean_of_the_outermost_pixels():
    stack = np.zeros((2, 4, 5, 3), "float32")
    stack[:, 1:-1, 1:-1] = 9  # not looked at
    stack[0, 0, 0] = 1
    assert border_brightness(stack) == pytest.approx(1 / 28)
    assert border_brightness(np.ones((1, 1, 1, 1), "float32")) == 1


def test_the_border_of_mnist_is_black(mnist_images):
    assert border_brightness(mnist_images) < 0.001


def test_mnist_has_a_box_of_20_pixels(mnist_images):
    assert digit_box(mnist_images) == 20
    assert digit_box(mnist_images[:1]) == 20
    padded = np.pad(mnist_images[:100], ((0, 0), (2, 2), (2, 2), (0, 0)))
    assert digit_box(padded) == 20


def test_only_the_first_1000_images_are_looked_at(mnist_images):
    x = mnist_images[:1000]
    assert digit_box(np.concatenate([x, np.ones_like(x)])) == 20


@pytest.mark.parametrize(("wrong", "box"), [(9, 20), (11, None)])
def test_nine_of_ten_images_are_enough(mnist_images, wrong, box):
    x = mnist_images[:100].copy()
    x[:wrong] = np.roll(x[:wrong], 3, axis=1)
    assert digit_box(x) == box


def clothes(rng):
    """Like Fashion-MNIST: centred, but from the top edge to the bottom one."""
    x = np.zeros((50, 28, 28, 1), "float32")
    for image in x:
        half = rng.integers(4, 13)
        image[:, 14 - half : 14 + half] = rng.uniform(0.3, 1)
    return x


@pytest.mark.parametrize(
    "change",
    [
        lambda x, rng: clothes(rng),
        lambda x, rng: x.repeat(3, axis=3),
        lambda x, rng: 1 - x,
        lambda x, rng: rng.random(x.shape),
        lambda x, rng: (rng.random(x.shape) < 0.01).astype("float32"),
        lambda x, rng: np.zeros_like(x),
        lambda x, rng: x[:0],
        lambda x, rng: np.roll(x, 3, axis=2),
        lambda x, rng: np.stack(
            [fit_image(a[: 20 + i % 9], 28, 28) for i, a in enumerate(x)]
        ),
    ],
    ids=[
        "clothes",
        "colours",
        "dark on light",
        "noise",
        "specks",
        "black",
        "none",
        "off the centre",
        "any size",
    ],
)
def test_other_images_have_no_box(mnist_images, change):
    assert digit_box(change(mnist_images[:50], np.random.default_rng(0))) is None


# Photos of digits.


def draw_photo(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A photo of a digit: dark ink on light, unevenly lit paper, off the centre.

    Args:
        digit: Bright on black, in [0, 1], shape `(28, 28)` or `(28, 28, 1)`; without
            any ink the photo is of blank paper.
        rng: What all that chance decides is drawn from.

    Returns:
        uint8 of shape `(side, side)`, 300 to 800 pixels.
    """
    side = int(rng.integers(300, 801))
    ink = np.zeros((side, side))
    plane = np.reshape(digit, np.shape(digit)[:2]).astype("float32")
    if plane.any():
        rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
        plane = np.pad(plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
        scale = rng.uniform(0.4, 0.8) * side / max(plane.shape)
        size = [round(n * scale) for n in plane.shape[::-1]]
        large = Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC)
        top, left = (rng.integers(0, side - n + 1) for n in large.size[::-1])
        ink[top : top + large.height, left : left + large.width] = large
        ink = ink.clip(0, 1)

    def across():
        angle = rng.uniform(0, 2 * np.pi)
        return x * np.cos(angle) + y * np.sin(angle)

    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    light = 0.775 + 0.225 * across() / np.sqrt(2)  # 0.55 to 1 from corner to corner
    if rng.random() < 0.5:
        light *= 1 - 0.1 * (x**2 + y**2)  # a vignette
    else:
        distance = across() - rng.uniform(-0.5, 0.5)
        light *= 1 - 0.2 / (1 + np.exp(-distance / 0.1))  # a shadow with a soft edge
    paper, pen = rng.uniform(0.75, 0.95), rng.uniform(0.05, 0.3)
    photo = light * (paper + (pen - paper) * ink) + rng.normal(0, 0.02, ink.shape)
    return (255 * photo.clip(0, 1)).round().astype("uint8")


def prepare(photo, *args):
    """What a caller does with dark ink on light paper."""
    return prepare_digit(1 - photo[..., None].astype("float32") / 255, *args)


def centre(image):
    mass = image[..., 0] / image.sum()
    return [(mass.sum(axis=1 - i) * np.arange(mass.shape[i])).sum() for i in (0, 1)]


@pytest.fixture(scope="module")
def digits(mnist_images):
    return mnist_images[:20]


@pytest.fixture(scope="module")
def prepared(digits):
    rng = np.random.default_rng(0)
    return np.stack([prepare(draw_photo(x, rng), 28, 28, 20) for x in digits])


def test_photos_of_digits_come_back_as_the_digits(digits, prepared):
    assert is_valid(prepared) and prepared.shape == (20, 28, 28, 1)
    pairs = zip(digits, prepared)
    correlations = [np.corrcoef(x.ravel(), z.ravel())[0, 1] for x, z in pairs]
    assert np.median(correlations) > 0.93
    assert min(correlations) > 0.7


def test_photos_of_digits_have_the_layout_of_mnist(prepared):
    assert digit_box(prepared) == 20
    for image in prepared:
        assert centre(image) == pytest.approx([14, 14], abs=0.5001)
        assert image.max() > 0.95


def test_strokes_are_as_bright_and_wide_as_those_of_mnist(digits, prepared):
    strokes = [np.mean(x[x > 0.5]) for x in (digits, prepared)]
    assert strokes[1] == pytest.approx(strokes[0], abs=0.07)
    areas = [np.sum(x > 0.5, axis=(1, 2, 3)) for x in (digits, prepared)]
    assert np.median(areas[1] / areas[0]) == pytest.approx(1, abs=0.1)


def test_a_digit_of_mnist_itself_stays_what_it_is(digits):
    for x in digits:
        z = prepare_digit(x, 28, 28, 20)
        assert np.corrcoef(x.ravel(), z.ravel())[0, 1] > 0.9


def test_uneven_light_and_noise_are_no_ink():
    rng = np.random.default_rng(0)
    for _ in range(8):
        blank = draw_photo(np.zeros((28, 28)), rng)
        assert np.ptp(blank) > 60  # uneven indeed
        assert not prepare(blank, 28, 28, 20).any()


@pytest.mark.parametrize("level", [0, 0.5, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (2, 3), (200, 300)])
def test_an_even_image_has_no_ink(shape, level):
    result = prepare_digit(np.full((*shape, 1), level, "float32"), 28, 20, 20)
    np.testing.assert_array_equal(result, np.zeros((28, 20, 1)))


def test_specks_do_not_enlarge_the_box(digits):
    photo = draw_photo(digits[0], np.random.default_rng(3))
    clean = prepare(photo, 28, 28, 20)
    for row, column in (2, 2), (5, -9), (-9, 7):  # dust of 5 x 5 pixels
        photo[row : row + 5, column : column + 5] = 0
    rows, columns = np.random.default_rng(0).integers(0, min(photo.shape), (2, 30))
    photo[rows, columns] = 0  # dead pixels
    specked = prepare(photo, 28, 28, 20)
    assert np.corrcoef(clean.ravel(), specked.ravel())[0, 1] > 0.98


def test_the_edge_of_the_table_is_no_ink(digits):
    photo = draw_photo(digits[1], np.random.default_rng(5))
    clean = prepare(photo, 28, 28, 20)
    photo = np.pad(photo, 40, mode="edge")
    with_edge = photo.copy()
    with_edge[:, :25] = 20
    results = [prepare(p, 28, 28, 20) for p in (photo, with_edge)]
    for result in results:
        assert np.corrcoef(clean.ravel(), result.ravel())[0, 1] > 0.95


def stroke(height, width):
    """A bright bar on a dark ground, with an empty margin."""
    image = np.zeros((height, width, 1), "float32")
    image[height // 4 : -(height // 4), width // 2 - 1 : width // 2 + 1] = 0.6
    return image


@pytest.mark.parametrize("size", [(12, 12), (30, 90), (90, 30), (150, 150), (700, 40)])
@pytest.mark.parametrize("frame", [(28, 28, 20), (40, 32, 24), (9, 30, 20)])
def test_any_size_of_photo_and_frame(size, frame):
    height, width, box = frame
    result = prepare_digit(stroke(*size), height, width, box)
    assert is_valid(result) and result.shape == (height, width, 1)
    rows, columns = (np.flatnonzero(result.any(axis=i)) for i in ((1, 2), (0, 2)))
    sides = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(sides) == min(box, height, width)
    assert result.max() > 0.9


def test_a_thin_pen_draws_strokes_that_mnist_could_have():
    thin = Image.new("L", (600, 600), 200)
    ImageDraw.Draw(thin).arc((100, 100, 500, 500), 0, 270, 40, width=4)
    result = prepare(np.asarray(thin), 28, 28, 20)
    length = 0.75 * np.pi * 20  # of three quarters of a circle in a box of 20
    assert 1.5 < result.sum() / length < 2.5  # pixels wide


def test_faint_ink_gets_full_brightness():
    faint, strong = (0.2 + contrast * stroke(200, 200) for contrast in (0.4, 1))
    faint, strong = (prepare_digit(image, 28, 28, 20) for image in (faint, strong))
    np.testing.assert_allclose(faint, strong, atol=0.02)


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


def jpeg_of_scans(n, between=b"", end=b"\xff\xd9", size=(64, 64)):
    """A progressive JPEG that repeats the header of its first scan, without data."""
    file = io.BytesIO()
    Image.new("L", size).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start = data.index(b"\xff\xda")
    scan = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]
    return data[:start] + (scan + between) * n + end


@pytest.mark.parametrize("between", [b"", b"\xff\x01", b"\xff\xff\xff", b"\xff\xd0\0"])
def test_a_jpeg_of_thousands_of_scans(tmp_path, monkeypatch, between):
    monkeypatch.setattr(images, "_MAX_SCANNED_PIXELS", 64 * 64 * 50)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_of_scans(51, between))
    with pytest.raises(DataError, match="a JPEG of a few scans, got 51") as error:
        read_image(path)
    one_line(error, path)
    path.write_bytes(jpeg_of_scans(50, end=b"\xff\xd9" + jpeg_of_scans(50)))
    assert is_valid(read_image(path))


def test_what_looks_like_scans_within_a_segment_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MAX_SCANNED_PIXELS", 40 * 30 * 20)
    path = tmp_path / "a.jpg"
    picture().save(path, progressive=True, comment=b"\xff\xda\0\2" * 100)
    assert is_valid(read_image(path))


def test_a_compressed_bmp_of_very_many_pixels(tmp_path, monkeypatch):
    body = b"\x08\x01\0\0" * 4 + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, 8, 1, len(body), 0, 0, 0, 0)
    start = 14 + len(header) + 1024
    data = struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + header
    path = tmp_path / "a.bmp"
    path.write_bytes(data + bytes(range(256)) * 4 + body)
    assert read_image(path).shape == (4, 8, 3)
    monkeypatch.setattr(images, "_MAX_RLE_PIXELS", 31)
    with pytest.raises(DataError, match="BMP of at most 31 pixels, got 32") as error:
        read_image(path)
    one_line(error, path)


def test_errors_hold_nothing_that_a_terminal_obeys(tmp_path):
    with pytest.raises(DataError) as error:
        read_image(tmp_path / "\x1b[2J.png")
    assert str(error.value).isprintable()

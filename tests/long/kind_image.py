"""Pictures, for `--predict` and in folders: PNG, JPEG, BMP, GIF, WebP and TIFF."""

import io
import json
import struct
import zlib
from functools import cache

import h5py
import numpy as np
from PIL import Image

from tests.long.cases import (
    NUMBERS,
    Case,
    Kind,
    check_images,
    load_dataset,
    no_file,
)

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "P transparent"),
    "JPEG": ("L", "RGB", "CMYK", "L progressive", "RGB progressive", "RGB turned"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("L", "P", "P transparent", "P frames"),
    "WEBP": ("RGB", "RGBA", "RGB turned", "RGBA lossless", "RGBA frames"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "CMYK", "I;16", "RGB turned", "RGB frames"),
}
# The same, as libtiff packs them.
MODES["TIFF"] += tuple(f"{mode} {how}" for mode in ("L", "P", "RGBA") for how in "zrl")
# Models that a picture may be for: what they say of themselves.
MODELS = {
    "digits": {"input_shape": [28, 28, 1], "digit_box": 20, "border_brightness": 0.0},
    "photos": {"input_shape": [20, 30, 3], "digit_box": None, "border_brightness": 0.5},
    "grey": {"input_shape": [24, 16, 1], "digit_box": None, "border_brightness": 0.9},
}


@cache
def model_file(name: str) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        h5.attrs["capsnet"] = json.dumps({"format_version": 1, **MODELS[name]})
    return file.getvalue()


@cache
def picture(form: str, mode: str) -> bytes:
    """A small valid picture, the same every time."""
    mode, _, extra = mode.partition(" ")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), "uint8")
    pixels[:12] = 200  # an even part, which packs well
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype("uint16") * 257)
    else:
        image = image.convert("RGB" if mode in ("CMYK", "P") else "RGBA").convert(mode)
    options = {
        "lossless": {"lossless": True},
        "z": {"compression": "tiff_adobe_deflate"},
        "r": {"compression": "packbits"},
        "l": {"compression": "tiff_lzw"},
        "progressive": {"progressive": True},
        "transparent": {"transparency": 3},
        "frames": {
            "save_all": True,
            "append_images": [image.rotate(90), image.rotate(180)],
        },
    }.get(extra, {})
    if extra == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def of_picture(rng, data, what="valid", refused=False) -> Case:
    extension = rng.choice(("png", "png", "jpg", "bmp", "gif", "webp", "tif"))
    if rng.random() < 0.6:
        name = rng.choice(list(MODELS))
        path = f"picture.{extension}"
        argv = ["--predict", path, "-w", "model.h5"]
        argv += ["--invert", rng.choice(("auto", "yes", "no"))]
        files = {"model.h5": model_file(name), path: data}
    else:
        good = picture("PNG", "RGB")
        files = {f"data/{c}/{i}.png": good for c in "ab" for i in range(3)}
        path = f"data/a/9.{extension}"
        files[path] = data
        argv = ["--dataset", "data"]
        argv += rng.choice(([], ["--image_size", "20", "18"], ["--grayscale"]))
    return Case(files, argv, what, refused, target=path)


def choose(rng, form=None) -> tuple[bytes, str]:
    form = form or rng.choice(FORMATS)
    mode = rng.choice(MODES[form])
    return picture(form, mode), f"{form} {mode}"


def valid(rng) -> Case:
    return of_picture(rng, *choose(rng))


# PNG: chunks.


def png(parts: list[tuple[bytes, bytes]]) -> bytes:
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in parts:
        check = struct.pack(">I", zlib.crc32(name + content))
        data += struct.pack(">I", len(content)) + name + content + check
    return data


def png_pixels(rng):
    """Pixels of any size, packed well: as many as there may be, and more."""
    side, depth = rng.choice(((300, 8), (5000, 8), (9400, 8), (9500, 8), (30_000, 1)))
    colours = rng.choice((0, 2, 3, 4, 6)) if depth == 8 else rng.choice((0, 3))
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    size = side * (1 + side * samples * depth // 8)
    stream = zlib_zeros(min(size, rng.choice((size, size, 400 * 10**6))))
    header = struct.pack(">IIBBBBB", side, side, depth, colours, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", bytes(range(6))), (b"IDAT", stream)]
    if colours in (0, 4):  # grey has no palette
        del parts[1]
    parts.append((b"IEND", b""))
    what = f"PNG of {side} x {side}, depth {depth}, colours {colours}"
    return of_picture(rng, png(parts), what, side >= 9500)


@cache
def zlib_zeros(n: int) -> bytes:
    packer = zlib.compressobj(1)
    whole = [packer.compress(bytes(10**6)) for _ in range(n // 10**6)]
    return b"".join([*whole, packer.compress(bytes(n % 10**6)), packer.flush()])


# TIFF: a directory of anything.


def tiff_directory(rng):
    """Entries with other tags, types, numbers of values or values, and further ones."""
    data, what = choose(rng, "TIFF")
    data = bytearray(data)
    (start,) = struct.unpack_from("<I", data, 4)
    (n,) = struct.unpack_from("<H", data, start)
    entries = [
        list(e) for e in struct.iter_unpack("<HHII", data[start + 2 :][: 12 * n])
    ]
    tags = (258, 259, 262, 273, 277, 279, 284, 317, 320, 322, 323, 324)
    small = (0, 1, 2, 3, 4, 5, 8, 16, 32, 255, 1000, 65535)
    for _ in range(rng.randint(1, 3)):
        entry, i = rng.choice(entries), rng.randrange(4)
        value = rng.choice((rng.choice(small), rng.choice(NUMBERS)))
        value = rng.choice(tags) if i == 0 else value
        entry[i] = value % (2**16 if i < 2 else 2**32)
    if rng.random() < 0.5:
        number = rng.choice((1, 3, 100_000, 10**7, 2**31))
        tag = rng.choice((273, 279, 320, 322, 325, 330, 34665))
        entries.append([tag, rng.choice((1, 3, 4, 5, 12)), number, len(data) - 4])
    data[4:8] = struct.pack("<I", len(data))
    data += struct.pack("<H", len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    data += struct.pack("<I", rng.choice((0, 8, len(data), 2**31)))
    return of_picture(rng, bytes(data), f"{what}: {entries}")


# What is no picture of these.


def other_format(rng):
    """What Pillow would read as well, or hand to another program."""
    form = rng.choice(("PPM", "ICO", "PCX", "TGA", "EPS", "PDF"))
    file = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(file, form)
    data = file.getvalue()
    if form == "EPS":
        data = data.replace(b"%%EndComments", b"%%EndComments\n(stolen) (w) file")
    return of_picture(rng, data, f"a {form} file", True)


def no_picture(rng):
    case = no_file(valid, rng)
    # In a folder of pictures, a folder with such a name is none.
    case.refused &= "a folder" not in case.what or "--predict" in case.argv
    return case


def read(options, own) -> None:
    """Reads pictures as `uses.use_model` does, or a folder of them."""
    from capsnet.photos import prepare_picture
    from capsnet.pictures import image_shape, read_image
    from capsnet.uses import MNIST_INFO

    if options.mode != "use":
        load_dataset(options, own)
        return
    info = {**MNIST_INFO, **options.info}
    height, width, channels = info["input_shape"]
    for path in own.predict:
        picture = read_image(path, channels)
        check_images(picture[np.newaxis], (channels,))
        if image_shape(path)[:2] != picture.shape[:2]:
            raise AssertionError("the header says another size")
        prepared, _ = prepare_picture(picture, info, own.invert)
        check_images(prepared[np.newaxis], (channels,))
        if prepared.shape != (height, width, channels):
            raise AssertionError(f"prepared as {prepared.shape}")


IMAGE = Kind(
    valid,
    [
        *(png_pixels, tiff_directory, other_format, no_picture),
    ],
    read,
)

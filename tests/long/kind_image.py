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
    damage,
    load_dataset,
    special,
)

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "P transparent"),
    "JPEG": ("L", "RGB", "CMYK", "L progressive", "RGB progressive", "RGB turned"),
    "BMP": ("1", "L", "P", "RGB", "RGBA", "P compressed"),
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
    if extra == "compressed":
        body = b"".join(b"\x20" + bytes([row]) + b"\0\0" for row in range(24))
        return bmp(32, 24, 8, 1, bytes(range(256)) * 4, body + b"\0\1")
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
    return Case(files, argv, what, refused, path)


def choose(rng, form=None) -> tuple[bytes, str]:
    form = form or rng.choice(FORMATS)
    mode = rng.choice(MODES[form])
    return picture(form, mode), f"{form} {mode}"


def valid(rng) -> Case:
    return of_picture(rng, *choose(rng))


# PNG: chunks, of which the checksums are made right again.


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    parts, at = [], 8
    while at < len(data):
        (n,) = struct.unpack_from(">I", data, at)
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + n]))
        at += 12 + n
    return parts


def png(parts: list, length=None, crc=None) -> bytes:
    data = b"\x89PNG\r\n\x1a\n"
    for i, (name, content) in enumerate(parts):
        n = length[1] if length and length[0] == i else len(content)
        check = zlib.crc32(name + content) ^ (1 if crc == i else 0)
        data += struct.pack(">I", n) + name + content + struct.pack(">I", check)
    return data


def png_header(rng):
    """IHDR: sides, depth, colours, and how it is packed."""
    data, what = choose(rng, "PNG")
    parts = chunks(data)
    fields = list(struct.unpack(">IIBBBBB", parts[0][1]))
    for _ in range(rng.randint(1, 2)):
        i = rng.randrange(7)
        small = (0, 1, 2, 3, 4, 6, 8, 16, 32, 255)
        fields[i] = rng.choice(NUMBERS) % 2**32 if i < 2 else rng.choice(small)
    parts[0] = (b"IHDR", struct.pack(">IIBBBBB", *fields))
    return of_picture(rng, png(parts), f"{what}: IHDR {fields}")


def png_chunks(rng):
    """Chunks that are missing, there twice, elsewhere, or damaged within."""
    data, what = choose(rng, "PNG")
    parts = chunks(data)
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    change = rng.choice(("cut", "twice", "swap", "damage", "length", "crc", "name"))
    length = crc = None
    if change == "cut":
        del parts[i]
    elif change == "twice":
        parts.insert(j, parts[i])
    elif change == "swap":
        parts[i], parts[j] = parts[j], parts[i]
    elif change == "damage":
        parts[i] = (parts[i][0], damage(rng, parts[i][1])[0])
    elif change == "length":
        length = i, rng.choice(NUMBERS) % 2**32
    elif change == "crc":
        crc = i
    else:
        parts[i] = (rng.choice((b"abcd", b"\0\0\0\0", b"IDAT", b"tRNS")), parts[i][1])
    what = f"{what}: chunk {i}, {change} {length or ''}"
    return of_picture(rng, png(parts, length, crc), what)


def exif(rng) -> bytes:
    """A forged directory of EXIF data: loops, huge counts, strange orientations."""
    order = rng.choice("<>")
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    entries = b""
    n = rng.choice((1, 2, 20))
    for _ in range(n):
        tag = rng.choice((0x0112, 0x0112, 0x8769, 0x8825, 0xA005, 0x927C, 0xB002))
        kind = rng.choice((*range(14), 255))
        count = rng.choice((1, 1, 2, *NUMBERS)) % 2**32
        value = rng.choice((0, 1, 6, 8, 9, 2**31, 2**32 - 1))
        entries += struct.pack(f"{order}HHII", tag, kind, count, value)
    count = rng.choice((n, n, 0, 65535))
    following = struct.pack(f"{order}I", rng.choice((0, 8, 2**32 - 1)))
    return start + struct.pack(f"{order}H", count) + entries + following


def png_extra(rng):
    """A chunk of metadata that is forged, or unpacks to far more."""
    data, what = choose(rng, "PNG")
    parts = chunks(data)
    bomb = zlib.compress(bytes(rng.choice((100, 2 * 10**6, 100 * 10**6))), 9)
    many = [(b"tEXt", b"k%d\0" % i + bytes(900)) for i in range(20_000)]
    extra = rng.choice(
        [
            [(b"iCCP", b"name\0\0" + bomb)],
            [(b"zTXt", b"key\0\0" + bomb)],
            [(b"zTXt", b"key\0\0" + bomb)] * 60,
            [(b"iTXt", b"key\0\1\0en\0key\0" + bomb)],
            [(b"tEXt", b"\xff" * 100)],
            many,
            [(b"eXIf", exif(rng))],
            [(b"tEXt", b"Raw profile type exif\0\nexif\n  10\n" + b"zz" * 50)],
            [(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nx\n9\n4d"))],
            [(b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 3, 6, 256, 1000))))],
            [(b"PLTE", rng.randbytes(rng.choice((0, 1, 3, 6, 768, 3000))))],
            [(b"acTL", struct.pack(">II", rng.choice(NUMBERS) % 2**32, 0))],
            [(b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", rng.randbytes(26))],
            [(b"fdAT", bytes(4))],
            [(b"gAMA", bytes(4)), (b"cHRM", bytes(7)), (b"sRGB", b""), (b"pHYs", b"1")],
            [(b"CgBI", b"PP\0\2")],
        ]
    )
    at = rng.choice((1, 1, len(parts) - 1))
    parts[at:at] = extra
    size = sum(len(content) for _, content in extra)
    what = f"{what}: {extra[0][0]} x {len(extra)}, {size} bytes"
    return of_picture(rng, png(parts), what)


def png_pixels(rng):
    """Pixels of any size, packed well: as many as there may be, and more."""
    side, depth = rng.choice(((300, 8), (5000, 8), (9400, 8), (9500, 8), (30_000, 1)))
    colours = rng.choice((0, 2, 3, 4, 6)) if depth == 8 else rng.choice((0, 3))
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    size = side * (1 + side * samples * depth // 8)
    stream = zlib_zeros(min(size, rng.choice((size, size, 400 * 10**6))))
    header = struct.pack(">IIBBBBB", side, side, depth, colours, 0, 0, 0)
    parts = [(b"IHDR", header), (b"PLTE", bytes(range(6))), (b"IDAT", stream)]
    if colours in (0, 4):
        del parts[1]
    if colours in (0, 2, 3) and rng.random() < 0.5:
        parts.insert(-1, (b"tRNS", bytes(6)[: {0: 2, 2: 6, 3: 1}[colours]]))
    parts.append((b"IEND", b""))
    what = f"PNG of {side} x {side}, depth {depth}, colours {colours}"
    return of_picture(rng, png(parts), what, side >= 9500)


@cache
def zlib_zeros(n: int) -> bytes:
    packer = zlib.compressobj(1)
    whole = [packer.compress(bytes(10**6)) for _ in range(n // 10**6)]
    return b"".join([*whole, packer.compress(bytes(n % 10**6)), packer.flush()])


# JPEG: segments.


def segments(data: bytes) -> list[bytes]:
    """Segments with their markers; the last one is the scan and all behind it."""
    parts, at = [data[:2]], 2
    while data[at + 1] != 0xDA:
        n = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(data[at : at + n])
        at += n
    return [*parts, data[at:]]


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_frame(rng):
    """The frame's sides, precision, components and their sampling."""
    data, what = choose(rng, "JPEG")
    parts = segments(data)
    (i,) = (i for i, part in enumerate(parts) if part[1] in (0xC0, 0xC2))
    frame = bytearray(parts[i])
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(frame))
        frame[at] = rng.choice(
            (0, 1, 2, 3, 4, 8, 12, 0x11, 0x44, 0xC1, 0xC3, 0xC9, 255)
        )
    if rng.random() < 0.4:
        sides = [rng.choice((0, 1, 9000, 9460, 65500, 65535)) for _ in range(2)]
        frame[5:9] = struct.pack(">HH", *sides)
    parts[i] = bytes(frame)
    return of_picture(rng, b"".join(parts), f"{what}: frame {frame.hex()}")


def jpeg_segments(rng):
    data, what = choose(rng, "JPEG")
    parts = segments(data)
    i, j = (rng.randrange(1, len(parts)) for _ in range(2))
    change = rng.choice(("cut", "twice", "swap", "damage", "length"))
    if change == "cut":
        del parts[i]
    elif change == "twice":
        parts.insert(j, parts[i])
    elif change == "swap":
        parts[i], parts[j] = parts[j], parts[i]
    elif change == "damage":
        parts[i] = parts[i][:4] + damage(rng, parts[i][4:])[0]
    else:
        length = struct.pack(">H", rng.choice(NUMBERS) % 2**16)
        parts[i] = parts[i][:2] + length + parts[i][4:]
    return of_picture(rng, b"".join(parts), f"{what}: segment {i}, {change}")


def jpeg_extra(rng):
    """A segment of metadata that is forged."""
    data, what = choose(rng, "JPEG")
    parts = segments(data)
    extra = rng.choice(
        [
            [segment(0xE1, b"Exif\0\0" + exif(rng))],
            [segment(0xE1, b"Exif\0\0" + exif(rng))] * 3,
            [segment(0xE2, b"MPF\0" + exif(rng))],
            [segment(0xE2, b"MPF\0II*\0\x08\0\0\0\1\0\1\xb0\4\0\1\0\0\0\2\0\0\0")],
            [segment(0xE2, b"ICC_PROFILE\0\1" + bytes([n]) + bytes(60_000))]
            * rng.choice((1, 200))
            if (n := rng.choice((0, 1, 2, 255))) is not None
            else [],
            [segment(0xEE, b"Adobe" + rng.randbytes(7))],
            [segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\xff\xff\xff\xff")],
            [segment(0xED, b"Photoshop 3.0\0" + rng.randbytes(100))],
            [segment(0xE0, b"JFIF" + rng.randbytes(9))],
            [segment(0xFE, bytes(60_000))] * 500,
            [segment(0xDD, rng.randbytes(2))],
            [segment(0xDC, rng.randbytes(2))],
            [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<?xml" + b"<a>" * 9000)],
        ]
    )
    parts[1:1] = extra
    what = f"{what}: {extra[0][:12]} x {len(extra)}"
    return of_picture(rng, b"".join(parts), what)


def jpeg_scans(rng):
    """Thousands of scans of a few bytes, each of which goes over all pixels."""
    what = rng.choice(("L progressive", "RGB progressive"))
    parts = segments(picture("JPEG", what))
    sides = rng.choice(((24, 32), (1000, 1000), (9400, 9400)))
    (i,) = (i for i, part in enumerate(parts) if part[1] == 0xC2)
    parts[i] = parts[i][:5] + struct.pack(">HH", *sides) + parts[i][9:]
    head = parts[-1][: 2 + int.from_bytes(parts[-1][2:4], "big")]
    n = rng.choice((10, 200, 5000, 100_000))
    # A marker that means nothing, and one without a length, may not hide them.
    between = rng.choice((b"", b"", b"\xff\x01", b"\xff" * 9, b"\xff\xd0", b"\0" * 3))
    data = b"".join(parts[:-1]) + (head + between) * n + b"\xff\xd9"
    return of_picture(rng, data, f"JPEG {what}: {n} scans of {sides}, {between}")


# BMP and GIF: numbers at fixed places.


def bmp(width, height, bits, method, palette, body, size=40, offset=None) -> bytes:
    info = struct.pack("<iiHHIIiiII", width, height, 1, bits, method, 0, 0, 0, 0, 0)
    start = 14 + 4 + len(info) + len(palette)
    offset = start if offset is None else offset
    head = struct.pack("<2sIHHII", b"BM", start + len(body), 0, 0, offset, size)
    return head + info + palette + body


def bmp_header(rng):
    data, what = choose(rng, "BMP")
    data = bytearray(data)
    said = []
    for _ in range(rng.randint(1, 3)):
        at, n = rng.choice(
            [(2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)]
            + [(28, 2), (30, 4), (30, 4), (34, 4), (46, 4), (50, 4), (54, 4)]
        )
        value = rng.choice((*NUMBERS, 4, 5, 6, 12, 24, 32, 40, 64, 108, 124)) % 256**n
        data[at : at + n] = value.to_bytes(n, "little")
        said.append(f"{at}: {value}")
    return of_picture(rng, bytes(data), f"{what}: {', '.join(said)}")


def bmp_runs(rng):
    """Runs of pixels that end before or behind their row, or never."""
    width, height = rng.choice(
        ((32, 24), (1, 1), (3000, 3000), (9_000_000, 9), (9, -9))
    )
    bits = rng.choice((4, 8))
    pieces = (
        b"\0\0",
        b"\0\1",
        b"\0\2\xff\xff",
        b"\0\xff",
        b"\xff\1",
        b"\1\1",
        b"\0\3abc",
    )
    n = rng.choice((1, 24, 500, 20_000))
    body = b"".join(rng.choice(pieces) for _ in range(n))
    if rng.random() < 0.5:
        body = b"\1\1\0\0" * n
    data = bmp(width, height, bits, 3 - bits // 4, bytes(4 << bits), body)
    what = f"BMP of {width} x {height}, {bits} bits, {n} runs"
    return of_picture(rng, data, what)


def gif_blocks(rng):
    """Numbers in the headers of a GIF."""
    data, what = choose(rng, "GIF")
    data = bytearray(data)
    places = [6, 7, 8, 9, 10, 11, 12]
    if (frame := data.find(b",\0\0\0\0")) > 0:
        places += range(frame, frame + 14)
    if (control := data.find(b"!\xf9")) > 0:
        places += range(control, control + 8)
    said = []
    for _ in range(rng.randint(1, 3)):
        at = rng.choice(places)
        data[at] = rng.choice((0, 1, 2, 7, 8, 12, 31, 0x2C, 0x3B, 0x80, 0x87, 254, 255))
        said.append(f"{at}: {data[at]}")
    return of_picture(rng, bytes(data), f"{what}: {', '.join(said)}")


def gif_extra(rng):
    """Extensions, frames beyond the screen, and frames without end."""
    width, height = rng.choice(((1, 1), (32, 24), (9000, 9000), (65535, 65535)))
    screen = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x80, 0, 0) + bytes(6)
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 2000 + b"\0"
    loop = b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"
    place = [rng.choice((0, 1, width, 65535)) for _ in range(4)]
    frame = b"," + struct.pack("<HHHHB", *place, rng.choice((0, 0x40)))
    frame += bytes([rng.choice((0, 1, 2, 8, 11, 12, 255))])
    frame += b"\x16" + rng.randbytes(22) + rng.choice((b"\0", b""))
    parts = rng.choices((comment, loop, frame, b"!\xf9\4\xff\0\0\xff\0"), k=5)
    parts = rng.choice((parts, [frame] * 5000, [frame, comment], [b"!"] * 9, [comment]))
    data = screen + b"".join(parts) + rng.choice((b";", b""))
    return of_picture(rng, data, f"GIF of {width} x {height}, frame {place}")


# TIFF: a directory. WebP: sizes at fixed places.


def tiff_directory(rng):
    """Entries with other tags, types, numbers of values or values, and further ones."""
    data, what = choose(rng, "TIFF")
    data = bytearray(data)
    (start,) = struct.unpack_from("<I", data, 4)
    (n,) = struct.unpack_from("<H", data, start)
    entries = [
        list(e) for e in struct.iter_unpack("<HHII", data[start + 2 :][: 12 * n])
    ]
    said = []
    for _ in range(rng.randint(1, 3)):
        entry, i = rng.choice(entries), rng.randrange(4)
        tags = (258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324)
        small = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 255, 1000, 65535))
        value = rng.choice(tags) if i == 0 else rng.choice((small, rng.choice(NUMBERS)))
        entry[i] = value % (2**16 if i < 2 else 2**32)
        said.append(entry)
    if rng.random() < 0.5:
        number = rng.choice((1, 3, 100_000, 10**7, 2**31))
        place = rng.choice((8, start, len(data) - 4))
        tag = rng.choice((273, 279, 320, 322, 323, 325, 330, 34665, 34853, 700))
        entries.append([tag, rng.choice((1, 3, 4, 5, 12)), number, place])
        said.append(entries[-1])
    data[4:8] = struct.pack("<I", len(data))
    data += struct.pack("<H", len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    data += struct.pack("<I", rng.choice((0, 8, len(data), 2**31)))
    data += bytes(rng.choice((0, 0, 10**7)))
    return of_picture(rng, bytes(data), f"{what}: {said}")


def webp_chunks(rng):
    """Sides and sizes in the headers of a WebP, and chunks behind its end."""
    data, what = choose(rng, "WEBP")
    data = bytearray(data)
    said = []
    for _ in range(rng.randint(1, 3)):
        at, n = rng.choice(
            ((4, 4), (16, 4), (20, 1), (21, 4), (24, 3), (26, 2), (27, 3))
        )
        value = rng.choice(NUMBERS) % 256**n
        data[at : at + n] = value.to_bytes(n, "little")
        said.append(f"{at}: {value}")
    if rng.random() < 0.3:
        data += rng.choice((bytes(data[12:]), b"EXIF\xff\xff\xff\x7f", bytes(1000)))
    return of_picture(rng, bytes(data), f"{what}: {', '.join(said)}")


# What is no picture of these.


def other_format(rng):
    image = Image.new("RGB", (32, 24), "red")
    form = rng.choice(("PPM", "ICO", "PCX", "TGA", "EPS", "PDF", "XBM"))
    file = io.BytesIO()
    (image.convert("1") if form == "XBM" else image).save(file, form)
    data = file.getvalue()
    if form == "EPS":
        data = data.replace(b"%%EndComments", b"%%EndComments\n(stolen) (w) file")
    if form == "XBM" and rng.random() < 0.5:
        form, data = "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    return of_picture(rng, data, f"a {form} file", True)


def start_only(rng):
    """Nothing but the bytes that a format is known by, or garbage behind them."""
    starts = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF89a", b"GIF87a")
    starts += (b"RIFF\x20\0\0\0WEBPVP8X", b"II*\0", b"MM\0*", b"II+\0")
    start = rng.choice(starts)
    data = start + rng.randbytes(rng.choice((0, 1, 4, 30, 1000)))
    return of_picture(rng, data, f"{start} and {len(data) - len(start)} bytes")


def no_file(rng):
    case = special(rng, valid(rng))
    # In a folder of pictures, a folder with such a name is none.
    case.refused = "a folder" not in case.what or "--predict" in case.argv
    return case


def read(args) -> None:
    """Reads pictures as `capsulenet.use_model` does, or a folder of them."""
    import capsulenet
    from capsnet.pictures import image_shape, read_image

    if not args.predict:
        load_dataset(args)
        return
    info = {**capsulenet.MNIST_INFO, **args.info}
    height, width, channels = info["input_shape"]
    pictures = [read_image(path, channels) for path in args.predict]
    for path, read in zip(args.predict, pictures):
        check_images(read[np.newaxis], (channels,))
        if image_shape(path)[:2] != read.shape[:2]:
            raise AssertionError("the header says another size")
    for prepared, _ in (
        capsulenet.prepare_picture(read, info, args.invert) for read in pictures
    ):
        check_images(prepared[np.newaxis], (channels,))
        if prepared.shape != (height, width, channels):
            raise AssertionError(f"prepared as {prepared.shape}")


IMAGE = Kind(
    valid,
    [
        *(png_header, jpeg_frame, bmp_header, gif_blocks, png_chunks, jpeg_scans),
        *(png_extra, jpeg_extra, bmp_runs, gif_extra, png_pixels, jpeg_segments),
        *(tiff_directory, webp_chunks),
        *(other_format, start_only, no_file),
    ],
    read,
)

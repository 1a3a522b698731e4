"""Picture files: read them, fit them to a network, find them in folders."""

import contextlib
import logging
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from capsnet.errors import (
    MAX_CLASSES,
    DataError,
    is_class_name,
    one_line,
    reason,
    shorten,
    warn,
)
from capsnet.memory import check_memory

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
ORIENTATION = 0x0112  # the EXIF tag
LUMINANCE = np.array([0.299, 0.587, 0.114], "float32")  # of red, green and blue
# Bytes for a pixel while a picture is read: Pillow's and ours, as measured.
_PIXEL_COST = 32
_MAX_FILE = 1 << 29  # bytes; no picture of `Image.MAX_IMAGE_PIXELS` pixels needs more

# Pillow logs errors that it raises as well; without a handler, Python prints them.
logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())

# One file.


def read_image(path: str | os.PathLike[str], channels: int | None = None) -> np.ndarray:
    """Reads a PNG, JPEG, BMP, GIF, WebP or TIFF picture, of several the first one.

    Photos are turned upright as their EXIF data say, transparent pixels lie over
    white, and 16-bit grey keeps its precision.

    Args:
        path: Name of the file; what is in it decides on the format, not its extension.
        channels: 1 for grey (the luminance of colours), 3 for colours, `None` for what
            the picture has. A palette without a colour in it counts as grey.

    Returns:
        Pixels in [0, 1], float32 of shape `(height, width, channels)`.

    Raises:
        DataError: If there is no such file, or it is not a picture, is damaged or
            truncated, or has more than Pillow's `Image.MAX_IMAGE_PIXELS` pixels, or
            more than there is memory for.
    """
    with _open(path) as image:
        if channels not in (None, 1, 3):
            raise DataError(f"expected 1 or 3 channels to read, got {channels}")
        _check_memory(image)
        orientation = _orientation(image)
        with _quiet_libtiff() if image.format == "TIFF" else contextlib.nullcontext():
            image.load()
        pixels = _upright(_pixels(image), orientation)
    if channels == 1 and pixels.shape[2] == 3:
        pixels = pixels @ LUMINANCE[:, np.newaxis]
    elif channels == 3 and pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    return np.ascontiguousarray(np.clip(pixels, 0, 1, out=pixels))


def image_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """The shape of what `read_image(path)` returns, from the header of the file.

    Args:
        path: Name of the file.

    Returns:
        `(height, width, channels)`.

    Raises:
        DataError: As `read_image` does; but damage after the header is not seen.
    """
    with _open(path) as image:
        sides = (image.height, image.width)
        if _orientation(image) >= 5:
            sides = sides[::-1]
        return *sides, _channels(image)


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image of which the header was read; any fault within is a `DataError`."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe may never end
            raise DataError("expected a picture, got a folder, a pipe or a device")
        size = os.stat(path).st_size  # parts of it are read whole, whatever they hold
        if size > _MAX_FILE:
            raise DataError(f"expected at most {_MAX_FILE} bytes, got {size}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _check_numbers(image)
                limit = Image.MAX_IMAGE_PIXELS or math.inf
                if image.width * image.height > limit:  # the filters are not per thread
                    raise Image.DecompressionBombError
                yield image
    except Exception as error:  # a damaged file raises nearly anything
        raise DataError(one_line(f"{path}: {_reason(error)}")) from None


def _check_numbers(image: Image.Image) -> None:
    """Refuses a TIFF of numbers that do not say which of them is white."""
    if image.format == "TIFF" and (
        image.mode in ("I", "F") or image.tag_v2.get(258) == (12,)
    ):
        raise DataError("expected a TIFF of 1 to 8 or 16 bits, got other numbers")


@contextlib.contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """Keeps off stderr what libtiff writes there of a damaged file, in C."""
    with open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _check_memory(image: Image.Image) -> None:
    size = image.width * image.height
    if image.format == "TIFF":  # a tile is unpacked whole
        tile = math.prod(int(image.tag_v2.get(tag, 1)) for tag in (322, 323))
        if tile > max(size, 1 << 20):
            raise DataError(f"expected tiles within the picture, got {tile} pixels")
    check_memory(_PIXEL_COST * size, "its pixels")


def _reason(error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        return (
            "expected a PNG, JPEG, BMP, GIF, WebP or TIFF picture, got something else"
        )
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return (
            f"expected a picture of at most {Image.MAX_IMAGE_PIXELS} pixels, got more"
        )
    return f"cannot be read: {reason(error)}"


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns it
        return 1
    # Not PNG's own method, which decodes the pixels to look for EXIF data behind them.
    orientation = Image.Image.getexif(image).get(ORIENTATION)
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _channels(image: Image.Image) -> int:
    if image.mode in ("P", "PA"):
        mode = image.palette.rawmode or image.palette.mode
        colours = np.frombuffer(bytes(image.palette.palette), "uint8")
        if mode == "RGB;L":  # all reds, all greens, all blues
            colours = colours[: len(colours) // 3 * 3].reshape(3, -1).T
        else:  # as many bytes for a colour as the mode has letters
            colours = colours[: len(colours) // len(mode) * len(mode)]
            colours = colours.reshape(-1, len(mode))
        return 1 if (colours[:, :3] == colours[:, :1]).all() else 3
    return 1 if image.mode in ("1", "L", "LA") or image.mode[0] == "I" else 3


def _pixels(image: Image.Image) -> np.ndarray:
    """Pixels of 1 channel or 3, transparent ones over white."""
    if image.mode[0] == "I":  # 16 bits, which Pillow's conversions would clip
        pixels = np.asarray(image, "float32")[..., None]
        transparent = pixels == image.info.get("transparency", -1)
        pixels = np.where(transparent, 1, pixels / np.float32(65535))
        is_negative = image.format == "TIFF" and image.tag_v2.get(262, 0) == 0
        return 1 - pixels if is_negative else pixels
    mode = "L" if _channels(image) == 1 else "RGB"
    if not image.has_transparency_data:
        pixels = _fractions(np.asarray(image.convert(mode)))
        return pixels.reshape(*pixels.shape[:2], len(mode))
    data = np.asarray(image.convert(mode + "A"))
    # 1 + (pixels - 1) * alpha, in place: there may be 90 million of them.
    pixels = _fractions(data[..., :-1])
    pixels -= 1
    pixels *= _fractions(data[..., -1:])
    pixels += 1
    return pixels


def _fractions(data: np.ndarray) -> np.ndarray:
    return np.divide(data, 255, dtype="float32")


# The size of the network's input.


def fit_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image to fit a frame, its aspect kept.

    It is centred on the median colour of its own border: what lies on white still does.

    Args:
        image: Pixels in [0, 1], shape `(h, w, channels)`.
        height: Height of the frame in pixels.
        width: Width of the frame.

    Returns:
        A new array, float32 of shape `(height, width, channels)`; a copy if the image
        has that size.
    """
    h, w, channels = image.shape
    if (h, w) == (height, width):
        return np.array(image, "float32")
    scale = min(height / h, width / w)
    h, w = max(1, round(h * scale)), max(1, round(w * scale))
    top, left = (height - h) // 2, (width - w) // 2
    edges = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    result = np.empty((height, width, channels), "float32")
    result[:] = np.median(edges, axis=0)
    for channel in range(channels):
        fitted = resize(image[..., channel], h, w)
        result[top : top + h, left : left + w, channel] = fitted
    return result


def resize(
    plane: np.ndarray,
    height: int,
    width: int,
    method: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """One channel, antialiased, in floating point."""
    image = Image.fromarray(np.ascontiguousarray(plane, "float32"))
    image = image.resize((width, height), method)
    return np.asarray(image).clip(0, 1)


# Folders.


def list_classes(folder: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """Lists the pictures of a folder that has one sub-folder for each class.

    Hidden files and folders are ignored. What else is left out is counted in lines on
    stderr: files whose extension is none of `EXTENSIONS`, pictures beside the class
    folders and folders within these.

    Args:
        folder: Name of the folder.

    Returns:
        The paths of each class, sorted by name, by the name of its folder. The classes
        are sorted by name, or by number if all their names are integers.

    Raises:
        DataError: If the folder cannot be read, there are not two class folders or
            more, or one of them has no picture.
    """
    folder = Path(folder)
    classes, skipped, beside, within = {}, Counter(), 0, 0
    for path in visible(folder):
        if not path.is_dir():
            beside += path.suffix.lower() in EXTENSIONS
            continue
        pictures = classes[path.name] = []
        for file in visible(path):
            suffix = file.suffix.lower()
            if file.is_dir():
                within += 1
            elif suffix in EXTENSIONS:
                pictures.append(file)
            else:
                skipped[suffix or "no extension"] += 1
    if not any(classes.values()):
        found = f"; found none in {shorten(list(classes))}" if classes else ""
        raise DataError(
            f"{folder}: expected a sub-folder of pictures for each class, or train/ "
            f"and test/ that hold these{found}"
        )
    for name, files in classes.items():
        if not is_class_name(name):
            raise DataError(f"{folder / name}: expected a name of printable characters")
        if not files:
            raise DataError(
                f"{folder / name}: class folder without a picture "
                f"({', '.join(EXTENSIONS)})"
            )
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(
            f"{folder}: expected 2 to {MAX_CLASSES} class folders, got {len(classes)}"
        )
    if skipped:
        counts = [f"{n} {suffix}" for suffix, n in skipped.most_common(5)]
        warn(
            f"{folder}: files left out: {skipped.total()} ({', '.join(counts)}); "
            f"pictures end in {', '.join(EXTENSIONS)}"
        )
    if beside:
        warn(f"{folder}: pictures left out, as they are in no class folder: {beside}")
    if within:
        warn(f"{folder}: folders left out, as they are in a class folder: {within}")
    if all(re.fullmatch(r"-?\d+", name) for name in classes):
        return dict(sorted(classes.items(), key=lambda item: int(item[0])))
    return classes


def visible(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, sorted by name.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(one_line(f"{folder}: {_reason(error)}")) from None
    return sorted(paths, key=lambda path: path.name)

"""What sets of images look like, and photos of digits in the layout of MNIST."""

import math

import numpy as np
from PIL import Image, ImageFilter

from capsnet.pictures import fit_image, resize

ALIKE = 0.05  # the difference of two shades of one background
SAMPLE = 2000  # images that say what all are like


def border_brightness(images: np.ndarray) -> float:
    """The mean of the outermost pixels.

    Args:
        images: Array of shape `(n, height, width, channels)`.
    """
    return float(_outermost(images).mean(dtype="float64"))


def border_colour(images: np.ndarray) -> np.ndarray:
    """The median of the outermost pixels, a number for each channel.

    Args:
        images: Array of shape `(n, height, width, channels)`.
    """
    return np.median(_outermost(images), axis=(0, 1))


def normalization_of(images: np.ndarray) -> dict[str, list[float]]:
    """Mean and variance to normalize images by, a number for each channel.

    Where most of the border has one colour, this is taken for the mean, so that the
    background of the images is zero, as it is in MNIST; else it is the mean colour. The
    variance is that of all pixels and channels around it, since a channel that says
    little is not to be blown up.

    Args:
        images: Array of shape `(n, height, width, channels)`.
    """
    images = np.asarray(images[:SAMPLE], "float32")
    n_pixels = images[..., 0].size
    mean = average = images.mean(axis=(0, 1, 2), dtype="float64")
    background = border_colour(images)
    if np.mean(np.abs(_outermost(images) - background).max(axis=-1) < ALIKE) > 0.5:
        mean = background.astype("float64")
    # without a copy of all images, which may fill the memory
    squares = np.einsum("nhwc,nhwc->c", images, images, dtype="float64")
    variance = squares / n_pixels - 2 * mean * average + mean**2
    variance = float(np.mean(variance))
    return {"mean": mean.tolist(), "variance": [max(variance, 1e-4)] * len(mean)}


def _outermost(images: np.ndarray) -> np.ndarray:
    """The outermost pixels of the first images: (images, pixels, channels)."""
    part = np.asarray(images[:SAMPLE], "float32")
    return part[:, _border(*images.shape[1:3])]


def _border(height: int, width: int) -> np.ndarray:
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    return border


def digit_box(images: np.ndarray) -> int | None:
    """Finds out whether images are laid out as MNIST's digits are.

    Those are grey on black, scaled so that the longest side of what is not black is
    20 pixels, and moved so that their centre of mass is that of the image. At least
    90 % of the images have to be so; the first 1000 are looked at.

    Args:
        images: Array of shape `(n, height, width, channels)`.

    Returns:
        The longest side in pixels, 20 for MNIST; `None` for any other layout.
    """
    _, height, width, channels = images.shape
    images = images[:1000, :, :, 0]
    if channels != 1:
        return None
    ink = images > 0
    sides = np.maximum(_extent(ink.any(axis=2)), _extent(ink.any(axis=1)))
    box = int(np.bincount(sides).argmax())
    mass = np.maximum(images.sum(axis=(1, 2), dtype="float64"), 1e-9)
    rows = images.sum(axis=2) @ np.arange(height) / mass
    columns = images.sum(axis=1) @ np.arange(width) / mass
    is_digit = (
        (sides == box)
        & (np.abs(rows - height // 2) <= 1)
        & (np.abs(columns - width // 2) <= 1)
        & ~ink[:, _border(height, width)].any(axis=1)
    )
    return box if is_digit.mean() >= 0.9 else None


def _extent(used: np.ndarray) -> np.ndarray:
    """From the first to the last of each row that is true, in elements."""
    n = used.shape[1]
    extent = n - used.argmax(axis=1) - used[:, ::-1].argmax(axis=1)
    return np.where(used.any(axis=1), extent, 0)


# A photo of a digit.

# Pixels by which the longest side of two overlapping digits is more than that of one.
PAIR = 4
WORK_SIDE = 320  # pixels; enough for a frame of 28 at any place in the photo
# The width of a stroke as a part of the symbol's longest side: 2 pixels of 20. Most of
# MNIST's digits are drawn with wider ones, and thin pens draw much finer ones.
MIN_STROKE = 0.1
TRACE = 0.25  # brightness that JPEG leaves nowhere beside a digit
# Pixels by which a digit may be larger, smaller or elsewhere and stays as it is: about
# what the training changes.
NEAR = 2


def is_inverted(picture: np.ndarray, info: dict) -> bool:
    """Whether a grey picture has a light border where training images have a dark one.

    Or the other way round. Light and dark are meant within the picture's own range,
    since the paper of a photo is seldom white.
    """
    expected = info["border_brightness"]
    if picture.shape[-1] != 1 or 0.25 < expected < 0.75:
        return False
    low, high = np.percentile(picture, (1, 99))
    border = border_brightness(picture[np.newaxis])
    return bool(high > low and (border - low > high - border) != (expected > 0.5))


def reduce(plane: np.ndarray, longest: int) -> np.ndarray:
    """Averages over pixels until the longest side is as asked; never enlarges.

    Args:
        plane: Pixels in [0, 1], shape `(height, width)`.
        longest: Side in pixels.
    """
    scale = min(1, longest / max(plane.shape))
    return resize(plane, *(max(1, round(side * scale)) for side in plane.shape))


def prepare_picture(picture: np.ndarray, info: dict, invert: str):
    """Makes of a picture what the network was trained on.

    If the model was trained on digits in MNIST's layout, the digit is cropped, scaled
    and centred in the same way, unless the picture has that layout already.

    Args:
        picture: An array of `read_image`.
        info: What the model file says about itself.
        invert: "yes", "no" or "auto".

    Returns:
        The image for the network, and a few words on what was done.
    """
    height, width, channels = info["input_shape"]
    done = []
    if invert == "yes" or (invert == "auto" and is_inverted(picture, info)):
        picture = 1 - picture
        done.append("inverted")
    fits = picture.shape == (height, width, channels)
    one_digit = info["digit_box"] and info["objects"] == 1
    if fits and (not one_digit or is_laid_out(picture, info["digit_box"])):
        return picture, ", ".join(done)
    if info["digit_box"]:
        box = info["digit_box"] + (PAIR if info["objects"] > 1 else 0)
        done.append(f"digit fitted into {box} pixels and centred")
        image = prepare_digit(picture, height, width, box)
    else:
        done.append(f"fitted into {height} x {width}")
        image = fit_image(picture, height, width)
    return image, ", ".join(done)


def is_laid_out(image: np.ndarray, box: int) -> bool:
    """Whether a picture shows a bright digit nearly in MNIST's layout; see `digit_box`.

    Args:
        image: Pixels in [0, 1], shape `(height, width, 1)`.
        box: The longest side of a digit.
    """
    ink = np.where(image[..., 0] > TRACE, image[..., 0], 0).astype("float64")
    if not ink.any():
        return False
    middle = np.array(ink.shape) // 2
    off = (np.argwhere(ink) - middle).T @ ink[ink > 0] / ink.sum()
    return abs(max(_crop(ink).shape) - box) <= NEAR and np.abs(off).max() <= NEAR


def prepare_digit(image: np.ndarray, height: int, width: int, box: int) -> np.ndarray:
    """Brings a photo of one bright symbol on a dark ground to the layout of MNIST.

    The ground may be lit unevenly. It is subtracted, the symbol is cut out, scaled
    and stretched to full brightness, and centred by its mass.

    Args:
        image: Pixels in [0, 1], shape `(h, w, 1)`; a photo of dark ink on light paper
            has to be inverted.
        height: Height of the result in pixels.
        width: Width of the result.
        box: Longest side of the symbol in the result; at most the sides of the result.

    Returns:
        Pixels in [0, 1], float32 of shape `(height, width, 1)`; all zeros if no ink is
        found.
    """
    result = np.zeros((height, width, 1), "float32")
    ink = _find_ink(reduce(image[..., 0], WORK_SIDE))
    if not ink.any():
        return result
    ink = _thicken(_crop(ink), MIN_STROKE)
    scale = min(box, height, width) / max(ink.shape)
    h, w = (max(1, round(side * scale)) for side in ink.shape)
    # Plain averages: a wider filter blurs the strokes more than those of MNIST are.
    digit = resize(ink, h, w, Image.Resampling.BOX)

    corner = []
    for axis, side in enumerate((height, width)):
        mass = digit.sum(axis=1 - axis, dtype="float64")
        centre = mass @ np.arange(len(mass)) / mass.sum()
        # The centre goes to pixel 14 of 28, as MNIST's did.
        start = math.floor(side // 2 - centre + 0.5)
        corner.append(min(max(start, 0), side - len(mass)))
    top, left = corner
    result[top : top + h, left : left + w, 0] = digit
    return result


def _crop(ink: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _thicken(ink: np.ndarray, part: float) -> np.ndarray:
    """Widens strokes that are thinner than a part of the symbol's longest side."""
    dy, dx = np.gradient(np.pad(ink, 2))
    width = 2 * ink.sum() / np.hypot(dy, dx).sum()  # the area over half the outline
    missing = max(0, round((part * max(ink.shape) - width) / 2))
    ink = np.pad(ink, missing)
    for _ in range(missing):
        ink = _spread(ink)
    return ink


def _find_ink(plane: np.ndarray) -> np.ndarray:
    """How much ink there is at each pixel, 0 to 1, without ground, noise and specks."""
    ground = _ground(plane)
    # The part of the light that the ink takes away, the same in light and in shade.
    ink = (plane - ground) / np.maximum(1 - ground, 0.2)
    side = max(plane.shape)
    if side >= 100:  # in smaller pictures a stroke may be as thin as the filter
        filtered = Image.fromarray(ink.astype("float32")).filter(
            ImageFilter.MedianFilter(3)
        )
        ink = np.asarray(filtered)
    strokes = ink > _otsu(ink)
    paper = ink[~strokes]
    contrast = ink[strokes].mean() - paper.mean() if strokes.any() else 0
    if contrast < max(0.15, 5 * paper.std()):
        return np.zeros_like(plane)
    strokes = _largest_components(strokes)
    ink = ink / np.median(ink[strokes])
    # The soft edge of the strokes is ink as well.
    for _ in range(math.ceil(side / 100)):
        strokes = _spread(strokes)
    return np.where(strokes & (ink > 0.1), ink, 0).clip(0, 1)


def _ground(plane: np.ndarray) -> np.ndarray:
    """A cubic surface through the ground, which is all that is not brighter ink."""
    small = reduce(plane, 64)
    powers = _powers(*small.shape)
    values = small.ravel()
    surface = np.zeros(len(values))
    # Brighter pixels weigh little, so that the surface sinks below the ink, to the same
    # place wherever it starts. Then follows an even fit to what is not ink.
    for _ in range(20):
        surface = _fit(powers, values, np.where(values > surface, 0.02, 1)) @ powers.T
    rest = values - surface
    coefficients = _fit(powers, values, rest <= _otsu(rest))
    return (_powers(*plane.shape) @ coefficients).reshape(plane.shape)


def _fit(powers: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients of the weighted least squares, the smallest where many would do."""
    weighted = powers.T * weights
    return np.linalg.lstsq(weighted @ powers, weighted @ values, rcond=1e-10)[0]


def _powers(height: int, width: int) -> np.ndarray:
    y = np.repeat((np.arange(height) + 0.5) / height * 2 - 1, width)
    x = np.tile((np.arange(width) + 0.5) / width * 2 - 1, height)
    return np.stack([y**i * x**j for i in range(4) for j in range(4 - i)], axis=1)


def _otsu(plane: np.ndarray) -> float:
    """The threshold that parts values into the two most compact classes."""
    counts, edges = np.histogram(plane, 256, (0, 1))
    centres = (edges[1:] + edges[:-1]) / 2
    below, sums = np.cumsum(counts), np.cumsum(counts * centres)
    n, total = below[-1], sums[-1]
    between = (total * below - sums * n) ** 2 / np.maximum(below * (n - below), 1)
    return float(edges[1 + between.argmax()])


def _largest_components(mask: np.ndarray) -> np.ndarray:
    """A mask without the connected parts that are small next to the largest one."""
    labels = _components(mask)
    sizes = np.bincount(labels.ravel(), minlength=mask.size + 1)
    sizes[0] = 0
    at_border = np.unique(labels[_border(*mask.shape)])
    inside = sizes.copy()
    inside[at_border] = 0
    # A shadow or the edge of the table enters from outside, the symbol does not;
    # unless the picture was cut so tight that there is nothing else.
    if inside.max() >= 0.002 * mask.size:
        sizes = inside
    return (sizes >= max(1, 0.05 * sizes.max()))[labels]


def _components(mask: np.ndarray) -> np.ndarray:
    """Numbers from 1 up, one for each connected part of a mask; 0 outside."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, _spread(labels), 0)
        if (spread == labels).all():
            return labels
        # The label of one's label: so the largest one crosses a part in a few rounds.
        labels = np.concatenate([[0], spread.ravel()])[spread]


def _spread(plane: np.ndarray) -> np.ndarray:
    """The largest of each pixel and its eight neighbours."""
    plane = np.pad(plane, 1)
    plane = np.maximum(np.maximum(plane[:-2], plane[2:]), plane[1:-1])
    return np.maximum(np.maximum(plane[:, :-2], plane[:, 2:]), plane[:, 1:-1])

"""Digits in other places and poses: a set like affNIST's test, made of MNIST's."""

import numpy as np
from PIL import Image

from capsnet.batches import shift

MARGIN = 6  # pixels around a digit, and the largest shift
SIDE = 40  # of affNIST's images
SEED = 0  # of all places and poses, whatever the seed of a run
# The published ranges of affNIST's transformations.
ROTATION = 20  # degrees, either way
SHEAR = 0.2
SCALES = (0.8, 1.2)  # of each direction


def place(x: np.ndarray, seed: int) -> np.ndarray:
    """Moves each padded digit to a place of its own, up to `MARGIN` pixels away."""
    rng = np.random.default_rng([SEED, seed])
    return shift(x, rng.integers(-MARGIN, MARGIN, size=(len(x), 2), endpoint=True))


def draw_matrices(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draws matrices that scale, then shear, then rotate, all uniformly.

    Args:
        n: How many.
        rng: Draws them.

    Returns:
        Shape (n, 2, 2), of coordinates (to the right, down).
    """
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION, n))
    shear = rng.uniform(-SHEAR, SHEAR, n)
    scales = rng.uniform(*SCALES, (n, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([cos, -sin, sin, cos], axis=1).reshape(n, 2, 2)
    shearing = np.stack([np.ones(n), shear, np.zeros(n), np.ones(n)], axis=1)
    return rotation @ shearing.reshape(n, 2, 2) * scales[:, np.newaxis]


def transform(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Transforms an image around its centre, bilinearly; zeros come in from outside.

    Args:
        image: Shape (height, width).
        matrix: From places in the image to places in the result, shape (2, 2), of
            coordinates (to the right, down).

    Returns:
        An array of the same shape.
    """
    # Pillow asks for the way back, from the centre of a pixel of the result.
    centre = np.array(image.shape[::-1]) / 2
    back = np.linalg.inv(matrix)
    a, b, c, d = back.ravel()
    e, f = centre - back @ centre
    pixels = Image.fromarray(np.ascontiguousarray(image, "float32"))
    method = Image.Transform.AFFINE
    coefficients = (a, b, e, c, d, f)
    return np.asarray(
        pixels.transform(pixels.size, method, coefficients, Image.Resampling.BILINEAR)
    )


def put_inside(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts a square out of an image, at random, in which all of the digit is.

    Args:
        image: Shape (height, width), with zeros around a digit.
        side: Of the square; a larger digit is put into its middle, and cut.
        rng: Chooses among all places.
    """
    starts = []
    for axis in (0, 1):
        used = np.flatnonzero(image.any(axis=1 - axis))
        first, last = (used[0], used[-1]) if len(used) else (0, 0)
        # The square may begin from where it ends with the digit to where it begins.
        low, high = last - side + 1, first
        middle = (low + high) // 2
        starts.append(rng.integers(low, high + 1) if low <= high else middle)
    padded = np.pad(image, side)
    top, left = (start + side for start in starts)
    return padded[top : top + side, left : left + side]


def synthesize(x: np.ndarray, repetition: int) -> np.ndarray:
    """Makes a set like affNIST's test: each digit once, transformed and placed.

    Args:
        x: Digits, shape (n, 28, 28, 1).
        repetition: Another set for each number.

    Returns:
        Images, float32 of shape (n, 40, 40, 1).
    """
    rng = np.random.default_rng([SEED, 2, repetition])
    matrices = draw_matrices(len(x), rng)
    # Room for the corners of what is turned and scaled.
    room = x.shape[1] // 2
    images = np.empty((len(x), SIDE, SIDE, 1), "float32")
    for i, (image, matrix) in enumerate(zip(x[..., 0], matrices)):
        moved = np.clip(transform(np.pad(image, room), matrix), 0, 1)
        images[i, ..., 0] = put_inside(moved, SIDE, rng)
    return images

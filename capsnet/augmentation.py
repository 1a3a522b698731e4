"""Random affine changes of images: rotation, zoom, shear, shift, mirror."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Affine:
    """The ranges from which each image's change is drawn, all uniformly.

    Attributes:
        rotation: Largest angle in degrees, either way.
        zoom: Height and width change by factors of their own, exp(-zoom) to exp(zoom).
        shear: Largest shift of a row, as a part of its distance from the centre.
        shift: Largest shift as a part of the side, either way, down and to the right.
        flip: Whether every other image, at random, is mirrored left to right.
    """

    rotation: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    flip: bool = False

    def draw(
        self, n: int, height: int, width: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws a change for each of n images.

        Returns:
            Matrices for `transform`, float32 of shape (n, 2, 3).
        """
        u = rng.uniform(-1, 1, (6, n))
        angle = np.deg2rad(self.rotation) * u[0]
        zoom_y, zoom_x = np.exp(self.zoom * u[1:3])
        shear = self.shear * u[3]
        if self.flip:
            zoom_x = np.where(rng.random(n) < 0.5, -zoom_x, zoom_x)
        cos, sin = np.cos(angle), np.sin(angle)
        matrices = np.empty((n, 2, 3), "float32")
        # from places in the result, (down, to the right), to places in the image:
        # rotate, then shear, then zoom
        matrices[:, 0, 0] = cos / zoom_y
        matrices[:, 0, 1] = -sin / zoom_y
        matrices[:, 1, 0] = (sin + shear * cos) / zoom_x
        matrices[:, 1, 1] = (cos - shear * sin) / zoom_x
        matrices[:, 0, 2] = self.shift * height * u[4]
        matrices[:, 1, 2] = self.shift * width * u[5]
        return matrices


def transform(images: np.ndarray, matrices: np.ndarray, fill=0.0) -> np.ndarray:
    """Transforms each image around its centre, bilinearly.

    Args:
        images: Shape (n, height, width, channels).
        matrices: For each image, where its pixels come from: `matrix[:, :2] @ (row,
            column) + matrix[:, 2]`, in pixels from the centre. Shape (n, 2, 3).
        fill: What comes in from outside; a number, or anything that broadcasts with
            `images`.

    Returns:
        An array of the shape and dtype of `images`.
    """
    n, height, width, channels = images.shape
    # Beyond a margin of one pixel all is alike, so that places may be cut off there.
    padded = np.empty((n, height + 2, width + 2, channels), images.dtype)
    padded[:] = fill
    padded[:, 1:-1, 1:-1] = images
    rows = (np.arange(height, dtype="float32") - (height - 1) / 2)[:, np.newaxis]
    columns = np.arange(width, dtype="float32") - (width - 1) / 2
    m = matrices[..., np.newaxis, np.newaxis]
    corners, parts = [], []  # places in the padded images, (n, height, width)
    for axis, side in enumerate((height, width)):
        place = m[:, axis, 0] * rows + m[:, axis, 1] * columns + m[:, axis, 2]
        place = np.clip(place + np.float32((side + 1) / 2), 0, side + 1)
        corner = np.minimum(place, side).astype("int32")
        corners.append(corner)
        parts.append((place - corner)[..., np.newaxis])
    (top, left), (y, x) = corners, parts
    first = np.arange(n, dtype="int32").reshape(-1, 1, 1) * (height + 2)
    index = (first + top) * (width + 2) + left
    pixels = padded.reshape(-1, channels)
    upper = pixels[index]
    upper += x * (pixels[index + 1] - upper)
    index += width + 2
    lower = pixels[index]
    lower += x * (pixels[index + 1] - lower)
    upper += y * (lower - upper)
    return upper

"""Affine changes of images: against SciPy, within their ranges, drawn from the seed."""

import numpy as np
import pytest
from scipy import ndimage

from capsnet.augmentation import Affine, transform

IDENTITY = np.eye(2, 3, dtype="float32")


def images(n=6, height=9, width=12, channels=1):
    return np.random.default_rng(0).random((n, height, width, channels), "float32")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fill", [0.0, 0.75])
def test_transform_is_that_of_scipy_in_float64(channels, fill):
    x = images(channels=channels)
    matrices = Affine(40, 0.4, 0.3, 0.3, flip=True).draw(
        6, 9, 12, np.random.default_rng(1)
    )
    changed = transform(x, matrices, fill)
    margin = 20
    for image, matrix, result in zip(x, matrices.astype("float64"), changed):
        centre = np.array([8, 11]) / 2 + margin
        offset = centre - matrix[:, :2] @ centre + matrix[:, 2]
        for channel in range(channels):
            # padded, since SciPy cuts off where bilinear weights would still reach
            padded = np.pad(
                image[..., channel].astype("float64"), margin, constant_values=fill
            )
            expected = ndimage.affine_transform(
                padded, matrix[:, :2], offset, order=1, cval=fill
            )[margin:-margin, margin:-margin]
            np.testing.assert_allclose(result[..., channel], expected, atol=1e-5)


def test_what_is_not_changed_stays_bit_for_bit():
    x = images()
    np.testing.assert_array_equal(transform(x, np.stack([IDENTITY] * 6)), x)


def test_each_image_may_have_a_fill_of_its_own():
    x = images(n=2)
    away = np.stack([IDENTITY + np.float32([[0, 0, 99], [0, 0, 0]])] * 2)
    fill = np.float32([0.25, 0.5]).reshape(2, 1, 1, 1)
    changed = transform(x, away, fill)
    np.testing.assert_array_equal(changed, np.broadcast_to(fill, x.shape))


def test_drawn_changes_stay_within_their_ranges_and_use_them():
    rng = np.random.default_rng(0)
    turned = Affine(rotation=30).draw(4000, 8, 8, rng)
    angles = np.rad2deg(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert np.abs(angles).max() == pytest.approx(30, abs=0.1)
    np.testing.assert_allclose(np.linalg.det(turned[:, :, :2]), 1, rtol=1e-5)
    zoomed = Affine(zoom=0.2).draw(4000, 8, 8, rng)
    for axis in (0, 1):
        factors = np.log(zoomed[:, axis, axis])
        assert (factors.min(), factors.max()) == pytest.approx((-0.2, 0.2), abs=0.001)
    assert np.abs(np.corrcoef(zoomed[:, 0, 0], zoomed[:, 1, 1])[0, 1]) < 0.05
    sheared = Affine(shear=0.3).draw(4000, 8, 8, rng)
    np.testing.assert_array_equal(sheared[:, 0, :2], [[1, 0]] * 4000)
    assert np.abs(sheared[:, 1, 0]).max() == pytest.approx(0.3, abs=0.001)
    moved = Affine(shift=0.25).draw(4000, 8, 16, rng)
    assert np.abs(moved[..., 2]).max(axis=0) == pytest.approx([2, 4], abs=0.01)
    mirrored = Affine(flip=True).draw(4000, 8, 8, rng)
    assert np.mean(mirrored[:, 1, 1] == -1) == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(np.abs(mirrored[:, [0, 1], [0, 1]]), 1)

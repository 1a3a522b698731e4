"""photos.py: what sets of images look like, and photos of digits."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from test_pictures import is_valid

from capsnet.photos import (
    border_brightness,
    border_colour,
    digit_box,
    normalization_of,
    prepare_digit,
    prepare_picture,
)
from capsnet.pictures import fit_image, read_image

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
        lambda x, rng: 1 - x,  # dark on light
        lambda x, rng: rng.random(x.shape),
        lambda x, rng: (rng.random(x.shape) < 0.01).astype("float32"),  # specks
        lambda x, rng: np.zeros_like(x),
        lambda x, rng: np.roll(x, 3, axis=2),  # off the centre
        # of any size
        lambda x, rng: np.stack(
            [fit_image(a[: 20 + i % 9], 28, 28) for i, a in enumerate(x)]
        ),
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


def test_two_overlapping_digits_are_larger_than_one(digits):
    info = {"input_shape": [36, 36, 1], "border_brightness": 0.0, "digit_box": 20}
    photo = draw_photo(digits[0], np.random.default_rng(0))[..., None] / 255
    for objects, box in ((1, 20), (2, 24)):
        image, done = prepare_picture(photo, info | {"objects": objects}, "auto")
        sides = [np.ptp(np.flatnonzero(image.any(axis=axis))) + 1 for axis in (1, 0)]
        assert max(sides) == box
        assert done == f"inverted, digit fitted into {box} pixels and centred"


LIKE_MNIST = {"input_shape": [28, 28, 1], "border_brightness": 0.0}
LIKE_MNIST |= {"digit_box": 20, "objects": 1}


@pytest.mark.parametrize("quality", [None, 95, 75], ids=["png", "jpeg 95", "jpeg 75"])
def test_a_file_of_mnist_is_taken_as_it_is(mnist_images, quality, tmp_path):
    path = tmp_path / ("x.png" if quality is None else "x.jpg")
    for x in mnist_images[:200, ..., 0]:
        pixels = Image.fromarray((255 * x).round().astype("uint8"))
        pixels.save(path, **({} if quality is None else {"quality": quality}))
        picture = read_image(path)
        image, done = prepare_picture(picture, LIKE_MNIST, "auto")
        assert image is picture and done == ""


def test_a_digit_elsewhere_in_a_picture_of_28_pixels_is_centred(digits):
    for x in digits:
        top, left = (np.flatnonzero(x.any(axis=axis))[0] for axis in ((1, 2), (0, 2)))
        corner = np.roll(x, (1 - top, 1 - left), axis=(0, 1))
        image, done = prepare_picture(1 - corner, LIKE_MNIST, "auto")
        assert done == "inverted, digit fitted into 20 pixels and centred"
        assert digit_box(image[np.newaxis]) == 20
        assert np.corrcoef(x.ravel(), image.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("moved", "stays"), [(1, True), (4, False)])
def test_a_digit_may_be_where_the_training_moves_it(digits, moved, stays):
    picture = np.pad(digits[0], [(moved, 0), (0, 0), (0, 0)])[:28]
    image, done = prepare_picture(picture, LIKE_MNIST, "auto")
    assert (image is picture) == stays and (done == "") == stays


def test_other_pictures_of_the_right_size_stay_as_they_are(digits):
    for other in ({"digit_box": None}, {"objects": 2}):
        picture = np.roll(digits[0], 4, axis=0)
        image, done = prepare_picture(picture, LIKE_MNIST | other, "auto")
        assert image is picture and done == ""


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


# What a training takes from its images.


def test_the_colour_of_the_border_is_that_of_most_of_it():
    images = np.full((3, 6, 5, 3), 0.9, "float32")
    images[:, 1:-1, 1:-1] = 0.1
    images[0, 0] = (1.0, 0.0, 0.0)
    np.testing.assert_allclose(border_colour(images), [0.9] * 3)
    assert border_colour(images[..., :1]).shape == (1,)


def test_normalized_images_have_no_mean_colour_and_a_deviation_of_one():
    images = np.random.default_rng(0).random((20, 6, 5, 3), "float32")
    images[..., 1] = 0.8 + 0.02 * images[..., 1]  # a channel that says little
    found = normalization_of(images)
    normalized = (images - found["mean"]) / np.sqrt(found["variance"])
    np.testing.assert_allclose(normalized.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    assert np.mean(np.square(normalized)) == pytest.approx(1, rel=1e-5)
    assert normalized[..., 1].std() < 0.1  # is not blown up


def test_a_background_of_one_colour_is_zero_for_the_network():
    images = np.full((20, 8, 8, 3), (1.0, 0.9, 0.8), "float32")
    images[:, 2:6, 2:7] = np.random.default_rng(0).random((20, 4, 5, 3))
    images[:, 0, :3] = 0.3  # some of the border
    found = normalization_of(images)
    np.testing.assert_allclose(found["mean"], [1.0, 0.9, 0.8])
    normalized = (images - found["mean"]) / np.sqrt(found["variance"])
    assert np.mean(np.square(normalized)) == pytest.approx(1, rel=1e-5)
    black = normalization_of(np.zeros((2, 3, 3, 1)))
    assert black == {"mean": [0.0], "variance": [1e-4]}

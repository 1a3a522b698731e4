"""utils.py: tiles, and pictures that are written whatever there is to draw."""

import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import RendererAgg
from PIL import Image

import utils


@pytest.fixture(autouse=True)
def no_warnings():
    """A warning of the drawing library would land on the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def opened(path):
    """The picture as an array, after a look at its format and size."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        width, height = picture.size
        assert 600 <= width <= 2000
        assert 100 <= height <= 4000
        return np.asarray(picture.convert("RGB"))


def gray_box(pixels):
    """First row and column, height and width of what is half black, half white.

    Lines that hold only a few such pixels are the soft edges of letters.
    """
    gray = ((pixels == 127) | (pixels == 128)).all(axis=2)
    rows, columns = (np.flatnonzero(gray.sum(axis=axis) > 20) for axis in (1, 0))
    return rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1


def test_tiles_go_from_left_to_right_and_from_top_to_bottom():
    images = np.random.default_rng(0).random((5, 2, 3, 4), dtype="float32")
    tiled = utils.tile_images(images, columns=3)
    assert tiled.shape == (2 * 2, 3 * 3, 4) and tiled.dtype == np.float32
    for i, image in enumerate([*images, np.zeros((2, 3, 4))]):
        row, column = divmod(i, 3)
        part = tiled[2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(part, image)  # the rest of the last row is zero


@pytest.mark.parametrize("n", [1, 3, 50])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (20, 40, 1)])
def test_plot_reconstructions(tmp_path, n, shape):
    black = np.zeros((n, *shape), "float32")
    gray = np.full((n, *shape), 0.5, "float32")
    utils.plot_reconstructions(black, gray, str(tmp_path / "p.png"))
    pixels = opened(tmp_path / "p.png")
    top, _, height, width = gray_box(pixels)
    assert top > pixels.shape[0] / 2  # the reconstructions lie below
    rows, columns = -(-n // 10), min(n, 10)
    proportions = rows * shape[0] / (columns * shape[1])
    assert height / width == pytest.approx(proportions, rel=0.05)


def test_values_beyond_the_range_are_drawn_as_the_nearest(tmp_path):
    images = np.full((10, 28, 28, 3), 1.01, "float32")
    utils.plot_reconstructions(images - 1.02, images, str(tmp_path / "p.png"))
    opened(tmp_path / "p.png")


def test_reconstructions_of_colour_images_stay_coloured(tmp_path):
    red, blue = np.zeros((2, 10, 32, 32, 3), "float32")
    red[..., 0] = 1
    blue[..., 2] = 1
    utils.plot_reconstructions(red, blue, str(tmp_path / "p.png"))
    pixels = opened(tmp_path / "p.png")
    area = pixels.shape[0] * pixels.shape[1]
    for color in ((255, 0, 0), (0, 0, 255)):
        assert (pixels == color).all(axis=2).sum() > area / 10


@pytest.mark.parametrize(
    ("dimensions", "shape"), [(16, (28, 28, 1)), (4, (20, 30, 3)), (1, (28, 28, 1))]
)
def test_plot_manipulation(tmp_path, dimensions, shape):
    changes = np.arange(-5, 6) / 20
    images = np.full((dimensions * 11, *shape), 0.5, "float32")
    utils.plot_manipulation(images, changes, "Capsule of a 5", str(tmp_path / "p.png"))
    pixels = opened(tmp_path / "p.png")
    _, left, height, width = gray_box(pixels)
    assert height / width == pytest.approx(
        dimensions * shape[0] / (11 * shape[1]), rel=0.05
    )
    # Beside it is what the rows are, and no more.
    assert left > 20 and width > 0.8 * pixels.shape[1]


# What matplotlib would take for mathematics, and for mathematics that it does not know.
DOLLARS = ["$5 and $6", "$\\no$", "\\$", "a_b"]


def test_names_are_drawn_as_they_are(tmp_path, monkeypatch):
    drawn, draw = [], RendererAgg.draw_text

    def draw_text(self, gc, x, y, text, prop, angle, ismath=False, mtext=None):
        drawn.append(text)
        assert ismath is False
        draw(self, gc, x, y, text, prop, angle, ismath, mtext)

    monkeypatch.setattr(RendererAgg, "draw_text", draw_text)
    before = matplotlib.rcParams.copy()
    images = np.random.default_rng(0).random((1, 28, 28, 1), dtype="float32")
    titles, lengths = [(DOLLARS[0], DOLLARS[1])], np.array([[0.1, 0.2, 0.3, 0.4]])
    path = str(tmp_path / "p.png")
    columns = (images, images, images, lengths, lengths > 0.3, titles)
    utils.plot_predictions(*columns, DOLLARS, path)
    assert {*DOLLARS} <= {*drawn}
    drawn.clear()
    utils.plot_manipulation(images.repeat(11, 0), np.arange(11), DOLLARS[1], path)
    assert DOLLARS[1] in drawn
    assert matplotlib.rcParams.copy() == before  # those of the process


def test_names_of_any_script_draw_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "OTHER_FONTS", set())  # a box, whatever is installed
    names, path = ["猫", "犬"], str(tmp_path / "p.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        utils.plot_confusion(np.eye(2, dtype=int), names, path)


def test_fonts_for_other_scripts_follow_where_they_are_installed(monkeypatch):
    fonts = {"STIXGeneral", "no such font"}  # the first comes with matplotlib
    monkeypatch.setattr(utils, "OTHER_FONTS", fonts)
    before = matplotlib.rcParams["font.family"]
    with utils.plain_text():
        assert matplotlib.rcParams["font.family"] == [*before, "STIXGeneral"]
    assert matplotlib.rcParams["font.family"] == before


def rows_of_log(epochs, prefixes=("", "test_"), accuracy=0.9):
    columns = {"loss": 0.3, "margin_loss": 0.2, "reconstruction_loss": 0.1}
    columns["accuracy"] = accuracy
    return [
        {"epoch": i + 1, "seconds": 9.0, "images_per_second": 1.0, "learning_rate": 0.1}
        | {
            p + name: value / (i + 1)
            for p in prefixes
            for name, value in columns.items()
        }
        for i in range(epochs)
    ]


@pytest.mark.parametrize(
    "prefixes",
    [("", "test_"), ("", "val_", "test_"), ("", "val_", "test_", "synthetic_")],
)
@pytest.mark.parametrize("epochs", [1, 50])
def test_plot_log(tmp_path, epochs, prefixes):
    utils.plot_log(rows_of_log(epochs, prefixes), str(tmp_path / "p.png"))
    colors = {tuple(color) for color in opened(tmp_path / "p.png").reshape(-1, 3)}
    # Blue for training, green for validation, orange for the test, red for another.
    assert (0x1F, 0x77, 0xB4) in colors
    assert ((0x2C, 0xA0, 0x2C) in colors) == ("val_" in prefixes)
    assert (0xFF, 0x7F, 0x0E) in colors
    assert ((0xD6, 0x27, 0x28) in colors) == ("synthetic_" in prefixes)


def test_plot_log_without_a_single_error(tmp_path):
    rows = rows_of_log(1, accuracy=1.0)  # 0 % on a logarithmic axis
    utils.plot_log(rows, str(tmp_path / "p.png"))
    opened(tmp_path / "p.png")

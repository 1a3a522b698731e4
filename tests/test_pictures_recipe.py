"""Sets of pictures of all kinds are learned without a flag: no capsule stays dead."""

import numpy as np
import pytest
from conftest import main, read_log
from PIL import Image, ImageDraw, ImageFont

SIDE = 24
SYMBOLS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"  # EMNIST's 47


def draw_symbol(symbol: str, rng: np.random.Generator) -> np.ndarray:
    """A symbol somewhere near the middle, 1 on 0, of a random size."""
    image = Image.new("L", (SIDE, SIDE))
    font = ImageFont.load_default(size=int(rng.integers(14, 18)))
    left, top, right, bottom = font.getbbox(symbol)
    place = np.array([SIDE - left - right, SIDE - top - bottom]) / 2
    place += rng.uniform(-1.5, 1.5, 2)
    ImageDraw.Draw(image).text(tuple(place), symbol, font=font, fill=255)
    return np.asarray(image, "float32") / 255


def write_set(path, symbols, counts, ground, ink):
    """An npz file of symbols of one colour each, `counts` of each to train.

    Args:
        symbols: A class each.
        counts: Training images of each class.
        ground, ink: Functions of a generator that draw the two colours of an image.
    """
    rng = np.random.default_rng(0)
    arrays = {}
    for part, numbers in (("train", counts), ("test", [8] * len(symbols))):
        labels = np.repeat(np.arange(len(symbols)), numbers)
        x = np.empty((len(labels), SIDE, SIDE, 3), "float32")
        for image, label in zip(x, labels):
            mask = draw_symbol(symbols[label], rng)[..., None]
            image[:] = mask * ink(rng) + (1 - mask) * ground(rng)
        arrays |= {f"x_{part}": np.clip(x, 0, 1), f"y_{part}": labels}
    np.savez(path, **arrays)
    return path


def between(low: float, high: float):
    return lambda rng: rng.uniform(low, high, 3)


SETS = {
    #            symbols, images of each, ground, ink, flags, least accuracy
    "dark": ("ACEHKX", [40] * 6, between(0, 0.03), between(0.1, 0.3), 10, 0.9),
    "low contrast": (
        "ACEHKX", [40] * 6, between(0.48, 0.5), between(0.53, 0.58), 14, 0.9,
    ),
    "two classes": ("OX", [40] * 2, between(0.9, 1), between(0, 0.5), 20, 0.9),
    "47 classes": (SYMBOLS, [16] * 47, between(0.9, 1), between(0, 0.5), 12, 0.7),
    "unbalanced": (
        "ACEHKX", [100, 60, 30, 20, 12, 8], between(0.9, 1), between(0, 0.5), 14, 0.8,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", SETS)
def test_a_set_is_learned(name, tmp_path):
    symbols, counts, ground, ink, epochs, least = SETS[name]
    path = write_set(tmp_path / "set.npz", symbols, counts, ground, ink)
    # The defaults, but for a length that a test can wait for.
    assert main("--dataset", path, "--epochs", epochs, "--save_dir", tmp_path) == 0
    assert float(read_log(tmp_path)[-1]["test_accuracy"]) >= least

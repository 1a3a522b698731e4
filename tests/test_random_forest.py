"""experiments/random_forest.py: a forest on the pixels of the split of a training."""

import importlib.util

import numpy as np
import pytest
from conftest import read_rows
from PIL import Image

from capsnet import command_line
from experiments import random_forest


@pytest.fixture
def pictures(tmp_path):
    """Noise, of which only the brightness says the class."""
    rng = np.random.default_rng(0)
    for name, least in (("dark", 0), ("bright", 120)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(least, least + 130, (9, 9, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def main(pictures, *argv):
    save_dir = pictures.parent / "forest"
    argv = ["--dataset", str(pictures), "--save_dir", str(save_dir), *argv]
    return command_line.main(argv, random_forest.build_parser, random_forest.run)


@pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="scikit-learn is optional"
)
def test_a_forest_for_each_seed(pictures, capsys):
    assert main(pictures, "--seeds", "3", "5") == 0
    assert "seed 5: test error 0.00 %" in capsys.readouterr().out
    rows = read_rows(pictures.parent / "forest" / "random_forest.csv")
    expected = {"train": "48", "test": "12", "error": "0.0"}
    assert rows == [{"seed": seed, **expected} for seed in ("3", "5")]


def test_several_classes_an_image_are_refused(tmp_path, capsys):
    x, y = np.zeros((4, 9, 9), "uint8"), np.uint8([[1, 1], [1, 0], [0, 1], [0, 0]])
    path = tmp_path / "several.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    assert main(path) == 2
    assert "expected one class an image" in capsys.readouterr().err


def test_without_scikit_learn(pictures, capsys, monkeypatch):
    monkeypatch.setattr(random_forest.importlib.util, "find_spec", lambda name: None)
    assert main(pictures) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err
    assert not (pictures.parent / "forest").exists()

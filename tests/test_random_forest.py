"""experiments/random_forest.py: a forest on the pixels of the split of a training."""

import importlib.util

import numpy as np
import pytest
from conftest import read_rows, refuse, run_here, write_noise

from experiments import random_forest


@pytest.fixture
def pictures(tmp_path):
    return write_noise(tmp_path / "pictures", 30, (9, 9, 3))


def main(pictures, *argv):
    files = ("--dataset", pictures, "--save_dir", pictures.parent / "forest")
    return run_here(random_forest, *files, *argv)


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
    x, y = np.full((4, 9, 9), 255, "uint8"), np.uint8([[1, 1], [1, 0], [0, 1], [0, 0]])
    path = tmp_path / "several.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    assert "expected one class an image" in refuse(capsys, path, main=main)


def test_without_scikit_learn(pictures, capsys, monkeypatch):
    monkeypatch.setattr(random_forest.importlib.util, "find_spec", lambda name: None)
    assert "pip install scikit-learn" in refuse(capsys, pictures, main=main)
    assert not (pictures.parent / "forest").exists()

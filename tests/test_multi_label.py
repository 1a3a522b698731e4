"""Images of any number of classes, from an npz file of multi-hot rows."""

import re
from functools import partial

import numpy as np
import pytest
from conftest import main, quiet_main, read_log, read_rows, refuse, run_here
from PIL import Image

from capsnet.datasets import load_dataset
from capsnet.weights import read_info
from experiments import adversarial

SIDE = 20


def draw(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images with a red, a green and a blue square, where the row has a 1."""
    x = np.full((len(y), SIDE, SIDE, 3), 255, "uint8")
    for image, row in zip(x, y):
        for channel in np.flatnonzero(row):
            top, left = rng.integers(0, SIDE - 8, 2)
            image[top : top + 8, left : left + 8] = 0
            image[top : top + 8, left : left + 8, channel] = 200
    return x


def write_squares(path, n_train, n_test):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (n_train + n_test, 3))
    y[0] = 0  # an image of nothing
    x = draw(y, rng)
    np.savez(
        path,
        x_train=x[:n_train],
        y_train=y[:n_train],
        x_test=x[n_train:],
        y_test=y[n_train:],
    )
    return path


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("data") / "squares.npz", 48, 16)


@pytest.fixture(scope="module")
def trained(squares, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    flags = ("--epochs", 1, "--save_dir", folder, "--show_batch", "--balance")
    return folder, quiet_main("--dataset", squares, *flags)


def test_rows_are_kept_with_their_images(squares):
    data = load_dataset(str(squares))
    assert data.multi_label and data.class_names == ["0", "1", "2"]
    for x, y in data:
        is_empty = (x == 1).all(axis=(1, 2, 3))
        assert (is_empty == ~y.any(axis=1)).all() and 0 < is_empty.sum() < len(x)


def test_a_run_measures_exact_matches(trained, squares):
    folder, output = trained
    assert read_info(folder / "trained_model.h5")["multi_label"] is True
    assert "classes balanced" in output
    rows = read_rows(folder / "test.csv")
    right = sum(row["class"] == row["prediction"] for row in rows)
    assert f"Test error: {100 * (1 - right / 16):.2f} % ({16 - right} of 16)" in output
    accuracy = float(read_log(folder)[-1]["test_accuracy"])
    assert accuracy == pytest.approx(right / 16, abs=1e-6)
    _, y = load_dataset(str(squares)).test
    counts = re.findall(r"^([012]) +(\d+) ", output, re.M)
    assert counts == [(str(i), str(int(n))) for i, n in enumerate(y.sum(0))]
    assert (folder / "batch.png").exists() and (folder / "manipulate-2.png").exists()
    assert not (folder / "confusion.png").exists()


@pytest.mark.slow
def test_a_model_of_many_labels_knows_it(trained, squares, tmp_path, capsys):
    model = ("-w", trained[0] / "trained_model.h5", "--save_dir", tmp_path)
    assert main("-t", *model, "--dataset", squares) == 0
    assert re.findall("Test error.*", trained[1])[0] in capsys.readouterr().out
    with np.load(squares) as file:
        arrays = dict(file)
    for part in ("y_train", "y_test"):
        arrays[part] = np.eye(3, dtype=int)[np.arange(len(arrays[part])) % 3]
    np.savez(tmp_path / "one.npz", **arrays)
    message = refuse(capsys, "-t", *model, "--dataset", tmp_path / "one.npz")
    assert "labels of an image: expected [any number]" in message


def test_what_needs_one_class_an_image(trained, squares, tmp_path, capsys):
    flags = ("-w", trained[0] / "trained_model.h5", "--save_dir", tmp_path / "out")
    attack = partial(run_here, adversarial)
    message = refuse(capsys, *flags, "--dataset", squares, main=attack)
    assert "expected one class an image, which an attack changes" in message


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_the_classes_of_new_pictures(tmp_path, capsys):
    squares = write_squares(tmp_path / "squares.npz", 1500, 200)
    folder = tmp_path / "run"
    assert main("--dataset", squares, "--epochs", 4, "--save_dir", folder) == 0
    assert float(read_log(folder)[-1]["test_accuracy"]) > 0.9  # guessing: 1 of 8
    rng = np.random.default_rng(1)
    rows = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, draw(rows, rng)):
        Image.fromarray(image).save(path)
    capsys.readouterr()
    model = ("-w", folder / "trained_model.h5", "--save_dir", folder)
    assert main("--predict", *paths, *model) == 0
    both, one, none = re.findall(r"\.png: (.*)", capsys.readouterr().out)[:3]
    assert set(re.findall(r"(\d), length", both)) == {"0", "2"} and ", then 1" in both
    assert one.startswith("1, length ")
    assert none.startswith("no class of length 0.5 or more, then ")

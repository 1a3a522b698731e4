"""capsnet/report.py: rates, tables and pictures of a test."""

import contextlib
import math

import numpy as np
import pytest
from conftest import ROOT, assert_picture, read_rows, refuse
from PIL import Image

import utils
from capsnet import report, run_folder
from capsnet.datasets import Dataset
from capsnet.flags import PRETRAINED
from capsnet.run_folder import RunFolder
from capsnet.task import said


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [  # of Brown, Cai and DasGupta (2001), and statsmodels' proportion_confint
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (43, 10_000, 0.00319, 0.00579),
    ],
)
def test_the_interval_is_wilsons(count, n, low, high):
    assert report.interval(count, n) == pytest.approx((low, high), abs=6e-5)


def test_rates_of_classes():
    truth = np.eye(4, dtype=bool)[[0, 0, 0, 2, 2]]
    predicted = np.eye(4, dtype=bool)[[0, 1, 1, 2, 0]]
    rates = report.class_rates(truth, predicted)
    #                precision, recall, F1
    expected = [[1 / 2, 1 / 3, 2 / 5], [0, math.nan, 0], [1, 1 / 2, 2 / 3]]
    np.testing.assert_allclose(rates[:3], expected)
    assert np.isnan(rates[3]).all()  # neither there nor named
    lines = report.describe_classes(truth, predicted, ["a", "b", "c", "of no image"])
    *_, last, means = lines.splitlines()
    assert last.split() == ["of", "no", "image", "0", "-", "-", "-"]
    assert means.split() == ["mean", "0.5000", "0.4167", "0.3556"]


def test_the_worst_errors_come_first():
    truth = np.eye(3, dtype=bool)[[0, 0, 0, 1]]
    lengths = np.array([[0.4, 0.5, 0], [0.9, 0.1, 0], [0.1, 0.9, 0], [0.9, 0.8, 0.9]])
    predicted = said(lengths, False)
    worst = report.worst_errors(truth, predicted, lengths)
    assert worst.tolist() == [2, 0, 3]  # 0.9 over 0.1, then 0.5 over 0.4, 0.9 over 0.8
    nothing = report.worst_errors(truth, truth, lengths)
    assert nothing.tolist() == []


def test_confusion_has_a_row_for_each_true_class():
    matrix = report.confusion_matrix([0, 0, 0, 2, 2], [0, 1, 1, 2, 0], 4)
    expected = [[1, 2, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert matrix.tolist() == expected


@pytest.mark.parametrize(
    ("n_class", "errors"), [(2, 0), (2, 1), (10, 5000), (31, 300), (100, 50)]
)
def test_confusion_of_any_number_of_classes_is_drawn(n_class, errors, tmp_path):
    rng = np.random.default_rng(0)
    truth = np.arange(10000) % n_class
    predicted = truth.copy()
    predicted[:errors] = rng.integers(0, n_class, errors)
    matrix = report.confusion_matrix(truth, predicted, n_class)
    names = [f"a class that is called {i}, or $\\no$" for i in range(n_class)]
    path = tmp_path / "confusion.png"
    utils.plot_confusion(matrix, names, path)
    width, height = size_of(path)
    assert 600 <= height <= width <= 2200


@pytest.mark.parametrize(
    ("n", "shape"), [(1, (28, 28, 1)), (7, (20, 40, 3)), (12, (28, 28, 1))]
)
def test_sheets_are_as_wide_as_they_need(n, shape, tmp_path):
    images = np.random.default_rng(0).random((n, *shape), dtype="float32")
    path = tmp_path / "sheet.png"
    titles = ["true $\\no\nsaid automob…, 0.83"] * n
    utils.plot_sheet(images, titles, "a sheet", path)
    width, height = size_of(path)
    assert width == 150 * min(10, max(5, n))
    rows = -(-n // 10)
    cell = 0.88 * shape[0] / shape[1] + 0.32
    assert height == pytest.approx(150 * (rows * cell + 0.4), abs=1)


def make_data(truth, names, **more):
    """Test images of these labels, rows of 0 and 1."""
    y = np.array(truth, "float32")
    x = np.random.default_rng(0).random((len(y), 20, 20, 3), dtype="float32")
    return Dataset((x, y), (x, y), names, "mine", **more)


def test_files_of_several_labels_an_image(tmp_path, capsys):
    data = make_data(
        [[1, 1, 0], [0, 0, 0], [0, 0, 1]], ["a", "b", "c"], multi_label=True
    )
    lengths = np.array([[0.9, 0.8, 0.1], [0.1, 0.2, 0.3], [0.7, 0, 0.9]], "float32")
    report.write_report(data, lengths, lambda x: x, RunFolder(tmp_path))
    rows = read_rows(tmp_path / "test.csv")
    assert [row["class"] for row in rows] == ["a; b", "none", "c"]
    assert [row["prediction"] for row in rows] == ["a; b", "none", "a; c"]
    assert [row["length of c"] for row in rows] == ["0.1000", "0.3000", "0.9000"]
    out = capsys.readouterr().out
    assert "Test error: 33.33 % (1 of 3), 95 % interval 6.15 to 79.23 %" in out
    assert not (tmp_path / "confusion.png").exists()  # of pairs it would say nothing
    assert_picture(tmp_path / "errors.png")


def test_images_of_all_classes_are_shown(tmp_path, monkeypatch):
    labels = np.repeat(np.eye(3), 40, axis=0)  # class by class, as folders are read
    data = make_data(labels, ["a", "b", "c"])
    shown = []
    monkeypatch.setattr(utils, "plot_reconstructions", lambda x, *more: shown.append(x))
    monkeypatch.setattr(run_folder, "replace_file", contextlib.nullcontext)
    report.write_report(data, labels, lambda x: x, RunFolder(tmp_path))
    (images,) = shown
    x = data.test[0]
    found = [int(np.flatnonzero((x == image).all((1, 2, 3)))[0]) for image in images]
    assert len(found) == 50 and found == sorted(set(found))
    assert np.bincount([i // 40 for i in found]).min() >= 16


def test_names_of_files_lead_back_to_the_images(tmp_path, capsys):
    paths = (["x"] * 2, ["b/1.png", "a/2, or 3.png"])
    data = make_data([[0, 1], [1, 0]], ["a", "b"], paths=paths)
    (tmp_path / "errors.png").write_text("of an earlier model")
    lengths = np.array([[0.2, 0.9], [0.8, 0.1]])
    report.write_report(data, lengths, lambda x: x, RunFolder(tmp_path))
    assert "Test error: 0.00 % (0 of 2)" in capsys.readouterr().out
    assert [row["image"] for row in read_rows(tmp_path / "test.csv")] == paths[1]
    assert not (tmp_path / "errors.png").exists()


@pytest.mark.parametrize("name", ["f.csv", "no/folder/f.npz"])
def test_features_go_into_an_npz_file(tmp_path, capsys, name):
    flags = ("-t", "-w", ROOT / PRETRAINED, "--save_dir", tmp_path)
    message = refuse(capsys, *flags, "--features", name)
    assert message.startswith("--features: expected FILE.npz, the name of a new file")
    assert list(tmp_path.iterdir()) == []


def test_features_replace_no_file(tmp_path, capsys):
    data = tmp_path / "data.npz"
    data.write_bytes(b"a year's work")
    flags = ("-t", "-w", ROOT / PRETRAINED, "--save_dir", tmp_path / "run")
    message = refuse(capsys, *flags, "--dataset", data, "--features", data)
    assert message.startswith("--features: expected FILE.npz, the name of a new file")
    assert data.read_bytes() == b"a year's work"
    assert list(tmp_path.iterdir()) == [data]

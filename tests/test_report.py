"""experiments/reconstruct.py: sheets, the confusion matrix, a run on real digits."""

import contextlib
import io

import numpy as np
import pytest
from conftest import assert_picture, read_rows
from PIL import Image

from capsnet import command_line
from experiments import reconstruct


def main(*arguments):
    argv = [str(argument) for argument in arguments]
    return command_line.main(argv, reconstruct.build_parser, reconstruct.run)


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def test_confusion_has_a_row_for_each_true_class():
    matrix = reconstruct.confusion_matrix([0, 0, 0, 2, 2], [0, 1, 1, 2, 0], 4)
    expected = [[1, 2, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert matrix.tolist() == expected


@pytest.mark.parametrize(
    ("n_class", "errors"), [(2, 0), (2, 1), (10, 5000), (31, 300), (100, 5000)]
)
def test_confusion_of_any_number_of_classes_is_drawn(n_class, errors, tmp_path):
    rng = np.random.default_rng(0)
    truth = np.arange(10000) % n_class
    predicted = truth.copy()
    predicted[:errors] = rng.integers(0, n_class, errors)
    matrix = reconstruct.confusion_matrix(truth, predicted, n_class)
    names = [f"a class that is called {i}, or $\\no$" for i in range(n_class)]
    path = tmp_path / "confusion.png"
    reconstruct.plot_confusion(matrix, names, path)
    width, height = size_of(path)
    assert 600 <= height <= width <= 2200


@pytest.mark.parametrize(
    ("n", "shape"), [(1, (28, 28, 1)), (7, (20, 40, 3)), (12, (28, 28, 1))]
)
def test_sheets_are_as_wide_as_they_need(n, shape, tmp_path):
    images = np.random.default_rng(0).random((n, *shape), dtype="float32")
    path = tmp_path / "sheet.png"
    titles = ["true $\\no\nsaid automob…, 0.83"] * n
    wrong = np.arange(n) % 2 == 0
    reconstruct.plot_sheet(images, images, titles, wrong, "a sheet", path)
    width, height = size_of(path)
    assert width == 150 * min(10, max(5, n))
    rows = -(-n // 10)
    cell = 2 * 0.88 * shape[0] / shape[1] + 0.32
    assert height == pytest.approx(150 * (rows * cell + 0.4), abs=1)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, []),
        (1, [("misclassified.png", "all 1 misclassified", 1)]),
        (100, [("misclassified.png", "all 100 misclassified", 100)]),
        (
            101,
            [
                ("misclassified.png", "1 to 100 of 101 misclassified", 100),
                ("misclassified-2.png", "101 to 101 of 101 misclassified", 1),
            ],
        ),
    ],
)
def test_misclassified_images_are_divided_over_sheets(n, expected):
    sheets = reconstruct.misclassified_sheets(np.arange(n) + 5)
    summary = [(name, title, len(part)) for name, title, part in sheets]
    titles = [(name, f"{title} test images", k) for name, title, k in expected]
    assert summary == titles
    if sheets:
        indices = np.concatenate([part for _, _, part in sheets])
        assert indices.tolist() == list(range(5, n + 5))


def test_there_are_at_most_ten_sheets():
    sheets = reconstruct.misclassified_sheets(np.arange(5432))
    assert len(sheets) == 10
    assert sheets[-1][1] == "901 to 1000 of 5432 misclassified test images"


@pytest.fixture(scope="module")
def studied(trained, digits, tmp_path_factory):
    """What a run on the small trained model wrote and printed."""
    folder = tmp_path_factory.mktemp("studied")
    (folder / "misclassified-9.png").write_text("of an earlier model")
    model = ("-w", trained[0] / "trained_model.h5", "--data_dir", digits)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(*model, "--save_dir", folder, "--count", 7) == 0
    return folder, output.getvalue().splitlines()


def test_a_run_says_what_it_wrote(studied):
    folder, lines = studied
    assert lines[0].startswith("Testing ") and lines[2].startswith("Device: ")
    assert lines[3].startswith("Test error: ")
    wrote = [line.removeprefix("Wrote ").split(": ")[0] for line in lines[4:]]
    assert sorted(wrote) == sorted(map(str, folder.iterdir()))  # no older sheets
    assert (
        f"Wrote {folder}/reconstructions.png: the first 7 of 300 test images" in lines
    )
    for path in folder.glob("*.png"):
        assert_picture(path)


def test_the_tables_agree_with_the_data_and_each_other(studied, trained, mnist):
    folder, lines = studied
    rows = read_rows(folder / "predictions.csv")
    truth = mnist.test[1][:300].argmax(1)
    assert [int(row["index"]) for row in rows] == list(range(300))
    assert [int(row["true"]) for row in rows] == truth.tolist()
    assert all(0 < float(row["length"]) < 1 for row in rows)
    wrong = sum(row["true"] != row["predicted"] for row in rows)
    assert lines[3] == f"Test error: {100 * wrong / 300:.2f} % ({wrong} of 300)"
    log = read_rows(trained[0] / "log.csv")
    assert float(log[-1]["test_accuracy"]) == pytest.approx(1 - wrong / 300, abs=1e-6)
    for i, row in enumerate(read_rows(folder / "confusion.csv")):
        assert row.pop("true") == str(i)
        assert list(row) == [f"predicted {j}" for j in range(10)]
        said = [int(r["predicted"]) for r in rows if r["true"] == str(i)]
        assert list(map(int, row.values())) == np.bincount(said, minlength=10).tolist()


def test_without_the_pretrained_model(tmp_path, capsys):
    assert main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "mnist_v4.h5: No such file" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", ["0", "101", "x"])
def test_bad_counts(count, tmp_path, capsys):
    assert main("--count", count, "--save_dir", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "--count: " in err
    assert list(tmp_path.iterdir()) == []

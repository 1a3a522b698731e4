"""experiments/affnist.py: places, transformations, affNIST's files, and a run."""

import re
import sys
from functools import partial

import numpy as np
import pytest
from conftest import (
    assert_picture,
    read_log,
    read_rows,
    refuse,
    run_here,
    write_digits,
)
from scipy.io import savemat

from capsnet import datasets
from capsnet.batches import ShiftedBatches
from capsnet.errors import DataError
from experiments import affnist, poses

main = partial(run_here, affnist)


def place_of(image):
    """Row and column of the only bright pixel."""
    ((row, column),) = np.argwhere(image > 0)
    return row, column


# The digits that are trained on, and the same for the test


def test_digits_are_placed_up_to_six_pixels_either_way():
    x = np.zeros((2000, 40, 40, 1), "float32")
    x[:, 20, 20] = 1
    places = np.array([place_of(image[..., 0]) for image in poses.place(x, 0)]) - 20
    for axis in (0, 1):
        values, counts = np.unique(places[:, axis], return_counts=True)
        assert values.tolist() == list(range(-6, 7))
        assert counts.min() > 100 and counts.max() < 210  # 154 on average
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.1
    fraction = affnist.build_parser().training["shift_fraction"]
    batches = ShiftedBatches(x[:10], x[:10, 0, 0], 5, fraction)
    assert batches.largest_shift == [6, 6]


def test_what_is_tested_is_placed_once_and_what_is_trained_on_is_not():
    rng = np.random.default_rng(0)
    sets = [(rng.random((8, 40, 40, 1), "float32"), np.eye(8)) for _ in range(2)]
    data = datasets.Dataset(*sets, list("abcdefgh"), "mnist")
    original = data.train[0].copy()
    placed = affnist.place_held_out(data, 3)
    np.testing.assert_array_equal(data.train[0], original)
    np.testing.assert_array_equal(placed.train[0][:5], original[:5])
    assert (placed.train[0][5:] != original[5:]).any(axis=(1, 2, 3)).all()
    assert (placed.test[0] != data.test[0]).any(axis=(1, 2, 3)).all()
    again = affnist.place_held_out(data, 3)
    np.testing.assert_array_equal(again.test[0], placed.test[0])
    np.testing.assert_array_equal(again.train[0], placed.train[0])


# The synthetic set


def test_matrices_keep_within_the_published_ranges():
    matrices = poses.draw_matrices(5000, np.random.default_rng(0))
    # QR undoes it: a rotation times (scale and shear, an upper triangle).
    rotations, triangles = np.linalg.qr(matrices)
    signs = np.sign(np.diagonal(triangles, axis1=1, axis2=2))
    rotations, triangles = rotations * signs[:, None], triangles * signs[..., None]
    angles = np.rad2deg(np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0]))
    scales = np.diagonal(triangles, axis1=1, axis2=2)
    shears = triangles[:, 0, 1] / triangles[:, 1, 1]
    for values, low, high in (
        (angles, -20, 20),
        (shears, -0.2, 0.2),
        (scales[:, 0], 0.8, 1.2),
        (scales[:, 1], 0.8, 1.2),
    ):
        width = high - low
        assert low <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high
        histogram, _ = np.histogram(values, bins=10, range=(low, high))
        assert histogram.min() > 400 and histogram.max() < 600  # uniform: 500


def test_a_transformation_takes_places_to_places():
    rng = np.random.default_rng(1)
    for matrix in poses.draw_matrices(20, rng):
        image = np.zeros((41, 41))
        place = rng.integers(-9, 10, 2)  # right and down, from the centre
        image[20 + place[1], 20 + place[0]] = 1
        moved = poses.transform(image, matrix)
        rows, columns = np.indices(moved.shape) - 20
        weights = moved / moved.sum()
        centroid = np.array([(columns * weights).sum(), (rows * weights).sum()])
        np.testing.assert_allclose(centroid, matrix @ place, atol=0.25)


def test_the_identity_changes_nothing_and_turns_are_exact():
    image = np.random.default_rng(0).random((6, 6)).astype("float32")
    np.testing.assert_allclose(poses.transform(image, np.eye(2)), image, atol=1e-6)
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])  # right becomes down
    turned = poses.transform(image, quarter)
    np.testing.assert_allclose(turned, np.rot90(image, -1), atol=1e-5)
    wide = poses.transform(np.pad(np.ones((4, 4)), 8), np.diag([2.0, 1.0]))
    assert wide.sum() == pytest.approx(32)


def test_a_digit_is_put_anywhere_inside():
    image = np.zeros((60, 60), "float32")
    image[20:23, 31:36] = np.arange(1, 16).reshape(3, 5)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(500):
        square = poses.put_inside(image, 8, rng)
        assert square.shape == (8, 8)
        assert square.sum() == image.sum()  # nothing is cut off
        seen.add(tuple(np.argwhere(square == 1)[0]))
    assert seen == {(row, column) for row in range(6) for column in range(4)}


def test_digits_that_are_empty_or_too_large():
    rng = np.random.default_rng(0)
    assert not poses.put_inside(np.zeros((20, 20)), 8, rng).any()
    large = np.zeros((30, 30))
    large[5:25, 10] = 1
    assert poses.put_inside(large, 8, rng).sum() == 8


def test_the_set_is_the_same_for_everyone_and_another_at_each_repetition(mnist):
    x = mnist.test[0][:50]
    images = poses.synthesize(x, 0)
    assert images.shape == (50, 40, 40, 1) and images.dtype == "float32"
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_array_equal(poses.synthesize(x, 0), images)
    assert (poses.synthesize(x, 1) != images).any(axis=(1, 2, 3)).all()
    # Scales of 0.8 to 1.2 in both directions change the ink by their product.
    ratios = images.sum(axis=(1, 2, 3)) / x.sum(axis=(1, 2, 3))
    assert ratios.min() > 0.6 and ratios.max() < 1.5
    border = np.concatenate([images[:, (0, -1)].ravel(), images[:, :, (0, -1)].ravel()])
    assert border.mean() < 0.02  # digits touch the border, and are not cut


# affNIST's own files


def write_affnist(path, images, labels):
    """Writes what affNIST's files hold of use: a struct of MATLAB."""
    columns = images.reshape(len(images), np.prod(images.shape[1:])).T
    struct = {"image": columns, "label_int": labels}
    savemat(path, {"affNISTdata": struct})


@pytest.fixture
def affnist_images(mnist):
    images = (255 * poses.synthesize(mnist.test[0][:40], 5)).astype("uint8")
    return images, mnist.test[1][:40].argmax(axis=1)


def test_files_are_read_in_their_order(tmp_path, affnist_images):
    images, labels = affnist_images
    for name, part in (("1", slice(15)), ("2", slice(15, 30)), ("10", slice(30, 40))):
        write_affnist(tmp_path / f"{name}.mat", images[part], labels[part])
    files = affnist.find_files(str(tmp_path))
    digits = np.zeros((9, 28, 28, 1)), np.eye(10)[:9]
    parts = list(affnist.iterate_affnist(digits, files, 1))
    assert max(len(x) for x, _ in parts) == 9  # as many at a time as MNIST's test has
    read, one_hot = (np.concatenate(arrays) for arrays in zip(*parts))
    np.testing.assert_allclose(read, images / 255, atol=1e-7)
    np.testing.assert_array_equal(one_hot.argmax(axis=1), labels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no MATLAB", "expected a file of affNIST"),
        ({"other": 1}, "expected a file of affNIST"),
        ({"affNISTdata": {"image": 1}}, "expected a file of affNIST"),
        ((np.zeros((2, 28, 28), "uint8"), [1, 2]), "of 40 x 40 pixels"),
        ((np.zeros((2, 40, 40)), [1, 2]), "uint8"),
        ((np.zeros((2, 40, 40), "uint8"), [1, 10]), "labels 0 to 9"),
        ((np.zeros((2, 40, 40), "uint8"), [1, 2, 3]), "labels 0 to 9"),
        ((np.zeros((0, 40, 40), "uint8"), []), "labels 0 to 9"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    path = tmp_path / "1.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        savemat(path, content)
    else:
        write_affnist(path, *content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        affnist.read_affnist(path)
    assert str(path) in str(caught.value)


def test_a_damaged_last_file_is_found_before_the_training(
    mnist, affnist_images, tmp_path, capsys
):
    write_digits(tmp_path, mnist, n_train=20, n_test=10)
    write_affnist(tmp_path / "1.mat", *affnist_images)
    (tmp_path / "2.mat").write_bytes(b"no MATLAB")
    flags = ("--data_dir", tmp_path, "--save_dir", tmp_path / "run")
    message = refuse(capsys, *flags, "--validation_size", 5, main=main)
    assert "2.mat: expected a file of affNIST" in message
    assert not (tmp_path / "run").exists()


def test_without_scipy(tmp_path, monkeypatch, capsys, affnist_images):
    write_affnist(tmp_path / "1.mat", *affnist_images)
    monkeypatch.setitem(sys.modules, "scipy.io", None)  # import fails from here on
    flags = ("--data_dir", tmp_path, "--save_dir", tmp_path / "run")
    assert "pip install scipy" in refuse(capsys, *flags, main=main)


def test_without_affnist_files_or_digits(tmp_path, capsys):
    flags = ("--data_dir", tmp_path / "nothing", "--save_dir", tmp_path / "run")
    message = "expected affNIST's test, *.mat, or MNIST's files"
    assert message in refuse(capsys, *flags, main=main)


# Both networks


@pytest.mark.slow
def test_a_run_stops_at_its_goal_and_does_not_go_on(mnist, tmp_path, capsys):
    digits = write_digits(tmp_path / "digits", mnist, n_train=60, n_test=30)
    flags = ("--network", "cnn", "--batch_size", 20, "--data_dir", digits)
    flags += ("--validation_size", 20, "--epochs", 3, "--stop_at", 0)
    run = ("--save_dir", tmp_path / "run")
    assert main(*flags, *run) == 0
    output = capsys.readouterr().out
    assert "Validation accuracy of 0 reached after epoch 1." in output
    assert "Training: CNN with pooling, placed digits, 12.4 M weights" in output
    assert "40 of 60 training images" in output
    assert " % of 30 placed digits" in output
    assert " % of 30 images of our synthetic set, which is not affNIST" in output
    (row,) = read_log(tmp_path / "run")
    assert {"val_accuracy", "test_accuracy", "synthetic_accuracy"} <= set(row)
    assert_picture(tmp_path / "run" / "affnist.png")
    assert main("--resume", *run) == 0
    assert len(read_log(tmp_path / "run")) == 1


@pytest.mark.slow
def test_a_capsnet_is_tested_on_affnist_itself(mnist, affnist_images, tmp_path, capsys):
    folder = write_digits(tmp_path / "both", mnist, n_train=20, n_test=10)
    write_affnist(folder / "1.mat", *affnist_images)
    flags = ("--data_dir", folder, "--batch_size", 5)
    trained = ("--epochs", 1, "--validation_size", 10, "--save_dir", tmp_path / "run")
    assert main(*flags, *trained) == 0
    row = read_log(tmp_path / "run")[-1]
    assert "affnist_accuracy" in row
    said = "Validation accuracy of 0.992 not reached after epoch 1."
    assert said in capsys.readouterr().out
    model = ("-w", tmp_path / "run" / "trained_model.h5")
    assert main("-t", *model, *flags, "--save_dir", tmp_path / "test") == 0
    output = capsys.readouterr().out
    assert f"{100 * float(row['test_accuracy']):.2f} % of 10 placed digits" in output
    assert " % of 40 images of affNIST\n" in output
    (row,) = read_rows(tmp_path / "test" / "test.csv")
    assert (row["set"], row["images"]) == ("affNIST", "40")

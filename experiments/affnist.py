"""Digits in poses that were never trained: affNIST (section 5.2 of the paper).

    python -m experiments.affnist --epochs 1 --train_size 6000      # a first look
    python -m experiments.affnist --save_dir result/affnist/capsnet
    python -m experiments.affnist --network cnn --save_dir result/affnist/cnn
    python -m experiments.affnist -t --save_dir result/affnist/capsnet --data_dir DIR

Both networks are trained on MNIST's digits, each placed anew in every epoch, up to 6
pixels either way, on 40 x 40 pixels, until they classify 99.2 % of 5000 training digits
that were held out. Then they see digits that are turned, sheared and scaled as well.
Without the .mat files of affNIST's test in --data_dir, these are made from MNIST's test
digits, with the published ranges: a synthetic set of this script, not affNIST itself.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
from matplotlib.figure import Figure

import capsulenet
import utils
from capsnet import array_files, command_line, datasets, run_folder, session
from capsnet.batches import Pair
from capsnet.errors import reason
from capsnet.flags import Parser
from capsnet.options import Integer, Options, Training
from capsnet.predict import predict
from capsnet.weights import load_weights
from experiments import baseline, digits
from experiments.poses import MARGIN, SIDE, place, synthesize

STOP_AT = 0.992
HELD_OUT = 5000
COLUMNS = 12  # of the sheet


def place_held_out(data: datasets.Dataset, validation_size: int) -> datasets.Dataset:
    """Places what is tested: the test digits, and the last of the training digits."""
    (x_train, y_train), (x_test, y_test) = data
    test = place(x_test, 1), y_test
    if validation_size:
        rest = len(x_train) - validation_size
        x_train = np.concatenate([x_train[:rest], place(x_train[rest:], 0)])
    return dataclasses.replace(data, train=(x_train, y_train), test=test)


def read_affnist(path: Path) -> Pair:
    """Reads a file of affNIST: a struct of MATLAB with images and labels.

    Returns:
        Images, uint8 of shape (n, 40, 40, 1), and labels, uint8 of shape (n,).

    Raises:
        datasets.DataError: If it cannot be read, or is something else.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise datasets.DataError(
            f"{path}: expected SciPy to read it: pip install scipy"
        ) from None
    array_files.check_is_file(path)
    try:
        struct = loadmat(path, variable_names=["affNISTdata"])["affNISTdata"][0, 0]
        # A column of MATLAB is an image.
        x, y = struct["image"].T, struct["label_int"].ravel()
    except Exception as error:  # a damaged file raises nearly anything
        raise datasets.DataError(
            f"{path}: expected a file of affNIST: {reason(error)}"
        ) from None
    if (
        x.ndim != 2
        or x.dtype != np.uint8
        or x.shape[1] != SIDE * SIDE
        or not len(x)
        or y.shape != (len(x),)
        or y.dtype.kind not in "uif"
        or not np.isin(y, range(10)).all()
    ):
        raise datasets.DataError(
            f"{path}: expected uint8 images of {SIDE} x {SIDE} pixels and as many "
            f"labels 0 to 9, got {x.dtype} of shape {x.shape} and {y.dtype} of shape "
            f"{y.shape}"
        )
    return x.reshape(-1, SIDE, SIDE, 1), y.astype("uint8")


def find_files(folder: str | None) -> list[Path]:
    """The files of affNIST in a folder, 1.mat before 10.mat."""
    if folder is None:
        return []
    files = Path(folder).glob("*.mat")
    return sorted(files, key=lambda file: (len(file.name), file.name))


def load_data(options: Options, repetitions: int) -> tuple[datasets.Dataset, Pair]:
    """Loads MNIST with a margin around the digits, what is tested placed at random.

    `--data_dir` may hold MNIST's files, affNIST's, or both.

    Args:
        options: Of the run.
        repetitions: As of `iterate_affnist`.

    Returns:
        The data, of which the further test, "affnist" or "synthetic", is what
        `iterate_affnist` yields first, and the test digits without a margin.

    Raises:
        datasets.DataError: If it is something else.
    """
    folder = options.data.data_dir
    files = find_files(folder)
    if folder is not None and not array_files.is_in_folder(Path(folder)):
        if not files:
            raise datasets.DataError(
                f"{folder}: expected affNIST's test, *.mat, or MNIST's files, got "
                "neither"
            )
        folder = None
    data = digits.load_digits(folder)
    test_digits = data.test
    for path in files:  # what is wrong with one shows before hours of training
        read_affnist(path)
    first = next(iterate_affnist(test_digits, files, repetitions))
    data = digits.pad(data, MARGIN)
    session.check_data(data, options)
    held_out = options.training.validation_size if options.mode == "train" else 0
    data = place_held_out(data, held_out)
    more_tests = {"affnist" if files else "synthetic": first}
    return dataclasses.replace(data, more_tests=more_tests), test_digits


def iterate_affnist(
    test_digits: Pair, files: list[Path], repetitions: int
) -> Iterator[Pair]:
    """Yields affNIST's test in parts, or our synthetic one: images, one-hot labels.

    Args:
        test_digits: MNIST's, images and labels.
        files: Of affNIST.
        repetitions: Images for each digit in the synthetic set, where there are none.
    """
    x, y = test_digits
    for path in files:
        images, labels = read_affnist(path)
        for start in range(0, len(images), len(x)):
            part = slice(start, start + len(x))
            identity = np.eye(y.shape[1], dtype="float32")
            yield np.divide(images[part], 255, dtype="float32"), identity[labels[part]]
    if not files:
        for repetition in range(repetitions):
            yield synthesize(x, repetition), y


def test(
    network: keras.Model,
    data: datasets.Dataset,
    test_digits: Pair,
    repetitions: int,
    options: Options,
) -> None:
    """Prints the accuracies, writes test.csv, draws affnist.png.

    Args:
        network: Images -> lengths or probabilities of the classes.
        data: Of `load_data`.
        test_digits: Of `load_data`.
        repetitions: As of `iterate_affnist`.
        options: Of the run.
    """
    x, y = data.test
    placed = 100 * np.mean(classify(network, x, options) == y.argmax(axis=1))
    files = find_files(options.data.data_dir)
    real = bool(files)
    right = []
    for images, labels in iterate_affnist(test_digits, files, repetitions):
        truth, said = labels.argmax(axis=1), classify(network, images, options)
        if not right:
            path = options.folder.file("affnist.png")
            with run_folder.replace_file(path) as temporary:
                plot_sheet(images, truth, said, real, temporary)
        right.append(said == truth)
    right = np.concatenate(right)
    name = "affNIST" if real else "our synthetic set, which is not affNIST"
    print(f"Test acc: {placed:.2f} % of {len(y)} placed digits")
    print(f"Test acc: {100 * right.mean():.2f} % of {len(right)} images of {name}")
    print("Wrote", path)
    row = {
        "network": options.training.network,
        "placed_accuracy": round(placed, 4),
        "set": "affNIST" if real else "synthetic",
        "images": len(right),
        "accuracy": round(100 * right.mean(), 4),
    }
    path = options.folder.file("test.csv")
    run_folder.write_csv(path, [row])
    print("Wrote", path)


def classify(network: keras.Model, x: np.ndarray, options: Options) -> np.ndarray:
    """The class of each image."""
    (outputs,) = predict(network, [x], options.training.batch_size, options.devices)
    return outputs.argmax(axis=1)


def plot_sheet(images, truth, said, real: bool, path: str) -> None:
    """Draws images of each class, a row each, under what they were taken for.

    Args:
        images: Shape (n, 40, 40, 1).
        truth: Their classes.
        said: What they were taken for.
        real: Whether they are affNIST's own.
        path: The picture to write.
    """
    classes = np.unique(truth)
    size = (0.75 * COLUMNS, 0.95 * len(classes) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    name = "affNIST" if real else "our synthetic set in affNIST's place"
    figure.suptitle(f"Images of {name}, and what they were taken for", fontsize=10)
    grid = figure.subplots(len(classes), COLUMNS, squeeze=False)
    for row, label in zip(grid, classes):
        for axes in row:
            axes.axis("off")
        for axes, i in zip(row, np.flatnonzero(truth == label)):
            utils.show(axes, images[i])
            wrong = said[i] != label
            axes.set_title(said[i], fontsize=8, color="C3" if wrong else "0.5", pad=2)
    figure.savefig(path, dpi=utils.DPI)


def build_parser() -> Parser:
    """The command line."""
    parser = digits.build_parser(
        __doc__,
        os.path.join("result", "affnist"),
        ("test.csv", "affnist.png"),
        ("capsnet", "cnn"),
        MARGIN,
        validation_size=HELD_OUT,
        stop_at=STOP_AT,
    )
    group = parser.add_argument_group("affNIST")
    group.add_argument(
        "--validation_size",
        type=Integer(1),
        metavar="N",
        help="hold out the last N training images, to know when to stop "
        f"(default: {HELD_OUT})",
    )
    group.add_argument(
        "--stop_at",
        type=Training.kind_of("stop_at"),
        metavar="X",
        help="end the training after the epoch that classifies this part of them "
        f"(default: {STOP_AT})",
    )
    group.add_argument(
        "--repetitions",
        type=Integer(1),
        default=1,
        metavar="N",
        help="images for each test digit in the synthetic set; affNIST has 32",
    )
    group.add_argument(
        "--data_dir",
        metavar="DIR",
        help="folder with affNIST's test, *.mat, with MNIST's files, or with both "
        "(default: the synthetic set; MNIST as in capsulenet.py)",
    )
    return parser


def run(options: Options, own: argparse.Namespace) -> None:
    """Does what the command line says."""
    session.prepare_backend(options.training)
    data, test_digits = load_data(options, own.repetitions)
    options = session.adapt(options, data)
    x, y = data.test
    shape, n_class, settings = x.shape[1:], y.shape[1], options.training
    if settings.network == "cnn":
        title, train = "CNN with pooling", baseline.train
        # The paper does not say more about its own than pooling, dropout, and as many
        # weights as CapsNet has: 12.4 M here, CapsNet 13.5 M, 11.2 M of them below
        # its decoder.
        model = network = baseline.Baseline(shape, n_class, pooled=True, width=768)
    else:
        title, train = session.network_name(settings), capsulenet.train
        model, whole, _ = capsulenet.CapsNet(
            shape,
            n_class,
            settings.routings,
            architecture=settings.sizes,
        )
        network = keras.Model(whole.input, whole.outputs[0])  # no decoder
    if options.weights is not None and options.begun is None:
        load_weights(model, options.weights)
    with session.begin(f"{title}, placed digits", model, data, options):
        if options.mode == "train":
            train(model, data, options)
        test(network, data, test_digits, own.repetitions, options)


if __name__ == "__main__":
    sys.exit(command_line.main(None, build_parser, run))

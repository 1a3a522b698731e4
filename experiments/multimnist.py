"""Two overlapping digits in one image, told apart (section 6 of the paper).

    python -m experiments.multimnist --epochs 1 --train_size 6000   # a first look
    python -m experiments.multimnist --save_dir result/multimnist/capsnet
    python -m experiments.multimnist --network baseline --save_dir result/multimnist/cnn
    python -m experiments.multimnist -t --save_dir result/multimnist/capsnet --pairs 10

A pair is two digits of different classes, each shifted by up to 4 pixels in both
directions, added and cut at 1, 36 x 36. Training pairs are made of training digits,
test pairs of test digits. They are made while they are needed: each epoch pairs every
digit once, as (seed, epoch) says. The error is the paper's: both classes have to be the
two with the longest capsules (or the largest outputs of the baseline).
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import dataclasses
import os
import sys
from functools import partial

import keras
import numpy as np
from keras import layers, ops
from matplotlib.figure import Figure

import capsulenet
import utils
from capsnet import command_line, datasets, run_folder, session, training
from capsnet.batches import ShiftedBatches, shift
from capsnet.convolution import FastConv2D
from capsnet.flags import Parser
from capsnet.options import Integer, Options, Training
from capsnet.predict import predict
from capsnet.task import Task
from capsnet.weights import load_weights
from experiments import digits

MARGIN = 4  # pixels around a digit, and the largest shift
TEST_SEED = 0  # of the pairs that are tested, whatever the seed of the run
SHEET = 12  # columns of a sheet


class Pairs(ShiftedBatches):
    """Batches of overlapping digits, and each digit alone.

    Item `i` is `((images, y_1, y_2), (y_1 + y_2, alone))`, where `alone` holds both
    digits of an image, (batch, 2, height, width, channels). Each digit of the set is
    the first of a pair once an epoch. Order, partners and shifts depend on
    `(seed, epoch)` and on nothing else.

    Args: those of `ShiftedBatches`.
    """

    def set_epoch(self, epoch: int, logs: dict | None = None) -> None:
        super().set_epoch(epoch)
        rng = np.random.default_rng([self.seed, epoch, 2])
        order, offsets = self._order_and_offsets
        partners = draw_partners(self.y.argmax(axis=1), order, rng)
        low, high = np.negative(self.largest_shift), self.largest_shift
        others = rng.integers(low, high, size=(len(order), 2), endpoint=True)
        # (2, samples) and (2, samples, 2)
        self._pairs = np.stack([order, partners]), np.stack([offsets, others])

    def __getitem__(self, index: int):
        order, offsets = self._pairs
        size = self.batch_size // self.num_shards
        start = index * self.batch_size + self.shard * size
        batch = slice(start, start + size)
        alone = [shift(self.x[order[i, batch]], offsets[i, batch]) for i in (0, 1)]
        first, second = (self.y[order[i, batch]] for i in (0, 1))
        images = np.minimum(alone[0] + alone[1], 1)
        return (images, first, second), (first + second, np.stack(alone, axis=1))


def draw_partners(
    labels: np.ndarray, order: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """For each sample of an order, another one of a different class, at random.

    Args:
        labels: Classes of all samples; at least two are different.
        order: Indices of samples.
        rng: Draws the partners, all of other classes equally likely.
    """
    partners = rng.integers(len(labels), size=len(order))
    while (same := labels[partners] == labels[order]).any():
        partners[same] = rng.integers(len(labels), size=same.sum())
    return partners


def Baseline(  # noqa: N802, as CapsNet
    input_shape: tuple[int, int, int], n_class: int
) -> keras.Model:
    """Builds the baseline of section 6.1 of the paper, of 24.56 M weights.

    Two convolutions, 512 channels of 9x9 and 256 of 5x5, each with pooling; fully
    connected layers of 1024 and of the classes, whose outputs are sigmoids. The paper
    does not say how the convolutions are padded; with "same" it has the paper's number
    of weights.

    Args:
        input_shape: Height, width and channels of the images.
        n_class: Number of classes.

    Returns:
        A model: images -> probability that each class is there, shape (batch, n_class).
    """
    last = {"data_format": "channels_last"}  # whatever keras.json says
    same = {"padding": "same", "activation": "relu", **last}
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image"),
            FastConv2D(512, 9, name="conv1", **same),
            layers.MaxPooling2D(**last),
            FastConv2D(256, 5, name="conv2", **same),
            layers.MaxPooling2D(**last),
            layers.Flatten(**last),
            layers.Dense(1024, activation="relu", name="dense1"),
            layers.Dense(n_class, name="dense2"),
            layers.Activation("sigmoid", dtype="float32"),
        ],
        name="baseline",
    )


@keras.saving.register_keras_serializable("capsnet")
def both_right(y_true, y_pred):
    """Whether the two classes that are there have the two largest outputs.

    Args:
        y_true: Two-hot labels, shape (batch, n_class).
        y_pred: Outputs, at least 0, the same shape.

    Returns:
        0 or 1 for each image, shape (batch,).
    """
    present = ops.min(ops.where(y_true > 0, y_pred, np.inf), axis=-1)
    absent = ops.max(ops.where(y_true > 0, -1.0, y_pred), axis=-1)
    return ops.cast(present > absent, "float32")


@keras.saving.register_keras_serializable("capsnet")
def one_right(y_true, y_pred):
    """Whether at least one of the two largest outputs is of a class that is there.

    Arguments and return are those of `both_right`.
    """
    best = ops.max(ops.where(y_true > 0, y_pred, -1.0), axis=-1, keepdims=True)
    ahead = ops.logical_and(ops.equal(y_true, 0), ops.greater_equal(y_pred, best))
    ahead = ops.sum(ops.cast(ahead, "int32"), axis=-1)
    return ops.cast(ahead < 2, "float32")


class BaselinePairs(Pairs):
    """The pairs for a network that reconstructs nothing."""

    def __getitem__(self, index: int):
        (images, _, _), (labels, _) = super().__getitem__(index)
        return images, labels


METRICS = {"accuracy": both_right, "one_right": one_right}


def make_network(
    input_shape: tuple[int, int, int], n_class: int, settings: Training
) -> tuple[str, keras.Model, Task]:
    """Title, model and task of the network that is to be trained."""
    if settings.network == "baseline":
        task = Task(
            losses={"loss": keras.losses.binary_crossentropy},
            loss_weights=(1.0,),
            metrics=METRICS,
            batches=BaselinePairs,
            arrange=partial(make_test, BaselinePairs),
        )
        return "baseline CNN", Baseline(input_shape, n_class), task
    model = capsulenet.CapsNet(
        input_shape,
        n_class,
        settings.routings,
        objects=2,
        architecture=settings.sizes,
    )[0]
    # the error of both digits is summed
    lam_recon = settings.reconstruction_weight(input_shape)
    task = dataclasses.replace(
        capsulenet.task(2 * lam_recon, Pairs),
        metrics=METRICS,
        arrange=partial(make_test, Pairs),
    )
    return session.network_name(settings), model, task


def make_test(
    kind: type[Pairs], x: np.ndarray, y: np.ndarray, repetition: int = 0
) -> tuple[list, list]:
    """Inputs and targets of one pair for each digit, the same for every run."""
    fraction = MARGIN / x.shape[1]
    batches = kind(x, y, len(x), fraction, seed=TEST_SEED, epoch=repetition)
    inputs, targets = batches[0]
    return tuple(
        list(part) if isinstance(part, tuple) else [part] for part in (inputs, targets)
    )


def test(
    model: keras.Model,
    task: Task,
    data: datasets.Dataset,
    pairs: int,
    options: Options,
) -> np.ndarray:
    """Prints the error over so many pairs for each test digit; writes test.csv.

    Returns:
        The lengths, or the baseline's outputs, for the first pair of each digit.
    """
    results = []
    for repetition in range(pairs):
        inputs, targets = make_test(task.batches, *data.test, repetition)
        how = options.training.batch_size, options.devices
        result, outputs = task.evaluate(model, inputs, targets, *how)
        results.append(result)
        if repetition == 0:
            first = outputs
    n = pairs * len(data.test[0])
    both, one = (np.mean([r[k] for r in results]) for k in ("accuracy", "one_right"))
    print(f"Test error: {100 * (1 - both):.2f} % of {n} pairs")
    print(f"At least one right: {100 * one:.2f} %")
    path = options.folder.file("test.csv")
    row = {
        "network": options.training.network,
        "pairs": n,
        "error": round(100 * (1 - both), 4),
    }
    run_folder.write_csv(path, [{**row, "one_right": round(100 * one, 4)}])
    print("Wrote", path)
    return first


def draw_sheets(
    model: keras.Model, data: datasets.Dataset, lengths: np.ndarray, folder: str
) -> None:
    """Draws figure 5 of the paper: right ones, wrong ones, and classes not there.

    Args:
        model: The train model of a CapsNet.
        data: The padded data.
        lengths: What `test` returns.
        folder: Where to write.
    """
    (images, first, second), (y, _) = make_test(Pairs, *data.test)
    said = np.argsort(lengths, axis=1)[:, -2:]
    right = ops.convert_to_numpy(both_right(y, lengths)) > 0
    truth = np.stack([first.argmax(axis=1), second.argmax(axis=1)], axis=1)
    absent = np.argsort(lengths, axis=1)[:, 0]
    forced = np.stack([truth[:, 0], absent], axis=1)
    chosen = {
        "right": (np.flatnonzero(right), truth),
        "wrong": (np.flatnonzero(~right), said),
        "forced": (np.flatnonzero(right), forced),
    }
    titles = {
        "right": "Both right: reconstructions of the two digits",
        "wrong": "Wrong: reconstructions of the two classes that were said",
        "forced": "Reconstructions of the first digit and of a class that is not there",
    }
    identity = np.eye(y.shape[1], dtype="float32")
    for name, (index, classes) in chosen.items():
        index = index[:SHEET]
        if not len(index):
            continue
        labels = [identity[classes[index, i]] for i in (0, 1)]
        _, decoded = predict(model, [images[index], *labels])
        path = os.path.join(folder, f"{name}.png")
        named = [[data.class_names[c] for c in pair] for pair in truth[index]]
        drawn = [[data.class_names[c] for c in pair] for pair in classes[index]]
        with run_folder.replace_file(path) as temporary:
            plot_sheet(images[index], decoded, named, drawn, titles[name], temporary)
        print("Wrote", path)


@utils.plain_text()
def plot_sheet(images, decoded, truth, drawn, title: str, path: str) -> None:
    """Draws images over the reconstructions of two capsules, together and apart.

    Args:
        images: Shape (n, height, width, 1).
        decoded: Shape (n, 2, height, width, 1).
        truth: The names of the two classes of each.
        drawn: The names of the two classes that were reconstructed.
        title: Of the sheet.
        path: The picture to write.
    """
    n = len(images)
    figure = Figure(figsize=(1.05 * max(n, 6), 5.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(4, n, squeeze=False)
    for column, image, pair, names, said in zip(grid.T, images, decoded, truth, drawn):
        tinted = utils.tint(*pair)
        parts = [image.repeat(3, axis=2), tinted[0] + tinted[1], *tinted]
        labels = (" + ".join(names), " + ".join(said), *said)
        for axes, part, label in zip(column, parts, labels):
            axes.imshow(np.clip(part, 0, 1))
            axes.set_title(label, fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, label in zip(grid[:, 0], ("input", "together", "first", "second")):
        axes.set_ylabel(label, fontsize=8)
    figure.savefig(path, dpi=150)


def check_classes(data: datasets.Dataset, options: Options) -> None:
    """Finds out whether there are digits of different classes to pair.

    Raises:
        datasets.DataError: If a set has one class alone.
    """
    sets = {"test": data.test}
    if options.mode == "train":
        sets["training"], validation = datasets.split(
            *data.train, options.training.train_size, options.training.validation_size
        )
        if validation:
            sets["validation"] = validation
    for name, (_, y) in sets.items():
        if np.count_nonzero(y.any(axis=0)) < 2:
            raise datasets.DataError(
                f"expected {name} digits of at least 2 classes, to pair them, got "
                f"{len(y)} of one class"
            )


def build_parser() -> Parser:
    """The command line."""
    folder = os.path.join("result", "multimnist")
    written = ("test.csv", "right.png", "wrong.png", "forced.png")
    networks = ("capsnet", "baseline")
    parser = digits.build_parser(__doc__, folder, written, networks, MARGIN)
    parser.add_argument_group("MultiMNIST").add_argument(
        "--pairs",
        type=Integer(1),
        default=1,
        metavar="N",
        help="pairs for each test digit in the test at the end; the paper's 10 million "
        "are 1000",
    )
    return parser


def run(options: Options, own: argparse.Namespace) -> None:
    """Does what the command line says."""
    session.prepare_backend(options.training)
    data = digits.pad(digits.load_digits(options.data.data_dir), MARGIN)
    options = session.adapt(options, data)
    session.check_data(data, options)
    check_classes(data, options)
    x, y = data.test
    title, model, task = make_network(x.shape[1:], y.shape[1], options.training)
    if options.weights is not None and options.begun is None:
        load_weights(model, options.weights)
    with session.begin(f"{title}, two digits", model, data, options):
        if options.mode == "train":
            info = {**session.model_info(model, data, options), "objects": 2}
            training.train(model, data, task, info, options)
        lengths = test(model, task, data, own.pairs, options)
        if options.training.network == "capsnet":
            draw_sheets(model, data, lengths, options.folder.path)


if __name__ == "__main__":
    sys.exit(command_line.main(None, build_parser, run))

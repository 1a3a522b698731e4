"""How good a model is on a test set: rates, a table of classes, pictures, a CSV."""

import contextlib
import math
import os
from collections.abc import Callable

import numpy as np

import utils
from capsnet.datasets import Dataset
from capsnet.run_folder import RunFolder, draw, write_csv
from capsnet.task import said

FILES = ("test.csv", "real_and_recon.png", "errors.png", "confusion.png")
SHOWN, WORST = 50, 50  # images on a sheet


def interval(count: int, n: int) -> tuple[float, float]:
    """What a rate may be, of which a sample of n shows `count`: Wilson's 95 % interval.

    Args:
        count: How often it was so.
        n: Of how many.
    """
    z = 1.96  # standard deviations, for 95 %
    rate, z2 = count / n, z * z / n
    half = z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n))
    middle = rate + z2 / 2
    return (
        max(0.0, (middle - half) / (1 + z2)),
        min(1.0, (middle + half) / (1 + z2)),
    )


def class_rates(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Precision, recall and F1 of each class; NaN where nothing was there to count.

    Args:
        truth: Whether a class is in an image, bool of shape (n, n_class).
        predicted: Whether the model says so, the same shape.

    Returns:
        An array of shape (n_class, 3).
    """
    both = (truth & predicted).sum(axis=0)
    true, positive = truth.sum(axis=0), predicted.sum(axis=0)
    parts = np.stack([positive, true, (true + positive) / 2], axis=1)
    with np.errstate(invalid="ignore"):
        return both[:, np.newaxis] / parts


def confusion_matrix(truth, predicted, n_class: int) -> np.ndarray:
    """Counts of samples, with a row for each true class, a column for each predicted.

    Args:
        truth: Indices of the true classes, shape (n,).
        predicted: Indices of the predicted classes, shape (n,).
        n_class: Number of classes.
    """
    matrix = np.zeros((n_class, n_class), int)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def write_report(
    data: Dataset,
    lengths: np.ndarray,
    reconstruct: Callable[[np.ndarray], np.ndarray],
    folder: RunFolder,
) -> None:
    """Prints the rates on the test images and writes `FILES`.

    Args:
        data: Of which the test images are taken.
        lengths: Lengths of their class capsules, shape (n, n_class).
        reconstruct: What draws images from their capsules.
        folder: Where to write.
    """
    x, y = data.test
    names, truth = data.class_names, y > 0.5
    predicted = said(lengths, data.multi_label)
    wrong = (truth != predicted).any(axis=1)
    low, high = interval(wrong.sum(), len(x))
    print(
        f"Test error: {100 * wrong.mean():.2f} % ({wrong.sum()} of {len(x)}), 95 % "
        f"interval {100 * low:.2f} to {100 * high:.2f} %"
    )
    print(describe_classes(truth, predicted, names))
    known = [name_all(names, row) for row in truth]
    guesses = [name_all(names, row) for row in predicted]
    _write_rows(data, known, guesses, lengths, folder)
    # From all of them, since a folder's test images stand class by class.
    some = np.linspace(0, len(x) - 1, min(SHOWN, len(x))).astype(int)
    worst = worst_errors(truth, predicted, lengths)[:WORST]
    images = np.asarray(x[np.concatenate([some, worst])], "float32")
    drawn = reconstruct(images)
    n = len(some)
    pair = images[:n], drawn[:n]
    draw(folder.file("real_and_recon.png"), utils.plot_reconstructions, *pair)
    if len(worst):
        titles = [
            f"true {utils.shorten(known[i], 12)}\n"
            f"said {utils.shorten(guesses[i], 12)}, {lengths[i].max():.2f}"
            for i in worst
        ]
        total = wrong.sum()
        which = f"{len(worst)} of {total}" if total > len(worst) else f"All {total}"
        title = (
            f"{which} errors, the clearest first\n"
            "over their reconstructions, with the length of the longest capsule"
        )
        pairs = np.concatenate([images[n:], drawn[n:]], axis=1)
        draw(folder.file("errors.png"), utils.plot_sheet, pairs, titles, title)
    else:  # those of an earlier model would mislead
        with contextlib.suppress(FileNotFoundError):
            os.remove(folder.file("errors.png"))
    if not data.multi_label:
        indices = truth.argmax(axis=1), predicted.argmax(axis=1)
        matrix = confusion_matrix(*indices, len(names))
        draw(folder.file("confusion.png"), utils.plot_confusion, matrix, names)


def describe_classes(truth: np.ndarray, predicted: np.ndarray, names: list[str]) -> str:
    """A table of `class_rates`, and the mean of each over the classes."""
    rates = class_rates(truth, predicted)
    width = max(map(len, (*names, "class", "mean")))
    lines = [f"{'class':{width}}  images  precision  recall      F1"]
    means = [
        np.nanmean(column) if np.isfinite(column).any() else np.nan
        for column in rates.T
    ]
    rows = [*zip(names, truth.sum(axis=0), rates), ("mean", "", means)]
    for name, count, row in rows:
        cells = ["-" if math.isnan(rate) else f"{rate:.4f}" for rate in row]
        lines.append(
            f"{name:{width}}  {count:>6}  {cells[0]:>9}  {cells[1]:>6}  {cells[2]:>6}"
        )
    return "\n".join(lines)


def name_all(names: list[str], present: np.ndarray) -> str:
    """The classes that are there, as one text."""
    return "; ".join(names[i] for i in np.flatnonzero(present)) or "none"


def worst_errors(
    truth: np.ndarray, predicted: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Indices of the misclassified images, the clearest errors first.

    These are the ones in which the capsules of the confused classes are farthest from
    what they should be, 1 or 0, all together.
    """
    confused = truth != predicted
    distances = (confused * np.abs(lengths - truth)).sum(axis=1)
    order = np.argsort(-distances, kind="stable")
    return order[: confused.any(axis=1).sum()]


def _write_rows(data, known, guesses, lengths, folder: RunFolder) -> None:
    """Writes test.csv."""
    images = data.paths[1] if data.paths else range(len(known))
    rows = [
        {
            "image": image,
            "class": true,
            "prediction": guess,
            **{
                f"length of {name}": f"{length:.4f}"
                for name, length in zip(data.class_names, values)
            },
        }
        for image, true, guess, values in zip(images, known, guesses, lengths)
    ]
    path = folder.file("test.csv")
    write_csv(path, rows)
    print("Wrote", path)

"""Shows what a trained model makes of the test images, and which it mistakes for what.

    python -m experiments.reconstruct
    python -m experiments.reconstruct -w result/trained_model.h5 --count 100
    python -m experiments.reconstruct -w cifar.h5 --dataset cifar10

Writes to `--save_dir`:
    - reconstructions.png: test images over their reconstructions from the longest
      capsule, with the true class, the predicted one and the capsule's length.
    - misclassified.png, misclassified-2.png, ...: the same for all that are
      misclassified, 100 a sheet; beyond 10 sheets, the CSV alone has the rest.
    - confusion.png, confusion.csv: how many test images of each class (a row each, the
      column `true`) were taken for which (`predicted NAME`).
    - predictions.csv: for each test image its `index`, the `true` class, the
      `predicted` one and the `length` of the longest capsule.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import contextlib
import math
import os
import sys

import keras
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import capsulenet
import utils
from capsnet import command_line, datasets, flags, run_folder, session
from capsnet.flags import Parser
from capsnet.options import Integer, Options
from capsnet.predict import predict

FOLDER = os.path.join("result", "reconstruct")
SHEET, MAX_SHEETS, COLUMNS = 100, 10, 10
MAX_COUNTS, MAX_TICKS = 30, 100  # classes of a confusion matrix


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


@utils.plain_text
def plot_sheet(images, reconstructions, titles, wrong, title: str, path: str) -> None:
    """Draws images over their reconstructions, each pair with a title of its own.

    Args:
        images: Shape (n, height, width, channels), in [0, 1].
        reconstructions: The same shape.
        titles: Two lines for each pair.
        wrong: For each pair, whether its title is to stand out.
        title: Title of the sheet.
        path: The picture to write.
    """
    n, height, width, _ = images.shape
    pairs = np.concatenate([images, reconstructions], axis=1)
    columns = min(COLUMNS, n)
    rows = math.ceil(n / columns)
    # in inches: a column, the space between two, and a row with two lines of title
    column, space, text, head = 1.0, 0.12, 0.32, 0.4
    image = (column - space) * 2 * height / width
    size = max(5, columns * column), rows * (image + text) + head
    figure = Figure(figsize=size)
    cells = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": space / 2 / size[0],
            "right": 1 - space / 2 / size[0],
            "bottom": space / 2 / size[1],
            "top": 1 - (head + text - space / 2) / size[1],
            "wspace": space / (column - space),
            "hspace": text / image,
        },
    )
    for axes in cells.flat:
        axes.axis("off")
    for axes, pair, lines, stands_out in zip(cells.flat, pairs, titles, wrong):
        utils.show(axes, pair)
        color = "C3" if stands_out else "black"
        axes.set_title(lines, fontsize=6, color=color, pad=2)
    title += "\nover their reconstructions, with the length of the longest capsule"
    figure.suptitle(title, fontsize=9, y=1 - 0.08 / size[1], va="top")
    figure.savefig(path, dpi=utils.DPI)


@utils.plain_text
def plot_confusion(matrix, class_names, path: str) -> None:
    """Draws a confusion matrix whose colours are the errors.

    Args:
        matrix: Of `confusion_matrix`.
        class_names: A name for each class.
        path: The picture to write.
    """
    n = len(matrix)
    side = np.clip(0.4 * n, 3, 12)
    figure = Figure(figsize=(side + 2.4, side + 1.6), layout="constrained")
    axes = figure.subplots()
    errors = matrix.astype(float)
    np.fill_diagonal(errors, 0)
    # Single errors stay visible beside many, and the right ones, in grey, beside both.
    norm = LogNorm(1, max(2, errors.max()))
    shades = axes.imshow(np.ma.masked_less(errors, 1), cmap="YlOrRd", norm=norm)
    right = np.ma.masked_array(np.ones((n, n)), ~np.eye(n, dtype=bool))
    axes.imshow(right, cmap="Greys", vmin=0, vmax=6)
    if n <= MAX_COUNTS:
        for row, column in np.argwhere(matrix):
            count = matrix[row, column]
            dark = row != column and norm(count) > 0.6
            axes.text(
                column,
                row,
                count,
                ha="center",
                va="center",
                fontsize=8 if matrix.max() < 10000 else 6.5,
                color="white" if dark else "black",
            )
    every = math.ceil(n / MAX_TICKS)
    ticks = range(0, n, every)
    names = [utils.shorten(class_names[i]) for i in ticks]
    size = 9 if n <= MAX_COUNTS else 5.5
    upright = max(map(len, names)) > 3 or n > MAX_COUNTS
    axes.set_xticks(ticks, names, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(ticks, names, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    wrong = int(errors.sum())
    axes.set_title(f"{wrong} of {matrix.sum()} test images misclassified", fontsize=10)
    bar = figure.colorbar(shades, ax=axes, fraction=0.04, label="misclassified images")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.minorticks_off()
    figure.savefig(path, dpi=utils.DPI)


def study(
    model: keras.Model, data: datasets.Dataset, count: int, options: Options
) -> None:
    """Predicts the test images; writes the pictures and the CSVs.

    Args:
        model: The eval model of `CapsNet`.
        data: Of which the test images are taken.
        count: Test images on the first sheet.
        options: Batch size, and where to write.
    """
    x, y = data.test
    save_dir, batch_size = options.folder.path, options.training.batch_size
    lengths, reconstructions = predict(model, [x], batch_size)
    truth, predicted, longest = y.argmax(1), lengths.argmax(1), lengths.max(1)
    names = data.class_names
    wrong = np.flatnonzero(predicted != truth)
    share = 100 * len(wrong) / len(x)
    print(f"Test error: {share:.2f} % ({len(wrong)} of {len(x)})")

    def draw(indices, title, name):
        titles = [
            f"true {utils.shorten(names[truth[i]], 8)}\n"
            f"said {utils.shorten(names[predicted[i]], 8)}, {longest[i]:.2f}"
            for i in indices
        ]
        path = os.path.join(save_dir, name)
        stands_out = predicted[indices] != truth[indices]
        columns = (x[indices], reconstructions[indices], titles, stands_out)
        with run_folder.replace_file(path) as temporary:
            plot_sheet(*columns, title, temporary)
        print(f"Wrote {path}: {title}")

    first = np.arange(min(count, len(x)))
    title = f"the first {len(first)} of {len(x)} test images"
    draw(first, title, "reconstructions.png")
    sheets = misclassified_sheets(wrong)
    for name, title, part in sheets:
        draw(part, title, name)
    for number in range(len(sheets), MAX_SHEETS):  # an earlier model may have had more
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(save_dir, sheet_name(number)))

    matrix = confusion_matrix(truth, predicted, len(names))
    path = os.path.join(save_dir, "confusion.png")
    with run_folder.replace_file(path) as temporary:
        plot_confusion(matrix, names, temporary)
    print("Wrote", path)
    write_tables(matrix, truth, predicted, longest, names, save_dir)


def write_tables(matrix, truth, predicted, longest, names, folder: str) -> None:
    """Writes confusion.csv and predictions.csv.

    Args:
        matrix: Counts by true and predicted class.
        truth: Index of the true class of each image.
        predicted: That of the predicted one.
        longest: The length of its capsule.
        names: A name for each class.
        folder: Where to write.
    """
    tables = {
        "confusion.csv": [
            {"true": name, **{f"predicted {n}": c for n, c in zip(names, row)}}
            for name, row in zip(names, matrix)
        ],
        "predictions.csv": [
            {
                "index": i,
                "true": names[truth[i]],
                "predicted": names[predicted[i]],
                "length": f"{longest[i]:.5f}",
            }
            for i in range(len(truth))
        ],
    }
    for name, rows in tables.items():
        path = os.path.join(folder, name)
        run_folder.write_csv(path, rows)
        print("Wrote", path)


def misclassified_sheets(wrong: np.ndarray) -> list[tuple[str, str, np.ndarray]]:
    """File name, title and indices of each sheet of misclassified images.

    Args:
        wrong: Indices of all misclassified images.
    """
    sheets = []
    for start in range(0, min(len(wrong), SHEET * MAX_SHEETS), SHEET):
        part = wrong[start : start + SHEET]
        which = "all"
        if len(part) < len(wrong):
            which = f"{start + 1} to {start + len(part)} of"
        title = f"{which} {len(wrong)} misclassified test images"
        sheets.append((sheet_name(len(sheets)), title, part))
    return sheets


def sheet_name(number: int) -> str:
    """The file of a sheet of misclassified images, counted from 0."""
    return f"misclassified-{number + 1}.png" if number else "misclassified.png"


def run(options: Options, own: argparse.Namespace) -> None:
    """Does what the command line says."""
    session.prepare_backend(options.training)
    data, options = session.load_data(options)
    train_model, eval_model, _ = capsulenet.load_models(data, options)
    name = f"CapsNet, routings {options.training.routings}"
    with session.begin(name, train_model, data, options):
        study(eval_model, data, own.count, options)


def build_parser() -> Parser:
    """The command line."""
    parser = flags.build_study_parser(__doc__, FOLDER, capsulenet.PRETRAINED)
    parser.add_argument(
        "--count",
        type=Integer(1, SHEET),
        default=50,
        metavar="N",
        help=f"test images on the first sheet, at most {SHEET}",
    )
    return parser


if __name__ == "__main__":
    sys.exit(command_line.main(None, build_parser, run))

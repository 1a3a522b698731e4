"""Pictures: grids of images and the curves of a training run."""

import contextlib
import math
import warnings

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

DPI = 150
MAX_BARS = 20
MAX_COUNTS, MAX_TICKS = 30, 100  # classes of a confusion matrix

# Fonts of Linux, macOS and Windows for the scripts that matplotlib's own one lacks.
OTHER_FONTS = {
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "PingFang SC"),
    *("Hiragino Sans GB", "Apple SD Gothic Neo", "Arial Unicode MS", "SimHei"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "WenQuanYi Zen Hei"),
}


@contextlib.contextmanager
def plain_text():
    """For what draws names of files or classes, which may hold dollars and any script.

    Dollars are no mathematics; a sign that no font here has is a box, without a word.
    """
    others = sorted(OTHER_FONTS.intersection(fontManager.get_font_names()))
    family = [*matplotlib.rcParams["font.family"], *others]
    settings = {"text.parse_math": False, "font.family": family}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def plot_log(rows: list[dict], path: str) -> None:
    """Draws the losses and the error over the epochs of a training run.

    Args:
        rows: The rows of `log.csv`, one an epoch.
        path: The picture to write.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    known = {
        "": ("training", "C0"),
        "val_": ("validation", "C2"),
        "test_": ("test", "C1"),
    }
    names = [name for name in rows[0] if name.endswith("accuracy")]
    prefixes = [name.removesuffix("accuracy") for name in names]
    lines = [(p, *known.get(p, (p.removesuffix("_"), "C3"))) for p in prefixes]
    # Of a loss in two parts, the parts; their names end the same.
    parts = ("margin_loss", "reconstruction_loss")
    losses = [name for name in parts if name in rows[0]] or ["loss"]
    for prefix, label, color in lines:
        for name, style in zip(losses, ("-", "--")):
            values = [row[prefix + name] for row in rows]
            left.plot(epochs, values, color, marker=".", ls=style)
        error = [100 * (1 - row[f"{prefix}accuracy"]) for row in rows]
        right.plot(epochs, error, color, marker=".", label=label)
    left.set(xlabel="epoch", ylabel="loss", yscale="log", title="Losses")
    right.set(xlabel="epoch", ylabel="error (%)", title="Error")
    if any(line.get_ydata().max() > 0 for line in right.lines):
        right.set_yscale("log")
    for axes in (left, right):
        if axes.get_yscale() == "log":
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3, which="both")
    keys, _ = right.get_legend_handles_labels()
    if len(losses) > 1:
        for name, style in zip(losses, ("-", "--")):
            label = f"{name.removesuffix('_loss')} loss"
            keys.append(Line2D([], [], color="k", ls=style, label=label))
    # below, since the curves are everywhere
    figure.legend(handles=keys, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=DPI)


def plot_reconstructions(images, reconstructions, path: str) -> None:
    """Draws real images over their reconstructions.

    Args:
        images: Shape (n, height, width, channels), in [0, 1].
        reconstructions: The same shape.
        path: The picture to write.
    """
    columns = 10
    height = 2 * math.ceil(len(images) / columns) * images.shape[1] / images.shape[2]
    figure = Figure(figsize=(6, 6 * height / columns + 0.8), layout="constrained")
    for axes, part, title in zip(
        figure.subplots(2, 1), (images, reconstructions), ("Real", "Reconstructed")
    ):
        show(axes, tile_images(part, columns))
        axes.set_title(title)
        axes.axis("off")
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


@plain_text()
def plot_manipulation(images, changes, title: str, path: str) -> None:
    """Draws the reconstructions of a changed capsule.

    Args:
        images: Shape (dimensions * changes, height, width, channels): a row for each
            dimension of the capsule, a column for each change.
        changes: The numbers that were added to the dimension, one a column.
        title: Title of the picture.
        path: The picture to write.
    """
    columns = len(changes)
    rows = len(images) // columns
    height, width = images.shape[1:3]
    size = (6, 6 * rows * height / (columns * width) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    show(axes, tile_images(images, columns))
    axes.set_title(title)
    axes.set_xlabel("added to the dimension")
    axes.set_ylabel("dimension of the capsule")
    axes.set_xticks(
        (np.arange(columns) + 0.5) * width - 0.5, [f"{c:g}" for c in changes]
    )
    axes.set_yticks((np.arange(rows) + 0.5) * height - 0.5, range(1, rows + 1))
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


@plain_text()
def plot_predictions(
    pictures, images, reconstructions, lengths, named, titles, class_names, path: str
) -> None:
    """Draws what a network made of pictures, a row each.

    Args:
        pictures: Arrays of shape (height, width, channels), of any sizes.
        images: What the network saw of each, shape (n, height, width, channels).
        reconstructions: The same shape.
        lengths: Lengths of the class capsules, shape (n, n_class). The longest
            `MAX_BARS` are drawn where there are more.
        named: Which classes a picture is taken for, bool of the same shape.
        titles: For each row, the name of the picture and these classes.
        class_names: A name for each class.
        path: The picture to write.
    """
    n = len(pictures)
    bars = min(MAX_BARS, len(class_names))
    figure = Figure(figsize=(9, 2.3 * n), layout="constrained")
    grid = figure.subplots(n, 4, squeeze=False, width_ratios=(1, 1, 1, 2))
    for row, parts, values, is_named, (name, title) in zip(
        grid, zip(pictures, images, reconstructions), lengths, named, titles
    ):
        columns = (shorten(name, 28), "network input", "reconstruction")
        for axes, image, column in zip(row, parts, columns):
            show(axes, image)
            axes.set_title(column, fontsize=9)
            axes.axis("off")
        shown = np.sort(np.argsort(-values, kind="stable")[:bars])
        colors = ["C1" if is_named[i] else "C0" for i in shown]
        row[3].bar(range(bars), values[shown], color=colors)
        names = [shorten(class_names[i]) for i in shown]
        upright = sum(map(len, names)) > 40
        row[3].set_xticks(range(bars), names, fontsize=8, rotation=90 if upright else 0)
        row[3].set(ylim=(0, 1), ylabel="capsule length")
        row[3].set_title(title, fontsize=9)
    figure.savefig(path, dpi=DPI)


@plain_text()
def plot_votes(images, votes, names, titles, path: str) -> None:
    """Draws votes over the images that they are about, a row each.

    Args:
        images: Shape (n, height, width, channels), in [0, 1].
        votes: For each image, a map for each of some classes, (n, classes, height,
            width); positive for the class, negative against it.
        names: Name of each image.
        titles: For each image, a title of each map.
        path: The picture to write.
    """
    n, columns = len(images), votes.shape[1] + 1
    height, width = images.shape[1:3]
    figure = Figure(
        figsize=(2.2 * columns, 2.3 * n * height / width + 0.6), layout="constrained"
    )
    grid = figure.subplots(n, columns, squeeze=False)
    for row, image, maps, name, above in zip(grid, images, votes, names, titles):
        show(row[0], image)
        row[0].set_title(shorten(name, 24), fontsize=9)
        grey = image.mean(axis=-1)
        if np.median(grey) < 0.5:  # on a light ground, colours can be told apart
            grey = 1 - grey
        largest = np.abs(maps).max()
        for axes, values, title in zip(row[1:], maps, above):
            axes.imshow(grey, cmap="gray", vmin=-1, vmax=1)
            shades = axes.imshow(
                values,
                cmap="PuOr_r",
                vmin=-largest,
                vmax=largest,
                alpha=0.85 * np.abs(values) / largest,
            )
            axes.set_title(title, fontsize=9)
        for axes in row:
            axes.axis("off")
    bar = figure.colorbar(
        ScalarMappable(shades.norm, shades.cmap),
        ax=grid[-1],
        location="bottom",
        fraction=0.05,
        aspect=40,
    )
    bar.set_ticks([-largest, 0, largest], labels=["against the class", "", "for it"])
    bar.ax.tick_params(length=0, labelsize=8)
    figure.savefig(path, dpi=DPI)


@plain_text()
def plot_sheet(images, titles, title: str, path: str) -> None:
    """Draws images in rows of ten, each under a title of its own.

    Args:
        images: Shape (n, height, width, channels), in [0, 1].
        titles: For each image, two lines at most.
        title: Title of the sheet, of two lines at most.
        path: The picture to write.
    """
    n, height, width, _ = images.shape
    columns = min(10, n)
    rows = math.ceil(n / columns)
    # in inches: a column, the space between two, and a row with two lines of title
    column, space, text, head = 1.0, 0.12, 0.32, 0.4
    high = (column - space) * height / width
    size = max(5, columns * column), rows * (high + text) + head
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))
    for i, (image, lines) in enumerate(zip(images, titles)):
        left = space / 2 + i % columns * column
        top = head + text + i // columns * (high + text) - space / 2
        show(axes, image, extent=(left, left + column - space, top + high, top))
        middle = left + (column - space) / 2
        axes.text(middle, top - 0.03, lines, fontsize=6, ha="center", va="bottom")
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="auto")
    axes.axis("off")
    figure.suptitle(title, fontsize=9, y=1 - 0.08 / size[1], va="top")
    figure.savefig(path, dpi=DPI)


@plain_text()
def plot_confusion(matrix, class_names, path: str) -> None:
    """Draws a confusion matrix whose colours are the errors.

    Args:
        matrix: Counts, a row for each true class, a column for each predicted one.
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
    names = [shorten(class_names[i]) for i in ticks]
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
    figure.savefig(path, dpi=DPI)


def shorten(name: str, longest: int = 14) -> str:
    """A name that fits into a picture."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def tile_images(images, columns: int) -> np.ndarray:
    """Puts images side by side, row by row, into one.

    Args:
        images: Shape (n, height, width, channels).
        columns: Number of images in a row; an unfinished row is filled with zeros.

    Returns:
        An array of shape (rows * height, columns * width, channels).
    """
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    grid = np.zeros((rows * columns, height, width, channels), images.dtype)
    grid[:n] = images
    grid = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def tint(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two grey images in red and in green, so that their sum shows both.

    Args:
        first, second: Shape (..., height, width, 1), in [0, 1].

    Returns:
        Both with 3 channels.
    """
    return first * np.array((1.0, 0.25, 0.2)), second * np.array((0.2, 0.9, 0.35))


def show(axes, image, extent=None) -> None:
    """Draws an image of shape (height, width, channels), in [0, 1].

    Args:
        axes: Of matplotlib.
        image: Grey with 1 channel, coloured with 3.
        extent: Left, right, bottom and top of its place in the axes.
    """
    image = np.clip(image, 0, 1)
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1, extent=extent)
    else:
        axes.imshow(image, extent=extent)

"""Figures of attacks: what images became, and accuracy over epsilon."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

import utils


@utils.plain_text()
def plot_pair(original, changed, lengths, row: dict, names, path: str) -> None:
    """Draws an image, what became of it, and the difference.

    Args:
        original: Shape (height, width, channels), in [0, 1].
        changed: The same shape.
        lengths: Of the capsules for the changed image, shape (n_class,).
        row: Of the CSV.
        names: A name for each class.
        path: The picture to write.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    source, target = (utils.shorten(row[key]) for key in ("source", "target"))
    utils.show(left, original)
    left.set_title(f"original: {source}", fontsize=10)
    utils.show(middle, changed)
    said = utils.shorten(names[lengths.argmax()])
    middle.set_title(f"adversarial: said {said}, {lengths.max():.2f}", fontsize=10)
    # over the channels, as a colour's change has no sign
    difference = (changed - original).mean(-1)
    most = max(np.abs(difference).max(), 1e-3)
    shades = right.imshow(difference, cmap="RdBu_r", vmin=-most, vmax=most)
    right.set_title("difference", fontsize=10)
    label = "mean change of the channels" if original.shape[-1] > 1 else "change"
    figure.colorbar(shades, ax=right, fraction=0.046, label=label)
    for axes in (left, middle, right):
        axes.set_xticks([])
        axes.set_yticks([])
    outcome = "" if row["reached"] else "not reached, "
    figure.suptitle(
        f"{source} to {target}: {outcome}{row['steps']} steps, "
        f"summed change {row['summed_change']:.1f}",
        fontsize=11,
    )
    figure.savefig(path, dpi=utils.DPI)


@utils.plain_text()
def plot_grid(firsts, changed, rows: list[dict], names, path: str) -> None:
    """Draws what each class's image became on the way to each other class.

    Args:
        firsts: The images that were started from, (n_class, height, width, channels).
        changed: What became of them, (n_class * (n_class - 1), height, width,
            channels).
        rows: Of the CSV, one for each of these.
        names: A name for each class.
        path: The picture to write.
    """
    n, height, width, channels = firsts.shape
    cells = np.zeros((n * n, height, width, channels), "float32")
    diagonal = np.eye(n, dtype=bool).ravel()
    cells[diagonal], cells[~diagonal] = firsts, changed
    side = 0.8 * n + 1
    figure = Figure(figsize=(side, side * height / width + 0.6), layout="constrained")
    axes = figure.subplots()
    utils.show(axes, utils.tile_images(cells, n))
    places = np.argwhere(~np.eye(n, dtype=bool))
    for (i, j), row in zip(places, rows):
        reached = row["reached"]
        axes.text(
            (j + 1) * width - 1.5,
            (i + 1) * height - 1.5,
            row["steps"] if reached else "not reached",
            ha="right",
            va="bottom",
            fontsize=7,
            color="#ffd24d" if reached else "#ff6666",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )
    for k in range(1, n):
        axes.axhline(k * height - 0.5, color="0.35", lw=0.7)
        axes.axvline(k * width - 0.5, color="0.35", lw=0.7)
    for k in range(n):
        corner = (k * width - 0.5, k * height - 0.5)
        frame = {"fill": False, "color": "C0", "lw": 2}
        axes.add_patch(Rectangle(corner, width, height, **frame))
    short = [utils.shorten(name) for name in names]
    upright = max(map(len, short)) > 8
    centres = np.arange(n) + 0.5
    axes.set_xticks(centres * width - 0.5, short, rotation=90 if upright else 0)
    axes.set_yticks(centres * height - 0.5, short)
    axes.tick_params(length=0)
    axes.set(xlabel="target: the class that it is to be taken for")
    axes.set(ylabel="source: the class that it is")
    reached = sum(row["reached"] for row in rows)
    title = f"{reached} of {len(rows)} targets reached, after the steps that are given"
    axes.set_title(title, fontsize=11)
    figure.savefig(path, dpi=utils.DPI)


def plot_curves(rows: list[dict], title: str, path: str) -> None:
    """Draws the accuracy over epsilon, a curve for each network and loss.

    Args:
        rows: Of the CSV.
        title: Title of the picture.
        path: The picture to write.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    styles = {"margin loss": "C0--", "gap": "C0-", "cross-entropy": "C1-"}
    for loss, style in styles.items():
        part = [row for row in rows if row["loss"] == loss]
        if part:
            epsilons = [row["epsilon"] for row in part]
            accuracies = [100 * row["accuracy"] for row in part]
            label = f"{part[0]['network']}, {loss}"
            axes.plot(epsilons, accuracies, style, marker=".", label=label)
    axes.set(xlabel="epsilon, the largest change of a pixel", ylabel="accuracy (%)")
    axes.set(ylim=(0, 102), title=title)
    axes.grid(alpha=0.3)
    axes.legend(title="network, loss that is followed")
    figure.savefig(path, dpi=utils.DPI)

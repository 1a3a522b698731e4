"""Draws docs/network.png: the network with its shapes, and one digit on its way.

    python -m docs.draw_network

The shapes are read from the model, and the digit, its capsules and its reconstruction
are those of the published weights.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import os
from functools import partial

import keras
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import utils
from capsnet import datasets, flags, run_folder
from capsnet.weights import load_weights
from capsulenet import CapsNet

FOLDER = os.path.dirname(os.path.abspath(__file__))
WEIGHTS = os.path.join(FOLDER, os.pardir, flags.PRETRAINED)
DIGIT = 8  # of the test images; a 5 whose lower end runs out
INK, MUTED, FIRST, SECOND = "#222222", "#777777", "#4c78a8", "#e4873b"


def look(index: int) -> dict:
    """What the network makes of a test image: everything that is drawn."""
    x, y = datasets.load_dataset().test
    x, y = x[index : index + 1], y[index : index + 1]
    train_model, eval_model, _ = CapsNet(x.shape[1:], y.shape[1])
    load_weights(train_model, WEIGHTS)
    names = ("conv1", "primarycaps", "digitcaps", "capsnet")
    outputs = [train_model.get_layer(name).output for name in names]
    parts = keras.Model(train_model.inputs[0], outputs).predict(x, verbose=0)
    found = dict(zip(names, (part[0] for part in parts)))
    _, reconstruction = eval_model.predict(x, verbose=0)
    layers = train_model.get_layer("decoder").layers
    widths = [layer.units for layer in layers if hasattr(layer, "units")]
    return {
        "image": x[0],
        "reconstruction": reconstruction[0],
        "widths": widths,
        **found,
    }


def box(axes, x, y, width, height, color, lines) -> None:
    """A box with a few lines of text in it, the first one in bold."""
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, style, fc=color, ec="none", alpha=0.16)
    )
    for i, line in enumerate(lines):
        axes.text(
            x + width / 2,
            y + height / 2 + 0.21 * ((len(lines) - 1) / 2 - i),
            line,
            ha="center",
            va="center",
            fontsize=8.5 if i == 0 else 7.5,
            fontweight="bold" if i == 0 else "normal",
            color=INK,
        )


def arrow(axes, start, end, text="") -> None:
    """An arrow with a few words over it."""
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "color": MUTED, "lw": 1.1}
    axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))
    middle = ((start[0] + end[0]) / 2, start[1] + 0.08)
    axes.text(*middle, text, ha="center", va="bottom", fontsize=7, color=MUTED)


def picture(axes, image, x, y, side) -> None:
    """An image of one channel with a thin frame."""
    corners = (x, x + side, y, y + side)
    axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1, extent=corners, zorder=2)
    axes.add_patch(
        Rectangle((x, y), side, side, fill=False, ec=MUTED, lw=0.7, zorder=3)
    )


def draw(found: dict, path: str) -> None:
    """Draws the way of a digit through the network and back."""
    height, width, channels = found["image"].shape
    rows, columns, filters = found["conv1"].shape
    n_primary, dim_primary = found["primarycaps"].shape
    n_class, dim = found["digitcaps"].shape
    types = filters // dim_primary
    side = round((n_primary / types) ** 0.5)
    best = found["capsnet"].argmax()

    figure = Figure(figsize=(10, 3.95))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_aspect("equal")
    axes.axis("off")
    label = partial(axes.text, fontsize=7.5, ha="center", color=INK)
    note = partial(axes.text, fontsize=7, color=MUTED)

    # there
    top = 2.35
    middle = top + 0.575
    picture(axes, found["image"], 0.25, top, 1.15)
    size = f"{height} x {width} x {channels}"
    label(0.825, top - 0.1, f"image\n{size}", va="top")
    arrow(axes, (1.45, middle), (2.2, middle), "9 x 9\nReLU")
    lines = ["convolution", f"{rows} x {columns}", f"{filters} features"]
    box(axes, 2.25, top, 1.25, 1.15, FIRST, lines)
    arrow(axes, (3.55, middle), (4.3, middle), "9 x 9\nstride 2")
    lines = ["primary capsules", f"{side} x {side} x {types} = {n_primary}"]
    lines += [f"vectors of {dim_primary}", "squashed"]
    box(axes, 4.35, top, 1.5, 1.15, FIRST, lines)
    arrow(axes, (5.9, middle), (7.02, middle), "routing by\nagreement")
    note(6.45, middle - 0.09, "3 rounds", ha="center", va="top")

    # the class capsules: a row each, its elements as cells, its length as a bar
    left, cell, line = 7.18, 0.093, 0.115
    centre, bars = left + dim * cell / 2, left + dim * cell + 0.12
    cells = partial(Rectangle, height=0.095, ec="none")
    for k, (capsule, length) in enumerate(zip(found["digitcaps"], found["capsnet"])):
        y = top + 1.15 - (k + 1) * line
        color = SECOND if k == best else FIRST
        axes.text(left - 0.03, y + 0.05, k, fontsize=6, ha="right", va="center")
        for d, value in enumerate(capsule):
            alpha = min(1, 0.08 + 2 * abs(value))
            place = (left + d * cell, y)
            axes.add_patch(cells(place, width=0.9 * cell, fc=color, alpha=alpha))
        axes.add_patch(cells((bars, y), width=0.8, fc="#eeeeee"))
        axes.add_patch(cells((bars, y), width=0.8 * length, fc=color))
    label(centre, top + 1.22, f"class capsules: {n_class} vectors of {dim}")
    label(bars + 0.4, top + 1.22, "lengths")
    answer = f"is it there?\n{best}: {found['capsnet'][best]:.2f}"
    label(bars + 0.4, top - 0.06, answer, va="top")

    # and back
    low = 0.35
    middle = low + 0.575
    axes.plot([centre, centre], [top - 0.06, middle], color=MUTED, lw=1.1)
    kept = f"the longest one alone,\n{n_class} x {dim} with zeros"
    note(centre + 0.07, (top + middle) / 2, kept, va="center")
    x = centre
    for units in found["widths"]:
        arrow(axes, (x, middle), (x - 0.42, middle))
        activation = "sigmoid" if units == height * width * channels else "ReLU"
        lines = ["fully connected", str(units), activation]
        box(axes, x - 1.67, low + 0.2, 1.2, 0.75, SECOND, lines)
        x -= 1.72
    arrow(axes, (x, middle), (1.45, middle), "decoder")
    picture(axes, found["reconstruction"], 0.25, low, 1.15)
    label(0.825, low - 0.08, "reconstruction", va="top")
    axes.set(xlim=(0, 10), ylim=(0, 3.95))
    figure.savefig(path, dpi=utils.DPI)


def main() -> None:
    path = os.path.join(FOLDER, "network.png")
    with run_folder.replace_file(path) as temporary:
        draw(look(DIGIT), temporary)
    print("Wrote", os.path.relpath(path))


if __name__ == "__main__":
    main()

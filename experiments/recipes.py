"""What each part of the recipe `modern` gives: one change at a time.

    python -m experiments.recipes                        # all variants, two seeds
    python -m experiments.recipes --variants modern no_average --seeds 0 1 2
    python -m experiments.recipes --table_only           # from the logs, no training

Each variant is trained on the first 20 000 training images of MNIST, and compared by
the error and the margin loss on the other 40 000 after the last epoch: a third of the
images makes three times the errors, and eight times the usual 5000 held-out images
count them three times as exactly. No test image is used; "test" in a run's log.csv is
the first thousand of those 40 000. A run that was interrupted goes on with the same
command. Writes to `--save_dir`, in a folder for each number of epochs, since a learning
rate that ends at zero makes runs of other lengths other runs: the folders VARIANT/SEED
with the runs' logs and held_out.csv, and from these alone recipes.csv, recipes.md and
recipes.png.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable
from statistics import mean, stdev

import keras
import numpy as np
from matplotlib.figure import Figure

import capsulenet
import utils
from capsnet import command_line, datasets, run_folder, session
from capsnet.augmentation import Affine
from capsnet.batches import ShiftedBatches
from capsnet.flags import Parser
from capsnet.options import Integer, Options
from capsnet.recipes import RECIPES
from capsnet.run_folder import RunFolder
from capsnet.training import train

TRAINED, IN_LOG = 20_000, 1000
HELD_OUT = "held_out.csv"
FOLDER = os.path.join("result", "recipes")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A change of the recipe `modern`.

    Attributes:
        what: In words.
        changes: Of the numbers of `options.Training`.
        sizes: Of the CapsNet, other than the paper's.
        alter: Changes the train model before it is trained.
        plain_epochs: Last epochs with shifts alone.
    """

    what: str
    changes: dict = dataclasses.field(default_factory=dict)
    sizes: dict = dataclasses.field(default_factory=dict)
    alter: Callable[[keras.Model], None] | None = None
    plain_epochs: int = 0


def divide_by_types(model: keras.Model) -> None:
    """Divides the primary capsules' convolution by 32, before the bias is added.

    Its kernel starts from the standard deviation 0.1, as it does there.
    """
    layer = model.get_layer("primarycaps")
    convolve, kernel = layer.convolve, layer.kernel.numpy()
    layer.kernel.assign(kernel * (0.1 / kernel.std()))
    layer.convolve = lambda *arguments: convolve(*arguments) / layer.n_channels


def start_biases_at_a_tenth(model: keras.Model) -> None:
    """Gives all biases the value 0.1."""
    for weight in model.trainable_weights:
        if weight.name == "bias":
            weight.assign(np.full(weight.shape, 0.1))


# Numbers of the recipe `seed`, of its changes of images and of all.
SHIFTS = {"rotation": 0.0, "zoom": 0.0, "shear": 0.0, "shift_fraction": 0.1}
SEED = {"lr": 0.001, "lr_decay": 0.9, "warmup": 0, "ema": 0.0, **SHIFTS}
SEED["architecture"] = "paper"
MUON_STRONG = {"optimizer": "muon", "rotation": 15, "zoom": 0.2, "shear": 0.2}
VARIANTS = {
    "modern": Variant("the recipe `modern` as it is"),
    "no_average": Variant("no average of the weights", {"ema": 0}),
    "shift_only": Variant("whole pixels' shifts alone, up to 2", SHIFTS),
    "reconstruction_7.84": Variant(
        "reconstruction weighs 7.84 instead of 0.392", {"lam_recon": 7.84}
    ),
    "W_0.1": Variant(
        "transformation matrices start at 0.1 instead of 0.01",
        sizes={"transformation_stddev": 0.1},
    ),
    "glorot": Variant(
        "kernels start from Glorot's distribution instead of LeCun's",
        sizes={"kernel_initializer": "glorot_uniform"},
    ),
    "lr_0.002": Variant("largest learning rate 0.002 instead of 0.003", {"lr": 0.002}),
    "lr_0.005": Variant("largest learning rate 0.005", {"lr": 0.005}),
    "strong": Variant(
        "15 degrees, zoom and shear 0.2", {"rotation": 15, "zoom": 0.2, "shear": 0.2}
    ),
    "lr_0.005_strong": Variant(
        "rate 0.005, 15 degrees, zoom and shear 0.2",
        {"lr": 0.005, "rotation": 15, "zoom": 0.2, "shear": 0.2},
    ),
    "muon": Variant("Muon for the convolutions' kernels", {"optimizer": "muon"}),
    "muon_strong": Variant("Muon, 15 degrees, zoom and shear 0.2", MUON_STRONG),
    "muon_strong_decay_0.9": Variant(
        "Muon, 15 degrees, zoom and shear 0.2, 0.9 an epoch instead of the cosine",
        {**MUON_STRONG, "lr_decay": 0.9},
    ),
    "decay_0.9": Variant("0.9 an epoch instead of the cosine", {"lr_decay": 0.9}),
    "W_0.03": Variant(
        "transformation matrices start at 0.03", sizes={"transformation_stddev": 0.03}
    ),
    "W_0.0027": Variant(
        "transformation matrices start at 0.0027",
        sizes={"transformation_stddev": 0.0027},
    ),
    "no_warmup": Variant("no warm-up", {"warmup": 0}),
    "batch_50": Variant("batches of 50, rate 0.002", {"batch_size": 50, "lr": 0.002}),
    "weak": Variant(
        "5 degrees, zoom and shear 0.05", {"rotation": 5, "zoom": 0.05, "shear": 0.05}
    ),
    "unchanged": Variant("images as they are", {**SHIFTS, "shift_fraction": 0}),
    "fading": Variant("shifts alone in the last epoch", plain_epochs=1),
    # Of the code that the paper's authors released.
    "divided": Variant(
        "primary capsules: kernel from 0.1, convolution divided by 32",
        alter=divide_by_types,
    ),
    "biases": Variant("biases start at 0.1", alter=start_biases_at_a_tenth),
    "seed": Variant("the recipe `seed`", SEED),
}


def load_data() -> tuple[datasets.Dataset, tuple[np.ndarray, np.ndarray]]:
    """MNIST's training images: some to train on, some for the log, and all the rest."""
    data = datasets.load_dataset()
    x, y = data.train
    train_set, held_out = (x[:TRAINED], y[:TRAINED]), (x[TRAINED:], y[TRAINED:])
    some = tuple(part[:IN_LOG] for part in held_out)
    return datasets.Dataset(train_set, some, data.class_names, data.name), held_out


class FadingBatches(ShiftedBatches):
    """Batches whose last epochs have shifts alone."""

    plain_from = 0

    def set_epoch(self, epoch: int, logs: dict | None = None) -> None:
        affine = self.affine
        if epoch >= self.plain_from:
            self.affine = Affine(shift=affine.shift)
        super().set_epoch(epoch)
        self.affine = affine


def run_variant(name: str, seed: int, save_dir: str, epochs: int) -> None:
    """Trains a variant, or goes on with it."""
    variant = VARIANTS[name]
    folder = RunFolder(os.path.join(save_dir, name, str(seed)))
    if os.path.exists(folder.file(HELD_OUT)):
        print(f"{name}, seed {seed}: {epochs} epochs are in {folder.path}")
        return
    numbers = {"epochs": epochs, "seed": seed}
    training = dataclasses.replace(RECIPES["modern"], **numbers | variant.changes)
    options = command_line.continued(Options(folder, training=training))
    print(f"\n{name}, seed {seed}: {variant.what}")
    keras.backend.clear_session()
    logging.getLogger("tensorflow").setLevel("ERROR")  # it warns of many runs
    with command_line.explained(options):
        train_variant(name, options)


def train_variant(name: str, options: Options) -> None:
    """Trains a variant as `capsulenet.py` does; measures it on the other images."""
    variant, training = VARIANTS[name], options.training
    session.prepare_backend(training)
    data, (x_rest, y_rest) = load_data()
    session.check_data(data, options)
    kind = ShiftedBatches
    if variant.plain_epochs:
        plain_from = training.epochs - variant.plain_epochs
        kind = type("Fading", (FadingBatches,), {"plain_from": plain_from})
    (x, y), _ = data
    shape, n_class = x.shape[1:], y.shape[1]
    model, eval_model, _ = capsulenet.CapsNet(
        shape,
        n_class,
        training.routings,
        architecture=training.sizes,
        **variant.sizes,
    )
    if variant.alter:
        variant.alter(model)
    with session.begin(f"CapsNet, {name}", model, data, options):
        task = capsulenet.task(training.reconstruction_weight(shape), kind)
        info = session.model_info(model, data, options)
        train(model, data, task, info, options)
    measured, _ = task.evaluate(eval_model, [x_rest], [y_rest, x_rest])
    path = options.folder.file(HELD_OUT)
    run_folder.write_csv(path, [{"images": len(x_rest), **measured}])
    print("Wrote", path)


def make_rows(save_dir: str, epochs: int) -> list[dict]:
    """What came out of each variant after so many epochs, the best one first."""
    rows = []
    for name, variant in VARIANTS.items():
        folder = os.path.join(save_dir, name)
        seeds = os.listdir(folder) if os.path.isdir(folder) else []
        paths = [os.path.join(folder, seed, HELD_OUT) for seed in sorted(seeds)]
        last = [row for path in paths for row in run_folder.read_csv(path)]
        errors = [100 * (1 - float(row["accuracy"])) for row in last]
        losses = [1000 * float(row["margin_loss"]) for row in last]
        rows.append(
            {
                "variant": name,
                "what": variant.what,
                "epochs": epochs,
                "runs": len(last),
                "error": round(mean(errors), 3) if last else "",
                "error_std": round(stdev(errors), 3) if len(last) > 1 else "",
                "margin_loss_x1000": round(mean(losses), 3) if last else "",
                "margin_loss_std": round(stdev(losses), 3) if len(last) > 1 else "",
                "errors": " ".join(f"{error:.3f}" for error in errors),
                "margin_losses": " ".join(f"{loss:.3f}" for loss in losses),
            }
        )
    # The best one first, what was not run last.
    return sorted(rows, key=lambda row: row["error"] if row["runs"] else math.inf)


def to_markdown(rows: list[dict]) -> str:
    """Rows of `make_rows` as a table."""
    lines = [
        f"Error in % and margin loss on the training images but the first {TRAINED}, "
        "which the networks were trained on: mean (standard deviation) of the runs, "
        f"after {rows[0]['epochs']} epochs.",
        "",
        "| variant | change | runs | error, % | margin loss x 1000 |",
        "| --- " * 5 + "|",
    ]
    for row in rows:
        cells = [row["variant"], row["what"], row["runs"] or "not run"]
        for name, deviation in (
            ("error", "error_std"),
            ("margin_loss_x1000", "margin_loss_std"),
        ):
            spread = f" ({row[deviation]:.3f})" if row[deviation] != "" else ""
            cells.append(f"{row[name]:.3f}{spread}" if row["runs"] else "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def plot_rows(rows: list[dict], path: str) -> None:
    """Draws both measures of each variant: a dot a run, a bar at their mean."""
    rows = [row for row in rows if row["runs"]]
    figure = Figure(figsize=(9, 0.32 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = ("error, %", "margin loss x 1000")
    for axes, column, title in zip(panels, ("errors", "margin_losses"), titles):
        for y, row in enumerate(rows):
            values = np.array(row[column].split(), float)
            color = "C1" if row["variant"] == "modern" else "C0"
            axes.plot(values, [y] * len(values), "o", color=color, ms=5, alpha=0.7)
            axes.plot([values.mean()] * 2, [y - 0.3, y + 0.3], color=color)
            if row["variant"] == "modern":
                axes.axvline(values.mean(), color=color, lw=0.8, ls=":")
        axes.set(xlabel=f"{title}, held-out images")
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(rows)), [row["what"] for row in rows], fontsize=8)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=utils.DPI)


def write_tables(save_dir: str, epochs: int) -> None:
    """Writes the table and the figure from the logs."""
    rows = make_rows(save_dir, epochs)
    paths = [os.path.join(save_dir, f"recipes.{end}") for end in ("csv", "md", "png")]
    os.makedirs(save_dir, exist_ok=True)
    run_folder.write_csv(paths[0], rows)
    with run_folder.replace_file(paths[1]) as path, open(path, "w") as file:
        file.write(to_markdown(rows))
    if any(row["runs"] for row in rows):
        with run_folder.replace_file(paths[2]) as path:
            plot_rows(rows, path)
    print("Wrote", ", ".join(path for path in paths if os.path.exists(path)))


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=tuple(VARIANTS),
        default=list(VARIANTS),
        metavar="NAME",
        help=f"which of {', '.join(VARIANTS)} (default: all)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=Integer(),
        default=[0, 1],
        metavar="N",
        help="seeds of the runs of each variant",
    )
    parser.add_argument(
        "--epochs",
        type=Integer(1),
        default=8,
        metavar="N",
        help="of each run; the learning rate is zero at their end",
    )
    parser.add_argument(
        "--table_only",
        action="store_true",
        default=False,
        help="train nothing, read the logs",
    )
    parser.add_argument(
        "--save_dir", default=FOLDER, metavar="DIR", help="folder of the runs"
    )
    return parser


def run(own: argparse.Namespace) -> None:
    """Runs what is missing, and writes the table after each run."""
    folder = os.path.join(own.save_dir, f"{own.epochs}_epochs")
    for seed in [] if own.table_only else own.seeds:
        for name in own.variants:
            try:
                run_variant(name, seed, folder, own.epochs)
            finally:
                write_tables(folder, own.epochs)
    if own.table_only:
        write_tables(folder, own.epochs)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = build_parser()
    return command_line.guard(parser.prog, lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

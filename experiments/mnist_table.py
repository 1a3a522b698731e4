"""The paper's table of test errors on MNIST: CapsNet v1 to v4, and the baseline.

    python -m experiments.mnist_table                     # 50 epochs, 3 trials, all
    python -m experiments.mnist_table --epochs 10 --trials 1 --cells v4
    python -m experiments.mnist_table --recipe modern     # 20 epochs
    python -m experiments.mnist_table --trials 0          # the table alone, no training

    v1  routing 1, no reconstruction      v3  routing 3, no reconstruction
    v2  routing 1, with reconstruction    v4  routing 3, with reconstruction

Each trial is a run of capsulenet.py or experiments/baseline.py with all 60 000 training
images, the trial's number as seed, and the last epoch's weights; the test images choose
nothing. What was interrupted goes on where it was, and what was run for fewer epochs is
continued. table.csv, table.md and a figure for each recipe are made from the logs of
the runs alone. With `--epochs 10` it is table_10_epochs.csv, and logs that are longer
count with their row 10.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import dataclasses
import logging
import os
import sys
from statistics import mean, stdev

import keras
from matplotlib.figure import Figure

import capsulenet
import utils
from capsnet import command_line, run_folder
from capsnet.errors import DataError
from capsnet.flags import Parser
from capsnet.interrupts import Interrupted
from capsnet.options import Data, Integer, Options, Training
from capsnet.recipes import RECIPES
from capsnet.run_folder import RunFolder, read_log, read_test_errors
from experiments import baseline

RECIPE_NAMES = ("seed", "modern")  # those for MNIST
# Flags of each cell, routing and reconstruction; None is the baseline.
CELLS = {
    "v4": (3, True),
    "v3": (3, False),
    "v2": (1, True),
    "v1": (1, False),
    "baseline": None,
}
# Test error in %, mean and standard deviation of 3: Sabour et al., table 1, and
# XifengGuo/CapsNet-Keras after 50 epochs.
PAPER = {
    "baseline": "0.39",
    "v1": "0.34 (0.032)",
    "v2": "0.29 (0.011)",
    "v3": "0.35 (0.036)",
    "v4": "0.25 (0.005)",
}
KERAS_SEED = {
    "v1": "0.39 (0.024)",
    "v2": "0.36 (0.009)",
    "v3": "0.40 (0.016)",
    "v4": "0.34 (0.016)",
}


def run_trial(cell: str, trial: int, own: argparse.Namespace) -> None:
    """Trains a cell of the table, or goes on with it.

    Raises:
        DataError: If there is a log, but not the run state to go on from.
    """
    training = make_training(cell, trial, own)
    epochs = training.epochs
    path = os.path.join(own.save_dir, own.recipe, cell, str(trial))
    results = () if cell == "baseline" else capsulenet.RESULTS
    folder = RunFolder(path, results)
    begun = os.path.exists(folder.file(run_folder.STATE))
    model, found = folder.file(run_folder.MODEL), len(read_test_errors(path))
    if found >= epochs and (os.path.exists(model) or not begun):
        print(f"{cell}, trial {trial}: {epochs} epochs are in {path}")
        return
    if found and not begun:
        raise DataError(
            f"{path}: expected {run_folder.STATE}, to go on after the {found} "
            "epochs of log.csv, found none; give another --save_dir"
        )
    training = dataclasses.replace(training, epochs=max(epochs, found))
    options = Options(folder, training=training, data=Data(data_dir=own.data_dir))
    options = command_line.continued(options)
    print(f"\n{cell}, trial {trial}, in {path}")
    keras.backend.clear_session()
    # It takes one run's functions for those of the last one, and warns of many.
    logging.getLogger("tensorflow").setLevel("ERROR")
    with command_line.explained(options):
        script = baseline if cell == "baseline" else capsulenet
        script.run(options, argparse.Namespace(digit=None, features=None))


def make_training(cell: str, trial: int, own: argparse.Namespace) -> Training:
    """How a cell is trained.

    Raises:
        DataError: If the recipe cannot be trained for so many epochs.
    """
    recipe = RECIPES[own.recipe]
    if recipe.lr_decay is None and own.epochs not in (None, recipe.epochs):
        raise DataError(
            f"--epochs: expected {recipe.epochs}, at the end of which the learning "
            f"rate of --recipe {own.recipe} is zero, received {own.epochs}"
        )
    numbers = {"epochs": own.epochs or recipe.epochs, "seed": trial}
    if cell == "baseline":
        numbers |= baseline.WITHOUT_CAPSULES
    else:
        numbers["routings"], reconstruction = CELLS[cell]
        numbers |= {} if reconstruction else {"lam_recon": 0.0}
    return dataclasses.replace(recipe, **numbers)


def find_trials(save_dir: str, recipe: str) -> dict[str, list[str]]:
    """The folders of all trials, by cell of the table."""
    found = {}
    for cell in sorted(CELLS):
        path = os.path.join(save_dir, recipe, cell)
        trials = os.listdir(path) if os.path.isdir(path) else []
        trials = sorted((t for t in trials if t.isdecimal()), key=int)
        found[cell] = [os.path.join(path, trial) for trial in trials]
    return found


def make_rows(save_dir: str, epochs: int | None) -> list[dict]:
    """The rows of a table: measured cells, and empty ones for what was not run.

    Args:
        save_dir: The folder of the runs.
        epochs: After which the error is taken; None for as many as each recipe has.
    """
    rows = []
    for recipe in RECIPE_NAMES:
        settings = RECIPES[recipe]
        n = epochs or settings.epochs
        # A learning rate that ends at zero makes a part of a run no shorter run.
        is_part = settings.lr_decay is None and n != settings.epochs
        for cell, folders in find_trials(save_dir, recipe).items():
            runs = [] if is_part else [(f, read_test_errors(f)) for f in folders]
            long_enough = [(f, errors[n - 1]) for f, errors in runs if len(errors) >= n]
            errors = [error for _, error in long_enough]
            hours = [sum(read_log(f, "seconds")[:n]) / 3600 for f, _ in long_enough]
            routings, reconstruction = CELLS[cell] or ("", "")
            rows.append(
                {
                    "recipe": recipe,
                    "epochs": n,
                    "network": cell,
                    "routings": routings,
                    "reconstruction": reconstruction,
                    "trials": len(errors),
                    "mean": round(mean(errors), 4) if errors else "",
                    "std": round(stdev(errors), 4) if len(errors) > 1 else "",
                    "errors": " ".join(f"{error:.2f}" for error in errors),
                    "hours": round(mean(hours), 2) if hours else "",
                }
            )
    return rows


def to_markdown(rows: list[dict], epochs: int | None) -> str:
    """Rows of `make_rows`, for the same epochs, as a table with a line above it."""
    title = (
        "MNIST test error in %, mean (standard deviation) of the trials. The paper's "
        "and the older Keras implementation's (50 epochs) are of 3 trials each. Hours "
        "are those of a trial, on machines that other programs shared."
    )
    if epochs:
        title += f" This table is of {epochs} epochs and not comparable with theirs."
    lines = [
        title,
        "",
        "| recipe | epochs | network | routing | reconstruction | error | trials "
        "| hours | paper | CapsNet-Keras |",
        "| --- " * 10 + "|",
    ]
    for row in rows:
        error = "not run"
        if row["trials"]:
            error = f"{row['mean']:.3f}"
            error += f" ({row['std']:.3f})" if row["trials"] > 1 else ""
        cell = row["network"]
        reconstruction = {True: "yes", False: "no", "": ""}[row["reconstruction"]]
        values = [row["recipe"], row["epochs"], cell, row["routings"]]
        values += [reconstruction, error, row["trials"] or "", row["hours"]]
        values += [PAPER[cell], KERAS_SEED.get(cell, "")]
        lines.append("| " + " | ".join(map(str, values)) + " |")
    return "\n".join(lines) + "\n"


def plot_errors(runs: dict[str, list[list[float]]], title: str, path: str) -> None:
    """Draws the test error over the epochs: a line for each trial."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (name, trials) in enumerate(runs.items()):
        for trial, errors in enumerate(trials):
            label = name if trial == 0 else None
            epochs = range(1, len(errors) + 1)
            axes.plot(epochs, errors, f"C{i}", lw=1, marker=".", ms=3, label=label)
    axes.set(xlabel="epoch", ylabel="test error (%)", yscale="log", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=utils.DPI)


def write_table(own: argparse.Namespace) -> None:
    """Writes table.csv, table.md and the figures from the logs."""
    os.makedirs(own.save_dir, exist_ok=True)
    rows = make_rows(own.save_dir, own.epochs)
    name = f"table_{own.epochs}_epochs" if own.epochs else "table"
    written = [os.path.join(own.save_dir, name + end) for end in (".csv", ".md")]
    run_folder.write_csv(written[0], rows)
    with run_folder.replace_file(written[1]) as path, open(path, "w") as file:
        file.write(to_markdown(rows, own.epochs))
    for recipe in RECIPE_NAMES:
        folders = find_trials(own.save_dir, recipe)
        runs = {cell: list(map(read_test_errors, folders[cell])) for cell in folders}
        if any(errors for trials in runs.values() for errors in trials):
            written.append(os.path.join(own.save_dir, f"errors_{recipe}.png"))
            with run_folder.replace_file(written[-1]) as path:
                plot_errors(runs, f"MNIST, recipe {recipe}", path)
    print()
    for path in written:
        print("Wrote", path)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "--epochs",
        type=Integer(1),
        default=None,
        metavar="N",
        help="of each run, and of the table (default: the recipe's)",
    )
    add(
        "--trials",
        type=Integer(),
        default=3,
        metavar="N",
        help="runs of each cell, with the seeds 0 to N - 1",
    )
    add(
        "--cells",
        nargs="+",
        choices=tuple(CELLS),
        default=list(CELLS),
        help="what to run, in this order (default: all)",
    )
    add(
        "--recipe",
        choices=RECIPE_NAMES,
        default="seed",
        help="as of capsulenet.py",
    )
    add(
        "--data_dir",
        default=None,
        metavar="DIR",
        help="as of capsulenet.py",
    )
    add(
        "--save_dir",
        default=os.path.join("result", "mnist_table"),
        metavar="DIR",
        help="folder of the table, and of the runs below it",
    )
    return parser


def run(own: argparse.Namespace) -> None:
    """Runs what is missing, trial by trial, and writes the table after each."""
    for trial in range(own.trials):
        for cell in own.cells:
            try:
                run_trial(cell, trial, own)
            except Interrupted:
                print("The same command goes on after the last finished epoch.")
                raise
            finally:
                write_table(own)
    if not own.trials:
        write_table(own)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = build_parser()
    return command_line.guard(parser.prog, lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

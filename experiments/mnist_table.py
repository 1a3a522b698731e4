"""The paper's table of test errors on MNIST: CapsNet v1 to v4, and the baseline.

    python -m experiments.mnist_table                     # 50 epochs, 3 trials, all
    python -m experiments.mnist_table --epochs 10 --trials 1 --cells v4
    python -m experiments.mnist_table --recipe paper      # the authors' code
    python -m experiments.mnist_table --trials 0          # the table alone, no training

    v1  routing 1, no reconstruction      v3  routing 3, no reconstruction
    v2  routing 1, with reconstruction    v4  routing 3, with reconstruction

Each trial is a run of capsulenet.py or experiments/baseline.py with all 60 000 training
images, the trial's number as seed, and the last epoch's weights; the test images choose
nothing. What was interrupted goes on where it was, and what was run for fewer epochs is
continued. table.csv, table.md (table_10_epochs.csv with `--epochs 10`) and a figure for
each recipe are made from the logs of the runs alone: a log that is longer than
`--epochs` counts with that row of it.
"""

import argparse
import csv
import logging
import os
import sys
from statistics import mean, stdev

import capsulenet  # first, since it silences the backend's start

# isort: split
import keras
from matplotlib.figure import Figure

import command_line
import saving
import training
from experiments import baseline

# Flags of each cell, routing and reconstruction; None is the baseline.
CELLS = {
    "v4": (3, True),
    "v3": (3, False),
    "v2": (1, True),
    "v1": (1, False),
    "baseline": None,
}
EPOCHS = training.RECIPES["seed"].epochs  # of table.csv; others have it in their name
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


def run_trial(cell: str, trial: int, args: argparse.Namespace) -> int:
    """Trains a cell of the table, or goes on with it; returns the exit status."""
    folder = trial_folder(args.save_dir, row_name(cell, args), args.recipe, trial)
    if len(read_errors(folder)) >= args.epochs:
        return 0
    argv = ["--epochs", str(args.epochs), "--save_dir", folder]
    if args.data_dir is not None:
        argv += ["--data_dir", args.data_dir]
    if os.path.exists(os.path.join(folder, training.RUN_STATE)):
        argv.append("--resume")
    else:
        argv.append("--overwrite")  # a log that was published, without its run state
        argv += ["--seed", str(trial), "--recipe", args.recipe]
        argv += ["--precision", args.precision]
        if args.train_size is not None:
            argv += ["--train_size", str(args.train_size)]
        if args.ema is not None:
            argv += ["--ema", str(args.ema)]
        if cell != "baseline":
            routings, reconstruction = CELLS[cell]
            argv += ["--routings", str(routings)]
            argv += [] if reconstruction else ["--lam_recon", "0"]
    print(f"\n{row_name(cell, args)}, trial {trial}: {' '.join(argv)}")
    script = baseline if cell == "baseline" else capsulenet
    keras.backend.clear_session()
    # It takes one run's functions for those of the last one, and warns of many.
    logging.getLogger("tensorflow").setLevel("ERROR")
    return command_line.main(argv, script.build_parser, script.run)


def row_name(cell: str, args: argparse.Namespace) -> str:
    """A row of the table: weights and their moving average are apart."""
    return cell if args.ema is None else f"{cell}-ema{args.ema:g}"


def trial_folder(save_dir: str, row: str, recipe: str, trial: int) -> str:
    return os.path.join(save_dir, recipe, row, str(trial))


def read_errors(folder: str) -> list[float]:
    """Test error in % after each epoch of a run; empty if there is none."""
    try:
        with open(os.path.join(folder, "log.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
        return [100 * (1 - float(row["test_accuracy"])) for row in rows]
    except FileNotFoundError:
        return []


def read_runs(save_dir: str, recipe: str) -> dict[str, list[list[float]]]:
    """Test errors of all trials, by row of the table."""
    folder = os.path.join(save_dir, recipe)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    order = {cell: i for i, cell in enumerate(("baseline", *reversed(CELLS)))}
    names = [n for n in names if n.partition("-")[0] in CELLS]
    names = {*names, *CELLS}
    runs = {}
    for name in sorted(names, key=lambda n: (order[n.partition("-")[0]], n)):
        path = os.path.join(folder, name)
        trials = sorted(os.listdir(path), key=int) if os.path.isdir(path) else []
        runs[name] = [read_errors(os.path.join(path, trial)) for trial in trials]
    return runs


def make_rows(save_dir: str, epochs: int) -> list[dict]:
    """The rows of table.csv: measured cells, and empty ones for what was not run."""
    rows = []
    for recipe in training.RECIPES:
        for name, runs in read_runs(save_dir, recipe).items():
            cell = name.partition("-")[0]
            errors = [run[epochs - 1] for run in runs if len(run) >= epochs]
            routings, reconstruction = CELLS[cell] or ("", "")
            rows.append(
                {
                    "recipe": recipe,
                    "epochs": epochs,
                    "network": name,
                    "routings": routings,
                    "reconstruction": reconstruction,
                    "trials": len(errors),
                    "mean": round(mean(errors), 4) if errors else "",
                    "std": round(stdev(errors), 4) if len(errors) > 1 else "",
                    "errors": " ".join(f"{error:.2f}" for error in errors),
                }
            )
    return rows


def to_markdown(rows: list[dict]) -> str:
    """table.md."""
    lines = [
        "MNIST test error in %, mean (standard deviation) of the trials. The paper's "
        "and the older Keras implementation's (50 epochs) are of 3 trials each.",
        "",
        "| recipe | epochs | network | routing | reconstruction | error | trials "
        "| paper | CapsNet-Keras |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        error = "not run"
        if row["trials"]:
            error = f"{row['mean']:.3f}"
            error += f" ({row['std']:.3f})" if row["trials"] > 1 else ""
        cell = row["network"].partition("-")[0]
        reconstruction = {True: "yes", False: "no", "": ""}[row["reconstruction"]]
        values = [row["recipe"], row["epochs"], row["network"], row["routings"]]
        values += [reconstruction, error, row["trials"] or ""]
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
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)


def write_table(args: argparse.Namespace) -> None:
    """Writes table.csv, table.md and the figures from the logs."""
    os.makedirs(args.save_dir, exist_ok=True)
    rows = make_rows(args.save_dir, args.epochs)
    name = "table" if args.epochs == EPOCHS else f"table_{args.epochs}_epochs"
    written = [os.path.join(args.save_dir, name + end) for end in (".csv", ".md")]
    saving.write_csv(written[0], rows)
    with saving.replace_file(written[1]) as path, open(path, "w") as file:
        file.write(to_markdown(rows))
    for recipe in training.RECIPES:
        runs = read_runs(args.save_dir, recipe)
        if any(errors for trials in runs.values() for errors in trials):
            written.append(os.path.join(args.save_dir, f"errors_{recipe}.png"))
            with saving.replace_file(written[-1]) as path:
                plot_errors(runs, f"MNIST, recipe {recipe}", path)
    print()
    for path in written:
        print("Wrote", path)


def build_parser() -> argparse.ArgumentParser:
    parser = command_line.new_parser(__doc__)
    add = parser.add_argument
    add(
        "--epochs",
        type=command_line.integer(1),
        default=EPOCHS,
        metavar="N",
        help="of each run, and of the table",
    )
    add(
        "--trials",
        type=command_line.integer(0),
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
        choices=tuple(training.RECIPES),
        default="seed",
        help="as of capsulenet.py",
    )
    add(
        "--ema",
        type=command_line.number(0, 1),
        metavar="X",
        help="as of capsulenet.py; makes rows of their own",
    )
    add(
        "--precision",
        choices=("float32", "mixed_bfloat16"),
        default="float32",
        help="as of capsulenet.py",
    )
    add(
        "--train_size",
        type=command_line.integer(1),
        metavar="N",
        help="train on the first N images, to see how it works; give another "
        "--save_dir (default: all)",
    )
    add(
        "--data_dir",
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


def run(args: argparse.Namespace) -> int:
    """Runs what is missing, trial by trial, and writes the table after each."""
    for trial in range(args.trials):
        for cell in args.cells:
            status = run_trial(cell, trial, args)
            write_table(args)
            if status:
                return status
    if not args.trials:
        write_table(args)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = build_parser()
    return command_line.guard(parser.prog, lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

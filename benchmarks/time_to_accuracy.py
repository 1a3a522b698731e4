"""How long it takes to an error: the older scripts' way, and ours.

    python -m benchmarks.time_to_accuracy

Errors are those of the published trainings: after each epoch in the log of the recipe
`seed`, which is the older scripts', and after the last epoch of each run of the recipe
`modern`, whose learning rate is zero only there. The time of an epoch is its
number of steps times that of a step: batches made and trained on, in turn, so that what
else the machine does falls on all alike. The older scripts' formulation computes the
same as ours, so that its errors are those of the same log. Writes
time_to_accuracy_BACKEND_DEVICE.csv and its picture.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import os
from collections.abc import Callable
from statistics import median

import keras
from matplotlib.figure import Figure

import capsulenet
import utils
from benchmarks import report
from benchmarks.plain import TiledCapsuleLayer, rebuild
from benchmarks.timing import time_in_turn
from capsnet import datasets, run_folder
from capsnet.batches import ShiftedBatches
from capsnet.options import Training
from capsnet.recipes import RECIPES
from capsnet.run_folder import read_test_errors
from capsnet.training import make_affine, make_optimizer

PUBLISHED = os.path.join(report.ROOT, "result", "published")
SEED_RUN = os.path.join(PUBLISHED, "mnist_table", "seed", "v4", "0")
MODERN_RUNS = [
    os.path.join(PUBLISHED, *path)
    for path in (
        ["modern_1_epoch"],
        ["modern_3_epochs"],
        ["modern_6_epochs"],
        ["mnist_table", "modern", "v4", "0"],
    )
]
N_IMAGES = 60_000  # in an epoch of the logs
# Each curve: its words, its recipe, and whether older scripts write its network so.
CURVES = {
    "older": ("the older scripts' formulation and recipe", "seed", True),
    "seed": ("ours, the same recipe", "seed", False),
    "modern": ("ours, recipe modern, at the end of each run", "modern", False),
}
GOAL = 0.5  # % error


def make_step(
    training: Training, is_plain: bool, data: datasets.Dataset
) -> Callable[[], None]:
    """A function that makes the next batch and trains on it.

    Args:
        training: The recipe.
        is_plain: Whether the network is as older scripts write it.
        data: Whose training images are used.
    """
    keras.utils.set_random_seed(0)
    x, y = data.train
    model = capsulenet.CapsNet(x.shape[1:], y.shape[1], training.routings)[0]
    if is_plain:
        model = rebuild(model, "direct", TiledCapsuleLayer)
    batches = ShiftedBatches(
        x,
        y,
        training.batch_size,
        training.shift_fraction,
        affine=make_affine(training),
    )
    task = capsulenet.task(training.reconstruction_weight(x.shape[1:]))
    task.compile(model, make_optimizer(training, len(batches)))
    i = -1

    def step():
        nonlocal i
        i = (i + 1) % len(batches)
        inputs, targets = batches[i]
        float(model.train_on_batch(inputs, targets, return_dict=True)["loss"])

    return step


def measure_steps(rounds: int, repeats: int) -> dict[str, float]:
    """Median seconds of a step of each curve."""
    data = datasets.load_dataset()
    steps = {
        name: make_step(RECIPES[recipe], is_plain, data)
        for name, (_, recipe, is_plain) in CURVES.items()
    }
    times = time_in_turn(steps, rounds, repeats)
    return {name: median(seconds) for name, seconds in times.items()}


def make_rows(steps: dict[str, float]) -> list[dict]:
    """Minutes and errors of each curve, by the seconds of a step of each."""
    seed = dict(enumerate(read_test_errors(SEED_RUN), start=1))
    logs = [read_test_errors(folder) for folder in MODERN_RUNS]
    ends = {len(log): log[-1] for log in sorted(logs, key=len)}
    rows = []
    for name, errors in (("older", seed), ("seed", seed), ("modern", ends)):
        steps_per_epoch = N_IMAGES / RECIPES[CURVES[name][1]].batch_size
        for epoch, error in errors.items():
            minutes = epoch * steps_per_epoch * steps[name] / 60
            rows.append(
                {
                    "curve": name,
                    "step_ms": round(1e3 * steps[name], 1),
                    "epochs": epoch,
                    "minutes": round(minutes, 1),
                    "test_error": round(error, 2),
                }
            )
    return rows


def first_at(rows: list[dict], curve: str, goal: float) -> float | None:
    """Minutes after which a curve's error is no more than a goal; None if never."""
    for row in rows:
        if row["curve"] == curve and row["test_error"] <= goal:
            return row["minutes"]
    return None


def plot(rows: list[dict], path: str) -> None:
    """Error over minutes, both logarithmic."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, (what, _, _) in CURVES.items():
        part = [row for row in rows if row["curve"] == name]
        x, y = ([row[column] for row in part] for column in ("minutes", "test_error"))
        line = "-" if name != "modern" else "--"
        axes.plot(x, y, line, marker="o", ms=4, label=what)
    axes.axhline(GOAL, color="grey", lw=0.8, ls=":")
    axes.set(xscale="log", yscale="log", xlabel="minutes of training")
    axes.set_ylabel("test error, %")
    axes.set_yticks([0.3, 0.4, 0.5, 0.7, 1, 1.5])
    axes.set_xticks([3, 10, 30, 100, 300, 1000])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=utils.DPI)


def build_parser() -> argparse.ArgumentParser:
    parser = report.new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each")
    parser.add_argument("--repeats", type=int, default=5, help="steps in a block")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    commit, device = report.find_commit(), report.find_device()
    rows = make_rows(measure_steps(args.rounds, args.repeats))
    report.write(rows, args.save_dir, "time_to_accuracy", device, commit)
    path = report.make_path(args.save_dir, "time_to_accuracy", device, ".png")
    with run_folder.replace_file(path) as temporary:
        plot(rows, temporary)
    print("Wrote", path)
    for name, (what, _, _) in CURVES.items():
        minutes = first_at(rows, name, GOAL)
        found = "not reached" if minutes is None else f"{minutes:.0f} minutes"
        print(f"{GOAL} % error, {what}: {found}")


if __name__ == "__main__":
    main()

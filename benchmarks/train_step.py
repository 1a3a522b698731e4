"""Times three formulations of the same network: a training step and inference.

    python -m benchmarks.train_step
    KERAS_BACKEND=jax python -m benchmarks.train_step --rounds 2 --no_scaling

`plain` is the network as the older scripts write it (tiled capsules, multiplied image
by image, direct convolution), `einsum` the usual improvement (predictions from one
einsum, direct convolution), `ours` the package. They start from the same weights,
train on the same batch in turn, and print their losses: the same computation.
Writes train_step_BACKEND_DEVICE.csv, scaling_BACKEND_DEVICE.csv and its picture.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import subprocess
import sys
from statistics import median

import keras
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import capsulenet
from benchmarks import report
from benchmarks.plain import EinsumCapsuleLayer, TiledCapsuleLayer, rebuild
from benchmarks.timing import measure_product_rate, time_in_turn
from capsnet import backend, datasets, fft_conv, run_folder

FORMULATIONS = {
    "plain": ("direct", TiledCapsuleLayer),
    "einsum": ("direct", EinsumCapsuleLayer),
    "ours": ("auto", capsulenet.CapsuleLayer),
}
LR, LAM_RECON = 0.001, 0.392
BATCH_SIZES = (1, 2, 4, 8, 16, 64, 100, 256)
SIDES = (28, 36, 48, 64)


def build(names, side: int = 28) -> dict[str, keras.Model]:
    """Compiled train models of the named formulations, with equal weights."""
    keras.utils.set_random_seed(0)
    model = capsulenet.CapsNet((side, side, 1), 10, routings=3)[0]
    models = {name: rebuild(model, *FORMULATIONS[name]) for name in names}
    for other in models.values():
        capsulenet.task(LAM_RECON).compile(other, backend.adam(LR))
    return models


def make_batch(batch_size: int, side: int = 28):
    """The first test digits, in the middle of an image of the given side."""
    _, (x, y) = datasets.load_dataset()
    x, y = x[:batch_size], y[:batch_size]
    before = (side - x.shape[1]) // 2
    pad = (before, side - x.shape[1] - before)
    return np.pad(x, [(0, 0), pad, pad, (0, 0)]), y


def measure(batch_size: int, side: int, names, rounds: int, repeats: int):
    """Median seconds of a training step and of inference, and the last losses."""
    models = build(names, side)
    x, y = make_batch(batch_size, side)
    losses = {name: [] for name in names}

    def train(name):
        result = models[name].train_on_batch((x, y), (y, x), return_dict=True)
        losses[name].append(float(result["loss"]))

    training = {name: lambda name=name: train(name) for name in names}
    inference = {
        name: lambda name=name: models[name].predict_on_batch([x, y]) for name in names
    }
    both = (time_in_turn(f, rounds, repeats) for f in (training, inference))
    medians = ({name: median(s) for name, s in times.items()} for times in both)
    return (*medians, losses)


def arithmetic(name: str, batch_size: int, side: int = 28) -> float:
    """Floating point operations of a training step in matrix products."""
    features = side - 8
    kernel = 9 * 9 * 256 * 256
    fft, _, direct = fft_conv.cost((features,) * 2, (9, 9), (2, 2), 256, 256)
    capsules = 32 * fft_conv.output_size(features, 9, 2) ** 2
    predictions = capsules * 8 * 160
    decoder = 160 * 512 + 512 * 1024 + 1024 * side**2
    # Each product has two gradients, but the images need none.
    image = 2 * 81 * 256 * features**2 + 3 * decoder
    ours = name == "ours"
    image += 3 * (5 * predictions if ours else predictions + 5 * predictions / 8)
    if ours and backend.runs_on_cpu():
        plan = fft_conv.plan(features, 9, 2)
        p, taps = plan.kernel.shape
        transform = 2 * 4 * kernel / 81 * (p * taps * taps + p * p * taps)
        image += 3 * fft
    else:
        transform = 0
        image += 3 * direct
    return 2 * (batch_size * image + transform)


def peak_memory(name: str) -> float:
    """Peak resident MB of a process that trains with one formulation.

    On a GPU, those of its own memory.
    """
    command = [sys.executable, "-m", "benchmarks.train_step", "--peak_memory", name]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def print_peak_memory(name: str) -> None:
    """For the process that `peak_memory` starts; Linux only."""
    measure(100, 28, [name], rounds=1, repeats=3)
    if not backend.runs_on_cpu():
        print(report.gpu_peak_memory() / 1e6)
        return
    # Not getrusage's ru_maxrss, which a child process inherits from its parent.
    with open("/proc/self/status") as file:
        peak = next(line for line in file if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


def run_table(rounds: int, repeats: int) -> list[dict]:
    """The three formulations at batch 100 on MNIST's size."""
    names = list(FORMULATIONS)
    training, inference, losses = measure(100, 28, names, rounds, repeats)
    rate = measure_product_rate()
    rows = []
    for name in names:
        rows.append(
            {
                "formulation": name,
                "train_ms": round(1e3 * training[name], 1),
                "train_images_per_second": round(100 / training[name], 1),
                "train_ratio": round(training["plain"] / training[name], 2),
                "infer_ms": round(1e3 * inference[name], 1),
                "infer_images_per_second": round(100 / inference[name], 1),
                "infer_ratio": round(inference["plain"] / inference[name], 2),
                "peak_mb": round(peak_memory(name)),
                "train_gflop": round(arithmetic(name, 100) / 1e9, 1),
                "matmul_gflop_per_second": round(rate / 1e9, 1),
                "share_of_matmul_rate": round(
                    arithmetic(name, 100) / training[name] / rate, 3
                ),
                "first_loss": round(losses[name][0], 6),
                "last_loss": round(losses[name][-1], 6),
            }
        )
        report.print_row(rows[-1])
    return rows


def run_scaling() -> list[dict]:
    """Both over batch sizes at side 28, and over image sides at batch 16."""
    rows = []
    cases = [(size, 28) for size in BATCH_SIZES] + [(16, side) for side in SIDES[1:]]
    for batch_size, side in cases:
        names = list(FORMULATIONS)
        # Short steps are measured more often, as their times scatter more.
        rounds = 12 if batch_size * side**2 <= 16 * 28**2 else 3
        training, inference, _ = measure(batch_size, side, names, rounds, 5)
        for name in names:
            rows.append(
                {
                    "batch_size": batch_size,
                    "side": side,
                    "formulation": name,
                    "train_ms": round(1e3 * training[name], 1),
                    "train_images_per_second": round(batch_size / training[name], 1),
                    "infer_ms": round(1e3 * inference[name], 1),
                }
            )
            report.print_row(rows[-1])
    return rows


def plot_scaling(rows: list[dict], path: str) -> None:
    """Images a second over the batch size and over the image side."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    panels = (
        (left, "batch_size", "batch size, 28 x 28 pixels", lambda r: r["side"] == 28),
        (right, "side", "side of the image (pixels), batch 16",
         lambda r: r["batch_size"] == 16),
    )  # fmt: skip
    for axes, column, label, belongs in panels:
        for name in FORMULATIONS:
            part = [r for r in rows if r["formulation"] == name and belongs(r)]
            x = [r[column] for r in part]
            y = [r["train_images_per_second"] for r in part]
            axes.plot(x, y, marker="o", label=name)
        axes.set(xlabel=label, xscale="log", yscale="log")
        axes.set_ylabel("training images a second")
        axes.set_xticks(x, x)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def build_parser() -> argparse.ArgumentParser:
    parser = report.new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="blocks of each")
    parser.add_argument("--repeats", type=int, default=4, help="steps in a block")
    parser.add_argument("--no_scaling", action="store_true", help="the table only")
    parser.add_argument("--peak_memory", metavar="NAME", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.peak_memory:
        print_peak_memory(args.peak_memory)
        return
    commit, device = report.find_commit(), report.find_device()
    rows = run_table(args.rounds, args.repeats)
    report.write(rows, args.save_dir, "train_step", device, commit)
    if args.no_scaling:
        return
    rows = run_scaling()
    report.write(rows, args.save_dir, "scaling", device, commit)
    path = report.make_path(args.save_dir, "scaling", device, ".png")
    with run_folder.replace_file(path) as temporary:
        plot_scaling(rows, temporary)
    print("Wrote", path)


if __name__ == "__main__":
    main()

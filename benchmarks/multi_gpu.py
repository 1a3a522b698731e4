"""Times a training step on 1, 2 and 4 devices, 100 images each.

    python -m benchmarks.multi_gpu --device cpu   # logical CPUs: what dividing costs
    python -m benchmarks.multi_gpu                # as many of the GPUs as there are

The first row is of one device as capsulenet.py uses it: the second one, also of one
device, shows what the strategy itself costs. Each row has processes of its own, in
turn. Writes multi_gpu_BACKEND_DEVICE.csv.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import contextlib
import subprocess
import sys
import time
from statistics import median

import keras

import capsulenet
import capsulenet_multi_gpu
from benchmarks import report
from benchmarks.train_step import LAM_RECON, LR
from capsnet import backend, datasets
from capsnet.batches import ShiftedBatches
from capsnet.errors import UsageError
from capsnet.startup import quiet_start

NONE = "none"  # one device without a strategy
REPLICAS = (NONE, "1", "2", "4")
IMAGES = 100  # a device
STEPS = 6


class EpochTimes(keras.callbacks.Callback):
    """Seconds of each epoch; its end waits for the last step."""

    def on_train_begin(self, logs=None):
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def find_devices(device: str, n: int) -> list:
    with quiet_start():
        if device == "cpu":
            capsulenet_multi_gpu.use_cpus(n)
        return capsulenet_multi_gpu.find_devices(device, n)


def measure(device: str, replicas: str) -> float:
    """Median seconds of a step, in this process.

    Args:
        device: cpu or gpu.
        replicas: One of `REPLICAS`.
    """
    n = count_devices(replicas)
    devices = find_devices(device, n)
    strategy = contextlib.nullcontext()
    if replicas != NONE:
        strategy = capsulenet_multi_gpu.distribute(devices, num_hosts=1)
    (x, y), _ = datasets.load_dataset()
    size = IMAGES * n
    batches = ShiftedBatches(x[: STEPS * size], y[: STEPS * size], size)
    times = EpochTimes()
    with strategy:
        model = capsulenet.CapsNet((28, 28, 1), 10)[0]
        capsulenet.task(LAM_RECON).compile(model, backend.adam(LR))
        model.fit(batches, epochs=4, verbose=0, shuffle=False, callbacks=[times])
    return median(times.seconds[1:]) / STEPS  # the first epoch compiles


def count_devices(replicas: str) -> int:
    return 1 if replicas == NONE else int(replicas)


def measure_apart(device: str, replicas: str) -> float | None:
    """The same in a process of its own; None where there are too few devices."""
    command = [sys.executable, "-m", "benchmarks.multi_gpu", "--device", device]
    command += ["--measure", replicas]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 2:
        return None
    run.check_returncode()
    return float(run.stdout.split()[-1])


def build_parser() -> argparse.ArgumentParser:
    parser = report.new_parser(__doc__)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each")
    parser.add_argument("--measure", choices=REPLICAS, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.measure:
        try:
            print(measure(args.device, args.measure))
        except UsageError as error:
            parser.exit(2, f"{error}\n")
        return
    commit = report.find_commit()
    seconds = {replicas: [] for replicas in REPLICAS}
    for _ in range(args.rounds):
        for replicas in REPLICAS:
            seconds[replicas].append(measure_apart(args.device, replicas))
            if seconds[NONE] == [None]:
                parser.exit(2, "expected a GPU, found none; or --device cpu\n")
    rows = []
    for replicas, times in seconds.items():
        images = IMAGES * count_devices(replicas)
        row = {"replicas": replicas, "images_in_a_step": images}
        if None in times:
            row.update(step_ms="not run", images_per_second="not run")
        else:
            step = median(times)
            row["step_ms"] = round(1e3 * step, 1)
            row["images_per_second"] = round(images / step, 1)
        rows.append(row)
        report.print_row(row)
    report.write(rows, args.save_dir, "multi_gpu", args.device, commit)


if __name__ == "__main__":
    main()

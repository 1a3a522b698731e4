"""Times a training step on 1, 2 and 4 devices, 100 images each.

    python -m benchmarks.multi_gpu --device cpu   # logical CPUs: what dividing costs
    python -m benchmarks.multi_gpu                # as many of the GPUs as there are

Each number of devices has processes of its own, in turn. Writes
benchmarks/results/multi_gpu_BACKEND_DEVICE.csv.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

import capsulenet  # first, since it silences the backend's start

# isort: split
import keras

import capsulenet_multi_gpu
from benchmarks.train_step import FOLDER, LAM_RECON, LR, describe_machine, print_row
from capsnet import backend, command_line, datasets, run_folder

REPLICAS = (1, 2, 4)
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
    flags = ["--device", device, "--gpus", str(n)]
    args = capsulenet_multi_gpu.build_parser().parse_args(flags)
    with capsulenet.quiet_start():
        if device == "cpu":
            capsulenet_multi_gpu.use_cpus(n)
        return capsulenet_multi_gpu.find_devices(args)


def measure(device: str, n: int) -> float:
    """Median seconds of a step of n devices, in this process."""
    devices = find_devices(device, n)
    (x, y), _ = datasets.load_dataset()
    size = IMAGES * n
    batches = datasets.ShiftedBatches(x[: STEPS * size], y[: STEPS * size], size)
    times = EpochTimes()
    with capsulenet_multi_gpu.distribute(devices, num_hosts=1):
        model = capsulenet.CapsNet((28, 28, 1), 10)[0]
        capsulenet.compile_model(model, backend.adam(LR), LAM_RECON)
        model.fit(batches, epochs=4, verbose=0, shuffle=False, callbacks=[times])
    return median(times.seconds[1:]) / STEPS  # the first epoch compiles


def measure_apart(device: str, n: int) -> float | None:
    """The same in a process of its own; None where there are too few devices."""
    command = [sys.executable, "-m", "benchmarks.multi_gpu", "--device", device]
    command += ["--measure", str(n)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 2:
        return None
    run.check_returncode()
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each")
    parser.add_argument("--measure", type=int, metavar="N", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        try:
            print(measure(args.device, args.measure))
        except command_line.UsageError as error:
            parser.exit(2, f"{error}\n")
        return
    seconds = {n: [] for n in REPLICAS}
    for _ in range(args.rounds):
        for n in REPLICAS:
            seconds[n].append(measure_apart(args.device, n))
    rows = []
    for n, times in seconds.items():
        row = {"device": args.device, "replicas": n, "images_in_a_step": IMAGES * n}
        if None in times:
            row.update(step_ms="not run", images_per_second="not run")
        else:
            step = median(times)
            row["step_ms"] = round(1e3 * step, 1)
            row["images_per_second"] = round(IMAGES * n / step, 1)
        rows.append({**row, **describe_machine()})
        print_row(rows[-1])
    name = f"multi_gpu_{keras.backend.backend()}_{args.device}.csv"
    path = os.path.join(FOLDER, name)
    run_folder.write_csv(path, rows)
    print("Wrote", path)


if __name__ == "__main__":
    main()

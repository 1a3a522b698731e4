"""Trains with the direct convolution, to compare with the published run.

    python -m benchmarks.direct_convolution      # 2 epochs, about 20 minutes

Seed, data and flags are those of `python capsulenet.py`, whose log is
result/mnist_table/seed/v4/0/log.csv; only the method of the primary capsules'
convolution differs.
Prints the test error of each epoch of both and writes
benchmarks/results/direct_convolution/log.csv.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import csv
import os
import sys

import keras

import capsulenet
from benchmarks.plain import rebuild
from capsnet import command_line, datasets

ROOT = os.path.dirname(os.path.dirname(__file__))
FOLDER = os.path.join(ROOT, "benchmarks", "results", "direct_convolution")
PUBLISHED = os.path.join(ROOT, "result", "mnist_table", "seed", "v4", "0")


def read_test_errors(folder: str) -> list[float]:
    """Test error of each epoch in per cent."""
    with open(os.path.join(folder, "log.csv"), newline="") as file:
        return [100 * (1 - float(row["test_accuracy"])) for row in csv.DictReader(file)]


def run(args: argparse.Namespace) -> None:
    data = datasets.load_dataset()
    command_line.check_data(data, args)
    keras.utils.set_random_seed(args.seed)
    model = capsulenet.CapsNet((28, 28, 1), 10, args.routings)[0]
    with command_line.begin("CapsNet, direct convolution", model, data, args):
        capsulenet.train(rebuild(model, "direct"), data, args)
    ours = read_test_errors(PUBLISHED)
    for epoch, (a, b) in enumerate(zip(read_test_errors(FOLDER), ours), start=1):
        print(f"epoch {epoch}: test error {a:.2f} % direct, {b:.2f} % ours")


if __name__ == "__main__":
    flags = ["--epochs", "2", "--batch_size", "100", "--overwrite"]
    flags += ["--save_dir", FOLDER]
    sys.exit(command_line.main(flags, capsulenet.build_parser, run))

"""Trains with the direct convolution, to compare with the published run.

    python -m benchmarks.direct_convolution      # 2 epochs, about 20 minutes

Seed, data and flags are those of `python capsulenet.py`, whose log is
result/published/mnist_table/seed/v4/0/log.csv; only the method of the primary capsules'
convolution differs. Writes the test error of each epoch of both into
direct_convolution_BACKEND_DEVICE.csv, and the run into the folder of that name.
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
from benchmarks import report
from benchmarks.plain import rebuild
from capsnet import command_line, datasets

PUBLISHED = os.path.join(
    report.ROOT, "result", "published", "mnist_table", "seed", "v4", "0"
)


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


def build_parser() -> argparse.ArgumentParser:
    return report.new_parser(__doc__)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    commit, device = report.find_commit(), report.find_device()
    name = "direct_convolution"
    folder = report.make_path(args.save_dir, name, device, end="")
    flags = ["--epochs", "2", "--batch_size", "100", "--overwrite"]
    flags += ["--save_dir", folder]
    status = command_line.main(flags, capsulenet.build_parser, run)
    if status:
        return status
    both = zip(read_test_errors(folder), read_test_errors(PUBLISHED))
    rows = [
        {
            "epoch": epoch,
            "direct_test_error": round(direct, 4),
            "published_test_error": round(published, 4),
        }
        for epoch, (direct, published) in enumerate(both, start=1)
    ]
    for row in rows:
        report.print_row(row)
    report.write(rows, args.save_dir, name, device, commit)
    return 0


if __name__ == "__main__":
    sys.exit(main())

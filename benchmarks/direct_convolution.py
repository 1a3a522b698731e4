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
import os
import sys

import capsulenet
from benchmarks import report
from benchmarks.plain import rebuild
from capsnet import command_line, session
from capsnet.options import Options, Training
from capsnet.run_folder import RunFolder, read_test_errors

PUBLISHED = os.path.join(
    report.ROOT, "result", "published", "mnist_table", "seed", "v4", "0"
)


def train(folder: str) -> None:
    """Trains 2 epochs as `capsulenet.py` does, but with the direct convolution."""
    training = Training(epochs=2)
    options = Options(RunFolder(folder, overwrite=True), training=training)
    session.prepare_backend(training)
    data, options = session.load_data(options)
    model = capsulenet.CapsNet((28, 28, 1), 10)[0]
    with session.begin("CapsNet, direct convolution", model, data, options):
        capsulenet.train(rebuild(model, "direct"), data, options)


def build_parser() -> argparse.ArgumentParser:
    return report.new_parser(__doc__)


def write_comparison(save_dir: str) -> None:
    """Trains, and writes the errors of both into `save_dir`."""
    commit, device = report.find_commit(), report.find_device()
    name = "direct_convolution"
    folder = report.make_path(save_dir, name, device, end="")
    train(folder)
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
    report.write(rows, save_dir, name, device, commit)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    return command_line.guard(parser.prog, lambda: write_comparison(args.save_dir))


if __name__ == "__main__":
    sys.exit(main())

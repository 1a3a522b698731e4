"""Trains with the direct convolution, to compare with the published run.

    python -m benchmarks.direct_convolution      # 2 epochs, about 20 minutes

Seed, data and flags are those of `python capsulenet.py`, whose log is
result/published/mnist_table/seed/v4/0/log.csv, to compare with; only the method of the
primary capsules' convolution differs. Writes the run into the folder
direct_convolution_BACKEND_DEVICE.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import sys

import capsulenet
from benchmarks import report
from benchmarks.plain import rebuild
from capsnet import command_line, session
from capsnet.options import Options, Training
from capsnet.run_folder import RunFolder


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


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = build_parser()
    save_dir = parser.parse_args(argv).save_dir
    name = "direct_convolution"
    folder = report.make_path(save_dir, name, report.find_device(), end="")
    return command_line.guard(parser.prog, lambda: train(folder))


if __name__ == "__main__":
    sys.exit(main())

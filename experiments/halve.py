"""A model file of half the size: its weights rounded to float16.

    python -m experiments.halve result/trained_model.h5 result/half.h5

All that reads weights reads such a file, and computes in float32 as before. Of a
weight, three leading decimal digits are kept; `-t -w FILE` says what that costs.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import os
import sys

import h5py
import numpy as np

from capsnet import command_line, hdf5, run_folder
from capsnet.errors import UsageError
from capsnet.flags import Parser
from capsnet.hdf5 import ModelFileError
from capsnet.weights import read_info


def halve(source: str, target: str) -> None:
    """Writes a copy of a model file with arrays of float16 in place of float32.

    Args:
        source: A file of `capsnet.weights.save_model`.
        target: The file to create.

    Raises:
        ModelFileError: If the source is no such file, or holds a number that float16
            does not.
    """
    if not read_info(source):
        raise ModelFileError(f"{source}: expected a model file of this code.")
    with (
        hdf5.open_file(source) as file,
        run_folder.replace_file(target) as temporary,
        h5py.File(temporary, "w") as half,
    ):
        half.attrs.update(file.attrs)

        def copy(name, part):
            if isinstance(part, h5py.Group):
                half.create_group(name).attrs.update(part.attrs)
                return
            array = part[()]
            if array.dtype == "float32":
                with np.errstate(over="ignore"):
                    array = array.astype("float16")
                if not np.isfinite(array).all():
                    raise ModelFileError(f"expected numbers below 65504 in {name}.")
            half[name] = array

        file.visititems(copy)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("source", metavar="FILE", help="the model file to halve")
    parser.add_argument("target", metavar="NEW_FILE", help="where to write")
    return parser


def run(own: argparse.Namespace) -> None:
    """Does what the command line says."""
    folder = os.path.dirname(own.target) or "."
    if os.path.lexists(own.target) or not os.path.isdir(folder):
        raise UsageError(
            "NEW_FILE: expected the name of a new file in a folder that is there, "
            f"received {own.target}"
        )
    halve(own.source, own.target)
    size = os.path.getsize(own.target) / 1e6
    print(f"Wrote {own.target}, {size:.1f} MB")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = build_parser()
    return command_line.guard(parser.prog, lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())

"""A random forest on the pixels of a data set: what a capsule network has to beat.

    pip install scikit-learn
    python -m experiments.random_forest --dataset my_pictures

Each seed splits the data as a training of `capsulenet.py` with this seed does, and is
that of the forest, which has scikit-learn's defaults but for 300 trees.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import dataclasses
import importlib.util
import os
import sys

from capsnet import command_line, datasets, flags, run_folder
from capsnet.errors import UsageError
from capsnet.flags import Parser
from capsnet.options import Integer, Options

TREES = 300
RESULT = "random_forest.csv"


def score(data: datasets.Dataset, seed: int) -> float:
    """The accuracy on the test images of a forest that was grown on the others."""
    from sklearn.ensemble import RandomForestClassifier

    (x, y), (x_test, y_test) = (
        (images.reshape(len(images), -1), labels.argmax(axis=1))
        for images, labels in data
    )
    forest = RandomForestClassifier(TREES, random_state=seed)
    return forest.fit(x, y).score(x_test, y_test)


def build_parser() -> Parser:
    """The command line."""
    folder = os.path.join("result", "random_forest")
    parser = Parser(__doc__, folder, results=(RESULT,))
    parser.add_argument(
        "--seeds",
        type=Integer(),
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
        help="one forest each (default: 0 1 2)",
    )
    flags.add_data_flags(parser)
    return parser


def run(options: Options, own: argparse.Namespace) -> None:
    """Does what the command line says."""
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError("a forest needs scikit-learn: pip install scikit-learn")
    rows = []
    for seed in own.seeds:
        wanted = dataclasses.replace(options.data, split_seed=seed)
        data = datasets.load_dataset(*dataclasses.astuple(wanted))
        if data.multi_label:
            raise UsageError(
                f"{data.name}: expected one class an image, received images of several"
            )
        error = 100 * (1 - score(data, seed))
        row = {"seed": seed, "train": len(data.train[0]), "test": len(data.test[0])}
        rows.append({**row, "error": round(error, 2)})
        print(f"seed {seed}: test error {error:.2f} %")
    os.makedirs(options.folder.path, exist_ok=True)
    path = options.folder.file(RESULT)
    run_folder.write_csv(path, rows)
    print("Wrote", path)


if __name__ == "__main__":
    sys.exit(command_line.main(None, build_parser, run))

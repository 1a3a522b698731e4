"""What the studies that put MNIST's digits into larger images share."""

import numpy as np

from capsnet import datasets, flags
from capsnet.flags import Parser
from capsnet.mnist import SIDE


def load_digits(folder: str | None) -> datasets.Dataset:
    """Loads MNIST, or what a folder holds in its format.

    Args:
        folder: With `mnist.npz` or the IDX files; None for MNIST as `capsulenet.py`
            has it.

    Raises:
        datasets.DataError: If these are no grey images of 28 x 28 pixels.
    """
    data = datasets.load_dataset("mnist", folder)
    shape = data.train[0].shape[1:]
    if shape != (SIDE, SIDE, 1):
        raise datasets.DataError(
            f"{folder}: expected grey images of {SIDE} x {SIDE} pixels, got "
            f"{' x '.join(map(str, shape))}"
        )
    return data


def pad(data: datasets.Dataset, margin: int) -> datasets.Dataset:
    """The data with a margin of zeros around each image, in pixels."""
    width = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    (x_train, y_train), (x_test, y_test) = data
    train, test = (np.pad(x_train, width), y_train), (np.pad(x_test, width), y_test)
    return datasets.Dataset(train, test, data.class_names, data.name)


def build_parser(
    doc: str,
    save_dir: str,
    results: tuple[str, ...],
    networks: tuple[str, ...],
    margin: int,
    **training,
) -> Parser:
    """The flags that these studies have in common.

    Args:
        doc: The study's docstring: what it does, and examples.
        save_dir: Where it writes to.
        results: The files that follow a training.
        networks: What can be trained; the first one is the default.
        margin: Pixels around a digit, and its largest shift.
        training: What else the study sets in `Training`.
    """
    moves = {"shift_fraction": margin / (SIDE + 2 * margin)}
    moves |= {"rotation": 0.0, "zoom": 0.0, "shear": 0.0, "normalize": False}
    parser = Parser(doc, save_dir, results, moves | training)
    group, _ = flags.add_modes(parser)
    group.add_argument(
        "--network",
        choices=networks,
        help=f"what to train or test (default: {networks[0]})",
    )
    flags.add_network_flags(parser)
    flags.add_training_flags(parser, changes=False)
    flags.add_file_flags(parser)
    return parser

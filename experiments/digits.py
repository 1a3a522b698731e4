"""What the studies that put MNIST's digits into larger images share."""

import argparse

import numpy as np

from capsnet import command_line, datasets
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
    doc: str, networks: tuple[str, ...], save_dir: str
) -> argparse.ArgumentParser:
    """The flags that these studies have in common.

    Args:
        doc: The study's docstring: what it does, and examples.
        networks: What can be trained; the first one is the default.
        save_dir: Where it writes to.
    """
    parser = command_line.new_parser(doc)
    group, _ = command_line.add_modes(parser)
    command_line.add_weights_flag(group)
    group.add_argument(
        "--network",
        choices=networks,
        default=networks[0],
        help="what to train or test",
    )
    command_line.add_network_flags(parser)
    command_line.add_training_flags(parser, shift=False)
    command_line.add_file_flags(parser, save_dir)
    return parser


def settle(parser: argparse.ArgumentParser, margin: int) -> None:
    """Sets what the flags of other data would say; call it after `remember_run`.

    Args:
        parser: The study's parser.
        margin: Pixels around a digit, and its largest shift.
    """
    parser.set_defaults(
        dataset="mnist",
        image_size=None,
        grayscale=False,
        test_fraction=None,
        shift_fraction=margin / (SIDE + 2 * margin),
        rotation=0.0,
        zoom=0.0,
        shear=0.0,
        predict=None,
        export=None,
        digit=None,
    )

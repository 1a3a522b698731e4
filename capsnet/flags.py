"""The flags of the scripts, in groups."""

import argparse
import os

from capsnet import datasets, pictures
from capsnet.errors import UsageError
from capsnet.options import SIDE, SWITCH, Checked, Data, Kind, Training

# A model that comes with the code.
PRETRAINED = os.path.join("result", "pretrained", "mnist_v4.h5")
TWO_DIGITS = os.path.join("result", "pretrained", "multimnist.h5")


class Parser(argparse.ArgumentParser):
    """The flags of a script, of which `command_line.read_options` makes options.

    Flags that name a field of `Training`, `Data` or `Options` are absent where they
    were not given: their defaults are the recipe's, the model file's or those of the
    classes. A script's own flags have defaults here.

    Args:
        doc: The script's docstring: what it does, and examples.
        save_dir: Where it writes by default; None for that of `default_save_dir`.
        results: Names, or patterns, of the files that follow a training.
        training: What the script sets in `Training`, if no flag does.
    """

    def __init__(
        self,
        doc: str,
        save_dir: str | None = None,
        results: tuple[str, ...] = (),
        training: dict | None = None,
    ):
        super().__init__(
            description=doc.split("\n\n    ")[0],
            epilog="examples:\n    " + doc.split("\n\n    ")[1].split("\n\n")[0],
            formatter_class=_HelpFormatter,
            conflict_handler="resolve",  # a script may replace a flag
            argument_default=argparse.SUPPRESS,
        )
        self.save_dir = save_dir
        self.results = results
        self.training = training or {}

    def error(self, message):
        """For `main` to print, in one line instead of the whole usage."""
        raise UsageError(message)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        if action.default in (None, argparse.SUPPRESS) or action.nargs == 0:
            return action.help
        return f"{action.help} (default: %(default)s)"


def add_modes(parser: Parser):
    """Flags that say what to do; returns their group, and those that exclude others."""
    group = parser.add_argument_group("what to do (default: train)")
    modes = group.add_mutually_exclusive_group()
    modes.add_argument(
        "-t", "--testing", action="store_true", help="test a trained model"
    )
    modes.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --save_dir after its last finished epoch; flags "
        "that are not given are the run's, --epochs may be more",
    )
    modes.add_argument(
        "--overwrite",
        action="store_true",
        help="train from the start where --save_dir holds a run already; the earlier "
        "run is there until the first epoch is finished",
    )
    group.add_argument(
        "-w",
        "--weights",
        metavar="FILE",
        help="weights to use, or to start training from: .h5 (also of Keras 2), "
        ".weights.h5 or .keras (default of -t, and wherever a model is only used: "
        "trained_model.h5 in --save_dir)",
    )
    return group, modes


def add_capsnet_flags(parser: Parser) -> None:
    """What `capsulenet.py` does with a CapsNet, its network and its training."""
    group, modes = add_modes(parser)
    modes.add_argument(
        "--predict",
        nargs="+",
        default=None,
        metavar="IMG",
        help="print the class of each picture (PNG, JPEG, BMP, GIF, WebP, TIFF) and "
        "draw predictions.png; needs nothing but the model",
    )
    group.add_argument(
        "--explain",
        action="store_true",
        default=False,
        help="with --predict, also draw explained.png: which parts of each picture "
        "voted for its class",
    )
    modes.add_argument(
        "--export",
        default=None,
        metavar="NAME",
        help="write the model for other programs: NAME.onnx (`pip install onnx`), "
        "NAME.tflite or, as any other NAME, a folder with a TensorFlow SavedModel; "
        "nothing is replaced",
    )
    modes.add_argument(
        "--explore",
        action="store_true",
        default=False,
        help="open a page in the browser to draw digits on and to watch their capsules "
        f"(-w: {PRETRAINED} if none is given)",
    )
    modes.add_argument(
        "--export_page",
        default=None,
        metavar="DIR",
        help="write that page into a folder, as files that any web host serves",
    )
    group.add_argument(
        "--half",
        action="store_true",
        default=False,
        help="with --export NAME.onnx: store the weights in 16 bits",
    )
    group.add_argument(
        "--digit",
        default=None,
        metavar="CLASS",
        help="index or name of the class whose latent code is manipulated "
        "(default: 5, or the nearest that has test images)",
    )
    group.add_argument(
        "--invert",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether to exchange black and white in these pictures; auto compares a "
        "picture's border with the training set's",
    )
    group.add_argument(
        "--features",
        default=None,
        metavar="FILE.npz",
        help="after the test, write the class capsules of all training and test images",
    )
    network = add_network_flags(parser)
    add_options(network, Training, "normalize")
    training = add_training_flags(parser)
    add_options(training, Training, "freeze")
    training.add_argument(
        "--show_batch",
        action="store_true",
        help="before the first step, draw batch.png: images as the network sees them",
    )


def add_options(group, options: type[Checked], *names: str) -> None:
    """Flags for some fields of a class of options, as the fields say.

    Args:
        group: Of argparse.
        options: The class.
        names: Of its fields.
    """
    for name in names:
        checks = options.checks_of(name)
        kind, more = checks["kind"], {"help": checks["help"]}
        if kind is SWITCH:
            more["action"] = argparse.BooleanOptionalAction
        elif isinstance(kind, Kind):
            more["choices"] = kind.choices
        else:
            more |= {"type": kind, "metavar": kind.metavar}
        short = ["-r"] if name == "routings" else []
        group.add_argument(*short, f"--{name}", **more)


def add_network_flags(parser: Parser):
    """Flags of a CapsNet; returns their group."""
    group = parser.add_argument_group("network and loss")
    add_options(group, Training, "routings", "lam_recon")
    return group


def add_training_flags(parser: Parser, changes: bool = True):
    """Flags of a training; returns their group.

    Args:
        parser: The script's parser.
        changes: Whether those of the images are among them.
    """
    group = parser.add_argument_group("training")
    steps = ("epochs", "batch_size", "optimizer", "lr", "lr_decay", "warmup", "ema")
    add_options(group, Training, "recipe", *steps, "train_size", "validation_size")
    add_options(group, Training, "patience", "balance")
    if changes:
        names = ("shift_fraction", "rotation", "zoom", "shear", "flip")
        add_options(group, Training, *names)
    add_options(group, Training, "seed", "precision")
    group.add_argument(
        "--debug", action="store_true", help="write TensorBoard logs as well"
    )
    return group


def add_data_flags(parser: Parser) -> None:
    """Flags that say which images, and where files are written."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        metavar="NAME_OR_PATH",
        help=f"{', '.join(datasets.NAMED)}; an npz file with x_train, y_train, x_test "
        "and y_test; a folder of IDX files; a folder with a sub-folder of pictures "
        f"({', '.join(pictures.EXTENSIONS)}) for each class, or with train/ and test/ "
        "that hold these (default: the model file's, else mnist)",
    )
    add_options(group, Data, "test_fraction", "grayscale")
    group.add_argument(
        "--image_size",
        type=SIDE,
        nargs=2,
        metavar=("H", "W"),
        help="fit all images into H x W pixels, with their aspect kept "
        "(default: the model file's, else 32 32 for pictures of several sizes or of "
        "more than 64 pixels a side, else as they are)",
    )
    add_file_flags(parser)


def add_file_flags(parser: Parser) -> None:
    """Flags that say where files are, and where they are written."""
    where = "./result; for a data set other than MNIST ./result/NAME, by its name or "
    where += "the last part of its path"
    group = parser.add_argument_group("files")
    group.add_argument(
        "--data_dir",
        metavar="DIR",
        help="folder with the files of MNIST or Fashion-MNIST: mnist.npz or the four "
        "IDX files, plain or .gz (default: download them once and keep them)",
    )
    group.add_argument(
        "--save_dir",
        metavar="DIR",
        help="folder of the files that are written "
        f"(default: {parser.save_dir or where})",
    )

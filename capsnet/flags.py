"""The flags of the scripts, in groups."""

import argparse

from capsnet import datasets, pictures
from capsnet.errors import UsageError
from capsnet.options import PRECISIONS, RECIPE_NAMES, Data, Sizes, Training


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
        mode: What it does if no flag says; see `Options`.
        weights: The model file that it uses by default.
    """

    def __init__(
        self,
        doc: str,
        save_dir: str | None = None,
        results: tuple[str, ...] = (),
        training: dict | None = None,
        mode: str = "train",
        weights: str | None = None,
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
        self.mode = mode
        self.weights = weights

    def error(self, message):
        """For `main` to print, in one line instead of the whole usage."""
        raise UsageError(message)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        if action.default in (None, argparse.SUPPRESS) or action.nargs == 0:
            return action.help
        return f"{action.help} (default: %(default)s)"


def build_study_parser(doc: str, save_dir: str, weights: str) -> Parser:
    """The flags of a study of a trained model, to which it adds its own.

    Args:
        doc: The study's docstring: what it does, and examples.
        save_dir: Where it writes to.
        weights: The model file that it uses by default.
    """
    parser = Parser(doc, save_dir, mode="test", weights=weights)
    parser.add_argument(
        "-w",
        "--weights",
        metavar="FILE",
        help=f"a trained model (default: {weights})",
    )
    parser.add_argument(
        "--batch_size",
        type=Training.kind_of("batch_size"),
        metavar="N",
        help="images that are computed at a time (default: 100)",
    )
    add_data_flags(parser)
    return parser


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
    return group, modes


def add_weights_flag(group) -> None:
    """-w of a script that trains and tests, for the group of `add_modes`."""
    group.add_argument(
        "-w",
        "--weights",
        metavar="FILE",
        help="weights to use, or to start training from (default of -t: "
        "trained_model.h5 in --save_dir)",
    )


def add_network_flags(parser: Parser) -> None:
    group = parser.add_argument_group("network and loss")
    group.add_argument(
        "-r",
        "--routings",
        type=Training.kind_of("routings"),
        metavar="N",
        help="rounds of dynamic routing (default: the model file's, else 3)",
    )
    group.add_argument(
        "--lam_recon",
        type=Training.kind_of("lam_recon"),
        metavar="X",
        help="weight of the reconstruction's mean squared error (default: the paper's "
        "0.0005 x height x width x channels, 0.392 for MNIST; 20 times as much with "
        "--recipe paper)",
    )


def add_training_flags(parser: Parser, shift: bool = True) -> None:
    """Flags of a training.

    Args:
        parser: The script's parser.
        shift: Whether the largest shift is one of them.
    """
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=RECIPE_NAMES,
        help="seed: as the older Keras scripts; modern: better in less time, by a "
        "learning rate that grows, then falls to zero, averaged weights and stronger "
        "changes of the images; pictures: for any other data, by how many images there "
        "are; paper: as the code that the paper's authors released, "
        "which has other biases, initial weights, learning rates and weights of the "
        "losses (default: the model file's, else seed for MNIST, pictures for others)",
    )
    group.add_argument(
        "--epochs",
        type=Training.kind_of("epochs"),
        metavar="N",
        help="passes over the training images (default: 50; modern: 20, paper: 640, "
        "pictures: 10 to 100, by the number of images)",
    )
    group.add_argument(
        "--batch_size",
        type=Training.kind_of("batch_size"),
        metavar="N",
        help="images in a step, and in a batch of the test (default: 100; paper: 128; "
        "pictures: 16 to 100, by the number of images)",
    )
    group.add_argument(
        "--lr",
        type=Training.kind_of("lr"),
        metavar="X",
        help="largest learning rate of Adam (default: 0.001; modern: 0.002)",
    )
    group.add_argument(
        "--lr_decay",
        type=Training.kind_of("lr_decay"),
        metavar="X",
        help="factor of the learning rate from one epoch to the next (default: 0.9; "
        "modern, pictures: none, half a cosine to zero instead; paper: 0.96, each 2000 "
        "steps)",
    )
    group.add_argument(
        "--warmup",
        type=Training.kind_of("warmup"),
        metavar="N",
        help="first steps, in which the learning rate grows linearly (default: 0; "
        "modern: 200, pictures: 100)",
    )
    group.add_argument(
        "--ema",
        type=Training.kind_of("ema"),
        metavar="X",
        help="keep a moving average of the weights, with this factor a step; it is "
        "what is tested and saved, in place of the weights (default: 0, none; modern: "
        "0.999, pictures: 0.99)",
    )
    group.add_argument(
        "--train_size",
        type=Training.kind_of("train_size"),
        metavar="N",
        help="train on the first N training images (default: all); those of your own "
        "data are mixed with --seed first",
    )
    group.add_argument(
        "--validation_size",
        type=Training.kind_of("validation_size"),
        metavar="N",
        help="hold out the last N training images, mixed in the same way, and keep the "
        "epoch that does best on them, instead of the last (default: 0)",
    )
    if shift:
        group.add_argument(
            "--shift_fraction",
            type=Training.kind_of("shift_fraction"),
            metavar="X",
            help="largest random shift, as a fraction of the side; in whole pixels, "
            "unless images are turned, zoomed or sheared as well (default: 0.1; "
            "modern, pictures: 0.07)",
        )
        group.add_argument(
            "--rotation",
            type=Training.kind_of("rotation"),
            metavar="DEGREES",
            help="largest random rotation, either way (default: 0; modern, pictures: "
            "10)",
        )
        group.add_argument(
            "--zoom",
            type=Training.kind_of("zoom"),
            metavar="X",
            help="largest random zoom of height and width, each on its own: factors "
            "from exp(-X) to exp(X) (default: 0; modern, pictures: 0.1)",
        )
        group.add_argument(
            "--shear",
            type=Training.kind_of("shear"),
            metavar="X",
            help="largest random shear, as a fraction (default: 0; modern, pictures: "
            "0.1)",
        )
        group.add_argument(
            "--flip",
            action=argparse.BooleanOptionalAction,
            help="mirror every other image, at random, left to right (default: no)",
        )
    group.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="let the network see images less the training set's mean colour, over the "
        "deviation of its pixels (default: no; pictures: yes)",
    )
    group.add_argument(
        "--balance",
        action=argparse.BooleanOptionalAction,
        help="draw every class as often, whatever its number of images (default: no)",
    )
    group.add_argument(
        "--patience",
        type=Training.kind_of("patience"),
        metavar="N",
        help="stop after N epochs without a better accuracy on --validation_size "
        "(default: go on to the last)",
    )
    group.add_argument(
        "--seed",
        type=Training.kind_of("seed"),
        metavar="N",
        help="on a CPU, the same seed, machine and versions give the same run "
        "(default: 0)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="mixed_bfloat16 computes products in bfloat16, and norms, softmax and "
        "losses in float32: it helps on GPUs with bfloat16 units, not on a CPU "
        "(default: float32)",
    )
    group.add_argument(
        "--debug", action="store_true", help="write TensorBoard logs as well"
    )


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
    group.add_argument(
        "--test_fraction",
        type=Data.kind_of("test_fraction"),
        metavar="X",
        help="part of each class to test with, where a folder has no test/ "
        "(default: the model file's, else 0.2)",
    )
    group.add_argument(
        "--image_size",
        type=Sizes.each,
        nargs=2,
        metavar=("H", "W"),
        help="fit all images into H x W pixels, with their aspect kept "
        "(default: the model file's, else as they are)",
    )
    group.add_argument(
        "--grayscale",
        action="store_true",
        help="make colour images grey",
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

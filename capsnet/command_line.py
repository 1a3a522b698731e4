"""The command line: flags, and what is wrong with them before anything takes long."""

import argparse
import contextlib
import importlib.util
import io
import math
import os
import re
import sys
import tempfile

import keras

from capsnet import backend, datasets, pictures, run_folder, training
from capsnet.backend import runs_on_cpu
from capsnet.errors import DataError, one_line
from capsnet.recipes import RECIPES
from capsnet.weights import ModelFileError, read_info, read_run

# Flags that are not of a run, and those of it that may change when it goes on.
NOT_OF_RUN = {"testing", "predict", "export", "resume", "overwrite", "digit", "invert"}
NOT_OF_RUN |= {"debug", "save_dir", "device", "devices", "num_hosts", "host_id"}
MAY_CHANGE = {"epochs", "stop_at", "data_dir"}
# Those that are the recipe's if they are not given; others need the data first.
OF_RECIPE = ("epochs", "lr", "lr_decay", "warmup", "ema")
OF_RECIPE += ("shift_fraction", "rotation", "zoom", "shear")
OURS = {"published", "pretrained"}  # folders in ./result that no run takes unasked


class UsageError(ValueError):
    """Arguments that cannot work; the message is one line for the user."""


# What ends the script with one line and exit status 2.
USER_ERRORS = (UsageError, DataError, ModelFileError, OSError)
PIPE = 13  # SIGPIPE, which Windows does not have


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """For `main` to print, in one line instead of the whole usage."""
        raise UsageError(message)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        if action.default in (None, argparse.SUPPRESS) or action.nargs == 0:
            return action.help
        return f"{action.help} (default: %(default)s)"


def new_parser(doc: str) -> argparse.ArgumentParser:
    """A parser without flags.

    Args:
        doc: The script's docstring: what it does, and examples.
    """
    parser = _Parser(
        description=doc.split("\n\n    ")[0],
        epilog="examples:\n    " + doc.split("\n\n    ")[1].split("\n\n")[0],
        formatter_class=_HelpFormatter,
        conflict_handler="resolve",  # a script may replace a flag
    )
    parser.set_defaults(device=None, devices=1, num_hosts=1, host_id=0)
    parser.set_defaults(drop_remainder=False)
    return parser


def add_modes(parser: argparse.ArgumentParser):
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


def add_network_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network and loss")
    group.add_argument(
        "-r",
        "--routings",
        type=integer(1, 100),
        metavar="N",
        help="rounds of dynamic routing (default: the model file's, else 3)",
    )
    group.add_argument(
        "--lam_recon",
        type=number(0),
        metavar="X",
        help="weight of the reconstruction's mean squared error (default: the paper's "
        "0.0005 x height x width x channels, 0.392 for MNIST; 20 times as much with "
        "--recipe paper)",
    )


def add_training_flags(parser: argparse.ArgumentParser, shift: bool = True) -> None:
    """Flags of a training.

    Args:
        parser: The script's parser.
        shift: Whether the largest shift is one of them.
    """
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="seed: as the older Keras scripts; modern: better in less time, by a "
        "learning rate that grows, then falls to zero, averaged weights and stronger "
        "changes of the images; paper: as the code that the paper's authors released, "
        "which has other biases, initial weights, learning rates and weights of the "
        "losses (default: the model file's, else seed)",
    )
    group.add_argument(
        "--epochs",
        type=integer(1),
        metavar="N",
        help="passes over the training images (default: 50; modern: 20, paper: 640)",
    )
    group.add_argument(
        "--batch_size",
        type=integer(1),
        metavar="N",
        help="images in a step, and in a batch of the test (default: 100; 128 with "
        "--recipe paper)",
    )
    group.add_argument(
        "--lr",
        type=number(0),
        metavar="X",
        help="largest learning rate of Adam (default: 0.001; modern: 0.002)",
    )
    group.add_argument(
        "--lr_decay",
        type=number(0),
        metavar="X",
        help="factor of the learning rate from one epoch to the next (default: 0.9; "
        "modern: none, half a cosine to zero instead; paper: 0.96, each 2000 steps)",
    )
    group.add_argument(
        "--warmup",
        type=integer(0),
        metavar="N",
        help="first steps, in which the learning rate grows linearly (default: 0; "
        "modern: 200)",
    )
    group.add_argument(
        "--ema",
        type=number(0, 1),
        metavar="X",
        help="keep a moving average of the weights, with this factor a step; it is "
        "what is tested and saved, in place of the weights (default: 0, none; modern: "
        "0.999)",
    )
    group.add_argument(
        "--train_size",
        type=integer(1),
        metavar="N",
        help="train on the first N training images (default: all); those of your own "
        "data are mixed with --seed first",
    )
    group.add_argument(
        "--validation_size",
        type=integer(0),
        default=0,
        metavar="N",
        help="hold out the last N training images, mixed in the same way, and keep the "
        "epoch that does best on them, instead of the last",
    )
    if shift:
        group.add_argument(
            "--shift_fraction",
            type=number(0, 1),
            metavar="X",
            help="largest random shift, as a fraction of the side; in whole pixels, "
            "unless images are turned, zoomed or sheared as well (default: 0.1; "
            "modern: 0.07)",
        )
        group.add_argument(
            "--rotation",
            type=number(0, 360),
            metavar="DEGREES",
            help="largest random rotation, either way (default: 0; modern: 10)",
        )
        group.add_argument(
            "--zoom",
            type=number(0, 1),
            metavar="X",
            help="largest random zoom of height and width, each on its own: factors "
            "from exp(-X) to exp(X) (default: 0; modern: 0.1)",
        )
        group.add_argument(
            "--shear",
            type=number(0, 1),
            metavar="X",
            help="largest random shear, as a fraction (default: 0; modern: 0.1)",
        )
    group.add_argument(
        "--seed",
        type=integer(0),
        default=0,
        metavar="N",
        help="on a CPU, the same seed, machine and versions give the same run",
    )
    group.add_argument(
        "--precision",
        choices=("float32", "mixed_bfloat16"),
        default="float32",
        help="mixed_bfloat16 computes products in bfloat16, and norms, softmax and "
        "losses in float32: it helps on GPUs with bfloat16 units, not on a CPU",
    )
    group.add_argument(
        "--debug", action="store_true", help="write TensorBoard logs as well"
    )


def add_data_flags(
    parser: argparse.ArgumentParser, save_dir: str | None = None
) -> None:
    """Flags that say which images, and where files are written.

    Args:
        parser: The script's parser.
        save_dir: Where it writes by default; None for that of `default_save_dir`.
    """
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
        type=number(0, 1),
        metavar="X",
        help="part of each class to test with, where a folder has no test/ "
        "(default: the model file's, else 0.2)",
    )
    group.add_argument(
        "--image_size",
        type=integer(1, 10000),
        nargs=2,
        metavar=("H", "W"),
        help="fit all images into H x W pixels, with their aspect kept "
        "(default: the model file's, else as they are)",
    )
    group.add_argument(
        "--grayscale",
        action="store_true",
        default=None,
        help="make colour images grey",
    )
    add_file_flags(parser, save_dir)


def add_file_flags(parser: argparse.ArgumentParser, save_dir: str | None) -> None:
    where = " (default: ./result; for a data set other than MNIST ./result/NAME, by "
    where += "its name or the last part of its path)"
    if save_dir is not None:
        where = ""  # argparse adds it
    group = parser.add_argument_group("files")
    group.add_argument(
        "--data_dir",
        metavar="DIR",
        help="folder with the files of MNIST or Fashion-MNIST: mnist.npz or the four "
        "IDX files, plain or .gz (default: download them once and keep them)",
    )
    group.add_argument(
        "--save_dir",
        default=save_dir,
        metavar="DIR",
        help=f"folder of the files that are written{where}",
    )


def default_save_dir(dataset: str | None) -> str:
    """Where a run writes if nothing is said.

    That is `./result` for MNIST, as in the older scripts, and a folder in it for each
    other data set, so that no model is taken for another one.

    Args:
        dataset: A name or a path; None for MNIST.
    """
    if dataset in (None, "mnist"):
        return "./result"
    name = os.path.basename(os.path.abspath(dataset))
    name = re.sub(r"[^\w.-]", "_", re.sub(r"(?i)\.npz$", "", name)).strip(".")
    if not name or name.lower() in OURS:
        name += "_data"
    return f"./result/{name}"


def remember_run(
    parser: argparse.ArgumentParser, *others: str, results: tuple[str, ...] = ()
) -> None:
    """Notes which of the flags, all that there are now, make up a run.

    Args:
        parser: The script's parser.
        others: Names of flags that do not.
        results: Names, or patterns, of the files that follow a training.
    """
    names = vars(parser.parse_args([])).keys() - NOT_OF_RUN - {*others}
    parser.set_defaults(of_run=sorted(names), results=results)


def parse_arguments(
    parser: argparse.ArgumentParser, argv: list[str] | None
) -> argparse.Namespace:
    """Parses the command line; with --resume, on top of the arguments of the run.

    Raises:
        UsageError, ModelFileError: If it makes no sense, or contradicts the run.
    """
    args = parser.parse_args(argv)
    args.finished = 0
    args.run = None
    if not args.resume:
        return args
    save_dir = args.save_dir or default_save_dir(args.dataset)
    path = os.path.join(save_dir, training.RUN_STATE)
    if not os.path.lexists(path):
        raise UsageError(f"--resume: there is no run to go on with, no {path}")
    run = read_run(path)
    begun = parse_run(parser, run["arguments"], path)
    begun.save_dir = save_dir
    args = parser.parse_args(argv, argparse.Namespace(**vars(begun)))
    for name in sorted(set(args.of_run) - MAY_CHANGE):
        expected, received = getattr(begun, name), getattr(args, name)
        if expected != received:
            raise UsageError(
                f"--{name}: expected {expected}, with which the run in {args.save_dir} "
                f"was begun, received {received}"
            )
    args.run = run
    args.finished = len(run["rows"])
    if args.lr_decay is None and args.epochs != begun.epochs:
        raise UsageError(
            f"--epochs: expected {begun.epochs}, at the end of which the learning rate "
            f"of this run is zero, received {args.epochs}"
        )
    if args.epochs < args.finished:
        raise UsageError(
            f"--epochs: expected at least {args.finished}, as many are finished, "
            f"received {args.epochs}"
        )
    return args


def parse_run(
    parser: argparse.ArgumentParser, arguments: dict, path: str
) -> argparse.Namespace:
    """Parses the arguments that a run state holds as if they had been typed.

    Raises:
        ModelFileError: If they could not have been.
    """
    # Before they are parsed, which would obey others: --help prints and ends.
    differing = sorted(set(arguments) ^ set(parser.get_default("of_run")))
    if differing:
        raise ModelFileError(
            f"{path}: expected a run of this script and version, found one of another: "
            f"they differ in {shorten([name[:100] for name in differing])}"
        )
    values = dict(arguments)
    drop_remainder = values.pop("drop_remainder")
    if type(drop_remainder) is not bool or (
        not all(map(_may_be_typed, values.values())) or values["epochs"] is None
    ):
        raise ModelFileError(f"{path}: damaged run state: other arguments")
    argv = []
    for name, value in values.items():
        if isinstance(value, list):
            argv += [f"--{name}", *map(str, value)]
        elif value is True:
            argv.append(f"--{name}")
        elif value is not None and value is not False:
            argv.append(f"--{name}={value}")
    try:
        args = parser.parse_args(argv)
    except UsageError as error:
        raise ModelFileError(f"{path}: damaged run state: {error}") from error
    args.drop_remainder = drop_remainder
    return args


def _may_be_typed(value) -> bool:
    """Whether a value, as text, is no flag of its own and no burden in a message."""
    if isinstance(value, list):
        return len(value) == 2 and all(type(size) is int for size in value)
    return not isinstance(value, dict) and len(str(value)) <= 4096


def integer(least: int, most: int = 2**31 - 1):
    """A type of argparse: whole numbers in a range."""

    def integer(text):  # argparse shows this name
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"expected {least} to {most}, received {text}"
            )
        return value

    return integer


def number(least: float, below: float = math.inf):
    """A type of argparse: numbers in a range."""

    def number(text):
        value = float(text)
        if not least <= value < below:
            raise argparse.ArgumentTypeError(
                f"expected at least {least} and less than {below}, received {text}"
            )
        return value

    return number


def check_arguments(args: argparse.Namespace) -> None:
    """Finds what is wrong with the arguments before anything takes long.

    Fills in what they leave open: from the model file, else the default. Nothing is
    written that stays.

    Raises:
        UsageError, ModelFileError: If something is wrong.
    """
    trained = args.testing or args.predict or args.export
    if trained and args.weights is None:
        args.save_dir = args.save_dir or default_save_dir(args.dataset)
        args.weights = os.path.join(args.save_dir, "trained_model.h5")
        if not os.path.exists(args.weights):
            raise UsageError(
                f"there is no {args.weights}; train a model first, or name one with -w"
            )
    if args.debug and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--debug needs TensorBoard: pip install tensorboard")
    has_file = args.weights is not None and not args.resume
    args.info = read_info(args.weights) if has_file else {}
    if args.save_dir is None:
        args.save_dir = default_save_dir(args.dataset or args.info.get("dataset"))
    if not trained:
        check_folder(args)
    take_from_file(args, routings=3, recipe="seed")
    recipe = RECIPES[args.recipe]
    for name in OF_RECIPE:
        if getattr(args, name) is None:
            setattr(args, name, getattr(recipe, name))
    if args.predict or args.export:
        for name in ("dataset", "data_dir", "image_size", "grayscale", "test_fraction"):
            if getattr(args, name) is not None:
                raise UsageError(
                    f"--{name} has no effect with --predict or --export, "
                    "as the model file says what is needed"
                )
    else:
        settle_data(args)
    folder = os.path.abspath(args.save_dir)
    # It will be created in the first that exists; on Windows a drive may be missing.
    while not os.path.lexists(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--save_dir: cannot write to {args.save_dir}: {error.strerror}"
        ) from error


def check_folder(args: argparse.Namespace) -> None:
    """Finds out whether a run may begin in a folder.

    Raises:
        UsageError: If there is another that is neither to go on nor to be replaced.
    """
    if args.resume or args.overwrite:
        return
    for name in training.RUN_FILES:
        if os.path.lexists(os.path.join(args.save_dir, name)):
            raise UsageError(
                f"--save_dir: {args.save_dir} holds a run already ({name}): --resume "
                "goes on with it, --overwrite replaces it"
            )


def take_from_file(args: argparse.Namespace, **defaults) -> None:
    """Sets arguments that were not said to the model file's values, else to these."""
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, args.info.get(name, default))


def settle_data(args: argparse.Namespace) -> None:
    """Settles which data is meant, and which part of a folder is the test.

    Raises:
        UsageError: If that is not clear.
    """
    if args.dataset is None and args.info.get("dataset", "mnist") not in datasets.NAMED:
        raise UsageError(
            f"{args.weights} was trained on {args.info['dataset']}: "
            "say where that is now with --dataset"
        )
    take_from_file(args, dataset="mnist", image_size=None, grayscale=False)
    if args.dataset in datasets.NAMED:  # else the names come with the data
        find_class(args.digit, datasets.NAMED[args.dataset])
    # A test stays a test: the model file's split is not for the arguments to change.
    split = (args.info.get("split") if args.testing else None) or {}
    args.split_seed = split.get("seed", args.seed)
    if args.test_fraction is None:
        args.test_fraction = split.get("fraction", 0.2)
    if args.test_fraction != split.get("fraction", args.test_fraction):
        raise UsageError(
            f"--test_fraction: expected {split['fraction']}, with which the model was "
            f"trained, received {args.test_fraction}"
        )


def check_data(data: datasets.Dataset, args: argparse.Namespace) -> None:
    """Finds what does not fit between arguments, data and model file.

    Fills in the weight of the reconstruction, which depends on the images.

    Raises:
        UsageError, datasets.DataError: If something does not.
    """
    (x_train, y_train), (x_test, _) = data
    if args.lam_recon is None:
        lam_recon = RECIPES[args.recipe].lam_recon
        args.lam_recon = lam_recon * math.prod(x_test.shape[1:])
    if not args.testing:
        (x, y), validation = datasets.split(
            x_train, y_train, args.train_size, args.validation_size
        )
        datasets.check_classes(data, (x, y), validation)
        if args.devices > 1 and not args.drop_remainder and len(x) % args.batch_size:
            raise UsageError(
                "--resume: expected one device, on which the run was begun and uses "
                f"the images left over at the end of an epoch, received {args.devices}"
            )
        if args.drop_remainder and args.batch_size > len(x):
            raise UsageError(
                f"--batch_size: expected at most {len(x)}, the number of training "
                f"images, received {args.batch_size}"
            )
        if runs_on_cpu():
            needed = least_memory(
                x_train.shape[1:], y_train.shape[1], args.routings, args.batch_size
            )
            datasets.check_memory(needed, f"training with batches of {args.batch_size}")
    trained = args.info.get("split") if args.testing else None
    # Files of earlier versions know the names alone.
    known = [key for key in ("digest", "contents") if trained and key in trained]
    if data.split and any(trained[key] != data.split[key] for key in known):
        raise UsageError(
            f"{args.dataset}: expected the files of the training, of which a part was "
            "kept for the test, received others; put the test images into test/ "
            "beside train/"
        )
    for what, expected, received in (
        ("input_shape", args.info.get("input_shape"), list(x_test.shape[1:])),
        ("class_names", args.info.get("class_names"), data.class_names),
    ):
        if args.testing and expected not in (None, received):
            raise UsageError(
                f"{what}: expected {shorten(expected)} of {args.weights}, "
                f"received {shorten(received)} of {args.dataset}"
            )


def shorten(values: list) -> str:
    """A list in one short line."""
    text = ", ".join(map(str, values[:5]))
    return f"[{text}, ...] ({len(values)})" if len(values) > 5 else f"[{text}]"


def least_weights(input_shape: tuple[int, int, int], n_class: int) -> int:
    """Weights of the two layers that grow with the images and the classes."""
    height, width, channels = input_shape
    capsules = 32 * max(0, (height - 15) // 2) * max(0, (width - 15) // 2)
    return capsules * 8 * n_class * 16 + 1024 * height * width * channels


def least_memory(
    input_shape: tuple[int, int, int], n_class: int, routings: int, batch_size: int
) -> int:
    """Bytes that a training step cannot do without: weights and what layers keep."""
    height, width, _ = input_shape
    features = (height - 8) * (width - 8) * 256
    capsules = 32 * max(0, (height - 15) // 2) * max(0, (width - 15) // 2)
    # Each round but the first keeps two tensors of this size, for the gradient.
    routing = 2 * (routings - 1) * capsules * n_class * 8
    # Weights come with a gradient and two moments; conv1 and the transform of the
    # primary capsules are kept, with their gradients.
    weights = 4 * least_weights(input_shape, n_class)
    return 4 * (weights + batch_size * (4 * features + routing))


def find_class(digit: str | None, class_names: list[str], flag: str = "--digit") -> int:
    """The index of a class that is given by name or index.

    Args:
        digit: What was given; None for 5, or the last one of fewer.
        class_names: A name for each class.
        flag: Where it was given.

    Raises:
        UsageError: If there is no such class.
    """
    if digit is None:
        return min(5, len(class_names) - 1)
    if digit in class_names:
        return class_names.index(digit)
    if digit.isdecimal() and int(digit) < len(class_names):
        return int(digit)
    expected = f"0 to {len(class_names) - 1}"
    if class_names[0] != "0":
        expected += f" or one of {shorten(class_names)}"
    raise UsageError(f"{flag}: expected {expected}, received {digit}")


def describe_device(args: argparse.Namespace) -> str:
    """The header's line about what computes, and one more if that may be a mistake."""
    name = keras.backend.backend()
    version = importlib.import_module(name).__version__
    device = backend.device_kind().upper()
    if device == "CPU":
        device += f", {os.cpu_count()} cores"
    if args.devices > 1:
        device = f"{args.devices // args.num_hosts} x {device}"
    if args.num_hosts > 1:
        device = f"{args.num_hosts} hosts, each {device}"
    line = f"Device: {device}; Keras {keras.version()} on {name} {version}"
    package = backend.missing_gpu_package()
    if package is not None and args.device != "cpu":
        line += (
            f"\nAn NVIDIA driver is here, but {name} sees no GPU; if it should: "
            f'pip install "{package}"'
        )
    return line


def describe_run(
    name: str, model: keras.Model, data: datasets.Dataset, args: argparse.Namespace
) -> str:
    """The header: what will run, and on what."""
    (x_train, _), (x_test, _) = data
    task = "Training"
    if args.testing:
        task = f"Testing {args.weights}"
    elif args.resume:
        task = f"Going on after epoch {args.finished} of {args.epochs}"
    size = len(x_train) - args.validation_size
    size = min(size, args.train_size or size)
    used = "" if args.testing else f"{size} of {len(x_train)} training images, "
    sides = " x ".join(map(str, x_test.shape[1:]))
    source = f" from {args.data_dir}" if args.data_dir else ""
    lines = [
        f"{task}: {name}, {model.count_params() / 1e6:.1f} M weights, {args.precision}",
        f"Data: {one_line(data.name)}{source}, {used}{len(x_test)} test images, "
        f"{sides}, {len(data.class_names)} classes",
        describe_device(args),
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def begin(
    name: str, model: keras.Model, data: datasets.Dataset, args: argparse.Namespace
):
    """Makes `args.save_dir` and prints the header; a training locks the folder.

    Args:
        name: Of the network.
        model: With all of its weights.
        data: The data that it is trained or tested on.
        args: The parsed command line.

    Raises:
        UsageError, OSError: If another run is at work in the folder, or was.
    """
    os.makedirs(args.save_dir, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if not args.testing:
            stack.enter_context(run_folder.lock_folder(args.save_dir))
            check_folder(args)  # again, now that no other run can begin in it
        print(describe_run(name, model, data, args))
        yield


def main(argv: list[str] | None, build_parser, run) -> int:
    """Runs a script; returns the exit status.

    Args:
        argv: The arguments; None for those of the process.
        build_parser: Returns the script's parser.
        run: Does what the parsed arguments say.
    """
    parser = build_parser()

    def parse_and_run() -> None:
        args = parse_arguments(parser, argv)
        try:
            check_arguments(args)
            run(args)
        except training.Interrupted as interrupt:
            interrupt.explain(args)
            raise
        except BrokenPipeError:
            if not args.finished:
                raise
            interrupt = training.Interrupted(PIPE)
            interrupt.explain(args)
            raise interrupt from None

    return guard(parser.prog, parse_and_run)


def guard(program: str, function) -> int:
    """Calls a function, and makes one line and an exit status of what goes wrong.

    Where the reader of the output goes away, as `head` does, the function ends at its
    next line, without a word, with the status of a process that SIGPIPE ends.

    Args:
        program: The name before the line.
        function: May return an exit status; 0 if it returns None.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The names of files and classes may hold what the terminal has no sign for.
        sys.stdout.reconfigure(errors="backslashreplace")
    message = ""
    try:
        with training.interruptible():
            status = function() or 0
        print(end="", flush=True)
    except BrokenPipeError:
        status = 128 + PIPE
    except training.Interrupted as interrupt:
        status, message = interrupt.status, str(interrupt)
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        status, message = known[0], f"error: {known[1]}"
    finally:
        if message:
            with contextlib.suppress(OSError):  # it may have had the same reader
                print(f"{program}: {message}", file=sys.stderr)
        drop_unwritten()
    return status


def explain(error: Exception) -> tuple[int, str] | None:
    """The exit status and the line that an error ends in; None for what is a bug."""
    if isinstance(error, MemoryError) or backend.is_out_of_memory(error):
        return 2, (
            "out of memory; try a smaller --batch_size, a smaller --image_size or "
            "fewer images"
        )
    # The names of files and classes may hold anything.
    if isinstance(error, USER_ERRORS):
        return 2, one_line(str(error))
    if isinstance(error, training.DivergedError):
        return 1, one_line(str(error))
    return None


def drop_unwritten() -> None:
    """Makes sure that Python's own flush at its end does not fail once more."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())

"""What a run is asked to do, in values that check themselves and never change."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from capsnet.architecture import ARCHITECTURES, Architecture
from capsnet.errors import UsageError
from capsnet.run_folder import RunFolder

LONGEST_TEXT = 4096
PRECISIONS = ("float32", "mixed_bfloat16")
RECIPE_NAMES = ("seed", "modern", "pictures")
PIXEL_WEIGHT = 0.0005  # of the squared error of a pixel, in the paper (section 4.1)
NETWORKS = ("capsnet", "baseline", "cnn")
OPTIMIZERS = ("adam", "muon")


@dataclasses.dataclass(frozen=True)
class Integer:
    """Whole numbers in a range: a type of argparse, and a check of values."""

    least: int = 0
    most: int = 2**31 - 1
    metavar: str = "N"

    @property
    def expected(self) -> str:
        return f"{self.least} to {self.most}"

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.least <= value <= self.most

    def __call__(self, text: str) -> int:
        return _parse(self, int, text)


@dataclasses.dataclass(frozen=True)
class Number:
    """Numbers in a finite range: a type of argparse, and a check of values."""

    least: float = 0
    below: float = 1e35  # float32, in which networks compute, holds 3e38
    metavar: str = "X"

    @property
    def expected(self) -> str:
        return f"at least {self.least} and less than {self.below}"

    def accepts(self, value: Any) -> bool:
        is_number = type(value) in (int, float)
        return is_number and self.least <= value < self.below

    def __call__(self, text: str) -> float:
        return _parse(self, float, text)


@dataclasses.dataclass(frozen=True)
class Kind:
    """Values that are no numbers: what is expected, a check, words to choose from."""

    expected: str
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] | None = None


def choice(choices: tuple[str, ...]) -> Kind:
    """One of some words."""
    return Kind(" or ".join(choices), lambda value: value in choices, choices)


SIDE = Integer(1, 10000)  # pixels
SIZES = Kind(
    "two numbers of pixels",
    lambda v: isinstance(v, tuple) and len(v) == 2 and all(map(SIDE.accepts, v)),
)
SWITCH = Kind("true or false", lambda v: type(v) is bool)
TEXT = Kind(
    f"a text of at most {LONGEST_TEXT} characters",
    lambda v: isinstance(v, str) and len(v) <= LONGEST_TEXT,
)


def _parse(kind: Integer | Number, number: type, text: str) -> int | float:
    try:
        value = number(text)
    except ValueError:
        name = "a whole number" if number is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {name}, received {text}") from None
    if not kind.accepts(value):
        raise argparse.ArgumentTypeError(f"expected {kind.expected}, received {text}")
    return value


def option(default: Any, kind: Any, help: str = "", optional: bool = False) -> Any:
    """A field with a check.

    Args:
        default: Its value if nothing is said.
        kind: One of the kinds above.
        help: What `--help` says of its flag.
        optional: Whether it may be None.
    """
    metadata = {"kind": kind, "optional": optional, "help": help}
    return dataclasses.field(default=default, metadata=metadata)


class Checked:
    """What the groups of options share: each field is looked at when it is set."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, checks = getattr(self, field.name), field.metadata
            if not checks or (value is None and checks["optional"]):
                continue
            kind = checks["kind"]
            if not kind.accepts(value):
                raise UsageError(
                    f"--{field.name}: expected {kind.expected}, "
                    f"received {str(value)[:100]}"
                )

    @classmethod
    def checks_of(cls, name: str) -> Mapping[str, Any]:
        """What `option` was given for a field."""
        (field,) = (f for f in dataclasses.fields(cls) if f.name == name)
        return field.metadata

    @classmethod
    def kind_of(cls, name: str) -> Any:
        """The check of a field, which is its type on the command line, too."""
        return cls.checks_of(name)["kind"]


@dataclasses.dataclass(frozen=True)
class Training(Checked):
    """How a network is trained; a recipe is one of these.

    Attributes:
        network: What is trained.
        architecture: Of a CapsNet, one of `architecture.ARCHITECTURES`.
        drop_remainder: Whether images left over at the end of an epoch are not used.
        stop_at: Accuracy on the validation images at which the training ends; None for
            all epochs.

    The others are flags, and say what they are below. Where `lr_decay` is None, the
    rate falls to zero at the last step along half a cosine.
    """

    recipe: str = option(
        "seed",
        choice(RECIPE_NAMES),
        "seed: as the older Keras scripts; modern: better in less time, by a learning "
        "rate that grows, then falls to zero, averaged weights and stronger changes of "
        "the images; pictures: for any other data, by how many images there are, with "
        "a network of small kernels (default: the model file's, else seed for MNIST, "
        "pictures for others)",
    )
    network: str = option("capsnet", choice(NETWORKS))
    architecture: str = option("paper", choice(tuple(ARCHITECTURES)))
    routings: int = option(
        3,
        Integer(1, 100),
        "rounds of dynamic routing (default: the model file's, else 3)",
    )
    epochs: int = option(
        50,
        Integer(1),
        "passes over the training images (default: 50; modern: 20, pictures: 10 to "
        "100, by the number of images)",
    )
    batch_size: int = option(
        100,
        Integer(1),
        "images in a step, and in a batch of the test (default: 100; pictures: 16 to "
        "100, by the number of images)",
    )
    drop_remainder: bool = option(False, SWITCH)
    optimizer: str = option(
        "adam",
        choice(OPTIMIZERS),
        "adam, or muon: Muon for the kernels of convolutions and Adam for all other "
        "weights (default: adam)",
    )
    lr: float = option(
        0.001,
        Number(),
        "largest learning rate (default: 0.001; modern: 0.003, pictures: 0.002)",
    )
    lr_decay: float | None = option(
        0.9,
        Number(),
        "factor of the learning rate from one epoch to the next (default: 0.9; modern, "
        "pictures: none, half a cosine to zero instead)",
        optional=True,
    )
    warmup: int = option(
        0,
        Integer(),
        "first steps, in which the learning rate grows linearly (default: 0; modern: "
        "200, pictures: 100)",
    )
    ema: float = option(
        0.0,
        Number(0, 1),
        "keep a moving average of the weights, with this factor a step; it is what is "
        "tested and saved, in place of the weights (default: 0, none; modern: 0.999, "
        "pictures: 0.99)",
    )
    lam_recon: float | None = option(
        None,
        Number(0, 1e6),
        "weight of the reconstruction's mean squared error (default: the paper's "
        "0.0005 x height x width x channels, 0.392 for MNIST)",
        optional=True,
    )
    shift_fraction: float = option(
        0.1,
        Number(0, 1),
        "largest random shift, as a fraction of the side; in whole pixels, unless "
        "images are turned, zoomed, sheared or mirrored as well (default: 0.1; modern, "
        "pictures: 0.07)",
    )
    rotation: float = option(
        0.0,
        Number(0, 360, "DEGREES"),
        "largest random rotation, either way (default: 0; modern, pictures: 10)",
    )
    zoom: float = option(
        0.0,
        Number(0, 1),
        "largest random zoom of height and width, each on its own: factors from "
        "exp(-X) to exp(X) (default: 0; modern, pictures: 0.1)",
    )
    shear: float = option(
        0.0,
        Number(0, 1),
        "largest random shear, as a fraction (default: 0; modern, pictures: 0.1)",
    )
    flip: bool = option(
        False,
        SWITCH,
        "mirror every other image, at random, left to right (default: no)",
    )
    normalize: bool = option(
        False,
        SWITCH,
        "let the network see images less their background's colour, or less the mean "
        "colour, over the deviation of the pixels (default: no; pictures: yes)",
    )
    balance: bool = option(
        False,
        SWITCH,
        "draw every class as often, whatever its number of images (default: no)",
    )
    freeze: bool = option(
        False,
        SWITCH,
        "leave the layers that are kept from -w FILE as they are, and train the others "
        "only, those that its shapes do not fit (default: no)",
    )
    train_size: int | None = option(
        None,
        Integer(1),
        "train on the first N training images (default: all); those of your own data "
        "are mixed with --seed first",
        optional=True,
    )
    validation_size: int = option(
        0,
        Integer(),
        "hold out the last N training images, mixed in the same way, and keep the "
        "epoch that does best on them, instead of the last (default: 0)",
    )
    stop_at: float | None = option(None, Number(0, 1), optional=True)
    patience: int | None = option(
        None,
        Integer(1),
        "stop after N epochs without a better accuracy on --validation_size (default: "
        "go on to the last)",
        optional=True,
    )
    seed: int = option(
        0,
        Integer(),
        "on a CPU, the same seed, machine and versions give the same run (default: 0)",
    )
    precision: str = option(
        "float32",
        choice(PRECISIONS),
        "mixed_bfloat16 computes products in bfloat16, and norms, softmax and losses "
        "in float32: for GPUs with bfloat16 units; a CPU gains nothing, as the "
        "transformed convolution needs float32 (default: float32)",
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("stop_at", "patience"):
            value = getattr(self, name)
            if value is not None and not self.validation_size:
                raise UsageError(
                    f"--{name} {value:g}: expected --validation_size, the number of "
                    "images to watch, received none"
                )

    @property
    def sizes(self) -> Architecture:
        """The layers that `architecture` names."""
        return ARCHITECTURES[self.architecture]

    def reconstruction_weight(self, input_shape: tuple[int, int, int]) -> float:
        """The weight of the mean squared error for images of this shape."""
        if self.lam_recon is not None:
            return self.lam_recon
        return PIXEL_WEIGHT * math.prod(input_shape)


@dataclasses.dataclass(frozen=True)
class Data(Checked):
    """Which images; the arguments of `datasets.load_dataset`."""

    dataset: str = option("mnist", TEXT)
    data_dir: str | None = option(None, TEXT, optional=True)
    image_size: tuple[int, int] | None = option(None, SIZES, optional=True)
    grayscale: bool = option(
        False, SWITCH, "make colour images grey (default: the model file's, else no)"
    )
    test_fraction: float = option(
        0.2,
        Number(0, 1),
        "part of each class to test with, where a folder has no test/ (default: the "
        "model file's, else 0.2)",
    )
    split_seed: int = option(0, Integer())


@dataclasses.dataclass(frozen=True)
class Devices:
    """What computes a step.

    Attributes:
        count: Devices of all hosts together.
        num_hosts: Number of hosts, with as many devices each.
        host_id: Which of them this is.
        kind: "cpu" or "gpu", if that was asked for.
    """

    count: int = 1
    num_hosts: int = 1
    host_id: int = 0
    kind: str | None = None


ONE_DEVICE = Devices()


@dataclasses.dataclass(frozen=True)
class Options:
    """All that a script is asked to do, apart from what only it knows.

    Attributes:
        folder: Where files are written.
        mode: "train", "test", or "use" for a model without any data.
        training: How to train, or how the tested model was trained.
        data: Which images.
        devices: What computes.
        weights: The model file to use, or to start from.
        info: What this file says about itself.
        begun: The state of the run to go on with, as of `weights.read_run`.
        debug: Whether to write TensorBoard's logs.
        show_batch: Whether to draw what the network will see.
        given: Names of the options that were said, or are those of the run.
    """

    folder: RunFolder
    mode: str = "train"
    training: Training = Training()
    data: Data = Data()
    devices: Devices = ONE_DEVICE
    weights: str | None = None
    info: dict = dataclasses.field(default_factory=dict)
    begun: dict | None = None
    debug: bool = False
    show_batch: bool = False
    given: frozenset[str] = frozenset()

    def to_json(self) -> dict:
        """What makes up a run, to be compared when it goes on."""
        return {
            "training": dataclasses.asdict(self.training),
            "data": dataclasses.asdict(self.data),
            "weights": self.weights,
        }

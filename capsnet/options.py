"""What a run is asked to do, in values that check themselves and never change."""

import argparse
import dataclasses
import math
from typing import Any

from capsnet.architecture import PAPER, Architecture
from capsnet.errors import UsageError
from capsnet.run_folder import RunFolder

LONGEST_TEXT = 4096
LARGEST = 1e300  # an integer of JSON may be too large for a float
PRECISIONS = ("float32", "mixed_bfloat16")
RECIPE_NAMES = ("seed", "modern", "paper", "pictures")
NETWORKS = ("capsnet", "baseline", "cnn")


@dataclasses.dataclass(frozen=True)
class Integer:
    """Whole numbers in a range: a type of argparse, and a check of values."""

    least: int = 0
    most: int = 2**31 - 1

    @property
    def expected(self) -> str:
        return f"{self.least} to {self.most}"

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.least <= value <= self.most

    def __call__(self, text: str) -> int:
        return _parse(self, int, text)


@dataclasses.dataclass(frozen=True)
class Number:
    """Finite numbers in a range: a type of argparse, and a check of values."""

    least: float = 0
    below: float = math.inf

    @property
    def expected(self) -> str:
        return f"at least {self.least} and less than {self.below}"

    def accepts(self, value: Any) -> bool:
        is_number = type(value) in (int, float)
        return is_number and self.least <= value < min(self.below, LARGEST)

    def __call__(self, text: str) -> float:
        return _parse(self, float, text)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some words."""

    choices: tuple[str, ...]

    @property
    def expected(self) -> str:
        return " or ".join(self.choices)

    def accepts(self, value: Any) -> bool:
        return value in self.choices


class Text:
    """A name or a path."""

    expected = f"a text of at most {LONGEST_TEXT} characters"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT


class Switch:
    """True or false."""

    expected = "true or false"

    def accepts(self, value: Any) -> bool:
        return type(value) is bool


class Sizes:
    """Height and width."""

    expected = "two numbers of pixels"
    each = Integer(1, 10000)

    def accepts(self, value: Any) -> bool:
        two = isinstance(value, tuple) and len(value) == 2
        return two and all(map(self.each.accepts, value))


def _parse(kind: Integer | Number, number: type, text: str) -> int | float:
    try:
        value = number(text)
    except ValueError:
        name = "a whole number" if number is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {name}, received {text}") from None
    if not kind.accepts(value):
        raise argparse.ArgumentTypeError(f"expected {kind.expected}, received {text}")
    return value


def option(default: Any, kind: Any, optional: bool = False) -> Any:
    """A field with a check.

    Args:
        default: Its value if nothing is said.
        kind: One of the kinds above.
        optional: Whether it may be None.
    """
    metadata = {"kind": kind, "optional": optional}
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
    def kind_of(cls, name: str) -> Any:
        """The check of a field, which is its type on the command line, too."""
        (field,) = (f for f in dataclasses.fields(cls) if f.name == name)
        return field.metadata["kind"]


@dataclasses.dataclass(frozen=True)
class Training(Checked):
    """How a network is trained; a recipe is one of these.

    Attributes:
        recipe: Name of the recipe that the other numbers are of, if nothing else says.
        network: What is trained.
        architecture: Of a CapsNet.
        routings: Rounds of dynamic routing.
        epochs: Passes over the training images.
        batch_size: Images in a step, of all devices together.
        drop_remainder: Whether images left over at the end of an epoch are not used.
        lr: Largest learning rate of Adam.
        lr_decay: Factor of the learning rate; None for half a cosine from `lr` to zero
            at the last step.
        decay_steps: Steps in which it falls by that factor, continuously; None for an
            epoch, in steps.
        warmup: First steps, in which the rate grows linearly.
        ema: Factor of the moving average of the weights; 0 for none.
        lam_recon: Weight of the reconstruction's mean squared error; None for
            `pixel_weight` times the number of pixels and channels.
        pixel_weight: Weight of the squared error of a pixel.
        shift_fraction: Largest shift as a part of the side; in whole pixels, unless
            images are turned, zoomed or sheared as well.
        rotation, zoom, shear, flip: Those of `augmentation.Affine`.
        normalize: Whether the network sees images less the mean colour of the training
            set, over the standard deviation of all of its pixels.
        balance: Whether every class is seen as often, whatever its number of images.
        train_size: Images to train on, the first ones; None for all.
        validation_size: Images held out, the last ones.
        stop_at: Accuracy on these at which the training ends; None for all epochs.
        patience: Epochs without a better accuracy on these, after which it ends; None
            for all epochs.
        seed: Of all that chance decides.
        precision: A dtype policy of Keras.
    """

    recipe: str = option("seed", Choice(RECIPE_NAMES))
    network: str = option("capsnet", Choice(NETWORKS))
    architecture: Architecture = PAPER
    routings: int = option(3, Integer(1, 100))
    epochs: int = option(50, Integer(1))
    batch_size: int = option(100, Integer(1))
    drop_remainder: bool = option(False, Switch())
    lr: float = option(0.001, Number())
    lr_decay: float | None = option(0.9, Number(), optional=True)
    decay_steps: int | None = option(None, Integer(1), optional=True)
    warmup: int = option(0, Integer())
    ema: float = option(0.0, Number(0, 1))
    lam_recon: float | None = option(None, Number(), optional=True)
    pixel_weight: float = option(0.0005, Number())
    shift_fraction: float = option(0.1, Number(0, 1))
    rotation: float = option(0.0, Number(0, 360))
    zoom: float = option(0.0, Number(0, 1))
    shear: float = option(0.0, Number(0, 1))
    flip: bool = option(False, Switch())
    normalize: bool = option(False, Switch())
    balance: bool = option(False, Switch())
    train_size: int | None = option(None, Integer(1), optional=True)
    validation_size: int = option(0, Integer())
    stop_at: float | None = option(None, Number(0, 1), optional=True)
    patience: int | None = option(None, Integer(1), optional=True)
    seed: int = option(0, Integer())
    precision: str = option("float32", Choice(PRECISIONS))

    def reconstruction_weight(self, input_shape: tuple[int, int, int]) -> float:
        """The weight of the mean squared error for images of this shape."""
        if self.lam_recon is not None:
            return self.lam_recon
        return self.pixel_weight * math.prod(input_shape)


@dataclasses.dataclass(frozen=True)
class Data(Checked):
    """Which images; the arguments of `datasets.load_dataset`."""

    dataset: str = option("mnist", Text())
    data_dir: str | None = option(None, Text(), optional=True)
    image_size: tuple[int, int] | None = option(None, Sizes(), optional=True)
    grayscale: bool = option(False, Switch())
    test_fraction: float = option(0.2, Number(0, 1))
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
    given: frozenset[str] = frozenset()

    def to_json(self) -> dict:
        """What makes up a run, to be compared when it goes on."""
        training = dataclasses.asdict(self.training)
        del training["architecture"]  # the recipe's
        return {
            "training": training,
            "data": dataclasses.asdict(self.data),
            "weights": self.weights,
        }

"""Trains and tests the paper's baseline, a convolutional network of 35.4 M weights.

    python -m experiments.baseline --epochs 1 --train_size 2000   # to see how it works
    python -m experiments.baseline                                # 50 epochs
    python -m experiments.baseline -t                             # test it

Data, augmentation, optimizer, log and --resume are those of capsulenet.py. It has
nearly ten times the multiplications of a CapsNet, if both convolve directly.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import os
import random
import sys

import keras
from keras import layers

from capsnet import command_line, datasets, flags, session, training
from capsnet.batches import ShiftedBatches
from capsnet.convolution import FastConv2D
from capsnet.errors import UsageError
from capsnet.flags import Parser
from capsnet.options import Options
from capsnet.task import Task, accuracy
from capsnet.weights import load_weights


def Baseline(  # noqa: N802, as CapsNet
    input_shape: tuple[int, int, int],
    n_class: int,
    pooled: bool = False,
    width: int = 328,
) -> keras.Model:
    """Builds the baseline of section 5 of the paper.

    Three 5x5 convolutions of stride 1 with 256, 256 and 128 channels, two fully
    connected layers of 328 and 192, dropout, softmax. Nothing is pooled.

    Args:
        input_shape: Height, width and channels of the images.
        n_class: Number of classes.
        pooled: Whether each of the first two convolutions is followed by pooling.
        width: Outputs of the first fully connected layer.

    Returns:
        A model: images -> probabilities of the classes, shape (batch, n_class).
    """
    last = {"data_format": "channels_last"}  # whatever keras.json says
    same = {"kernel_size": 5, "padding": "same", "activation": "relu", **last}
    return keras.Sequential(
        [
            keras.Input(input_shape, name="image"),
            FastConv2D(256, name="conv1", **same),
            *([layers.MaxPooling2D(**last)] if pooled else []),
            FastConv2D(256, name="conv2", **same),
            *([layers.MaxPooling2D(**last)] if pooled else []),
            FastConv2D(128, name="conv3", **same),
            layers.Flatten(**last),
            layers.Dense(width, activation="relu", name="dense1"),
            layers.Dense(192, activation="relu", name="dense2"),
            # Without a seed, PyTorch draws from a state that no file keeps.
            layers.Dropout(0.5, seed=random.randint(1, 10**9)),
            layers.Dense(n_class, name="dense3"),
            layers.Activation("softmax", dtype="float32"),
        ],
        name="baseline",
    )


class Batches(ShiftedBatches):
    """The batches of CapsNet, without what a decoder has to reconstruct."""

    def __getitem__(self, index: int):
        (x, y), _ = super().__getitem__(index)
        return x, y


# What its run says of capsules.
WITHOUT_CAPSULES = {"network": "baseline", "routings": 1, "lam_recon": 0.0}
WITHOUT_CAPSULES["normalize"] = False
TASK = Task(
    losses={"loss": keras.losses.categorical_crossentropy},
    loss_weights=(1.0,),
    metrics={"accuracy": accuracy},
    batches=Batches,
    arrange=lambda x, y: ([x], [y]),
)


def train(model: keras.Model, data: datasets.Dataset, options: Options) -> None:
    """Trains a model of class probabilities as `capsulenet.train` trains a CapsNet."""
    info = session.model_info(model, data, options)
    training.train(model, data, TASK, info, options)


def build_parser() -> Parser:
    """The command line."""
    folder = os.path.join("result", "baseline")
    parser = Parser(__doc__, folder, training=WITHOUT_CAPSULES)
    flags.add_modes(parser)
    flags.add_training_flags(parser)
    flags.add_data_flags(parser)
    return parser


def run(options: Options, own: argparse.Namespace) -> None:
    """Does what the command line says."""
    session.prepare_backend(options.training)
    data, options = session.load_data(options)
    if data.multi_label:
        raise UsageError(
            f"{data.name}: expected one class an image, as the baseline ends in a "
            "softmax, received images of several"
        )
    x, y = data.test
    model = Baseline(x.shape[1:], y.shape[1])
    if options.weights is not None and options.begun is None:
        load_weights(model, options.weights)
    with session.begin("baseline CNN", model, data, options):
        if options.mode == "train":
            train(model, data, options)
        batch_size = options.training.batch_size
        result, _ = TASK.evaluate(model, [x], [y], batch_size, options.devices)
        print(f"Test error: {100 * (1 - result['accuracy']):.2f} %")


if __name__ == "__main__":
    sys.exit(command_line.main(None, build_parser, run))

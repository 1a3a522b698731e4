"""Trains, tests and looks into a capsule network with dynamic routing.

    python capsulenet.py                                  # train on MNIST, 50 epochs
    python capsulenet.py --epochs 1 --save_dir result/first_look   # in minutes
    python capsulenet.py -t -w result/trained_model.h5    # test, draw reconstructions
    python capsulenet.py -t --digit 5 -w result/trained_model.h5   # + latent code of 5

Reference:
    - S. Sabour, N. Frosst, G. E. Hinton, "Dynamic Routing Between Capsules",
      NIPS 2017, https://arxiv.org/abs/1710.09829
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import dataclasses
import functools
import sys

import keras
import numpy as np
from keras import layers, ops

import utils
from capsnet import command_line, datasets, flags, report, session, training, uses
from capsnet.architecture import PAPER, Architecture
from capsnet.batches import ShiftedBatches
from capsnet.classify import check_features, save_features
from capsnet.errors import UsageError, check_labels, check_sizes
from capsnet.flags import Parser
from capsnet.options import Options
from capsnet.predict import predict
from capsnet.run_folder import draw
from capsnet.task import THRESHOLD, Task, accuracy, exact_match
from capsnet.weights import load_weights
from capsulelayers import PACKAGE, CapsuleLayer, Length, Mask, PrimaryCap

RESULTS = (*report.FILES, "manipulate-*.png")  # that follow a training


def CapsNet(
    input_shape: tuple[int, int, int],
    n_class: int,
    routings: int = 3,
    *,
    objects: int = 1,
    multi_label: bool = False,
    normalization: dict | None = None,
    architecture: Architecture = PAPER,
    **sizes,
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Builds the capsule network of the paper's figures 1 and 2.

    The three models share their layers, so that training one trains all. Another
    network is a keyword away: `CapsNet((32, 32, 3), 10, primary_types=8)`.

    Args:
        input_shape: Height, width and channels of the images.
        n_class: Number of classes.
        routings: Rounds of dynamic routing.
        objects: Number of objects of different classes in an image, each of which is
            reconstructed alone.
        multi_label: Whether the label may be multi-hot: the decoder draws an image from
            all capsules of its classes at once.
        normalization: Mean and variance of each channel, to normalize images by; the
            reconstructions stay in [0, 1].
        architecture: Sizes and initial values of the layers.
        sizes: Attributes of `Architecture`, in place of those of `architecture`.

    Returns:
        train_model: [images, labels] -> [class lengths, reconstructions of the
            labelled capsule]. For several objects, as many one-hot labels follow the
            images, and the reconstructions have an axis more, the second one.
        eval_model: images -> [class lengths, reconstructions of the longest capsule].
        manipulate_model: [images, labels, (batch, n_class, 16) to add to the
            class capsules] -> reconstructions of the labelled capsule.
        Without a decoder, both other models are images -> class lengths, and the last
        one is None.

    Raises:
        UsageError: If the images are too small for the convolutions.
        ValueError: If a size is none.
    """
    check_sizes(n_class=n_class, routings=routings, objects=objects)
    sizes = dataclasses.replace(architecture, **sizes)
    if min(input_shape[:2]) < sizes.least_side:
        raise UsageError(
            f"expected images of at least {sizes.least_side} x {sizes.least_side} "
            f"pixels, for the network's kernels, received {input_shape[0]} x "
            f"{input_shape[1]}; --image_size 32 32 would enlarge them"
        )
    x = keras.Input(input_shape, name="image")
    names = ["label"] if objects == 1 else [f"label_{i + 1}" for i in range(objects)]
    y, *more = [keras.Input((n_class,), name=name) for name in names]

    kernel = sizes.kernel_initializer
    features = x
    if normalization is not None:
        features = layers.Normalization(**normalization, name="normalization")(x)
    # In the paper, conv1: 256 feature maps; primary capsules: 32 types of 8-D capsules
    for i, convolution in enumerate(sizes.convolutions, start=1):
        features = layers.Conv2D(
            *convolution,
            sizes.padding,
            activation="relu",
            data_format="channels_last",
            name=f"conv{i}",
            kernel_initializer=kernel,
        )(features)
    primary = PrimaryCap(
        sizes.primary_dim,
        sizes.primary_types,
        kernel_size=sizes.primary_kernel_size,
        strides=sizes.strides,
        name="primarycaps",
        kernel_initializer=kernel,
    )(features)
    # class capsules: (batch, n_class, 16)
    normal = keras.initializers.RandomNormal(stddev=sizes.transformation_stddev)
    digits = CapsuleLayer(
        n_class, sizes.class_dim, routings, kernel_initializer=normal, name="digitcaps"
    )(primary)
    lengths = Length(name="capsnet")(digits)
    decoder = sizes.decoder
    if decoder is None:
        model = keras.Model(x, lengths)
        return model, model, None
    if isinstance(decoder, (tuple, list)):
        dense = functools.partial(layers.Dense, kernel_initializer=kernel)
        hidden = [
            dense(n, activation="relu", name=f"decoder_{i}")
            for i, n in enumerate(decoder, start=1)
        ]
        pixels = int(np.prod(input_shape))
        out = dense(pixels, activation="sigmoid", name="decoder_out")
        capsules = keras.Input((n_class * sizes.class_dim,))
        image = layers.Reshape(input_shape, dtype="float32")
        decoder = keras.Sequential([capsules, *hidden, out, image], name="decoder")
    mask = Mask(THRESHOLD if multi_label else None, name="mask")
    # the shared decoder draws each object alone, from its own capsule
    drawn = [decoder(mask([digits, label])) for label in (y, *more)]
    if more:
        drawn = [ops.stack(drawn, axis=1)]
    train_model = keras.Model([x, y, *more], [lengths, *drawn])
    eval_model = keras.Model(x, [lengths, decoder(mask(digits))])

    noise = keras.Input((n_class, sizes.class_dim), name="noise")
    changed = layers.Add(name="add_noise")([digits, noise])
    manipulate_model = keras.Model([x, y, noise], decoder(mask([changed, y])))
    return train_model, eval_model, manipulate_model


@keras.saving.register_keras_serializable(PACKAGE)
def margin_loss(y_true, y_pred):
    """The margin loss of each sample (equation 4 of the paper), summed over classes.

    `T max(0, 0.9 - ||v||)^2 + 0.5 (1 - T) max(0, ||v|| - 0.1)^2`

    Args:
        y_true: Labels, 1 for each class that is present and 0 elsewhere; none or
            several may be, shape (batch, n_class).
        y_pred: Lengths of the class capsules, the same shape.

    Returns:
        A tensor of shape (batch,).

    Raises:
        ValueError: If the labels have another shape than the lengths. To integers,
            `keras.utils.to_categorical` gives it.
    """
    y_true = ops.cast(y_true, y_pred.dtype)
    check_labels(y_true.shape, y_pred.shape, "lengths")
    # Where a graph does not know a size, this finds what broadcasting would hide.
    y_true = ops.reshape(y_true, ops.shape(y_pred))
    present = ops.square(ops.maximum(0.0, 0.9 - y_pred))
    absent = ops.square(ops.maximum(0.0, y_pred - 0.1))
    return ops.sum(y_true * present + 0.5 * (1 - y_true) * absent, axis=-1)


def task(
    lam_recon: float,
    batches: type[ShiftedBatches] = ShiftedBatches,
    multi_label: bool = False,
) -> Task:
    """What a train model of `CapsNet` is trained for.

    The loss is the margin loss plus the weighted squared error of the reconstruction.

    Args:
        lam_recon: Weight of the reconstruction's mean squared error.
        batches: The class of its batches.
        multi_label: Whether an image may be of any number of classes.
    """
    return Task(
        losses={
            "margin_loss": margin_loss,
            "reconstruction_loss": keras.losses.mean_squared_error,
        },
        loss_weights=(1.0, lam_recon),
        metrics={"accuracy": exact_match if multi_label else accuracy},
        batches=batches,
        arrange=lambda x, y: ([x, y], [y, x]),
    )


def train(model: keras.Model, data: datasets.Dataset, options: Options) -> keras.Model:
    """Trains a network and writes its log and its weights to `options.folder`.

    Args:
        model: The train model of `CapsNet`.
        data: The test images are evaluated after each epoch for the log and used by
            nothing.
        options: How, and where to. `Options(RunFolder("result/mine"))` has the
            numbers of the older scripts.

    Returns:
        The model, with the last epoch's weights or, if images were held out, those of
        the epoch with the best accuracy on these.

    Raises: those of `training.fit`.
    """
    weight = options.training.reconstruction_weight(data.train[0].shape[1:])
    aim = task(weight, multi_label=data.multi_label)
    training.train(model, data, aim, session.model_info(model, data, options), options)
    return model


def test(model: keras.Model, data: datasets.Dataset, options: Options) -> float:
    """Prints how good a network is on the test images, and writes `report.FILES`.

    Args:
        model: The eval model of `CapsNet`, which does not see the labels.
        data: Of which the test images are taken.
        options: Batch size, weight of the reconstruction, and where to write.

    Returns:
        The accuracy; of several labels an image, the part that is named without fault.
    """
    x, y = data.test
    how = options.training.batch_size, options.devices
    weight = options.training.reconstruction_weight(x.shape[1:])
    aim = task(weight, multi_label=data.multi_label)
    result, lengths = aim.evaluate(model, [x], [y, x], *how)
    print(f"Test acc: {result['accuracy']:.4f}")
    print(f"Margin loss: {result['margin_loss']:.5f}")
    print(f"Reconstruction loss: {result['reconstruction_loss']:.5f}")
    report.write_report(
        data, lengths, lambda images: predict(model, [images], *how)[1], options.folder
    )
    return result["accuracy"]


def manipulate_latent(
    model: keras.Model, data: datasets.Dataset, label: int, options: Options
) -> None:
    """Draws what each dimension of a class capsule stands for (figure 4 of the paper).

    Each row of the picture changes one dimension of the capsule of a digit by -0.25 to
    0.25, in steps of 0.05.

    Args:
        model: The manipulate model of `CapsNet`.
        data: The image is drawn from its test images, with the seed.
        label: Index of the class.
        options: Seed, batch size, and where to write.
    """
    x, y = data.test
    index = np.random.default_rng(options.training.seed).choice(
        np.flatnonzero(y[:, label])
    )
    changes = np.arange(-5, 6) / 20
    dim_capsule = model.inputs[2].shape[2]
    noise = np.zeros((dim_capsule, len(changes), *model.inputs[2].shape[1:]), "float32")
    for dimension in range(dim_capsule):
        noise[dimension, :, :, dimension] = changes[:, None]
    noise = noise.reshape(-1, *noise.shape[2:])
    alone = np.eye(y.shape[1], dtype="float32")[label]
    repeated = [np.repeat(a[None], len(noise), axis=0) for a in (x[index], alone)]
    batch_size = options.training.batch_size
    (images,) = predict(model, [*repeated, noise], batch_size, options.devices)
    path = options.folder.file(f"manipulate-{label}.png")
    title = f"Capsule of class {data.class_names[label]}, one dimension changed at a "
    draw(path, utils.plot_manipulation, images, changes, f"{title}time")


def build_parser(doc: str = __doc__) -> Parser:
    """The command line, shared with `capsulenet_multi_gpu.py`.

    Args:
        doc: The script's docstring: what it does, and examples.
    """
    parser = Parser(doc, results=RESULTS)
    flags.add_capsnet_flags(parser)
    flags.add_data_flags(parser)
    return parser


def run(options: Options, own: argparse.Namespace) -> None:
    """Does what the command line says, under the distribution that is current."""
    session.prepare_backend(options.training)
    if options.mode == "use":
        uses.use_model(CapsNet, options, own)
    else:
        train_or_test(options, own.digit, own.features)


def load_models(
    data: datasets.Dataset, options: Options
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Builds `CapsNet` for the data, with the weights of `-w`, if there are any.

    A training starts from those of them that fit.
    """
    x, y = data.test
    training = options.training
    models = CapsNet(
        x.shape[1:],
        y.shape[1],
        training.routings,
        multi_label=data.multi_label,
        architecture=training.sizes,
        normalization=session.normalization(data, options),
    )
    if options.begun is not None:
        session.freeze(models[0], options.info.get("frozen", []))
    elif options.weights is not None and options.mode == "train":
        session.start_from(options.weights, models[0], training.freeze)
    elif options.weights is not None:
        load_weights(models[0], options.weights)
    return models


def train_or_test(options: Options, digit: str | None, features: str | None) -> None:
    """Loads the data and trains, if asked for; tests and draws pictures.

    Args:
        options: Of the run.
        digit: Name or index of the class whose latent code is manipulated.
        features: Where the class capsules of all images are written, if anywhere.
    """
    if features:
        check_features(features)
    # Else the names come with the data.
    if digit is not None and options.data.dataset in datasets.NAMED:
        session.find_class(digit, datasets.NAMED[options.data.dataset])
    data, options = session.load_data(options)
    label = session.find_digit(digit, data)
    train_model, eval_model, manipulate_model = load_models(data, options)
    name = session.network_name(options.training)
    with session.begin(name, train_model, data, options):
        if options.mode == "train":
            train(train_model, data, options)
        test(eval_model, data, options)
        if features:
            save_features(eval_model, data, features, options)
        manipulate_latent(manipulate_model, data, label, options)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command_line.main(argv, build_parser, run)


if __name__ == "__main__":
    sys.exit(main())

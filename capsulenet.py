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
import os
import sys

import keras
import numpy as np
from keras import layers, ops

import utils
from capsnet import command_line, datasets, photos, run_folder, training
from capsnet.backend import runs_on_cpu
from capsnet.batches import ShiftedBatches
from capsnet.command_line import UsageError
from capsnet.errors import one_line
from capsnet.pictures import fit_image, read_image
from capsnet.recipes import RECIPES
from capsnet.startup import quiet_start
from capsnet.training import predict
from capsnet.weights import ModelFileError, export_model, load_weights
from capsulelayers import PACKAGE, CapsuleLayer, Length, Mask, PrimaryCap

MAX_ROWS = 20  # of predictions.png

# What is known of a weights file that says nothing about itself.
MNIST_INFO = {
    "input_shape": [28, 28, 1],
    "class_names": datasets.NAMED["mnist"],
    "dataset": "mnist",
    "border_brightness": 0.0,
    "digit_box": 20,
}


PRETRAINED = os.path.join("result", "pretrained", "mnist_v4.h5")


def CapsNet(
    input_shape: tuple[int, int, int],
    n_class: int,
    routings: int = 3,
    *,
    transformation_stddev: float = 0.1,
    truncated_normal: bool = False,
    bias: float = 0.0,
    routing_bias: bool = False,
    primary_scale: float = 1.0,
    objects: int = 1,
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Builds the capsule network of the paper's figures 1 and 2.

    The three models share their layers, so that training one trains all.

    Args:
        input_shape: Height, width and channels of the images.
        n_class: Number of classes.
        routings: Rounds of dynamic routing.
        transformation_stddev: Standard deviation of the transformation matrices at the
            start.
        truncated_normal: Whether kernels start from truncated normal distributions as
            in the code that the paper's authors released, instead of Keras's defaults.
        bias: Of all layers at the start; 0.1 in the released code.
        routing_bias: Whether there is one inside the routing, as in the released code.
        primary_scale: Factor of the primary capsules' convolution; one over their 32
            types in the released code.
        objects: Number of objects of different classes in an image.

    Returns:
        train_model: [images, one-hot labels] -> [class lengths, reconstructions of the
            labelled capsule]. For several objects, as many one-hot labels follow the
            images, and the reconstructions have an axis more, the second one.
        eval_model: images -> [class lengths, reconstructions of the longest capsule].
        manipulate_model: [images, one-hot labels, (batch, n_class, 16) to add to the
            class capsules] -> reconstructions of the labelled capsule.

    Raises:
        UsageError: If the images are too small for the two 9x9 convolutions.
    """
    if min(input_shape[:2]) < 17:
        raise UsageError(
            "expected images of at least 17 x 17 pixels, for the two 9x9 convolutions, "
            f"received {input_shape[0]} x {input_shape[1]}; --image_size 32 32 would "
            "enlarge them"
        )
    x = keras.Input(input_shape, name="image")
    names = ["label"] if objects == 1 else [f"label_{i + 1}" for i in range(objects)]
    y, *more = [keras.Input((n_class,), name=name) for name in names]

    def start(stddev: float = 0.1) -> dict:
        # New objects for each layer: one object would give all the same numbers.
        kernel = {}
        if truncated_normal:
            normal = keras.initializers.TruncatedNormal(stddev=stddev)
            kernel["kernel_initializer"] = normal
        return {**kernel, "bias_initializer": keras.initializers.Constant(bias)}

    # conv1: 256 feature maps; primary capsules: 32 types of 8-D capsules
    features = layers.Conv2D(
        256,
        9,
        activation="relu",
        data_format="channels_last",
        name="conv1",
        **start(0.05),
    )(x)
    primary = PrimaryCap(
        8,
        32,
        kernel_size=9,
        strides=2,
        scale=primary_scale,
        name="primarycaps",
        **start(),
    )(features)
    # class capsules: (batch, n_class, 16)
    transformations = keras.initializers.RandomNormal(stddev=transformation_stddev)
    digits = CapsuleLayer(
        n_class,
        16,
        routings,
        use_bias=routing_bias,
        name="digitcaps",
        **{"kernel_initializer": transformations, **start()},
    )(primary)
    lengths = Length(name="capsnet")(digits)

    pixels = int(np.prod(input_shape))
    decoder = keras.Sequential(
        [
            keras.Input((n_class * 16,)),
            layers.Dense(512, activation="relu", **start()),
            layers.Dense(1024, activation="relu", **start()),
            layers.Dense(pixels, activation="sigmoid", **start()),
            layers.Reshape(input_shape, dtype="float32"),
        ],
        name="decoder",
    )
    mask = Mask(name="mask")
    # the shared decoder draws each object alone, from its own capsule
    drawn = [decoder(mask([digits, label])) for label in (y, *more)]
    if more:
        alone = layers.Reshape((1, *input_shape), dtype="float32")
        stack = layers.Concatenate(axis=1, name="decoded", dtype="float32")
        drawn = [stack([alone(image) for image in drawn])]
    train_model = keras.Model([x, y, *more], [lengths, *drawn])
    eval_model = keras.Model(x, [lengths, decoder(mask(digits))])

    noise = keras.Input((n_class, 16), name="noise")
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
    expected, received = tuple(y_pred.shape), tuple(y_true.shape)
    if len(received) != len(expected) or any(
        m != n and None not in (m, n) for m, n in zip(expected, received)
    ):
        raise ValueError(
            "Expected one-hot labels of the same shape as the lengths, "
            f"(batch, n_class) = {expected}; received labels of shape {received}."
        )
    # Where a graph does not know a size, this finds what broadcasting would hide.
    y_true = ops.reshape(y_true, ops.shape(y_pred))
    present = ops.square(ops.maximum(0.0, 0.9 - y_pred))
    absent = ops.square(ops.maximum(0.0, y_pred - 0.1))
    return ops.sum(y_true * present + 0.5 * (1 - y_true) * absent, axis=-1)


def task(
    lam_recon: float, batches: type[ShiftedBatches] = ShiftedBatches
) -> training.Task:
    """What a train model of `CapsNet` is trained for.

    The loss is the margin loss plus the weighted squared error of the reconstruction.

    Args:
        lam_recon: Weight of the reconstruction's mean squared error.
        batches: The class of its batches.
    """
    return training.Task(
        losses={
            "margin_loss": margin_loss,
            "reconstruction_loss": keras.losses.mean_squared_error,
        },
        loss_weights=(1.0, lam_recon),
        metrics={"accuracy": training.accuracy},
        batches=batches,
        arrange=lambda x, y: ([x, y], [y, x]),
    )


def train(
    model: keras.Model,
    data: datasets.Dataset,
    args: argparse.Namespace,
    stop_at: float | None = None,
) -> keras.Model:
    """Trains a network and writes its log and its weights to `args.save_dir`.

    Args:
        model: The train model of `CapsNet`.
        data: A `datasets.Dataset`. The test images are evaluated after each epoch for
            the log and used by nothing.
        args: The parsed command line.
        stop_at: Accuracy on the validation images at which the training ends.

    Returns:
        The model, with the last epoch's weights or, with `args.validation_size`, those
        of the epoch with the best validation accuracy.

    Raises: those of `training.fit`.
    """
    info = model_info(data, args)
    training.train(model, data, task(args.lam_recon), info, args, stop_at)
    return model


def model_info(data: datasets.Dataset, args: argparse.Namespace) -> dict:
    """What a model file says about itself."""
    x, _ = data.train
    return {
        "input_shape": list(x.shape[1:]),
        "class_names": data.class_names,
        "routings": args.routings,
        "recipe": args.recipe,
        "scaling": "0 is black, 1 is white",
        "dataset": data.name,
        "split": data.split,
        "image_size": args.image_size,
        "grayscale": args.grayscale,
        "border_brightness": round(photos.border_brightness(x), 4),
        "digit_box": photos.digit_box(x),
        "seed": args.seed,
    }


def test(model: keras.Model, data: datasets.Dataset, args: argparse.Namespace) -> float:
    """Prints the test accuracy and draws `real_and_recon.png`.

    Args:
        model: The eval model of `CapsNet`, which does not see the labels.
        data: A `datasets.Dataset`, of which the test images are taken.
        args: The parsed command line.

    Returns:
        The accuracy.
    """
    x, y = data.test
    lengths, reconstructions = predict(model, [x], args)
    result = task(args.lam_recon).evaluate([lengths, reconstructions], [y, x])
    truth = y.argmax(axis=1)
    right = lengths.argmax(axis=1) == truth
    print(f"Test acc: {result['accuracy']:.4f}")
    print(
        f"Test error: {100 * (1 - right.mean()):.2f} % ({(~right).sum()} of {len(y)})"
    )
    print(f"Margin loss: {result['margin_loss']:.5f}")
    print(f"Reconstruction loss: {result['reconstruction_loss']:.5f}")
    for label, name in enumerate(data.class_names):
        of_class = right[truth == label]
        if len(of_class):
            print(f"Accuracy of class {name}: {of_class.mean():.4f} ({len(of_class)})")
    path = os.path.join(args.save_dir, "real_and_recon.png")
    with run_folder.replace_file(path) as temporary:
        utils.plot_reconstructions(x[:50], reconstructions[:50], temporary)
    print("Wrote", path)
    return result["accuracy"]


def manipulate_latent(
    model: keras.Model, data: datasets.Dataset, args: argparse.Namespace
) -> None:
    """Draws what each dimension of a class capsule stands for (figure 4 of the paper).

    Each row of the picture changes one dimension of the capsule of a digit by -0.25 to
    0.25, in steps of 0.05.

    Args:
        model: The manipulate model of `CapsNet`.
        data: A `datasets.Dataset`; the image is drawn from its test images with
            `args.seed`.
        args: The parsed command line, with the index of the class in `args.digit`.
    """
    x, y = data.test
    index = np.flatnonzero(y.argmax(axis=1) == args.digit)
    index = np.random.default_rng(args.seed).choice(index)
    changes = np.arange(-5, 6) / 20
    dim_capsule = model.inputs[2].shape[2]
    noise = np.zeros((dim_capsule, len(changes), *model.inputs[2].shape[1:]), "float32")
    for dimension in range(dim_capsule):
        noise[dimension, :, :, dimension] = changes[:, None]
    noise = noise.reshape(-1, *noise.shape[2:])
    repeated = [np.repeat(a[index : index + 1], len(noise), axis=0) for a in (x, y)]
    (images,) = predict(model, [*repeated, noise], args)
    path = os.path.join(args.save_dir, f"manipulate-{args.digit}.png")
    with run_folder.replace_file(path) as temporary:
        name = data.class_names[args.digit]
        title = f"Capsule of class {name}, one dimension changed at a time"
        utils.plot_manipulation(images, changes, title, temporary)
    print("Wrote", path)


def build_parser(doc: str = __doc__) -> argparse.ArgumentParser:
    """The command line, shared with `capsulenet_multi_gpu.py`.

    Args:
        doc: The script's docstring: what it does, and examples.
    """
    parser = command_line.new_parser(doc)
    group, modes = command_line.add_modes(parser)
    modes.add_argument(
        "--predict",
        nargs="+",
        metavar="IMG",
        help="print the class of each picture (PNG, JPEG, BMP, GIF, WebP, TIFF) and "
        "draw predictions.png; needs nothing but the model",
    )
    modes.add_argument(
        "--export",
        metavar="DIR",
        help="write the model as a TensorFlow SavedModel",
    )
    group.add_argument(
        "-w",
        "--weights",
        metavar="FILE",
        help="weights to use, or to start training from: .h5 (also of Keras 2), "
        ".weights.h5 or .keras (default of -t, --predict and --export: "
        "trained_model.h5 in --save_dir)",
    )
    group.add_argument(
        "--digit",
        metavar="CLASS",
        help="index or name of the class whose latent code is manipulated "
        "(default: 5, or the last one of fewer)",
    )
    group.add_argument(
        "--invert",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether to exchange black and white in these pictures; auto compares a "
        "picture's border with the training set's",
    )

    command_line.add_network_flags(parser)
    command_line.add_training_flags(parser)
    command_line.add_data_flags(parser)
    pictures = ("real_and_recon.png", "manipulate-*.png")
    command_line.remember_run(parser, results=pictures)
    return parser


def build_study_parser(doc: str, save_dir: str) -> argparse.ArgumentParser:
    """The command line of a study of a trained model, to which it adds its own flags.

    Args:
        doc: The study's docstring: what it does, and examples.
        save_dir: Where it writes to.
    """
    parser = command_line.new_parser(doc)
    parser.set_defaults(**vars(build_parser().parse_args(["-t"])))
    parser.add_argument(
        "-w", "--weights", default=PRETRAINED, metavar="FILE", help="a trained model"
    )
    parser.add_argument(
        "--batch_size",
        type=command_line.integer(1),
        metavar="N",
        help="images that are computed at a time (default: 100)",
    )
    command_line.add_data_flags(parser, save_dir)
    return parser


def run(args: argparse.Namespace) -> None:
    """Does what the command line says, under the distribution that is current."""
    prepare_backend(args)
    if args.predict or args.export:
        use_model(args)
    else:
        train_or_test(args)


def prepare_backend(args: argparse.Namespace) -> None:
    """Starts the backend, with the seed and the precision of the arguments."""
    with quiet_start():
        runs_on_cpu()  # the first look for devices
        keras.utils.set_random_seed(args.seed)  # loads TensorFlow, if it is there
    keras.config.set_dtype_policy(args.precision)
    if args.batch_size is None:
        args.batch_size = RECIPES[args.recipe].batch_size


def load_data(args: argparse.Namespace) -> datasets.Dataset:
    """Loads the data that the arguments name, and checks that all fits together."""
    data = datasets.load_dataset(
        args.dataset,
        args.data_dir,
        args.image_size,
        args.grayscale,
        args.test_fraction,
        args.split_seed,
    )
    command_line.check_data(data, args)
    return data


def load_models(
    data: datasets.Dataset, args: argparse.Namespace
) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Builds `CapsNet` for the data, with the weights of `-w`, if there are any."""
    (_, _), (x, y) = data
    models = CapsNet(
        x.shape[1:], y.shape[1], args.routings, **RECIPES[args.recipe].network
    )
    if args.weights is not None and not args.resume:
        load_weights(models[0], args.weights)
    return models


def train_or_test(args: argparse.Namespace) -> None:
    """Loads the data and trains, if asked for; tests and draws pictures."""
    data = load_data(args)
    args.digit = command_line.find_class(args.digit, data.class_names)
    if not (data.test[1].argmax(axis=1) == args.digit).any():
        name = data.class_names[args.digit]
        raise UsageError(f"--digit: there is no test image of class {name}")
    train_model, eval_model, manipulate_model = load_models(data, args)
    name = f"CapsNet, routings {args.routings}"
    with command_line.begin(name, train_model, data, args):
        if not args.testing:
            train(train_model, data, args)
        test(eval_model, data, args)
        manipulate_latent(manipulate_model, data, args)


def use_model(args: argparse.Namespace) -> None:
    """Predicts the classes of pictures, or exports; needs the model file alone."""
    if args.export:
        check_export(args.export)
    info = {**MNIST_INFO, **args.info}
    height, width, channels = info["input_shape"]
    pictures = [read_image(path, channels) for path in args.predict or ()]
    names = info["class_names"]
    # Without this look, a small file that says to be of large images would make a large
    # network. Weights may be of 16 bits.
    least = 2 * command_line.least_weights((height, width, channels), len(names))
    if least > os.path.getsize(args.weights):
        raise ModelFileError(
            f"{args.weights}: expected the weights for images of {height} x {width} x "
            f"{channels} and {len(names)} classes, found a smaller file."
        )
    train_model, eval_model, _ = CapsNet(
        (height, width, channels),
        len(names),
        args.routings,
        **RECIPES[args.recipe].network,
    )
    load_weights(train_model, args.weights)
    source = one_line(info["dataset"])  # whatever the file says
    print(f"Model: {args.weights}, trained on {source}")
    if args.export:
        export_model(eval_model, args.export)
        print("Wrote", args.export)
        return
    os.makedirs(args.save_dir, exist_ok=True)
    print(command_line.describe_device(args))
    classify(eval_model, pictures, info, args)


def check_export(folder: str) -> None:
    """Finds what would keep a model from being exported to a folder.

    Raises:
        UsageError: If something does.
    """
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            "--export needs KERAS_BACKEND=tensorflow, "
            f"received KERAS_BACKEND={keras.backend.backend()}"
        )
    if os.path.lexists(folder) and not (
        os.path.isdir(folder) and not os.listdir(folder)
    ):
        raise UsageError(f"--export: expected a new or empty folder, received {folder}")


def classify(
    model: keras.Model, pictures: list, info: dict, args: argparse.Namespace
) -> None:
    """Prints the class of each picture and draws `predictions.png`.

    Args:
        model: The eval model of `CapsNet`.
        pictures: Arrays of `read_image`, of any sizes.
        info: What the model file says about itself.
        args: The parsed command line; `args.predict` are the names of the pictures.
    """
    prepared = [prepare_picture(picture, info, args.invert) for picture in pictures]
    inputs = np.stack([image for image, _ in prepared])
    lengths, reconstructions = predict(model, [inputs], args)
    names = info["class_names"]
    titles = []
    for path, (_, done), values in zip(args.predict, prepared, lengths):
        second, best = np.argsort(values, kind="stable")[-2:]
        titles.append((os.path.basename(path), f"{names[best]} ({values[best]:.2f})"))
        note = f"; {done}" if done else ""
        print(
            f"{path}: {names[best]}, length {values[best]:.3f}, "
            f"then {names[second]}, {values[second]:.3f}{note}"
        )
    path = os.path.join(args.save_dir, "predictions.png")
    columns = (pictures, inputs, reconstructions, lengths, titles)
    shown = [column[:MAX_ROWS] for column in columns]
    with run_folder.replace_file(path) as temporary:
        utils.plot_predictions(*shown, names, temporary)
    more = f", the first {MAX_ROWS} pictures" if len(pictures) > MAX_ROWS else ""
    print(f"Wrote {path}{more}")


def is_inverted(picture: np.ndarray, info: dict) -> bool:
    """Whether a grey picture has a light border where training images have a dark one.

    Or the other way round. Light and dark are meant within the picture's own range,
    since the paper of a photo is seldom white.
    """
    expected = info["border_brightness"]
    if picture.shape[-1] != 1 or 0.25 < expected < 0.75:
        return False
    low, high = np.percentile(picture, (1, 99))
    border = photos.border_brightness(picture[np.newaxis])
    return bool(high > low and (border - low > high - border) != (expected > 0.5))


def prepare_picture(picture: np.ndarray, info: dict, invert: str):
    """Makes of a picture what the network was trained on.

    If the model was trained on digits in MNIST's layout, the digit is cropped, scaled
    and centred in the same way.

    Args:
        picture: An array of `read_image`.
        info: What the model file says about itself.
        invert: "yes", "no" or "auto".

    Returns:
        The image for the network, and a few words on what was done.
    """
    height, width, channels = info["input_shape"]
    done = []
    if invert == "yes" or (invert == "auto" and is_inverted(picture, info)):
        picture = 1 - picture
        done.append("inverted")
    if picture.shape == (height, width, channels):
        return picture, ", ".join(done)
    if info["digit_box"]:
        done.append(f"digit fitted into {info['digit_box']} pixels and centred")
        image = photos.prepare_digit(picture, height, width, info["digit_box"])
    else:
        done.append(f"fitted into {height} x {width}")
        image = fit_image(picture, height, width)
    return image, ", ".join(done)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    return command_line.main(argv, build_parser, run)


if __name__ == "__main__":
    sys.exit(main())

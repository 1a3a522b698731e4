"""What every script does before its work: backend, data, checks, the header."""

import contextlib
import dataclasses
import importlib
import os
from pathlib import Path

import keras
import numpy as np

from capsnet import backend, datasets, photos
from capsnet.backend import runs_on_cpu
from capsnet.errors import UsageError, one_line, shorten
from capsnet.hdf5 import parts_of
from capsnet.memory import check_memory
from capsnet.options import ONE_DEVICE, Devices, Options, Training
from capsnet.recipes import pictures_batch, pictures_epochs
from capsnet.startup import quiet_start
from capsnet.weights import load_fitting


def prepare_backend(training: Training) -> None:
    """Starts the backend, with the seed and the precision of a training."""
    with quiet_start():
        runs_on_cpu()  # the first look for devices
        keras.utils.set_random_seed(training.seed)  # loads TensorFlow, if it is there
    keras.config.set_dtype_policy(training.precision)


def load_data(options: Options) -> tuple[datasets.Dataset, Options]:
    """Loads the data that the options name, and checks that all fits together.

    Returns:
        The data, and the options with what depends on the images: their size, and what
        their number settles.
    """
    if options.mode == "train" and options.data.image_size is not None:
        # before many pictures are enlarged: two classes in grey are the least
        check_step_memory(options.training, (*options.data.image_size, 1), 2, 1)
    data = datasets.load_dataset(*dataclasses.astuple(options.data))
    if data.paths is not None:
        check_save_dir(data, options)
        size = data.test[0].shape[1:3]  # that they were fitted into: for the model file
        with_size = dataclasses.replace(options.data, image_size=size)
        options = dataclasses.replace(options, data=with_size)
    if options.mode == "train":
        options = adapt(options, data)
    check_data(data, options)
    return data, options


def check_save_dir(data: datasets.Dataset, options: Options) -> None:
    """Makes sure that the folder of the run is not taken for a class the next time.

    Args:
        data: Of pictures in folders.
        options: Of the run.

    Raises:
        UsageError: If it is among the classes' folders, or in one of them.
    """
    source = Path(options.data.dataset)
    with_classes = (
        [source / "train", source / "test"] if data.split is None else [source]
    )
    written = Path(options.folder.path).resolve()
    for folder in with_classes:
        if folder.resolve() in written.parents:
            raise UsageError(
                f"--save_dir: expected a folder that is not in {folder}, whose folders "
                f"are the classes, received {options.folder.path}"
            )


def adapt(options: Options, data: datasets.Dataset) -> Options:
    """The options of a training with what its recipe leaves to the number of images.

    What was said stays.

    Args:
        options: Of a training.
        data: What is trained on.
    """
    training, count = options.training, options.devices.count
    if training.recipe != "pictures":
        return options
    (x, _), _ = datasets.split(
        *data.train, training.train_size, training.validation_size
    )
    n_images = len(x)
    if "batch_size" not in options.given:
        each = min(pictures_batch(n_images), max(1, n_images // count))
        training = dataclasses.replace(training, batch_size=each * count)
    if "epochs" not in options.given:
        epochs = pictures_epochs(n_images, training.batch_size)
        training = dataclasses.replace(training, epochs=epochs)
    return dataclasses.replace(options, training=training)


def normalization(data: datasets.Dataset, options: Options) -> dict | None:
    """What the network normalizes its images by; None for nothing.

    That of the model file, where there is one: its weights were trained with it.

    Raises:
        UsageError: If its images had other channels.
    """
    if not options.training.normalize:
        return None
    known = options.info.get("normalization")
    channels = data.test[0].shape[-1]
    if known and len(known["mean"]) != channels:
        raise UsageError(
            f"expected images of {len(known['mean'])} channels, as the weights were "
            f"trained with, received {channels}"
        )
    return known or photos.normalization_of(data.train[0])


def check_data(data: datasets.Dataset, options: Options) -> None:
    """Finds what does not fit between options, data and model file.

    Raises:
        UsageError, datasets.DataError: If something does not.
    """
    info = options.info
    if options.mode == "train":
        check_training_set(data, options)
        return
    trained = info.get("split") or {}
    # Files of earlier versions know the names alone.
    known = [key for key in ("digest", "contents") if key in trained]
    if data.split and any(trained[key] != data.split[key] for key in known):
        raise UsageError(
            f"{options.data.dataset}: expected the files of the training, of which a "
            "part was kept for the test, received others; put the test images into "
            "test/ beside train/"
        )
    counts = {None: None, False: ["one"], True: ["any number"]}
    labels = counts[info.get("multi_label")], counts[data.multi_label]
    for what, expected, received in (
        ("input_shape", info.get("input_shape"), list(data.test[0].shape[1:])),
        ("class_names", info.get("class_names"), data.class_names),
        ("labels of an image", *labels),
    ):
        if expected not in (None, received):
            raise UsageError(
                f"{what}: expected {shorten(expected)} of {options.weights}, "
                f"received {shorten(received)} of {options.data.dataset}"
            )


def check_training_set(data: datasets.Dataset, options: Options) -> None:
    """Finds what keeps a training from being what the options say.

    Raises:
        UsageError, datasets.DataError: If something does.
    """
    training, batch_size = options.training, options.training.batch_size
    (x, y), validation = datasets.split(
        *data.train, training.train_size, training.validation_size
    )
    datasets.check_classes(data, (x, y), validation)
    drops = training.drop_remainder
    if options.devices.count > 1 and not drops and len(x) % batch_size:
        raise UsageError(
            "--resume: expected one device, on which the run was begun and uses the "
            f"images left over at the end of an epoch, received {options.devices.count}"
        )
    if drops and batch_size > len(x):
        raise UsageError(
            f"--batch_size: expected at most {len(x)}, the number of training "
            f"images, received {batch_size}"
        )
    check_step_memory(training, x.shape[1:], y.shape[1], batch_size)


def check_step_memory(
    training: Training, input_shape: tuple, n_class: int, batch_size: int
) -> None:
    """Stops before a training step runs out of a CPU's memory.

    Raises:
        datasets.DataError: If it would.
    """
    if runs_on_cpu():
        needed = training.sizes.least_memory(
            input_shape, n_class, training.routings, batch_size
        )
        check_memory(needed, f"training with batches of {batch_size}")


def find_digit(digit: str | None, data: datasets.Dataset) -> int:
    """The index of the class whose latent code is manipulated.

    Args:
        digit: What was given; None for the class nearest to 5 that has a test image.
        data: Of which a test image is drawn.

    Raises:
        UsageError: If there is no such class, or no test image of it.
    """
    tested = np.flatnonzero(data.test[1].any(axis=0)).tolist()
    if not tested:
        raise UsageError("--digit: there is no test image of any class")
    if digit is None:
        return min(tested, key=lambda label: abs(label - 5))
    label = find_class(digit, data.class_names)
    if label not in tested:
        raise UsageError(
            f"--digit: there is no test image of class {data.class_names[label]}"
        )
    return label


def find_class(digit: str, class_names: list[str], flag: str = "--digit") -> int:
    """The index of a class that is given by name or index.

    Args:
        digit: What was given.
        class_names: A name for each class.
        flag: Where it was given.

    Raises:
        UsageError: If there is no such class.
    """
    if digit in class_names:
        return class_names.index(digit)
    if digit.isdecimal() and int(digit) < len(class_names):
        return int(digit)
    expected = f"0 to {len(class_names) - 1}"
    if class_names[0] != "0":
        expected += f" or one of {shorten(class_names)}"
    raise UsageError(f"{flag}: expected {expected}, received {digit}")


def start_from(path: str, model: keras.Model, freeze: bool) -> None:
    """Gives a network that is to be trained the weights of a file that fit it.

    Args:
        path: Name of the file.
        model: The network.
        freeze: Whether these stay as they are.

    Raises:
        ModelFileError: If the file cannot be read, or no layer fits.
        UsageError: If nothing is left to be trained.
    """
    kept, new = load_fitting(model, path)
    if freeze and not new:
        raise UsageError(
            f"--freeze: expected layers that {path} does not fit, for other classes or "
            "images, received none: nothing would be left to train"
        )
    names = [", ".join(layer.name for layer in part) for part in (kept, new)]
    does = "keeps, unchanged," if freeze else "starts with"
    print(f"{path}: {does} {names[0]}" + (f"; new: {names[1]}" if new else ""))
    if freeze:
        for layer in kept:
            layer.trainable = False


def frozen(model: keras.Model) -> list[str]:
    """The names of the layers whose weights are not trained."""
    parts = [part for layer in model.layers for part in parts_of(layer)]
    return [part.name for part in parts if not part.trainable]


def freeze(model: keras.Model, names: list[str]) -> None:
    """Leaves the layers of these names as they are."""
    for layer in model.layers:
        for part in parts_of(layer):
            part.trainable = part.name not in names


def model_info(model: keras.Model, data: datasets.Dataset, options: Options) -> dict:
    """What a model file says about itself."""
    x, _ = data.train
    normalization = None
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            normalization = {"mean": layer.input_mean, "variance": layer.input_variance}
    size = options.data.image_size
    is_capsnet = options.training.network == "capsnet"
    return {
        "input_shape": list(x.shape[1:]),
        "class_names": data.class_names,
        "multi_label": data.multi_label,
        "routings": options.training.routings,
        "recipe": options.training.recipe,
        **({"architecture": options.training.architecture} if is_capsnet else {}),
        "scaling": "0 is black, 1 is white",
        "dataset": data.name,
        "split": data.split,
        "image_size": size and list(size),
        "grayscale": options.data.grayscale,
        "normalization": normalization,
        "frozen": frozen(model),
        "border_brightness": round(photos.border_brightness(x), 4),
        "digit_box": photos.digit_box(x),
        "seed": options.training.seed,
    }


def network_name(training: Training) -> str:
    """What the header calls a CapsNet."""
    kind = "" if training.architecture == "paper" else f" ({training.architecture})"
    return f"CapsNet{kind}, routings {training.routings}"


@contextlib.contextmanager
def begin(name: str, model: keras.Model, data: datasets.Dataset, options: Options):
    """Makes the folder and prints the header; a training locks the folder.

    Args:
        name: Of the network.
        model: With all of its weights.
        data: The data that it is trained or tested on.
        options: Of the run.

    Raises:
        UsageError, OSError: If another run is at work in the folder, or was.
    """
    folder = options.folder
    os.makedirs(folder.path, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if options.mode == "train":
            stack.enter_context(folder.locked())
            if options.begun is None:
                folder.check_is_free()  # again, now that no other run can begin in it
        print(describe_run(name, model, data, options))
        yield


def describe_run(
    name: str, model: keras.Model, data: datasets.Dataset, options: Options
) -> str:
    """The header: what will run, and on what."""
    (x_train, _), (x_test, _) = data
    training = options.training
    task, used = "Training", ""
    if options.mode == "test":
        task = f"Testing {options.weights}"
    else:
        size = len(x_train) - training.validation_size
        size = min(size, training.train_size or size)
        used = f"{size} of {len(x_train)} training images, "
    if options.folder.finished:
        task = f"Going on after epoch {options.folder.finished} of {training.epochs}"
    sides = " x ".join(map(str, x_test.shape[1:]))
    source = f" from {options.data.data_dir}" if options.data.data_dir else ""
    weights = f"{model.count_params() / 1e6:.1f} M weights"
    lines = [
        f"{task}: {name}, {weights}, {training.precision}",
        f"Data: {one_line(data.name)}{source}, {used}{len(x_test)} test images, "
        f"{sides}, {len(data.class_names)} classes",
        *([describe_training(training)] if used else []),
        describe_device(options.devices),
    ]
    return "\n".join(lines)


def describe_training(training: Training) -> str:
    """The header's line about how it is trained: what was said, and what was not."""
    t = training
    falls = "a cosine to zero" if t.lr_decay is None else f"{t.lr_decay:g} an epoch"
    warmup = f", {t.warmup} steps of warm-up" if t.warmup else ""
    parts = [
        f"recipe {t.recipe}",
        f"{t.epochs} epoch{'s' * (t.epochs > 1)} of batches of {t.batch_size}",
        f"{t.optimizer.title()} with learning rate {t.lr:g}{warmup}, then {falls}",
    ]
    parts += [f"weights averaged ({t.ema:g})"] if t.ema else []
    parts += ["classes balanced"] if t.balance else []
    changes = [
        f"shifts {t.shift_fraction:g}" if t.shift_fraction else "",
        f"rotation {t.rotation:g} degrees" if t.rotation else "",
        f"zoom {t.zoom:g}" if t.zoom else "",
        f"shear {t.shear:g}" if t.shear else "",
        "flips" if t.flip else "",
    ]
    changes = ", ".join(filter(None, changes)) or "none"
    normalized = "; images normalized" if t.normalize else ""
    return f"How: {', '.join(parts)}; changes of images: {changes}{normalized}"


def describe_device(devices: Devices = ONE_DEVICE) -> str:
    """The header's line about what computes, and one more if that may be a mistake."""
    name = keras.backend.backend()
    version = importlib.import_module(name).__version__
    device = backend.device_kind().upper()
    if device == "CPU":
        device += f", {os.cpu_count()} cores"
    elif device in ("GPU", "CUDA"):
        device += f", {backend.gpu_name()}"
    if devices.count > 1:
        device = f"{devices.count // devices.num_hosts} x {device}"
    if devices.num_hosts > 1:
        device = f"{devices.num_hosts} hosts, each {device}"
    line = f"Device: {device}; Keras {keras.version()} on {name} {version}"
    package = backend.missing_gpu_package()
    if package is not None and devices.kind != "cpu":
        line += (
            f"\nAn NVIDIA driver is here, but {name} sees no GPU; if it should: "
            f'pip install "{package}"'
        )
    return line

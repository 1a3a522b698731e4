"""What a trained model is used for without any data set."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import keras

from capsnet import datasets, session
from capsnet.classify import classify, open_pictures
from capsnet.errors import UsageError, one_line
from capsnet.explain import explain
from capsnet.explore import (
    LOOKED_AT,
    PER_KIND,
    SOURCES,
    Shown,
    build_page,
    load_test_images,
)
from capsnet.export import check_export, export_model
from capsnet.flags import TWO_DIGITS
from capsnet.options import Options, Training
from capsnet.page_server import serve
from capsnet.run_folder import is_new_or_empty, new_folder
from capsnet.weights import ModelFileError, load_weights, read_info

# What is known of a weights file that says nothing about itself.
MNIST_INFO = {
    "input_shape": [28, 28, 1],
    "class_names": datasets.NAMED["mnist"],
    "dataset": "mnist",
    "border_brightness": 0.0,
    "digit_box": 20,
    "objects": 1,
    "multi_label": False,
    "normalization": None,
}


def use_model(
    build: Callable[..., tuple], options: Options, own: argparse.Namespace
) -> None:
    """Predicts the classes of pictures, exports or explores, by the model file.

    Args:
        build: `capsulenet.CapsNet`.
        options: Of the use of a model.
        own: The flags that say what to do with it.
    """
    if own.export:
        check_export(own.export)
    if own.export_page and not is_new_or_empty(own.export_page):
        raise UsageError(
            f"--export_page: expected a new or empty folder, received {own.export_page}"
        )
    info = {**MNIST_INFO, **options.info}
    pictures = open_pictures(own.predict or [], info, own.invert)
    models = open_model(build, options.weights, info, options.training)
    source = one_line(info["dataset"])  # whatever the file says
    print(f"Model: {options.weights}, trained on {source}")
    if own.export:
        export_model(models[0], own.export, own.half)
        print("Wrote", own.export)
        return
    if own.explore or own.export_page:
        title = one_line(os.path.basename(options.weights))
        shown = Shown(models[0], info, title, load_test_images(info, LOOKED_AT))
        page = build_page(shown, find_two_digits(build, info))
        if own.export_page:
            with new_folder(own.export_page) as folder:
                for name, content in page.items():
                    Path(folder, name).write_bytes(content)
            print("Wrote", own.export_page)
        else:
            serve(page)
        return
    os.makedirs(options.folder.path, exist_ok=True)
    print(session.describe_device(options.devices))
    images = classify(*models, pictures, info, options)
    if own.explain:
        explain(models[0], own.predict, images, info, options)


def open_model(
    build: Callable[..., tuple], path: str, info: dict, training: Training
) -> tuple[keras.Model, keras.Model]:
    """A network with the weights of a model file.

    Args:
        build: `capsulenet.CapsNet`.
        path: The model file.
        info: What it says about itself, with nothing left out.
        training: The rounds of routing, and the architecture.

    Returns:
        The eval model and the manipulate model.

    Raises:
        ModelFileError: If the file holds no such weights.
    """
    shape, n_class = tuple(info["input_shape"]), len(info["class_names"])
    # Without this look, a small file that says to be of large images would make a large
    # network. Weights may be of 16 bits.
    if 2 * training.sizes.least_weights(shape, n_class) > os.path.getsize(path):
        raise ModelFileError(
            f"{path}: expected the weights for images of "
            f"{' x '.join(map(str, shape))} and {n_class} classes, found a smaller "
            "file."
        )
    train_model, *models = build(
        shape,
        n_class,
        training.routings,
        multi_label=info["multi_label"],
        architecture=training.sizes,
        normalization=info["normalization"],
    )
    load_weights(train_model, path)
    return tuple(models)


def find_two_digits(build: Callable[..., tuple], info: dict) -> Shown | None:
    """The published model of two digits, for the page of a model of single digits.

    Args:
        build: `capsulenet.CapsNet`.
        info: What the file of the page's own model says about itself.

    Returns:
        The model; None if the page's own is of other things, or the file is not there.
    """
    path = SOURCES.parent / TWO_DIGITS
    one_digit = info["dataset"] == "mnist" and info["objects"] == 1
    if not one_digit or not path.is_file():
        return None
    info = {**MNIST_INFO, **read_info(str(path))}
    training = Training(routings=info["routings"], architecture=info["architecture"])
    model, _ = open_model(build, str(path), info, training)
    # Part 4 puts digits together that are read right: it needs no more than these.
    return Shown(model, info, path.name, load_test_images(info, 10 * PER_KIND))

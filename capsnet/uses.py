"""What a trained model is used for without any data set."""

import argparse
import os
from collections.abc import Callable

import keras

from capsnet import datasets, session
from capsnet.classify import classify
from capsnet.errors import one_line
from capsnet.explain import explain
from capsnet.explore import (
    build_page,
    check_page_folder,
    load_test_images,
    write_page,
)
from capsnet.export import check_export, export_model
from capsnet.options import Options
from capsnet.page_server import serve
from capsnet.pictures import read_image
from capsnet.weights import ModelFileError, load_weights

# What is known of a weights file that says nothing about itself.
MNIST_INFO = {
    "input_shape": [28, 28, 1],
    "class_names": datasets.NAMED["mnist"],
    "dataset": "mnist",
    "border_brightness": 0.0,
    "digit_box": 20,
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
        check_export(own.export, own.half)
    if own.export_page:
        check_page_folder(own.export_page)
    info = {**MNIST_INFO, **options.info}
    shape, names = tuple(info["input_shape"]), info["class_names"]
    pictures = [read_image(path, shape[2]) for path in own.predict or ()]
    # Without this look, a small file that says to be of large images would make a large
    # network. Weights may be of 16 bits.
    training = options.training
    least = 2 * training.sizes.least_weights(shape, len(names))
    if least > os.path.getsize(options.weights):
        raise ModelFileError(
            f"{options.weights}: expected the weights for images of "
            f"{' x '.join(map(str, shape))} and {len(names)} classes, found a smaller "
            "file."
        )
    train_model, eval_model, manipulate_model = build(
        shape,
        len(names),
        training.routings,
        multi_label=info.get("multi_label", False),
        architecture=training.sizes,
        normalization=info.get("normalization"),
    )
    load_weights(train_model, options.weights)
    source = one_line(info["dataset"])  # whatever the file says
    print(f"Model: {options.weights}, trained on {source}")
    if own.export:
        export_model(eval_model, own.export, own.half)
        print("Wrote", own.export)
        return
    if own.explore or own.export_page:
        explore_model(eval_model, info, options, own.export_page)
        return
    os.makedirs(options.folder.path, exist_ok=True)
    print(session.describe_device(options.devices))
    models = eval_model, manipulate_model
    images = classify(*models, own.predict, pictures, info, own.invert, options)
    if own.explain:
        explain(eval_model, own.predict, images, info, options)


def explore_model(
    model: keras.Model, info: dict, options: Options, folder: str | None
) -> None:
    """Serves the page to draw on, or writes it.

    Args:
        model: The eval model of `CapsNet`.
        info: What the model file says about itself, with nothing left out.
        options: Of the use of a model.
        folder: Where to write; None to serve.
    """
    title = one_line(os.path.basename(options.weights))
    page = build_page(model, info, title, load_test_images(info))
    if folder is None:
        serve(page)
    else:
        write_page(page, folder)
        print("Wrote", folder)

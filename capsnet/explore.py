"""The page to draw on: its files, with the weights of one or two models in them."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from capsnet.batches import Pair
from capsnet.datasets import NAMED, load_dataset
from capsnet.errors import DataError, UsageError
from capsnet.fields import convolution_layers, fields, margins
from capsnet.predict import predict

# What a browser is told that a file is; there are no others.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".bin": "application/octet-stream",
}
SOURCES = Path(__file__).resolve().parents[1] / "explore"
LOOKED_AT = 2000  # test images, to find wrong ones among
PER_KIND = 20  # test images of each kind, right and wrong
LARGEST_HALF = 65504.0
SECOND = "two_digits_"  # begins the names of the files of a second model


class Shown(NamedTuple):
    """A model on the page.

    Attributes:
        model: The eval model of `capsulenet.CapsNet`.
        info: What the model file says about itself, with nothing left out.
        title: What the page calls the model.
        images: Test images and their labels, some of which are shown; None for none.
    """

    model: keras.Model
    info: dict
    title: str
    images: Pair | None = None


def build_page(shown: Shown, two_digits: Shown | None = None) -> dict[str, bytes]:
    """Makes all files of the page.

    Args:
        shown: The model that the page is of.
        two_digits: A model of two digits in a picture, for the part of the page that
            takes them apart, where `shown` is of one. The page asks for its files when
            a reader gets there.

    Returns:
        The content of each file, by its name.

    Raises:
        UsageError: If the page's own files are not there.
    """
    if not SOURCES.is_dir():
        raise UsageError(
            f"expected the page's files in {SOURCES}, which a clone of the repository "
            "has and an installation has not"
        )
    files = {path.name: path.read_bytes() for path in sorted(SOURCES.iterdir())}
    takes_apart = "" if shown.info["objects"] > 1 else None
    if two_digits is not None:
        takes_apart = SECOND
        for name, content in model_files(two_digits).items():
            files[SECOND + name] = content
    return files | model_files(shown, takes_apart)


def model_files(shown: Shown, two_digits: str | None = None) -> dict[str, bytes]:
    """What the page needs of a model.

    Args:
        shown: The model.
        two_digits: How the names of the files begin that are of a model of two digits;
            None if there are none.

    Returns:
        The content of each file, by its name.
    """
    model, info, title, images = shown
    files = {}
    files["weights.bin"], listed = pack_weights(model)
    manifest = {
        "title": title,
        "dataset": info["dataset"],
        "class_names": info["class_names"],
        "input_shape": info["input_shape"],
        "multi_label": info["multi_label"],
        "objects": info["objects"],
        "two_digits": two_digits,
        "routings": model.get_layer("digitcaps").routings,
        "normalization": info["normalization"],
        "digit_box": info["digit_box"],
        "border_brightness": info["border_brightness"],
        "capsule_size": model.get_layer("digitcaps").dim_capsule,
        "convolutions": [
            {
                "name": layer.name,
                "strides": layer.strides[0],
                "margins": margins(layer),
            }
            for layer in convolution_layers(model)
        ],
        "fields": [dataclasses.asdict(field) for field in fields(model)],
        "decoder": [layer.name for layer in dense_layers(model)],
        "weights": listed,
        "test_images": [],
    }
    if images is not None:
        pixels, described = choose_test_images(model, images, info["class_names"])
        files["test_images.bin"], manifest["test_images"] = pixels, described
    files["model.json"] = json.dumps(manifest).encode()
    return files


def dense_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of the decoder that have weights."""
    return [layer for layer in model.get_layer("decoder").layers if layer.weights]


def pack_weights(model: keras.Model) -> tuple[bytes, list[dict]]:
    """All weights as float16, one after the other, and a list of them.

    Returns:
        The numbers; and of each array its name, its shape and where it starts.
    """
    layers = [
        *convolution_layers(model),
        model.get_layer("digitcaps"),
        *dense_layers(model),
    ]
    parts, listed, offset = [], [], 0
    for layer in layers:
        for weight in layer.weights:
            array = keras.ops.convert_to_numpy(weight)
            if weight.name == "W":  # read by input capsule, in the page
                array = array.transpose(1, 0, 2, 3)
            name = f"{layer.name}/{weight.name}"
            listed.append({"name": name, "shape": array.shape, "offset": offset})
            parts.append(array.clip(-LARGEST_HALF, LARGEST_HALF).astype("<f2").ravel())
            offset += array.size
    return np.concatenate(parts).tobytes(), listed


def load_test_images(info: dict, count: int) -> Pair | None:
    """Some test images of the data set that a model was trained on, if there are any.

    Those of a folder of one's own are not taken: nobody asked to publish them.

    Args:
        info: What the model file says about itself, with nothing left out.
        count: How many of them.

    Returns:
        Images, with a margin of zeros where the model's are larger, and labels.
    """
    if info["dataset"] not in NAMED:
        return None
    try:
        data = load_dataset(
            info["dataset"], None, info.get("image_size"), info.get("grayscale", False)
        )
    except DataError:
        return None
    x, y = (part[:count] for part in data.test)
    height, width, _ = info["input_shape"]
    margins = [max(0, n - side) // 2 for n, side in zip((height, width), x.shape[1:])]
    x = np.pad(x, [(0, 0), *((margin, margin) for margin in margins), (0, 0)])
    fits = list(x.shape[1:]) == list(info["input_shape"])
    return (x, y) if fits and data.class_names == info["class_names"] else None


def choose_test_images(
    model: keras.Model, images: Pair, class_names: list[str]
) -> tuple[bytes, list[dict]]:
    """Some of the images that the model names right, of each class in turn, and others.

    Args:
        model: The eval model.
        images: Of `load_test_images`.
        class_names: A name for each class.

    Returns:
        Pixels from 0 to 255, and what is known of each image.
    """
    x, y = images
    labels, named = y.argmax(axis=1), predict(model, [x])[0].argmax(axis=1)
    right, wrong = (np.flatnonzero(part) for part in (labels == named, labels != named))
    earlier = [np.sum(labels[right[:i]] == labels[n]) for i, n in enumerate(right)]
    right = right[np.lexsort((labels[right], earlier))]
    chosen = [*right[:PER_KIND], *wrong[:PER_KIND]]
    described = [
        {"class": class_names[labels[i]], "named": class_names[named[i]]}
        for i in chosen
    ]
    return np.rint(x[chosen] * 255).astype("uint8").tobytes(), described

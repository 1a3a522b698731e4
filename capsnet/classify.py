"""What a trained model says of pictures that it has never seen, and its features."""

import os
from typing import NamedTuple

import keras
import numpy as np

import utils
from capsnet import photos
from capsnet.datasets import Dataset
from capsnet.errors import UsageError
from capsnet.options import Options
from capsnet.pictures import read_image
from capsnet.predict import predict
from capsnet.run_folder import check_is_writable, replace_file
from capsnet.task import THRESHOLD, said

MAX_ROWS = 20  # of predictions.png
DRAWN = 400  # pixels of the longest side of a picture there


class Picture(NamedTuple):
    """A picture of the user's.

    Attributes:
        path: Name of the file.
        drawn: What is in it, at most `DRAWN` pixels high and wide; None for all but
            the first `MAX_ROWS`.
        image: What the network sees of it.
        done: A few words on how this was made.
    """

    path: str
    drawn: np.ndarray | None
    image: np.ndarray
    done: str


def open_pictures(paths: list[str], info: dict, invert: str) -> list[Picture]:
    """Reads pictures, and keeps what is needed: photos are large, and may be many.

    Args:
        paths: Names of the files.
        info: What the model file says about itself.
        invert: "yes", "no" or "auto"; see `photos.prepare_picture`.

    Raises:
        DataError: That of `pictures.read_image`.
    """
    opened = []
    for path in paths:
        pixels = read_image(path, info["input_shape"][2])
        image, done = photos.prepare_picture(pixels, info, invert)
        drawn = None
        if len(opened) < MAX_ROWS:
            planes = np.moveaxis(pixels, -1, 0)
            drawn = np.stack([photos.reduce(p, DRAWN) for p in planes], axis=-1)
        opened.append(Picture(path, drawn, image, done))
    return opened


def classify(
    model: keras.Model,
    manipulate_model: keras.Model,
    pictures: list[Picture],
    info: dict,
    options: Options,
) -> np.ndarray:
    """Prints the class of each picture and draws `predictions.png`.

    By a model of two objects, both are named, and drawn in red and green.

    Args:
        model: The eval model of `capsulenet.CapsNet`.
        manipulate_model: Its manipulate model.
        pictures: Of `open_pictures`.
        info: What the model file says about itself.
        options: Batch size, devices, and where `predictions.png` goes.

    Returns:
        What the network saw of the pictures, (n, height, width, channels).
    """
    inputs = np.stack([picture.image for picture in pictures])
    batch_size = options.training.batch_size
    lengths, reconstructions = predict(model, [inputs], batch_size, options.devices)
    names, titles = info["class_names"], []
    named = said(lengths, info["multi_label"], info["objects"])
    if info["objects"] > 1:
        reconstructions = draw_apart(manipulate_model, inputs, lengths, options)
    for (path, _, image, done), values, is_named in zip(pictures, lengths, named):
        if np.ptp(image) == 0:  # which capsules answer to as to any other
            done = "the picture is of one colour and shows nothing"
        order = np.argsort(-values, kind="stable")
        best, others = order[is_named[order]], order[~is_named[order]]
        title = ", ".join(f"{names[i]} ({values[i]:.2f})" for i in best) or "no class"
        titles.append((os.path.basename(path), title))
        parts = [f"{names[i]}, length {values[i]:.3f}" for i in best]
        parts = parts or [f"no class of length {THRESHOLD} or more"]
        parts += [f"then {names[i]}, {values[i]:.3f}" for i in others[:1]]
        note = f"; {done}" if done else ""
        print(f"{path}: {', '.join(parts)}{note}")
    path = options.folder.file("predictions.png")
    drawn = [picture.drawn for picture in pictures]
    columns = (drawn, inputs, reconstructions, lengths, named, titles)
    shown = [column[:MAX_ROWS] for column in columns]
    with replace_file(path) as temporary:
        utils.plot_predictions(*shown, names, temporary)
    more = f", the first {MAX_ROWS} pictures" if len(pictures) > MAX_ROWS else ""
    print(f"Wrote {path}{more}")
    return inputs


def draw_apart(
    manipulate_model: keras.Model,
    images: np.ndarray,
    lengths: np.ndarray,
    options: Options,
) -> np.ndarray:
    """Each image from its two longest capsules: the first in red, the second in green.

    Args:
        manipulate_model: Of `capsulenet.CapsNet`.
        images: As the network sees them, grey, (n, height, width, 1).
        lengths: Of their class capsules, (n, n_class).
        options: Batch size and devices.

    Returns:
        An array of shape (n, height, width, 3).
    """
    n, n_class = lengths.shape
    unchanged = np.zeros((n, *manipulate_model.inputs[2].shape[1:]), "float32")
    how = options.training.batch_size, options.devices
    apart = []
    for classes in np.argsort(-lengths, axis=1, kind="stable").T[:2]:
        labels = np.eye(n_class, dtype="float32")[classes]
        apart.append(predict(manipulate_model, [images, labels, unchanged], *how)[0])
    return sum(utils.tint(*apart))


def check_features(path: str) -> None:
    """Finds out whether `save_features` can write a file; leaves none.

    Raises:
        UsageError: If not: nothing is replaced, which may be the data set.
    """
    folder = os.path.dirname(path) or "."
    is_new = path.endswith(".npz") and not os.path.lexists(path)
    if not (is_new and os.path.isdir(folder)):
        raise UsageError(
            "--features: expected FILE.npz, the name of a new file in a folder that "
            f"is there, received {path}"
        )
    check_is_writable(folder, "--features")


def save_features(
    model: keras.Model, data: Dataset, path: str, options: Options
) -> None:
    """Writes the class capsules of all images of a data set, as an npz file.

    A row each for the training images, then the test images: `capsules` (n, n_class,
    16), `lengths` (n, n_class), `labels` (n, n_class), `paths` (the number of the image
    where there are no files) and `part`, "train" or "test"; and `class_names`.

    Args:
        model: The eval model of `capsulenet.CapsNet`.
        data: The images.
        path: Name of the file; see `check_features`.
        options: Batch size and devices.
    """
    outputs = [model.get_layer("digitcaps").output, model.outputs[0]]
    features = keras.Model(model.inputs, outputs)
    found = [
        predict(features, [x], options.training.batch_size, options.devices)
        for x, _ in data
    ]
    capsules, lengths = (np.concatenate(arrays) for arrays in zip(*found))
    sizes = [len(y) for _, y in data]
    paths = data.paths or [[str(i) for i in range(n)] for n in sizes]
    with replace_file(path) as temporary:
        np.savez(
            temporary,
            capsules=capsules,
            lengths=lengths,
            labels=np.concatenate([y for _, y in data]),
            paths=np.concatenate(paths),
            part=np.repeat(["train", "test"], sizes),
            class_names=data.class_names,
        )
    print(
        f"Wrote {path}: the capsules of {sizes[0]} training and {sizes[1]} test images"
    )

"""Which parts of an image voted for a class: a capsule network's own explanation."""

import os

import keras
import numpy as np

import utils
from capsnet.classify import MAX_ROWS
from capsnet.fields import fields
from capsnet.options import Devices, Options
from capsnet.predict import predict
from capsnet.run_folder import draw
from capsnet.task import said


def votes(
    model: keras.Model, images: np.ndarray, batch_size: int, devices: Devices
) -> np.ndarray:
    """The votes of the primary capsules for each class, by their position.

    A vote is coupling times agreement of the last round, `c_ij u_hat_ij . v_j`. Since
    `s_j` is the sum of the `c_ij u_hat_ij` (equation 2 of the paper) and `v_j` has its
    direction, the votes of all sum to `||s_j|| ||v_j||`.

    Args:
        model: The eval model of `capsulenet.CapsNet`.
        images: As the network sees them, (n, height, width, channels).
        batch_size: Images in a step of all devices together.
        devices: What computes.

    Returns:
        The votes of all types of capsules at a position, (n, n_class, rows, columns).
    """
    primary, routing = model.get_layer("primarycaps"), model.get_layer("digitcaps")
    config = {**routing.get_config(), "return_couplings": True}
    routed = type(routing).from_config(config)
    v, couplings = routed(primary.output)
    routed.set_weights(routing.get_weights())
    parts = keras.Model(model.inputs, [primary.output, v, couplings])
    u, v, c = predict(parts, [images], batch_size, devices)

    grid = [field.places for field in fields(model)]
    W = routing.get_weights()[0]  # (n_class, capsules, dim, input_dim)
    found = []
    for u_n, v_n, c_n in zip(u, v, c):
        agreement = np.einsum("je,jied,id->ji", v_n, W, u_n, optimize=True)
        # (n_class, capsules) -> (n_class, rows, columns), as they follow each other
        found.append((c_n * agreement).reshape(len(v_n), *grid, -1).sum(axis=-1))
    return np.stack(found)


def spread(values: np.ndarray, model: keras.Model) -> np.ndarray:
    """Lays values of positions over the images in which these are.

    Each becomes a normal distribution around the middle of what its capsules see, of
    which it covers the inner half: twice the standard deviation is a quarter of it.

    Args:
        values: (..., rows, columns).
        model: The eval model of `capsulenet.CapsNet`.

    Returns:
        (..., height, width), with the same sum, but for what falls off the edge.
    """
    sides = model.input_shape[1:3]
    for axis, side, field in zip((-2, -1), sides, fields(model)):
        steps = np.arange(values.shape[axis])
        middles = field.start + steps * field.strides + (field.size - 1) / 2
        distances = (np.arange(side)[:, None] - middles) / (field.size / 8)
        weights = np.exp(-np.square(distances) / 2)
        weights /= weights.sum(axis=0)
        values = np.moveaxis(np.tensordot(values, weights, (axis, 1)), -1, axis)
    return values


def explain(
    model: keras.Model,
    paths: list[str],
    images: np.ndarray,
    info: dict,
    options: Options,
) -> None:
    """Draws `explained.png`: which parts of each picture voted for its classes.

    The classes are those that `classify` names, two at most, then the next longest.

    Args:
        model: The eval model of `capsulenet.CapsNet`.
        paths: Names of the pictures.
        images: What the network sees of them, (n, height, width, channels).
        info: What the model file says about itself.
        options: Batch size, devices, and where `explained.png` goes.
    """
    images, names = images[:MAX_ROWS], info["class_names"]
    how = options.training.batch_size, options.devices
    lengths = predict(model, [images], *how)[0]
    named = said(lengths, info["multi_label"], info["objects"])
    order = np.argsort(-(lengths + named), axis=1, kind="stable")
    count = min(len(names), 1 + np.clip(named.sum(axis=1).max(), 1, 2))
    order = order[:, :count]
    maps = spread(votes(model, images, *how), model)
    maps = np.take_along_axis(maps, order[:, :, None, None], axis=1)
    titles = [
        [f"for {utils.shorten(names[i])}, length {row[i]:.2f}" for i in classes]
        for row, classes in zip(lengths, order)
    ]
    path = options.folder.file("explained.png")
    shown = [os.path.basename(name) for name in paths]
    draw(path, utils.plot_votes, images, maps, shown, titles)

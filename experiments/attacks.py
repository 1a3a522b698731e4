"""Images that are changed by the gradient of their pixels, and what it is of."""

from collections.abc import Callable

import numpy as np
from keras import ops


def target_length(y_true, lengths):
    """The length of the capsule of a class that is given as one-hot labels."""
    return ops.sum(y_true * lengths, axis=-1)


def gap(y_true, lengths):
    """How much longer the longest capsule of a wrong class is than the right one."""
    # Lengths are below 1, so that the right one minus 2 is never the longest.
    return ops.max(lengths - 2 * y_true, axis=-1) - target_length(y_true, lengths)


def log_odds(y_true, probabilities):
    """The logarithm of the odds of all wrong classes; it grows with the cross-entropy.

    `-log(p)` has no gradient in float32 where p is rounded to 1; here the small
    probabilities of the wrong classes are summed instead.
    """
    right = ops.sum(y_true * probabilities, axis=-1)
    wrong = ops.sum((1 - y_true) * probabilities, axis=-1)
    return ops.log(ops.maximum(wrong, 1e-37)) - ops.log(ops.maximum(right, 1e-37))


def walk(gradient: Callable, images, labels, step_size: float, max_steps: int):
    """Changes images step by step until a network says what it is to say.

    Args:
        gradient: Of `input_gradient`, for a value that is to grow.
        images: Shape (n, height, width, channels), in [0, 1].
        labels: What the network is to say of each, one-hot, shape (n, n_class).
        step_size: Euclidean norm of a step, before it is clipped to [0, 1].
        max_steps: Where a walk that does not get there ends.

    Returns:
        The changed images, the number of steps of each, and the network's last outputs.
    """
    images = images.copy()
    steps = np.zeros(len(images), int)
    while True:
        outputs, g = gradient(images, labels)
        going = (outputs.argmax(1) != labels.argmax(1)) & (steps < max_steps)
        if not going.any():
            return images, steps, outputs
        # Most of MNIST's pixels are at a bound: only those that can move may count.
        g = np.where((images <= 0) & (g < 0) | (images >= 1) & (g > 0), 0, g)
        norm = np.sqrt(np.sum(np.square(g, dtype="float64"), axis=(1, 2, 3)))
        scale = step_size / np.maximum(norm, 1e-30)
        moved = images + scale[:, None, None, None] * g
        # Those that are there stay in the batch, which keeps its compiled shape.
        images[going] = np.clip(moved[going], 0, 1)
        steps += going


def sign_attack(gradient: Callable, images, labels, epsilon, steps: int, first):
    """The basic iterative method; with one step the fast gradient sign method.

    Args:
        gradient: Of `input_gradient`, for a loss.
        images: Shape (n, height, width, channels), in [0, 1].
        labels: Their classes, one-hot, shape (n, n_class).
        epsilon: Largest change of a pixel.
        steps: Number of steps.
        first: The gradient at these images.

    Returns:
        The changed images.
    """
    # In this order, rounding takes no pixel out of [0, 1].
    low, high = np.maximum(images - epsilon, 0), np.minimum(images + epsilon, 1)
    step_size = np.float32(2.5 * epsilon / steps)
    changed = images
    for step in range(steps):
        g = gradient(changed, labels)[1] if step else first
        changed = np.clip(changed + step_size * np.sign(g), low, high)
    return changed

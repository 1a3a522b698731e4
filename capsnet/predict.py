"""The outputs of a model for arrays of any length, on any number of devices."""

import math
from collections.abc import Iterator

import keras
import numpy as np

from capsnet.options import ONE_DEVICE, Devices

PART = 2**28  # bytes of images in memory at a time, of arrays that are files


def predict(
    model: keras.Model,
    inputs: list,
    batch_size: int = 100,
    devices: Devices = ONE_DEVICE,
) -> list[np.ndarray]:
    """The model's outputs for all samples: what `predict_parts` yields, in one.

    Returns:
        An array for each output.
    """
    parts = [part for _, part in predict_parts(model, inputs, batch_size, devices)]
    return [np.concatenate(arrays) for arrays in zip(*parts)]


def predict_parts(
    model: keras.Model,
    inputs: list,
    batch_size: int,
    devices: Devices,
) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Computes the model's outputs in batches of one size, part by part.

    The last batch is filled up, and what was filled in is cut off: each step has the
    same shape, which several devices share evenly. Each host computes its part of a
    batch, and gets the outputs of all.

    Args:
        model: Any model.
        inputs: An array for each of its inputs, with as many samples; of any floating
            point type, in memory or mapped from a file.
        batch_size: Samples in a step of all devices together.
        devices: What computes.

    Yields:
        Which samples, and an array for each output.
    """
    bytes_each = 4 * sum(math.prod(a.shape[1:]) for a in inputs)
    size = max(1, PART // (bytes_each * batch_size)) * batch_size
    for start in range(0, len(inputs[0]), size):
        part = slice(start, start + size)
        arrays = [np.asarray(a[part], "float32") for a in inputs]
        yield part, _predict(model, arrays, batch_size, devices)


def _predict(model, inputs, batch_size, devices):
    n = len(inputs[0])
    per_device = min(batch_size // devices.count, math.ceil(n / devices.count))
    batch_size = per_device * devices.count
    host_size = batch_size // devices.num_hosts
    fill = np.arange(-n % batch_size) % n
    filled = [np.concatenate([a, a[fill]]) if len(fill) else a for a in inputs]
    # (samples, ...) -> (batches, hosts, samples of a host, ...) -> ours, in a row
    parts = [a.reshape(-1, devices.num_hosts, host_size, *a.shape[1:]) for a in filled]
    parts = [a[:, devices.host_id].reshape(-1, *a.shape[3:]) for a in parts]
    inputs = parts if len(parts) > 1 else parts[0]
    outputs = model.predict(inputs, batch_size=host_size, verbose=0)
    return [a[:n] for a in (outputs if isinstance(outputs, list) else [outputs])]

"""What the tests share."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image

from capsnet.datasets import load_dataset

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    config.addinivalue_line("markers", "network: needs the package registry")


@pytest.fixture(scope="session")
def mnist():
    """MNIST, downloaded once and kept in the cache that the scripts use, too."""
    return load_dataset()


@pytest.fixture
def channels_first():
    """Keras's default is that of a keras.json with "image_data_format": this."""
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def evaluate(function, *arrays) -> np.ndarray:
    """The value of a function of tensors; on JAX compiled once, not op by op."""
    if keras.backend.backend() == "jax":
        import jax

        # a new function, since weights are constants of what JAX has compiled
        value = jax.jit(lambda *tensors: function(*tensors))(*arrays)
    else:
        value = function(*arrays)
    return keras.ops.convert_to_numpy(value)


def gradients(function, *arrays) -> list[np.ndarray]:
    """Gradients of a scalar function, by the backend's own differentiation."""
    arrays = [np.asarray(a, "float32") for a in arrays]
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(a) for a in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        result = tape.gradient(value, tensors)
    elif backend == "jax":
        import jax

        result = jax.jit(jax.grad(function, argnums=range(len(arrays))))(*arrays)
    else:
        import torch

        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        result = torch.autograd.grad(function(*tensors), tensors)
    return [keras.ops.convert_to_numpy(g) for g in result]


def finite_differences(function, *arrays, step: float = 1e-6) -> list[np.ndarray]:
    """Gradients of a scalar NumPy function in float64, by central differences."""
    arrays = [np.array(a, "float64") for a in arrays]
    result = [np.zeros_like(a) for a in arrays]
    for array, gradient in zip(arrays, result):
        for index in np.ndindex(array.shape):
            middle = array[index]
            array[index] = middle + step
            above = function(*arrays)
            array[index] = middle - step
            gradient[index] = (above - function(*arrays)) / (2 * step)
            array[index] = middle
    return result


def write_digits(folder, mnist, n_train=600, n_test=300, leave_out=None):
    (x_train, y_train), (x_test, y_test) = mnist
    kept = np.flatnonzero(y_test.argmax(axis=1) != leave_out)[:n_test]
    arrays = {"x_train": x_train[:n_train], "x_test": x_test[kept]}
    arrays = {k: np.rint(x[..., 0] * 255).astype("uint8") for k, x in arrays.items()}
    labels = {"y_train": y_train[:n_train], "y_test": y_test[kept]}
    arrays |= {k: y.argmax(axis=1).astype("uint8") for k, y in labels.items()}
    folder.mkdir(exist_ok=True)
    np.savez(folder / "mnist.npz", **arrays)
    return folder


def read_rows(path):
    """The rows of a CSV file, as text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_log(folder):
    """The rows of the log of a run."""
    return read_rows(folder / "log.csv")


def without_times(rows):
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def read_weights(path):
    """All arrays of a model file, by name."""
    arrays = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(keep)
    return arrays


def assert_same_run(folder, other):
    """The same log, but for the times, and the same weights, bit for bit."""
    assert without_times(read_log(folder)) == without_times(read_log(other))
    weights = read_weights(folder / "trained_model.h5")
    others = read_weights(other / "trained_model.h5")
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.tobytes() == others[name].tobytes(), name


@pytest.fixture(scope="session")
def digits(mnist, tmp_path_factory):
    """A --data_dir with the first 600 training and 300 test images of MNIST."""
    return write_digits(tmp_path_factory.mktemp("digits"), mnist)


def run(*arguments, cwd, program=(ROOT / "capsulenet.py",)):
    """Runs a script as a user does: a process of its own, in any folder."""
    hidden = ("TF_CPP_MIN_LOG_LEVEL", "DISPLAY", "WAYLAND_DISPLAY")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"  # no word about a GPU, either
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def training_of(digits, save_dir):
    sizes = ["--train_size", 300, "--batch_size", 30, "--data_dir", digits]
    rates = ["--epochs", 2, "--lr_decay", 0.5, "--seed", 1]
    return [*sizes, *rates, "--save_dir", save_dir]


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    """The folder that a short training left, and the finished process."""
    folder = tmp_path_factory.mktemp("trained")
    process = run(*training_of(digits, "out/mnist"), cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder / "out" / "mnist", process


def assert_picture(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 300
        assert np.ptp(np.asarray(picture.convert("L"))) > 200  # black, white, between

"""What the tests share."""

import contextlib
import csv
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

# Nothing here may import Keras at the top: `pytest_configure` says with which backend.

ROOT = Path(__file__).resolve().parents[1]

# What would change a test's outcome, by the beginnings of the names.
SETTINGS = ("CAPSNET_", "KERAS_", "TF_", "XLA_", "JAX_", "TORCH", "PYTORCH_", "MPL")
SETTINGS += ("MATPLOTLIB", "PYTHON", "LANG", "LC_", "COLUMNS", "FORCE_COLOR", "DISPLAY")
SETTINGS += ("WAYLAND_DISPLAY",)
INSTALLATION = ("PYTHONHOME", "PYTHONPATH")  # which say where the packages are
CACHES = ("CAPSNET_CACHE", "KERAS_HOME")  # where the user may have MNIST


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=("tensorflow", "jax", "torch"),
        default="tensorflow",
        help="what Keras computes with, here and in the scripts that the tests start",
    )


def pytest_configure(config):
    """The same environment for each run of the tests, whatever the user has set."""
    user_caches = {k: os.environ[k] for k in CACHES if k in os.environ}
    # What one of several processes that share the tests out starts with is no user's.
    config.user_caches = getattr(config, "workerinput", {}).get("caches", user_caches)
    for name in list(os.environ):
        if name.startswith(SETTINGS) and name not in INSTALLATION:
            del os.environ[name]
    folder = tempfile.TemporaryDirectory(prefix="capsnet-tests-")
    config.add_cleanup(folder.cleanup)
    Path(folder.name, "matplotlibrc").touch()
    os.environ |= {
        "KERAS_BACKEND": config.getoption("backend"),
        "KERAS_HOME": os.path.join(folder.name, "keras"),  # without a keras.json
        "CAPSNET_CACHE": os.path.join(folder.name, "cache"),
        "MATPLOTLIBRC": folder.name,
        "LC_ALL": "C.UTF-8",
        "COLUMNS": "80",  # else those of the terminal, for `--help`
    }


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Tells each of the processes where the user's caches are."""
    node.workerinput["caches"] = node.config.user_caches


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory):
    """Fixtures of a session or a module start in an empty folder, too."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    """Each test runs in an empty folder: what the scripts write by default is there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def mnist(pytestconfig):
    """MNIST, of which the scripts that the tests start have a copy.

    It comes from the user's cache if that holds the authentic files, and else is
    downloaded and kept there; where it cannot be kept, that is no failure.
    """
    from capsnet.datasets import load_dataset
    from capsnet.mnist import load_mnist

    with pytest.MonkeyPatch.context() as patch:
        copy = Path(os.environ["CAPSNET_CACHE"])
        for name in CACHES:
            patch.delenv(name)
        for name, value in pytestconfig.user_caches.items():
            patch.setenv(name, value)
        arrays = load_mnist()
    copy.mkdir(exist_ok=True)
    np.savez(copy / "mnist.npz", **arrays)
    return load_dataset()


@pytest.fixture
def channels_first():
    """Keras's default is that of a keras.json with "image_data_format": this."""
    import keras

    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def evaluate(function, *arrays) -> np.ndarray:
    """The value of a function of tensors; on JAX compiled once, not op by op."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        # a new function, since weights are constants of what JAX has compiled
        value = jax.jit(lambda *tensors: function(*tensors))(*arrays)
    else:
        value = function(*arrays)
    return keras.ops.convert_to_numpy(value)


def gradients(function, *arrays) -> list[np.ndarray]:
    """Gradients of a scalar function, by the backend's own differentiation."""
    import keras

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


def write_noise(folder, n, shape):
    """Pictures of noise, n of each of two classes, which their brightness says."""
    rng = np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(low, low + 128, shape, "uint8")
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def write_test_errors(folder, *errors):
    """The log of a run with these test errors in %; returns the folder."""
    folder.mkdir(parents=True)
    rows = [f"{i},900,{1 - error / 100}\n" for i, error in enumerate(errors, start=1)]
    (folder / "log.csv").write_text("epoch,seconds,test_accuracy\n" + "".join(rows))
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
    """The weights of a model file, by name."""
    arrays = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset) and name != "info":
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


def environment(root=ROOT):
    """That of a new process, in which `python -m` finds our modules from any folder."""
    # Without what a start of the scripts sets in this one.
    started = ("TF_CPP_MIN_LOG_LEVEL", "TF_FORCE_GPU_ALLOW_GROWTH")
    kept = {k: v for k, v in os.environ.items() if k not in started}
    path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept["CUDA_VISIBLE_DEVICES"] = "-1"  # no word about a GPU, either
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}


def run(*arguments, program=(ROOT / "capsulenet.py",), **how):
    """Runs a script as a user does: a process of its own, in the folder of the test."""
    defaults = {"env": environment(), "encoding": "utf-8", "timeout": 300}
    defaults |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *map(str, (*program, *arguments))]
    return subprocess.run(command, **defaults | how)


def run_here(module, *arguments):
    """Runs a script or a study in this process; returns the exit status."""
    from capsnet import command_line

    argv = [str(argument) for argument in arguments]
    return command_line.main(argv, module.build_parser, module.run)


def main(*arguments):
    """Runs capsulenet.py here: what a process of its own would not show better."""
    import capsulenet

    try:
        return run_here(capsulenet, *arguments)
    except SystemExit as end:  # of --help
        return end.code


def quiet_main(*arguments):
    """Runs capsulenet.py in fixtures of a module; returns what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert main(*arguments) == 0
    return output.getvalue()


def refuse(capsys, *arguments, main=main):
    """Runs a program with what is wrong; returns what it says, before all else."""
    assert main(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return error_line(err)


def error_line(err):
    """The message of the one line on stderr in which a script ended."""
    program, kind, message = err.split(": ", maxsplit=2)
    assert kind == "error" and message.endswith("\n") and message.count("\n") == 1
    return message.removesuffix("\n")


def contents(folder, but=(".lock",)):
    """What is in a folder: of files the bytes, and when they were written."""
    return {
        str(path.relative_to(folder)): path.is_file()
        and (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.name not in but
    }


@pytest.fixture
def fails(capsys, tmp_path):
    """Runs what ends with one line, and returns the line; nothing is to be touched."""

    def fails(*arguments):
        before = contents(tmp_path)
        message = refuse(capsys, *arguments)
        assert contents(tmp_path) == before
        return message

    return fails


@pytest.fixture
def no_data(monkeypatch):
    """Ends a run where it loads its data."""
    from capsnet import datasets

    def load_dataset(*arguments):
        raise datasets.DataError(f"loading {arguments[1]}")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture
def on_step(monkeypatch):
    """Does something at the end of a training step."""
    from capsnet.callbacks import StopOnNaN

    def on_step(epoch, step, do):
        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch + 1, batch + 1) == (epoch, step):
                do()
            check(self, batch, logs)

        check = StopOnNaN.on_train_batch_end
        monkeypatch.setattr(StopOnNaN, "on_train_batch_end", on_train_batch_end)

    return on_step


def a_run(rows=(), **found):
    """A training in the folder `run` that has found so much, without a network."""
    from capsnet.callbacks import Run
    from capsnet.options import Options
    from capsnet.run_folder import RunFolder

    options = Options(RunFolder("run"))
    return Run(options, None, None, {}, {}, "digest", list(rows), **found)


@pytest.fixture(scope="session")
def published():
    """The published model of a digit, from images to lengths and reconstructions."""
    import capsulenet
    from capsnet import flags, weights

    train_model, eval_model, _ = capsulenet.CapsNet((28, 28, 1), 10)
    weights.load_weights(train_model, str(ROOT / flags.PRETRAINED))
    return eval_model


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    """The folder that a short training left, and the finished process."""
    folder = tmp_path_factory.mktemp("trained")
    sizes = ["--train_size", 300, "--batch_size", 30, "--data_dir", digits]
    rates = ["--epochs", 2, "--lr_decay", 0.5, "--seed", 1]
    process = run(*sizes, *rates, "--save_dir", "out/mnist", cwd=folder)
    assert process.returncode == 0, process.stderr
    return folder / "out" / "mnist", process


def leave_out_pictures(monkeypatch):
    """Leaves out the test at the end, which takes as long as all the rest."""
    import capsulenet

    monkeypatch.setattr(capsulenet, "test", lambda *arguments: None)
    monkeypatch.setattr(capsulenet, "manipulate_latent", lambda *arguments: None)


@pytest.fixture
def no_pictures(monkeypatch):
    leave_out_pictures(monkeypatch)


def assert_picture(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) >= 300
        assert np.ptp(np.asarray(picture.convert("L"))) > 200  # black, white, between

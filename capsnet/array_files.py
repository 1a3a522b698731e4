"""Arrays in files of two formats, npz and IDX: read with suspicion."""

import gzip
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from capsnet.errors import DataError, reason
from capsnet.memory import check_memory

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}

Arrays = dict[str, np.ndarray]


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
            # Deflating adds 5 bytes to 16 000 at most. Python's gzip reads zeros behind
            # the data to their end, however many there are.
            largest = size + size // 1000 + 4096
            if path.stat().st_size > largest:
                raise DataError(f"expected a file of at most {largest} bytes, got more")
            check_memory(size, "its bytes")
            data = file.read(size + 1)
            if len(data) != size:
                got = "more" if len(data) > size else len(data)
                raise DataError(f"expected {size} bytes of shape {shape}, got {got}")
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    return np.frombuffer(data, "uint8").reshape(shape)


def check_is_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe may never end
        raise DataError(f"{path}: expected a file, got a folder, a pipe or a device")


def read_npz(path: Path) -> Arrays:
    """Reads the arrays `x_train`, `y_train`, `x_test` and `y_test` of an npz file.

    Raises:
        DataError: If one is missing or cannot be read; pickled objects are not read.
    """
    check_is_file(path)
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # NumPy would propose to unpickle it
                raise DataError("expected a whole npz file, got something else")
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in IDX_FILES if name not in archive]
            if missing:
                raise DataError(f"{missing[0]} is not a file in the archive")
            members = [archive.zip.getinfo(f"{name}.npy") for name in IDX_FILES]
            check_memory(sum(member.file_size for member in members), "its arrays")
            arrays = {name: archive[name] for name in IDX_FILES}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):  # what is no npy file comes as bytes
                raise DataError(f"{name} is not an array")
        return arrays
    except Exception as error:  # a damaged file raises nearly anything
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None

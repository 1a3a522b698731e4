"""Arrays in files of two formats, npz and IDX: read with suspicion."""

import gzip
import io
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from capsnet.errors import DataError, one_line
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


def reason(error: Exception) -> str:
    """What an exception says, as a part of one line."""
    text = getattr(error, "strerror", None) or str(error)
    if not text:
        text = "it ends too soon" if isinstance(error, EOFError) else repr(error)
    return one_line(" ".join(text.split()))[:300].rstrip(".")

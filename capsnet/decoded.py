"""Pictures as one array: in memory or, where that is too small, in a file."""

import contextlib
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

import keras
import numpy as np

from capsnet import pictures
from capsnet.errors import DataError
from capsnet.memory import available_memory
from capsnet.run_folder import cache_folder, replace_file

SHARE = 0.5  # of the memory that is free; the rest is for the training


def read_pictures(paths: list[Path], shape: tuple[int, int, int]) -> np.ndarray:
    """Decodes pictures, fitted into one shape.

    Args:
        paths: Of the pictures.
        shape: Height, width and channels.

    Returns:
        An array of shape `(n, *shape)`, in [0, 1]: float32 or, where half of the memory
        is too small for that, float16, mapped from a file in `cache_folder()` that is
        made once for pictures of these names, sizes and times.

    Raises:
        DataError: If a picture is damaged, or there is no room for the file.
    """
    available = available_memory()
    needed = 4 * len(paths) * math.prod(shape)
    if available is None or needed <= SHARE * available:
        x = np.empty((len(paths), *shape), "float32")
        _decode(paths, x)
        return x
    return _map(paths, shape, needed)


def _decode(paths, x, bar=None) -> None:
    """Fills an array with pictures."""
    height, width, channels = x.shape[1:]
    for i, path in enumerate(paths):
        x[i] = pictures.fit_image(pictures.read_image(path, channels), height, width)
        if bar is not None and (i % 100 == 99 or i + 1 == len(paths)):
            bar.update(i + 1)


def _map(paths, shape, needed) -> np.ndarray:
    """The pictures in a file, which is made if it is not there."""
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    what = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    # The number changes with what is made of the pictures.
    key = hashlib.sha256(json.dumps([2, shape, what]).encode()).hexdigest()
    file = cache_folder() / f"pictures-{key[:16]}.npy"
    expected = ((len(paths), *shape), np.dtype("float16"))
    with contextlib.suppress(OSError, ValueError, EOFError):  # none, or a damaged one
        x = np.load(file, mmap_mode="r", allow_pickle=False)
        if (x.shape, x.dtype) == expected:
            return x
    file.parent.mkdir(parents=True, exist_ok=True)
    for leftover in file.parent.glob(f".*.{file.name}"):  # of a process that was killed
        leftover.unlink()
    free = shutil.disk_usage(file.parent).free
    if needed / 2 > free:
        raise DataError(
            f"{len(paths)} images: expected {needed / 1e9:.1f} GB of memory, or "
            f"{needed / 2e9:.1f} GB of disk space in {file.parent} (or in the folder "
            f"that CAPSNET_CACHE names), found {free / 1e9:.1f} GB there; a smaller "
            "--image_size or --grayscale helps, too"
        )
    print(
        f"{len(paths)} images would take {needed / 1e9:.1f} GB of memory: decoding "
        f"them once into {file}"
    )
    bar = keras.utils.Progbar(len(paths)) if sys.stdout.isatty() else None
    with replace_file(file) as temporary:
        x = np.lib.format.open_memmap(temporary, "w+", expected[1], expected[0])
        _decode(paths, x, bar)
        x.flush()
    return np.load(file, mmap_mode="r", allow_pickle=False)

"""IDX files: the four of a folder, plain or compressed."""

import struct
from functools import partial

import numpy as np

from capsnet.array_files import IDX_FILES
from tests.long.cases import (
    NUMBERS,
    Case,
    Kind,
    gzipped,
    gzipped_zeros,
    load_dataset,
    no_file,
)

N = {"train": 12, "test": 6}
SIDES = (20, 18)


def idx(array: np.ndarray, magic: bytes | None = None, shape=None) -> bytes:
    shape = array.shape if shape is None else shape
    magic = magic or bytes([0, 0, 8, len(shape)])
    return magic + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


def arrays(rng) -> dict[str, np.ndarray]:
    made = {}
    for part, n in N.items():
        pixels = np.frombuffer(rng.randbytes(n * SIDES[0] * SIDES[1]), "uint8")
        made[f"x_{part}"] = pixels.reshape(n, *SIDES)
        made[f"y_{part}"] = np.arange(n, dtype="uint8") % 10
    return made


def valid(rng, target=None, packed=None) -> Case:
    target = target or rng.choice(list(IDX_FILES))
    packed = rng.random() < 0.5 if packed is None else packed
    contents = {name: idx(array) for name, array in arrays(rng).items()}
    paths = {name: f"data/{IDX_FILES[name]}" + ".gz" * packed for name in contents}
    files = {paths[n]: gzipped(c) if packed else c for n, c in contents.items()}
    argv = ["--dataset", "data"]
    if rng.random() < 0.3:
        argv = ["--dataset", "mnist", "--data_dir", "data"]
    if rng.random() < 0.2:
        argv += ["--image_size", "30", "17"]
    inner = contents[target] if packed else None
    return Case(files, argv, target=paths[target], inner=inner, pack=gzipped)


def change(rng, target, content, what, refused=True) -> Case:
    case = valid(rng, target)
    content = content if case.inner is None else gzipped(content)
    return case.change(content, what, refused)


def magic(rng):
    name = rng.choice(list(IDX_FILES))
    array = arrays(rng)[name]
    right = bytes([0, 0, 8, array.ndim])
    at = rng.randrange(4)
    value = rng.choice([v for v in (*range(20), 254, 255) if v != right[at]])
    wrong = right[:at] + bytes([value]) + right[at + 1 :]
    return change(rng, name, idx(array, wrong), f"magic {wrong.hex()}")


def sizes(rng):
    name = rng.choice(list(IDX_FILES))
    array = arrays(rng)[name]
    shape = list(array.shape)
    for _ in range(rng.randint(1, 3)):
        near = rng.choice(shape) + rng.choice((-1, 1))
        shape[rng.randrange(len(shape))] = rng.choice((near, *NUMBERS)) % 2**32
    same = tuple(shape) == array.shape
    return change(rng, name, idx(array, shape=shape), f"sizes {shape}", not same)


def bomb(rng):
    """What unpacks to far more than the file has."""
    megabytes = rng.choice((100, 1000, 6000))
    said = rng.choice((100, megabytes, 100_000))  # in the header, in megabytes
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1000 * said, 25, 40)
    what = f"{megabytes} MB of zeros, the header says {said}"
    content = gzipped(header) + gzipped_zeros(megabytes)
    return valid(rng, "x_train", True).change(content, what, True)


IDX = Kind(
    valid,
    [
        *(magic, sizes, bomb),
        partial(no_file, valid),
    ],
    load_dataset,
)

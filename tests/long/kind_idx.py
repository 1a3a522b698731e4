"""IDX files: the four of a folder, plain or compressed."""

import gzip
import struct

import numpy as np

from capsnet import mnist
from tests.long.cases import (
    NUMBERS,
    Case,
    Kind,
    damage,
    damage_gzip_header,
    load_dataset,
    pack,
    special,
    zeros,
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


def of_arrays(rng, contents: dict[str, bytes], target: str, packed=None) -> Case:
    packed = rng.random() < 0.5 if packed is None else packed
    files = {}
    for name, content in contents.items():
        path = f"data/{mnist.IDX_FILES[name]}" + (".gz" if packed else "")
        files[path] = pack(content) if packed else content
        if name == target:
            chosen = path
    argv = ["--dataset", "data"]
    if rng.random() < 0.3:
        argv = ["--dataset", "mnist", "--data_dir", "data"]
    if rng.random() < 0.2:
        argv += ["--image_size", "30", "17"]
    return Case(files, argv, target=chosen, inner=packed)


def valid(rng, target=None, packed=None) -> Case:
    target = target or rng.choice(list(mnist.IDX_FILES))
    contents = {name: idx(array) for name, array in arrays(rng).items()}
    return of_arrays(rng, contents, target, packed)


def change(rng, target, content, what, refused=False, packed=None) -> Case:
    case = valid(rng, target, packed)
    content = pack(content) if case.inner else content
    return case.change(content, f"{case.target}: {what}", refused)


def magic(rng):
    name = rng.choice(list(mnist.IDX_FILES))
    array = arrays(rng)[name]
    right = bytes([0, 0, 8, array.ndim])
    at = rng.randrange(4)
    value = rng.choice([v for v in (*range(20), 254, 255) if v != right[at]])
    wrong = right[:at] + bytes([value]) + right[at + 1 :]
    return change(rng, name, idx(array, wrong), f"magic {wrong.hex()}", True)


def sizes(rng):
    name = rng.choice(list(mnist.IDX_FILES))
    array = arrays(rng)[name]
    shape = list(array.shape)
    for _ in range(rng.randint(1, 3)):
        near = rng.choice(shape) + rng.choice((-1, 1))
        shape[rng.randrange(len(shape))] = rng.choice((near, *NUMBERS)) % 2**32
    same = tuple(shape) == array.shape
    return change(rng, name, idx(array, shape=shape), f"sizes {shape}", not same)


def other_shape(rng):
    """Sizes and data that agree, but perhaps not with the other files."""
    name = rng.choice(("x_train", "x_test"))
    n = N[name[2:]]
    shape = rng.choice(
        [(n + 1, *SIDES), (n, 1, 1), (n, 0, 5), (0, 20, 18), (n, 18, 20), (n, 1, 60000)]
    )
    array = np.zeros(shape, "uint8")
    return change(rng, name, idx(array), f"shape {shape}", True)


def labels(rng):
    name = rng.choice(("y_train", "y_test"))
    n = N[name[2:]]
    y = np.arange(n, dtype="uint8") % 10
    what = rng.choice(("beyond", "one class", "too few", "too many"))
    if what == "beyond":  # the classes of train decide, but for MNIST
        y[rng.randrange(n)] = rng.randint(13, 255)
    elif what == "one class":
        y[:] = 0
    y = {"too few": y[:-1], "too many": np.append(y, 0)}.get(what, y)
    refused = what != "beyond" and (name == "y_train" or what != "one class")
    refused = refused or (name == "y_test" and what == "beyond")
    return change(rng, name, idx(y.astype("uint8")), f"labels: {what}", refused)


def length(rng):
    name = rng.choice(list(mnist.IDX_FILES))
    data = idx(arrays(rng)[name])
    n = rng.choice((1, 2, 4, 8, 100, len(data) - 3))
    longer = rng.random() < 0.5
    data = data + rng.randbytes(n) if longer else data[:-n]
    what = f"{n} bytes {'more' if longer else 'less'}"
    return change(rng, name, data, what, True)


def bomb(rng):
    """What unpacks to far more than the file has."""
    megabytes = rng.choice((100, 1000, 6000))
    said = rng.choice((100, megabytes, 100_000))  # in the header, in megabytes
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1000 * said, 25, 40)
    case = valid(rng, "x_train", True)
    return case.change(
        pack(header) + zeros(megabytes),
        f"{megabytes} MB of zeros, the header says {said}",
        True,
    )


def sparse(rng):
    """A file of the size that its header says, and not a byte more on the disk."""
    megabytes = rng.choice((100, 2500, 6000, 1_000_000))
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 1000 * megabytes, 25, 40)

    def make(path):
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(len(header) + 10**6 * megabytes)

    return valid(rng, "x_train", False).change(make, f"{megabytes} MB of zeros", True)


def gzip_header(rng):
    case = valid(rng, packed=True)
    data, what = damage_gzip_header(rng, case.files[case.target])
    return case.change(data, f"{case.target}: {what}")


def gzip_members(rng):
    case = valid(rng, packed=True)
    data = case.files[case.target]
    what = rng.choice(("an empty member more", "garbage behind", "zeros behind"))
    behind = {"an empty member more": pack(b""), "zeros behind": bytes(50)}
    data += behind.get(what, b"garbage")
    return case.change(data, f"{case.target}: {what}", what == "garbage behind")


def packed_or_not(rng):
    """A compressed file by the name of a plain one, or the other way round."""
    case = valid(rng)
    data = case.files[case.target]
    data = gzip.decompress(data) if case.inner else pack(data)
    return case.change(data, f"{case.target}: compression does not fit the name", True)


def files(rng):
    """Files that are missing, swapped, or there twice."""
    case = valid(rng)
    names = list(case.files)
    what = rng.choice(("missing", "swapped", "npz as well", "only a folder"))
    if what == "missing":
        case.files.pop(rng.choice(names))
    elif what == "swapped":
        case.files[names[0]], case.files[names[1]] = (
            case.files[n] for n in names[1::-1]
        )
    elif what == "npz as well":
        case.files["data/mnist.npz"] = rng.choice(
            (b"", b"PK\x03\x04", rng.randbytes(99))
        )
    else:
        case.files = {"data/nothing": b""}
    case.what, case.refused = f"files {what}", True
    return case


def header_damage(rng):
    """Random damage, but to the header alone."""
    name = rng.choice(list(mnist.IDX_FILES))
    data = idx(arrays(rng)[name])
    start, said = damage(rng, data[:16])
    return change(rng, name, start + data[16:], f"header: {said}")


def no_file(rng):
    return special(rng, valid(rng))


def npz_is_no_file(rng):
    case = valid(rng)
    case.target = "data/mnist.npz"
    made = special(rng, case)
    # Links that lead nowhere are no file, and the others count.
    made.refused = "link" not in made.what
    return made


IDX = Kind(
    valid,
    [
        *(magic, sizes, bomb, other_shape, labels, length, sparse, gzip_header),
        *(gzip_members, packed_or_not, files, header_damage, no_file, npz_is_no_file),
    ],
    load_dataset,
)

"""npz files: zip archives of arrays."""

import ast
import io
import os
import pickle
import struct
import zipfile
from functools import partial

import numpy as np

from tests.long.cases import Case, Kind, load_dataset, no_file, zip_bomb, zipped

PARTS = ("x_train", "y_train", "x_test", "y_test")


class Attack:
    """Calls a function when it is unpickled: it would create the canary."""

    def __reduce__(self):
        return os.system, ("touch stolen",)


def arrays(rng, form: str | None = None) -> dict[str, np.ndarray]:
    """A small data set in one of the forms that are right."""
    channels = rng.choice(((), (1,), (3,)))
    dtype = rng.choice(("u1", "u1", ">u2", "<i4", "<i8", "<f2", "<f4", ">f8", "g"))
    form = form or rng.choice(("numbers", "names", "bytes", "one-hot", "column"))
    fortran = rng.random() < 0.3
    made = {}
    for part, n in (("train", 12), ("test", 6)):
        shape = (n, 20, 18, *channels)
        x = np.frombuffer(rng.randbytes(int(np.prod(shape))), "uint8").reshape(shape)
        x = x.astype(dtype)
        x = x / 255 if x.dtype.kind == "f" else x
        made[f"x_{part}"] = np.asarray(x, dtype, order="F" if fortran else "C")
        y = np.arange(n) % 3
        made[f"y_{part}"] = {
            "numbers": y.astype(rng.choice(("u1", ">i4", "<u8"))),
            "names": np.array(["ant", "bee", "straße"])[y],
            "bytes": np.array([b"ant", b"bee", b"cat"])[y],
            "one-hot": np.eye(3, dtype=rng.choice(("u1", "?", "<f4")))[y],
            "column": y[:, np.newaxis],
        }[form]
    return made


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def forged(header: str, data: bytes = b"") -> bytes:
    """An npy file with any header."""
    text = header.encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def describe(descr: str, shape, fortran: bool = False) -> str:
    """The text of a header."""
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def members(rng, changes: dict | None = None) -> dict[str, bytes]:
    contents = {name: npy(array) for name, array in arrays(rng).items()}
    return {f"{name}.npy": c for name, c in (contents | (changes or {})).items()}


def of_archive(rng, data, what="valid", refused=False) -> Case:
    argv, path = ["--dataset", "own.npz"], "own.npz"
    if rng.random() < 0.2:
        argv, path = ["--dataset", "data"], "data/mnist.npz"
    if rng.random() < 0.2:
        argv += ["--image_size", "17", "30"]
    if rng.random() < 0.2:
        argv += ["--grayscale"]
    return Case({path: data}, argv, what, refused, target=path)


def valid(rng) -> Case:
    made, method = members(rng), rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    case = of_archive(rng, zipped(made, method))
    name = rng.choice(list(made))  # damage in it has the right checksum
    case.inner = made[name]
    case.pack = lambda data: zipped({**made, name: data}, method)
    return case


def with_member(rng, name, data, what, refused=True) -> Case:
    made = members(rng, {name: data})
    return of_archive(rng, zipped(made), f"{name}: {what}", refused)


TYPES = (
    *("'O'", "'|O8'", "'V1000000000'", "'|V0'", "'<U100000000'", "'<U0'", "'|S0'"),
    *("'<M8[s]'", "'<c16'", "('<f4', (1000, 1000))", "[('a', '<f4')]", "[('a', 'O')]"),
    *("'f1024'", "''", "[]", "None", "'i8,O'", "'<f4\\x00'", "'(2000,2000)f8'", "'T'"),
)
SHAPES = (
    *("(-1,)", "(-12, -20, 18)", "(12, -20, -18)", "(2**62,)", "12", "[12, 20, 18]"),
    *("(4611686018427387904, 4)", "(18446744073709551616,)", "(12.0, 20, 18)"),
    *("(True, True, True)", "(12, 20, 18, 0)", "(0,)", "()", "None"),
    *("(1000000, 1000000)", "(3000000000,)", "(" + "1, " * 65 + ")"),
    "(" + "9" * 9000 + ",)",
)


def header(rng):
    """Another type or shape in a header, with or without data that fits."""
    descr, shape = "'|u1'", "(12, 20, 18)"
    if rng.random() < 0.5:
        descr = rng.choice(TYPES)
    else:
        shape = rng.choice(SHAPES)
    text = describe(descr, shape, rng.random() < 0.5)
    size = size_of(descr, shape)
    fits = size is not None and 0 <= size <= 10**6 and rng.random() < 0.8
    data = bytes(size) if fits else rng.randbytes(1000)
    return with_member(rng, rng.choice(PARTS), forged(text, data), text[:150], not fits)


def size_of(descr: str, shape: str) -> int | None:
    """The bytes that a header promises; `None` if it makes no sense at all."""
    try:
        dtype = np.dtype(ast.literal_eval(descr))
        return int(np.prod(ast.literal_eval(shape), dtype=object)) * dtype.itemsize
    except Exception:
        return None


def objects(rng):
    """Arrays of pickled objects that run code when they are unpickled."""
    name, attack = rng.choice(PARTS), pickle.dumps(Attack(), rng.randrange(6))
    way = rng.choice(("array", "pickle alone", "in a structure", "no archive"))
    descr = "[('a', '|O')]" if way == "in a structure" else "'|O'"
    content = forged(describe(descr, "(12,)"), attack)
    if way == "no archive":
        return of_archive(rng, rng.choice((attack, content)), way, True)
    content = attack if way == "pickle alone" else content
    return with_member(rng, name, content, f"code, {way}")


def directory(rng):
    """Members that are missing, by other names, or not as the directory says."""
    made = members(rng)
    name = rng.choice(list(made))
    lies = {
        "missing": None,
        "renamed": None,
        "encrypted": {"flag_bits": 1},
        "of another method": {"compress_type": rng.choice((1, 12, 14, 99))},
        "of another size": {"file_size": rng.choice((0, 100, 2**31, 2**32 - 2))},
        "of another checksum": {"CRC": 1},
    }
    what = rng.choice(list(lies))
    if what in ("missing", "renamed"):
        data = made.pop(name)
        made |= {f"../{name}": data} if what == "renamed" else {}
    lie = {name: lies[what]} if lies[what] else None
    # A size in the directory that is too large means nothing to who knows the shape.
    refused = what != "of another size"
    return of_archive(rng, zipped(made, lies=lie), f"{name} {what}", refused)


def bomb(rng):
    """A member that unpacks to gigabytes, with a header that says so or does not."""
    name = rng.choice(PARTS)
    megabytes = rng.choice((100, 1000, 2900, 6000))
    dtype, item = rng.choice((("|u1", 1), ("<f8", 8), ("<U250", 1000)))
    shape = (12, rng.choice((megabytes, 1)) * 10**6 // 12 // item)
    start = forged(describe(repr(dtype), shape))
    size = len(start) + int(np.prod(shape)) * item
    size = rng.choice((size, size, len(start) + megabytes * 10**6)) % 2**32
    data = zip_bomb(members(rng), f"{name}.npy", start, megabytes, size)
    what = f"{name}: {megabytes} MB of zeros as {dtype} {shape}, {size} bytes said"
    return of_archive(rng, data, what, True)


NPZ = Kind(
    valid,
    [
        *(header, directory, bomb, objects),
        partial(no_file, valid),
    ],
    load_dataset,
)

"""The pickle of MNIST in the package from PyPI, behind the wall of its checksum."""

import os
import pickle
import struct
import subprocess

import numpy as np

from tests.long.cases import (
    Case,
    Kind,
    WrongLoadError,
    damage_gzip_header,
    pack,
    special,
    zeros,
)

NAME = "mnist.pkl.gz"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"


class Attack:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attack_call(rng) -> tuple[str, bytes]:
    """A pickle that would create the canary, in one of many ways."""
    protocol = rng.randrange(6)
    touch = "touch stolen"
    code = "open('stolen', 'w')"
    attacks = {
        "os.system": pickle.dumps(Attack(os.system, touch), protocol),
        "eval": pickle.dumps(Attack(eval, code), protocol),
        "exec": pickle.dumps(Attack(exec, code), protocol),
        "open": pickle.dumps(Attack(open, "stolen", "w"), protocol),
        "os.mkdir": pickle.dumps(Attack(os.mkdir, "stolen"), protocol),
        "Popen": pickle.dumps(Attack(subprocess.Popen, ["touch", "stolen"]), protocol),
        "inst": b"(S'touch stolen'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'touch stolen'\no.",
        "newobj": b"\x80\x02cbuiltins\nopen\n(S'stolen'\nS'w'\nt\x81.",
        "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0c%s\x85R."
        % touch.encode(),
        "dotted": b"\x80\x04\x8c\x05numpy\x8c\x0eos.path.system\x93\x8c\x0c%s\x85R."
        % touch.encode(),
        "numpy's": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n"
        b"X\x13\0\0\0open('stolen', 'w')}\x86R.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\nX\6\0\0\0system\x86R"
        b"X\x0c\0\0\0touch stolen\x85R.",
        "ext": b"\x80\x02\x82\x01.",
        "persid": b"Ptouch stolen\n.",
        "build": b"\x80\x02" + DTYPE + b"}X\x0c\0\0\0__setstate__cos\nsystem\nsb"
        b"X\x0c\0\0\0touch stolenb.",
    }
    what = rng.choice(list(attacks))
    return what, attacks[what]


def string(data: bytes) -> bytes:
    """Python 2's `str`."""
    if len(data) < 256:
        return b"U" + bytes([len(data)]) + data
    return b"T" + struct.pack("<I", len(data)) + data


def number(n: int) -> bytes:
    if 0 <= n < 256:
        return b"K" + bytes([n])
    if -(2**31) <= n < 2**31:
        return b"J" + struct.pack("<i", n)
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def dtype(name=b"f4", state=None) -> bytes:
    state = state or b"(" + number(3) + string(b"<") + b"NNN" + number(-1) * 2
    state += number(0) + b"t"
    return DTYPE + string(name) + number(0) + number(1) + b"\x87R" + state + b"b"


def array(x: np.ndarray, **lies) -> bytes:
    """An array as Python 2 pickles it; any part may be replaced."""
    f = {
        "start": RECONSTRUCT + NDARRAY + number(0) + b"\x85" + string(b"b") + b"\x87R",
        "version": number(1),
        "shape": b"(" + b"".join(map(number, x.shape)) + b"t",
        "dtype": dtype(x.dtype.str[1:].encode()),
        "fortran": b"\x89",
        "data": string(x.tobytes()),
    } | lies
    state = f["version"] + f["shape"] + f["dtype"] + f["fortran"] + f["data"]
    return f["start"] + b"(" + state + b"tb"


def plain(rng, changes: dict | None = None, chosen: int = -1) -> bytes:
    """The pickle; `changes` are lies about the array of that number."""
    parts = []
    for i, n in enumerate((10, 4, 5)):
        x = np.frombuffer(rng.randbytes(n * 784), "uint8").reshape(n, 784)
        pair = [(x / np.float32(256)).astype("<f4"), np.arange(n, dtype="<i8") % 10]
        made = []
        for j, values in enumerate(pair):
            made.append(array(values, **(changes or {} if 2 * i + j == chosen else {})))
        parts.append(b"".join(made) + b"\x86")
    return b"\x80\x02" + b"".join(parts) + b"\x87."


def of_pickle(content: bytes, what: str, refused: bool = True) -> Case:
    return Case(
        {NAME: pack(content)}, ["--dataset", "mnist"], what, refused, NAME, True
    )


def valid(rng) -> Case:
    return of_pickle(plain(rng), "valid", False)


SHAPES = (
    *((), (10,), (784,), (10, 785), (9, 784), (11, 784), (10, 28, 28), (-10, 784)),
    *((10**9, 784), (2**62, 4), (2**64, 784), (0, 784), (0,), (-1, -1), (10, 0)),
    *((10**6, 10**6), (5,), (1,) * 40, (2**31, 2**31, 4)),
)
TYPES = (
    *(b"O", b"O8", b"V1000000000", b"U1000000000", b"S0", b"f8", b"i4", b"f2", b"c8"),
    *(b"M8[s]", b"f4,f4", b"(1000,1000)f8", b"i8,O", b"", b"x", b"g", b"b1", b"\xff"),
)
STATES = (
    b"(" + number(3) + string(b">") + b"NNN" + number(-1) * 2,
    b"(" + number(3) + string(b"|") + b"NNN" + number(-1) * 2,
    b"(" + number(3) + string(b"<") + b"NNN" + number(10**9) * 2,
    b"(" + number(4) + string(b"<") + b"NNN" + number(0) * 2,
    b"(" + number(3) + b"N" + b"NNN" + number(-1) * 2,
    b"(" + number(3) + string(b"<") + string(b"a") * 2 + b"N" + number(-1) * 2,
    b"(" + number(3) + string(b"<") + b"N" + string(b"a") + b"\x85}" + number(8) * 2,
    b"(" + number(3) + string(b"<") + DTYPE + number(9) + b"\x86NN" + number(8) * 2,
    b"(" + number(99),
    b"(",
)


def shape(rng):
    i, wrong = rng.randrange(6), rng.choice(SHAPES)
    data = {} if rng.random() < 0.7 else {"data": rng.choice((b"N", b"]", string(b"")))}
    parts = b"(" + b"".join(map(number, wrong)) + b"t"
    return of_pickle(
        plain(rng, {"shape": parts, **data}, i), f"array {i}: shape {wrong}"
    )


def type_(rng):
    i = rng.randrange(6)
    if rng.random() < 0.5:
        name = rng.choice(TYPES)
        lie, what = dtype(name), str(name)
    else:
        state = rng.choice(STATES)
        lie, what = dtype(b"f4" if i % 2 == 0 else b"i8", state), f"state {state[:60]}"
    return of_pickle(plain(rng, {"dtype": lie}, i), f"array {i}: type {what}")


def start(rng):
    """What builds the array that is filled then."""
    i = rng.randrange(6)
    kind, size = rng.choice((b"b", b"O", b"f8", b"V99")), rng.choice((0, 10**9, 10**12))
    lie = RECONSTRUCT + NDARRAY + number(size) + b"\x85" + string(kind) + b"\x87R"
    if rng.random() < 0.4:
        lie = rng.choice(
            [
                NDARRAY + number(size) + b"\x85" + string(kind) + b"\x86R",
                NDARRAY + number(size) + b"\x85" + string(kind) + b"\x86\x81",
                DTYPE + string(kind) + b"\x85R",
                NDARRAY,
                RECONSTRUCT,
                *(b"N", b"]", b"}", b")", number(3)),
            ]
        )
    content = plain(rng, {"start": lie}, i)
    # What it is before it is filled does not matter, and is not looked at.
    return of_pickle(content, f"array {i}: start {lie[-60:]}", False)


def field(rng):
    i = rng.randrange(6)
    key = rng.choice(("version", "fortran", "data", "dtype"))
    lie = rng.choice(
        (b"N", b"\x88", number(2), number(10**30), string(b"x"), b")", b"}")
    )
    refused = key in ("data", "dtype")
    return of_pickle(plain(rng, {key: lie}, i), f"array {i}: {key} {lie}", refused)


def values(rng):
    i = rng.choice((0, 1, 2, 3, 4, 5))
    n = (10, 4, 5)[i // 2]
    if i % 2 == 0:
        value = rng.choice((np.nan, np.inf, -np.inf, -1, 1, 255, 3e38, -1e-9))
        data = np.full((n, 784), value, "<f4")
    else:
        value = rng.choice((-1, 10, 255, 256, 2**40, -(2**63), 2**63 - 1))
        data = np.full(n, value, "<i8")
    lie = {"data": string(data.tobytes())}
    return of_pickle(plain(rng, lie, i), f"array {i}: all {value}")


HUGE = struct.pack("<Q", 2**40)
OPERATIONS = {
    "a memo of 32 GB": b"Nr\xff\xff\xff\x7f",
    "a memo of 2 GB": b"Nr\0\0\0\x08",
    "text memo": b"Np2000000000\n",
    "bytes of 1 TB": b"\x8e" + HUGE,
    "bytearray of 1 TB": b"\x96" + HUGE,
    "bytearray of 3 GB": b"\x96" + struct.pack("<Q", 3 * 10**9) + bytes(100),
    "text of 1 TB": b"\x8d" + HUGE,
    "text of 4 GB": b"X\xff\xff\xff\xff",
    "string of 2 GB": b"T\xff\xff\xff\x7f",
    "string of negative size": b"T\xff\xff\xff\xff",
    "frame of 1 TB": b"\x95" + HUGE,
    "number of 2 GB": b"\x8b\xff\xff\xff\x7f",
    "negative number": b"\x8b\xff\xff\xff\xff",
    "number as text": b"I" + b"9" * 10**5 + b"\n",
    "long as text": b"L" + b"9" * 10**5 + b"L\n",
    "a number of bits": b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
    "nested tuples": b")" + b"\x85" * 10**6,
    "nested lists": b"]" * 10**5 + b"a" * (10**5 - 1),
    "hash of nested tuples": b"})" + b"\x85" * 10**6 + b"Ns",
    "doubling": b")" + b"q\0h\0\x86" * 400,
    "doubling, hashed": b"})" + b"q\0h\0\x86" * 60 + b"Ns",
    "doubling in a type": DTYPE
    + string(b"f4")
    + b"\x85R("
    + number(3)
    + b")"
    + b"q\0h\0\x86" * 60
    + b"NNN"
    + number(-1) * 2
    + number(0)
    + b"tb",
    "many marks": b"(" * 10**6,
    "many values": b"N" * 10**6,
    "pop from nothing": b"0" * 10,
    "nothing": b"",
    "stop": b".",
    "another protocol": b"\x80\xff",
    "get from nowhere": b"h\xff",
    "build a class": NDARRAY + b"}b",
    "build a class with slots": NDARRAY + b"N}X\x08\0\0\0__init__NS\x86b",
    "next buffer": b"\x97",
    "frozen set": b"(NN\x91",
    "a float": b"F1e999\n",
}


def operation(rng):
    what = rng.choice(list(OPERATIONS))
    place = rng.choice(("alone", "before", "as data"))
    if place == "alone":
        content = b"\x80\x02" + OPERATIONS[what] + b"."
    elif place == "before":
        content = b"\x80\x02" + OPERATIONS[what] + plain(rng)
    else:
        content = plain(rng, {"data": OPERATIONS[what]}, rng.randrange(6))
    harmless = place == "before" and what in ("nothing", "doubling")
    return of_pickle(content, f"{what}, {place}", not harmless)


def attack(rng):
    what, content = attack_call(rng)
    place = rng.choice(("alone", "as data", "as start", "behind"))
    body = content.removesuffix(b".")
    if place == "as data":
        content = plain(rng, {"data": body}, rng.randrange(6))
    elif place == "as start":
        content = plain(rng, {"start": body}, rng.randrange(6))
    elif place == "behind":  # which is not read
        content = plain(rng) + content
    return of_pickle(content, f"{what}, {place}", place != "behind")


def structure(rng):
    """Other things than three pairs of arrays."""
    x = array(np.zeros((3, 784), "<f4"))
    y = array(np.zeros(3, "<i8"))
    pair = x + y + b"\x86"
    content = rng.choice(
        [
            *(x, y, pair, pair * 2 + b"\x86", b"(" + pair * 4 + b"t", b"(" + pair * 2),
            *(x + y + b"\x87", pair * 2 + x + b"\x87", pair * 2 + b"N\x87", b")" * 3),
            (y + x + b"\x86") * 3 + b"\x87",
            (x + array(np.zeros(2, "<i8")) + b"\x86") * 3 + b"\x87",
            (array(np.zeros((0, 784), "<f4")) + array(np.zeros(0, "<i8")) + b"\x86") * 3
            + b"\x87",
            (DTYPE + string(b"f4") + b"\x85R" + y + b"\x86") * 3 + b"\x87",
        ]
    )
    return of_pickle(b"\x80\x02" + content + b".", f"structure {content[-20:]}")


def bomb(rng):
    megabytes = rng.choice((200, 1000, 6000))
    what = rng.choice(("zeros", "a string", "values"))
    start = {
        "zeros": b"",
        "a string": b"\x80\x02T\xff\xff\xff\x7f",
        "values": b"\x80\x02",
    }
    case = valid(rng)
    data = pack(start[what]) + zeros(megabytes)
    if what == "values":
        data = pack(start[what]) + pack(b"N" * 10**6) * megabytes
    return case.change(data, f"{megabytes} MB of {what}", True)


def gzip_header(rng):
    case = valid(rng)
    data, what = damage_gzip_header(rng, case.files[NAME])
    return case.change(data, what)


def not_packed(rng):
    case = valid(rng)
    what = rng.choice(("plain", "packed twice", "cut", "garbage behind"))
    data = plain(rng)
    made = {"plain": data, "packed twice": pack(pack(data)), "cut": pack(data)[:-9]}
    return case.change(made.get(what, pack(data) + b"garbage"), what, True)


def no_file(rng):
    case = special(rng, valid(rng))
    while any(word in case.what for word in ("pipe", "folder", "link")):
        case = special(rng, valid(rng))  # it is a member of a wheel, never that
    return case


def read(args) -> None:
    """Reads the pickle as `mnist._read_wheel` does once the checksum is right."""
    from capsnet import mnist

    with open(NAME, "rb") as file:
        arrays = mnist._read_pickle(file)
    mnist._check_form(arrays)
    for name, values in arrays.items():
        if values.dtype != np.uint8 or values.shape[1:] != (28, 28)[: values.ndim - 1]:
            raise WrongLoadError(f"{name}: {values.dtype} {values.shape}")


PICKLE = Kind(
    valid,
    [
        *(shape, type_, attack, operation, start, bomb, field, values, structure),
        *(operation, attack, gzip_header, not_packed, type_, no_file),
    ],
    read,
)

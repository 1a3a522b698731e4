"""npz files: zip archives of arrays, written here byte by byte."""

import ast
import dataclasses
import io
import os
import pickle
import struct
import zlib

import numpy as np

from tests.long.cases import (
    NUMBERS,
    Case,
    Kind,
    damage,
    deflated_zeros,
    load_dataset,
    special,
)

STORED, DEFLATED = 0, 8
PARTS = ("x_train", "y_train", "x_test", "y_test")


class Attack:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attack_call(rng) -> tuple[str, bytes]:
    """A pickle that would create the canary."""
    what, attack = rng.choice(
        [
            ("os.system", Attack(os.system, "touch stolen")),
            ("eval", Attack(eval, "open('stolen', 'w')")),
            ("os.mkdir", Attack(os.mkdir, "stolen")),
        ]
    )
    return what, pickle.dumps(attack, rng.randrange(6))


def arrays(rng, form: str | None = None) -> dict[str, np.ndarray]:
    """A small data set in one of the forms that are right."""
    channels = rng.choice(((), (1,), (3,)))
    dtype = rng.choice(("u1", "u1", ">u2", "<i4", "<i8", "<f2", "<f4", ">f8", "g"))
    form = form or rng.choice(("numbers", "names", "bytes", "one-hot", "column"))
    fortran = rng.random() < 0.3
    made = {}
    for part, n in (("train", 12), ("test", 6)):
        x = np.frombuffer(rng.randbytes(n * 20 * 18 * 3), "uint8")
        x = x[: n * 20 * 18 * (channels or (1,))[0]].reshape(n, 20, 18, *channels)
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
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def forged(
    header: bytes | str, data: bytes = b"", version=(1, 0), length=None
) -> bytes:
    header = header if isinstance(header, bytes) else header.encode("utf-8")
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    length = len(header) if length is None else length
    size = struct.pack("<H" if version[0] == 1 else "<I", length)
    return b"\x93NUMPY" + bytes(version) + size + header + data


@dataclasses.dataclass
class Member:
    """A member of an archive; each field may lie, in `local` or `central` alone."""

    name: str
    data: bytes
    method: int = DEFLATED
    payload: bytes | None = None
    local: dict = dataclasses.field(default_factory=dict)
    central: dict = dataclasses.field(default_factory=dict)

    def fields(self) -> dict:
        if self.payload is None:
            self.payload = self.data
            if self.method == DEFLATED:
                packer = zlib.compressobj(1, zlib.DEFLATED, -15)
                self.payload = packer.compress(self.data) + packer.flush()
        return {
            "version": 20,
            "flags": 0,
            "method": self.method,
            "time": 0,
            "date": 33,
            "crc": zlib.crc32(self.data),
            "packed": len(self.payload),
            "size": len(self.data),
            "name": self.name.encode(),
            "extra": b"",
        }


def archive(members: list[Member], end: dict | None = None, behind=b"") -> bytes:
    """A zip file."""
    content, directory = b"", b""
    for member in members:
        offset = len(content)
        f = member.fields() | member.local
        content += struct.pack(
            "<4s5H3I2H",
            b"PK\3\4",
            *(f[k] for k in ("version", "flags", "method", "time", "date")),
            *(f[k] for k in ("crc", "packed", "size")),
            *(len(f["name"]), len(f["extra"])),
        )
        content += f["name"] + f["extra"] + member.payload
        f = member.fields() | {"offset": offset, "disk": 0, "external": 0}
        f |= member.central
        directory += struct.pack(
            "<4s6H3I5H2I",
            *(b"PK\1\2", 20, f["version"], f["flags"], f["method"]),
            *(f["time"], f["date"], f["crc"], f["packed"], f["size"]),
            *(len(f["name"]), len(f["extra"]), 0, f["disk"], 0),
            *(f["external"], f["offset"]),
        )
        directory += f["name"] + f["extra"]
    f = {"disk": 0, "first": 0, "here": len(members), "all": len(members)}
    f |= {"size": len(directory), "offset": len(content), "comment": 0} | (end or {})
    trailer = struct.pack(
        "<4s4H2IH",
        b"PK\5\6",
        *(f[k] for k in ("disk", "first", "here", "all", "size", "offset", "comment")),
    )
    return content + directory + trailer + behind


def members(rng, changes: dict | None = None) -> list[Member]:
    method = rng.choice((STORED, DEFLATED))
    contents = {name: npy(array) for name, array in arrays(rng).items()}
    contents |= changes or {}
    return [Member(f"{name}.npy", data, method) for name, data in contents.items()]


def of_archive(rng, data, what="valid", refused=False) -> Case:
    argv, path = ["--dataset", "own.npz"], "own.npz"
    if rng.random() < 0.2:
        argv, path = ["--dataset", "data"], "data/mnist.npz"
    if rng.random() < 0.2:
        argv += ["--image_size", "17", "30"]
    if rng.random() < 0.2:
        argv += ["--grayscale"]
    return Case({path: data}, argv, what, refused, path)


def valid(rng) -> Case:
    return of_archive(rng, archive(members(rng)))


def valid_form(rng):
    return valid(rng)


def with_member(rng, name, data, what, refused=False, method=None) -> Case:
    made = members(rng, {name: data})
    for member in made:
        member.method = member.method if method is None else method
    return of_archive(rng, archive(made), f"{name}: {what}", refused)


TYPES = (
    *("'O'", "'|O8'", "'V1000000000'", "'|V0'", "'<U100000000'", "'<U0'", "'|S0'"),
    *("'<U1000000000'", "'|S2000000000'", "'<M8[s]'", "'<m8'", "'<c16'", "'<f16'"),
    *("('<f4', (1000, 1000))", "[('a', '<f4')]", "[('a', 'O')]", "'f1024'", "''"),
    *("[]", "()", "{}", "None", "1", "'i8,O'", "'O,i8'", "'|i1', '<f4'", "b'<f4'"),
    *("[('a', [('b', [('c', '<f4')])])]", "[('', '|V100')]", "'<f4\\x00'", "'é'"),
    *("{'names': ['a'], 'formats': ['O'], 'offsets': [-8]}", "'(2000,2000)f8'"),
    *("{'names': ['a'], 'formats': ['u1'], 'itemsize': 2000000000}", "'T'", "'<u9'"),
)
SHAPES = (
    *("(-1,)", "(-12, -20, 18)", "(12, -20, -18)", "(2**62,)", "12", "[12, 20, 18]"),
    *("(4611686018427387904, 4)", "(18446744073709551616,)", "(12.0, 20, 18)"),
    *("(True, True, True)", "('12', 20, 18)", "(12, 20, 18, 0)", "(0,)", "()", "None"),
    *("(1000000, 1000000)", "(100000, 100, 100)", "(3000000000,)", "((12,), 20)"),
    "(" + "1, " * 33 + ")",
    "(" + "1, " * 65 + ")",
    "(" + "9" * 4000 + ",)",
    "(" + "9" * 9000 + ",)",
)
EXPRESSIONS = (
    "__import__('os').system('touch stolen')",
    "{'descr': open('stolen', 'w'), 'fortran_order': False, 'shape': (3,)}",
    *("", "{", "None", "[]", "{}", "1", "{'descr': '<f4'}", "\x00", "lambda: 0", "*a"),
    "{'descr': '<f4', 'fortran_order': 1, 'shape': (3,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'x': 1}",
    "{'shape': (3,), 'descr': '<f4', 'fortran_order': False, 'shape': (4,)}",
    "{{}: 1}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9**9**9,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}\n" * 3,
    "(" * 4000 + ")" * 4000,
    "[" * 150 + "]" * 150,
    "-" * 9000 + "1",
    "{'a':" * 2000,
    "1" + "+1" * 4900,
    "'" + "x" * 9900,
    "0x" + "f" * 9000,
)


def header(rng):
    """Another type or shape in a header, with or without data that fits."""
    name = rng.choice(PARTS)
    descr, shape = "'|u1'", "(12, 20, 18)"
    if rng.random() < 0.5:
        descr = rng.choice(TYPES)
    else:
        shape = rng.choice(SHAPES)
    fortran = rng.choice(("False", "True"))
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    data = rng.choice((b"", bytes(12 * 20 * 18), rng.randbytes(1000)))
    size = size_of(descr, shape)
    fits = size is not None and 0 <= size <= 10**6 and rng.random() < 0.8
    data = bytes(size) if fits else data
    return with_member(rng, name, forged(text, data), text[:150], not fits)


def size_of(descr: str, shape: str) -> int | None:
    """The bytes that a header promises; `None` if it makes no sense at all."""
    try:
        dtype = np.dtype(ast.literal_eval(descr))
        return int(np.prod(ast.literal_eval(shape), dtype=object)) * dtype.itemsize
    except Exception:
        return None


def expression(rng):
    text = rng.choice(EXPRESSIONS)
    content = forged(text, bytes(12))
    return with_member(rng, rng.choice(PARTS), content, text[:100], True)


def npy_start(rng):
    """Magic numbers, versions and the length of the header."""
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (12, 20, 18), }"
    data = bytes(12 * 20 * 18)
    version = rng.choice(((0, 0), (1, 1), (2, 0), (3, 0), (4, 0), (255, 255)))
    length = rng.choice((None, 0, 1, 100, 10_000, 65_535))
    content = forged(text, data, version, length)
    if rng.random() < 0.3:
        content = damage(rng, content[:10])[0] + content[10:]
    what = f"npy version {version}, header of {length} bytes"
    return with_member(rng, "x_train", content, what)


def npy_length(rng):
    name, n = rng.choice(PARTS), rng.choice((1, 8, 100))
    data = npy(arrays(rng)[name])
    longer = rng.random() < 0.5
    data = data + rng.randbytes(n) if longer else data[:-n]
    return with_member(
        rng, name, data, f"{n} bytes {'more' if longer else 'less'}", True
    )


def npy_damage(rng):
    """Random damage within a member, of which the checksum is right."""
    name = rng.choice(PARTS)
    data = npy(arrays(rng)[name])
    cut = rng.choice((10, 128, len(data)))
    start, said = damage(rng, data[:cut])
    return with_member(rng, name, start + data[cut:], f"damaged: {said}")


def objects(rng):
    """Arrays of pickled objects that run code when they are unpickled."""
    name, (what, attack) = rng.choice(PARTS), attack_call(rng)
    text = "{'descr': '|O', 'fortran_order': False, 'shape': (12,), }"
    way = rng.choice(("array", "pickle alone", "an extra member", "structured"))
    if way == "array":
        content = forged(text, attack)
    elif way == "pickle alone":
        content = attack
    elif way == "structured":
        content = forged(text.replace("'|O'", "[('a', '|O')]"), attack)
    else:  # that nothing looks at
        extra = members(rng) + [Member("extra.npy", forged(text, attack))]
        return of_archive(rng, archive(extra), f"{what} in {way}")
    return with_member(rng, name, content, f"{what} in {way}", True)


def other_file(rng):
    """No archive at all."""
    _, attack = attack_call(rng)
    contents = {
        "a pickle": pickle.dumps(Attack(eval, "open('stolen', 'w')")),
        "an attack": attack,
        "npy": npy(arrays(rng)["x_train"]),
        "npy of objects": forged(
            "{'descr': '|O', 'fortran_order': False, 'shape': (), }", attack
        ),
        "text": b"x_train,y_train\n1,2\n",
        "the end of an archive alone": archive([]),
        "random": rng.randbytes(2000),
    }
    what = rng.choice(list(contents))
    return of_archive(rng, contents[what], what, True)


def directory(rng):
    """Members that are missing, there twice, or by other names."""
    made = members(rng)
    i = rng.randrange(4)
    name = made[i].name
    what = rng.choice(("missing", "twice", "bad then good", "good then bad", "renamed"))
    bad = Member(name, forged("{}"))
    if what == "missing":
        del made[i]
    elif what == "twice":
        made.append(made[i])
    elif what == "bad then good":
        made.insert(0, bad)
    elif what == "good then bad":
        made.append(bad)
    else:
        other = rng.choice(("../", "/", "X", "\\", "a" * 60000, "\u202e", "\x00"))
        made[i].name = other + name
        what = f"renamed to {other[:10]!a}..."
    refused = what not in ("twice", "bad then good")
    return of_archive(rng, archive(made), f"{name} {what}", refused)


LIES = {
    "version": (0, 45, 63, 999, 65535),
    "flags": (1, 8, 32, 64, 2048, 8193, 65535),
    "method": (0, 1, 8, 9, 12, 14, 93, 99, 65535),
    "crc": (0, 1, 2**32 - 1),
    "packed": (0, 1, 10**6, 2**31, 2**32 - 2, 2**32 - 1),
    "size": (0, 1, 100, 10**6, 2**31, 2**32 - 2, 2**32 - 1),
    "name": (b"", b"y", b"\xff\xfe", b"x_test.npy", b"x" * 60000),
    "extra": (
        *(b"\1", b"\1\0\xff\xff", b"\1\0\x08\0" + b"\xff" * 8, bytes(60000)),
        b"\1\0\x18\0" + struct.pack("<3Q", 10**10, 10**10, 0),
        b"\1\0\x18\0" + struct.pack("<3Q", 2**63, 2**63, 2**63),
    ),
    "offset": (0, 1, 10**6, 2**31, 2**32 - 1),
    "disk": (1, 65535),
    "external": (0x10, 2**31, 0xA1FF0000),
}


def zip_headers(rng):
    """Lies in the headers of a member, in one place or in both."""
    made, said = members(rng), []
    for _ in range(rng.randint(1, 2)):
        member, key = rng.choice(made), rng.choice(list(LIES))
        value = rng.choice(LIES[key])
        where = rng.choice(("local", "central", "both"))
        if where != "central":
            member.local[key] = value
        if where != "local":
            member.central[key] = value
        if key == "extra" and rng.random() < 0.7:  # sizes that are in there
            member.central |= {"size": 2**32 - 1, "packed": 2**32 - 1}
        said.append(f"{member.name} {where} {key} {str(value)[:30]}")
    return of_archive(rng, archive(made), "; ".join(said))


def zip_end(rng):
    made = members(rng)
    key = rng.choice(("disk", "first", "here", "all", "size", "offset", "comment"))
    most = 2 ** (32 if key in ("size", "offset") else 16)
    end = {key: rng.choice(NUMBERS) % most}
    behind = rng.choice((b"", b"", b"behind", b"PK\5\6" + bytes(18)))
    what = f"end of the archive: {end}, {len(behind)} bytes behind"
    return of_archive(rng, archive(made, end, behind), what)


def bomb(rng):
    """A member that unpacks to gigabytes, with a header that says so or does not."""
    name = rng.choice(PARTS)
    megabytes = rng.choice((100, 1000, 2900, 6000))
    said = rng.choice((megabytes, 1))
    dtype, item = rng.choice((("|u1", 1), ("<f8", 8), ("<U250", 1000)))
    shape = (12, said * 10**6 // 12 // item)
    shape = (12 * shape[1],) if rng.random() < 0.3 else shape
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    start = forged(text)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    payload = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    payload += deflated_zeros(megabytes)
    size = len(start) + np.prod(shape, dtype=object) * item
    size = rng.choice((size, size, len(start) + megabytes * 10**6)) % 2**32
    made = members(rng)
    i = [member.name for member in made].index(f"{name}.npy")
    lie = {"size": size, "crc": 0}
    made[i] = Member(f"{name}.npy", start, DEFLATED, payload, lie, lie)
    what = f"{name}: {megabytes} MB of zeros as {dtype} {shape}, {size} bytes"
    return of_archive(rng, archive(made), what, True)


def long_names(rng):
    """Names of classes of megabytes each."""
    length = rng.choice((1000, 100_000, 4_000_000))
    made = {}
    for part, n in (("train", 12), ("test", 6)):
        names = np.zeros(n, f"<U{length}")
        names[:] = ["ab"[i % 2] * rng.choice((1, length)) for i in range(n)]
        made[f"y_{part}"] = names
    made["y_test"] = made["y_train"][:6]
    changes = {name: npy(array) for name, array in made.items()}
    what = f"names of {length} characters"
    return of_archive(rng, archive(members(rng, changes)), what)


def wide_labels(rng):
    """One-hot labels of very many classes."""
    n_class = rng.choice((1001, 10**6, 10**7))
    start = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, %d), }"
    rows = (b"\1" + bytes(n_class - 1), b"\0\1" + bytes(n_class - 2))
    changes = {
        f"y_{part}": forged(start % (n, n_class), b"".join(rows) * (n // 2))
        for part, n in (("train", 12), ("test", 6))
    }
    made = members(rng, changes)
    return of_archive(rng, archive(made), f"{n_class} classes", True)


def values(rng):
    """Arrays of the right form that make no sense."""
    made = arrays(rng, "numbers")
    x = made["x_train"].astype(rng.choice(("<f4", "<f8", "<f2", "g")))
    y = np.arange(12)
    nan = np.array(rng.choice((np.nan, -np.nan)), x.dtype)
    name, array = rng.choice(
        [
            *(("x_train", np.where(x == x.flat[0], v, x / 256)) for v in (nan, np.inf)),
            *(("x_train", x / 256 + v) for v in (-1.0, 1.0)),
            ("x_train", np.full(x.shape, -1, "<i2")),
            ("x_train", np.full(x.shape, 65536, "<u4")),
            ("x_train", np.full(x.shape, 2**64 - 1, "<u8")),
            ("x_train", x > 3),
            ("x_train", x.astype("c16")),
            ("x_train", x.astype("S4")),
            ("x_train", x[:-1]),
            ("x_train", x[:, :0]),
            ("x_train", x[0, 0, 0]),
            ("y_train", y[:-1]),
            ("y_train", -y),
            ("y_train", np.full(12, 2**63 - 1)),
            ("y_train", y * 1000),
            ("y_train", y / 2),
            ("y_train", y * np.nan),
            ("y_train", np.zeros((12, 3))),
            ("y_train", np.zeros((12, 0))),
            ("y_train", np.full((12, 3), 255, "u1")),
            ("y_train", np.full((12, 2), np.nan)),
            ("y_train", np.zeros((12, 2, 2))),
            ("y_train", np.full(12, "a")),
        ]
    )
    what = f"{array.dtype} {array.shape} {array.flat[0] if array.size else ''}"
    if array.ndim == 2 and name == "y_train":
        made["y_test"] = np.eye(3)[np.arange(6) % 3]
    contents = {key: npy(value) for key, value in (made | {name: array}).items()}
    return of_archive(rng, archive(members(rng, contents)), f"{name}: {what}", True)


def characters(rng):
    """Names of classes of characters that are none, or that a terminal obeys."""
    code = rng.choice((0xD800, 0xDFFF, 0x110000, 2**31, 2**32 - 1, 0x1B, 0x0A, 0x9B, 0))
    made = {}
    for part, n in (("train", 12), ("test", 6)):
        codes = np.array([[97 + i % 3, 98] for i in range(n)], "<u4")
        codes[:, 1] = code
        made[f"y_{part}"] = npy(codes.view("<U2")[:, 0])
    what = f"names with character {code:#x}"
    return of_archive(rng, archive(members(rng, made)), what, code != 0)


def no_file(rng):
    return special(rng, valid(rng))


NPZ = Kind(
    valid,
    [
        *(valid_form, header, expression, zip_headers, bomb, objects, npy_damage),
        *(npy_start, values, npy_length, other_file, directory, zip_headers, header),
        *(zip_end, characters, long_names, wide_labels, expression, no_file),
    ],
    load_dataset,
)

"""HDF5 weights: our files, those of Keras 2, and of Keras 3, which may be in a zip."""

import bz2
import dataclasses
import io
import json
import lzma
from functools import cache, partial

import h5py
import numpy as np

from tests.long import forged_hdf5 as forged
from tests.long.cases import NUMBERS, Case, Kind, damage, deflated_zeros, special
from tests.long.forged_hdf5 import UNCHANGED
from tests.long.kind_npz import DEFLATED, LIES, STORED, Member, archive

LAYOUTS = ("ours", "ours", "ours", "keras2", "keras2 whole", "keras3", "zip", "recipe")


@cache
def layout(name: str) -> bytes:
    """A valid HDF5 file; for `zip` what is in there."""
    files = forged.valid_files()
    if name == "zip":
        return files["keras3"]
    if not name.startswith("keras2"):
        return files[name]
    buffer = io.BytesIO()
    with h5py.File(io.BytesIO(files["ours"])) as old, h5py.File(buffer, "w") as new:
        root = new
        if name == "keras2 whole":
            new.attrs["model_config"] = '{"class_name": "Lambda", "config": {}}'
            root = new.create_group("model_weights")
        names = list(old)
        names = ["conv1", "primarycaps", "digitcaps", "decoder"]
        root.attrs["layer_names"] = [b"input_1", *(n.encode() for n in names), b"mask"]
        for part in ("input_1", "mask"):
            root.create_group(part).attrs["weight_names"] = []
        for part in names:
            group = root.create_group(part)
            made = []
            for i, name_of_weight in enumerate(old[part].attrs["weight_names"]):
                array = old[part][name_of_weight]
                made.append(f"{part}/weight_{i}:0")
                group.create_dataset(
                    made[-1], array.shape, array.dtype, fillvalue=array.fillvalue
                )
            group.attrs["weight_names"] = [n.encode() for n in made]
    return buffer.getvalue()


def in_zip(data: bytes, method=STORED) -> bytes:
    return archive(
        [
            Member("metadata.json", b'{"keras_version": "3.15.1"}', method),
            Member("config.json", b'{"class_name": "Lambda"}', method),
            Member("model.weights.h5", data, method),
        ]
    )


def of_file(rng, name, data, what="valid", right=UNCHANGED) -> Case:
    """A command line for a file in one of the layouts."""
    path = "x" + {"keras3": ".weights.h5", "zip": ".keras"}.get(name, ".h5")
    modes = [["-t"], []]
    if name in ("ours", "recipe"):
        modes.append(["--predict", "a.png"])
    mode = rng.choice(modes)
    argv = [*mode, "-w", path, "--save_dir", "out"]
    if "--predict" in mode:  # which takes no file that is much too small
        data += bytes(700_000)
    else:
        argv += ["--dataset", "own.npz", "-r", "1"]
    files = {**forged.files_around(), path: data}
    if right == UNCHANGED:
        files[UNCHANGED] = b""
    return Case(files, argv, f"{name}: {what}", right is True, path)


def valid(rng) -> Case:
    name = rng.choice(LAYOUTS)
    data = layout(name)
    method = rng.choice((STORED, DEFLATED))
    return of_file(rng, name, in_zip(data, method) if name == "zip" else data)


@dataclasses.dataclass
class WeightsKind(Kind):
    def random(self, rng) -> Case:
        name = rng.choice(LAYOUTS)
        data = layout(name)
        around = name == "zip" and rng.random() < 0.3
        if name == "zip" and around:
            data = in_zip(data)
        data, what = damage(rng, data)
        if name == "zip" and not around:
            data = in_zip(data)
        return of_file(rng, name, data, what, False)


def forgery(forge, rng) -> Case:
    name = rng.choice(LAYOUTS)
    data, what, right = forge(rng, layout(name))
    return of_file(rng, name, in_zip(data) if name == "zip" else data, what, right)


# What a file says of itself.


def info() -> dict:
    with h5py.File(io.BytesIO(layout("ours"))) as file:
        return json.loads(file.attrs["capsnet"])


def of_info(rng, text, what, right=False) -> Case:
    """A file with another text as its JSON attribute."""
    text = text.encode() if isinstance(text, str) else text

    def change(file):
        file.attrs["capsnet"] = np.bytes_(text) if b"\0" in text else text

    return of_file(rng, "ours", forged.edit(layout("ours"), change), what, right)


def info_text(rng):
    text, what, right = forged.odd_json(rng, info())
    return of_info(rng, text, what)


WRONG = {
    "format_version": ("2", '"1"', "null", "[]", "1e400", '"' + "x" * 10**6 + '"'),
    "input_shape": ("[17, 17]", "[17, 17, 2]", "[0, 17, 1]", "[17.0, 17, 1]", "[true]"),
    "class_names": ('["a"]', '["a", 1]', '["a", "b\\n"]', '["a", "\\ud800"]', "[[]]"),
    "routings": ("0", "101", "1.0", "true", '"1"', "1e400"),
    "recipe": ('"x"', "[]", "1"),
    "dataset": ("1", "[]", '"' + "x" * 5000 + '"'),
    "image_size": ("[17]", "[0, 1]", "17", "[17, 1e9]"),
    "grayscale": ("1", "null", '"yes"'),
    "split": (
        *("1", "[]", "{}", '{"seed": -1, "fraction": 0.2, "digest": ""}'),
        *(f'{{"seed": 1, "fraction": {x}, "digest": ""}}' for x in (-1, 1, "1e400")),
        *('{"seed": 1, "fraction": NaN, "digest": ""}', '{"seed": 1}'),
    ),
    "border_brightness": ("NaN", "null", "1e400", "9" * 400, '"0"', "true"),
    "digit_box": ("0", "20.0", "10001", "[]"),
}
ODD = {
    "input_shape": ("[10000, 10000, 3]", "[17, 17, 3]", "[28, 28, 1]", "[16, 17, 1]"),
    "class_names": (json.dumps(["é" * 255] * 1000), '["a", "a"]', '["", " "]'),
    "routings": ("100", "2"),
    "dataset": (
        '"\\u001b[2J\\u0007"',
        '"\\ud800"',
        '"a\\nb"',
        '"../../x"',
        '"\\u0000"',
    ),
    "image_size": ("[17, 17]", "[10000, 10000]"),
    "split": ('{"seed": 3, "fraction": 0.5, "digest": "\\ud800"}',),
    "border_brightness": ("-1e299", "9" * 299, "1e-320"),
    "digit_box": ("10000", "1", "18"),
}


def info_value(rng):
    """A value that a key may not have, or hardly."""
    table = rng.choice((WRONG, WRONG, ODD, None))
    if table is None:
        key, value = rng.choice(list(info())), rng.choice(forged.ODD_VALUES)
    else:
        key = rng.choice(list(table))
        value = rng.choice(table[key])
    text = forged.with_value(info(), key, value)
    if rng.random() < 0.1:  # of two, the last one counts
        text = (
            text[:-1] + text[1:] if rng.random() < 0.5 else text[:-1] + ", " + text[1:]
        )
    return of_info(
        rng, text, f"{key}: {value[:60]}", table is WRONG and "}{" not in text
    )


def info_type(rng):
    """Anything but a text as the JSON attribute."""
    text = json.dumps(info())
    values = {
        "bytes": np.bytes_(text),
        "a list": [text],
        "many": [text] * 100,
        "numbers": np.arange(3),
        "a number": 3.5,
        "nothing": h5py.Empty("f4"),
        "no text": h5py.Empty(h5py.string_dtype()),
        "opaque": np.void(text.encode()),
        "a structure": np.zeros(1, [("a", "f4"), ("b", "S3")]),
        "bool": True,
        "complex": 1j,
        "60 KB": np.zeros(60_000, "u1"),
        "a long text of one length": np.bytes_(text + " " * 50_000),
        "lists of lists": np.array([np.arange(3), np.arange(4)], object),
    }
    what = rng.choice([*values, "a reference", "a type of its own"])

    def change(file):
        if what == "a reference":
            file.attrs["capsnet"] = file.ref
        elif what == "a type of its own":
            file["type"] = h5py.string_dtype()
            file.attrs.create("capsnet", text, dtype=file["type"].dtype)
        else:
            value = values[what]
            kind = h5py.vlen_dtype("i4") if what == "lists of lists" else None
            file.attrs.create("capsnet", value, dtype=kind)

    fine = ("bytes", "a long text of one length", "a type of its own")
    data = forged.edit(layout("ours"), change)
    right = UNCHANGED if what in fine else True
    return of_file(rng, "ours", data, f"attribute of {what}", right)


# Lists of names, and numbered arrays.


def names(rng):
    """Names of layers and weights that lead elsewhere, or nowhere."""
    name = rng.choice(("ours", "keras2", "keras2 whole"))

    def places(file):
        root = file.get("model_weights", file)
        return [root, *(g for g in root.values() if "weight_names" in g.attrs)]

    what = None

    def change(file):
        nonlocal what
        group = rng.choice(places(file))
        key = "layer_names" if "layer_names" in group.attrs else "weight_names"
        good = [n if isinstance(n, bytes) else n.encode() for n in group.attrs[key]]
        if not good:
            good = [b"x"]
        odd = rng.choice(
            [b"..", b".", b"/", b"", b"//", b"\x1b[2J", b"x" * 60_000, b"a/" * 5000]
            + [b"../" + good[0], b"/" + good[0], good[0] + b"/", b"\xff", b"conv1\0x"]
            + [b"./" * 100 + good[0], b"*", b"decoder", b"capsnet"]
        )
        i = rng.randrange(len(good))
        changed = [*good[:i], odd, *good[i + 1 :]]
        lists = {
            f"{odd[:20]}": changed,
            "more": [*good, odd],
            "twice": [*good, good[0]],
            "fewer": good[1:],
            "none": [],
            "reversed": good[::-1],
            "very many": [odd[:200]] * rng.choice((1000, 50_000)),
            "a number": 4,
            "one text": good[0],
            "numbers": np.arange(len(good)),
            "a table": np.array([good]),
            "of one length": np.array(good),
            "with a long one": np.array([*good[1:], b"x" * 5000]),
            "empty texts": h5py.Empty(h5py.string_dtype()),
        }
        what = rng.choice(list(lists))
        del group.attrs[key]
        if what != "missing":
            value = lists[what]
            many = isinstance(value, list) and len(value) > 1000
            if many or (isinstance(value, list) and b"\0" in b"".join(value)):
                value = np.array(value)[: 60_000 // max(1, len(odd[:200]))]
            group.attrs[key] = value
        what = f"{key}: {what}"

    return of_file(rng, name, forged.edit(layout(name), change), what or "", False)


def numbered(rng):
    """Keras 3's numbered arrays, with other numbers."""
    what = rng.choice(("more", "many more", "fewer", "renamed", "other case", "array"))

    def change(file):
        paths = [n for n in forged.arrays_of(file) if n.endswith("/0")]
        group = file[rng.choice(paths)].parent
        if what == "more":
            group["2"] = np.zeros(3, "f4")
        elif what == "many more":
            for i in range(2, 5000):
                group[str(i)] = group["0"]
        elif what == "fewer":
            del group[rng.choice(list(group))]
        elif what == "renamed":
            group.move("0", rng.choice(("00", "-1", " 0", "٠", "a", "0\n")))
        elif what == "other case":
            group.parent.move("vars", rng.choice(("VARS", "var", "vars ", "..")))
        else:
            path = group.name
            del file[path]
            file.create_dataset(path, (10**9,), [("0", "f4"), ("1", "f4")], chunks=True)

    name = rng.choice(("keras3", "zip"))
    data = forged.edit(layout(name), change)
    data = in_zip(data) if name == "zip" else data
    return of_file(rng, name, data, what, True)


# The archive.


def zip_headers(rng):
    members = zip_members(rng)
    said = []
    for _ in range(rng.randint(1, 2)):
        member, key = rng.choice((members[2], *members)), rng.choice(list(LIES))
        value = rng.choice(LIES[key])
        where = rng.choice(("local", "central", "both"))
        if where != "central":
            member.local[key] = value
        if where != "local":
            member.central[key] = value
        said.append(f"{member.name} {where} {key} {str(value)[:30]}")
    return of_file(rng, "zip", archive(members), "; ".join(said), False)


def zip_members(rng) -> list[Member]:
    method = rng.choice((STORED, DEFLATED))
    return [
        Member("metadata.json", b"{}", method),
        Member("config.json", b"{}", method),
        Member("model.weights.h5", layout("zip"), method),
    ]


def zip_directory(rng):
    """The member missing, there twice, elsewhere; the directory's end forged."""
    members = zip_members(rng)
    bad = Member("model.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(100))
    what = rng.choice(("missing", "bad last", "bad first", "renamed", "end", "folder"))
    end = None
    if what == "missing":
        del members[2]
    elif what == "bad last":
        members.append(bad)
    elif what == "bad first":
        members.insert(0, bad)
    elif what == "renamed":
        members[2].name = rng.choice(("../", "/", "\\", "x" * 60_000)) + members[2].name
    elif what == "folder":
        members[2].name += "/"
    else:
        key = rng.choice(("disk", "first", "here", "all", "size", "offset", "comment"))
        most = 2 ** (32 if key in ("size", "offset") else 16)
        end = {key: rng.choice(NUMBERS) % most}
    right = {"end": False, "bad first": UNCHANGED}.get(what, True)
    data = archive(members, end)
    return of_file(rng, "zip", data, f"{what} {end or ''}", right)


def zip_bomb(rng):
    """Gigabytes in a few bytes, also by methods that unpack all at once."""
    way = rng.choice(("deflate", "deflate", "bzip2", "lzma"))
    megabytes = rng.choice((100, 1000, 2000, 6000))
    if way == "deflate":
        method, payload = DEFLATED, deflated_zeros(megabytes)
    elif way == "bzip2":
        method, payload = 12, bz2.compress(bytes(10**7)) * (megabytes // 10)
    else:
        method, payload = 14, b"\x09\x04\x05\0" + _lzma_zeros() * 1
    size = rng.choice((megabytes * 10**6, 1000, 10**8, 2**30)) % 2**32
    members = zip_members(rng)
    lie = {"size": size, "crc": 0}
    members[2] = Member("model.weights.h5", b"", method, payload, lie, lie)
    what = f"{megabytes} MB by {way}, {size} said"
    return of_file(rng, "zip", archive(members), what, True)


@cache
def _lzma_zeros() -> bytes:
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 0}]
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    zeros = bytes(10**7)
    packed = b"".join(packer.compress(zeros) for _ in range(30))
    properties = b"\x5d" + (2**18).to_bytes(4, "little")
    return properties + packed + packer.flush()


# Other files.


def other_file(rng):
    """No weights, or those of another network."""
    text = rng.choice(
        [
            b"accuracy: 0.99\n",
            b"\x89HDF\r\n\x1a\n",
            b"PK\3\4",
            b"\x80\4]\x94.",
            b"CDF\1",
        ]
    )
    data = text + rng.randbytes(rng.choice((0, 1, 40, 3000)))
    return of_file(rng, rng.choice(LAYOUTS), data, f"{text} and more", True)


def other_network(rng):
    """The weights in another layout's file name, or of another recipe."""
    name = rng.choice(("ours", "keras3", "keras2"))
    other = rng.choice(("recipe", "run", "best"))
    data = forged.valid_files()[other]
    if other == "recipe" and name != "ours":  # the arguments are for another network
        return of_file(rng, name, data, "of the other recipe", False)
    return of_file(rng, name, data, f"as {other}", UNCHANGED)


def no_file(rng):
    case = special(rng, valid(rng))
    case.files.pop(UNCHANGED, None)
    return case


WEIGHTS = WeightsKind(
    valid,
    [
        valid,
        *(partial(forgery, f) for f in forged.FORGERIES),
        *(info_text, info_value, info_type, names, numbered, zip_headers, zip_bomb),
        *(zip_directory, info_value, names, other_file, other_network, no_file),
    ],
    forged.read,
)

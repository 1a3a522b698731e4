"""HDF5 weights: our files, those of Keras 2, and of Keras 3, which may be in a zip."""

import io
import json
import zipfile
from functools import cache, partial

import h5py
import numpy as np

from tests.long import hdf5_files as files
from tests.long.cases import Case, Kind, no_file, zip_bomb, zipped

LAYOUTS = ("ours", "ours", "ours", "keras2", "keras2 whole", "keras3", "zip", "recipe")
MEMBER = "model.weights.h5"
AROUND = {"metadata.json": b"{}", "config.json": b'{"class_name": "Lambda"}'}


@cache
def layout(name: str) -> bytes:
    """A valid HDF5 file; for `zip` what is in there."""
    made = files.valid_files()
    if name == "zip":
        return made["keras3"]
    if not name.startswith("keras2"):
        return made[name]
    buffer = io.BytesIO()
    with h5py.File(io.BytesIO(made["ours"])) as old, h5py.File(buffer, "w") as new:
        root = new
        if name == "keras2 whole":
            new.attrs["model_config"] = '{"class_name": "Lambda", "config": {}}'
            root = new.create_group("model_weights")
        parts = ["conv1", "primarycaps", "digitcaps", "decoder"]
        root.attrs["layer_names"] = [b"input_1", *(n.encode() for n in parts), b"mask"]
        for part in ("input_1", "mask"):
            root.create_group(part).attrs["weight_names"] = []
        for part in parts:
            group = root.create_group(part)
            made = []
            for i, weight in enumerate(old[part].attrs["weight_names"]):
                old.copy(old[part][weight], group, f"{part}/weight_{i}:0")
                made.append(f"{part}/weight_{i}:0".encode())
            group.attrs["weight_names"] = made
    return buffer.getvalue()


def in_zip(data: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    return zipped({**AROUND, MEMBER: data}, method)


def of_file(rng, name, data, what="valid", refused=False, exact=False) -> Case:
    """A command line for a file in one of the layouts."""
    path = "x" + {"keras3": ".weights.h5", "zip": ".keras"}.get(name, ".h5")
    modes = [["-t"], []]
    if name in ("ours", "recipe"):
        modes.append(["--predict", "a.png"])
    mode = rng.choice(modes)
    argv = [*mode, "-w", path, "--save_dir", "out"]
    if not mode and (" of shape " in what or what == "swapped"):
        # A training starts from the layers that fit, and says which do not.
        refused = exact = False
    if "--predict" in mode:  # which takes no file that is much too small
        data += bytes(700_000)
    else:
        argv += ["--dataset", "own.npz", "-r", "1"]
    made = {**files.files_around(), path: data}
    return Case(made, argv, f"{name}: {what}", refused, exact, path)


def valid(rng) -> Case:
    name = rng.choice(LAYOUTS)
    data = layout(name)
    if name != "zip":
        return of_file(rng, name, data, exact=True)
    pack = partial(
        in_zip, method=rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    )
    case = of_file(rng, name, pack(data), exact=True)
    case.inner, case.pack = data, pack
    return case


def edited(edit, rng) -> Case:
    name = rng.choice(LAYOUTS)
    data, what, refused = edit(rng, layout(name))
    data = in_zip(data) if name == "zip" else data
    return of_file(rng, name, data, what, refused, exact=True)


# What a file says of itself.


def info() -> dict:
    return files.json_of(layout("ours"), "info")


def info_text(rng):
    text, what = files.odd_json(rng, info())
    return of_file(
        rng, "ours", files.put_bytes(layout("ours"), "info", text), what, True
    )


WRONG = {
    "input_shape": ("[17, 17]", "[17, 17, 2]", "[0, 17, 1]", "[17.0, 17, 1]", "[true]"),
    "class_names": ('["a"]', '["a", 1]', '["a", "b\\n"]', '["a", "\\ud800"]', "[[]]"),
    "routings": ("0", "101", "1.0", "true", '"1"', "1e400"),
    "recipe": ('"x"', "[]", "1"),
    "dataset": ("1", "[]", '"' + "x" * 5000 + '"'),
    "image_size": ("[17]", "[0, 1]", "17", "[17, 1e9]"),
    "grayscale": ("1", "null", '"yes"'),
    "split": (
        *("1", "[]", "{}", '{"seed": -1, "fraction": 0.2, "digest": ""}'),
        *(f'{{"seed": 1, "fraction": {x}, "digest": ""}}' for x in (-1, 1, "NaN")),
    ),
    "border_brightness": ("NaN", "null", "1e400", "9" * 400, '"0"', "true"),
    "digit_box": ("0", "20.0", "10001", "[]"),
}
ODD = {
    "input_shape": ("[10000, 10000, 3]", "[17, 17, 3]", "[28, 28, 1]", "[16, 17, 1]"),
    "class_names": (json.dumps(["é" * 255] * 1000), '["a", "a"]', '["", " "]'),
    "routings": ("100", "2"),
    "dataset": ('"\\u001b[2J\\u0007"', '"\\ud800"', '"a\\nb"', '"../../x"'),
    "border_brightness": ("-1e299", "9" * 299, "1e-320"),
    "digit_box": ("10000", "1", "18"),
}


def info_value(rng):
    """A value that a key may not have, or hardly."""
    table = rng.choice((WRONG, WRONG, ODD, dict.fromkeys(info(), files.ODD_VALUES)))
    key = rng.choice(list(table))
    value = rng.choice(table[key])
    text = files.with_value(info(), key, value)
    data = files.put_bytes(layout("ours"), "info", text)
    return of_file(rng, "ours", data, f"{key}: {value[:60]}", table is WRONG)


def version(rng):
    """Another version, or anything but a text, as the JSON attribute."""
    text = json.dumps({"format_version": 1, **info()})
    value = rng.choice(
        [
            *(
                f'{{"format_version": {v}}}'
                for v in ("3", '"1"', "null", "[]", "1e400")
            ),
            *("", "[]", "{", "[" * 10**5, [text], np.arange(3), 3.5, h5py.Empty("f4")),
            *(h5py.Empty(h5py.string_dtype()), np.void(text.encode())),
            text,
        ]
    )
    data = files.edit(layout("ours"), lambda file: file.attrs.update(capsnet=value))
    refused = value is not text
    what = f"attribute {str(value)[:60]}"
    return of_file(rng, "ours", data, what, refused, exact=True)


# Lists of names, and numbered arrays.


def names(rng):
    """Names of layers and weights that lead elsewhere, or nowhere."""
    name = rng.choice(("ours", "keras2", "keras2 whole"))
    what = None

    def change(file):
        nonlocal what
        root = file.get("model_weights", file)
        parts = [
            root[part] for part in ("conv1", "primarycaps", "digitcaps", "decoder")
        ]
        group = rng.choice([root, *parts])
        key = "layer_names" if group == root else "weight_names"
        good = [n if isinstance(n, bytes) else n.encode() for n in group.attrs[key]]
        odd = rng.choice(
            [b"..", b".", b"/", b"", b"\x1b[2J", b"a/" * 5000, b"\xff", b"capsnet"]
        )
        i = rng.randrange(len(good))
        lists = {
            f"{odd[:20]}": [*good[:i], odd, *good[i + 1 :]],
            "twice": [*good, good[0]],
            "fewer": good[1:],
            "none": [],
            "very many": np.array([odd[:20]] * 3000),
            "a number": 4,
            "one text": good[0],
            "numbers": np.arange(len(good)),
            "a table": np.array([good]),
        }
        what = rng.choice(list(lists))
        group.attrs[key] = lists[what]

    data = files.edit(layout(name), change)
    return of_file(rng, name, data, f"names: {what}", True)


def numbered(rng):
    """Keras 3's numbered arrays: swapped, missing, too many."""
    what = rng.choice(("swapped", "more", "fewer"))

    def change(file):
        found = []
        file["layers"].visit(lambda n: found.append(n) if n.endswith("vars") else None)
        groups = [file["layers"][n] for n in found]
        group = rng.choice([g for g in groups if len(g) > 1])
        if what == "swapped":
            group.move("0", "x")
            group.move("1", "0")
            group.move("x", "1")
        elif what == "more":
            group["2"] = np.zeros(3)
        else:
            del group[rng.choice(list(group))]

    name = rng.choice(("keras3", "zip"))
    data = files.edit(layout(name), change)
    return of_file(rng, name, in_zip(data) if name == "zip" else data, what, True)


# The archive.


def archive(rng):
    """The member missing, or gigabytes of it in a few bytes."""
    name, data = MEMBER, layout("zip")
    what = rng.choice(("renamed", "bzip2", "bomb", "bomb"))
    if what == "renamed":
        made = zipped({**AROUND, f"../{name}": data})
    elif what == "bzip2":  # which Python would unpack all at once
        made = zipped({name: bytes(10**8)}, zipfile.ZIP_BZIP2)
    else:
        megabytes = rng.choice((100, 1000, 6000))
        size = rng.choice((megabytes * 10**6, 1000, 10**8)) % 2**32
        what = f"{megabytes} MB, {size} said"
        made = zip_bomb(AROUND, name, b"", megabytes, size)
    return of_file(rng, "zip", made, what, True)


# Other files.


def other_file(rng):
    """No weights, or another kind of file in its place."""
    if rng.random() < 0.5:
        name, other = rng.choice(("ours", "keras2")), rng.choice(("run", "best"))
        data = files.valid_files()[other]
        return of_file(rng, name, data, f"is {other}", exact=True)
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


WEIGHTS = Kind(
    valid,
    [
        valid,
        *(partial(edited, edit) for edit in files.EDITS),
        *(info_text, info_value, version, names, numbered, archive, other_file),
        partial(no_file, valid),
    ],
    files.read,
)

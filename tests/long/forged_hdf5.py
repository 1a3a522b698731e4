"""Valid files of a small network, and forgeries of what HDF5 files are made of.

Each array is one number all over, a fill value, of which the file holds one copy: such
a file is little more than its structure, and damage meets that.
"""

import contextlib
import io
import json
import os
import re
import shutil
import struct
import tempfile
import traceback
from collections.abc import Iterator
from functools import cache

import h5py
import keras
import numpy as np

import capsulenet
from capsnet import command_line
from capsnet.weights import _optimizer_state, save_model
from tests.long.cases import NUMBERS, WrongLoadError
from tests.long.kind_image import picture

SIDE, NAMES = 17, ["ant", "bee"]  # the smallest images that the network takes
UNCHANGED = "unchanged"  # a file that is there if all numbers have to be right
STEPS = 6


@cache
def own_data() -> bytes:
    """A data set as an npz file."""
    x = np.random.default_rng(0).integers(0, 256, (18, SIDE, SIDE), "uint8")
    y = np.array(NAMES)[np.arange(18) % 2]
    file = io.BytesIO()
    np.savez(file, x_train=x[:12], y_train=y[:12], x_test=x[12:], y_test=y[12:])
    return file.getvalue()


def files_around() -> dict:
    """What the command line needs beside the file, and what links may lead to."""
    return {
        "own.npz": own_data(),
        "a.png": picture("PNG", "L"),
        "pipe": os.mkfifo,
        "other.h5": edit(valid_files()["ours"], lambda file: None),
    }


# Valid files, written by the program itself.


@cache
def valid_files() -> dict[str, bytes]:
    """By name: a model file, Keras's two kinds, and run states.

    They are made by a child process, as to start TensorFlow's threads here would make
    further children unsafe.
    """
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # 600 MB, synced
    folder = tempfile.mkdtemp(prefix="capsnet-", dir=memory)
    try:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.chdir(folder)
                _write_files()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("the valid files could not be made")
        made = {}
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as file:
                made[name.partition(".")[0]] = file.read()
    finally:
        shutil.rmtree(folder)
    return {name: thin(data) for name, data in made.items()}


def _write_files() -> None:
    with open("own.npz", "wb") as file:
        file.write(own_data())
    for name, argv in {
        "run": [],
        "best": ["--validation_size", "4", "--ema", "0.9"],
        "paper": ["--recipe", "paper"],
    }.items():
        keras.Model.fit = lambda model, *args, name=name, callbacks, **kwargs: (
            _write_run(model, callbacks[-2], name)
        )
        argv = ["--dataset", "own.npz", "-r", "1", "--epochs", "3", *argv]
        with contextlib.redirect_stdout(io.StringIO()):
            command_line.main(argv, capsulenet.build_parser, _run_until_fit)
        shutil.rmtree("result")
    os.remove("own.npz")


def _run_until_fit(args) -> None:
    with contextlib.suppress(_Enough):
        capsulenet.run(args)


class _Enough(Exception):  # noqa: N818, no error
    """What was to be looked at has been seen."""


def _write_run(model, log, name):
    """Writes the files in place of the training."""
    log.set_model(model)
    for i, weight in enumerate(model.weights):
        weight.assign(np.full(weight.shape, number(i)))
    for variable, value in numbered_state(model):
        variable.assign(np.full(variable.shape, value))
    columns = ["seconds", "images_per_second", "learning_rate"]
    for prefix in ("", *(f"{part}_" for part in log.held_out)):
        columns += [prefix + c for c in ("loss", *log.task.columns(model).values())]
    log.rows = [{"epoch": n, **dict.fromkeys(columns, 0.5 / n)} for n in (1, 2)]
    if "val" in log.held_out:
        log.best_epoch, log.best_weights = 2, model.get_weights()
    log.write_state()
    os.rename(log.path, f"{name}.h5")
    if name == "run":
        save_model(model, "ours.h5", log.info)
        model.save_weights("keras3.weights.h5")
    if name == "paper":
        save_model(model, "recipe.h5", log.info)
    raise _Enough


def numbered_state(model) -> Iterator:
    """The variables of the optimizer, and what all elements of each are."""
    state, averages = _optimizer_state(model), []
    if model.optimizer.use_ema:  # what the file has as the model's weights
        averages = model.optimizer._model_variables_moving_average
    of_weight = {id(average): number(i) for i, average in enumerate(averages)}
    for i, variable in enumerate(state):
        is_count = variable.dtype.startswith("int")
        yield variable, STEPS if is_count else of_weight.get(id(variable), number(i))


def number(i: int) -> float:
    """What all elements of weight i are; exact in 16 bits."""
    return (i + 1) / 64


def thin(data: bytes) -> bytes:
    """A copy whose arrays of one number are fill values."""
    buffer = io.BytesIO()
    with h5py.File(io.BytesIO(data)) as old, h5py.File(buffer, "w") as new:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                made = new.require_group(name)
            elif item.size > 8 and (item[()] == item[()].flat[0]).all():
                value = item[()].flat[0]
                made = new.create_dataset(name, item.shape, item.dtype, fillvalue=value)
            else:
                made = new.create_dataset(name, data=item[()])
            copy_attributes(item, made)

        def copy_attributes(item, made):
            for key, value in item.attrs.items():
                made.attrs.create(key, value, dtype=item.attrs.get_id(key).dtype)

        copy_attributes(old, new)
        old.visititems(copy)
    return buffer.getvalue()


def edit(data: bytes, change) -> bytes:
    """The bytes of an HDF5 file after `change(file)`."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


# What reads them, and what is right.


def read(args) -> None:
    """Does all that the command line says, up to the first use of the network."""

    def trained(model, *rest, callbacks, **kwargs):
        (log,) = (c for c in callbacks if type(c).__name__ == "EpochLog")
        check_network(model, args)
        if args.resume:
            check_run(model, log)
        raise _Enough

    def used(model, *rest):
        check_network(model, args)
        raise _Enough

    keras.Model.fit = trained
    capsulenet.test = capsulenet.classify = used
    capsulenet.runs_on_cpu = lambda: True
    check_info(args.info)
    # A terminal does not take everything either.
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.suppress(_Enough), contextlib.redirect_stdout(printed):
        capsulenet.run(args)
        raise AssertionError("the network was not used")
    printed.seek(0)
    if any(not c.isprintable() for c in printed.read().replace("\n", "")):
        raise WrongLoadError("it prints what a terminal would obey")


def check_network(model, args) -> None:
    bias = [(2, 1, 16)] if args.recipe == "paper" else []
    shapes = [(9, 9, 1, 256), (256,), (9, 9, 256, 256), (256,), (2, 32, 16, 8), *bias]
    shapes += [(32, 512), (512,), (512, 1024), (1024,), (1024, 289), (289,)]
    weights = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    if args.testing or args.predict is None:
        expected = shapes
    else:  # whatever images the file says it is for
        expected = [weight.shape for weight in weights]
    if [weight.shape for weight in weights] != expected:
        raise WrongLoadError(f"shapes {[weight.shape for weight in weights]}")
    for i, weight in enumerate(weights):
        if weight.dtype != np.float32 or not np.isfinite(weight).all():
            raise WrongLoadError(f"weight {i}: {weight.dtype}, or not finite")
        if os.path.exists(UNCHANGED) and not (weight == number(i)).all():
            raise WrongLoadError(f"weight {i}: {weight.flat[0]}")


def check_info(info) -> None:
    for key, types in {
        "input_shape": list,
        "class_names": list,
        "dataset": str,
    }.items():
        if not isinstance(info.get(key, types()), types):
            raise WrongLoadError(f"{key} is {info[key]}")
    if not 1 <= info.get("routings", 1) <= 100:
        raise WrongLoadError(f"routings are {info['routings']}")
    if not all(0 < size <= 10_000 for size in info.get("input_shape", ())):
        raise WrongLoadError(f"images of {info['input_shape']}")
    for name in info.get("class_names", ()):
        name.encode()


def check_run(model, log) -> None:
    if [row["epoch"] for row in log.rows] != list(range(1, len(log.rows) + 1)):
        raise WrongLoadError(f"epochs {[row['epoch'] for row in log.rows]}")
    if log.args.finished != len(log.rows) or log.args.epochs < len(log.rows):
        raise WrongLoadError(f"{len(log.rows)} of {log.args.epochs} epochs")
    if not all(np.isfinite(list(row.values())).all() for row in log.rows):
        raise WrongLoadError("a row that is not finite")
    if (log.best_epoch is None) != (log.best_weights is None):
        raise WrongLoadError(f"best epoch {log.best_epoch}")
    for weight, best in zip(model.weights, log.best_weights or model.get_weights()):
        if best.shape != tuple(weight.shape) or not np.isfinite(best).all():
            raise WrongLoadError(f"best weights: {best.shape}, or not finite")
    for i, (variable, right) in enumerate(numbered_state(model)):
        value = keras.ops.convert_to_numpy(variable)
        whole = value.dtype.kind == "i"
        if not np.isfinite(value).all() or (whole and value.min() < 0):
            raise WrongLoadError(f"optimizer {i}: {value.flat[0]}")
        if os.path.exists(UNCHANGED) and not (value == right).all():
            raise WrongLoadError(f"optimizer {i}: {value.flat[0]}")
    if not (os.path.getsize("log.csv") and os.path.getsize("log.png")):
        raise WrongLoadError("the log was not written")


# Forgeries. Each takes the random numbers and a file, and returns another file, what
# was done, and what is right: True if an error, False if anything, and UNCHANGED if a
# load of the same numbers.


def arrays_of(file) -> list[str]:
    """Names of all arrays that are read: Keras's optimizers are not."""
    found = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer/vars"):
            found.append(name)

    file.visititems(visit)
    return found


def choose_array(rng, data: bytes):
    """The name, shape, type and number of an array."""
    with h5py.File(io.BytesIO(data)) as file:
        name = rng.choice([n for n in arrays_of(file) if n != "run"])
        array = file[name]
        value = array.fillvalue if array.size > 8 else array[()].flat[0]
        return name, array.shape, array.dtype, value


def put(content: bytes, name: str, *args, **kwargs) -> bytes:
    """The file with another array."""

    def change(file):
        del file[name]
        file.create_dataset(name, *args, **kwargs)

    return edit(content, change)


def links(rng, data):
    """Links in place of a group or an array, and cycles."""
    with h5py.File(io.BytesIO(data)) as file:
        path = rng.choice(arrays_of(file))
    parts = path.split("/")
    path = "/".join(parts[: rng.randint(1, len(parts))])
    inner = path if rng.random() < 0.5 else "x"
    link = rng.choice(
        [
            *(h5py.SoftLink(to) for to in ("/moved", f"/{path}", "nothing", "/", "")),
            *(h5py.SoftLink("/away/x"), h5py.SoftLink("../" * 9), "parent", "root"),
            *(h5py.ExternalLink(to, inner) for to in ("pipe", "pipe", "other.h5")),
            *(h5py.ExternalLink(to, inner) for to in ("/dev/zero", "/etc/passwd")),
            *(h5py.ExternalLink(to, inner) for to in (".", "..", "nothing", "\n" * 99)),
            *(
                h5py.ExternalLink(to, inner)
                for to in ("trained_model.h5", "/dev/stdin")
            ),
        ]
    )

    def change(file):
        file["away"] = h5py.ExternalLink("pipe", "/")
        parent = file[path].parent
        file.move(path, "moved")
        if isinstance(link, str):
            file[path] = parent if link == "parent" else file["/"]
        elif not getattr(link, "path", "x"):
            file[path] = h5py.SoftLink("/moved/")
        else:
            file[path] = link

    said = link if isinstance(link, str) else f"{type(link).__name__} {vars(link)}"
    return edit(data, change), f"{path} is {said}", True


def types(rng, data):
    """Arrays of other types."""
    name, shape, dtype, value = choose_array(rng, data)
    right = {"f": ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g")}
    right = right.get(dtype.kind, ("<i4", ">i8", "<i8", "<i2", "|i1"))
    if rng.random() < 0.3:
        other = rng.choice(right)
        made = put(data, name, shape, other, fillvalue=np.array(value, other))
        return made, f"{name} as {other}", UNCHANGED
    other = rng.choice(
        [
            *("?", "|u1", ">u8", "<c8", "<c16", "S4", "S1000000000", "V8", "V100000"),
            *(h5py.string_dtype(), h5py.vlen_dtype("f4"), h5py.ref_dtype),
            *(h5py.regionref_dtype, [("a", "f4")], [("0", "f4"), ("1", "f4")]),
            *([("r", "f4"), ("i", "f4")], "(2,)f4", "(1000,1000)f4", "(1,)f4"),
            *(h5py.enum_dtype({"a": 0, "b": 1}), h5py.opaque_dtype("<M8[s]")),
            [("a", [("b", "(3,)f8"), ("c", h5py.string_dtype())])],
            "<i4" if dtype.kind == "f" else "<f4",
        ]
    )
    return put(data, name, shape, other), f"{name} as {other}", True


def odd_floats(rng, data):
    """Floating point types that no processor has, and times."""
    name, shape, dtype, _ = choose_array(rng, data)
    kind = h5py.h5t.IEEE_F32LE.copy()
    what = rng.choice(("bfloat16", "size", "bias", "fields", "precision", "time"))
    with contextlib.suppress(ValueError, RuntimeError, OSError):
        if what == "bfloat16":
            kind.set_fields(15, 7, 8, 0, 7)
            kind.set_precision(16)
            kind.set_size(2)
        elif what == "size":
            kind.set_size(rng.choice((5, 8, 100, 60_000)))
        elif what == "bias":
            kind.set_ebias(rng.choice((0, 1, 1000, 2**31)))
        elif what == "fields":
            kind.set_fields(31, rng.randint(1, 23), 8, 0, rng.randint(1, 23))
        elif what == "precision":
            kind.set_precision(rng.choice((1, 16, 32)))
        else:
            kind = h5py.h5t.UNIX_D32LE.copy()

    def change(file):
        del file[name]
        space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(0)
        parent, _, last = name.rpartition("/")
        group = file[parent] if parent else file
        h5py.h5d.create(group.id, last.encode(), kind, space)

    try:
        return edit(data, change), f"{name}: a float of other {what}", False
    except (RuntimeError, ValueError, OSError):  # what HDF5 itself does not write
        return types(rng, data)


def shapes(rng, data):
    """Arrays of other shapes, with nothing behind them."""
    name, shape, dtype, _ = choose_array(rng, data)
    other = rng.choice(
        [
            *((), (0,), (1,), (2**40,), (2**60,), (2**30, 2**30), (10**6, 10**6)),
            *((1,) * 32, (10**9,), (*shape, 1), (1, *shape), shape[::-1], shape[1:]),
            *((4 * 10**8,), (int(np.prod(shape)),), None, "unlimited"),
        ]
    )
    if other is None:
        made = put(data, name, data=h5py.Empty(dtype))
    elif other == "unlimited":
        made = put(
            data,
            name,
            (1,) * max(1, len(shape)),
            dtype,
            maxshape=(None,) * max(1, len(shape)),
            chunks=(1,) * max(1, len(shape)),
        )
    else:
        made = put(data, name, other, dtype)
    return made, f"{name} of shape {other}", other != shape


def storage(rng, data):
    """Arrays in chunks, compressed, virtual, or in other files."""
    name, shape, dtype, value = choose_array(rng, data)
    if not shape:
        return values(rng, data)
    size = int(np.prod(shape)) * dtype.itemsize
    ones = (1,) * len(shape)
    wide = (None,) * len(shape)
    raw = [("pipe", 0, size)], [("/dev/zero", 0, size)], [("/etc/passwd", 0, size)]
    raw += [("own.npz", 0, 10), ("pipe", 0, size)], [("nothing", 2**40, size)]
    options = rng.choice(
        [
            *({"chunks": ones}, {"chunks": shape}, {"chunks": shape, "maxshape": wide}),
            *({"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}),
            *({"fletcher32": True}, {"scaleoffset": 3}, {"chunks": True}),
            *({"chunks": tuple(10 + s for s in shape), "maxshape": wide},),
            *({"external": files} for files in raw),
            *("virtual", "virtual without end", "virtual of itself", "unknown filter"),
        ]
    )
    if options == "unknown filter":

        def change(file):
            del file[name]
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_chunk(shape)
            settings.set_filter(rng.choice((1, 2, 3)))
            space = h5py.h5s.create_simple(shape)
            parent, _, last = name.rpartition("/")
            group = file[parent] if parent else file
            kind = h5py.h5t.py_create(dtype)
            h5py.h5d.create(group.id, last.encode(), kind, space, settings)

    elif isinstance(options, str):

        def change(file):
            to = "." if "itself" in options else rng.choice(("pipe", "other.h5"))
            without_end = "without" in options
            layout = h5py.VirtualLayout(
                shape, dtype, maxshape=(None, *shape[1:]) if without_end else None
            )
            source = h5py.VirtualSource(
                to, name, shape, maxshape=layout.maxshape if without_end else None
            )
            if without_end:
                layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
            else:
                layout[:] = source
            del file[name]
            file.create_virtual_dataset(name, layout)

    else:

        def change(file):
            del file[name]
            fill = {} if "scaleoffset" in options else {"fillvalue": value}
            file.create_dataset(name, shape, dtype, **fill, **options)

    return edit(data, change), f"{name}: {options}", True


def values(rng, data):
    """Numbers that are none, or too large; small arrays within their header."""
    name, shape, dtype, value = choose_array(rng, data)
    if shape and np.prod(shape) * dtype.itemsize < 60_000 and rng.random() < 0.5:

        def change(file):
            del file[name]
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple(shape)
            parent, _, last = name.rpartition("/")
            kind = h5py.h5t.py_create(dtype)
            group = file[parent] if parent else file
            made = h5py.h5d.create(group.id, last.encode(), kind, space, settings)
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.full(shape, value, dtype))

        return edit(data, change), f"{name}: compact", UNCHANGED
    if dtype.kind == "i":
        other, wrong = rng.choice((("i8", -1), ("i8", -(2**63)), ("i1", -1)))
    else:
        other, wrong = rng.choice(
            [("f4", np.nan), ("f4", np.inf), ("f8", 1e39), ("f8", -np.inf)]
            + [("g", np.longdouble("1e4000")), ("f2", np.nan)]
        )
    made = put(data, name, shape, other, fillvalue=np.array(wrong, other))
    return made, f"{name}: {wrong}", True


# Bytes in place.


def set_bytes(rng, data: bytes, at: int) -> tuple[bytes, str]:
    n = rng.choice((1, 1, 2, 4, 8))
    value = rng.choice((*NUMBERS, len(data), len(data) - 8)) % 256**n
    return data[:at] + value.to_bytes(n, "little") + data[at + n :], f"{at}: {value}"


def superblock(rng, data):
    """Versions, sizes of numbers, addresses; a file that begins elsewhere."""
    if rng.random() < 0.1:
        return bytes(512) + data, "512 bytes before the file", True
    said = []
    for _ in range(rng.randint(1, 2)):
        data, what = set_bytes(rng, data, rng.randint(8, 95))
        said.append(what)
    return data, f"superblock {', '.join(said)}", False


def blocks(rng, data):
    """Numbers in nodes of trees, tables of names, and heaps."""
    places = [m.start() for m in re.finditer(rb"TREE|SNOD|HEAP|GCOL", data)]
    at = rng.choice(places)
    sign = data[at : at + 4].decode()
    data, what = set_bytes(rng, data, at + rng.choice((*range(24), *range(4, 64, 4))))
    return data, f"{sign} {what}", False


def headers(rng, data):
    """Numbers in the header of an object: how many messages, their types and sizes."""
    places = [
        m.start()
        for m in re.finditer(
            rb"\x01\0[\x01-\x20]\0[\x01\x02]\0{3}..\0\0", data, re.DOTALL
        )
    ]
    at, said = rng.choice(places), []
    for _ in range(rng.randint(1, 2)):
        offset = rng.choice((2, 4, 8, *range(16, 40), *range(16, 400, 2)))
        data, what = set_bytes(rng, data, at + offset)
        said.append(what)
    return data, f"header at {at}: {', '.join(said)}", False


def sizes(rng, data):
    """The shape of an array, in place, with the rest of its header as it was."""
    name, shape, dtype, _ = choose_array(rng, data)
    if not shape:
        return headers(rng, data)
    packed = struct.pack(f"<{len(shape)}Q", *shape)
    at = rng.choice([m.start() for m in re.finditer(re.escape(packed), data)])
    i = rng.randrange(len(shape))
    size = rng.choice(NUMBERS)
    new = packed[: 8 * i] + struct.pack("<Q", size) + packed[8 * i + 8 :]
    what = f"a shape {shape}: {size} in place of {shape[i]}"
    return data[:at] + new + data[at + len(packed) :], what, False


def places(rng, data):
    """Where an array is said to be, and how large, in place."""
    name, shape, dtype, _ = choose_array(rng, data)
    size = int(np.prod(shape)) * dtype.itemsize
    pattern = rb"\x03\x01.{8}" + re.escape(struct.pack("<Q", size))
    found = [m.start() for m in re.finditer(pattern, data, re.DOTALL)]
    if not found:
        return headers(rng, data)
    at = rng.choice(found)
    field, n = rng.choice(((0, 1), (1, 1), (2, 8), (2, 8), (10, 8)))
    value = rng.choice(
        (0, 1, 2, 3, 4, 5) if n == 1 else (*NUMBERS, len(data), len(data) - 8, 48, 96)
    )
    value = (value % 256**n).to_bytes(n, "little")
    data = data[: at + field] + value + data[at + field + n :]
    return data, f"the place of {name}: byte {field} set to {value.hex()}", False


def heap_bomb(rng, data):
    """Names that are each as long as the file, which holds them once."""
    n = rng.choice((2, 99, 1000, 4000))
    length = rng.choice((1000, 3_000_000, 50_000_000))
    with h5py.File(io.BytesIO(data)) as file:
        lists = [("/", "layer_names")]
        file.visititems(
            lambda name, item: lists.extend((name, key) for key in item.attrs)
        )
        path, key = rng.choice(lists)

    def change(file):
        file[path].attrs[key] = ["x" * length] + ["y"] * (n - 1)

    data = edit(data, change)
    first = data.index(struct.pack("<I", length), 96)
    while data[first + 16 : first + 20] != b"\1\0\0\0":  # another number, not a list
        first = data.index(struct.pack("<I", length), first + 1)
    end = first + 16 * n
    data = data[:first] + data[first : first + 16] * n + data[end:]
    return data, f"{key} of {path}: {n} times {length} bytes", False


def heap_nest(rng, data):
    """Heaps that begin in each other's texts, and end where the file does."""
    n = rng.choice((1000, 20_000, 100_000))
    heaps = [
        b"GCOL\x01\0\0\0" + struct.pack("<QHHIQ", 32 * (n - i), 1, 1, 0, 16)
        for i in range(n - 1)
    ]
    last = b"GCOL\x01\0\0\0" + struct.pack("<QHHIQ", 32, 0, 0, 0, 16)
    return data + b"".join(heaps) + last, f"{n} heaps in each other", False


@cache
def _crowded(data: bytes, what: str) -> bytes:
    def change(file):
        if what == "links":
            for i in range(20_000):
                file[f"more/{i}"] = h5py.SoftLink("/")
        elif what == "attributes":
            group = file.create_group("more", track_order=True)
            for i in range(2000):
                group.attrs[str(i)] = i
        else:
            group = file
            for _ in range(2000):
                group = group.create_group("g")

    return edit(data, change)


def crowd(rng, data):
    """Very much else in the file."""
    what = rng.choice(("links", "attributes", "depth"))
    return _crowded(data, what), f"many more: {what}", UNCHANGED


def nested_types(rng, data):
    """A type within a type, many times."""
    depth = rng.choice((2, 30, 200, 1000))
    way = rng.choice(("lists", "arrays", "structures"))
    name, shape, _, _ = choose_array(rng, data)
    kind = h5py.h5t.IEEE_F32LE.copy()
    try:
        for _ in range(depth):
            if way == "lists":
                kind = h5py.h5t.vlen_create(kind)
            elif way == "arrays":
                kind = h5py.h5t.array_create(kind, (1,))
            else:
                outer = h5py.h5t.create(h5py.h5t.COMPOUND, kind.get_size())
                outer.insert(b"a", 0, kind)
                kind = outer

        def change(file):
            space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(0)
            del file[name]
            parent, _, last = name.rpartition("/")
            group = file[parent] if parent else file
            h5py.h5d.create(group.id, last.encode(), kind, space)

        return edit(data, change), f"{name}: {depth} {way}", True
    except (RuntimeError, ValueError, OSError):  # more than HDF5 itself writes
        return types(rng, data)


def objects(rng, data):
    """A group for an array, an array for a group, a type for either."""
    name, shape, dtype, _ = choose_array(rng, data)
    parts = name.split("/")
    path = "/".join(parts[: rng.randint(1, len(parts))])
    what = rng.choice(("a group", "a type", "an array", "a table", "nothing"))

    def change(file):
        attributes = dict(file[path].attrs)
        del file[path]
        if what == "a group":
            file.create_group(path)
        elif what == "a type":
            file[path] = np.dtype("f4")
        elif what == "an array":
            file[path] = np.zeros(3, "f4")
        elif what == "a table":  # whose columns may be read by name, whatever the size
            columns = [(c, "f4") for c in ("0", "1", parts[-1], "vars", "layers")]
            columns = dict(columns).items()
            file.create_dataset(path, (10**9,), list(columns), compression="gzip")
        if path in file:
            file[path].attrs.update(attributes)

    return edit(data, change), f"{path} is {what}", True


FORGERIES = [
    *(links, types, headers, storage, sizes, blocks, shapes, places, objects, links),
    *(values, superblock, storage, heap_bomb, headers, odd_floats, nested_types, crowd),
    heap_nest,
]


# Texts of JSON that go wrong wherever they are.


def odd_json(rng, good: dict) -> tuple[str | bytes, str, object]:
    """A text in place of a JSON object."""
    whole = json.dumps(good)
    texts = {
        "nothing": "",
        "no object": rng.choice(("[]", "1", '"x"', "null", "true", "NaN", "[{}]")),
        "cut": whole[: rng.randint(1, len(whole) - 1)],
        "depth of lists": "[" * 100_000,
        "depth of objects": '{"a":' * rng.choice((500, 900, 100_000)),
        "depth in it": whole[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}",
        "a long number": whole[:-1] + ', "x": ' + "9" * 5000 + "}",
        "10 MB": whole[:-1] + ', "x": "' + "x" * 10**7 + '"}',
        "two texts": whole + whole,
        "zero bytes": whole + "\0\0",
        "no UTF-8": whole.encode().replace(b'"', b"\xff", 1),
        "UTF-16": whole.encode("utf-16"),
    }
    what = rng.choice(list(texts))
    right = what not in ("depth in it", "10 MB", "zero bytes", "UTF-16")
    return texts[what], what, right


# Values that no key of a JSON object should have.
ODD_VALUES = (
    *("null", "true", "1e400", "-1e400", "NaN", "Infinity", "-1", "0", "1.5", '""'),
    *("[]", "{}", "[[]]", '"\\u0000"', '"\\ud800"', '"\\u001b[2J"', "9" * 400, "1e299"),
    *('"' + "x" * 300 + '"', '"' + "y" * 10**6 + '"', "[" * 500 + "]" * 500, "[null]"),
    *('{"a": 1}', "[1, 2, 3]", '"-h"', '["-h", "1"]', '["--help"]', "10000000000"),
    *('"--help"', "-0.0", "9223372036854775808", "[1e400]", '[""]', '"1"', "false"),
)


def with_value(good: dict, key: str, value: str) -> str:
    """A JSON object with a value, as text, for a key."""
    rest = {k: v for k, v in good.items() if k != key}
    return f"{json.dumps(rest)[:-1]}, {json.dumps(key)}: {value}}}"

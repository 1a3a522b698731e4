"""Valid HDF5 files of a small network, what reads them, and what is done to them.

Each array is one number all over, a fill value, of which the file holds one copy: such
a file is little more than its structure, and damage meets that.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import h5py
import keras
import numpy as np

import capsulenet
from capsnet import callbacks, command_line, training, uses
from capsnet.weights import _optimizer_state, save_model
from tests.long.cases import EXACT, WrongLoadError
from tests.long.kind_image import picture

SIDE, NAMES = 17, ["ant", "bee"]  # the smallest images that the network takes
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
        "other.h5": valid_files()["ours"],
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
        paths = Path(folder).iterdir()
        made = {path.name.partition(".")[0]: path.read_bytes() for path in paths}
    finally:
        shutil.rmtree(folder)
    return {name: thin(data) for name, data in made.items()}


def _write_files() -> None:
    Path("own.npz").write_bytes(own_data())
    for name, argv in {
        "run": ["--recipe", "seed"],
        "best": ["--recipe", "seed", "--validation_size", "4", "--ema", "0.9"],
        "modern": ["--recipe", "modern"],
    }.items():
        keras.Model.fit = lambda model, *args, name=name, callbacks, **kwargs: (
            _write_run(model, callbacks, name)
        )
        argv = ["--dataset", "own.npz", "-r", "1", "--epochs", "3", *argv]
        with contextlib.redirect_stdout(io.StringIO()):
            command_line.main(argv, capsulenet.build_parser, _run_until_fit)
        shutil.rmtree("result")
    os.remove("own.npz")


def _run_until_fit(options, own) -> None:
    with contextlib.suppress(_Enough):
        capsulenet.run(options, own)


class _Enough(Exception):  # noqa: N818, no error
    """What was to be looked at has been seen."""


def _write_run(model, loop, name):
    """Writes the files in place of the training."""
    save = next(c for c in loop if isinstance(c, callbacks.SaveState))
    run = save.run
    for i, weight in enumerate(model.weights):
        weight.assign(np.full(weight.shape, number(i)))
    for variable, value in numbered_state(model):
        variable.assign(np.full(variable.shape, value))
    columns = training.log_columns(run.task.columns(model), run.held_out)
    for n in (1, 2):
        run.rows.append({**dict.fromkeys(columns, 0.5 / n), "epoch": n})
    if "val" in run.held_out:
        run.best_epoch, run.best_weights = 2, model.get_weights()
    save.set_model(model)
    save.on_epoch_end(1)
    os.rename(run.options.folder.file("run_state.h5"), f"{name}.h5")
    if name == "run":
        save_model(model, "ours.h5", run.info)
        model.save_weights("keras3.weights.h5")
    if name == "modern":
        save_model(model, "recipe.h5", run.info)
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
            for key, value in item.attrs.items():
                made.attrs.create(key, value, dtype=item.attrs.get_id(key).dtype)

        copy("/", old)
        old.visititems(copy)
    return buffer.getvalue()


def edit(data: bytes, change) -> bytes:
    """The bytes of an HDF5 file after `change(file)`."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        change(file)
    return buffer.getvalue()


def put_bytes(data: bytes, name: str, text: str | bytes) -> bytes:
    """The file with another text as one of its arrays of bytes."""

    def change(file):
        del file[name]
        file[name] = np.frombuffer(
            text.encode() if isinstance(text, str) else text, "u1"
        )

    return edit(data, change)


def json_of(data: bytes, name: str) -> dict:
    with h5py.File(io.BytesIO(data)) as file:
        return json.loads(file[name][()].tobytes())


# What reads them, and what is right.


def read(options, own) -> None:
    """Does all that the command line says, up to the first use of the network."""

    def trained(model, *rest, callbacks, **kwargs):
        check_network(model, options)
        if options.begun is not None:
            (run,) = (c.run for c in callbacks if type(c).__name__ == "SaveState")
            check_run(model, run)
        raise _Enough

    def used(model, *rest):
        check_network(model, options)
        raise _Enough

    keras.Model.fit = trained
    capsulenet.test = uses.classify = used
    for name in options.info.get("class_names", ()):
        name.encode()
    # A terminal does not take everything either.
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with contextlib.suppress(_Enough), contextlib.redirect_stdout(printed):
        capsulenet.run(options, own)
        raise AssertionError("the network was not used")
    printed.seek(0)
    if any(not c.isprintable() for c in printed.read().replace("\n", "")):
        raise WrongLoadError("it prints what a terminal would obey")


def check_network(model, options) -> None:
    shapes = [(9, 9, 1, 256), (256,), (9, 9, 256, 256), (256,), (2, 32, 16, 8)]
    shapes += [(32, 512), (512,), (512, 1024), (1024,), (1024, 289), (289,)]
    weights = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    # If there are no data, the file says what images it is for.
    if options.mode != "use" and [weight.shape for weight in weights] != shapes:
        raise WrongLoadError(f"shapes {[weight.shape for weight in weights]}")
    for i, weight in enumerate(weights):
        check_numbers(f"weight {i}", weight, number(i))


def check_numbers(what: str, array: np.ndarray, right: float) -> None:
    whole = array.dtype.kind == "i"
    if not np.isfinite(array).all() or (whole and array.min() < 0):
        raise WrongLoadError(f"{what}: not finite, or negative")
    if os.path.exists(EXACT) and not (array == right).all():
        raise WrongLoadError(f"{what}: {array.flat[0]}")


def check_run(model, run) -> None:
    rows, options = run.rows, run.options
    if [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        raise WrongLoadError(f"epochs {[row['epoch'] for row in rows]}")
    if options.folder.finished != len(rows) or options.training.epochs < len(rows):
        raise WrongLoadError(f"{len(rows)} of {options.training.epochs} epochs")
    if not all(np.isfinite(list(row.values())).all() for row in rows):
        raise WrongLoadError("a row that is not finite")
    for weight, best in zip(model.weights, run.best_weights or model.get_weights()):
        if best.shape != tuple(weight.shape) or not np.isfinite(best).all():
            raise WrongLoadError(f"best weights: {best.shape}, or not finite")
    for i, (variable, right) in enumerate(numbered_state(model)):
        check_numbers(f"optimizer {i}", keras.ops.convert_to_numpy(variable), right)
    if not (os.path.getsize("log.csv") and os.path.getsize("log.png")):
        raise WrongLoadError("the log was not written")


# What is done to a file by its own library. Each takes the random numbers and a file,
# and returns another file, what was done, and whether only an error is right; else the
# same numbers have to be loaded.


def choose_array(rng, data: bytes):
    """The name, shape, type and number of an array that is read."""
    found = []
    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(lambda name, item: found.append(name))
        found = [
            name
            for name in found
            if isinstance(file[name], h5py.Dataset)
            and name not in ("run", "info")
            and not name.startswith("optimizer/vars")  # Keras's own
        ]
        array = file[rng.choice(found)]
        value = array.fillvalue if array.size > 8 else array[()].flat[0]
        return array.name, array.shape, array.dtype, value


def put(content: bytes, name: str, *args, **kwargs) -> bytes:
    """The file with another array."""

    def change(file):
        del file[name]
        file.create_dataset(name, *args, **kwargs)

    return edit(content, change)


def links(rng, data):
    """Links in place of a group or an array, and cycles."""
    parts = choose_array(rng, data)[0].split("/")
    path = "/".join(parts[: rng.randint(2, len(parts))])
    link = rng.choice(
        [
            *(h5py.SoftLink(to) for to in ("/moved", path, "nothing", "/away/x")),
            *(h5py.ExternalLink(to, path) for to in ("pipe", "other.h5", "/dev/zero")),
            *(h5py.ExternalLink(to, path) for to in ("nothing", ".")),
            "parent",
        ]
    )

    def change(file):
        file["away"] = h5py.ExternalLink("pipe", "/")
        parent = file[path].parent
        file.move(path, "moved")
        file[path] = parent if link == "parent" else link

    said = link if isinstance(link, str) else f"{type(link).__name__} {vars(link)}"
    return edit(data, change), f"{path} is {said}", True


def types(rng, data):
    """Arrays of other types."""
    name, shape, dtype, value = choose_array(rng, data)
    right = {"f": ("<f2", ">f2", ">f4", "<f8", "g")}
    right = right.get(dtype.kind, ("<i4", ">i8", "<i2", "|i1"))
    if rng.random() < 0.3:
        other = rng.choice(right)
        made = put(data, name, shape, other, fillvalue=np.array(value, other))
        return made, f"{name} as {other}", False
    other = rng.choice(
        [
            *("?", "|u1", "<c8", "S4", "S1000000000", "V8", "(2,)f4", "(1000,1000)f4"),
            *(h5py.string_dtype(), h5py.vlen_dtype("f4"), h5py.ref_dtype),
            *([("a", "f4")], [("r", "f4"), ("i", "f4")], h5py.enum_dtype({"a": 0})),
            "<i4" if dtype.kind == "f" else "<f4",
        ]
    )
    return put(data, name, shape, other), f"{name} as {other}", True


def shapes(rng, data):
    name, shape, dtype, value = choose_array(rng, data)
    other = rng.choice(
        [(), (0,), (1,), (*shape, 1), shape[::-1], shape[:-1], (2**40,), (10**5,) * 3]
    )
    made = put(data, name, other, dtype, fillvalue=value)
    return made, f"{name} of shape {other}", other != shape


def storage(rng, data):
    """Arrays in chunks, compressed, virtual, or in other files."""
    name, shape, dtype, _ = choose_array(rng, data)
    shape = shape or (1,)
    size = int(np.prod(shape)) * dtype.itemsize
    options = rng.choice(
        [
            *(
                {"chunks": (1,) * len(shape)},
                {"chunks": shape},
                {"compression": "gzip"},
            ),
            *({"external": [(to, 0, size)]} for to in ("pipe", "/dev/zero", "own.npz")),
            *("virtual", "virtual without end"),
        ]
    )

    def change(file):
        del file[name]
        if isinstance(options, dict):
            file.create_dataset(name, shape, dtype, **options)
            return
        ends = None if options == "virtual" else (None, *shape[1:])
        layout = h5py.VirtualLayout(shape, dtype, maxshape=ends)
        to = rng.choice((".", "pipe", "other.h5"))
        source = h5py.VirtualSource(to, name, shape, maxshape=ends)
        if ends:
            layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        else:
            layout[:] = source
        file.create_virtual_dataset(name, layout)

    return edit(data, change), f"{name}: {options}", True


def values(rng, data):
    """Numbers that are none, negative, or too large."""
    name, shape, dtype, _ = choose_array(rng, data)
    if dtype.kind == "i":
        other, wrong = rng.choice((("i8", -1), ("i8", -(2**63)), ("i1", -1)))
    else:
        other, wrong = rng.choice(
            [("f4", np.nan), ("f4", np.inf), ("f8", 1e39), ("f8", -np.inf)]
            + [("g", np.longdouble("1e4000")), ("f2", np.nan)]
        )
    made = put(data, name, shape, other, fillvalue=np.array(wrong, other))
    return made, f"{name}: {wrong}", True


def objects(rng, data):
    """A group for an array, an array for a group, or nothing."""
    parts = choose_array(rng, data)[0].split("/")
    path = "/".join(parts[: rng.randint(2, len(parts))])
    what = rng.choice(("a group", "an array", "a table", "nothing"))

    def change(file):
        attributes = dict(file[path].attrs)
        del file[path]
        if what == "a group":
            file.create_group(path)
        elif what == "an array":
            file[path] = np.zeros(3, "f4")
        elif what == "a table":  # whose columns may be read by name, whatever the size
            columns = dict.fromkeys(("0", "1", parts[-1], "vars", "layers"), "f4")
            kinds = [*columns.items()]
            file.create_dataset(path, (10**9,), kinds, compression="gzip")
        if path in file:
            file[path].attrs.update(attributes)

    return edit(data, change), f"{path} is {what}", True


EDITS = (links, types, shapes, storage, values, objects)


# Texts of JSON that go wrong wherever they are.


def odd_json(rng, good: dict) -> tuple[str | bytes, str]:
    """A text in place of a JSON object."""
    whole = json.dumps(good)
    texts = {
        "nothing": "",
        "no object": rng.choice(("[]", "1", '"x"', "null", "NaN", "[{}]")),
        "cut": whole[: rng.randint(1, len(whole) - 1)],
        "depth": '{"a":' * 100_000,
        "a long number": whole[:-1] + ', "x": ' + "9" * 5000 + "}",
        "20 MB": whole[:-1] + ', "x": "' + "x" * 20_000_000 + '"}',
        "two texts": whole + whole,
        "no UTF-8": whole.encode().replace(b'"', b"\xff", 1),
    }
    what = rng.choice(list(texts))
    return texts[what], what


# Values that no key of a JSON object should have.
ODD_VALUES = (
    *("null", "true", "1e400", "NaN", "Infinity", "-1", "0", "1.5", '""', '"1"', "[]"),
    *("{}", "[[]]", '"\\u0000"', '"\\ud800"', '"\\u001b[2J"', "9" * 400, "[1, 2, 3]"),
    *('"' + "y" * 10**6 + '"', "[" * 500 + "]" * 500, '{"a": 1}', '["--help"]'),
    *('"--help"', "-0.0", "9223372036854775808", "[1e400]"),
)


def with_value(good: dict, key: str, value: str) -> str:
    """A JSON object with a value, as text, for a key."""
    rest = {k: v for k, v in good.items() if k != key}
    return f"{json.dumps(rest)[:-1]}, {json.dumps(key)}: {value}}}"

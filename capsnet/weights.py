"""Model files and run states: written whole or not at all, read with suspicion."""

import contextlib
import io
import json
import os
import re
import shutil
import struct
import tempfile
import zipfile

import h5py
import keras
import numpy as np

from capsnet import run_folder
from capsnet.errors import UsageError, is_class_name
from capsnet.memory import check_memory
from capsnet.options import RECIPE_NAMES

FORMAT_VERSION = 2
_ATTRIBUTE = "capsnet"  # holds the version and, in version 1, the info
_INFO, _RUN = "info", "run"
_OPTIMIZER, _BEST, _TRAINED = "optimizer", "best", "trained"
_LARGEST_JSON = 1 << 24  # bytes; an epoch of a run takes about 500
_LARGEST_MEMBER = 1 << 30  # bytes; a part of a .keras file is read into memory
_WEIGHTS = "weight_names"
_LARGEST_HEADER = 1 << 22  # bytes; 1000 long names of classes take a million
_MOST_NAMES = 100  # in a list of the legacy layout
_LONGEST_NAME = 255
_LONGEST_PATH = 4096
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAP_SIGNATURE = b"GCOL\x01\0\0\0"
_ZIP_SIGNATURE = b"PK\x03\x04"


class ModelFileError(ValueError):
    """A weights file that is missing, unreadable or made for another network."""


def save_model(model: keras.Model, path: str, info: dict) -> None:
    """Writes the weights in Keras's legacy HDF5 layout, without optimizer state.

    `keras.Model.load_weights` of Keras 2 and 3 reads the file too.

    Args:
        model: The train model of `capsulenet.CapsNet`.
        path: Name of the file.
        info: What else is needed to use the weights; stored as JSON.

    Raises:
        OSError: If it cannot be written; an earlier file is still there.
    """
    with run_folder.replace_file(path) as temporary, _create(temporary) as file:
        _put_weights(file, model, info)


def save_run(
    model: keras.Model,
    path: str,
    info: dict,
    run: dict,
    best_weights: list | None,
    weights: list | None = None,
) -> None:
    """Writes a model file that holds all that is needed to go on with its training.

    Args:
        model: A compiled model that was trained.
        path: Name of the file; it is written in place.
        info: As of `save_model`.
        run: What `load_run` returns: arguments, digest, rows, best_epoch, overwrite.
        best_weights: Of the best epoch, as of `model.get_weights()`, if there is one.
        weights: Those to go on with, if the model has their moving average just now.

    Raises:
        OSError: If it cannot be written.
    """
    with _create(path) as file:
        _put_weights(file, model, info)
        for i, variable in enumerate(_optimizer_state(model)):
            file[f"{_OPTIMIZER}/{i}"] = keras.ops.convert_to_numpy(variable)
        for group, arrays in ((_BEST, best_weights), (_TRAINED, weights)):
            for i, array in enumerate(arrays or ()):
                file[f"{group}/{i}"] = array
        _put_json(file, _RUN, run)


@contextlib.contextmanager
def _create(path):
    """A new HDF5 file, made in memory: HDF5 itself comes to grief on a full disk."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        yield file
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())


def _put_weights(file, model, info):
    # All texts are of a fixed length: HDF5 puts others into heaps.
    layers = [layer for layer in model.layers if layer.weights]
    file.attrs["layer_names"] = np.array([layer.name.encode() for layer in layers])
    file.attrs["backend"] = np.bytes_(keras.backend.backend().encode())
    file.attrs["keras_version"] = np.bytes_(keras.version().encode())
    for layer in layers:
        group = file.create_group(layer.name)
        names = [f"{layer.name}/{i}/{w.name}" for i, w in enumerate(layer.weights)]
        group.attrs["weight_names"] = np.array([name.encode() for name in names])
        for name, weight in zip(names, layer.weights):
            group[name] = keras.ops.convert_to_numpy(weight)
    version = json.dumps({"format_version": FORMAT_VERSION})
    file.attrs[_ATTRIBUTE] = np.bytes_(version.encode())
    _put_json(file, _INFO, info)


def _put_json(file, name, value):
    file[name] = np.frombuffer(json.dumps(value).encode(), "uint8")


def _optimizer_state(model):
    """The variables that training changes beside the weights.

    Those of the optimizer, and the states of random layers such as dropout.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    others = {id(v) for v in (*model.weights, *model.metrics_variables)}
    random = [v for v in model.variables if id(v) not in others]
    return [*model.optimizer.variables, *random]


def load_weights(model: keras.Model, path: str) -> None:
    """Reads weights into a network that is already there.

    Accepts Keras's legacy HDF5 files (ours, and those of Keras 2), `.weights.h5` and
    `.keras` files. Only arrays are read, after a look at their shapes; a model
    configuration in the file is ignored.

    Args:
        model: The train model of `capsulenet.CapsNet`.
        path: Name of the file.

    Raises:
        ModelFileError: If the file cannot be read or does not fit the model; the model
            is unchanged then.
    """
    read_info(path)  # refuses later versions
    with _open(path) as file:
        pairs = _read_weights(model, file, path)
    for weight, value in pairs:
        weight.assign(value)


def load_run(model: keras.Model, path: str) -> tuple[dict, list | None]:
    """Puts a compiled model into the state that `save_run` wrote.

    Args:
        model: A compiled model like the one that was saved.
        path: Name of the file.

    Returns:
        What `save_run` was given as `run`, and the best weights.

    Raises:
        ModelFileError: If the file cannot be read or does not fit the model; the model
            is unchanged then.
    """
    run = read_run(path)
    with _open(path) as file:
        pairs = _read_weights(model, file, path)
        if model.optimizer.use_ema:  # those were the averages
            pairs += _read_list(model.weights, file, _TRAINED, path)
        pairs += _read_list(_optimizer_state(model), file, _OPTIMIZER, path)
        best = None
        if run["best_epoch"] is not None:
            best = [array for _, array in _read_list(model.weights, file, _BEST, path)]
    for variable, value in pairs:
        variable.assign(value)
    return run, best


def _read_weights(model, file, path):
    """Pairs of (weight, array)."""
    pairs = []
    for name, weights, datasets in _match_layers(model, file, path):
        for weight, dataset in zip(weights, datasets):
            what = f"{weight.name} of the layer {name}"
            pairs.append((weight, _read_array(file, dataset, weight, what, path)))
    return pairs


def _read_list(variables, file, group, path):
    """Pairs of (variable, array) of a numbered list."""
    pairs = []
    for i, variable in enumerate(variables):
        what = f"{group}/{i}"
        array = _read_array(file, _find(file, what), variable, what, path)
        pairs.append((variable, array))
    return pairs


def read_run(path: str) -> dict:
    """Reads what `save_run` was given as `run`.

    Raises:
        ModelFileError: If the file cannot be read, or is no run state.
    """
    read_info(path)  # refuses later versions
    with _open(path) as file:
        if _find(file, _RUN) is None:
            raise ModelFileError(f"{path}: expected the state of a run, found none.")
        run = _read_json(file, _RUN, path)
    if not _is_run(run):
        raise ModelFileError(f"{path}: damaged run state.")
    return run


def _is_run(run: dict) -> bool:
    """Whether it has the form of a run; its arguments are for the parser to check."""
    rows, best = run.get("rows"), run.get("best_epoch")
    return (
        isinstance(run.get("arguments"), dict)
        and isinstance(run.get("digest"), str)
        and type(run.get("overwrite")) is bool
        and isinstance(rows, list)
        and len(rows) > 0
        and all(_is_row(row, i + 1, rows[0]) for i, row in enumerate(rows))
        and (best is None or _is_int(best, 1, len(rows)))
    )


def _is_row(row, epoch, first) -> bool:
    return (
        isinstance(row, dict)
        and list(row) == list(first)
        and row.get("epoch") == epoch
        and all(_is_number(value) for value in row.values())
    )


def read_info(path: str) -> dict:
    """Reads what `save_model` was given as `info`, and the version of the format.

    Returns:
        The info; empty for the files of Keras.

    Raises:
        ModelFileError: If the file cannot be read, or is of a later version.
    """
    with _open(path) as file:
        info = _read_attribute(file, path)
        version = info.get("format_version", 1)
        if version not in (1, FORMAT_VERSION):
            raise ModelFileError(
                f"{path}: expected format version 1 or {FORMAT_VERSION}, "
                f"found {str(version)[:100]}."
            )
        if version == FORMAT_VERSION:
            info |= _read_json(file, _INFO, path)
    for name, is_right in _INFO_CHECKS.items():
        if name in info and not is_right(info[name]):
            raise ModelFileError(
                f"{path}: damaged weights file: {name} is {str(info[name])[:100]!r}."
            )
    return info


def _read_attribute(file, path):
    """The JSON object of our attribute; empty if there is none."""
    if _ATTRIBUTE not in file.attrs:
        return {}
    attribute, what = file.attrs.get_id(_ATTRIBUTE), f"the attribute {_ATTRIBUTE}"
    is_text = attribute.shape == () and _is_text(attribute.dtype)
    return _parse_json(file.attrs[_ATTRIBUTE] if is_text else "", what, path)


def _read_json(file, name, path):
    """The JSON object that an array of bytes holds."""
    dataset = _find(file, name)
    _check_is_plain(dataset, name, path)
    size = dataset.size or 0
    if size > _LARGEST_JSON:
        raise ModelFileError(
            f"{path}: expected at most {_LARGEST_JSON} bytes for {name}, found {size}."
        )
    _check_array(dataset, (size,), "uint8", name, path)
    return _parse_json(file.read(dataset).tobytes(), name, path)


def _parse_json(text, what, path):
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelFileError(
            f"{path}: expected a JSON object in {what}, found something else."
        )
    return value


def _is_int(value, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # not NaN, not too large


def _is_sizes(value, n: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == n
        and all(_is_int(size, 1, 10_000) for size in value)
    )


def _is_split(value) -> bool:
    return (
        isinstance(value, dict)
        and _is_int(value.get("seed"), 0, 2**31)
        and _is_number(value.get("fraction"))
        and 0 <= value["fraction"] < 1
        and isinstance(value.get("digest"), str)
        and isinstance(value.get("contents", ""), str)
    )


# The file may come from anywhere, and what it says decides how much is allocated.
_INFO_CHECKS = {
    "input_shape": lambda v: _is_sizes(v, 3) and v[2] in (1, 3),
    "class_names": lambda v: (
        isinstance(v, list)
        and 2 <= len(v) <= 1000
        and all(isinstance(name, str) and is_class_name(name) for name in v)
    ),
    "routings": lambda v: _is_int(v, 1, 100),
    "recipe": lambda v: v in RECIPE_NAMES,
    "dataset": lambda v: isinstance(v, str) and len(v) <= _LONGEST_PATH,
    "image_size": lambda v: v is None or _is_sizes(v, 2),
    "grayscale": lambda v: type(v) is bool,
    "split": lambda v: v is None or _is_split(v),
    "border_brightness": _is_number,
    "digit_box": lambda v: v is None or _is_int(v, 1, 10_000),
}


def check_export(folder: str) -> None:
    """Finds what would keep a model from being exported to a folder.

    Raises:
        UsageError: If something does.
    """
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            "--export needs KERAS_BACKEND=tensorflow, "
            f"received KERAS_BACKEND={keras.backend.backend()}"
        )
    if os.path.lexists(folder) and not (
        os.path.isdir(folder) and not os.listdir(folder)
    ):
        raise UsageError(f"--export: expected a new or empty folder, received {folder}")


def export_model(model: keras.Model, folder: str) -> None:
    """Writes a network as a TensorFlow SavedModel, which runs without our code.

    Its signatures `serving_default` (images, float32 in [0, 1]) and `serve_uint8`
    (0 to 255) return `lengths` and `reconstructions`.

    Args:
        model: The eval model of `capsulenet.CapsNet`, on the TensorFlow backend.
        folder: Name of the folder; it must not exist, or be empty.

    Raises:
        OSError: If it cannot be written.
    """
    import tensorflow as tf

    def serve(images):
        lengths, reconstructions = model(images)
        return {"lengths": lengths, "reconstructions": reconstructions}

    def serve_uint8(images):
        return serve(tf.cast(images, "float32") / 255)

    archive = keras.export.ExportArchive()
    archive.track(model)
    for name, function, dtype in (
        ("serving_default", serve, "float32"),
        ("serve_uint8", serve_uint8, "uint8"),
    ):
        signature = [tf.TensorSpec(model.input_shape, dtype, name="images")]
        archive.add_endpoint(name, function, signature)
    folder = os.path.realpath(folder)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as temporary:
        path = os.path.join(temporary, "model")
        archive.write_out(path, verbose=False)
        if os.path.isdir(folder):  # Windows renames to names that are free
            os.rmdir(folder)
        os.replace(path, folder)


@contextlib.contextmanager
def _open(path):
    """Opens the HDF5 part of a weights file, whatever the file is called."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe may never end
            raise OSError("expected a file, found a folder, a pipe or a device")
        with open(path, "rb") as file:
            start = file.read(8)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}.") from error
    if start != _HDF5_SIGNATURE and start[:4] != _ZIP_SIGNATURE:
        raise ModelFileError(
            f"{path}: expected a weights file (.h5, .weights.h5 or .keras), "
            "found something else."
        )
    check_memory(size, f"the weights of {path}")
    try:
        if start == _HDF5_SIGNATURE:
            with open(path, "rb") as file:
                content = file.read()
        else:
            content = _read_member(path)
        _check_heaps(content)
        with _File(content) as file:
            yield file
    except ModelFileError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        reason = error.args[0] if isinstance(error, KeyError) else error
        reason = str(reason) or type(error).__name__
        raise ModelFileError(f"{path}: damaged weights file: {reason}.") from error


def _read_member(path):
    """The HDF5 part of a .keras file."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("model.weights.h5")
        if member.file_size > _LARGEST_MEMBER:
            raise ModelFileError(
                f"{path}: expected weights of at most {_LARGEST_MEMBER} bytes, "
                f"found {member.file_size}."
            )
        # Of the other methods, a few bytes may unpack to any number at once.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelFileError(
                f"{path}: expected no compression or deflate, found another."
            )
        content = io.BytesIO()
        with archive.open(member) as file:
            shutil.copyfileobj(file, content, 1 << 20)  # up to the size that it says
        return content.getvalue()


def _check_heaps(content):
    """Makes sure that each heap of texts has an end; in a damaged one HDF5 has none.

    Keras's lists of names are texts of any length, and so was our info in version 1.
    A heap is its signature and size, 16 bytes; and objects: number, references and
    size, 16 bytes, then a text. The last one, of number 0, is what is free.
    """
    start = content.find(_HEAP_SIGNATURE)
    while start >= 0:
        (size,) = struct.unpack_from("<Q", content, start + 8)
        place, end = start + 16, start + size
        while place + 16 <= end:
            number, size = struct.unpack_from("<H6xQ", content, place)
            step = size if number == 0 else 16 + size + -size % 8
            if step < 16 or place + step > end:
                raise ValueError("expected a heap of texts, found a damaged one")
            place += step
        start = content.find(_HEAP_SIGNATURE, place)


class _Reader(io.BytesIO):
    """Bytes for HDF5, which itself believes all sizes that it finds in a file."""

    largest = _LARGEST_HEADER

    def readinto(self, buffer):
        if len(buffer) > self.largest:
            raise OSError(f"expected at most {self.largest} bytes, found {len(buffer)}")
        return super().readinto(buffer)


class _File(h5py.File):
    """A file of which only arrays are read in parts of more than a few megabytes."""

    def __init__(self, content):
        self._reader = _Reader(content)
        super().__init__(self._reader, "r")

    def read(self, dataset):
        """All of an array that has been checked."""
        self._reader.largest = max(_LARGEST_HEADER, dataset.nbytes)
        try:
            return dataset[()]
        finally:
            self._reader.largest = _LARGEST_HEADER


def _find(group, name):
    """What a name stands for in the file itself; None if there is nothing.

    Links are not followed: one to another file may lead to a pipe, which never ends.
    """
    for part in name.split("/"):
        key = part.encode()
        if not isinstance(group, h5py.Group) or not group.id.links.exists(key):
            return None
        if group.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise ValueError(
                f"expected {name!r} in the file itself, found a reference to another "
                "file or place"
            )
        group = group[part]
    return group


def _match_layers(model, file, path):
    """Yields (layer name, weights, datasets) for each layer that has weights."""
    layers = [layer for layer in model.layers if layer.weights]
    if _find(file, "layers") is not None:
        folders = _keras3_folders(model.layers)
        for layer in layers:
            datasets = _keras3_datasets(layer, file, folders[layer], path)
            yield layer.name, layer.weights, datasets
        return
    group = _find(file, "model_weights") or file
    names = _names(group, "layer_names")
    names = [n for n in names if _names(_find(group, n), _WEIGHTS)]
    if len(names) != len(layers):
        found = ", ".join(names)[:_LONGEST_NAME] or "none"
        raise ModelFileError(
            f"{path}: expected {len(layers)} layers with weights "
            f"({', '.join(layer.name for layer in layers)}), "
            f"found {len(names)} ({found})."
        )
    for layer, name in zip(layers, names):
        datasets = _legacy_datasets(layer, _find(group, name), path)
        yield layer.name, layer.weights, datasets


def _legacy_datasets(layer, group, path):
    names = _names(group, _WEIGHTS)
    _check_count(len(names), layer, path)
    return [_find(group, name) for name in names]


def _check_count(found, layer, path):
    if found != len(layer.weights):
        raise ModelFileError(
            f"{path}: expected {len(layer.weights)} arrays for the layer {layer.name}, "
            f"found {found}."
        )


def _names(group, attribute):
    """A list of names of the legacy layout."""
    if group is None or attribute not in group.attrs:
        return []
    found = group.attrs.get_id(attribute)
    if found.shape == (0,):  # of numbers, since there are no names to tell otherwise
        return []
    if len(found.shape) != 1 or not _is_text(found.dtype):
        raise TypeError(f"expected a list of names in {attribute}")
    names = group.attrs[attribute] if found.shape[0] <= _MOST_NAMES else None
    if names is None or max(map(len, names)) > _LONGEST_NAME:
        raise ValueError(
            f"expected at most {_MOST_NAMES} names of {_LONGEST_NAME} characters "
            f"in {attribute}"
        )
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names]


def _is_text(dtype):
    string = h5py.check_string_dtype(dtype)  # of no length where that varies
    return string is not None and (string.length or 0) <= _LARGEST_HEADER


def _keras3_folders(layers, parent="layers"):
    """The HDF5 group of each layer in Keras 3's layout: its class, numbered."""
    folders, seen = {}, {}
    for layer in layers:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        number = seen[name] = seen.get(name, -1) + 1
        folders[layer] = f"{parent}/{name}_{number}" if number else f"{parent}/{name}"
    return folders


def _keras3_datasets(layer, file, folder, path):
    if isinstance(layer, keras.Sequential):
        folders = _keras3_folders(layer.layers, f"{folder}/layers")
        parts = [
            _keras3_datasets(part, file, folders[part], path) for part in layer.layers
        ]
        return [dataset for part in parts for dataset in part]
    if not layer.weights:
        return []
    variables = _find(file, f"{folder}/vars")
    found = len(variables) if isinstance(variables, h5py.Group) else 0
    _check_count(found, layer, path)
    return [_find(variables, str(i)) for i in range(len(layer.weights))]


def _read_array(file, dataset, variable, what, path):
    """An array for a variable, after a look at what it is."""
    dtype = np.dtype(variable.dtype)
    _check_array(dataset, tuple(variable.shape), dtype, what, path)
    array = file.read(dataset)
    with np.errstate(over="ignore"):  # of more than float32 holds; found below
        value = array.astype(dtype, copy=False)
    if dtype.kind == "f":
        right, expected = np.isfinite(value), "finite numbers"
    else:  # counts, such as that of the steps
        right, expected = (value == array) & (value >= 0), f"{dtype} from 0"
    if not right.all():
        raise ModelFileError(f"{path}: expected {expected} for {what}, found others.")
    return value


def _check_array(dataset, shape, dtype, what, path):
    """Makes sure of what is read before it is."""
    _check_is_plain(dataset, what, path)
    if dataset.shape != shape:
        raise ModelFileError(
            f"{path}: expected shape {shape} for {what}, found {dataset.shape}."
        )
    kind = np.dtype(dtype).kind
    if dataset.dtype.kind != kind:
        numbers = {"f": "floating point numbers", "i": "integers", "u": "integers"}
        raise ModelFileError(
            f"{path}: expected {numbers[kind]} for {what}, "
            f"found {str(dataset.dtype)[:100]}."
        )


def _check_is_plain(dataset, what, path):
    """Makes sure that an array has one place, in the file itself."""
    if not isinstance(dataset, h5py.Dataset):
        raise ModelFileError(f"{path}: expected an array for {what}, found no array.")
    # Before any look at the shape: that of a virtual array depends on other files,
    # which may be pipes. Chunks may unpack to any size; a million of them takes long.
    layout = dataset.id.get_create_plist()
    plain = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if layout.get_layout() not in plain or layout.get_external_count():
        raise ModelFileError(
            f"{path}: expected {what} in one piece and in the file itself, found "
            "chunks, compression or a reference to another file."
        )

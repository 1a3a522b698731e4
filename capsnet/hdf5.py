"""HDF5 files of weights, from anywhere: opened and read with suspicion.

What may end a read in a wrong load, never, or in too much memory is looked at before:
links and arrays in other places, shapes, types, sizes. Of what else is damaged, HDF5
says so.
"""

import contextlib
import io
import itertools
import json
import os
import re
import zipfile
from collections.abc import Iterator

import h5py
import keras
import numpy as np

from capsnet.errors import DataError
from capsnet.memory import check_memory

Pairs = list[tuple[keras.Variable, np.ndarray]]

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ZIP_SIGNATURE = b"PK\x03\x04"
_MEMBER = "model.weights.h5"  # of a .keras file
_LARGEST_JSON = 1 << 24  # bytes; an epoch of a run takes about 500
_LAYERS, _WEIGHTS = "layer_names", "weight_names"


class ModelFileError(ValueError):
    """A weights file that is missing, unreadable or made for another network."""


@contextlib.contextmanager
def open_file(path: str) -> Iterator[h5py.File]:
    """Opens the HDF5 part of a weights file, whatever the file is called.

    Args:
        path: Name of the file: HDF5, or a .keras file.

    Raises:
        ModelFileError: If it cannot be read, or what is done with it fails; in one
            line that begins with the path.
        DataError: If it needs more memory than there is.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe may never end
            raise ModelFileError("expected a file, found a folder, a pipe or a device.")
        with open(path, "rb") as content, h5py.File(_hdf5_part(content), "r") as file:
            yield file
    except DataError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise ModelFileError(f"{path}: {_reason(error)}") from error


def _reason(error):
    if isinstance(error, ModelFileError):
        return error
    if isinstance(error, OSError) and error.strerror:  # of the system, not of HDF5
        return f"{error.strerror}."
    reason = error.args[0] if isinstance(error, KeyError) else error
    return f"damaged weights file: {str(reason) or type(error).__name__}."


def _hdf5_part(content):
    """The file itself, or what is in a .keras file."""
    start = content.read(8)
    if start == _HDF5_SIGNATURE:
        return content
    if not start.startswith(_ZIP_SIGNATURE):
        raise ModelFileError(
            "expected a weights file (.h5, .weights.h5 or .keras), found something "
            "else."
        )
    with zipfile.ZipFile(content) as archive:
        member = archive.getinfo(_MEMBER)
        # Of the other methods, a few bytes may unpack to any number at once.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelFileError(
                "expected no compression or deflate, found another method."
            )
        check_memory(member.file_size, f"the weights of {content.name}")
        with archive.open(member) as part:
            return io.BytesIO(part.read(member.file_size))


def find(group: h5py.Group | None, name: str) -> h5py.HLObject | None:
    """What a name stands for in the file itself; None if there is nothing.

    Links are not followed: one to another file may lead to a pipe, which never ends.

    Raises:
        ModelFileError: If the name, or a part of it, is a link.
    """
    for part in name.split("/"):
        key = part.encode()
        if not isinstance(group, h5py.Group) or not group.id.links.exists(key):
            return None
        if group.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise ModelFileError(
                f"expected {name!r} in the file itself, found a reference to another "
                "file or place."
            )
        group = group[part]
    return group


# JSON.


def put_json(file: h5py.File, name: str, value: dict) -> None:
    """Writes a JSON object as an array of bytes: no text may be so long."""
    file[name] = np.frombuffer(json.dumps(value).encode(), "uint8")


def read_json(file: h5py.File, name: str) -> dict:
    """Reads what `put_json` wrote.

    Raises:
        ModelFileError: If it is no JSON object.
    """
    dataset = find(file, name)
    _check_is_plain(dataset, name)
    size = dataset.size or 0
    if size > _LARGEST_JSON:
        raise ModelFileError(
            f"expected at most {_LARGEST_JSON} bytes for {name}, found {size}."
        )
    _check_array(dataset, (size,), "u", name)
    return parse_json(dataset[()].tobytes(), name)


def parse_json(text: str | bytes, what: str) -> dict:
    """The JSON object that a text stands for.

    Raises:
        ModelFileError: If it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelFileError(f"expected a JSON object in {what}, found something else.")
    return value


# Arrays.


def read_list(variables: list[keras.Variable], file: h5py.File, group: str) -> Pairs:
    """Reads an array for each variable, in a group where they are numbered.

    Raises:
        ModelFileError: If one is missing or does not fit.
    """
    pairs = []
    for i, variable in enumerate(variables):
        what = f"{group}/{i}"
        pairs.append((variable, _read_array(find(file, what), variable, what)))
    return pairs


def read_weights(model: keras.Model, file: h5py.File) -> Pairs:
    """Reads an array for each weight, in one of Keras's layouts.

    Raises:
        ModelFileError: If one is missing or does not fit.
    """
    pairs = []
    for layer, datasets in _match_layers(model, file):
        pairs += _read_layer(layer, datasets)
    return pairs


def read_fitting(
    model: keras.Model, file: h5py.File
) -> tuple[Pairs, list[keras.Layer], list[keras.Layer]]:
    """Reads the arrays of those layers that they fit; of a `Sequential`, each layer.

    Returns:
        The weights and their arrays, the layers that these are of, and the others.

    Raises:
        ModelFileError: If one is missing or damaged, or none fits.
    """
    pairs, kept, others = [], [], []
    for layer, datasets in _match_layers(model, file):
        for array, weight in zip(datasets, layer.weights):
            _check_is_plain(array, f"{weight.name} of the layer {layer.name}")
        if all(
            array.shape in (tuple(weight.shape), None)  # none: damaged
            for array, weight in zip(datasets, layer.weights)
        ):
            pairs += _read_layer(layer, datasets)
            kept.append(layer)
        else:
            others.append(layer)
    if not kept:
        raise ModelFileError("expected a layer of the same shape, found none.")
    return pairs, kept, others


def parts_of(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that have weights: those in a `Sequential`, or the layer itself."""
    parts = layer.layers if isinstance(layer, keras.Sequential) else [layer]
    return [part for part in parts if part.weights]


def _read_layer(layer, datasets):
    return [
        (weight, _read_array(data, weight, f"{weight.name} of the layer {layer.name}"))
        for weight, data in zip(layer.weights, datasets)
    ]


def _read_array(dataset, variable, what):
    """An array for a variable, after a look at what it is."""
    dtype = np.dtype(variable.dtype)
    _check_is_plain(dataset, what)
    _check_array(dataset, tuple(variable.shape), dtype.kind, what)
    array = dataset[()]
    with np.errstate(over="ignore"):  # of more than float32 holds; found below
        value = array.astype(dtype, copy=False)
    if dtype.kind == "f":
        right, expected = np.isfinite(value), "finite numbers"
    else:  # counts, such as that of the steps
        right, expected = (value == array) & (value >= 0), f"{dtype} from 0"
    if not right.all():
        raise ModelFileError(f"expected {expected} for {what}, found others.")
    return value


def _check_is_plain(dataset, what):
    """Makes sure that an array has one place, in the file itself."""
    if not isinstance(dataset, h5py.Dataset):
        raise ModelFileError(f"expected an array for {what}, found no array.")
    # Before any look at the shape: that of a virtual array depends on other files,
    # which may be pipes. Chunks may unpack to any size.
    layout = dataset.id.get_create_plist()
    plain = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if layout.get_layout() not in plain or layout.get_external_count():
        raise ModelFileError(
            f"expected {what} in one piece and in the file itself, found chunks, "
            "compression or a reference to another file."
        )


def _check_array(dataset, shape, kind, what):
    """Makes sure of what is read before it is."""
    if dataset.shape != shape:
        raise ModelFileError(
            f"expected shape {shape} for {what}, found {dataset.shape}."
        )
    if dataset.dtype.kind != kind:
        numbers = {"f": "floating point numbers", "i": "integers", "u": "integers"}
        raise ModelFileError(
            f"expected {numbers[kind]} for {what}, found {str(dataset.dtype)[:100]}."
        )


# The layouts of Keras.


def _match_layers(model, file):
    """Yields (layer, datasets) for each layer of `parts_of` the model's layers."""
    if find(file, "layers") is not None:
        yield from _match_keras3(model.layers, file, "layers")
        return
    layers = [layer for layer in model.layers if layer.weights]
    group = find(file, "model_weights") or file
    names = _names(group, _LAYERS)
    names = [name for name in names if _names(find(group, name), _WEIGHTS)]
    if len(names) != len(layers):
        found = ", ".join(names)[:255] or "none"
        raise ModelFileError(
            f"expected {len(layers)} layers with weights "
            f"({', '.join(layer.name for layer in layers)}), "
            f"found {len(names)} ({found})."
        )
    for layer, name in zip(layers, names):
        group_of_layer = find(group, name)
        arrays = [find(group_of_layer, n) for n in _names(group_of_layer, _WEIGHTS)]
        _check_count(len(arrays), layer)
        rest = iter(arrays)
        for part in parts_of(layer):
            yield part, list(itertools.islice(rest, len(part.weights)))


def _match_keras3(layers, file, parent):
    """The same in Keras 3's layout: a group for each layer, its class, numbered."""
    seen = {}
    for layer in layers:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        number = seen[name] = seen.get(name, -1) + 1
        folder = f"{parent}/{name}_{number}" if number else f"{parent}/{name}"
        if isinstance(layer, keras.Sequential):
            yield from _match_keras3(layer.layers, file, f"{folder}/layers")
        elif layer.weights:
            variables = find(file, f"{folder}/vars")
            found = len(variables) if isinstance(variables, h5py.Group) else 0
            _check_count(found, layer)
            yield layer, [find(variables, str(i)) for i in range(found)]


def _check_count(found, layer):
    if found != len(layer.weights):
        raise ModelFileError(
            f"expected {len(layer.weights)} arrays for the layer {layer.name}, "
            f"found {found}."
        )


def _names(group, attribute):
    """A list of names of the legacy layout: bytes, or Keras's texts of any length."""
    if group is None or attribute not in group.attrs:
        return []
    names = group.attrs[attribute]
    return [name.decode() if isinstance(name, bytes) else name for name in names]

"""Model files: written whole or not at all, read with suspicion."""

import contextlib
import io
import json
import math
import os
import re
import tempfile
import zipfile

import h5py
import keras

FORMAT_VERSION = 1
_INFO_ATTRIBUTE = "capsnet"
_WEIGHTS = "weight_names"
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ZIP_SIGNATURE = b"PK\x03\x04"


class ModelFileError(ValueError):
    """A weights file that is missing, unreadable or made for another network."""


@contextlib.contextmanager
def replace_file(path: str):
    """Yields a temporary name to write to; on success it becomes `path` at once.

    A reader sees the old file or the new one, never a part, also after a crash.
    The temporary name ends like `path`, since plotting takes the format from there.

    Args:
        path: The file to create or to replace.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{os.getpid()}.{name}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def save_model(model: keras.Model, path: str, info: dict) -> None:
    """Writes the weights in Keras's legacy HDF5 layout, without optimizer state.

    `keras.Model.load_weights` of Keras 2 and 3 reads the file too.

    Args:
        model: The train model of `capsulenet.CapsNet`.
        path: Name of the file.
        info: What else is needed to use the weights; stored as one JSON attribute.
    """
    with replace_file(path) as temporary, h5py.File(temporary, "w") as file:
        layers = [layer for layer in model.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        file.attrs["backend"] = keras.backend.backend().encode()
        file.attrs["keras_version"] = keras.version().encode()
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{i}/{w.name}" for i, w in enumerate(layer.weights)]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights):
                group[name] = keras.ops.convert_to_numpy(weight)
        file.attrs[_INFO_ATTRIBUTE] = json.dumps(
            {"format_version": FORMAT_VERSION, **info}
        )


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
        pairs = []
        for name, weights, datasets in _match_layers(model, file, path):
            if len(datasets) != len(weights):
                raise ModelFileError(
                    f"{path}: expected {len(weights)} arrays for the layer {name}, "
                    f"found {len(datasets)}."
                )
            for weight, dataset in zip(weights, datasets):
                _check_array(dataset, weight, name, file, path)
                pairs.append((weight, dataset[()]))
    for weight, value in pairs:
        weight.assign(value)


def read_info(path: str) -> dict:
    """Reads the JSON attribute that `save_model` wrote; empty for other files.

    Raises:
        ModelFileError: If the file cannot be read, or is of a later version.
    """
    with _open(path) as file:
        try:
            info = json.loads(file.attrs.get(_INFO_ATTRIBUTE, "{}"))
        except (TypeError, ValueError):
            info = None
    if not isinstance(info, dict):
        raise ModelFileError(
            f"{path}: expected a JSON object in the attribute {_INFO_ATTRIBUTE}, "
            "found something else."
        )
    version = info.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: expected format version {FORMAT_VERSION}, found {version}."
        )
    for name, is_right in _INFO_CHECKS.items():
        if name in info and not is_right(info[name]):
            raise ModelFileError(
                f"{path}: damaged weights file: {name} is {str(info[name])[:100]!r}."
            )
    return info


def _is_int(value, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


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
        and isinstance(value.get("digest"), str)
    )


# The file may come from anywhere, and what it says decides how much is allocated.
_INFO_CHECKS = {
    "input_shape": lambda v: _is_sizes(v, 3),
    "class_names": lambda v: (
        isinstance(v, list)
        and 2 <= len(v) <= 1000
        and all(isinstance(name, str) for name in v)
    ),
    "routings": lambda v: _is_int(v, 1, 100),
    "dataset": lambda v: isinstance(v, str),
    "image_size": lambda v: v is None or _is_sizes(v, 2),
    "grayscale": lambda v: type(v) is bool,
    "split": lambda v: v is None or _is_split(v),
    "border_brightness": _is_number,
    "digit_box": lambda v: v is None or _is_int(v, 1, 10_000),
}


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
    folder = os.path.abspath(folder)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as temporary:
        path = os.path.join(temporary, "model")
        archive.write_out(path, verbose=False)
        os.replace(path, folder)


@contextlib.contextmanager
def _open(path):
    """Opens the HDF5 part of a weights file, whatever the file is called."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}.") from error
    if start != _HDF5_SIGNATURE and start[:4] != _ZIP_SIGNATURE:
        raise ModelFileError(
            f"{path}: expected a weights file (.h5, .weights.h5 or .keras), "
            "found something else."
        )
    try:
        source = path
        if start != _HDF5_SIGNATURE:
            with zipfile.ZipFile(path) as archive:
                source = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(source, "r") as file:
            yield file
    except ModelFileError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        reason = error.args[0] if isinstance(error, KeyError) else error
        raise ModelFileError(f"{path}: damaged weights file: {reason}.") from error


def _match_layers(model, file, path):
    """Lists (layer name, weights, datasets) for each layer that has weights."""
    layers = [layer for layer in model.layers if layer.weights]
    if "layers" in file:
        folders = _keras3_folders(model.layers)
        return [
            (layer.name, layer.weights, _keras3_datasets(layer, file, folders[layer]))
            for layer in layers
        ]
    group = file.get("model_weights", file)
    names = [n for n in _names(group, "layer_names") if _names(group[n], _WEIGHTS)]
    if len(names) != len(layers):
        raise ModelFileError(
            f"{path}: expected {len(layers)} layers with weights "
            f"({', '.join(layer.name for layer in layers)}), "
            f"found {len(names)} ({', '.join(names) or 'none'})."
        )
    return [
        (layer.name, layer.weights, [group[n][w] for w in _names(group[n], _WEIGHTS)])
        for layer, n in zip(layers, names)
    ]


def _names(group, attribute):
    """A list of names of the legacy layout."""
    names = group.attrs.get(attribute, ())
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names]


def _keras3_folders(layers, parent="layers"):
    """The HDF5 group of each layer in Keras 3's layout: its class, numbered."""
    folders, seen = {}, {}
    for layer in layers:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(layer).__name__).lower()
        number = seen[name] = seen.get(name, -1) + 1
        folders[layer] = f"{parent}/{name}_{number}" if number else f"{parent}/{name}"
    return folders


def _keras3_datasets(layer, file, folder):
    if isinstance(layer, keras.Sequential):
        folders = _keras3_folders(layer.layers, f"{folder}/layers")
        parts = [_keras3_datasets(part, file, folders[part]) for part in layer.layers]
        return [dataset for part in parts for dataset in part]
    if not layer.weights:
        return []
    variables = file.get(f"{folder}/vars", ())
    return [variables[str(i)] for i in range(len(variables))]


def _check_array(dataset, weight, layer, file, path):
    expected = tuple(weight.shape)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != expected:
        raise ModelFileError(
            f"{path}: expected shape {expected} for {weight.name} of the layer "
            f"{layer}, found {getattr(dataset, 'shape', 'no array')}."
        )
    if dataset.dtype.kind != "f":
        raise ModelFileError(
            f"{path}: expected floating point numbers for {weight.name} of the layer "
            f"{layer}, found {dataset.dtype}."
        )
    if dataset.is_virtual or dataset.external or dataset.file != file:
        raise ModelFileError(
            f"{path}: expected {weight.name} of the layer {layer} in the file itself, "
            "found a reference to another file."
        )

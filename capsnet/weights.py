"""Model files and run states: written whole or not at all."""

import contextlib
import io
import json

import h5py
import keras
import numpy as np

from capsnet import hdf5, run_folder
from capsnet.errors import MAX_CLASSES, is_class_name
from capsnet.hdf5 import ModelFileError
from capsnet.options import SIDE, TEXT, Data, Integer, Number, Training

FORMAT_VERSION = 2
_ATTRIBUTE = "capsnet"  # holds the version and, in version 1, the info
_INFO, _RUN = "info", "run"
_OPTIMIZER, _BEST, _TRAINED = "optimizer", "best", "trained"


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
        hdf5.put_json(file, _RUN, run)


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
    hdf5.put_json(file, _INFO, info)


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
    with hdf5.open_file(path) as file:
        _read_info(file)  # refuses later versions
        pairs = hdf5.read_weights(model, file)
    for weight, value in pairs:
        weight.assign(value)


def load_fitting(
    model: keras.Model, path: str
) -> tuple[list[keras.Layer], list[keras.Layer]]:
    """Reads those weights that fit into a network for other classes or images.

    Args:
        model: The train model of `capsulenet.CapsNet`.
        path: Name of a file as of `load_weights`.

    Returns:
        The layers whose weights are now those of the file, and the others.

    Raises:
        ModelFileError: If the file cannot be read, or no layer fits.
    """
    with hdf5.open_file(path) as file:
        _read_info(file)  # refuses later versions
        pairs, kept, others = hdf5.read_fitting(model, file)
    for weight, value in pairs:
        weight.assign(value)
    return kept, others


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
    with hdf5.open_file(path) as file:
        run = _read_run(file)
        pairs = hdf5.read_weights(model, file)
        if model.optimizer.use_ema:  # those were the averages
            pairs += hdf5.read_list(model.weights, file, _TRAINED)
        pairs += hdf5.read_list(_optimizer_state(model), file, _OPTIMIZER)
        best = None
        if run["best_epoch"] is not None:
            best = [array for _, array in hdf5.read_list(model.weights, file, _BEST)]
    for variable, value in pairs:
        variable.assign(value)
    return run, best


def read_run(path: str) -> dict:
    """Reads what `save_run` was given as `run`.

    Raises:
        ModelFileError: If the file cannot be read, or is no run state.
    """
    with hdf5.open_file(path) as file:
        return _read_run(file)


def _read_run(file):
    _read_info(file)  # refuses later versions
    if hdf5.find(file, _RUN) is None:
        raise ModelFileError("expected the state of a run, found none.")
    run = hdf5.read_json(file, _RUN)
    if not _is_run(run):
        raise ModelFileError("damaged run state.")
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
        and (best is None or Integer(1, len(rows)).accepts(best))
    )


def _is_row(row, epoch, first) -> bool:
    return (
        isinstance(row, dict)
        and list(row) == list(first)
        and row.get("epoch") == epoch
        and all(map(_FINITE.accepts, row.values()))
    )


def read_info(path: str) -> dict:
    """Reads what `save_model` was given as `info`, and the version of the format.

    Returns:
        The info; empty for the files of Keras.

    Raises:
        ModelFileError: If the file cannot be read, or is of a later version.
    """
    with hdf5.open_file(path) as file:
        return _read_info(file)


def _read_info(file):
    if _ATTRIBUTE not in file.attrs:
        return {}
    text = file.attrs[_ATTRIBUTE]  # of any length in version 1
    text = text if isinstance(text, (str, bytes)) else ""
    info = hdf5.parse_json(text, f"the attribute {_ATTRIBUTE}")
    version = info.get("format_version", 1)
    if version not in (1, FORMAT_VERSION):
        raise ModelFileError(
            f"expected format version 1 or {FORMAT_VERSION}, "
            f"found {str(version)[:100]}."
        )
    if version == FORMAT_VERSION:
        info |= hdf5.read_json(file, _INFO)
    for name, is_right in _INFO_CHECKS.items():
        if name in info and not is_right(info[name]):
            raise ModelFileError(
                f"damaged weights file: {name} is {str(info[name])[:100]!r}."
            )
    channels = info.get("input_shape", [28, 28, 1])[2]
    for name, values in (info.get("normalization") or {}).items():
        if len(values) != channels:
            raise ModelFileError(
                f"damaged weights file: expected a {name} for each of {channels} "
                f"channels, found {len(values)}."
            )
    return info


_FINITE = Number(-1e300, 1e300)


def _is_sizes(value, n: int) -> bool:
    return isinstance(value, list) and len(value) == n and all(map(SIDE.accepts, value))


def _is_normalization(value) -> bool:
    return (isinstance(value, dict) and value.keys() == {"mean", "variance"}) and all(
        isinstance(value[name], list)
        and all(_FINITE.accepts(n) and n >= least for n in value[name])
        for name, least in (("mean", 0), ("variance", 1e-12))
    )


def _is_split(value) -> bool:
    return (
        isinstance(value, dict)
        and Data.kind_of("split_seed").accepts(value.get("seed"))
        and Data.kind_of("test_fraction").accepts(value.get("fraction"))
        and isinstance(value.get("digest"), str)
        and isinstance(value.get("contents", ""), str)
    )


# The file may come from anywhere, and what it says decides how much is allocated.
_INFO_CHECKS = {
    "input_shape": lambda v: _is_sizes(v, 3) and v[2] in (1, 3),
    "class_names": lambda v: (
        isinstance(v, list)
        and 2 <= len(v) <= MAX_CLASSES
        and all(isinstance(name, str) and is_class_name(name) for name in v)
    ),
    "multi_label": lambda v: type(v) is bool,
    "objects": Integer(1, 2).accepts,
    "routings": Training.kind_of("routings").accepts,
    "recipe": Training.kind_of("recipe").accepts,
    "architecture": Training.kind_of("architecture").accepts,
    "dataset": Data.kind_of("dataset").accepts,
    "image_size": lambda v: v is None or _is_sizes(v, 2),
    "grayscale": Data.kind_of("grayscale").accepts,
    "split": lambda v: v is None or _is_split(v),
    "frozen": lambda v: isinstance(v, list) and all(map(TEXT.accepts, v)),
    "normalization": lambda v: v is None or _is_normalization(v),
    "border_brightness": _FINITE.accepts,
    "digit_box": lambda v: v is None or SIDE.accepts(v),
}

"""Exported networks: a SavedModel, ONNX or TensorFlow Lite, run without our code."""

import importlib.util
import os
import tempfile

import keras
import numpy as np

from capsnet.backend import portable
from capsnet.errors import UsageError
from capsnet.fields import convolution_layers, margins
from capsnet.run_folder import is_new_or_empty, new_folder, replace_file
from capsnet.startup import quiet_start

OPSET, IR_VERSION = 17, 8  # of ONNX; ONNX Runtime reads them since 2022
LARGEST = 2**31 - 2**20  # bytes of weights that ONNX and TensorFlow Lite hold in a file


def check_export(path: str) -> None:
    """Finds what would keep a model from being exported.

    Args:
        path: As of `export_model`.

    Raises:
        UsageError: If something does.
    """
    suffix = _suffix(path)
    if suffix == ".onnx":
        if importlib.util.find_spec("onnx") is None:
            raise UsageError(f"--export {path} needs ONNX: pip install onnx")
    elif keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"--export {path} needs KERAS_BACKEND=tensorflow, received "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )
    if os.path.lexists(path) if suffix else not is_new_or_empty(path):
        expected = "the name of a new file" if suffix else "a new or empty folder"
        raise UsageError(f"--export: expected {expected}, received {path}")


def _suffix(path: str) -> str:
    """That of the file's format; none for a SavedModel, which is a folder."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix if suffix in (".onnx", ".tflite") else ""


def export_model(model: keras.Model, path: str, half: bool = False) -> None:
    """Writes a network in a form that runs without our code.

    It takes `images`, float32 in [0, 1], any number of them, and returns `lengths` and
    `reconstructions`. The name says the form: `FILE.onnx`, `FILE.tflite` or, without
    one of these endings, a folder with a TensorFlow SavedModel, whose signatures are
    `serving_default` and, for images from 0 to 255, `serve_uint8`.

    Args:
        model: The eval model of `capsulenet.CapsNet`; on the TensorFlow backend, except
            for ONNX.
        path: Name of the file or folder; it must not exist, or be an empty folder.
        half: Whether an ONNX file holds the weights in 16 bits; what is computed with
            them has 32.

    Raises:
        UsageError: If the weights are too many for the form.
        OSError: If it cannot be written.
    """
    suffix = _suffix(path)
    needed = model.count_params() * (2 if half else 4)
    if suffix and needed > LARGEST:
        raise UsageError(
            f"--export: expected at most {LARGEST} bytes of weights in a {suffix} "
            f"file, received {needed}"
        )
    if not suffix:
        with new_folder(path) as folder:
            _write_saved_model(model, folder)
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    content = _to_onnx(model, half) if suffix == ".onnx" else _to_lite(model)
    with replace_file(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def _write_saved_model(model, folder):
    import tensorflow as tf

    def in_float32(layer):  # whatever precision it was trained in
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    def serve(images):
        lengths, reconstructions = plain(images)
        return {"lengths": lengths, "reconstructions": reconstructions}

    def serve_uint8(images):
        return serve(tf.cast(images, "float32") / 255)

    with portable():
        plain = keras.models.clone_model(
            model, clone_function=in_float32, recursive=True
        )
        plain.set_weights(model.get_weights())
        module = tf.Module()
        module.weights = [weight.value for weight in plain.weights]
        signatures = {}
        for name, function, dtype in (
            ("serving_default", serve, "float32"),
            ("serve_uint8", serve_uint8, "uint8"),
        ):
            images = tf.TensorSpec(model.input_shape, dtype, name="images")
            function = tf.function(function, [images], autograph=False)
            signatures[name] = function
        tf.saved_model.save(module, folder, signatures)


def _to_lite(model) -> bytes:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        _write_saved_model(model, folder)
        with quiet_start():  # it speaks of its own parts
            return tf.lite.TFLiteConverter.from_saved_model(
                folder, signature_keys=["serving_default"]
            ).convert()


def _to_onnx(model, half) -> bytes:
    """The network's layers, one after another, as operations of ONNX.

    Keras's own exporter needs another package beside TensorFlow, which stores the
    transformation matrices in three orders and names no output.
    """
    from onnx import TensorProto, helper

    graph = _Graph(half)
    layers = {layer.name: layer for layer in model.layers}
    u = _add_primary_capsules(graph, model, layers)
    v = _add_routing(graph, layers["digitcaps"], u)
    _add_outputs(graph, layers, v)

    n_class, image = model.outputs[0].shape[1], model.input_shape[1:]
    sizes = {"images": image, "lengths": [n_class], "reconstructions": image}
    images, *outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in sizes.items()
    )
    network = helper.make_graph(
        graph.nodes, "CapsNet", [images], outputs, graph.constants
    )
    opset = helper.make_opsetid("", OPSET)
    made = helper.make_model(network, opset_imports=[opset], ir_version=IR_VERSION)
    return made.SerializeToString()


def _add_primary_capsules(graph, model, layers) -> str:
    """From `images` to (batch, capsules, dim)."""
    add, weight = graph.add, graph.weight
    *features, primary = convolution_layers(model)
    x = "images"
    if "normalization" in layers:
        layer = layers["normalization"]
        x = add("Sub", x, _array(layer.mean))
        deviation = np.sqrt(_array(layer.variance))
        x = add("Div", x, np.maximum(deviation, keras.config.epsilon()))
    # (batch, channels, height, width), as ONNX has it, until the convolutions are done
    x = add("Transpose", x, perm=[0, 3, 1, 2])
    for layer in features:
        (top, bottom), (left, right) = margins(layer)
        sizes = {"strides": [*layer.strides], "pads": [top, left, bottom, right]}
        kernel = weight(layer.kernel, order=(3, 2, 0, 1))
        x = add("Relu", add("Conv", x, kernel, weight(layer.bias), **sizes))
    kernel = weight(primary.kernel, order=(3, 2, 0, 1))
    x = add("Conv", x, kernel, strides=[*primary.strides])
    x = add("Transpose", x, perm=[0, 2, 3, 1])
    _, capsules, dim = primary.output.shape
    x = add("Reshape", add("Add", x, weight(primary.bias)), [-1, capsules, dim])
    return _add_squash(add, x)


def _add_routing(graph, layer, u: str) -> str:
    """From u to (batch, n_class, class_dim), as `capsulelayers.CapsuleLayer` does it.

    In between the classes come first.
    """
    add, weight = graph.add, graph.weight
    n_class, capsules, class_dim, dim = layer.W.shape
    # (n_class, capsules * dim, class_dim)
    W = weight(layer.W, order=(0, 1, 3, 2), shape=(n_class, -1, class_dim))
    W_T = add("Transpose", W, perm=[0, 2, 1])
    s = add("MatMul", add("Reshape", u, [-1, capsules * dim]), W)
    v = _add_squash(add, add("Div", s, float(n_class)))
    logits = 0.0
    for _ in range(layer.routings - 1):
        v_W = add("Reshape", add("MatMul", v, W_T), [n_class, -1, capsules, dim])
        agreement = add("ReduceSum", add("Mul", u, v_W), [-1], keepdims=0)
        logits = add("Add", agreement, logits)  # (n_class, batch, capsules)
        c = add("Unsqueeze", add("Softmax", logits, axis=0), [-1])
        c_u = add("Reshape", add("Mul", c, u), [n_class, -1, capsules * dim])
        v = _add_squash(add, add("MatMul", c_u, W))
    return add("Transpose", v, perm=[1, 0, 2])


def _add_outputs(graph, layers, v: str) -> None:
    """From (batch, n_class, class_dim) to `lengths` and `reconstructions`."""
    from onnx import TensorProto

    add, weight = graph.add, graph.weight
    _, n_class, class_dim = layers["digitcaps"].output.shape
    squares = add("ReduceSum", add("Mul", v, v), [-1], keepdims=0)
    add("Sqrt", add("Add", squares, keras.config.epsilon()), output="lengths")
    threshold = layers["mask"].threshold
    if threshold is None:
        longest = add("ArgMax", squares, axis=-1)  # the first one, (batch, 1)
        mask = add("Equal", longest, np.arange(n_class))
    else:
        mask = add("Greater", squares, threshold**2)
    mask = add("Cast", add("Unsqueeze", mask, [-1]), to=TensorProto.FLOAT)
    x = add("Reshape", add("Mul", v, mask), [-1, n_class * class_dim])
    *dense, reshape = layers["decoder"].layers
    for layer in dense:
        x = add("Add", add("MatMul", x, weight(layer.kernel)), weight(layer.bias))
        x = add({"relu": "Relu", "sigmoid": "Sigmoid"}[layer.activation.__name__], x)
    add("Reshape", x, [-1, *reshape.target_shape], output="reconstructions")


def _add_squash(add, vectors: str) -> str:
    """As `capsulelayers.squash`."""
    squared_norm = add("ReduceSum", add("Mul", vectors, vectors), [-1])
    scale = add("Div", squared_norm, add("Add", squared_norm, 1.0))
    norm = add("Sqrt", add("Add", squared_norm, keras.config.epsilon()))
    return add("Mul", add("Div", scale, norm), vectors)


class _Graph:
    """Nodes and constants of a graph of ONNX, each with a name of its own.

    Args:
        half: Whether weights are stored in 16 bits.
    """

    def __init__(self, half: bool):
        self.half = half
        self.nodes = []
        self.constants = []

    def add(self, kind: str, *inputs, output: str | None = None, **attributes) -> str:
        """Adds a node; returns the name of its output.

        Args:
            kind: The operation.
            inputs: Names of tensors; numbers and arrays become constants, of 64 bits if
                they are whole numbers, else float32.
            output: The name, if it matters.
            attributes: Of the operation.
        """
        from onnx import helper

        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def weight(self, variable, order=None, shape=None) -> str:
        """Adds a variable of Keras; returns the name of its values in float32.

        Args:
            variable: Of Keras.
            order: Of its axes.
            shape: That it gets then.
        """
        array = _array(variable)
        if order is not None:
            array = array.transpose(order)
        array = array.reshape(shape or array.shape)
        if not self.half:
            return self._constant(array)
        from onnx import TensorProto

        stored = self._constant(array.astype("float16"))
        return self.add("Cast", stored, to=TensorProto.FLOAT)

    def _constant(self, value) -> str:
        from onnx import numpy_helper

        array = np.asarray(value)
        if array.dtype == "float64":
            array = array.astype("float32")
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name


def _array(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)

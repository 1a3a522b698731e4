"""Exports: what other programs compute of the files is what Keras computes."""

import dataclasses
import importlib.util
import os

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, environment, main, refuse, run

from capsnet import export
from capsnet.architecture import ARCHITECTURES
from capsnet.errors import UsageError
from capsnet.export import export_model
from capsnet.flags import PRETRAINED
from capsnet.weights import save_model
from capsulenet import CapsNet

MODEL = ROOT / PRETRAINED
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
needs_tensorflow = pytest.mark.skipif(
    not ON_TENSORFLOW, reason="a SavedModel needs TensorFlow"
)
OUTPUTS = ("lengths", "reconstructions")
COLOURS = {"mean": [0.2, 0.5, 0.6], "variance": [1.0, 2.0, 0.5]}
# Networks that differ in all that a model file may say: input shape, classes, rounds of
# the routing, and more.
NETWORKS = {
    "plain": ((28, 28, 1), 10, 3, {}),
    "colour": ((20, 24, 3), 3, 3, {"normalization": COLOURS}),
    "one round": ((17, 17, 1), 2, 1, {}),
    "five rounds": ((24, 19, 1), 4, 5, {}),
    "several labels": ((20, 20, 3), 6, 3, {"multi_label": True}),
    "pictures": ((21, 26, 3), 4, 3, {"architecture": "pictures"}),
}


def build(name):
    """An eval model with few and random weights, whose outputs are worth a look."""
    shape, n_class, routings, options = NETWORKS[name]
    sizes = ARCHITECTURES[options.get("architecture", "paper")]
    few = tuple((8, *sizes) for _, *sizes in sizes.convolutions)
    sizes = dataclasses.replace(
        sizes, convolutions=few, primary_types=4, decoder=(16, 32)
    )
    keras.utils.set_random_seed(0)
    model = CapsNet(shape, n_class, routings, **options | {"architecture": sizes})[1]
    digits = model.get_layer("digitcaps")
    # so that some capsules of classes are long, and others short
    scales = np.linspace(10, 120, n_class).reshape(-1, 1, 1, 1)
    W = keras.ops.convert_to_numpy(digits.W)
    digits.W.assign(W * scales / np.std(W) / W.shape[1] ** 0.5)
    for weight in model.get_layer("decoder").weights:
        weight.assign(3 * weight)
    return model


def images(model, n=7):
    """Images of the model's size: noise, bright and dark, and a black one."""
    rng = np.random.default_rng(1)
    x = rng.random((n, *model.input_shape[1:]), "float32")
    x *= np.linspace(1, 0, n, dtype="float32").reshape(-1, 1, 1, 1)
    return x


def run_onnx(path, x):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    return session.run([*OUTPUTS], {"images": x})


def assert_close(outputs, expected, tolerance=1e-5):
    for output, array in zip(outputs, expected, strict=True):
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, array, rtol=0, atol=tolerance)


# The command line, and a model that is trained.


@pytest.fixture(scope="module")
def digits(mnist, published):
    """Test digits, and the outputs of the published model."""
    x = mnist.test[0][:50].astype("float32")
    return x, published.predict(x, verbose=0)


def test_onnx_of_the_published_model(digits, tmp_path, capsys):
    x, expected = digits
    assert main("--export", "some/new/model.onnx", "-w", MODEL) == 0
    assert "Wrote some/new/model.onnx" in capsys.readouterr().out
    path = tmp_path / "some" / "new" / "model.onnx"
    assert os.listdir(path.parent) == ["model.onnx"]
    assert_close(run_onnx(path, x), expected)
    assert path.stat().st_size < 33e6  # each weight once


def test_half_the_size(digits, tmp_path):
    x, expected = digits
    path = tmp_path / "model.onnx"
    (tmp_path / "result").touch()  # no folder, and none is needed
    assert main("--export", path, "--half", "-w", MODEL) == 0
    assert path.stat().st_size < 16.5e6
    lengths, reconstructions = run_onnx(path, x)
    assert_close([lengths], expected[:1], 4e-4)
    assert_close([reconstructions], expected[1:], 4e-3)


def test_an_export_replaces_nothing(tmp_path, capsys):
    mine = tmp_path / "mine.onnx"
    mine.write_text("precious")
    names = [mine, tmp_path] if ON_TENSORFLOW else [mine]
    for name in names:
        assert f"received {name}" in refuse(capsys, "--export", name, "-w", MODEL)
    assert mine.read_text() == "precious"
    assert os.listdir(tmp_path) == ["mine.onnx"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--half",), "--half: expected --export FILE.onnx, received no --export"),
        (("--half", "--export", "x.tflite"), "FILE.onnx, received x.tflite"),
        (("--half", "--export", "onnx"), "FILE.onnx, received onnx"),
    ],
)
def test_only_onnx_is_halved(tmp_path, capsys, flags, complaint):
    assert complaint in refuse(capsys, *flags, "-w", MODEL)
    assert os.listdir(tmp_path) == []


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refuse(capsys, "--export", "x.onnx", "-w", MODEL)
    assert message.endswith("--export x.onnx needs ONNX: pip install onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["folder", "x.tflite"])
def test_other_backends_write_onnx_alone(name, capsys, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UsageError, match=f"{name} needs KERAS_BACKEND=tensorflow"):
        export.check_export(name)


# ONNX.


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx(name, tmp_path):
    model, path = build(name), tmp_path / "model.ONNX"
    x = images(model)
    expected = model.predict(x, verbose=0)
    lengths, reconstructions = expected
    assert np.ptp(lengths) > 0.3 and np.ptp(reconstructions) > 0.1
    export_model(model, str(path))
    assert_close(run_onnx(path, x), expected)
    for i in range(len(x)):  # one image alone
        assert_close(run_onnx(path, x[i : i + 1]), [y[i : i + 1] for y in expected])


def test_several_labels_are_drawn_at_once():
    """What the test above is worth: images of no, one and several classes."""
    model = build("several labels")
    lengths, _ = model.predict(images(model), verbose=0)
    assert len({*(lengths > 0.5).sum(axis=1)}) >= 3
    assert np.abs(lengths - 0.5).min() > 1e-4


def test_onnx_is_what_other_programs_expect(tmp_path):
    model, path = build("colour"), tmp_path / "model.onnx"
    export_model(model, str(path))
    made = onnx.load(path)
    onnx.checker.check_model(made, full_check=True)
    assert [(o.domain, o.version >= 17) for o in made.opset_import] == [("", True)]
    session = onnxruntime.InferenceSession(path)
    found = {
        value.name: (value.type, value.shape)
        for value in (*session.get_inputs(), *session.get_outputs())
    }
    assert found == {
        "images": ("tensor(float)", ["batch", 20, 24, 3]),
        "lengths": ("tensor(float)", ["batch", 3]),
        "reconstructions": ("tensor(float)", ["batch", 20, 24, 3]),
    }


def test_a_file_holds_no_more_than_it_can(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST", 1000)
    with pytest.raises(UsageError, match="expected at most 1000 bytes of weights in a"):
        export_model(build("one round"), str(tmp_path / "x.onnx"))
    assert os.listdir(tmp_path) == []


# TensorFlow.


def run_saved_model(path, x):
    import tensorflow as tf

    outputs = tf.saved_model.load(path).signatures["serving_default"](tf.constant(x))
    return [outputs[name].numpy() for name in OUTPUTS]


def functions_of(folder):
    """The functions in a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0].graph_def.library.function


@needs_tensorflow
@pytest.mark.parametrize("name", ["colour", "several labels"])
def test_a_saved_model_needs_no_compiler(name, tmp_path):
    model, folder = build(name), tmp_path / "model"
    export_model(model, str(folder))
    x = images(model)
    assert_close(run_saved_model(folder, x), model.predict(x, verbose=0))
    functions = functions_of(folder)
    nodes = {node.op for function in functions for node in function.node_def}
    assert "Conv2D" in nodes
    assert not any(function.attr["_XlaMustCompile"].b for function in functions)
    weights = folder / "variables" / "variables.data-00000-of-00001"
    assert weights.stat().st_size < 4.5 * model.count_params()  # each weight once


@needs_tensorflow
def test_the_convolution_is_the_plain_one(tmp_path):
    """The full network, of which a CPU computes the second one by frequencies."""
    model, folder = CapsNet((28, 28, 1), 2, 1)[1], tmp_path / "model"
    export_model(model, str(folder))
    functions = functions_of(folder)
    counts = {[node.op for node in f.node_def].count("Conv2D") for f in functions}
    assert counts == {0, 2}


@needs_tensorflow
def test_an_export_computes_in_float32(tmp_path):
    expected = build("colour")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build("colour")
    finally:
        keras.config.set_dtype_policy("float32")
    model.set_weights(expected.get_weights())
    export_model(model, str(tmp_path / "model"))
    x = images(model)
    outputs = run_saved_model(tmp_path / "model", x)
    assert_close(outputs, expected.predict(x, verbose=0))


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter is deprecated")
def test_tensorflow_lite(tmp_path, monkeypatch, capfd):
    import tensorflow as tf

    model, path = build("several labels"), tmp_path / "model.tflite"
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # as the start of a script sets it
    capfd.readouterr()
    export_model(model, str(path))
    assert capfd.readouterr().err == ""  # the converter would speak of its own parts
    assert os.listdir(tmp_path) == ["model.tflite"]
    runner = tf.lite.Interpreter(str(path)).get_signature_runner("serving_default")
    for n in (7, 1):
        x = images(model)[:n]
        outputs = runner(images=x)
        expected = model.predict(x, verbose=0)
        # XNNPACK has a sigmoid of its own
        assert_close([outputs[name] for name in OUTPUTS], expected, 3e-5)


# Without our code: in a process that has only what the file needs.

IN_TENSORFLOW = """
import numpy as np, sys, tensorflow as tf
pixels = np.load("pixels.npy")
model = tf.saved_model.load("model")
a = model.signatures["serving_default"](tf.constant(pixels / 255, tf.float32))
b = model.signatures["serve_uint8"](tf.constant(pixels))
np.savez("out.npz", **a, **{k + "_uint8": v for k, v in b.items()})
assert not {"capsulenet", "capsulelayers", "capsnet"} & set(sys.modules)
"""


@needs_tensorflow
@pytest.mark.slow
def test_a_saved_model_runs_without_our_code(tmp_path):
    shape, info = (20, 24, 3), {"class_names": ["a", "b", "c"], "recipe": "pictures"}
    info |= {"input_shape": list(shape), "dataset": "mine", "normalization": COLOURS}
    train_model, eval_model, _ = CapsNet(shape, 3, normalization=COLOURS)
    save_model(train_model, str(tmp_path / "model.h5"), info)
    done = run("--export", "model", "-w", "model.h5")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Wrote model\n")
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape), "uint8")
    np.save(tmp_path / "pixels.npy", pixels)
    alone = environment(tmp_path)  # which does not find our modules
    done = run(program=("-c", IN_TENSORFLOW), env=alone)
    assert done.returncode == 0, done.stderr
    expected = eval_model.predict(pixels / np.float32(255), verbose=0)
    with np.load(tmp_path / "out.npz") as out:
        for key in out:
            value = expected[OUTPUTS.index(key.removesuffix("_uint8"))]
            np.testing.assert_allclose(out[key], value, rtol=0, atol=3e-5)

"""weights.py: whole files, read by old and new Keras, and those that are refused."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from capsnet import memory
from capsnet.errors import DataError
from capsnet.weights import (
    ModelFileError,
    load_fitting,
    load_run,
    load_weights,
    read_info,
    save_model,
    save_run,
)
from capsulenet import CapsNet

SHAPE = (28, 28, 1)
INFO = {"input_shape": [28, 28, 1], "routings": 3, "seed": 7}
# The four parts with weights, in the order of all files, with the shapes of old ones.
PARTS = {
    "conv1": [(9, 9, 1, 256), (256,)],
    "primarycaps": [(9, 9, 256, 256), (256,)],
    "digitcaps": [(10, 1152, 16, 8)],
    "decoder": [(160, 512), (512,), (512, 1024), (1024,), (1024, 784), (784,)],
}
SHAPES = sum(PARTS.values(), [])


def random_weights(seed):
    """Weights large enough that class lengths and reconstructions differ clearly."""
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(shape, dtype="float32") for shape in SHAPES]
    # Of the transformation matrices, those of each class are larger than the last's.
    by_class = np.linspace(0.005, 0.2, 10, dtype="float32").reshape(10, 1, 1, 1)
    scales = [0.1, 0.1, 0.02, 0.1, by_class, 0.3, 0.1, 0.1, 0.1, 0.2, 0.1]
    return [scale * weight for scale, weight in zip(scales, weights)]


def names(group, attribute):
    """Names in the legacy layout, which the HDF5 library gives as bytes or text."""
    return [n.decode() if isinstance(n, bytes) else n for n in group.attrs[attribute]]


@pytest.fixture(scope="module")
def network():
    """A network for all tests; each gives it the weights that it needs."""
    return CapsNet(SHAPE, 10)[0]


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    """A file of `save_model` with `random_weights(1)`; tests change copies of it."""
    path = str(tmp_path_factory.mktemp("saved") / "trained_model.h5")
    network.set_weights(random_weights(1))
    save_model(network, path, INFO)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """Its name does not matter: what is in it says what it is."""
    return shutil.copy(saved, tmp_path / "epoch 3.keras")


def assert_weights(model, expected):
    for weight, array in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, array)


# Files that are read.


def test_save_and_load(network, saved):
    network.set_weights(random_weights(2))
    load_weights(network, saved)
    assert_weights(network, random_weights(1))


def test_info_is_json_in_bytes(saved):
    assert read_info(saved) == {"format_version": 2, **INFO}
    with h5py.File(saved) as file:
        assert file["info"].dtype == np.uint8
        assert json.loads(file["info"][()].tobytes()) == INFO
        # Version 1 had it all in here, and says so when it finds another number.
        assert json.loads(file.attrs["capsnet"]) == {"format_version": 2}


def test_info_may_be_longer_than_an_attribute(network, tmp_path):
    info = {"class_names": [f"{i}" + "é" * 250 for i in range(1000)]}
    save_model(network, str(tmp_path / "x.h5"), info)
    assert read_info(str(tmp_path / "x.h5")) == {"format_version": 2, **info}


@pytest.mark.parametrize("name", ["x.weights.h5", "x.keras"])
def test_weights_saved_by_keras_3(network, tmp_path, name):
    network.set_weights(random_weights(2))
    path = str(tmp_path / name)
    (network.save_weights if name == "x.weights.h5" else network.save)(path)
    network.set_weights(random_weights(3))
    assert read_info(path) == {}
    load_weights(network, path)
    assert_weights(network, random_weights(2))


def test_a_model_configuration_in_the_file_is_not_read(network, copy):
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = '{"class_name": "Lambda", "config": "no JSON'
    network.set_weights(random_weights(2))
    load_weights(network, copy)
    assert_weights(network, random_weights(1))


def to_version_1(path):
    """Makes of a file what was written at first: all texts are of any length."""
    with h5py.File(path, "r+") as file:
        info = json.loads(file["info"][()].tobytes())
        del file["info"]
        file.attrs["capsnet"] = json.dumps({"format_version": 1, **info})
        file.attrs["layer_names"] = list(PARTS)
        for part in PARTS:
            file[part].attrs["weight_names"] = names(file[part], "weight_names")


def test_our_files_hold_no_text_of_any_length(saved, state):
    """HDF5 keeps such texts in heaps, and a damaged heap may have no end."""
    for path in (saved, state[1]):
        assert b"GCOL" not in Path(path).read_bytes()


def test_version_1(network, copy):
    to_version_1(copy)
    network.set_weights(random_weights(2))
    load_weights(network, str(copy))
    assert_weights(network, random_weights(1))
    assert read_info(str(copy)) == {"format_version": 1, **INFO}


# Files of the Keras 2 scripts.


def old_network(tf_keras):
    """A CapsNet as scripts for TensorFlow 2 and Keras 2 write it."""
    import tensorflow as tf

    def squash(s, axis=-1):
        squared_norm = tf.reduce_sum(tf.square(s), axis, keepdims=True)
        return squared_norm / (1 + squared_norm) * s / tf.sqrt(squared_norm + 1e-7)

    class Squash(tf_keras.layers.Layer):
        def call(self, inputs):
            return squash(inputs)

    class CapsuleLayer(tf_keras.layers.Layer):
        def build(self, input_shape):
            shape = (10, input_shape[1], 16, input_shape[2])
            self.W = self.add_weight(name="W", shape=shape)

        def call(self, inputs):
            # (batch, 1152, 8) -> (batch, 10, 1152, 8, 1) -> (batch, 10, 1152, 16, 1)
            tiled = tf.tile(inputs[:, None, :, :, None], [1, 10, 1, 1, 1])
            u_hat = tf.map_fn(lambda u: tf.matmul(self.W, u), elems=tiled)
            b = tf.zeros_like(u_hat[..., :1, :])
            for i in range(3):
                c = tf.nn.softmax(b, axis=1)
                v = squash(tf.reduce_sum(c * u_hat, axis=2, keepdims=True), axis=3)
                if i < 2:
                    b += tf.reduce_sum(u_hat * v, axis=3, keepdims=True)
            return v[:, :, 0, :, 0]  # (batch, 10, 16)

    class Mask(tf_keras.layers.Layer):
        def call(self, inputs):
            capsules, mask = inputs
            return tf.reshape(capsules * mask[:, :, None], [-1, 160])

    class Length(tf_keras.layers.Layer):
        def call(self, inputs):
            return tf.sqrt(tf.reduce_sum(tf.square(inputs), -1) + 1e-7)

    layers = tf_keras.layers
    image, label = layers.Input(SHAPE), layers.Input((10,))
    x = layers.Conv2D(256, 9, activation="relu", name="conv1")(image)
    x = layers.Conv2D(256, 9, strides=2, name="primarycap_conv2d")(x)
    x = layers.Reshape((-1, 8), name="primarycap_reshape")(x)
    x = Squash(name="primarycap_squash")(x)
    capsules = CapsuleLayer(name="digitcaps")(x)
    decoder = tf_keras.Sequential(name="decoder")
    decoder.add(layers.Dense(512, activation="relu", input_dim=160))
    decoder.add(layers.Dense(1024, activation="relu"))
    decoder.add(layers.Dense(784, activation="sigmoid"))
    decoder.add(layers.Reshape(SHAPE, name="out_recon"))
    lengths = Length(name="capsnet")(capsules)
    return tf_keras.Model([image, label], [lengths, decoder(Mask()([capsules, label]))])


@pytest.fixture(scope="module")
def old():
    return old_network(pytest.importorskip("tf_keras"))


@pytest.fixture(scope="module")
def digits(mnist):
    """Images, and labels that name another class than the image's for half of them."""
    _, (x, y) = mnist
    return [x[:20], np.concatenate([y[:10], np.roll(y[10:20], 1, axis=1)])]


def assert_same_outputs(model, other, digits):
    lengths, images = model.predict(digits, verbose=0)
    other_lengths, other_images = other.predict(digits, verbose=0)
    assert np.ptp(lengths) > 0.5 and np.ptp(images) > 0.5  # worth a comparison
    np.testing.assert_allclose(lengths, other_lengths, rtol=0, atol=1e-4)
    np.testing.assert_allclose(images, other_images, rtol=0, atol=1e-4)


def test_old_weights_give_the_old_outputs(network, old, digits, tmp_path):
    path = str(tmp_path / "weights-50.h5")
    old.set_weights(random_weights(4))
    old.save_weights(path)
    network.set_weights(random_weights(5))
    load_weights(network, path)
    assert_weights(network, random_weights(4))
    assert_same_outputs(network, old, digits)


def test_a_whole_old_model_is_read_as_well(network, old, tmp_path):
    path = str(tmp_path / "model.h5")
    old.compile("adam", "mse")
    old.set_weights(random_weights(4))
    old.save(path)
    with h5py.File(path) as file:
        assert "model_weights" in file
    network.set_weights(random_weights(5))
    load_weights(network, path)
    assert_weights(network, random_weights(4))


def test_old_scripts_read_our_files(network, old, saved, digits):
    old.set_weights(random_weights(5))
    old.load_weights(saved)
    assert_weights(old, random_weights(1))
    network.set_weights(random_weights(1))
    assert_same_outputs(network, old, digits)


# Files that are refused. Each fault is a function that damages a good file.


def remove(path):
    os.remove(path)


def put_a_folder(path):
    os.remove(path)
    os.mkdir(path)


def write(content):
    def damage(path):
        with open(path, "wb") as file:
            file.write(content)

    return damage


def cut_to(part):
    def damage(path):
        os.truncate(path, int(os.path.getsize(path) * part))

    return damage


def zip_with(name, content, method=zipfile.ZIP_STORED):
    def damage(path):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr(name, content)

    return damage


def edit(change):
    """Damages by `change(file)`, with the HDF5 file open."""

    def damage(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


KERNEL = "conv1/conv1/0/kernel"


def replace_kernel(shape=(9, 9, 1, 256), dtype="float32", **options):
    def change(file):
        del file[KERNEL]
        file.create_dataset(KERNEL, shape, dtype, **options)

    return edit(change)


def drop_a_layer(file):
    file.attrs["layer_names"] = file.attrs["layer_names"][:-1]


def drop_a_bias(file):
    file["conv1"].attrs["weight_names"] = file["conv1"].attrs["weight_names"][:1]


def group_for_an_array(file):
    del file[KERNEL]
    file.create_group(KERNEL)


def foreign_file(file):
    file.clear()
    file.attrs.clear()
    file["temperature"] = np.zeros(10)


def virtual_array(file):
    """Of a pipe, on which its shape depends: one look at that would take for ever."""
    os.mkfifo(file.filename + ".pipe")
    endless = (None, *SHAPES[0][1:])
    layout = h5py.VirtualLayout(SHAPES[0], "float32", maxshape=endless)
    source = h5py.VirtualSource(
        file.filename + ".pipe", "kernel", SHAPES[0], maxshape=endless
    )
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
    del file[KERNEL]
    file.create_virtual_dataset(KERNEL, layout)


def link_to_a_pipe(file):  # which nobody writes to: to open it would take for ever
    os.mkfifo(file.filename + ".pipe")
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink(file.filename + ".pipe", "kernel")


def array_outside(file):
    raw = file.filename + ".raw"
    np.zeros(SHAPES[0], "float32").tofile(raw)
    del file[KERNEL]
    file.create_dataset(KERNEL, SHAPES[0], "float32", external=[(raw, 0, 82944)])


def array_of_nothing(file):
    del file[KERNEL]
    file[KERNEL] = h5py.Empty("float32")


def table_of_names(file):
    file.attrs["layer_names"] = np.array([[b"conv1"] * 4])


def array_for_layers(file):
    file["layers"] = np.zeros(3)


def set_attribute(value):
    return edit(lambda file: file.attrs.update(capsnet=value))


def put_info(text):
    def change(file):
        del file["info"]
        file["info"] = np.frombuffer(text, "uint8")

    return edit(change)


FAULTS = {
    "missing": (remove, "No such file"),
    "a folder": (put_a_folder, "a folder, a pipe or a device"),
    "empty": (write(b""), "expected a weights file (.h5, .weights.h5 or .keras)"),
    "text": (write(b"accuracy: 0.99\n" * 9), "expected a weights file"),
    "signature only": (write(b"\x89HDF\r\n\x1a\n"), "damaged weights file"),
    "half": (cut_to(0.5), "damaged weights file"),
    "but its end": (cut_to(0.999), "damaged weights file"),
    "zip": (zip_with("x.txt", "x"), "no item named 'model.weights.h5'"),
    "zip of text": (zip_with("model.weights.h5", "text"), "damaged weights file"),
    "other shape": (
        replace_kernel((5, 5, 1, 256)),
        "expected shape (9, 9, 1, 256) for kernel of the layer conv1, "
        "found (5, 5, 1, 256)",
    ),
    "nothing": (edit(group_for_an_array), "kernel of the layer conv1, found no array"),
    "fewer layers": (
        edit(drop_a_layer),
        "expected 4 layers with weights (conv1, primarycaps, digitcaps, decoder), "
        "found 3 (conv1, primarycaps, digitcaps)",
    ),
    "foreign": (edit(foreign_file), "expected 4 layers with weights"),
    "fewer arrays": (
        edit(drop_a_bias),
        "expected 2 arrays for the layer conv1, found 1",
    ),
    "no groups": (edit(array_for_layers), "2 arrays for the layer conv1, found 0"),
    "integers": (
        replace_kernel(dtype="int32"),
        "expected floating point numbers for kernel of the layer conv1, found int32",
    ),
    "of nothing": (edit(array_of_nothing), "expected shape (9, 9, 1, 256) for kernel"),
    "virtual": (edit(virtual_array), "a reference to another file"),
    "external": (edit(array_outside), "a reference to another file"),
    "pipe": (edit(link_to_a_pipe), "'conv1/0/kernel' in the file itself"),
    "chunks": (
        replace_kernel(chunks=(1, 1, 1, 1)),
        "expected kernel of the layer conv1 in one piece and in the file itself, "
        "found chunks",
    ),
    "not a number": (
        replace_kernel(fillvalue=np.nan),
        "expected finite numbers for kernel of the layer conv1, found others",
    ),
    "too large": (replace_kernel(dtype="float64", fillvalue=1e39), "finite numbers"),
    "table of names": (edit(table_of_names), "damaged weights file"),
    "bzip2": (
        zip_with("model.weights.h5", bytes(10**7), zipfile.ZIP_BZIP2),
        "expected no compression or deflate, found another",
    ),
    "of the future": (
        set_attribute('{"format_version": 3}'),
        "expected format version 1 or 2, found 3",
    ),
    "attribute deep": (set_attribute("[" * 10**5), "object in the attribute capsnet"),
    "attribute numbers": (
        set_attribute(np.arange(3)),
        "expected a JSON object in the attribute capsnet, found something else",
    ),
    "no info": (edit(lambda file: file.pop("info")), "an array for info, found no"),
    "info long": (put_info(bytes(2**24 + 1)), "expected at most 16777216 bytes for"),
    "info a list": (put_info(b"[1]"), "expected a JSON object in info, found"),
}


def refused(model, path, load=load_weights):
    """The message of the error; the model must not have changed."""
    model.set_weights([np.zeros(shape) for shape in SHAPES])
    with pytest.raises(ModelFileError) as caught:
        load(model, path)
    assert not any(weight.any() for weight in model.get_weights())
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(network, copy, fault):
    damage, complaint = FAULTS[fault]
    damage(copy)
    assert complaint in refused(network, str(copy))


@pytest.mark.parametrize(
    "fault", ["of nothing", "virtual", "external", "pipe", "chunks"]
)
def test_what_may_fit_is_looked_at_with_the_same_suspicion(network, copy, fault):
    damage, complaint = FAULTS[fault]
    damage(copy)
    assert complaint in refused(network, str(copy), load_fitting)


SPLIT = {"seed": 1, "fraction": 0.5, "digest": ""}
COLOUR = {"mean": [1, 1, 1], "variance": [1, 1, 1]}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("dataset", "x" * 5000, "dataset is"),
        ("split", {**SPLIT, "fraction": 1}, "split is"),
        ("split", {**SPLIT, "fraction": -0.5}, "split is"),
        ("split", {**SPLIT, "contents": None}, "split is"),
        ("normalization", COLOUR, "expected a mean for each of 1"),
        ("normalization", {"mean": [0.5], "variance": [0.0]}, "normalization is"),
        ("normalization", {"mean": [0.5]}, "normalization is"),
        ("normalization", {"mean": 0.5, "variance": [0.1]}, "normalization is"),
        ("normalization", {"mean": [10**400], "variance": [0.1]}, "normalization is"),
        ("normalization", [], "normalization is"),
    ],
)
def test_values_that_no_training_writes(copy, name, value, complaint):
    put_info(json.dumps({**INFO, name: value}).encode())(copy)
    with pytest.raises(ModelFileError, match=complaint) as caught:
        read_info(str(copy))
    assert len(str(caught.value)) < 400


def test_other_types_of_the_same_numbers(network, copy):
    kernel = np.arange(np.prod(SHAPES[0])).reshape(SHAPES[0]) % 256 / 4
    for dtype in ("float16", ">f4", "float64", "longdouble"):
        with h5py.File(copy, "r+") as file:
            del file[KERNEL]
            file[KERNEL] = kernel.astype(dtype)
        load_weights(network, str(copy))
        np.testing.assert_array_equal(network.get_weights()[0], kernel)


def test_a_zip_unpacks_to_no_more_than_it_says(network, saved, tmp_path):
    path = tmp_path / "x.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(saved, "model.weights.h5")
    network.set_weights(random_weights(2))
    load_weights(network, str(path))  # packed by another program
    assert_weights(network, random_weights(1))
    size = os.path.getsize(saved)
    content = path.read_bytes()
    content = content.replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(content)
    assert "damaged weights file" in refused(network, str(path))


def test_an_array_that_does_not_fit_late_in_the_file_changes_nothing(network, copy):
    with h5py.File(copy, "r+") as file:
        name = names(file["decoder"], "weight_names")[-1]
        del file["decoder"][name]
        file["decoder"][name] = np.zeros(100, "float32")
    message = refused(network, str(copy))
    assert (
        "expected shape (784,) for bias of the layer decoder_out, found (100,)"
        in message
    )


@pytest.mark.parametrize("name", ["x.weights.h5", "x.keras"])
def test_keras_3_files_of_another_network(network, tmp_path, name):
    model = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(4, 9)])
    path = str(tmp_path / name)
    (model.save_weights if name == "x.weights.h5" else model.save)(path)
    assert "expected shape (9, 9, 1, 256) for kernel" in refused(network, path)


# Run states. What is refused of their JSON is in test_resume.py.


@pytest.fixture
def state(tmp_path):
    """A small compiled model, and a run state of it."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="conv1")])
    model.compile("adam", "mse")
    run = {"arguments": {}, "digest": "", "rows": [{"epoch": 1}], "best_epoch": 1}
    run |= {"overwrite": False}
    best = [weight + 1 for weight in model.get_weights()]
    save_run(model, str(tmp_path / "run_state.h5"), INFO, run, best)
    return model, str(tmp_path / "run_state.h5"), run


def put_array(name, array, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, data=array, **options)

    return edit(change)


def rename_an_array(file):
    file["optimizer"].move("2", "two")


RUN_FAULTS = {
    "no run": (edit(lambda file: file.pop("run")), "expected the state of a run"),
    "chunks": (put_array("run", np.zeros(9, "uint8"), chunks=(1,)), "found chunks"),
    "a number": (
        put_array("run", np.uint8(1)),
        "expected shape (1,) for run, found ()",
    ),
    "integers": (put_array("run", np.zeros(9)), "expected integers for run"),
    "long": (put_array("run", np.zeros(2**24 + 1, "uint8")), "at most 16777216 bytes"),
    "no JSON": (put_array("run", np.zeros(9, "uint8")), "a JSON object in run, found"),
    "no array": (edit(rename_an_array), "an array for optimizer/2, found no array"),
    "negative": (put_array("optimizer/0", -1), "expected int64 from 0 for optimizer/0"),
    "not a number": (
        put_array("optimizer/2", np.full((3, 2), np.nan)),
        "expected finite numbers for optimizer/2",
    ),
    "no best": (edit(lambda file: file.pop("best")), "best/0, found no array"),
}


def test_a_run_state_is_read(state):
    model, path, run = state
    weights = model.get_weights()
    model.set_weights([0 * weight for weight in weights])
    loaded, best = load_run(model, path)
    assert loaded == run
    assert_weights(model, weights)
    for weight, array in zip(weights, best, strict=True):
        np.testing.assert_array_equal(weight + 1, array)
    for read in (load_weights, keras.Model.load_weights):  # it is a model file too
        model.set_weights([0 * weight for weight in weights])
        read(model, path)
        assert_weights(model, weights)


@pytest.mark.parametrize("fault", RUN_FAULTS)
def test_faults_of_run_states(state, fault):
    model, path, _ = state
    damage, complaint = RUN_FAULTS[fault]
    damage(path)
    model.set_weights([0 * weight for weight in model.get_weights()])
    with pytest.raises(ModelFileError) as caught:
        load_run(model, path)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)
    assert not any(weight.any() for weight in model.get_weights())


# What the machine does not hold, and what a file says about its images.


def test_a_zip_of_more_than_memory(network, tmp_path, monkeypatch):
    path = str(tmp_path / "x.keras")
    zip_with("model.weights.h5", bytes(2000))(path)
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(DataError, match=rf"the weights of {path} need about"):
        load_weights(network, path)

"""capsulenet.py: the network, its loss and its files, and that it learns."""

import re

import keras
import numpy as np
import pytest
from conftest import evaluate, finite_differences, gradients, run
from keras import ops

import capsulenet
from benchmarks.plain import EinsumCapsuleLayer, TiledCapsuleLayer, rebuild
from capsnet import backend
from capsulelayers import CapsuleLayer, Length, PrimaryCap
from capsulenet import CapsNet, margin_loss

# float32 rounds by 6e-8 of a number; a few dozen operations on numbers of size 1.
TOLERANCE = {"rtol": 3e-6, "atol": 3e-6}


def images(n, shape=(28, 28, 1)):
    """Pixels as those of digits: most are black, and the others in (0, 1]."""
    x = np.random.default_rng(0).normal(size=(n, *shape))
    return np.clip(x, 0, 1).astype("float32")


def one_hot(labels, n_class=10):
    return np.eye(n_class, dtype="float32")[labels]


def outputs(model, *inputs):
    """Those of a model for a list of inputs, or for one."""
    return model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)


@pytest.fixture(scope="module")
def models():
    """The three models for MNIST. Tests leave their weights alone.

    The weights are random, and larger than initial ones: as after training, capsules
    are long, routing matters and reconstructions differ.
    """
    keras.utils.set_random_seed(0)
    models = CapsNet((28, 28, 1), 10, routings=3)
    rng = np.random.default_rng(0)
    for weight in models[0].weights:
        value = ops.convert_to_numpy(weight)
        if weight.name == "bias":
            weight.assign(rng.normal(size=value.shape) / 10)
        elif "primarycaps" in weight.path:
            weight.assign(10 * value)
        elif "dense" in weight.path:
            weight.assign(2 * value)
    return models


# The margin loss

# One sample each: one class, two classes (MultiMNIST), no class; lengths on both sides
# of 0.1 and 0.9.
LABELS = np.array([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]], "float32")
LENGTHS = np.array(
    [[0.05, 0.95, 0.3, 0.0], [0.5, 0.05, 0.92, 0.99], [0.02, 0.8, 0.97, 0.15]],
    "float32",
)


def margin_oracle(T, length):
    """Equation 4, T_c max(0, m+ - |v|)^2 + 0.5 (1 - T_c) max(0, |v| - m-)^2."""
    present = T * np.maximum(0, 0.9 - length) ** 2
    absent = 0.5 * (1 - T) * np.maximum(0, length - 0.1) ** 2
    return (present + absent).sum(axis=1)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_margin_loss_is_equation_4(dtype):
    loss = evaluate(margin_loss, LABELS.astype(dtype), LENGTHS)
    assert loss.shape == (3,)  # Keras averages, and scales under a strategy
    np.testing.assert_allclose(loss, margin_oracle(LABELS, LENGTHS), **TOLERANCE)


def test_gradient_of_margin_loss():
    labels = ops.convert_to_tensor(LABELS)
    (gradient,) = gradients(lambda v: ops.sum(margin_loss(labels, v)), LENGTHS)
    (expected,) = finite_differences(lambda v: margin_oracle(LABELS, v).sum(), LENGTHS)
    np.testing.assert_allclose(gradient, expected, **TOLERANCE)


# An integer a sample, as CIFAR has it, would be broadcast: it would train on garbage.


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 5), (2, 4)])
def test_labels_of_another_shape_are_refused(shape):
    message = f"(batch, n_class) = (3, 4); received labels of shape {shape}."
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(margin_loss, np.zeros(shape, "int32"), LENGTHS)


def test_shapes_that_are_not_known_yet():
    assert margin_loss(keras.Input((4,)), keras.Input((4,))).shape == (None,)
    message = r"\(None, 4\); received labels of shape \(None, 1\)"
    with pytest.raises(ValueError, match=message):
        margin_loss(keras.Input((1,)), keras.Input((4,)))


def fit_linear(y):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    model.compile("sgd", margin_loss)
    return model.fit(np.ones((3, 6)), y, verbose=0).history["loss"]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_fit_refuses_labels_that_are_not_one_hot(shape):
    assert np.isfinite(fit_linear(LABELS)).all()
    with pytest.raises(ValueError, match="Expected one-hot labels"):
        fit_linear(np.zeros(shape, "int32"))


if keras.backend.backend() == "tensorflow":  # only its graphs know no sizes

    def test_labels_whose_size_is_known_too_late_do_not_train():
        import tensorflow as tf

        unknown = tf.TensorSpec((None, None), "float32")
        loss = tf.function(margin_loss, input_signature=[unknown, unknown])
        expected = margin_oracle(LABELS, LENGTHS)
        np.testing.assert_allclose(loss(LABELS, LENGTHS), expected, **TOLERANCE)
        with pytest.raises(tf.errors.InvalidArgumentError, match="reshape"):
            loss(LABELS[:, :1], LENGTHS)


# The network


def test_models_share_their_weights(models):
    train_model, *others = models
    for model in others:
        assert len(model.weights) == len(train_model.weights)
        for one, other in zip(model.weights, train_model.weights):
            assert one is other


def test_without_a_decoder():
    train_model, eval_model, manipulate_model = CapsNet((17, 17, 1), 3, decoder=None)
    assert train_model is eval_model and manipulate_model is None
    lengths = outputs(train_model, images(2, (17, 17, 1)))
    assert lengths.shape == (2, 3)


def test_a_decoder_of_ones_own():
    decoder = keras.Sequential(
        [
            keras.layers.Dense(9 * 9 * 4, activation="relu"),
            keras.layers.Reshape((9, 9, 4)),
            keras.layers.Conv2DTranspose(1, 2, 2, activation="sigmoid"),
        ]
    )
    models = CapsNet((18, 18, 1), 3, decoder=decoder)
    x, y = images(2, (18, 18, 1)), one_hot([0, 2], 3)
    _, pictures = outputs(models[0], x, y)
    assert pictures.shape == x.shape
    noise = np.zeros((2, 3, 16), "float32")
    np.testing.assert_allclose(outputs(models[2], x, y, noise), pictures, **TOLERANCE)


@pytest.fixture(scope="module")
def decode(models):
    """Decodes the class capsules of images, all but those in `keep` set to zero."""
    eval_model = models[1]
    capsules_of = keras.Model(
        eval_model.input, eval_model.get_layer("digitcaps").output
    )
    decoder = eval_model.get_layer("decoder")

    def decode(x, keep, noise=0.0):
        capsules = (outputs(capsules_of, x) + noise) * keep[:, :, None]
        return outputs(decoder, capsules.reshape(len(x), -1))

    return decode


def assert_in_range(lengths, pictures):
    """Probabilities, and pixels strictly between black and white."""
    assert lengths.shape == (3, 10) and lengths.dtype == np.float32
    assert lengths.min() >= 0 and lengths.max() < 1
    assert pictures.shape == (3, 28, 28, 1) and pictures.dtype == np.float32
    assert pictures.min() > 0 and pictures.max() < 1


def test_train_model_reconstructs_from_the_labelled_capsule(models, decode):
    x, y = images(3), one_hot([1, 7, 4])
    lengths, pictures = outputs(models[0], x, y)
    assert_in_range(lengths, pictures)
    np.testing.assert_allclose(pictures, decode(x, y), **TOLERANCE)
    # The labels choose a capsule and have no other influence.
    other_lengths, other_pictures = outputs(models[0], x, one_hot([2, 7, 5]))
    np.testing.assert_allclose(other_lengths, lengths, **TOLERANCE)
    changed = np.abs(other_pictures - pictures).max(axis=(1, 2, 3)) > 0.01
    assert changed.tolist() == [True, False, True]


def test_eval_model_reconstructs_from_the_longest_capsule(models, decode):
    x = images(3)
    lengths, pictures = outputs(models[1], x)
    assert_in_range(lengths, pictures)
    longest = one_hot(lengths.argmax(axis=1))
    np.testing.assert_allclose(pictures, decode(x, longest), **TOLERANCE)
    np.testing.assert_allclose(lengths, outputs(models[0], x, longest)[0], **TOLERANCE)


def test_manipulate_model_adds_noise_to_the_labelled_capsule(models, decode):
    x, y = images(3), one_hot([5, 8, 8])
    noise = np.random.default_rng(1).normal(size=(3, 10, 16)).astype("float32")
    pictures = outputs(models[2], x, y, noise)
    expected = decode(x, y, noise)
    np.testing.assert_allclose(pictures, expected, **TOLERANCE)
    assert np.abs(pictures - decode(x, y)).max() > 0.01
    # The noise of other capsules does not matter.
    elsewhere = outputs(models[2], x, y, noise * y[:, :, None])
    np.testing.assert_allclose(elsewhere, expected, **TOLERANCE)


def test_images_are_channels_last_whatever_keras_json_says(models, channels_first):
    other = CapsNet((28, 28, 1), 10)[0]
    other.set_weights(models[0].get_weights())
    x, y = images(3), one_hot([5, 8, 8])
    for one, two in zip(outputs(other, x, y), outputs(models[0], x, y)):
        np.testing.assert_allclose(one, two, **TOLERANCE)


def test_mixed_precision_ends_in_float32(models):
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        mixed = CapsNet((28, 28, 1), 10)[0]
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(models[0].get_weights())
    x, y = images(4), one_hot([5, 8, 8, 1])
    for low, full in zip(outputs(mixed, x, y), outputs(models[0], x, y)):
        assert low.dtype == np.float32
        # bfloat16 has 8 bits; the errors of three layers
        assert np.abs(low - full).max() < 3 * 2.0**-8 * np.abs(full).max()


# Gradients of the whole network


def total_loss(model, x, y):
    """The loss of training, as a function of the weights."""
    x, y = ops.convert_to_tensor(x), ops.convert_to_tensor(y)

    def loss(*weights):
        (lengths, pictures), _ = model.stateless_call(weights, [], [x, y])
        return ops.mean(margin_loss(y, lengths)) + 0.392 * ops.mean((x - pictures) ** 2)

    return loss


def test_gradients_are_those_of_the_plain_formulation(models):
    ours = rebuild(models[0], "fft")
    plain = rebuild(models[0], "direct", TiledCapsuleLayer)
    ours.get_layer("digitcaps").least_batch = 1  # the fast form, for two images too
    x, y = images(2), one_hot([3, 9])
    weights = ours.get_weights()
    result = gradients(total_loss(ours, x, y), *weights)
    expected = gradients(total_loss(plain, x, y), *weights)
    for weight, one, other in zip(ours.weights, result, expected):
        norm = np.linalg.norm(other)
        assert norm > 0, weight.path
        assert np.linalg.norm(one - other) < 1e-4 * norm, weight.path


@pytest.mark.parametrize("routings", [1, 3])
@pytest.mark.parametrize("layer_class", [TiledCapsuleLayer, EinsumCapsuleLayer])
def test_plain_layers_route_the_same(layer_class, routings):
    ours, plain = CapsuleLayer(4, 5, routings), layer_class(4, 5, routings)
    W, u = (np.random.default_rng(0).normal(size=s) for s in ((4, 6, 5, 2), (3, 6, 2)))
    for layer in (ours, plain):
        layer.build((None, 6, 2))
        layer.W.assign(W)
    ours.least_batch = 1  # the fast form, for three samples too
    u = u.astype("float32")
    np.testing.assert_allclose(evaluate(plain, u), evaluate(ours, u), **TOLERANCE)


# Files


@pytest.mark.slow
def test_compiled_model_file_round_trip(models, tmp_path):
    model = keras.models.clone_model(models[0])
    capsulenet.task(0.392).compile(model, backend.adam(0.001))
    x, y = images(2), one_hot([3, 1])
    model.train_on_batch([x, y], [y, x])
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is type(keras.optimizers.Adam())
    state, other = (m.optimizer.variables for m in (model, loaded))
    for one, two in zip(state, other, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (one, two)))
    model.reset_metrics()
    losses = [m.test_on_batch([x, y], [y, x]) for m in (model, loaded)]
    np.testing.assert_array_equal(*losses)


@pytest.mark.slow
def test_what_a_saved_model_needs_is_one_import(tmp_path):
    # The README's model.
    image = keras.Input((20, 20, 1))
    x = PrimaryCap(dim_capsule=4, n_channels=2, kernel_size=9, strides=2)(image)
    x = CapsuleLayer(num_capsule=5, dim_capsule=4, routings=3)(x)
    model = keras.Model(image, Length()(x))
    model.compile(backend.adam(0.001), loss=margin_loss, metrics=["accuracy"])
    x, y = images(2, (20, 20, 1)), one_hot([3, 1], 5)
    model.train_on_batch(x, y)
    model.save(tmp_path / "mine.keras")
    loss = margin_loss(y, model(x))
    np.savez(tmp_path / "batch.npz", x=x, y=y, loss=ops.convert_to_numpy(loss))
    code = """
import keras, numpy as np
try:
    keras.models.load_model("mine.keras")
except TypeError as error:
    assert "register_keras_serializable" in str(error)
    import capsulenet
model = keras.models.load_model("mine.keras")
with np.load("batch.npz") as file:
    x, y, loss = (file[name] for name in ("x", "y", "loss"))
ours = keras.ops.convert_to_numpy(capsulenet.margin_loss(y, model(x)))
np.testing.assert_allclose(ours, loss, rtol=1e-5)
model.train_on_batch(x, y)
"""
    process = run(program=("-c", code))
    assert process.returncode == 0, process.stderr


# Learning


def test_steps_reduce_the_loss(mnist):
    (x, y), _ = mnist
    x, y = x[:16].copy(), y[:16]
    x[0] = 0  # all capsules of a black image are zero vectors, and must do no harm
    keras.utils.set_random_seed(0)
    model = CapsNet((28, 28, 1), 10)[0]
    before = model.get_weights()
    # a tenth of the usual rate, with which Adam's first step jumps too far
    capsulenet.task(0.392).compile(model, backend.adam(0.0001))
    losses = []
    for _ in range(4):
        model.reset_metrics()
        logs = model.train_on_batch((x, y), (y, x), return_dict=True)
        losses.append(logs["loss"])
    assert losses[0] > losses[1] > losses[2] > losses[3]
    parts = logs["capsnet_loss"] + 0.392 * logs["decoder_loss"]
    assert logs["loss"] == pytest.approx(parts, rel=1e-5)
    assert 0 <= logs["capsnet_accuracy"] <= 1
    for old, new in zip(before, model.get_weights()):
        assert np.isfinite(new).all() and not np.array_equal(old, new)

"""capsulelayers.py: each layer is the paper's equation, in value and in gradient."""

import re

import keras
import numpy as np
import pytest
from conftest import evaluate, finite_differences, gradients
from keras import ops

import capsulelayers
from capsnet import backend, convolution, fft_conv
from capsnet.convolution import FastConv2D
from capsulelayers import (
    CapsuleLayer,
    ConvCapsuleLayer,
    Length,
    Mask,
    PrimaryCap,
    dynamic_routing,
    squash,
)

# float32 rounds by 6e-8 of a number; a few dozen operations on numbers of size 1.
TOLERANCE = {"rtol": 3e-6, "atol": 3e-6}
# What fft_conv promises: an error below 1e-5 of the largest output.
FFT_TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


# The paper's equations in NumPy and float64, to compare with.


def squash_oracle(s):
    norm = np.linalg.norm(s, axis=-1, keepdims=True)
    return norm**2 / (1 + norm**2) * (s / norm)


def routing_oracle(u, W, routings):
    return routing_and_couplings(u, W, routings)[0]


def routing_and_couplings(u, W, routings):
    """Procedure 1: u_hat (batch, out, in, dim), b and c (batch, out, in)."""
    u_hat = np.einsum("jied,bid->bjie", W, u)
    b = np.zeros(u_hat.shape[:3])
    for _ in range(routings):
        c = np.exp(b) / np.exp(b).sum(axis=1, keepdims=True)
        s = np.einsum("bji,bjie->bje", c, u_hat)
        v = squash_oracle(s)
        b = b + np.einsum("bjie,bje->bji", u_hat, v)
    return v, c


def primary_oracle(x, kernel, bias, strides, dim_capsule):
    """A valid convolution; the channels of a position are its capsules in turn."""
    outputs = np.einsum(
        "brcdij,ijdf->brcf", windows_of(x, kernel.shape[:2], strides), kernel
    )
    return squash_oracle((outputs + bias).reshape(len(x), -1, dim_capsule))


def windows_of(x, size, strides):
    """(batch, height, width, channels) -> (batch, row, column, channel, *size)."""
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(1, 2))
    down, right = (strides, strides) if isinstance(strides, int) else strides
    return windows[:, ::down, ::right]


def conv_capsules_oracle(x, W, size, strides, routings):
    """Procedure 1 in each window of a grid of capsules."""
    batch, _, _, types, dim = x.shape
    windows = windows_of(x.reshape(*x.shape[:3], -1), size, strides)
    windows = np.moveaxis(windows, 3, -1)  # the capsules of a place are together
    _, rows, columns, *_ = windows.shape
    v = routing_oracle(windows.reshape(batch * rows * columns, -1, dim), W, routings)
    return v.reshape(batch, rows, columns, *v.shape[1:])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def spy(monkeypatch, module, name):
    """Of how many samples a function of a module will be called, in turn."""
    function, calls = getattr(module, name), []

    def noted(x, *arguments):
        calls.append(x.shape[0])
        return function(x, *arguments)

    monkeypatch.setattr(module, name, noted)
    return calls


def function_of(layer):
    """The layer as a function of its inputs and weights."""
    return lambda inputs, *weights: layer.stateless_call(weights, [], inputs)[0]


def weighted_sum(layer, factor):
    """A scalar function of inputs and weights, whose gradient shows every output."""
    factor = ops.convert_to_tensor(factor)
    function = function_of(layer)
    return lambda *arrays: ops.sum(function(*arrays) * factor)


def make_capsules(input_shape, routings=3):
    """A built CapsuleLayer; with its large W, routing changes the outputs much."""
    layer = CapsuleLayer(4, 5, routings)
    layer.build((None, *input_shape))
    layer.set_weights([normal(*w.shape, seed=1) for w in layer.weights])
    layer.least_batch = 1  # the fast form, for a few samples too
    return layer


# squash and Length


def length_oracle(capsules):
    return np.linalg.norm(capsules, axis=-1)


def squash_rows(s):
    return squash(s, axis=1)


def squash_rows_oracle(s):
    return np.moveaxis(squash_oracle(np.moveaxis(s, 1, -1)), -1, 1)


@pytest.mark.parametrize("shape", [(3, 8), (2, 5, 4), (2, 3, 2, 6)])
@pytest.mark.parametrize(
    ("function", "oracle"),
    [
        (squash, squash_oracle),
        (squash_rows, squash_rows_oracle),
        (Length(), length_oracle),
    ],
    ids=["squash", "along another axis", "length"],
)
def test_squash_is_equation_1_and_a_length_the_norm(shape, function, oracle):
    vectors = normal(*shape)
    expected = oracle(vectors.astype("float64"))
    np.testing.assert_allclose(evaluate(function, vectors), expected, **TOLERANCE)
    factor = normal(*expected.shape, seed=1)
    weights = ops.convert_to_tensor(factor)
    (gradient,) = gradients(lambda a: ops.sum(function(a) * weights), vectors)
    (expected,) = finite_differences(lambda a: np.sum(oracle(a) * factor), vectors)
    np.testing.assert_allclose(gradient, expected, **TOLERANCE)


@pytest.mark.parametrize("length", [0.01, 0.1, 1, 10, 1e4, 1e15])
def test_squash_of_short_and_long_vectors(length):
    s = np.array([3, 0, -4], "float32") / 5 * length
    expected = length**2 / (1 + length**2)
    # the epsilon of 1e-7 that keeps zero finite shortens a vector of 0.01 by 5e-4
    relative = 1e-6 + 1e-7 / length**2
    v = evaluate(squash, s)
    np.testing.assert_allclose(v, expected * s / length, rtol=relative)


def test_squash_computes_norms_in_float32():
    s = np.rint(16 * normal(20, 8)) / 16  # numbers that bfloat16 holds exactly
    v = squash(ops.cast(s, "bfloat16"))
    assert keras.backend.standardize_dtype(v.dtype) == "bfloat16"
    expected = squash_oracle(s.astype("float64"))
    # only the result is rounded, to 8 bits
    v = ops.convert_to_numpy(ops.cast(v, "float32"))
    np.testing.assert_allclose(v, expected, rtol=2.0**-8)


# Mask


def test_mask_keeps_the_labelled_capsule():
    capsules = normal(3, 4, 2)
    masked = ops.convert_to_numpy(Mask()([capsules, np.eye(4)[[2, 0, 3]]]))
    expected = np.zeros((3, 8), "float32")
    expected[0, 4:6] = capsules[0, 2]
    expected[1, 0:2] = capsules[1, 0]
    expected[2, 6:8] = capsules[2, 3]
    np.testing.assert_array_equal(masked, expected)


def test_mask_keeps_the_first_of_the_longest_capsules():
    rng = np.random.default_rng(0)
    capsules = rng.integers(-4, 5, (200, 5, 2)).astype("float32")  # several are as long
    longest = np.square(capsules).sum(axis=-1).argmax(axis=1)
    expected = capsules * np.eye(5)[longest][..., np.newaxis]
    np.testing.assert_array_equal(evaluate(Mask(), capsules), expected.reshape(200, 10))


def test_mask_keeps_all_capsules_above_a_threshold():
    capsules = np.zeros((2, 3, 2), "float32")
    capsules[0, 0], capsules[0, 2] = [0.3, 0.41], [-0.6, 0.1]  # 0.508 and 0.608 long
    capsules[1, 1] = [0.3, 0.39]  # 0.492
    expected = capsules.copy()
    expected[1] = 0  # of the second sample, none is longer than 0.5
    masked = evaluate(Mask(threshold=0.5), capsules)
    np.testing.assert_array_equal(masked, expected.reshape(2, 6))
    labels = np.array([[0, 1, 1], [1, 0, 0]], "float32")
    of_labels = evaluate(lambda c: Mask(threshold=0.5)([c, labels]), capsules)
    expected = capsules * labels[..., np.newaxis]
    np.testing.assert_array_equal(of_labels, expected.reshape(2, 6))
    assert Mask.from_config(Mask(0.5).get_config()).threshold == 0.5


def test_gradient_passes_only_through_the_kept_capsule():
    capsules = normal(2, 4, 3)
    (gradient,) = gradients(lambda c: ops.sum(Mask()(c)), capsules)
    longest = np.linalg.norm(capsules, axis=-1).argmax(axis=-1)
    expected = np.repeat(np.eye(4)[longest][:, :, None], 3, axis=2)
    np.testing.assert_array_equal(gradient, expected)


# PrimaryCap

PRIMARY_SHAPES = [
    # side, channels, kernel_size, strides, dim_capsule, n_channels
    (8, 3, 3, 2, 4, 2),
    (9, 2, 5, 1, 3, 3),
    (7, 4, 1, 1, 2, 4),
    (20, 2, 9, 2, 8, 2),
]


def make_primary(side, channels, kernel_size, strides, dim, n, method):
    layer = PrimaryCap(dim, n, kernel_size, strides, method=method)
    layer.build((None, side, side, channels))
    layer.kernel.assign(normal(*layer.kernel.shape, seed=1))
    layer.bias.assign(normal(*layer.bias.shape, seed=2))
    return layer


@pytest.mark.parametrize("method", ["fft", "direct"])
@pytest.mark.parametrize("shape", PRIMARY_SHAPES)
def test_primary_capsules(shape, method):
    side, channels, _, strides, dim, _ = shape
    layer = make_primary(*shape, method)
    x = normal(2, side, side, channels)
    weights = [w.astype("float64") for w in layer.get_weights()]
    expected = primary_oracle(x.astype("float64"), *weights, strides, dim)
    tolerance = FFT_TOLERANCE if method == "fft" else TOLERANCE
    np.testing.assert_allclose(evaluate(layer, x), expected, **tolerance)


@pytest.mark.parametrize("method", ["fft", "direct"])
def test_gradients_of_primary_capsules(method):
    layer = make_primary(5, 2, 3, 2, 3, 2, method)
    x, factor = normal(2, 5, 5, 2), normal(2, 8, 3, seed=3)
    arrays = [x, *layer.get_weights()]
    result = gradients(weighted_sum(layer, factor), *arrays)
    expected = finite_differences(
        lambda *a: np.sum(primary_oracle(*a, 2, 3) * factor), *arrays
    )
    for one, other in zip(result, expected):
        np.testing.assert_allclose(one, other, **TOLERANCE)


# The least number of images for the fast method: on a CPU, on one where the gradient of
# the direct one takes seconds, as of XLA, and elsewhere.
ALWAYS, NEVER = ([1], [1], [1]), ([None], [None], [None])
ON_A_CPU = (range(5, 9), [1], [None])  # measured in benchmarks/train_step.py


@pytest.mark.parametrize(
    ("kind", "arguments", "shape", "method", "least"),
    [
        (PrimaryCap, (8, 32, 9, 2), (20, 20, 256), "auto", ON_A_CPU),  # of MNIST
        (PrimaryCap, (8, 4, 1), (20, 20, 16), "auto", NEVER),
        (PrimaryCap, (8, 4, 2), (20, 20, 16), "auto", NEVER),
        (FastConv2D, (256, 5), (32, 32, 256), "auto", (range(1, 9), [1], [None])),
        (FastConv2D, (256, 5), (32, 32, 1), "auto", NEVER),  # costs more than it spares
        (PrimaryCap, (2, 2, 3), (8, 8, 1), "fft", ALWAYS),
        (PrimaryCap, (2, 2, 3), (8, 8, 1), "direct", NEVER),
    ],
)
def test_the_method_suits_shape_and_device_unless_the_caller_says_it(
    monkeypatch, kind, arguments, shape, method, least
):
    answers = {}
    for name in ("runs_on_cpu", "direct_convolution_is_slow"):
        monkeypatch.setattr(convolution, name, lambda name=name: answers[name])
    for on_cpu, slow, expected in zip((1, 1, 0), (0, 1, 0), least, strict=True):
        answers |= {"runs_on_cpu": on_cpu, "direct_convolution_is_slow": slow}
        layer = kind(*arguments, method=method)
        layer.build((None, *shape))
        assert layer.least_batch in expected


def test_the_method_is_chosen_within_a_layer_of_ones_own():
    # It is built while Keras finds out shapes, when PyTorch's tensors are nowhere.
    class Own(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.primary = PrimaryCap(8, 4, kernel_size=9, strides=2)

        def call(self, inputs):
            return self.primary(inputs)

    own = Own()
    own(keras.Input((20, 20, 16)))
    assert (own.primary.least_batch is not None) == backend.runs_on_cpu()


def test_a_fully_convolutional_network_takes_images_of_any_size():
    images = keras.Input((None, None, 3))
    layer = PrimaryCap(4, 2, kernel_size=3, strides=2)
    model = keras.Model(images, layer(images))
    assert model.output_shape == (None, None, 4)
    for size in ((9, 9), (7, 12)):
        x = normal(2, *size, 3)
        kernel, bias = (w.astype("float64") for w in layer.get_weights())
        expected = primary_oracle(x, kernel, bias, 2, 4)
        np.testing.assert_allclose(
            model.predict(x, verbose=0), expected, **FFT_TOLERANCE
        )


@pytest.mark.parametrize("layer", ["primary", "convolution"])
def test_a_few_images_are_convolved_directly(monkeypatch, layer):
    # The transform of the kernel costs the same for one image as for a hundred.
    monkeypatch.setattr(convolution, "least_batch", lambda *shape: 3)
    transformed = spy(monkeypatch, fft_conv, "conv2d")
    layer = PrimaryCap(4, 2, 3) if layer == "primary" else FastConv2D(8, 3)
    x = normal(5, 6, 6, 2)
    layer.build(x.shape)
    few, many = evaluate(layer, x[:2]), evaluate(layer, x)
    assert transformed == [5]
    np.testing.assert_allclose(many[:2], few, **FFT_TOLERANCE)
    # a graph for any number of images holds both, and chooses when it runs
    images = keras.Input(x.shape[1:])
    model = keras.Model(images, layer(images))
    for n in (2, 5):
        np.testing.assert_allclose(
            model.predict(x[:n], verbose=0), many[:n], **FFT_TOLERANCE
        )


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_one_image_with_few_windows_is_one_product(monkeypatch, padding):
    monkeypatch.setattr(convolution, "least_batch", lambda *shape: 3)
    calls = spy(monkeypatch, convolution, "product")
    x = normal(2, 7, 6, 2)
    layer = FastConv2D(20, (3, 2), (2, 3), padding)
    direct = FastConv2D(20, (3, 2), (2, 3), padding, method="direct")
    for one in (layer, direct):
        one.build(x.shape)
    direct.set_weights(layer.get_weights())
    expected = evaluate(direct, x)
    np.testing.assert_allclose(evaluate(layer, x), expected, **TOLERANCE)
    assert not calls
    np.testing.assert_allclose(evaluate(layer, x[:1]), expected[:1], **TOLERANCE)
    assert calls == [1]

    factor = normal(1, *expected.shape[1:], seed=3)
    ours, theirs = (
        gradients(weighted_sum(one, factor), x[:1], *one.get_weights())
        for one in (layer, direct)
    )
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, **TOLERANCE)


def test_without_a_gradient_a_few_images_are_one_product(monkeypatch):
    monkeypatch.setattr(convolution, "least_batch", lambda *shape: 3)
    calls = spy(monkeypatch, convolution, "product")
    layer = PrimaryCap(4, 5, (3, 2), (2, 3))
    x = normal(3, 7, 6, 2)
    layer.build(x.shape)
    results = [
        evaluate(lambda x, training=training: layer(x, training=training), x[:n])
        for training in (True, False)
        for n in (1, 2, 3)
    ]
    assert calls == [1, 1, 2]
    for result in results:
        np.testing.assert_allclose(result, results[2][: len(result)], **FFT_TOLERANCE)


def test_an_image_with_many_windows_is_no_product(monkeypatch):
    monkeypatch.setattr(convolution, "least_batch", lambda *shape: 3)
    for filters in (16, 17):  # 16 windows are as many numbers as 16 filters
        layer = FastConv2D(filters, 3)
        layer.build((None, 6, 6, 2))
        assert layer.has_few_windows == (filters == 17)


def test_what_is_to_run_anywhere_has_no_product():
    with backend.portable():
        layer = PrimaryCap(8, 32, kernel_size=9, strides=2)
        layer.build((None, 20, 20, 256))
    assert layer.least_batch is None and not layer.has_few_windows


# FastConv2D


CONV_SHAPES = [
    # size, kernel_size, strides, padding
    ((11, 9), 3, 1, "valid"),
    ((9, 8), (3, 4), (2, 1), "valid"),
    ((9, 8), 5, 1, "same"),
    ((9, 8), (3, 4), (2, 3), "same"),
    ((10, 13), (5, 4), (1, 1), "same"),
    ((7, 7), (9, 2), (2, 2), "same"),  # a kernel higher than the image
]


@pytest.mark.parametrize("method", ["fft", "direct"])
@pytest.mark.parametrize("shape", CONV_SHAPES)
def test_fast_convolution_is_that_of_keras(shape, method):
    size, *geometry = shape
    options = {"activation": "relu", "bias_initializer": "random_normal"}
    keras_layer = keras.layers.Conv2D(6, *geometry, **options)
    layer = FastConv2D(6, *geometry, method=method, **options)
    x = normal(2, *size, 3)
    for one in (layer, keras_layer):
        one.build(x.shape)
    layer.set_weights(keras_layer.get_weights())
    expected = evaluate(keras_layer, x)
    assert layer.compute_output_shape(x.shape) == expected.shape
    np.testing.assert_allclose(evaluate(layer, x), expected, **FFT_TOLERANCE)

    factor = normal(*expected.shape, seed=3)
    ours, theirs = (
        gradients(weighted_sum(one, factor), x, *one.get_weights())
        for one in (layer, keras_layer)
    )
    for one, other in zip(ours, theirs):
        largest = np.abs(other).max()
        np.testing.assert_allclose(one / largest, other / largest, **FFT_TOLERANCE)


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation_rate": 2}])
def test_other_convolutions_are_left_to_keras(monkeypatch, options):
    monkeypatch.setattr(convolution, "least_batch", lambda *shape: 1)
    layer = FastConv2D(4, 3, **options)
    x = normal(2, 12, 12, 4)
    assert layer(x).shape == layer.compute_output_shape(x.shape)
    assert layer.least_batch is None


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [20, 21, 24])
def test_images_of_another_size_than_the_first(padding, size):
    layer = FastConv2D(4, 5, 2, padding, method="fft")
    plain = keras.layers.Conv2D(4, 5, 2, padding)
    for one in (layer, plain):
        one(normal(2, 21, 21, 3))
    plain.set_weights(layer.get_weights())
    x = normal(2, size, size, 3)
    np.testing.assert_allclose(evaluate(layer, x), evaluate(plain, x), **FFT_TOLERANCE)


# CapsuleLayer


@pytest.mark.parametrize("routings", [1, 2, 3, 5])
def test_the_layer_and_the_reference_are_procedure_1(routings):
    fast, few = (make_capsules((6, 2), routings) for _ in range(2))
    few.least_batch = 4  # more than these samples
    arrays = [normal(3, 6, 2), *fast.get_weights()]

    def reference(u, W):
        return dynamic_routing(ops.einsum("bid,jied->bjie", u, W), routings)

    def oracle(u, W):
        return routing_oracle(u, W, routings)

    exact = [a.astype("float64") for a in arrays]
    expected = oracle(*exact)
    # The example tells one number of rounds from the next.
    assert np.abs(routing_oracle(*exact, routings + 1) - expected).max() > 0.01

    functions = (reference, function_of(fast), function_of(few))
    tensors = [ops.convert_to_tensor(a) for a in arrays]
    for function in functions:
        np.testing.assert_allclose(evaluate(function, *tensors), expected, **TOLERANCE)

    factor = normal(3, 4, 5, seed=3)
    expected = finite_differences(lambda *a: np.sum(oracle(*a) * factor), *arrays)
    weights = ops.convert_to_tensor(factor)
    for function in functions:
        result = gradients(lambda *a, f=function: ops.sum(f(*a) * weights), *arrays)
        for one, other in zip(result, expected):
            np.testing.assert_allclose(one, other, **TOLERANCE)


def test_routing_at_the_size_of_mnist():
    u = normal(4, 1152, 8) / 4
    layer = CapsuleLayer(10, 16, routings=3)
    layer.build((None, 1152, 8))
    assert layer.least_batch <= len(u)  # else these few would take the other way
    v = evaluate(layer, u)
    W = layer.get_weights()[0].astype("float64")
    np.testing.assert_allclose(v, routing_oracle(u, W, 3), **TOLERANCE)


def test_routing_of_strong_agreement_stays_finite():
    # logits in the thousands, whose exponentials float32 cannot hold
    u = 1000 * normal(4, 6, 2)
    layer = make_capsules((6, 2), routings=5)
    value = evaluate(layer, u)
    assert np.isfinite(value).all()
    assert np.linalg.norm(value, axis=-1).max() < 1 + 1e-6
    for gradient in gradients(
        lambda *a: ops.sum(function_of(layer)(*a)), u, *layer.get_weights()
    ):
        assert np.isfinite(gradient).all()


def test_default_initialisation_learns_from_the_first_steps():
    # The design's figure, N(0, 0.1); a fan-based one is about ten times smaller.
    layer = CapsuleLayer(10, 16)
    layer.build((None, 200, 8))
    # 256 000 draws: their standard deviation is known to 0.15 %
    assert layer.get_weights()[0].std() == pytest.approx(0.1, rel=0.01)


def test_a_few_samples_are_routed_as_the_paper_writes_it(monkeypatch):
    calls = spy(monkeypatch, capsulelayers, "dynamic_routing")
    layer = CapsuleLayer(4, 5)
    u = normal(6, 7, 2)
    layer.build(u.shape)
    layer.set_weights([normal(*w.shape, seed=1) for w in layer.weights])
    few, many = evaluate(layer, u[:3]), evaluate(layer, u)
    assert calls == [3]
    np.testing.assert_allclose(many[:3], few, **TOLERANCE)


def couplings(u, layer):
    with_couplings = CapsuleLayer.from_config(
        {**layer.get_config(), "return_couplings": True}
    )
    with_couplings.build(u.shape)
    with_couplings.set_weights(layer.get_weights())
    v, c = with_couplings(u)
    np.testing.assert_allclose(ops.convert_to_numpy(v), evaluate(layer, u), **TOLERANCE)
    return ops.convert_to_numpy(c)


@pytest.mark.parametrize("routings", [1, 2, 3])
def test_couplings_are_those_of_the_last_round(routings):
    u = normal(3, 6, 2)
    layer = make_capsules((6, 2), routings)
    W = layer.get_weights()[0].astype("float64")
    _, expected = routing_and_couplings(u.astype("float64"), W, routings)
    c = couplings(u, layer)
    assert c.shape == (3, 4, 6)
    np.testing.assert_allclose(c, expected, **TOLERANCE)
    np.testing.assert_allclose(c.sum(axis=1), 1, **TOLERANCE)


def test_transformation_matrices_are_regularized_and_constrained():
    layer = CapsuleLayer(
        4, 5, kernel_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(0.1)
    )
    u = keras.Input((6, 2))
    model = keras.Model(u, layer(u))
    expected = 0.01 * np.square(layer.get_weights()[0]).sum()
    np.testing.assert_allclose(float(sum(model.losses)), expected, rtol=1e-5)
    model.compile("sgd", "mse")
    model.fit(normal(4, 6, 2), normal(4, 4, 5), verbose=0)
    assert np.linalg.norm(layer.get_weights()[0], axis=0).max() <= 0.1 + 1e-6


# ConvCapsuleLayer


@pytest.mark.parametrize("routings", [1, 3])
@pytest.mark.parametrize(
    ("grid", "size", "strides"),
    [((5, 4), 3, 1), ((7, 6), 3, 2), ((5, 6), (2, 3), (1, 2)), ((3, 3), 1, 1)],
)
def test_capsules_of_a_window_are_routed_alone(grid, size, strides, routings):
    layer = ConvCapsuleLayer(3, 4, size, strides, routings=routings)
    x = normal(2, *grid, 2, 3)
    layer.build(x.shape)
    layer.set_weights([normal(*layer.W.shape, seed=1)])
    arrays = [x, *layer.get_weights()]
    pair = (size, size) if isinstance(size, int) else size
    steps = pair, strides, routings
    expected = conv_capsules_oracle(*(a.astype("float64") for a in arrays), *steps)
    np.testing.assert_allclose(evaluate(layer, x), expected, **TOLERANCE)

    factor = normal(*expected.shape, seed=3)
    result = gradients(weighted_sum(layer, factor), *arrays)
    numeric = finite_differences(
        lambda *a: np.sum(conv_capsules_oracle(*a, *steps) * factor), *arrays
    )
    for one, other in zip(result, numeric):
        largest = np.abs(other).max()
        np.testing.assert_allclose(one / largest, other / largest, **TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "arguments", "shape", "grid", "sources"),
    [
        (CapsuleLayer, (4, 5), (6, 2), (), 6),
        (ConvCapsuleLayer, (4, 5, 3, 2), (7, 7, 2, 3), (3, 3), 3 * 3 * 2),
    ],
)
def test_couplings_within_a_model(kind, arguments, shape, grid, sources):
    v, c = kind(*arguments, return_couplings=True)(keras.Input(shape))
    assert v.shape == (None, *grid, 4, 5)
    assert c.shape == (None, *grid, 4, sources)


# What is refused


METHODS = "'auto', 'fft' or 'direct'.* method='x'"
RESHAPE = r"Reshape\(\(-1, input_dim\)\)"


@pytest.mark.parametrize(
    ("kind", "arguments", "shape", "message"),
    [
        (FastConv2D, (8, 9, 1, "valid", "x"), (), METHODS),
        (PrimaryCap, (4, 2, 3), (None, 20, 20), "received .None, 20, 20"),
        (PrimaryCap, (4, 2, 3), (None, 20, 20, None), "received .None, 20, 20"),
        (PrimaryCap, (-2, -2, 3), (), "dim_capsule to be a positive integer"),
        (CapsuleLayer, (10, 16, 0), (), "positive integer; received routings=0"),
        (CapsuleLayer, (10, 16, 2.5), (), "positive integer; received routings=2.5"),
        (CapsuleLayer, (0, 16), (), "positive integer; received num_capsule=0"),
        (CapsuleLayer, (10, 0), (), "positive integer; received dim_capsule=0"),
        (ConvCapsuleLayer, (4, 5, 3, 0), (), "received strides=0"),
        (Mask, (-1,), (), "at least 0; received threshold=-1"),
        (CapsuleLayer, (4, 5), (None, 6, 6, 8), RESHAPE),
        (CapsuleLayer, (4, 5), (None, None, 8), RESHAPE),
        (CapsuleLayer, (4, 5), (None, 8), RESHAPE),
        (ConvCapsuleLayer, (4, 5, 3), (None, 6, 6, 8), "received .None, 6, 6, 8"),
        (ConvCapsuleLayer, (4, 5, 3), (None, None, 6, 2, 8), "only the batch unknown"),
        (ConvCapsuleLayer, (4, 5, 3), (None, 6, 2, 2, 8), "kernel, 3; received 2"),
    ],
)
def test_what_makes_no_layer_is_refused(kind, arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        kind(*arguments).build(shape)


@pytest.mark.parametrize(
    ("layer", "shape", "others"),
    [
        (CapsuleLayer(4, 5), (6, 3), [(9, 2), (3, 6), (12, 3), (1, 3), (18,)]),
        (
            ConvCapsuleLayer(4, 5, 2),
            (4, 4, 6, 3),
            [(4, 4, 3, 6), (2, 8, 6, 3), (4, 4, 18)],
        ),
    ],
)
def test_inputs_of_another_shape_than_the_layer_was_built_for(layer, shape, others):
    layer(normal(5, *shape))
    for other in others:
        with pytest.raises(ValueError, match="incompatible with the layer"):
            layer(normal(5, *other))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 5), (3, 4, 2)])
def test_labels_that_are_no_rows_of_classes(shape):
    capsules, labels = normal(3, 4, 2), np.ones(shape, "float32")
    expected = re.escape(f"(batch, n_class) = (3, 4); received labels of shape {shape}")
    with pytest.raises(ValueError, match=expected):
        Mask()([capsules, labels])


def test_other_formats_and_no_rounds():
    with pytest.raises(ValueError, match="channels_last.* received .*channels_first"):
        PrimaryCap(4, 2, 3, data_format="channels_first")
    with pytest.raises(ValueError, match="positive integer; received routings=0"):
        dynamic_routing(normal(2, 3, 4, 5), 0)


# What holds for every layer: zeros, batches, configurations, files


LAYERS = {
    "length": (Length, {}, (4, 3)),
    "mask": (Mask, {}, (4, 3)),
    "mask of several": (Mask, {"threshold": 0.5}, (4, 3)),
    "primary": (
        PrimaryCap,
        {"dim_capsule": 4, "n_channels": 2, "kernel_size": (3, 3), "strides": (2, 1)},
        (7, 7, 3),
    ),
    "primary fft": (
        PrimaryCap,
        {"dim_capsule": 4, "n_channels": 2, "kernel_size": (3, 3), "method": "fft"},
        (5, 5, 3),
    ),
    "primary padded": (
        PrimaryCap,
        {"dim_capsule": 4, "n_channels": 2, "kernel_size": (3, 2), "padding": "same"},
        (5, 5, 3),
    ),
    "fast convolution": (
        FastConv2D,
        {"filters": 4, "kernel_size": (3, 3), "padding": "same"},
        (7, 6, 3),
    ),
    "capsules": (
        CapsuleLayer,
        {"num_capsule": 4, "dim_capsule": 5, "routings": 2},
        (6, 2),
    ),
    "capsules in windows": (
        ConvCapsuleLayer,
        {"num_capsule": 4, "dim_capsule": 5, "kernel_size": (3, 3), "strides": (2, 2)},
        (5, 5, 2, 3),
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def make(name):
    """A built layer with random weights, and the shape of its inputs."""
    layer_class, arguments, shape = LAYERS[name]
    layer = layer_class(**arguments, name="capsules")
    layer.build((None, *shape))
    layer.set_weights([normal(*w.shape, seed=1) for w in layer.weights])
    return layer, shape


@every_layer
def test_zero_vectors_have_finite_values_and_gradients(name):
    layer, shape = make(name)
    pairs = zip(layer.weights, layer.get_weights())
    zeroed = [0 * w if variable.name == "bias" else w for variable, w in pairs]
    layer.set_weights(zeroed)
    for batch in (3, 4):  # few samples and many, of which some layers make two cases
        zeros = np.zeros((batch, *shape), "float32")
        assert np.abs(evaluate(layer, zeros)).max() < 1e-3
        for gradient in gradients(
            lambda *a: ops.sum(function_of(layer)(*a)), zeros, *layer.get_weights()
        ):
            assert np.isfinite(gradient).all()


@every_layer
@pytest.mark.parametrize("batch", [3, 7])
def test_sample_does_not_depend_on_its_neighbours(name, batch):
    layer, shape = make(name)
    sample = normal(1, *shape)
    alone = evaluate(layer, sample)
    for i in (0, batch - 1):
        neighbours = 10 * normal(batch, *shape, seed=2)
        neighbours[i] = sample[0]
        np.testing.assert_allclose(
            evaluate(layer, neighbours)[i], alone[0], **TOLERANCE
        )


@every_layer
def test_unknown_batch_size(name):
    layer, shape = make(name)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    x = normal(7, *shape)
    outputs = evaluate(layer, x)
    assert model.output_shape == (None, *outputs.shape[1:])
    # batches of 5 and of 2, which are few samples for some layers
    predicted = model.predict(x, batch_size=5, verbose=0)
    np.testing.assert_allclose(predicted, outputs, **TOLERANCE)


@every_layer
def test_each_step_of_a_sequence(name):
    layer, shape = make(name)
    inputs = keras.Input((3, *shape))
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    x = normal(2, 3, *shape)
    outputs = model.predict(x, verbose=0)
    expected = evaluate(layer, x.reshape(6, *shape))
    assert outputs.dtype == expected.dtype
    np.testing.assert_allclose(outputs.reshape(expected.shape), expected, **TOLERANCE)


@every_layer
def test_what_keras_is_told_of_the_outputs_is_so(name):
    kind, arguments, shape = LAYERS[name]
    couplings = issubclass(kind, CapsuleLayer)
    for more in ({}, {"return_couplings": True})[: 1 + couplings]:
        layer = kind(**arguments, **more, dtype="mixed_bfloat16")
        told = layer(keras.Input(shape, batch_size=7))
        found = layer(normal(7, *shape))
        pairs = zip(told, found) if more else [(told, found)]
        for one, other in pairs:
            dtype = keras.backend.standardize_dtype(other.dtype)
            assert (tuple(one.shape), one.dtype) == (tuple(other.shape), dtype)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="has no XLA")
@pytest.mark.parametrize("routings", [1, 3])
def test_compiled_by_xla_for_batches_of_any_size(routings):
    inputs = keras.Input((8, 8, 3))
    x = PrimaryCap(4, 4, 3, method="fft")(inputs)
    x = CapsuleLayer(3, 6, routings)(x)
    model = keras.Model(inputs, Length()(x))
    model.compile("adam", "mse", jit_compile=True)
    labels = np.eye(3)[np.arange(11) % 3]
    losses = model.fit(normal(11, 8, 8, 3), labels, 8, epochs=2, verbose=0).history
    assert np.isfinite(losses["loss"]).all()


@every_layer
def test_round_trip_of_the_configuration_and_of_a_model_file(name, tmp_path):
    layer, shape = make(name)
    config = layer.get_config()
    assert {k: config[k] for k in LAYERS[name][1]} == LAYERS[name][1]
    assert type(layer).from_config(config).get_config() == config
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path, safe_mode=True)
    assert isinstance(loaded.get_layer("capsules"), type(layer))
    x = normal(2, *shape)
    np.testing.assert_array_equal(evaluate(loaded, x), evaluate(model, x))


def test_kernel_initializer_travels_with_the_configuration():
    layer = CapsuleLayer(4, 5, kernel_initializer=keras.initializers.Constant(0.5))
    copy = CapsuleLayer.from_config(layer.get_config())
    copy.build((None, 6, 2))
    np.testing.assert_array_equal(copy.get_weights()[0], np.full((4, 6, 5, 2), 0.5))

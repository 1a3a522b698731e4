"""muon.py: steps that are as long in every direction."""

import keras
import numpy as np
import pytest
from keras import ops

from capsnet import backend
from capsnet.muon import MOMENTUM, SIZE, TIMES, A, B, C, orthogonalize

SHAPES = [(3, 3, 4, 8), (1, 1, 5, 8), (9, 9, 1, 8), (2, 2, 2, 8)]  # tall, wide, square


def kernels(*shape, n=1, seed=0):
    return np.random.default_rng(seed).normal(size=(n, *shape))


def as_matrix(kernel):
    return np.reshape(kernel, (-1, kernel.shape[-1]))


def iterate(gradient):
    """Newton and Schulz's iteration as it is written, in float64."""
    x = as_matrix(gradient)
    x = x / np.linalg.norm(x)
    for _ in range(TIMES):
        square = x @ x.T
        x = (A * np.eye(len(x)) + B * square + C * square @ square) @ x
    return np.reshape(np.sqrt(max(x.shape)) * x, gradient.shape)


def orthogonalized(gradient):
    return ops.convert_to_numpy(orthogonalize(ops.convert_to_tensor(gradient)))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_iteration_of_newton_and_schulz(shape):
    (gradient,) = kernels(*shape)
    expected = iterate(gradient)
    result = orthogonalized(gradient.astype("float32"))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_directions_of_all_sizes_come_out_alike():
    """Singular values from 1 to 1/100 become near 1, the singular vectors stay."""
    rng = np.random.default_rng(1)
    left, _ = np.linalg.qr(rng.normal(size=(36, 8)))
    right, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    gradient = left @ np.diag(np.geomspace(1, 0.01, 8)) @ right
    result = orthogonalized(gradient.reshape(3, 3, 4, 8).astype("float32"))
    scaled = left.T @ as_matrix(result) @ right.T / np.sqrt(36)
    values = np.diag(scaled)
    assert values.min() > 0.6 and values.max() < 1.3
    np.testing.assert_allclose(scaled, np.diag(values), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_size_of_a_gradient_does_not_matter(shape):
    (gradient,) = kernels(*shape).astype("float32")
    result = orthogonalized(gradient)
    np.testing.assert_allclose(orthogonalized(1e-3 * gradient), result, rtol=1e-2)
    root_mean_square = np.sqrt(np.mean(np.square(result)))
    assert 0.6 < root_mean_square < 1.3
    root_mean_square = np.sqrt(np.mean(np.square(result)))
    assert 0.6 < root_mean_square < 1.3


def test_a_gradient_of_zeros_is_no_step():
    assert not orthogonalized(np.zeros((3, 3, 4, 8), "float32")).any()


def train(optimizer, start, steps, names):
    variables = [
        keras.Variable(value, dtype="float32", name=name)
        for value, name in zip(start, names)
    ]
    for step, values in enumerate(steps):
        optimizer.learning_rate = 0.01 * 0.9**step
        tensors = [ops.convert_to_tensor(v, "float32") for v in values]
        optimizer.apply_gradients(zip(tensors, variables))
    return [ops.convert_to_numpy(v) for v in variables]


def test_a_kernel_follows_its_momentum():
    start, *steps = kernels(3, 3, 4, 8, n=6)
    (result,) = train(backend.muon(0.01), [start], [[g] for g in steps], ["kernel"])
    momentum = 0
    for step, gradient in enumerate(steps):
        momentum = MOMENTUM * momentum + gradient
        size = SIZE * 0.01 * 0.9**step
        start = start - size * iterate(gradient + MOMENTUM * momentum)
    np.testing.assert_allclose(result, start, rtol=1e-4, atol=1e-5)


def test_all_other_weights_follow_adam():
    """Biases, a dense layer's kernel, and transformation matrices."""
    shapes, names = [(8,), (6, 5), (2, 6, 4, 3)], ["bias", "kernel", "W"]
    rng = np.random.default_rng(0)
    start, *steps = [[rng.normal(size=shape) for shape in shapes] for _ in range(6)]
    results = [
        train(optimizer, start, steps, names)
        for optimizer in (backend.muon(0.01), keras.optimizers.Adam(0.01))
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_a_model_that_was_trained_with_it_is_saved_and_trained_on(tmp_path):
    x = kernels(6, 6, 1, n=8).astype("float32")
    y = x.sum((1, 2, 3))[:, None]

    def fit(model):
        model.fit(x, y, batch_size=2, shuffle=False, verbose=0)
        return model.get_weights()

    layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    model.compile(backend.muon(0.01), "mse")
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(fit(model), fit(loaded), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)

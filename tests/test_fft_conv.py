"""fft_conv.py: the convolution is exact, for any shape, and its cost is as counted."""

import keras
import numpy as np
import pytest
from conftest import evaluate, gradients
from keras import ops

from capsnet import fft_conv
from capsnet.fft_conv import choose_points, conv2d, cost

# Largest error of float32, relative to the largest element. A sum of n rounded terms
# errs by about sqrt(n) * 6e-8 of its size; the transforms multiply that by up to 60.
TOLERANCE = 1e-5


def direct(x, kernel, dy, strides):
    """The convolution, and the gradients of sum(y * dy), in float64."""
    x, kernel, dy = (a.astype("float64") for a in (x, kernel, dy))
    height, width = dy.shape[1:3]
    y, dx, dkernel = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(kernel)
    for i, j in np.ndindex(kernel.shape[:2]):
        # the pixels that this element of the kernel meets, one for each output
        rows = slice(i, i + strides * (height - 1) + 1, strides)
        columns = slice(j, j + strides * (width - 1) + 1, strides)
        y += x[:, rows, columns] @ kernel[i, j]
        dx[:, rows, columns] += dy @ kernel[i, j].T
        dkernel[i, j] = np.tensordot(x[:, rows, columns], dy, ((0, 1, 2), (0, 1, 2)))
    return y, dx, dkernel


def example(size, kernel_size, strides, channels, filters, batch, seed=0):
    """Images as after a ReLU, a kernel and the gradient of the output."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(batch, *size, channels)), 0)
    kernel = rng.normal(size=(*kernel_size, channels, filters))
    outputs = [(n - k) // strides + 1 for n, k in zip(size, kernel_size)]
    dy = rng.normal(size=(batch, *outputs, filters))
    return [a.astype("float32") for a in (x, kernel, dy)]


def relative_error(actual, expected):
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def check(size, kernel_size, strides, channels, filters, batch):
    """Compares output and both gradients with the direct convolution in float64."""
    x, kernel, dy = example(size, kernel_size, strides, channels, filters, batch)
    # the sum is linear in dy too, and its gradient with respect to dy is y
    dx, dkernel, y = gradients(
        lambda x, kernel, dy: ops.sum(conv2d(x, kernel, strides) * dy), x, kernel, dy
    )
    expected = direct(x, kernel, dy, strides)
    errors = [relative_error(*pair) for pair in zip((y, dx, dkernel), expected)]
    assert max(errors) < TOLERANCE


@pytest.mark.parametrize("side", [28, 36, 32, 64])
def test_primary_capsules_of_every_benchmark_size(side):
    # MNIST, MultiMNIST, CIFAR-10 and 64-pixel images, after conv1 took 8 pixels
    check((side - 8, side - 8), (9, 9), 2, channels=256, filters=64, batch=1)


@pytest.mark.parametrize(
    ("size", "kernel_size", "strides"),
    [
        ((8, 8), (1, 1), 1),
        ((9, 9), (1, 1), 2),  # a kernel smaller than its stride
        ((7, 10), (2, 2), 1),
        ((11, 8), (2, 2), 3),
        ((13, 7), (3, 3), 2),  # the stride skips no pixel
        ((14, 14), (5, 5), 2),  # the last row and column meet no kernel
        ((21, 17), (5, 5), 3),
        ((18, 16), (15, 15), 1),  # many points: roots of unity
        ((20, 19), (15, 15), 2),
        ((16, 12), (3, 5), 1),
        ((17, 20), (7, 2), 2),
        ((9, 9), (9, 9), 1),  # a single output
        ((10, 10), (10, 10), 2),
        ((1, 1), (1, 1), 1),
        ((30, 6), (3, 3), 1),  # many tiles one way
    ],
)
def test_any_shape(size, kernel_size, strides):
    check(size, kernel_size, strides, channels=3, filters=2, batch=2)


def test_one_channel():
    check((6, 6), (3, 3), 1, channels=1, filters=1, batch=1)


def test_keeps_the_dtype_and_computes_in_float32():
    x, kernel, dy = example((11, 9), (3, 3), 2, channels=4, filters=4, batch=3)
    # numbers that bfloat16 holds exactly
    x, kernel = np.rint(4 * x) / 4, np.rint(4 * kernel) / 4

    def in_bfloat16(x, kernel):
        y = conv2d(ops.cast(x, "bfloat16"), ops.cast(kernel, "bfloat16"), 2)
        assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
        return ops.cast(y, "float32")

    y = evaluate(in_bfloat16, x, kernel)
    expected = direct(x, kernel, dy, 2)[0]
    # the only error is the rounding of the result, to 8 bits
    np.testing.assert_allclose(y, expected, rtol=2**-8, atol=1e-5)


if keras.backend.backend() == "jax":  # the others' precision is in test_backend.py

    def test_every_product_is_of_full_precision():
        import jax

        x, kernel, dy = example((11, 9), (3, 3), 2, channels=4, filters=4, batch=3)
        gradient = jax.grad(
            lambda x, kernel: ops.sum(conv2d(x, kernel, 2) * dy), (0, 1)
        )
        program = str(jax.make_jaxpr(gradient)(x, kernel))
        full = "precision=(Precision.HIGHEST, Precision.HIGHEST)"
        assert program.count(full) == program.count("dot_general[") > 20


@pytest.mark.parametrize("size", [(3, 8), (8, 3)])
def test_kernel_larger_than_the_image(size):
    x = np.zeros((1, *size, 1), "float32")
    kernel = np.zeros((5, 5, 1, 1), "float32")
    with pytest.raises(ValueError, match=r"kernel, 5; received 3\."):
        conv2d(x, kernel, 1)


@pytest.mark.parametrize("taps", range(1, 16))
def test_algorithm_in_one_dimension_is_exact_and_well_conditioned(taps):
    for n in range(taps + taps % 2, max(14, 4 * taps) + 1, 2):  # all that `plan` tries
        outputs, of = n - taps + 1, f"{n} points, {taps} taps"
        A, B, C = fft_conv._toom_cook(choose_points(n), outputs, taps)
        assert (A.shape[1], B.shape[1], C.shape[0]) == (n, taps, outputs)
        rng = np.random.default_rng(n)
        x, w = rng.integers(-9, 10, n), rng.integers(-9, 10, taps)
        y, expected = C @ ((A @ x) * (B @ w)), np.correlate(x, w, "valid")
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10, err_msg=of)

        # Random errors of the products, relative to random inputs, reach the output,
        # the gradient of x and that of w enlarged less than 8 times: in two dimensions
        # 64 times, and 64 * 6e-8 is below the tolerance of 1e-5.
        A, B, C = A**2, B**2, C.T**2
        a, b, c = (variances.sum(axis=1) for variances in (A, B, C))
        to_y = (a * b) @ C / taps
        to_x = (b * c) @ A / min(taps, outputs)
        to_w = (a * c) @ B / outputs
        assert max(errors.max() for errors in (to_y, to_x, to_w)) < 8**2, of


def test_few_points_cost_few_products():
    # ten points for ten inputs (the primary capsules of MNIST): one pair costs 3
    assert fft_conv.plan(20, 9, 2).kernel.shape == (11, 5)
    # a kernel of one pixel needs no more products than pixels
    assert fft_conv.plan(8, 1, 1).kernel.shape == (2, 1)


def test_cost_counted_by_hand():
    # 4 x 4 pixels, 3 x 3 taps: four points (0, infinity, 1, -1) in each direction
    into = 4 * 4 * 4 + 4 * 4 * 4  # rows, then columns, a channel
    products = 4 * 4 * 2 * 3
    back = 2 * 4 * 4 + 2 * 4 * 2  # 4 x 4 -> 2 x 4 -> 2 x 2, a filter
    transform = 4 * 3 * 3 + 4 * 4 * 3  # of a kernel: rows, then columns
    fft, kernel, plain = cost((4, 4), (3, 3), (1, 1), channels=2, filters=3)
    assert fft == 2 * into + products + 3 * back
    assert kernel == transform * 2 * 3
    assert plain == 2 * 2 * 3 * 3 * 2 * 3


def test_cost_of_the_primary_capsules():
    fft, _, plain = cost((20, 20), (9, 9), (2, 2), channels=256, filters=256)
    assert plain == 36 * 81 * 256 * 256
    # one of eleven rows of points is infinity, where half of the phases are zero
    assert fft >= 10.5 * 11 * 4 * 256 * 256
    assert fft < plain / 5

"""Strided convolution as products at a few frequencies: what makes CPUs fast.

A convolution is a product of polynomials, and polynomials are cheap to multiply where
they are given by their values: one multiplication a point. In one dimension, let
`y[i] = sum_k x[i + k] w[k]` be `m` outputs of a kernel of `r` taps; they depend on
`n = m + r - 1` inputs. Choose `n` points `p`, and let `V_k` be the matrix that
evaluates a polynomial of `k` coefficients there, `V_k[p, i] = p ** i`. The product of
the polynomials `w` and `g` is `V_n^-1 [(V_r w) * (V_m g)]`; transposed with respect to
`g`, the same formula is the convolution:

    y = C [(A x) * (B w)],    A = V_n^-T,    B = V_r,    C = V_m^T.

If the points are the roots of unity, this is the discrete Fourier transform. A real
point (infinity stands for the leading coefficient) costs one product, a pair of
conjugate points three (Karatsuba's trick). `choose_points` mixes real points and
roots of unity: ten points cost eleven products, at a precision of about 2e-6.

- Two dimensions: apply the matrices to the rows, then to the columns.
- Stride `s`: with `k = s * a + phase`, the sum over `k` becomes a sum over `s` phases
  of convolutions with stride 1. It commutes with `C`, as does the sum over the input
  channels: together they are the inner dimension of one matrix product a frequency.
- Long inputs are cut into tiles of `m` outputs; the rows of `A` do the cutting.

For the primary capsules of MNIST (20 x 20 x 256 to 6 x 6 x 256, kernel 9, stride 2)
these are 11 * 11 products (batch, 1024) x (1024, 256). The direct convolution does
the work of 36 * 81 / 4 = 729 of them. The transform of the kernel is the same for a
batch of any size, so that the direct convolution is faster for a few images.

References:
    - S. Winograd, "Arithmetic Complexity of Computations", 1980
    - A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from keras import ops

from capsnet.backend import full_precision

_EIGHTH_ROOT = complex(math.sqrt(0.5), math.sqrt(0.5))

# The first few of these groups are well conditioned, whatever their number.
# A complex number stands for the pair of itself and its conjugate.
SMALL_POINTS = (
    (0.0, math.inf),
    (1.0, -1.0),
    (1j,),
    (0.65, -0.65),
    (1.8, -1.8),
    (_EIGHTH_ROOT, -_EIGHTH_ROOT.conjugate()),
)


class Transform(NamedTuple):
    """The constant matrices of a convolution along one dimension.

    Attributes:
        inputs: `A` of every tile, shape (tiles * products, tiles * m + r - 1).
        kernel: `B`, shape (products, r).
        outputs: `C`, shape (m, products).
        tiles: Number of tiles of `m` outputs.
    """

    inputs: np.ndarray
    kernel: np.ndarray
    outputs: np.ndarray
    tiles: int


@full_precision()
def conv2d(x, kernel, strides: int | tuple[int, int] = 1):
    """Convolves images with a kernel, valid padding, as products at a few frequencies.

    Computes the same as `keras.ops.conv(x, kernel, strides, "valid", "channels_last")`
    and is differentiable on every backend. The arithmetic is done in float32: at a
    lower precision, that of TF32 included, the matrices would amplify the rounding
    errors. On a GPU with TensorFlow, which has one switch for the whole process, this
    turns TF32 off and leaves it off
    (`tf.config.experimental.enable_tensor_float_32_execution`). PyTorch computes in
    float32 unless `torch.set_float32_matmul_precision` was told otherwise.

    Args:
        x: Images.
        kernel: Weights, shape (kernel_height, kernel_width, channels, filters).
        strides: Step of the kernel along height and width, or along both, in pixels.

    Input shape:
        (batch, height, width, channels); only the batch may be unknown.

    Output shape:
        (batch, (height - kernel_height) // strides[0] + 1,
        (width - kernel_width) // strides[1] + 1, filters)

    Raises:
        ValueError: If the kernel is larger than the images.
    """
    s, t = strides if isinstance(strides, tuple) else (strides, strides)
    height, width, channels = x.shape[1:]
    filters = kernel.shape[-1]
    rows = plan(height, kernel.shape[0], s)
    columns = plan(width, kernel.shape[1], t)
    dtype = x.dtype

    # Rows first. x: (batch, height, width, channels) -> p x (columns, batch * inner)
    inner = s * t * channels
    x = _split_phases(ops.cast(x, "float32"), rows, columns, s, t)
    x = ops.unstack(_transform(rows.inputs, x, rows.tiles))
    # w: (k, k, channels, filters) -> p x (taps, inner * filters)
    taps = rows.kernel.shape[1], columns.kernel.shape[1]
    w = _fit(ops.cast(kernel, "float32"), (0, 1), (s * taps[0], t * taps[1]))
    w = ops.reshape(w, (taps[0], s, taps[1], t, -1))
    w = ops.reshape(ops.transpose(w, (0, 2, 1, 3, 4)), (*taps, -1))
    w = ops.unstack(_transform(rows.kernel, w))

    # Then the columns, a frequency of the rows at a time: that fits into the cache.
    y = []
    q = columns.kernel.shape[0]
    for point, x_p, w_p in zip(rows.kernel, x, w):
        size = _phases(point, kernel.shape[0], s) * t * channels
        if size < inner:
            x_p = ops.reshape(x_p, (x_p.shape[0], -1, inner))[..., :size]
            x_p = ops.reshape(x_p, (x_p.shape[0], -1))
            w_p = w_p[:, : size * filters]
        x_pq = _transform(columns.inputs, x_p, columns.tiles)
        w_pq = _transform(columns.kernel, w_p)
        # (q, tiles * batch, inner) x (q, inner, filters)
        y_pq = ops.matmul(
            ops.reshape(x_pq, (q, -1, size)), ops.reshape(w_pq, (q, size, filters))
        )
        y.append(_transform(columns.outputs, ops.reshape(y_pq, (q, -1))))
    # y: p x (n, tiles * batch * filters) -> (batch, height, width, filters)
    y = _join_tiles(_transform(rows.outputs, ops.stack(y)), rows, columns, filters)
    sizes = (height, kernel.shape[0], s), (width, kernel.shape[1], t)
    y = _fit(y, (1, 2), [output_size(*size) for size in sizes])
    return ops.cast(y, dtype)


def output_size(size: int, kernel_size: int, strides: int) -> int:
    """Number of outputs of a valid convolution along one dimension."""
    if size < kernel_size:
        raise ValueError(
            f"Expected an input at least as long as the kernel, {kernel_size}; "
            f"received {size}."
        )
    return (size - kernel_size) // strides + 1


def margins(
    padding: str,
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
) -> list[tuple[int, int]]:
    """Zeros before and after height and width.

    Args:
        padding: "valid" for none; "same" for as many outputs as there are steps.
        size, kernel_size, strides: As of `cost`.
    """
    if padding == "valid":
        return [(0, 0), (0, 0)]
    found = []
    for n, k, step in zip(size, kernel_size, strides):
        total = max((math.ceil(n / step) - 1) * step + k - n, 0)
        found.append((total // 2, total - total // 2))
    return found


def cost(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    channels: int,
    filters: int,
) -> tuple[int, int, int]:
    """Counts the multiplications of `conv2d` and of the direct convolution.

    Args:
        size: Height and width of the images, in pixels.
        kernel_size: Height and width of the kernel, in pixels.
        strides: Step of the kernel along height and width, in pixels.
        channels: Number of input channels.
        filters: Number of output channels.

    Returns:
        Three counts: of `conv2d` an image, of its transform of the kernel, which a
        batch shares, and of the direct convolution an image.
    """
    sizes = list(zip(size, kernel_size, strides))
    rows, columns = (plan(*along) for along in sizes)
    outputs = [output_size(*along) for along in sizes]
    inner = math.prod(strides) * channels
    (p, height), (q, width) = rows.inputs.shape, columns.inputs.shape
    m, n = (t.tiles * t.outputs.shape[0] for t in (rows, columns))
    into = (p * height * width + p * q * width) * inner
    phases = sum(_phases(x, kernel_size[0], strides[0]) for x in rows.kernel)
    products = phases * q * strides[1] * channels * filters
    back = (m * rows.outputs.shape[1] * q + m * n * columns.outputs.shape[1]) * filters
    taps = rows.kernel.shape[1], columns.kernel.shape[1]
    kernel = (p * taps[0] * taps[1] + p * q * taps[1]) * inner * filters
    direct = math.prod(outputs) * math.prod(kernel_size) * channels * filters
    return into + products + back, kernel, direct


@functools.lru_cache(maxsize=64)
def plan(size: int, kernel_size: int, strides: int) -> Transform:
    """Chooses the tiles along one dimension and builds their matrices in float64.

    The cost of a number of points, with `p` products a tile, is `p ** 2` for each
    tile of the image, and once more for the transform of the kernel.

    Args:
        size: Length of the input.
        kernel_size: Length of the kernel.
        strides: Step of the kernel.

    Returns:
        The `Transform`, its matrices in float32.
    """
    outputs = output_size(size, kernel_size, strides)
    taps = -(-kernel_size // strides)

    def cost_of(n):
        tiles = -(-outputs // (n - taps + 1))
        products = sum(3 if isinstance(p, complex) else 1 for p in choose_points(n))
        return products**2 * (tiles**2 + 1)

    first = taps + taps % 2
    candidates = range(max(2, first), max(14, 4 * taps) + 1, 2)
    n = min(candidates, key=cost_of)
    m = n - taps + 1
    tiles = -(-outputs // m)
    a, b, c = _toom_cook(choose_points(n), m, taps)
    inputs = np.zeros((tiles, len(a), tiles * m + taps - 1))
    for tile in range(tiles):
        inputs[tile, :, tile * m : tile * m + n] = a
    inputs = inputs.reshape(tiles * len(a), -1)
    return Transform(*(x.astype("float32") for x in (inputs, b, c)), tiles)


def choose_points(n: int) -> list[float | complex]:
    """The `n` points at which polynomials are multiplied, for an even `n`.

    Few points: real ones, which need one product each, and some roots of unity.
    Many points: the `n`-th roots of unity alone (a discrete Fourier transform), since
    powers of other numbers would lose the precision of float32.

    Returns:
        A list in which a complex number stands for itself and its conjugate.
    """
    points = []
    for group in SMALL_POINTS:
        points += group
        if sum(1 + isinstance(p, complex) for p in points) == n:
            return points
    angles = 2 * np.pi * np.arange(1, n // 2) / n
    return [1.0, -1.0, *(complex(math.cos(a), math.sin(a)) for a in angles)]


def _toom_cook(points, m, r):
    """The real matrices A, B, C of the module's docstring, with Karatsuba's rows."""
    conjugates = [p.conjugate() for p in points if isinstance(p, complex)]
    n = len(points) + len(conjugates)

    def evaluate(k):
        powers = np.arange(k)
        leading = (powers == k - 1).astype(float)
        return np.array(
            [leading if p == math.inf else p**powers for p in points + conjugates],
            dtype=complex,
        )

    a, b, c = np.linalg.inv(evaluate(n)).T, evaluate(r), evaluate(m)
    rows = []
    for point, ap, bp, cp in zip(points, a, b, c):
        if isinstance(point, complex):
            # With z = (A x)(B w) at the point, the pair adds 2 Re(c z) to the output,
            # z = (k1 - k2) + i (k3 - k1 - k2) from Karatsuba's products k1, k2, k3.
            re, im = cp.real, cp.imag
            rows += [
                (ap.real, bp.real, 2 * (re + im)),
                (ap.imag, bp.imag, 2 * (im - re)),
                (ap.real + ap.imag, bp.real + bp.imag, -2 * im),
            ]
        else:
            rows.append((ap.real, bp.real, cp.real))
    a, b, c = (np.stack(matrix) for matrix in zip(*rows))
    return a, b, c.T


def _transform(matrix, x, tiles=1):
    """Applies a matrix to the first axis: (n, ..., k) -> (p, ..., tiles * k)."""
    rest = x.shape[1:-1]
    x = ops.matmul(matrix, ops.reshape(x, (matrix.shape[1], -1)))
    if tiles > 1:
        # The matrix holds the rows of one tile after the other; bring them to k.
        x = ops.reshape(x, (tiles, len(matrix) // tiles, math.prod(rest), -1))
        x = ops.transpose(x, (1, 2, 0, 3))
    return ops.reshape(x, (len(matrix) // tiles, *rest, -1))


def _phases(point, kernel_size, strides) -> int:
    """How many of the phases are not zero at a point of the kernel's transform.

    Infinity sees the last tap alone, which not all phases may have.
    """
    return (not point[:-1].any() and kernel_size % strides) or strides


def _fit(x, axes, sizes):
    """Cuts x, or pads it with zeros at the end, to the sizes along the axes."""
    size = dict(zip(axes, sizes))
    x = x[tuple(slice(0, size.get(axis)) for axis in range(len(x.shape)))]
    missing = [size[axis] - n if axis in size else 0 for axis, n in enumerate(x.shape)]
    return ops.pad(x, [(0, n) for n in missing]) if any(missing) else x


def _split_phases(x, rows, columns, s, t):
    """(batch, height, width, channels) -> (rows, columns, batch * s * t * channels)."""
    height, width = rows.inputs.shape[1], columns.inputs.shape[1]
    x = _fit(x, (1, 2), (s * height, t * width))
    x = ops.reshape(x, (-1, height, s, width, t, x.shape[-1]))
    x = ops.transpose(x, (1, 3, 0, 2, 4, 5))
    return ops.reshape(x, (height, width, -1))


def _join_tiles(y, rows, columns, filters):
    """(m, n, u * t * batch * filters) -> (batch, t * m, u * n, filters)."""
    m, n = rows.outputs.shape[0], columns.outputs.shape[0]
    y = ops.reshape(y, (m, n, columns.tiles, rows.tiles, -1, filters))
    y = ops.transpose(y, (4, 3, 0, 2, 1, 5))
    return ops.reshape(y, (-1, rows.tiles * m, columns.tiles * n, filters))

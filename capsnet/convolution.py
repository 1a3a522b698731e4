"""A convolution that is computed by `fft_conv` where that is faster."""

import math

import keras
from keras import ops

from capsnet import fft_conv
from capsnet.backend import direct_convolution_is_slow, runs_on_cpu


@keras.saving.register_keras_serializable("capsnet")
class FastConv2D(keras.layers.Conv2D):
    """Keras's `Conv2D`, computed by `fft_conv.conv2d` on a CPU where that pays.

    It may pay for many large kernels without dilation and groups, with the channels
    last, and for images of known height and width, of which there are more than a few.
    Those are then convolved by `product`, if they have few windows: one image, and more
    where no gradient will be asked for.

    Args:
        filters, kernel_size, strides, padding: As of `Conv2D`.
        method: How to compute. "direct" is the backend's own way, "fft" is
            `fft_conv.conv2d` for any number of images that it can be used for. "auto"
            takes "fft" where it pays.
        kwargs: Those of `Conv2D`.

    Input shape:
        (batch, height, width, channels)

    Output shape:
        (batch, rows, columns, filters)

    Raises:
        ValueError: If the method is none of those above.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = 1,
        padding: str = "valid",
        method: str = "auto",
        **kwargs,
    ):
        super().__init__(filters, kernel_size, strides, padding, **kwargs)
        if method not in ("auto", "fft", "direct"):
            raise ValueError(
                "Expected method to be 'auto', 'fft' or 'direct'; "
                f"received method={method!r}."
            )
        self.method = method

    def build(self, input_shape):
        super().build(input_shape)
        self.least_batch, self.has_few_windows = None, False
        plain = self.dilation_rate == (1, 1) and self.groups == 1
        if not plain or self.data_format != "channels_last" or None in input_shape[1:]:
            return
        *size, channels = input_shape[1:]
        sizes = size, self.kernel_size, self.strides
        margins = fft_conv.margins(self.padding, *sizes)
        size = [n + sum(margin) for n, margin in zip(size, margins)]
        shape = (size, self.kernel_size, self.strides, channels, self.filters)
        least = {"auto": least_batch(*shape), "fft": 1, "direct": None}
        self.least_batch = least[self.method]
        windows = math.prod(map(fft_conv.output_size, size, *shape[1:3]))
        faster = self.method == "auto" and self.least_batch is not None
        self.has_few_windows = faster and windows < self.filters

    def convolution_op(self, inputs, kernel):
        return self.convolve(inputs, kernel)

    def convolve(self, inputs, kernel, training: bool | None = None):
        """The convolution alone, in the way that suits the number of images.

        Args:
            inputs: As of the layer.
            kernel: Its weights.
            training: Whether a gradient will be asked for; None if it may be.
        """

        def padded(inputs):
            if self.padding == "valid":
                return inputs
            size = inputs.shape[1:3]  # not always that of `build`
            margins = fft_conv.margins("same", size, self.kernel_size, self.strides)
            return ops.pad(inputs, [(0, 0), *margins, (0, 0)])

        def fast(inputs):
            return fft_conv.conv2d(padded(inputs), kernel, self.strides)

        def direct(inputs):
            return keras.layers.Conv2D.convolution_op(self, inputs, kernel)

        def as_product(inputs):
            return product(padded(inputs), kernel, self.strides)

        def few(inputs):
            if not self.has_few_windows:
                return direct(inputs)
            # Of more than one image, its gradient is slower than the direct one's.
            no_gradient = training is False
            return by_batch(as_product, direct, inputs, None if no_gradient else 2)

        if None in inputs.shape[1:]:
            return direct(inputs)
        return by_batch(few, fast, inputs, self.least_batch, training)

    def get_config(self):
        return {**super().get_config(), "method": self.method}


def least_batch(size, kernel_size, strides, channels, filters) -> int | None:
    """The least number of images for which `fft_conv.conv2d` is faster; None if never.

    See `fft_conv.cost` for the arguments. The transform of the kernel is bound by the
    memory: one of its multiplications takes as long as about three others.
    """
    fft, kernel, direct = fft_conv.cost(size, kernel_size, strides, channels, filters)
    if not runs_on_cpu() or 2 * fft >= direct:
        return None
    if direct_convolution_is_slow():
        return 1
    return math.ceil(3 * kernel / (direct - 2 * fft))


def product(x, kernel, strides: tuple[int, int]):
    """A valid convolution as one matrix product: all windows, times the kernel.

    For a few images of few windows, most of the work is reading the kernel. This reads
    it once; the backend's convolution brings it into another order first.

    Args:
        x: (batch, height, width, channels), the sizes known.
        kernel: (kernel_height, kernel_width, channels, filters).
        strides: Step of the kernel along height and width, in pixels.

    Returns:
        (batch, rows, columns, filters)
    """
    x = windows(x, kernel.shape[:2], strides)
    rows, columns, size = x.shape[1:]
    y = ops.matmul(ops.reshape(x, (-1, size)), ops.reshape(kernel, (size, -1)))
    return ops.reshape(y, (-1, rows, columns, y.shape[-1]))


def windows(x, kernel_size: tuple[int, int], strides: tuple[int, int]):
    """What a valid convolution looks at for each place of its result.

    `ops.image.extract_patches` convolves with an identity matrix, which costs more
    than what follows.

    Args:
        x: (batch, height, width, channels), the sizes known.
        kernel_size: Height and width of a window, in pixels.
        strides: Step from one to the next along height and width, in pixels.

    Returns:
        (batch, rows, columns, kernel_height * kernel_width * channels)
    """
    height, width, channels = x.shape[1:]
    (k, m), (s, t) = kernel_size, strides
    rows = fft_conv.output_size(height, k, s)
    columns = fft_conv.output_size(width, m, t)
    # -> (batch, columns, height, m * channels) -> (batch, rows, columns, k, ...)
    x = ops.reshape(x, (-1, height, width * channels))
    starts = [t * channels * i for i in range(columns)]
    x = ops.stack([x[:, :, i : i + m * channels] for i in starts], axis=1)
    x = ops.stack([x[:, :, s * i : s * i + k] for i in range(rows)], axis=1)
    return ops.reshape(x, (-1, rows, columns, k * m * channels))


def by_batch(few, many, inputs, least_batch: int | None, training=None):
    """`many(inputs)` for at least so many samples, `few(inputs)` for fewer.

    A graph for batches of any size decides when it runs; but not in training, as XLA
    cannot compile the gradient of that.
    """
    if least_batch is None:
        return few(inputs)
    if least_batch == 1:
        return many(inputs)
    batch = inputs.shape[0]
    if batch is None:
        if training:
            return many(inputs)
        enough = ops.shape(inputs)[0] >= least_batch
        return ops.cond(enough, lambda: many(inputs), lambda: few(inputs))
    # JAX finds out shapes with a size that is no number.
    is_few = isinstance(batch, int) and batch < least_batch
    return few(inputs) if is_few else many(inputs)

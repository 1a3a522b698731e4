"""The layers of a capsule network with dynamic routing.

Reference:
    - S. Sabour, N. Frosst, G. E. Hinton, "Dynamic Routing Between Capsules",
      NIPS 2017, https://arxiv.org/abs/1710.09829
"""

import math

import keras
from keras import ops

from capsnet import fft_conv
from capsnet.backend import compiled
from capsnet.convolution import FastConv2D, by_batch, windows
from capsnet.errors import check_labels, check_pair, check_sizes

PACKAGE = "capsnet"


def squash(vectors, axis: int = -1):
    """Shrinks vectors to a length below 1 and keeps their direction.

    Equation 1 of the paper: `v = ||s||^2 / (1 + ||s||^2) * s / ||s||`. The norm is
    computed in float32, and a zero vector gives zero with a finite gradient.

    Args:
        vectors: A tensor of any rank.
        axis: The axis that holds the elements of a vector.

    Returns:
        A tensor of the same shape and dtype.
    """
    vectors = ops.convert_to_tensor(vectors)
    s = ops.cast(vectors, "float32")
    squared_norm = ops.sum(ops.square(s), axis=axis, keepdims=True)
    scale = squared_norm / (1 + squared_norm)
    scale = scale / ops.sqrt(squared_norm + keras.config.epsilon())
    return ops.cast(scale * s, vectors.dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class Length(keras.layers.Layer):
    """The lengths of capsules: the probabilities that their entities are present.

    Input shape:
        (..., num_capsule, dim_capsule)

    Output shape:
        (..., num_capsule), in float32.

    Example:

    >>> Length()(np.array([[[3.0, 4.0], [0.0, 0.0]]]))  # about [[5.0, 0.0]]
    """

    def call(self, inputs):
        squares = ops.square(ops.cast(inputs, "float32"))
        # epsilon: the square root has no finite derivative at zero
        return ops.sqrt(ops.sum(squares, axis=-1) + keras.config.epsilon())

    def compute_output_shape(self, input_shape):
        return input_shape[:-1]

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), "float32")


@keras.saving.register_keras_serializable(PACKAGE)
class Mask(keras.layers.Layer):
    """Sets all capsules but one to zero, and flattens them for the decoder.

    The capsule that stays is the one of the given label or, without labels, the
    longest (section 4.1 of the paper). Where an image may be of several classes, those
    of all its labels stay or, without labels, all that are longer than a threshold.

    Args:
        threshold: The length; None for the longest capsule alone.

    Input shape:
        Capsules, (batch, num_capsule, dim_capsule), or a list of capsules and one-hot
        or multi-hot labels, (batch, num_capsule).

    Output shape:
        (batch, num_capsule * dim_capsule)

    Raises:
        ValueError: If the threshold is negative, or the labels are of another shape.

    Example:

    >>> capsules = np.array([[[1.0, 0.0], [2.0, 3.0]]])
    >>> Mask()(capsules)
    [[0.0, 0.0, 2.0, 3.0]]
    >>> Mask()([capsules, np.array([[1.0, 0.0]])])
    [[1.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, threshold: float | None = None, **kwargs):
        super().__init__(**kwargs)
        if threshold is not None and threshold < 0:
            raise ValueError(
                f"Expected a threshold of at least 0; received threshold={threshold}."
            )
        self.threshold = threshold

    def call(self, inputs):
        if isinstance(inputs, (list, tuple)):
            capsules, mask = inputs
            check_labels(mask.shape, capsules.shape[:2], "capsules")
        else:
            capsules = inputs
            squares = ops.sum(ops.square(ops.cast(capsules, "float32")), axis=-1)
            if self.threshold is None:
                # The first of the longest, as `argmax`, in which converters of models
                # would find operations that they do not know.
                longest = squares == ops.max(squares, axis=-1, keepdims=True)
                counts = ops.cumsum(ops.cast(longest, "int32"), axis=-1)
                mask = ops.logical_and(longest, counts == 1)
            else:
                mask = squares > self.threshold**2
        mask = ops.cast(ops.expand_dims(mask, -1), capsules.dtype)
        return ops.reshape(capsules * mask, (-1, capsules.shape[1] * capsules.shape[2]))

    def compute_output_shape(self, input_shape):
        capsules = input_shape if isinstance(input_shape[-1], int) else input_shape[0]
        return capsules[0], capsules[1] * capsules[2]

    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable(PACKAGE)
class PrimaryCap(FastConv2D):
    """The first capsules: a convolution whose channels are grouped into vectors.

    Args:
        dim_capsule: Number of elements of a capsule.
        n_channels: Number of types of capsules, each with a capsule at every position.
        kernel_size: Height and width of the kernel, in pixels, or one number for both.
        strides: Step of the kernel along height and width, in pixels, or one number.
        padding: "valid", or "same" for zeros around the images, so that there is a
            position for each step.
        kwargs: Those of `FastConv2D` and Keras's `Conv2D`: initializers, regularizers,
            and the method to compute with.

    Input shape:
        (batch, height, width, channels), whatever Keras's image data format is. The
        height and width may be unknown (None); the convolution is direct then.

    Output shape:
        (batch, rows * columns * n_channels, dim_capsule): the capsules of a position
        follow each other. `Reshape((rows, columns, n_channels, dim_capsule))` makes the
        grid of them that `ConvCapsuleLayer` takes.

    Raises:
        ValueError: If an argument is none of those above, or the images are of another
            rank or smaller than the kernel.
    """

    def __init__(
        self,
        dim_capsule: int,
        n_channels: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = 1,
        padding: str = "valid",
        **kwargs,
    ):
        check_sizes(dim_capsule=dim_capsule, n_channels=n_channels)
        filters = dim_capsule * n_channels
        if kwargs.setdefault("data_format", "channels_last") != "channels_last":
            raise ValueError(
                "Expected data_format to be channels_last; "
                f"received data_format={kwargs['data_format']!r}."
            )
        super().__init__(filters, kernel_size, strides, padding, **kwargs)
        self.dim_capsule = dim_capsule
        self.n_channels = n_channels

    def build(self, input_shape):
        if len(input_shape) != 4 or input_shape[3] is None:
            raise ValueError(
                "Expected images of shape (batch, height, width, channels) with a "
                f"known number of channels; received {input_shape}."
            )
        super().build(input_shape)

    def call(self, inputs, training=False):
        outputs = self.convolve(inputs, self.kernel, training)
        if self.use_bias:
            outputs = outputs + ops.cast(self.bias, outputs.dtype)
        outputs = self.activation(outputs)
        # (batch, rows, columns, filters) -> (batch, capsules, dim_capsule)
        _, capsules, dim_capsule = self.compute_output_shape(inputs.shape)
        if capsules is None:
            shape = (ops.shape(outputs)[0], -1, dim_capsule)
        else:
            shape = (-1, capsules, dim_capsule)
        return squash(ops.reshape(outputs, shape))

    def compute_output_shape(self, input_shape):
        batch, rows, columns, _ = super().compute_output_shape(input_shape)
        known = None not in (rows, columns)
        capsules = rows * columns * self.n_channels if known else None
        return batch, capsules, self.dim_capsule

    def get_config(self):
        config = super().get_config()
        del config["filters"], config["data_format"]
        return {
            **config,
            "dim_capsule": self.dim_capsule,
            "n_channels": self.n_channels,
        }


def dynamic_routing(u_hat, routings: int):
    """Routing as the paper writes it (Procedure 1), to read and to compare with.

    `CapsuleLayer` computes the same, faster. For input capsules `i` and output
    capsules `j`, with logits `b_ij` that start at zero, each round is

        v_j  = ||s_j||^2 / (1 + ||s_j||^2) * s_j / ||s_j||               (equation 1)
        s_j  = sum_i c_ij u_hat_ij                                       (equation 2)
        c_ij = exp(b_ij) / sum_k exp(b_ik)                               (equation 3)

    after which `b_ij` grows by the agreement `u_hat_ij . v_j`.

    Args:
        u_hat: Each input capsule's prediction of each output capsule, `W_ij u_i`,
            (batch, num_capsule, input_capsules, dim_capsule):
            `ops.einsum("bid,jied->bjie", u, W)`.
        routings: Number of rounds, at least 1.

    Returns:
        Output capsules, (batch, num_capsule, dim_capsule).

    Raises:
        ValueError: If there is no round.
    """
    check_sizes(routings=routings)
    b = ops.zeros_like(u_hat[..., 0])  # (batch, num_capsule, input_capsules)
    for i in range(routings):
        c = ops.softmax(b, axis=1)  # each input capsule shares itself out
        s = ops.einsum("bji,bjie->bje", c, u_hat)
        v = squash(s)
        if i < routings - 1:  # the last agreement would be used by nothing
            b = b + ops.einsum("bje,bjie->bji", v, u_hat)
    return v


@keras.saving.register_keras_serializable(PACKAGE)
class CapsuleLayer(keras.layers.Layer):
    """Capsules that are fed by dynamic routing: `dynamic_routing`, made fast.

    Each input capsule `u_i` predicts each output capsule `j` as `W_ij u_i`. An output
    capsule is the squashed sum of its predictions, weighted by coupling coefficients
    `c_ij`: a softmax over the output capsules of logits that start at zero for every
    sample and grow by the agreement of prediction and output in each round.

    The predictions themselves, (batch, num_capsule, input_capsules, dim_capsule), are
    never stored. Multiplied in another order, with `i` and the elements of `u_i` as
    one inner dimension, both uses of them are matrix products with the weights:

        s_j  = sum_i c_ij (W_ij u_i)   = sum_i W_ij (c_ij u_i)
        a_ij = v_j . (W_ij u_i)        = (v_j W_ij) . u_i

    Args:
        num_capsule: Number of output capsules.
        dim_capsule: Number of elements of an output capsule.
        routings: Number of rounds of the routing, at least 1.
        kernel_initializer: Initializer of the transformation matrices. With a much
            smaller one than the default, training starts with a long plateau.
        kernel_regularizer: Regularizer of the transformation matrices.
        kernel_constraint: Constraint on the transformation matrices.
        return_couplings: Whether the coupling coefficients of the last round are
            returned too. Over the output capsules, they sum to 1.

    Input shape:
        (batch, input_capsules, input_dim). `keras.layers.Reshape((-1, input_dim))`
        makes it of capsules on a grid.

    Output shape:
        (batch, num_capsule, dim_capsule), and with `return_couplings` also
        (batch, num_capsule, input_capsules).

    Raises:
        ValueError: If an argument is none of those above, or the input is of another
            shape than the layer was built for.
    """

    def __init__(
        self,
        num_capsule: int,
        dim_capsule: int,
        routings: int = 3,
        kernel_initializer=None,
        kernel_regularizer=None,
        kernel_constraint=None,
        return_couplings: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_sizes(num_capsule=num_capsule, dim_capsule=dim_capsule, routings=routings)
        self.num_capsule = num_capsule
        self.dim_capsule = dim_capsule
        self.routings = routings
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.RandomNormal(stddev=0.1)
        )
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.return_couplings = return_couplings

    def build(self, input_shape):
        if len(input_shape) != 3 or None in input_shape[1:]:
            raise ValueError(
                "Expected capsules of shape (batch, input_capsules, input_dim), their "
                "number known, as each has transformation matrices of its own; "
                f"received {input_shape}. keras.layers.Reshape((-1, input_dim)) makes "
                "it of capsules on a grid."
            )
        _, input_capsules, input_dim = input_shape
        self.W = self.add_weight(
            name="W",
            shape=(self.num_capsule, input_capsules, self.dim_capsule, input_dim),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        known = {1: input_capsules, 2: input_dim}
        self.input_spec = keras.layers.InputSpec(ndim=3, axes=known)
        self.least_batch = 4

    def call(self, inputs, training=False):
        if self.return_couplings:
            return self._route(inputs)
        # Of a few samples, the predictions are less than the copies of W below.
        few, many = self._route_few, self._route
        return by_batch(few, many, inputs, self.least_batch, training)

    def compute_output_shape(self, input_shape):
        batch, input_capsules, _ = input_shape
        v = batch, self.num_capsule, self.dim_capsule
        return (v, (*v[:2], input_capsules)) if self.return_couplings else v

    def _route_few(self, inputs):
        u_hat = _predict(inputs, ops.cast(self.W, inputs.dtype)[None])
        v = dynamic_routing(ops.cast(u_hat, "float32"), self.routings)
        return ops.cast(v, inputs.dtype)

    def _route(self, inputs):
        # W: (num_capsule, input_capsules * input_dim, dim_capsule)
        num_capsule, _, dim_capsule, _ = self.W.shape
        W = ops.transpose(ops.cast(self.W, inputs.dtype), (0, 1, 3, 2))
        W = ops.reshape(W, (num_capsule, -1, dim_capsule))
        W_T = ops.transpose(W, (0, 2, 1))

        # Round 1: the logits are zero and all couplings equal, so s is one product.
        u = ops.reshape(inputs, (-1, W.shape[1]))
        s = ops.matmul(u, ops.reshape(ops.transpose(W, (1, 0, 2)), (W.shape[1], -1)))
        s = ops.reshape(s / num_capsule, (-1, num_capsule, dim_capsule))
        v = squash(ops.transpose(s, (1, 0, 2)))  # (num_capsule, batch, dim_capsule)
        logits = 0.0
        for _ in range(self.routings - 1):
            v_W = ops.matmul(v, W_T)  # (num_capsule, batch, input_capsules * input_dim)
            logits, c_u = _couple(logits, inputs, v_W)
            v = squash(ops.matmul(c_u, W))
        v = ops.transpose(v, (1, 0, 2))
        if not self.return_couplings:
            return v
        zeros = ops.stack([ops.zeros_like(inputs[..., 0])] * num_capsule)
        c = ops.softmax(zeros + ops.cast(logits, zeros.dtype), axis=0)
        return v, ops.transpose(c, (1, 0, 2))

    def get_config(self):
        return {
            **super().get_config(),
            "num_capsule": self.num_capsule,
            "dim_capsule": self.dim_capsule,
            "routings": self.routings,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
            "return_couplings": self.return_couplings,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class ConvCapsuleLayer(CapsuleLayer):
    """Capsules on a grid, each fed by the capsules in a window of the grid below.

    Within a window, this is `CapsuleLayer`: its capsules share themselves out among
    those of one position above. All windows share the transformation matrices, so that
    deep networks of capsules stay small.

    Args:
        num_capsule: Number of output capsules at a position.
        dim_capsule: Number of elements of an output capsule.
        kernel_size: Height and width of the window, in positions, or one number.
        strides: Step of the window along height and width, or one number.
        kernel_initializer: Initializer of the transformation matrices. A window has few
            capsules, whose sum is short; with a standard deviation of 0.1, as in
            `CapsuleLayer`, equation 1 would leave almost nothing of it.
        kwargs: Those of `CapsuleLayer`.

    Input shape:
        (batch, rows, columns, input_capsules, input_dim); only the batch may be
        unknown.

    Output shape:
        (batch, new_rows, new_columns, num_capsule, dim_capsule), and with
        `return_couplings` also (batch, new_rows, new_columns, num_capsule, height of
        the window * its width * input_capsules). Windows do not leave the grid.

    Raises:
        ValueError: If an argument is none of those above, or the input is of another
            rank or smaller than the window.
    """

    def __init__(
        self,
        num_capsule: int,
        dim_capsule: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = 1,
        kernel_initializer=None,
        **kwargs,
    ):
        initializer = kernel_initializer or keras.initializers.RandomNormal(stddev=1.0)
        super().__init__(
            num_capsule, dim_capsule, kernel_initializer=initializer, **kwargs
        )
        self.kernel_size = check_pair("kernel_size", kernel_size)
        self.strides = check_pair("strides", strides)

    def build(self, input_shape):
        if len(input_shape) != 5 or None in input_shape[1:]:
            raise ValueError(
                "Expected capsules of shape (batch, rows, columns, input_capsules, "
                f"input_dim), only the batch unknown; received {input_shape}."
            )
        self.compute_output_shape(input_shape)  # finds a window that does not fit
        *_, types, dim = input_shape
        super().build((None, math.prod(self.kernel_size) * types, dim))
        known = dict(enumerate(input_shape[1:], start=1))
        self.input_spec = keras.layers.InputSpec(ndim=5, axes=known)

    def call(self, inputs, training=False):
        _, rows, columns, types, dim = inputs.shape
        # -> (batch, new_rows, new_columns, height * width * types * dim)
        image = ops.reshape(inputs, (-1, rows, columns, types * dim))
        seen = windows(image, self.kernel_size, self.strides)
        grid = seen.shape[1:3]
        outputs = super().call(ops.reshape(seen, (-1, self.W.shape[1], dim)), training)
        if not self.return_couplings:
            return ops.reshape(outputs, (-1, *grid, *outputs.shape[1:]))
        return tuple(ops.reshape(a, (-1, *grid, *a.shape[1:])) for a in outputs)

    def compute_output_shape(self, input_shape):
        batch, *grid, types, _ = input_shape
        grid = map(fft_conv.output_size, grid, self.kernel_size, self.strides)
        v = batch, *grid, self.num_capsule, self.dim_capsule
        window = math.prod(self.kernel_size) * types
        return (v, (*v[:-1], window)) if self.return_couplings else v

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
        }


@compiled
def _predict(u, W):
    """All predictions `W_ij u_i`: no matrix product, which would copy W to multiply it.

    Shapes: u (batch, input_capsules, input_dim), W (1, num_capsule, input_capsules,
    dim_capsule, input_dim), predictions (batch, num_capsule, input_capsules,
    dim_capsule).
    """
    return ops.sum(W * u[:, None, :, None, :], axis=-1)


@compiled
def _couple(logits, u, v_W):
    """A round's new logits, and the input capsules weighted by their couplings.

    Shapes: logits (num_capsule, batch, input_capsules), u (batch, input_capsules,
    input_dim), v_W and the weighted capsules (num_capsule, batch, input_capsules *
    input_dim).
    """
    agreement = u * ops.reshape(v_W, (v_W.shape[0], -1, *u.shape[1:]))
    logits = logits + ops.sum(ops.cast(agreement, "float32"), axis=-1)
    # Softmax over the output capsules; `ops.softmax` would transpose twice.
    exponentials = ops.exp(logits - ops.stop_gradient(ops.max(logits, axis=0)))
    c = ops.cast(exponentials / ops.sum(exponentials, axis=0), u.dtype)
    return logits, ops.reshape(c[..., None] * u, (v_W.shape[0], -1, v_W.shape[2]))

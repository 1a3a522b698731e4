"""Muon, an optimizer: steps that are as long in every direction."""

import math

import keras
from keras import ops

# The polynomial a x + b x^3 + c x^5 that, applied five times, brings all that is not
# tiny near 1, and the momentum: Jordan et al., "Muon: An optimizer for hidden layers in
# neural networks", 2024.
A, B, C = 3.4445, -4.7750, 2.0315
TIMES = 5
MOMENTUM = 0.95
# Root mean square of a step over the learning rate, about Adam's, so that both can have
# the same: Liu et al., "Muon is scalable for LLM training", 2025, section 2.2.
SIZE = 0.2


@keras.saving.register_keras_serializable("capsnet")
class Muon(keras.optimizers.Adam):
    """Muon for the kernels of convolutions, Adam for all other weights.

    The gradient of a kernel, averaged over the last steps, is a matrix of inputs and
    outputs in which a few directions outweigh all others. Its singular values are made
    equal, so that each step goes as far in the rare directions as in the frequent ones.
    Keras's own `Muon` does so for dense layers alone.

    Args: those of `keras.optimizers.Adam`.
    """

    def build(self, variables):
        super().build(variables)
        self._is_kernel = [
            variable.name == "kernel" and len(variable.shape) == 4
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        i = self._get_variable_index(variable)
        if not self._is_kernel[i]:
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = ops.cast(gradient, variable.dtype)
        momentum = MOMENTUM * self._momentums[i] + gradient
        self.assign(self._momentums[i], momentum)
        step = orthogonalize(gradient + MOMENTUM * momentum)  # Nesterov's
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * step)


def orthogonalize(gradient):
    """Makes the singular values of a kernel's gradient nearly equal.

    Newton and Schulz's iteration `x <- (a + b x x' + c (x x')^2) x`. The factors are
    matrices of the short side, and so are all but two of the products.

    Args:
        gradient: Of a kernel, (height, width, inputs, outputs).

    Returns:
        The same shape, with a root mean square of about `SIZE` if none of the singular
        values is tiny.
    """
    shape = gradient.shape
    x = ops.reshape(gradient, (-1, shape[-1]))  # (height * width * inputs, outputs)
    rows, columns = x.shape
    x = x / (ops.sqrt(ops.sum(ops.square(x))) + 1e-7)  # no singular value above 1
    transposed = ops.transpose(x)
    is_wide = rows < columns
    gram = ops.matmul(x, transposed) if is_wide else ops.matmul(transposed, x)
    unit = product = ops.eye(min(rows, columns), dtype=x.dtype)
    for _ in range(TIMES):
        factor = A * unit + B * gram + C * ops.matmul(gram, gram)
        product = ops.matmul(factor, product)
        gram = ops.matmul(factor, ops.matmul(gram, factor))
    product = product * (SIZE * math.sqrt(max(rows, columns)))
    x = ops.matmul(product, x) if is_wide else ops.matmul(x, product)
    return ops.reshape(x, shape)

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
        nesterov = gradient + MOMENTUM * momentum
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, orthogonalize(nesterov, SIZE * rate))


def orthogonalize(gradient, size=1.0):
    """Makes the singular values of a kernel's gradient nearly equal.

    Newton and Schulz's iteration `x <- (a + b x x' + c (x x')^2) x`. The factors are
    matrices of the short side, and so are all but two of the products.

    Args:
        gradient: Of a kernel, (height, width, inputs, outputs).
        size: About the root mean square of the result, if no singular value of the
            gradient is tiny.

    Returns:
        The same shape.
    """
    shape = gradient.shape
    x = ops.reshape(gradient, (-1, shape[-1]))  # (height * width * inputs, outputs)
    is_wide = x.shape[0] < x.shape[1]
    transposed = ops.transpose(x)
    gram = ops.matmul(x, transposed) if is_wide else ops.matmul(transposed, x)
    # Of x over its Frobenius norm, so that no singular value is above 1.
    norm = ops.sqrt(ops.trace(gram)) + 1e-7
    gram = gram / ops.square(norm)
    unit = product = ops.eye(min(x.shape), dtype=x.dtype)
    for _ in range(TIMES):
        factor = A * unit + B * gram + C * ops.matmul(gram, gram)
        product = ops.matmul(factor, product)
        gram = ops.matmul(factor, ops.matmul(gram, factor))
    product = product * (size * math.sqrt(max(x.shape)) / norm)
    x = ops.matmul(product, x) if is_wide else ops.matmul(x, product)
    return ops.reshape(x, shape)

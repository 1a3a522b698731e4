"""The same network as older scripts write it, to measure against.

Both formulations share the weights' names, order and shapes with ours, so that the
three can start from the same weights and must end at the same losses.
"""

import keras
from keras import ops

from capsulelayers import CapsuleLayer, PrimaryCap, dynamic_routing, squash


class TiledCapsuleLayer(CapsuleLayer):
    """Dynamic routing with tiled input capsules, multiplied image by image."""

    def call(self, inputs):
        # (batch, in, d) -> (batch, num, in, d, 1), a copy for each output capsule
        tiled = ops.tile(inputs[:, None, :, :, None], (1, self.num_capsule, 1, 1, 1))
        # (batch, num, in, dim, 1) -> (batch, num, in, dim)
        u_hat = ops.map(lambda u: ops.matmul(self.W, u), tiled)[..., 0]
        # One image's W @ u tells the shape; the batch stays unknown.
        logits = ops.zeros_like(u_hat[..., 0])[:, :, None]
        for i in range(self.routings):
            c = ops.softmax(logits, axis=1)  # (batch, num, 1, in)
            v = squash(ops.matmul(c, u_hat))  # (batch, num, 1, dim)
            if i < self.routings - 1:
                logits = logits + ops.matmul(v, ops.swapaxes(u_hat, 2, 3))
        return v[:, :, 0]


class EinsumCapsuleLayer(CapsuleLayer):
    """Dynamic routing with predictions from one einsum."""

    def call(self, inputs):
        u_hat = ops.einsum("bid,jied->bjie", inputs, self.W)
        return dynamic_routing(u_hat, self.routings)


def rebuild(
    model: keras.Model, method: str, capsule_layer: type = CapsuleLayer
) -> keras.Model:
    """Builds a network again with other layers, and copies its weights.

    Args:
        model: A model of `capsulenet.CapsNet`.
        method: How `PrimaryCap` computes its convolution.
        capsule_layer: Takes the place of `CapsuleLayer`.

    Returns:
        A model that computes the same.
    """

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, PrimaryCap):
            return PrimaryCap.from_config({**config, "method": method})
        if isinstance(layer, CapsuleLayer):
            return capsule_layer.from_config(config)
        return type(layer).from_config(config)

    other = keras.models.clone_model(model, clone_function=clone)
    other.set_weights(model.get_weights())
    return other

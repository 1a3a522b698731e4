"""The sizes and initial values of a CapsNet, and what they cost."""

import dataclasses
import math

import keras


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The layers of `capsulenet.CapsNet`; the defaults are the paper's (section 4).

    Attributes:
        filters: Channels of the first convolution.
        kernel_size: Height and width of the first convolution's kernel.
        primary_kernel_size: Height and width of the primary capsules' kernel.
        strides: Of the primary capsules' convolution.
        primary_types: Types of primary capsules, one of each at every place.
        primary_dim: Elements of a primary capsule.
        class_dim: Elements of a class capsule.
        decoder: Widths of the decoder's hidden layers; or None for no decoder; or a
            layer or model of one's own, from (batch, n_class * class_dim) to images.
        transformation_stddev: Standard deviation of the transformation matrices at the
            start.
        truncated_normal: Whether kernels start from truncated normal distributions as
            in the code that the paper's authors released, instead of Keras's defaults.
        bias: Of all layers at the start; 0.1 in the released code.
        routing_bias: Whether there is one inside the routing, as in the released code.
        primary_scale: Factor of the primary capsules' convolution; one over their 32
            types in the released code.
    """

    filters: int = 256
    kernel_size: int = 9
    primary_kernel_size: int = 9
    strides: int = 2
    primary_types: int = 32
    primary_dim: int = 8
    class_dim: int = 16
    decoder: tuple[int, ...] | keras.layers.Layer | None = (512, 1024)
    transformation_stddev: float = 0.1
    truncated_normal: bool = False
    bias: float = 0.0
    routing_bias: bool = False
    primary_scale: float = 1.0

    @property
    def least_side(self) -> int:
        """Height and width of the smallest images that both convolutions fit into."""
        return self.kernel_size + self.primary_kernel_size - 1

    def primary_capsules(self, input_shape: tuple[int, int, int]) -> int:
        """Number of primary capsules of an image; none if it is too small."""
        places = math.prod(
            max(0, (side - self.least_side) // self.strides + 1)
            for side in input_shape[:2]
        )
        return self.primary_types * places

    def least_weights(self, input_shape: tuple[int, int, int], n_class: int) -> int:
        """Weights of the two layers that grow with the images and the classes."""
        transformations = self.primary_dim * self.class_dim * n_class
        return self.primary_capsules(input_shape) * transformations + self.decoder[
            -1
        ] * math.prod(input_shape)

    def least_memory(
        self,
        input_shape: tuple[int, int, int],
        n_class: int,
        routings: int,
        batch_size: int,
    ) -> int:
        """Bytes that a training step cannot do without: weights, and what layers keep.

        Args:
            input_shape: Height, width and channels of the images.
            n_class: Number of classes.
            routings: Rounds of dynamic routing.
            batch_size: Images in a step.
        """
        places = math.prod(side - self.kernel_size + 1 for side in input_shape[:2])
        capsules = self.primary_capsules(input_shape)
        # Each round but the first keeps two tensors of this size, for the gradient.
        routing = 2 * (routings - 1) * capsules * n_class * self.primary_dim
        # Weights come with a gradient and two moments; the first convolution and the
        # transform of the primary capsules are kept, with their gradients.
        weights = 4 * self.least_weights(input_shape, n_class)
        return 4 * (weights + batch_size * (4 * places * self.filters + routing))


PAPER = Architecture()

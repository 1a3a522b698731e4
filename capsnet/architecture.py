"""The sizes and initial values of a CapsNet, what they cost, and what it then sees."""

import dataclasses
import math

import keras

from capsnet import fft_conv


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The layers of `capsulenet.CapsNet`; the defaults are the paper's (section 4).

    Attributes:
        convolutions: Channels, kernel size and stride of each convolution before the
            primary capsules.
        padding: Of these convolutions, "valid" or "same".
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

    convolutions: tuple[tuple[int, int, int], ...] = ((256, 9, 1),)
    padding: str = "valid"
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
        """Height and width of the smallest images that all kernels fit into."""
        side = self.primary_kernel_size
        for _, kernel_size, strides in reversed(self.convolutions):
            side = strides * (side - 1) + (1 if self.padding == "same" else kernel_size)
        return side

    def feature_maps(
        self, input_shape: tuple[int, int, int]
    ) -> list[tuple[int, int, int]]:
        """Height, width and channels of what each convolution returns."""
        maps, sides = [], input_shape[:2]
        for filters, kernel_size, strides in self.convolutions:
            lost = 0 if self.padding == "same" else kernel_size - 1
            sides = [max(0, math.ceil((side - lost) / strides)) for side in sides]
            maps.append((*sides, filters))
        return maps

    def primary_capsules(self, input_shape: tuple[int, int, int]) -> int:
        """Number of primary capsules of an image; none if it is too small."""
        places = math.prod(
            max(0, (side - self.primary_kernel_size) // self.strides + 1)
            for side in self.feature_maps(input_shape)[-1][:2]
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
        features = sum(map(math.prod, self.feature_maps(input_shape)))
        capsules = self.primary_capsules(input_shape)
        # Each round but the first keeps two tensors of this size, for the gradient.
        routing = 2 * (routings - 1) * capsules * n_class * self.primary_dim
        # Weights come with a gradient and two moments, and features with a gradient.
        weights = 4 * self.least_weights(input_shape, n_class)
        return 4 * (weights + batch_size * (2 * features + routing))


PAPER = Architecture()
ARCHITECTURES = {
    "paper": PAPER,
    # The code that the authors released.
    "released": Architecture(
        truncated_normal=True, bias=0.1, routing_bias=True, primary_scale=1 / 32
    ),
    # Small kernels, a deeper network: for pictures, of which there may be few.
    "pictures": Architecture(
        convolutions=((64, 3, 1), (64, 3, 2), (128, 3, 1), (128, 3, 2)),
        padding="same",
        primary_kernel_size=3,
        strides=1,
        primary_types=16,
    ),
}


def convolutions(model: keras.Model) -> list[keras.layers.Conv2D]:
    """The convolutions of a CapsNet in their order; the last one makes its capsules."""
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def margins(layer: keras.layers.Conv2D) -> list[tuple[int, int]]:
    """Zeros before and after the features of a convolution, for height and width."""
    if layer.padding == "valid":
        return [(0, 0), (0, 0)]
    along = zip(layer.input.shape[1:3], layer.kernel_size, layer.strides)
    return [fft_conv.same_padding(*sizes) for sizes in along]


@dataclasses.dataclass
class Fields:
    """The pixels that the places of the primary capsules see, along one axis.

    Attributes:
        places: How many there are.
        start: Of the first one's field; negative if that reaches over the edge.
        strides: From one place to the next.
        size: Of each field.
    """

    places: int
    start: int = 0
    strides: int = 1
    size: int = 1


def fields(model: keras.Model) -> tuple[Fields, Fields]:
    """What the primary capsules of a CapsNet see, along height and width."""
    height, width = model.input_shape[1:3]
    seen = Fields(height), Fields(width)
    for layer in convolutions(model):
        along = zip(seen, margins(layer), layer.kernel_size, layer.strides)
        for axis, (before, after), kernel_size, strides in along:
            padded = before + axis.places + after
            axis.places = fft_conv.output_size(padded, kernel_size, strides)
            axis.start -= before * axis.strides
            axis.size += (kernel_size - 1) * axis.strides
            axis.strides *= strides
    return seen

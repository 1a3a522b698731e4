"""The sizes and initial values of a CapsNet, and what they cost."""

import dataclasses
import itertools
import math

import keras

from capsnet.errors import check_sizes


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
        kernel_initializer: Keras's name of what the kernels of convolutions and of the
            decoder start from.
        transformation_stddev: Standard deviation of the transformation matrices at the
            start.

    Raises:
        ValueError: If a size is none.
    """

    convolutions: tuple[tuple[int, int, int], ...] = ((256, 9, 1),)
    padding: str = "valid"
    primary_kernel_size: int = 9
    strides: int = 2
    primary_types: int = 32
    primary_dim: int = 8
    class_dim: int = 16
    decoder: tuple[int, ...] | keras.layers.Layer | None = (512, 1024)
    kernel_initializer: str = "glorot_uniform"
    transformation_stddev: float = 0.1

    def __post_init__(self):
        names = ("primary_kernel_size", "strides", "primary_types", "primary_dim")
        check_sizes(**{name: getattr(self, name) for name in (*names, "class_dim")})
        if not self.convolutions or any(len(sizes) != 3 for sizes in self.convolutions):
            raise ValueError(
                "Expected convolutions of channels, kernel size and stride, one or "
                f"more; received convolutions={self.convolutions!r}."
            )
        for channels, kernel_size, strides in self.convolutions:
            check_sizes(channels=channels, kernel_size=kernel_size, strides=strides)
        if isinstance(self.decoder, (tuple, list)):
            for width in self.decoder:
                check_sizes(decoder=width)
        elif not (self.decoder is None or isinstance(self.decoder, keras.layers.Layer)):
            raise ValueError(
                "Expected decoder to be widths of layers, a layer or None; received "
                f"decoder={self.decoder!r}."
            )

    @property
    def least_side(self) -> int:
        """Height and width of the smallest images that all kernels fit into."""
        return next(n for n in itertools.count(1) if self.primary_capsules((n, n, 1)))

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
        *others, last = map(math.prod, self.feature_maps(input_shape))
        capsules = self.primary_capsules(input_shape)
        # Each round but the first keeps two tensors of this size, for the gradient.
        routing = 2 * (routings - 1) * capsules * n_class * self.primary_dim
        # Weights come with a gradient and two moments, features with a gradient. Those
        # that the primary capsules are made of are kept again, transformed.
        weights = 4 * self.least_weights(input_shape, n_class)
        features = 2 * sum(others) + 4 * last
        return 4 * (weights + batch_size * (features + routing))


PAPER = Architecture()
ARCHITECTURES = {
    "paper": PAPER,
    # The paper's layers from other initial weights: Glorot's distribution makes the
    # first features 11 times fainter; larger matrices begin with random predictions.
    "modern": Architecture(
        kernel_initializer="lecun_normal", transformation_stddev=0.01
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

"""What the convolutions of a CapsNet let its primary capsules see."""

import dataclasses

import keras

from capsnet import fft_conv


def convolution_layers(model: keras.Model) -> list[keras.layers.Conv2D]:
    """The convolutions of a CapsNet in their order; the last one makes its capsules."""
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def margins(layer: keras.layers.Conv2D) -> list[tuple[int, int]]:
    """Zeros before and after the features of a convolution, for height and width."""
    sizes = layer.input.shape[1:3], layer.kernel_size, layer.strides
    return fft_conv.margins(layer.padding, *sizes)


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
    for layer in convolution_layers(model):
        along = zip(seen, margins(layer), layer.kernel_size, layer.strides)
        for axis, (before, after), kernel_size, strides in along:
            padded = before + axis.places + after
            axis.places = fft_conv.output_size(padded, kernel_size, strides)
            axis.start -= before * axis.strides
            axis.size += (kernel_size - 1) * axis.strides
            axis.strides *= strides
    return seen

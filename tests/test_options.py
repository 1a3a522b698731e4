"""Options: values that check themselves, and a training without a command line."""

import math

import numpy as np
import pytest
from conftest import read_log

import capsulenet
from capsnet.architecture import ARCHITECTURES, PAPER, Architecture
from capsnet.datasets import Dataset
from capsnet.errors import UsageError
from capsnet.fields import convolution_layers
from capsnet.options import Options, Training
from capsnet.predict import predict
from capsnet.run_folder import RunFolder


def test_a_weight_of_zero_is_not_the_one_that_the_size_of_the_images_asks_for():
    assert Training(lam_recon=0.0).reconstruction_weight((28, 28, 1)) == 0


def test_sizes_are_those_of_the_model():
    other = Architecture(((16, 5, 1),), strides=3, primary_types=4, class_dim=6)
    for sizes, shape in (
        (PAPER, (28, 30, 3)),
        (other, (28, 30, 3)),
        (PAPER, (17, 17, 1)),
        (ARCHITECTURES["pictures"], (29, 34, 3)),
        (ARCHITECTURES["pictures"], (9, 9, 1)),
    ):
        model = capsulenet.CapsNet(shape, 5, architecture=sizes)[0]
        _, capsules, dim = model.get_layer("primarycaps").output.shape
        maps = [layer.output.shape[1:] for layer in convolution_layers(model)[:-1]]
        assert sizes.feature_maps(shape) == maps
        assert (capsules, dim) == (sizes.primary_capsules(shape), sizes.primary_dim)
        assert model.get_layer("digitcaps").output.shape[1:] == (5, sizes.class_dim)
        grows = [model.get_layer("digitcaps").W, model.get_layer("decoder").weights[-2]]
        assert sizes.least_weights(shape, 5) == sum(math.prod(w.shape) for w in grows)
    for sizes, side in ((other, 13), (ARCHITECTURES["pictures"], 9)):
        with pytest.raises(UsageError, match=f"at least {side} x {side} pixels"):
            capsulenet.CapsNet((side - 1, 28, 1), 5, architecture=sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"primary_types": 0}, "primary_types to be a positive integer"),
        ({"primary_kernel_size": (3, 3)}, "received primary_kernel_size=.3, 3."),
        ({"strides": 0}, "received strides=0"),
        ({"convolutions": ()}, "convolutions of channels, kernel size and stride"),
        ({"convolutions": [(64, 9)]}, "received convolutions=..64, 9.."),
        ({"convolutions": [(64, 9, 0)]}, "received strides=0"),
        ({"decoder": 256}, "widths of layers, a layer or None; received decoder=256"),
        ({"decoder": [0]}, "received decoder=0"),
        ({"n_class": 0}, "received n_class=0"),
        ({"objects": 0}, "received objects=0"),
        ({"routings": 0}, "received routings=0"),
    ],
)
def test_sizes_that_are_none(sizes, message):
    with pytest.raises(ValueError, match=message):
        capsulenet.CapsNet(**{"input_shape": (28, 28, 1), "n_class": 3, **sizes})


def test_sizes_may_be_lists():
    sizes = {"convolutions": [[8, 9, 1]], "decoder": [12], "primary_types": 2}
    model = capsulenet.CapsNet((17, 17, 1), 3, **sizes)[0]
    widths = [layer.units for layer in model.get_layer("decoder").layers[:2]]
    assert widths == [12, 289]


def test_a_training_without_a_command_line(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((40, 17, 17, 1), "float32")
    y = np.eye(2, dtype="float32")[np.arange(40) % 2]
    data = Dataset((x[:30], y[:30]), (x[30:], y[30:]), ["even", "odd"], "noise")
    train_model, eval_model, _ = capsulenet.CapsNet((17, 17, 1), 2)
    folder = RunFolder(str(tmp_path))
    training = Training(epochs=2, batch_size=10, validation_size=10)
    options = Options(folder, training=training)
    assert capsulenet.train(train_model, data, options) is train_model
    assert folder.finished == len(read_log(tmp_path)) == 2
    lengths, reconstructions = predict(eval_model, [x], batch_size=7)
    assert lengths.shape == (40, 2) and reconstructions.shape == x.shape
    assert capsulenet.test(eval_model, data, options) == np.mean(
        lengths[30:].argmax(axis=1) == y[30:].argmax(axis=1)
    )

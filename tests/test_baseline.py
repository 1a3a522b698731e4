"""experiments/baseline.py: the paper's convolutional network, and its training."""

from functools import partial

import numpy as np
import pytest
from conftest import assert_same_run, read_log, refuse, run_here, write_digits

import capsulenet
from capsnet.batches import ShiftedBatches
from experiments import baseline, multimnist

POOLED = partial(baseline.Baseline, pooled=True)
main = partial(run_here, baseline)


def flags(digits, save_dir):
    sizes = ("--batch_size", 8, "--data_dir", digits)
    return (*sizes, "--save_dir", save_dir)


def test_the_baseline_has_the_weights_of_the_paper():
    model = baseline.Baseline((28, 28, 1), 10)
    assert round(model.count_params() / 1e6, 1) == 35.4
    shapes = [layer.output.shape[1:] for layer in model.layers]
    same = [(28, 28, 256), (28, 28, 256), (28, 28, 128)]  # nothing is pooled
    assert shapes[:3] == same
    assert shapes[4:6] == [(328,), (192,)]


@pytest.mark.parametrize("network", [baseline.Baseline, POOLED, multimnist.Baseline])
def test_networks_are_channels_last_whatever_keras_json_says(network, channels_first):
    layers = network((8, 8, 1), 10).layers
    formats = [one.data_format for one in layers if hasattr(one, "data_format")]
    assert len(formats) > 3 and set(formats) == {"channels_last"}


@pytest.mark.parametrize(("shape", "n_class"), [((12, 9, 3), 2), ((8, 8, 1), 47)])
def test_any_images_and_classes(shape, n_class):
    model = baseline.Baseline(shape, n_class)
    x = np.random.default_rng(0).random((3, *shape), "float32")
    probabilities = model.predict(x, verbose=0)
    assert probabilities.shape == (3, n_class)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_it_sees_the_images_that_a_capsnet_sees():
    x = np.random.default_rng(0).random((10, 28, 28, 1), "float32")
    y = np.eye(10, dtype="float32")
    ours = baseline.Batches(x, y, 4, seed=3)[1]
    (images, labels), _ = ShiftedBatches(x, y, 4, seed=3)[1]
    np.testing.assert_array_equal(ours[0], images)
    np.testing.assert_array_equal(ours[1], labels)


@pytest.mark.slow
def test_a_run_and_its_resumption(mnist, tmp_path, capsys):
    # Dropout draws numbers too: they are part of what a run goes on with.
    digits = write_digits(tmp_path / "digits", mnist, n_train=16, n_test=8)
    small = ("--image_size", 17, 17)
    assert main(*flags(digits, tmp_path / "parts"), *small, "--epochs", 1) == 0
    assert "Training: baseline CNN, " in capsys.readouterr().out
    resume = ("--resume", "--epochs", 2, "--save_dir", tmp_path / "parts")
    assert main(*resume) == 0
    assert main(*flags(digits, tmp_path / "whole"), *small, "--epochs", 2) == 0

    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    rows = read_log(tmp_path / "whole")
    assert list(rows[0])[4:] == ["loss", "accuracy", "test_loss", "test_accuracy"]

    capsys.readouterr()
    model = ("-w", tmp_path / "whole" / "trained_model.h5")
    assert main("-t", *model, "--data_dir", digits) == 0
    error = 100 * (1 - float(rows[-1]["test_accuracy"]))
    assert f"Test error: {error:.2f} %" in capsys.readouterr().out
    # A CapsNet does not take them.
    flags_of_test = ["-t", "--digit", "7", "--data_dir", str(digits)]
    assert capsulenet.main([*flags_of_test, *map(str, model)]) == 2
    assert "expected 4 layers with weights" in capsys.readouterr().err


def test_several_classes_an_image_are_refused(tmp_path, capsys):
    x = np.random.default_rng(0).random((8, 17, 17, 1), "float32")
    y = np.tile([[1, 1, 0], [0, 1, 0]], (4, 1))
    path = tmp_path / "several.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    flags = ("--dataset", path, "--save_dir", tmp_path / "run")
    assert "expected one class an image" in refuse(capsys, *flags, main=main)

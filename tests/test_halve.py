"""experiments/halve.py: model files of half the size."""

import os

import h5py
import keras
import numpy as np
import pytest
from conftest import error_line

from capsnet.weights import load_weights, read_info, save_model
from experiments import halve

INFO = {"input_shape": [4, 4, 1], "class_names": ["a", "b"]}


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(300, name="wide"), keras.layers.Dense(2, name="last")]
    return keras.Sequential([keras.Input((500,)), *layers])


def test_a_halved_file_is_read_as_the_whole_one(model, tmp_path, capsys):
    source, target = (str(tmp_path / name) for name in ("whole.h5", "half.h5"))
    save_model(model, source, INFO)
    expected = [weight.astype("float16") for weight in model.get_weights()]
    assert halve.main([source, target]) == 0
    assert capsys.readouterr().out.startswith(f"Wrote {target}, 0.3 MB")
    assert os.path.getsize(target) < 0.52 * os.path.getsize(source)
    assert read_info(target) == read_info(source)
    for read in (
        lambda: load_weights(model, target),
        lambda: model.load_weights(target),
    ):
        model.set_weights([np.zeros_like(weight) for weight in expected])
        read()
        for weight, half in zip(model.get_weights(), expected):
            assert weight.dtype == "float32"
            np.testing.assert_array_equal(weight, half.astype("float32"))


def test_what_cannot_be_halved_is_refused(model, tmp_path, capsys):
    source, target = (str(tmp_path / name) for name in ("whole.h5", "half.h5"))
    weights = model.get_weights()
    weights[0][0, 0] = 1e5
    model.set_weights(weights)
    save_model(model, source, INFO)
    assert halve.main([source, target]) == 2
    assert "expected numbers below 65504 in wide/" in capsys.readouterr().err
    with h5py.File(source, "w") as file:
        file["x"] = np.zeros(3, "float32")
    for path, message in (
        (source, "expected a model file of this code"),
        (str(tmp_path / "none.h5"), "No such file"),
    ):
        assert halve.main([path, target]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["whole.h5"]


def test_no_file_is_replaced(tmp_path, capsys):
    model = tmp_path / "model.h5"
    model.write_bytes(b"a day's work")
    for target in (model, tmp_path / "no_folder" / "half.h5"):
        assert halve.main([str(model), str(target)]) == 2
        message = error_line(capsys.readouterr().err)
        expected = "NEW_FILE: expected the name of a new file in a folder that is there"
        assert message == f"{expected}, received {target}"
    assert model.read_bytes() == b"a day's work"

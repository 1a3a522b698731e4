"""The training loop: moving averages, and what is kept of them."""

import threading

import keras
import numpy as np
import pytest
from conftest import a_run, read_log, read_weights, without_times
from keras import ops

import capsulenet
from capsnet import backend, callbacks
from capsnet.callbacks import averaged
from capsnet.interrupts import Interrupted
from capsnet.predict import predict
from capsnet.weights import load_weights


def weights_of(model):
    return [ops.convert_to_numpy(weight) for weight in model.trainable_variables]


# Moving averages


def small_run(folder, digits, *flags):
    """A run of the command line on a few digits; returns its log and its weights."""
    sizes = ["--train_size", "60", "--batch_size", "20", "--data_dir", str(digits)]
    flags = [*sizes, "--save_dir", str(folder), *map(str, flags)]
    assert capsulenet.main(flags) == 0
    rows = without_times(read_log(folder))
    model = capsulenet.CapsNet((28, 28, 1), 10)[0]
    load_weights(model, str(folder / "trained_model.h5"))
    return rows, weights_of(model)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_averages_are_what_is_evaluated_and_a_run_goes_on_with_them(digits, tmp_path):
    whole = small_run(tmp_path / "whole", digits, "--epochs", 2, "--ema", 0.9)
    half = small_run(tmp_path / "parts", digits, "--epochs", 1, "--ema", 0.9)
    flags = ["--resume", "--epochs", "2", "--save_dir", str(tmp_path / "parts")]
    rest = small_run(tmp_path / "parts", digits, *flags[:3])
    for one, other in zip(whole[1], rest[1]):
        np.testing.assert_array_equal(one, other)
    assert whole[0] == rest[0]
    # What the log says of the first epoch is what the file of that epoch gives.
    assert half[0][0]["test_loss"] == whole[0][0]["test_loss"]
    model = capsulenet.CapsNet((28, 28, 1), 10)[1]
    for variable, value in zip(model.trainable_variables, half[1]):
        variable.assign(value)
    data = capsulenet.datasets.load_dataset(data_dir=str(digits))
    lengths, _ = predict(model, [data.test[0]], batch_size=20)
    accuracy = np.mean(lengths.argmax(axis=1) == data.test[1].argmax(axis=1))
    assert float(half[0][0]["test_accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    # A run state is a model file, too, with what its log is of.
    state = tmp_path / "parts" / "run_state.h5"
    model = capsulenet.CapsNet((28, 28, 1), 10)[0]
    load_weights(model, str(state))
    for weight, value in zip(weights_of(model), whole[1]):
        np.testing.assert_array_equal(weight, value)
    # The weights that were trained, which the average lags behind, lie beside it.
    arrays = read_weights(state)
    for i, average in enumerate(model.get_weights()):
        assert np.abs(arrays[f"trained/{i}"] - average).max() > 1e-5


def test_averaged_gives_the_weights_back_bit_for_bit():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(backend.adam(0.1, use_ema=True, ema_momentum=0.7), "mse")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    steps = []
    for _ in range(30):
        model.train_on_batch(x, x[:, :2])
        steps.append(weights_of(model))
    expected = steps[0]  # the first step's; then the factor grows, up to 0.7
    for i, step in enumerate(steps):
        factor = min(0.7, i / (i + 10))
        expected = [factor * a + (1 - factor) * b for a, b in zip(expected, step)]
    with averaged(model):
        for average, value in zip(weights_of(model), expected):
            np.testing.assert_allclose(average, value, rtol=1e-5)
    for weight, value in zip(weights_of(model), steps[-1]):
        np.testing.assert_array_equal(weight, value)


def test_the_goal_is_one_of_the_validation_set():
    def reached(stop_at, accuracy):
        others = {"accuracy": 1 - accuracy, "test_accuracy": 1 - accuracy}
        return a_run([{"val_accuracy": accuracy, **others}]).reached(stop_at)

    assert reached(0.9, 0.9) and reached(0.9, 0.95)
    assert not reached(0.9, 0.8999) and not reached(0.9, 0.05)
    assert not reached(None, 1.0)


def test_patience_counts_the_epochs_since_the_best():
    rows = [{"val_accuracy": accuracy} for accuracy in (0.5, 0.8, 0.7, 0.8)]
    run = a_run(rows, best_epoch=2)
    assert run.reached(None, patience=2) and not run.reached(None, patience=3)
    assert run.reached(0.8, patience=9) and not run.reached(0.9, patience=9)
    assert not a_run().reached(0.5, patience=1)


@pytest.mark.slow
def test_a_step_waits_for_the_losses_of_the_one_before_only_on_tensorflow(
    monkeypatch, digits, tmp_path
):
    # Keras gives losses to other threads if all callbacks, and the backend, allow it.
    waits = keras.backend.backend() == "tensorflow"
    second_step, read = threading.Event(), threading.Event()

    class StopOnNaN(callbacks.StopOnNaN):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                second_step.set()
            if batch == 2:
                assert read.wait(60)
                raise Interrupted(2)

        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:  # as if the losses were late
                assert second_step.wait(1 if waits else 60) != waits
                read.set()

    monkeypatch.setattr(callbacks, "StopOnNaN", StopOnNaN)
    flags = ["--batch_size", "10", "--data_dir", digits, "--save_dir", tmp_path]
    assert capsulenet.main([*map(str, flags)]) == 130


def test_the_first_step_whose_loss_is_no_number_is_named():
    stop = callbacks.StopOnNaN(a_run())
    stop.on_epoch_begin(2)
    for batch in (0, 3, 2):  # threads may come late
        loss = 0.5 if batch < 2 else float("nan")
        stop.on_train_batch_end(batch, {"loss": loss})
    with pytest.raises(callbacks.DivergedError, match="in epoch 3, step 3"):
        stop.on_train_batch_begin(4)
    with pytest.raises(callbacks.DivergedError, match="in epoch 3, step 3"):
        stop.on_epoch_end(2)


@pytest.mark.parametrize(
    ("stuck", "epoch", "steps", "ends"),
    [(True, 1, 500, True), (True, 1, 499, False), (True, 0, 900, False)]
    + [(False, 9, 900, False)],
)
def test_a_network_that_learns_nothing_is_given_up(stuck, epoch, steps, ends):
    stop = callbacks.StopEarly(a_run([{}] * (epoch + 1), stuck=stuck))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(backend.adam(0.1), "mse")
    model.optimizer.iterations.assign(steps)
    stop.set_model(model)
    if not ends:
        stop.on_epoch_end(epoch)
        return
    expected = r"after epoch 2: .* try a lower learning rate, --lr 0\.0003; .* in run"
    with pytest.raises(callbacks.DivergedError, match=expected):
        stop.on_epoch_end(epoch)

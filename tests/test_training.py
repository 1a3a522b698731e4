"""The training loop: recipes, moving averages, and what is kept of them."""

import threading
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import read_log, without_times
from keras import ops

import capsulenet
from capsnet import backend, command_line, saving, training


def parse(*flags):
    return capsulenet.build_parser().parse_args([str(flag) for flag in flags])


def weights_of(model):
    return [ops.convert_to_numpy(weight) for weight in model.trainable_variables]


# Recipes


def test_the_recipe_of_the_paper_has_its_weights():
    keras.utils.set_random_seed(0)
    model = capsulenet.CapsNet((28, 28, 1), 10, recipe="paper")[0]
    by_name = {weight.path: ops.convert_to_numpy(weight) for weight in model.weights}
    biases = [w for path, w in by_name.items() if path.endswith("bias")]
    assert len(biases) == 6  # conv1, primary and class capsules, three of the decoder
    for bias in biases:
        np.testing.assert_array_equal(bias, np.full(bias.shape, np.float32(0.1)))
    kernels = [w for path, w in by_name.items() if not path.endswith("bias")]
    # Cut at two standard deviations, a normal distribution keeps 0.88 of its own. With
    # PyTorch, Keras draws four times at most, and a few numbers stay outside.
    for kernel, stddev in zip(kernels, (0.05, 0.1, 0.1, 0.1, 0.1, 0.1), strict=True):
        assert kernel.std() == pytest.approx(0.88 * stddev, rel=0.02)
        assert np.mean(np.abs(kernel) > 2 * stddev + 1e-6) < 2e-5
    assert model.get_layer("primarycaps").scale == 1 / 32


def test_layers_of_one_shape_start_from_different_numbers():
    model = capsulenet.CapsNet((28, 28, 1), 10, recipe="paper")[0]
    kernels = [w for w in model.weights if not w.path.endswith("bias")]
    first = [ops.convert_to_numpy(kernel).ravel()[:10] for kernel in kernels]
    ratios = [tuple(np.round(numbers / numbers[0], 3)) for numbers in first]
    assert len(set(ratios)) == len(ratios) == 6


def test_the_recipes_settle_what_is_not_said(monkeypatch, tmp_path):
    def settle(*flags):
        args = parse("--save_dir", tmp_path / "new", *flags)
        command_line.check_arguments(args)
        return args.epochs, args.lr_decay

    assert settle() == (50, 0.9)
    assert settle("--recipe", "paper") == (640, 0.96)
    assert settle("--recipe", "paper", "--epochs", 3, "--lr_decay", 0.5) == (3, 0.5)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-3), (1000, 1e-3 * 0.96**0.5), (2000, 0.96e-3), (10**6, 1e-6)],
)
def test_the_learning_rate_of_the_paper_falls_continuously_to_its_floor(step, rate):
    args = parse("--recipe", "paper", "--lr_decay", 0.96)
    schedule = training.make_optimizer(args)._learning_rate
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


# Moving averages


def small_run(folder, digits, *flags):
    """A run of the command line on a few digits; returns its log and its weights."""
    sizes = ["--train_size", "60", "--batch_size", "20", "--data_dir", str(digits)]
    flags = [*sizes, "--save_dir", str(folder), *map(str, flags)]
    assert capsulenet.main(flags) == 0
    rows = without_times(read_log(folder))
    model = capsulenet.CapsNet((28, 28, 1), 10)[0]
    saving.load_weights(model, str(folder / "trained_model.h5"))
    return rows, weights_of(model)


@pytest.mark.slow
def test_the_moving_average_is_what_is_saved(digits, tmp_path):
    # With a factor of 0 the average of a step is its weights; with one near to 1 it is
    # the first step's, from which the second one differs.
    _, plain = small_run(tmp_path / "plain", digits, "--epochs", 1)
    _, same = small_run(tmp_path / "same", digits, "--epochs", 1, "--ema", 0)
    _, other = small_run(tmp_path / "other", digits, "--epochs", 1, "--ema", 0.9)
    for one, two, three in zip(plain, same, other):
        np.testing.assert_array_equal(one, two)
        assert np.abs(one - three).max() > 1e-5


@pytest.mark.slow
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
    args = parse("--batch_size", 20)
    lengths, _ = training.predict(model, [data.test[0]], args)
    accuracy = np.mean(lengths.argmax(axis=1) == data.test[1].argmax(axis=1))
    assert float(half[0][0]["test_accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    # A run state is a model file, too, with what its log is of.
    model = capsulenet.CapsNet((28, 28, 1), 10)[0]
    saving.load_weights(model, str(tmp_path / "parts" / "run_state.h5"))
    for weight, value in zip(weights_of(model), whole[1]):
        np.testing.assert_array_equal(weight, value)


def test_averaged_gives_the_weights_back_bit_for_bit():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(backend.adam(0.1, use_ema=True, ema_momentum=0.7), "mse")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    steps = []
    for _ in range(3):
        model.train_on_batch(x, x[:, :2])
        steps.append(weights_of(model))
    expected = steps[0]  # Procedure: the first step's, then 0.7 of it, and so on
    for step in steps[1:]:
        expected = [0.7 * a + 0.3 * b for a, b in zip(expected, step)]
    with training.averaged(model):
        for average, value in zip(weights_of(model), expected):
            np.testing.assert_allclose(average, value, rtol=1e-5)
    for weight, value in zip(weights_of(model), steps[-1]):
        np.testing.assert_array_equal(weight, value)


def test_without_a_moving_average_nothing_changes():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(backend.adam(0.1), "mse")
    before = weights_of(model)
    with training.averaged(model):
        for weight, value in zip(weights_of(model), before):
            np.testing.assert_array_equal(weight, value)


def test_the_goal_is_one_of_the_validation_set():
    def reached(stop_at, accuracy):
        log = training.EpochLog.__new__(training.EpochLog)
        log.stop_at = stop_at
        others = {"accuracy": 1 - accuracy, "test_accuracy": 1 - accuracy}
        log.rows = [{"val_accuracy": accuracy, **others}]
        return log.reached_goal()

    assert reached(0.9, 0.9) and reached(0.9, 0.95)
    assert not reached(0.9, 0.8999) and not reached(0.9, 0.05)
    assert not reached(None, 1.0)


def test_a_step_waits_for_the_losses_of_the_one_before_only_on_tensorflow(
    monkeypatch, digits, tmp_path
):
    # Keras gives losses to other threads if all callbacks, and the backend, allow it.
    waits = keras.backend.backend() == "tensorflow"
    second_step, read = threading.Event(), threading.Event()

    class StopOnNaN(training.StopOnNaN):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                second_step.set()
            if batch == 2:
                assert read.wait(60)
                raise training.Interrupted(2)

        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:  # as if the losses were late
                assert second_step.wait(1 if waits else 60) != waits
                read.set()

    monkeypatch.setattr(training, "StopOnNaN", StopOnNaN)
    flags = ["--batch_size", "10", "--data_dir", digits, "--save_dir", tmp_path]
    assert capsulenet.main([*map(str, flags)]) == 130


def test_the_first_step_whose_loss_is_no_number_is_named():
    log = SimpleNamespace(diverged=lambda *what: ValueError(*what))
    stop = training.StopOnNaN(log)
    stop.on_epoch_begin(2)
    for batch in (0, 3, 2):  # threads may come late
        loss = 0.5 if batch < 2 else float("nan")
        stop.on_train_batch_end(batch, {"loss": loss})
    with pytest.raises(ValueError, match="in epoch 3, step 3"):
        stop.on_train_batch_begin(4)
    with pytest.raises(ValueError, match="in epoch 3, step 3"):
        stop.on_epoch_end(2)

"""Recipes: learning rates over the steps, weights at the start, their study."""

import dataclasses

import keras
import numpy as np
import pytest
from conftest import read_log, read_rows
from keras import ops

import capsulenet
from capsnet import command_line
from capsnet.architecture import ARCHITECTURES
from capsnet.options import Training
from capsnet.recipes import RECIPES, WarmUp, make_schedule
from experiments import recipes


def test_recipes_settle_what_is_not_said(tmp_path):
    names = ("epochs", "lr", "lr_decay", "ema", "rotation", "shift_fraction")

    def settled(*flags):
        argv = ["--save_dir", str(tmp_path / "new"), *map(str, flags)]
        options, _ = command_line.read_options(capsulenet.build_parser(), argv)
        return tuple(getattr(options.training, name) for name in names)

    assert settled() == (50, 0.001, 0.9, 0, 0, 0.1)
    assert settled("--recipe", "modern") == (20, 0.003, None, 0.999, 10, 0.07)
    changed = ["--epochs", 3, "--lr_decay", 0.5, "--ema", 0, "--rotation", 0]
    assert settled("--recipe", "modern", *changed) == (3, 0.003, 0.5, 0, 0, 0.07)


def test_modern_grows_then_falls_to_zero_at_the_last_step():
    recipe = dataclasses.replace(RECIPES["modern"], epochs=5)
    schedule = make_schedule(recipe, steps_per_epoch=600)
    steps = np.arange(3001)
    grown = np.minimum(1, (steps + 1) / recipe.warmup)
    expected = recipe.lr * grown * (1 + np.cos(np.pi * steps / 3000)) / 2
    for step in (0, 1, 199, 200, 1500, 2999, 3000):
        rate = float(schedule(step))
        assert rate == pytest.approx(expected[step], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 1e-4), (9, 1e-3 * 0.9**0.09), (100, 0.9e-3), (150, 0.9e-3 * 0.9**0.5)],
)
def test_after_a_warmup_the_rate_falls_from_step_to_step(step, rate):
    schedule = make_schedule(Training(lr_decay=0.9, warmup=10), steps_per_epoch=100)
    assert float(schedule(step)) == pytest.approx(rate, rel=1e-5)


def test_a_schedule_is_saved_with_its_optimizer():
    schedule = make_schedule(Training(lr_decay=None, warmup=7, epochs=3), 10)
    optimizer = keras.optimizers.Adam(schedule)
    other = keras.optimizers.Adam.from_config(optimizer.get_config())._learning_rate
    assert isinstance(other, WarmUp)
    for step in (0, 3, 20):
        assert float(other(step)) == float(schedule(step))


# Weights at the start


def kernels_and_biases(architecture):
    keras.utils.set_random_seed(0)
    model = capsulenet.CapsNet((28, 28, 1), 10, architecture=architecture)[0]
    weights = {weight.path: ops.convert_to_numpy(weight) for weight in model.weights}
    biases = [w for path, w in weights.items() if path.endswith("bias")]
    return (
        model,
        [w for w in weights.values() if not any(w is b for b in biases)],
        biases,
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_two_layers_start_from_the_same_numbers(name):
    _, kernels, _ = kernels_and_biases(ARCHITECTURES[name])
    first = [kernel.ravel()[:10] for kernel in kernels]
    ratios = [tuple(np.round(numbers / numbers[0], 3)) for numbers in first]
    assert len(set(ratios)) == len(kernels) >= 6


def test_modern_keeps_the_variance_of_what_its_kernels_see():
    for name, stddev in (("paper", 0.1), ("modern", 0.01)):
        model, _, biases = kernels_and_biases(ARCHITECTURES[name])
        W = ops.convert_to_numpy(model.get_layer("digitcaps").W)
        assert W.std() == pytest.approx(stddev, rel=0.01)
        assert len(biases) == 5 and not any(bias.any() for bias in biases)
    for name, inputs in (("conv1", 9 * 9), ("primarycaps", 9 * 9 * 256)):
        kernel = ops.convert_to_numpy(model.get_layer(name).weights[0])
        assert kernel.std() == pytest.approx(inputs**-0.5, rel=0.02)


# The study of changes


def test_the_study_compares_finished_runs(tmp_path):
    def write(variant, seed, accuracy, margin_loss):
        folder = tmp_path / "2_epochs" / variant / str(seed)
        folder.mkdir(parents=True)
        values = f"accuracy,margin_loss\n{accuracy},{margin_loss}\n"
        (folder / "held_out.csv").write_text(values)

    write("modern", 0, 0.99, 0.01)
    write("modern", 1, 0.98, 0.02)
    write("strong", 0, 0.99, 0.02)
    (tmp_path / "2_epochs" / "no_average" / "0").mkdir(parents=True)  # begun
    flags = ["--table_only", "--epochs", "2", "--save_dir", str(tmp_path)]
    assert recipes.main(flags) == 0
    rows = read_rows(tmp_path / "2_epochs" / "recipes.csv")
    assert [row["variant"] for row in rows[:2]] == ["strong", "modern"]
    rows = {row["variant"]: row for row in rows}
    modern = rows["modern"]
    assert (modern["runs"], modern["error"], modern["error_std"]) == (
        "2",
        "1.5",
        "0.707",
    )
    assert modern["errors"] == "1.000 2.000"
    assert modern["margin_losses"] == "10.000 20.000"
    assert rows["no_average"]["runs"] == "0" and rows["no_average"]["error"] == ""
    text = (tmp_path / "2_epochs" / "recipes.md").read_text()
    assert (
        "| modern | the recipe `modern` as it is | 2 | 1.500 (0.707) | 15.000 (7.071) |"
        in text
    )
    assert "| no_average | no average of the weights | not run |  |  |" in text


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fading", "biases"])
def test_a_variant_is_trained_without_the_test_images(
    variant, mnist, monkeypatch, tmp_path, capsys
):
    x, y = mnist.train
    data, held_out = recipes.load_data()
    np.testing.assert_array_equal(data.train[0], x[:20_000])
    np.testing.assert_array_equal(held_out[0], x[20_000:])
    np.testing.assert_array_equal(data.test[0], x[20_000:21_000])
    data.train, data.test = (x[:40], y[:40]), (x[40:50], y[40:50])
    rest = x[50:80], y[50:80]
    monkeypatch.setattr(recipes, "load_data", lambda: (data, rest))
    flags = ["--variants", variant, "--seeds", "0", "--epochs", "2"]
    flags += ["--save_dir", str(tmp_path)]
    assert recipes.main(flags) == 0
    folder = tmp_path / "2_epochs" / variant / "0"
    assert len(read_log(folder)) == 2
    (measured,) = read_rows(folder / "held_out.csv")
    assert measured["images"] == "30" and 0 <= float(measured["accuracy"]) <= 1
    assert (tmp_path / "2_epochs" / "recipes.png").read_bytes().startswith(b"\x89PNG")
    assert recipes.main(flags) == 0
    assert f"2 epochs are in {folder}" in capsys.readouterr().out

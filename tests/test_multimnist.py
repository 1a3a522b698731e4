"""experiments/multimnist.py: pairs of digits, what they are measured by, and a run."""

import contextlib
from functools import partial

import keras
import numpy as np
import pytest
from conftest import assert_picture, read_log, refuse, run_here, write_digits
from keras import ops
from PIL import Image

import capsulenet
from capsnet import command_line, datasets, training
from capsnet.classify import draw_apart
from capsnet.options import Options, Training
from capsnet.predict import predict
from capsnet.run_folder import RunFolder
from capsnet.weights import read_info
from experiments import digits, multimnist
from experiments.multimnist import BaselinePairs, Pairs, both_right, one_right

N_CLASS = 4

main = partial(run_here, multimnist)


@pytest.fixture
def marked():
    """Padded images of one bright pixel, which says where they were moved to."""
    n = 40
    x = np.zeros((n, 36, 36, 1), "float32")
    x[:, 18, 18] = np.linspace(0.3, 1, n)[:, np.newaxis]  # and which one it is
    return x, np.eye(N_CLASS, dtype="float32")[np.arange(n) % N_CLASS]


def whole(pairs):
    """All batches of an epoch as one: images, labels, digits alone."""
    batches = [pairs[i] for i in range(len(pairs))]
    parts = [(*inputs, *targets) for inputs, targets in batches]
    return [np.concatenate(arrays) for arrays in zip(*parts)]


# The generator


def test_pairs_are_of_different_classes_and_use_each_digit_once(marked):
    x, y = marked
    images, first, second, both, alone = whole(Pairs(x, y, 16, 4 / 36))
    assert len(images) == len(x)
    assert (first.sum(axis=1) == 1).all() and (second.sum(axis=1) == 1).all()
    assert not (first * second).any()
    np.testing.assert_array_equal(both, first + second)
    brightest = alone[:, 0].max(axis=(1, 2, 3))
    np.testing.assert_array_equal(np.sort(brightest), np.sort(x.max(axis=(1, 2, 3))))
    # The labels are those of the digits that were drawn.
    known = x.max(axis=(1, 2, 3))
    for i, labels in enumerate((first, second)):
        brightest = alone[:, i].max(axis=(1, 2, 3))
        index = [int(np.argmin(np.abs(known - b))) for b in brightest]
        np.testing.assert_array_equal(labels, y[index])


def test_shifts_go_up_to_four_pixels_both_ways(marked):
    x, y = marked
    pairs = Pairs(x, y, 40, 4 / 36)
    seen = []
    for epoch in range(30):
        pairs.set_epoch(epoch)
        (_, _, _), (_, alone) = pairs[0]
        places = np.argwhere(alone[..., 0] > 0)[:, 2:]
        assert len(places) == 2 * len(x)  # nothing is moved out of the image
        seen.append(places - 18)
    seen = np.concatenate(seen)
    for axis in (0, 1):
        assert sorted(set(seen[:, axis])) == list(range(-4, 5))
    # The two digits of an image move on their own.
    assert abs(np.corrcoef(seen[0::2, 0], seen[1::2, 0])[0, 1]) < 0.1


def test_images_are_the_sum_cut_at_one(marked):
    x, y = marked
    x = np.minimum(x + 0.6, 1)  # so that sums exceed 1
    images, _, _, _, alone = whole(Pairs(x, y, 16, 4 / 36))
    np.testing.assert_array_equal(images, np.minimum(alone[:, 0] + alone[:, 1], 1))
    assert images.max() == 1 and (alone.sum(axis=1) > 1).any()


def test_an_epoch_is_a_function_of_seed_and_number(marked):
    def epoch(seed, number):
        pairs = Pairs(*marked, 16, 4 / 36, seed)
        pairs.set_epoch(number)
        return whole(pairs)

    for one, other in zip(epoch(1, 2), epoch(1, 2)):
        np.testing.assert_array_equal(one, other)
    for seed, number in ((1, 3), (2, 2)):
        assert any((a != b).any() for a, b in zip(epoch(1, 2), epoch(seed, number)))


def test_shards_are_parts_of_the_same_batch(marked):
    (images, *_), _ = Pairs(*marked, 16, 4 / 36)[1]
    halves = [Pairs(*marked, 16, 4 / 36, num_shards=2, shard=i)[1] for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([h[0][0] for h in halves]), images)


def test_partners_of_all_other_classes_are_as_likely():
    labels = np.repeat(np.arange(3), (10, 10, 30))
    order = np.zeros(20_000, int)  # of class 0
    partners = multimnist.draw_partners(labels, order, np.random.default_rng(0))
    counts = np.bincount(partners, minlength=50)
    assert counts[:10].sum() == 0
    assert counts[10:].min() > 350 and counts[10:].max() < 650  # 500 on average


def test_no_test_digit_is_trained_on_and_no_training_digit_tested(
    mnist, monkeypatch, tmp_path
):
    # All pixels of a set have one value, so that a pair says what it is made of.
    def digits_of(value, n):
        return np.full((n, 28, 28, 1), value, "float32"), np.eye(10)[np.arange(n) % 10]

    (x_train, y_train), (x_val, y_val) = digits_of(0.25, 20), digits_of(0.375, 10)
    train = np.concatenate([x_train, x_val]), np.concatenate([y_train, y_val])
    data = datasets.Dataset(train, digits_of(0.5, 20), mnist.class_names, "mnist")
    seen = {}
    monkeypatch.setattr(
        training,
        "fit",
        lambda model, run: seen.update(b=run.batches, h=run.held_out),
    )
    argv = ["--network", "baseline", "--validation_size", "10", "--batch_size", "10"]
    options, _ = command_line.read_options(
        multimnist.build_parser(), [*argv, "--save_dir", str(tmp_path)]
    )
    data = digits.pad(data, multimnist.MARGIN)
    _, model, task = multimnist.make_network((36, 36, 1), 10, options.training)
    training.train(model, data, task, {}, options)

    def values(images):
        return set(np.unique(images).tolist())

    assert values(seen["b"].x) == {0, 0.25}
    images = np.concatenate([seen["b"][i][0] for i in range(len(seen["b"]))])
    assert values(images) == {0, 0.25, 0.5} and len(images) == 20
    sets = {name: inputs[0] for name, (inputs, _) in seen["h"].items()}
    assert values(sets["val"]) == {0, 0.375, 0.75}
    assert values(sets["test"]) == {0, 0.5, 1}


def test_the_test_is_the_same_for_every_run_and_for_both_networks(mnist):
    part = datasets.Dataset(
        *[(x[:20], y[:20]) for x, y in mnist], mnist.class_names, "mnist"
    )
    data = digits.pad(part, multimnist.MARGIN)
    inputs, (labels, alone) = multimnist.make_test(Pairs, *data.test, 0)
    assert inputs[0].shape == (20, 36, 36, 1) and alone.shape == (20, 2, 36, 36, 1)
    for again in (
        multimnist.make_test(Pairs, *data.test, 0),
        multimnist.make_test(BaselinePairs, *data.test, 0),
    ):
        np.testing.assert_array_equal(again[0][0], inputs[0])
        np.testing.assert_array_equal(again[1][0], labels)
    other, _ = multimnist.make_test(Pairs, *data.test, 1)
    assert (inputs[0] != other[0]).any()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train_size", 1), "training digits of at least 2 classes"),
        (("--validation_size", 1), "validation digits of at least 2 classes"),
        (("--data_dir", "one_class"), "test digits of at least 2 classes"),
        (("--data_dir", "colour"), "grey images of 28 x 28 pixels, got 28 x 28 x 3"),
    ],
)
def test_digits_that_make_no_pairs(flags, message, mnist, tmp_path, capsys):
    write_digits(tmp_path / "digits", mnist, n_train=20, n_test=10)
    for name in ("one_class", "colour"):
        arrays = dict(np.load(tmp_path / "digits" / "mnist.npz"))
        if name == "one_class":
            arrays["y_test"][:] = 3
        else:
            for part in ("x_train", "x_test"):
                arrays[part] = np.repeat(arrays[part][..., np.newaxis], 3, axis=3)
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "mnist.npz", **arrays)
    folder = tmp_path / "digits"
    if flags[0] == "--data_dir":
        folder, flags = tmp_path / flags[1], ()
    flags = (*flags, "--data_dir", folder, "--save_dir", tmp_path / "run")
    assert message in refuse(capsys, *flags, main=main)
    assert not (tmp_path / "run").exists()


# What is measured

LABELS = np.array([[1, 1, 0, 0]], "float32")


@pytest.mark.parametrize(
    ("outputs", "both", "one"),
    [
        ([0.9, 0.8, 0.1, 0.2], 1, 1),
        ([0.8, 0.9, 0.7, 0.1], 1, 1),
        ([0.9, 0.2, 0.3, 0.1], 0, 1),  # the second one is the third
        ([0.1, 0.8, 0.9, 0.2], 0, 1),
        ([0.1, 0.2, 0.8, 0.9], 0, 0),
        ([0.5, 0.6, 0.8, 0.9], 0, 0),
        ([0.0, 0.0, 0.0, 0.0], 0, 0),  # a network that says nothing is not right
    ],
)
def test_scores(outputs, both, one):
    outputs = np.array([outputs], "float32")
    for function, expected in ((both_right, both), (one_right, one)):
        assert ops.convert_to_numpy(function(LABELS, outputs)).tolist() == [expected]


def test_losses_of_both_networks():
    lengths = np.array([[0.9, 0.5, 0.1, 0.4]], "float32")
    decoded = np.zeros((1, 2, 3, 3, 1), "float32")
    alone = np.stack([np.full((1, 3, 3, 1), 0.2), np.full((1, 3, 3, 1), 0.4)], axis=1)
    settings = Training(lam_recon=0.5, routings=1)
    _, _, task = multimnist.make_network((17, 17, 1), N_CLASS, settings)
    result = task.average([task.measure([lengths, decoded], [LABELS, alone])])
    assert result["margin_loss"] == pytest.approx(0.4**2 + 0.5 * 0.3**2)
    assert result["reconstruction_loss"] == pytest.approx((0.04 + 0.16) / 2)
    expected = result["margin_loss"] + 0.5 * 0.04 + 0.5 * 0.16  # each digit's own
    assert result["loss"] == pytest.approx(expected)
    settings = Training(network="baseline")
    _, _, task = multimnist.make_network((17, 17, 1), N_CLASS, settings)
    result = task.average([task.measure([lengths], [LABELS])])
    expected = -np.mean(np.log([0.9, 0.5, 1 - 0.1, 1 - 0.4]))
    assert result["loss"] == pytest.approx(expected, rel=1e-6)


def test_the_decoder_is_shared_and_draws_each_digit_from_its_own_capsule():
    two = capsulenet.CapsNet((20, 18, 1), N_CLASS, objects=2)[0]
    one = capsulenet.CapsNet((20, 18, 1), N_CLASS)[0]
    assert [w.shape for w in two.weights] == [w.shape for w in one.weights]
    one.set_weights(two.get_weights())
    x = np.random.default_rng(0).random((3, 20, 18, 1), "float32")
    labels = [np.eye(N_CLASS, dtype="float32")[[c] * 3] for c in (1, 2)]
    lengths, decoded = two.predict([x, *labels], verbose=0)
    assert decoded.shape == (3, 2, 20, 18, 1)
    for i, label in enumerate(labels):
        expected = one.predict([x, label], verbose=0)
        np.testing.assert_allclose(lengths, expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(decoded[:, i], expected[1], rtol=1e-5, atol=1e-6)


def test_the_baseline_has_the_weights_of_the_paper():
    model = multimnist.Baseline((36, 36, 1), 10)
    assert round(model.count_params() / 1e6, 2) == 24.56
    capsnet = capsulenet.CapsNet((36, 36, 1), 10, objects=2)[0]
    assert round(capsnet.count_params() / 1e6, 2) == 11.36


# Pictures


def test_sheets_show_what_was_said_and_what_is_not_there(mnist, monkeypatch, tmp_path):
    part = datasets.Dataset(
        *[(x[:40], y[:40]) for x, y in mnist], mnist.class_names, "mnist"
    )
    data = digits.pad(part, multimnist.MARGIN)
    (_, first, second), (y, _) = multimnist.make_test(Pairs, *data.test, 0)
    lengths = 0.8 * y + 0.1 * np.random.default_rng(0).random(y.shape)
    lengths[::2] = 1 - lengths[::2]  # every other image is wrong
    drawn = []

    def predict(model, inputs):
        images, *labels = inputs
        drawn.append(np.stack([label.argmax(axis=1) for label in labels], axis=1))
        return [None, np.full((len(images), 2, 36, 36, 1), 0.5, "float32")]

    monkeypatch.setattr(multimnist, "predict", predict)
    sheets = {}
    monkeypatch.setattr(
        multimnist,
        "plot_sheet",
        lambda images, decoded, truth, said, title, path: sheets.update(
            {title.split(":")[0]: (truth, said)}
        ),
    )
    monkeypatch.setattr(multimnist.run_folder, "replace_file", contextlib.nullcontext)
    multimnist.draw_sheets(None, data, lengths, str(tmp_path))

    truth = np.stack([first.argmax(axis=1), second.argmax(axis=1)], axis=1)
    right, wrong, forced = drawn
    np.testing.assert_array_equal(right, truth[1::2][:12])
    said = np.argsort(lengths, axis=1)[::2, -2:]
    np.testing.assert_array_equal(wrong, said[:12])
    assert not (wrong[:, :, None] == truth[::2][:12, None]).any()
    np.testing.assert_array_equal(forced[:, 0], truth[1::2][:12, 0])
    assert not (forced[:, 1:] == truth[1::2][:12]).any()
    assert sheets["Both right"][0] == [[str(c) for c in pair] for pair in right]
    assert sheets["Wrong"][0] == [[str(c) for c in pair] for pair in truth[::2][:12]]
    assert sheets["Wrong"][1] == [[str(c) for c in pair] for pair in said[:12]]


def test_a_sheet_is_red_and_green_where_they_overlap_yellow(tmp_path):
    images = np.ones((3, 36, 36, 1), "float32")
    decoded = np.zeros((3, 2, 36, 36, 1), "float32")
    decoded[:, 0, :, :24] = 1  # the left two thirds
    decoded[:, 1, :, 12:] = 1  # the right two thirds
    names = [["1", "2"]] * 3
    path = str(tmp_path / "sheet.png")
    multimnist.plot_sheet(images, decoded, names, names, "Title", path)
    assert_picture(path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3) / 255
    for red, green, blue in ((1, 0.25, 0.2), (0.2, 0.9, 0.35), (1, 1, 0.55)):
        close = np.abs(pixels - (red, green, blue)).max(axis=1) < 0.02
        assert close.mean() > 0.01


# Real runs


def test_two_digits_are_drawn_apart_in_two_colours(mnist, tmp_path):
    keras.utils.set_random_seed(0)
    model, eval_model, manipulate_model = capsulenet.CapsNet((36, 36, 1), 10)
    # so that capsules differ in length, and in what they draw
    W, scales = model.get_layer("digitcaps").W, np.linspace(20, 60, 10)
    W.assign(scales.reshape(10, 1, 1, 1) * ops.convert_to_numpy(W))
    for weight in model.get_layer("decoder").weights:
        weight.assign(3 * weight)
    x = digits.pad(mnist, multimnist.MARGIN).test[0][:6]
    images = np.minimum(x[0::2] + x[1::2], 1)
    lengths, alone = predict(eval_model, [images])
    options = Options(RunFolder(str(tmp_path)))
    drawn = draw_apart(manipulate_model, images, lengths, options)
    second = np.argsort(-lengths)[:, 1]
    labels = np.eye(10, dtype="float32")[second]
    (other,) = predict(manipulate_model, [images, labels, np.zeros((3, 10, 16))])
    red, green = np.array((1.0, 0.25, 0.2)), np.array((0.2, 0.9, 0.35))
    np.testing.assert_allclose(drawn, alone * red + other * green, atol=1e-5)
    assert np.ptp(lengths, axis=1).min() > 0.1 and np.abs(alone - other).max() > 0.1


@pytest.mark.slow
def test_a_run_and_its_test(mnist, tmp_path, capsys):
    folder = write_digits(tmp_path / "digits", mnist, n_train=40, n_test=30)
    sizes, run = ("--batch_size", 20, "--data_dir", folder), tmp_path / "run"
    assert main(*sizes, "--epochs", 1, "--save_dir", run) == 0
    output = capsys.readouterr().out
    assert "Training: CapsNet, routings 3, two digits" in output
    assert "Test error: " in output and " % of 30 pairs" in output
    for name in ("wrong.png", "test.csv"):
        assert f"Wrote {run / name}" in output
    (row,) = read_log(run)
    assert float(row["test_one_right"]) >= float(row["test_accuracy"])

    model = ("-w", run / "trained_model.h5")
    flags = ("--data_dir", folder, "--save_dir", tmp_path / "test")
    assert main("-t", *model, *flags) == 0
    error = 100 * (1 - float(row["test_accuracy"]))
    assert f"Test error: {error:.2f} % of 30 pairs" in capsys.readouterr().out
    assert main("-t", *model, *flags, "--pairs", 2) == 0
    assert " % of 60 pairs" in capsys.readouterr().out

    assert read_info(run / "trained_model.h5")["objects"] == 2


@pytest.mark.slow
def test_the_baseline_sees_the_same_pairs(mnist, tmp_path, capsys):
    folder = write_digits(tmp_path / "digits", mnist, n_train=8, n_test=8)
    flags = ("--batch_size", 4, "--data_dir", folder)
    flags += ("--epochs", 1, "--save_dir", tmp_path, "--network", "baseline")
    assert main(*flags) == 0
    output = capsys.readouterr().out
    assert "baseline CNN, two digits" in output and " % of 8 pairs" in output
    (row,) = read_log(tmp_path)
    assert set(row) >= {"loss", "accuracy", "one_right", "test_one_right"}

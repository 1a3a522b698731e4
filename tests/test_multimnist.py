"""experiments/multimnist.py: pairs of digits, what they are measured by, and a run."""

import numpy as np
import pytest
from conftest import assert_same_run, read_log, write_digits
from keras import ops

import capsulenet
import command_line
from experiments import multimnist
from experiments.multimnist import Pairs, both_right, one_right

N_CLASS = 4


def main(*arguments):
    flags = [str(argument) for argument in arguments]
    return command_line.main(flags, multimnist.build_parser, multimnist.run)


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
    index = [int(np.argmin(np.abs(x.max(axis=(1, 2, 3)) - b))) for b in brightest]
    np.testing.assert_array_equal(first, y[index])


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


def test_no_test_digit_is_trained_on_and_no_training_digit_tested(mnist):
    small = capsulenet.datasets.Dataset(
        (np.full((20, 28, 28, 1), 0.25, "float32"), mnist.train[1][:20]),
        (np.full((20, 28, 28, 1), 0.5, "float32"), mnist.test[1][:20]),
        mnist.class_names,
        "mnist",
    )
    padded = capsulenet.datasets.pad(small, multimnist.MARGIN)
    (_, _, _), (_, alone) = Pairs(*padded.train, 20, 4 / 36)[0]
    assert alone.max() == 0.25
    inputs, (_, alone) = multimnist.make_test(Pairs, padded, 0)
    assert alone.max() == 0.5 and inputs[0].shape == (20, 36, 36, 1)
    again, _ = multimnist.make_test(Pairs, padded, 0)
    other, _ = multimnist.make_test(Pairs, padded, 1)
    np.testing.assert_array_equal(inputs[0], again[0])
    assert (inputs[1] != other[1]).any()


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
    result = multimnist.evaluate(lengths, decoded, LABELS, alone, lam_recon=0.5)
    assert result["margin_loss"] == pytest.approx(0.4**2 + 0.5 * 0.3**2)
    assert result["reconstruction_loss"] == pytest.approx((0.04 + 0.16) / 2)
    expected = result["margin_loss"] + 0.5 * 0.04 + 0.5 * 0.16  # each digit's own
    assert result["loss"] == pytest.approx(expected)
    result = multimnist.evaluate_baseline(lengths, LABELS)
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


# Real runs


@pytest.mark.slow
def test_a_run_its_resumption_and_its_test(mnist, tmp_path, capsys):
    digits = write_digits(tmp_path / "digits", mnist, n_train=40, n_test=30)
    sizes = ("--batch_size", 20, "--data_dir", digits)
    assert main(*sizes, "--epochs", 1, "--save_dir", tmp_path / "parts") == 0
    output = capsys.readouterr().out
    assert "Training: CapsNet, routings 3, two digits" in output
    assert "Test error: " in output and " % of 30 pairs" in output
    for name in ("wrong.png", "test.csv"):
        assert f"Wrote {tmp_path / 'parts' / name}" in output
    assert main("--resume", "--epochs", 2, "--save_dir", tmp_path / "parts") == 0
    assert main(*sizes, "--epochs", 2, "--save_dir", tmp_path / "whole") == 0
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    row = read_log(tmp_path / "whole")[-1]
    assert float(row["test_one_right"]) >= float(row["test_accuracy"])

    capsys.readouterr()
    model = ("-w", tmp_path / "whole" / "trained_model.h5")
    flags = ("--data_dir", digits, "--save_dir", tmp_path / "test", "--pairs", 2)
    assert main("-t", *model, *flags) == 0
    assert " % of 60 pairs" in capsys.readouterr().out


@pytest.mark.slow
def test_the_baseline_sees_the_same_pairs(mnist, tmp_path, capsys):
    digits = write_digits(tmp_path / "digits", mnist, n_train=8, n_test=8)
    flags = ("--batch_size", 4, "--data_dir", digits)
    flags += ("--epochs", 1, "--save_dir", tmp_path, "--network", "baseline")
    assert main(*flags) == 0
    output = capsys.readouterr().out
    assert "baseline CNN, two digits" in output and " % of 8 pairs" in output
    (row,) = read_log(tmp_path)
    assert set(row) >= {"loss", "accuracy", "one_right", "test_one_right"}

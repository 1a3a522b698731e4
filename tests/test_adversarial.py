"""experiments/adversarial.py: gradients of images, and what the attacks keep to."""

import re
import signal
from functools import partial

import keras
import numpy as np
import pytest
from conftest import (
    ROOT,
    assert_picture,
    finite_differences,
    read_rows,
    refuse,
    run_here,
)
from keras import ops

from capsnet.backend import input_gradient
from capsnet.errors import UsageError
from capsnet.flags import PRETRAINED
from capsnet.interrupts import Interrupted
from capsnet.weights import save_model
from capsulenet import margin_loss
from experiments import adversarial, attack_figures, attacks

main = partial(run_here, adversarial)

RNG = np.random.default_rng(0)
IMAGES = RNG.random((5, 4, 3, 1), dtype="float32")
LABELS = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1]]
KERNEL = RNG.normal(size=(12, 3)).astype("float32")


def dense(images):
    return ops.sigmoid(ops.matmul(ops.reshape(images, (-1, 12)), KERNEL))


# Gradients.


def test_gradients_of_images_are_those_of_finite_differences():
    gradient = input_gradient(dense, attacks.target_length, 2)

    def summed(images):
        outputs = 1 / (1 + np.exp(-images.reshape(-1, 12) @ KERNEL))
        return (LABELS * outputs).sum()

    outputs, g = gradient(IMAGES, LABELS)  # in batches of 2, 2 and 1
    assert outputs.shape == (5, 3) and g.shape == IMAGES.shape
    np.testing.assert_allclose(g, finite_differences(summed, IMAGES)[0], atol=1e-6)
    expected = 1 / (1 + np.exp(-IMAGES.reshape(-1, 12) @ KERNEL))
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


@pytest.fixture(scope="module")
def network(published):
    return keras.Model(published.input, published.outputs[0])


@pytest.mark.parametrize("loss", [attacks.target_length, attacks.gap])
def test_gradients_of_capsnet(network, mnist, loss):
    # In the direction of the gradient a function grows by the gradient's norm.
    x, y = (a[:4] for a in mnist.test)
    gradient = input_gradient(network, loss, 4)
    _, g = gradient(x, y)
    norm = np.sqrt(np.square(g).sum(axis=(1, 2, 3), keepdims=True))
    assert norm.min() > 0
    step = 0.003 * g / norm
    above, below = (
        ops.convert_to_numpy(loss(y, gradient(x + sign * step, y)[0]))
        for sign in (1, -1)
    )
    np.testing.assert_allclose((above - below) / 0.006, norm.ravel(), rtol=0.03)


# Losses.


def test_the_gap_is_to_the_longest_wrong_capsule():
    y, lengths = LABELS[:2], np.array([[0.9, 0.2, 0.3], [0.8, 0.5, 0.1]], "float32")
    gap = ops.convert_to_numpy(attacks.gap(y, lengths))
    np.testing.assert_allclose(gap, [0.3 - 0.9, 0.8 - 0.5], rtol=1e-6)


def test_the_gap_has_a_gradient_where_the_margin_loss_is_flat():
    def sure(images):  # right capsule above 0.9, others below 0.1
        return ops.add(0.01 * dense(images), LABELS * 0.92 + 0.01)

    for loss, flat in ((margin_loss, True), (attacks.gap, False)):
        _, g = input_gradient(sure, loss)(IMAGES, LABELS)
        assert (~g.any(axis=(1, 2, 3)) == flat).all()


def test_log_odds_have_the_signs_of_the_cross_entropy():
    def softmax(images, scale=1.0):
        outputs = ops.matmul(ops.reshape(images, (-1, 12)), KERNEL)
        return ops.softmax(ops.add(scale * outputs, 40 * (scale > 1) * LABELS))

    def cross_entropy(y, p):
        return -ops.log(ops.sum(y * p, axis=-1))

    losses = (cross_entropy, attacks.log_odds)
    pair = [input_gradient(softmax, loss) for loss in losses]
    first, second = (gradient(IMAGES, LABELS)[1] for gradient in pair)
    np.testing.assert_array_equal(np.sign(first), np.sign(second))
    # where the probability is rounded to 1, the cross-entropy has no gradient
    pair = [input_gradient(lambda x: softmax(x, 2.0), f) for f in losses]
    first, second = (gradient(IMAGES, LABELS)[1] for gradient in pair)
    assert np.abs(first).max() < 1e-12 and np.abs(second).min() > 1e-3


# The walk.


def two_halves(images):
    """Lengths of two capsules: how bright an image is on the left and on the right."""
    return ops.mean(images, axis=(1, 3)) ** 2


def recorded(model):
    """A gradient of the target's length, and the images that it was asked for."""
    gradient = input_gradient(model, attacks.target_length)
    seen = []

    def record(images, labels):
        seen.append(images.copy())
        return gradient(images, labels)

    return record, seen


def test_the_walk_takes_steps_of_a_size_until_the_network_says_so():
    images = np.zeros((3, 4, 2, 1), "float32")
    images[:, :, 0] = [[[0.52]], [[0.99]], [[0.1]]]
    images[:, :, 1] = 0.2
    labels = np.array([[0, 1], [0, 1], [0, 1]], "float32")
    gradient, seen = recorded(two_halves)
    before = images.copy()
    changed, steps, outputs = attacks.walk(gradient, images, labels, 0.1, 100)
    np.testing.assert_array_equal(images, before)  # the test set stays as it is
    # four pixels on the right grow by 0.05 a step, from 0.2
    assert steps.tolist() == [7, 16, 0]
    assert (outputs.argmax(1) == 1).all()
    np.testing.assert_array_equal(changed[2], images[2])
    np.testing.assert_array_equal(changed[:, :, 0], images[:, :, 0])
    np.testing.assert_array_equal(changed, seen[-1])
    for a, b in zip(seen, seen[1:]):
        norms = np.sqrt(np.square(b - a).sum(axis=(1, 2, 3)))
        assert norms.max() < 0.1 * 1.00001
        assert b.min() >= 0 and b.max() <= 1


def test_pixels_that_cannot_move_do_not_shorten_a_step():
    images = np.full((1, 4, 2, 1), 0.1, "float32")
    images[0, :, 0] = [[0], [0], [0.5], [0.5]]  # the black ones are to be darker
    labels = np.array([[1, 0]], "float32")
    gradient, _ = recorded(lambda images: -ops.mean(images, axis=(1, 3)))
    changed, _, _ = attacks.walk(gradient, images, labels, 0.1, 1)
    assert np.linalg.norm(changed - images) == pytest.approx(0.1, rel=1e-5)
    np.testing.assert_array_equal(changed[0, :2, 0], images[0, :2, 0])


def test_a_walk_that_does_not_arrive_ends():
    images = np.ones((1, 4, 2, 1), "float32")
    images[0, :, 1] = 0.5
    labels = np.array([[0, 1]], "float32")  # at best they are equal: not reached
    gradient, seen = recorded(two_halves)
    changed, steps, outputs = attacks.walk(gradient, images, labels, 0.3, 12)
    assert steps.tolist() == [12] and len(seen) == 13
    assert outputs.argmax(1).tolist() == [0]
    assert changed.max() == 1


def test_a_walk_without_a_gradient_stays_where_it_is():
    images, labels = IMAGES[:1], np.array([[0, 1, 0]], "float32")
    gradient, _ = recorded(lambda images: ops.add(0 * dense(images), LABELS[:1]))
    changed, steps, _ = attacks.walk(gradient, images, labels, 1, 3)
    np.testing.assert_array_equal(changed, images)
    assert steps.tolist() == [3]


# Sign attacks.


@pytest.mark.parametrize("steps", [1, 4])
def test_sign_attacks_stay_within_epsilon(steps):
    gradient = input_gradient(dense, attacks.gap)
    first = gradient(IMAGES, LABELS)[1]
    attack = (gradient, IMAGES, LABELS)
    for epsilon in (0.0, 0.05, 0.3):
        changed = attacks.sign_attack(*attack, epsilon, steps, first)
        assert changed.dtype == np.float32
        assert np.abs(changed - IMAGES).max() <= epsilon + 1e-7
        assert changed.min() >= 0 and changed.max() <= 1
        if epsilon == 0:
            np.testing.assert_array_equal(changed, IMAGES)
        elif steps == 1:
            fgsm = np.clip(IMAGES + epsilon * np.sign(first), 0, 1)
            np.testing.assert_allclose(changed, fgsm, atol=1e-6)
        else:
            before, after = (gradient(x, LABELS)[0] for x in (IMAGES, changed))
            gaps = [ops.convert_to_numpy(attacks.gap(LABELS, o))
                    for o in (before, after)]  # fmt: skip
            assert (gaps[1] > gaps[0]).all()


# Pictures.


@pytest.mark.parametrize("reached", [0, 1])
def test_walks_of_colour_images_are_drawn(reached, tmp_path):
    n, names = 3, ["cat", "a dog with a $\\long name", "3"]
    images = RNG.random((n * n, 20, 30, 3), dtype="float32")
    row = {"source": names[0], "target": names[1], "steps": 12, "summed_change": 3.25}
    row["reached"] = reached
    lengths = np.array([0.2, 0.9, 0.1])
    path = tmp_path / "pair.png"
    attack_figures.plot_pair(images[0], images[1], lengths, row, names, path)
    assert_picture(path)
    path = tmp_path / "grid.png"
    attack_figures.plot_grid(images[:n], images[n:], [row] * 6, names, path)
    assert_picture(path)


# Runs.


@pytest.fixture
def arguments(digits):
    return ["-w", ROOT / PRETRAINED, "--data_dir", digits]


def test_a_pair(arguments, tmp_path, capsys):
    pair = ("--source", 3, "--target", 8, "--max_steps", 2)
    assert main(*arguments, *pair, "--save_dir", tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    (row,) = read_rows(tmp_path / "walk-3-8.csv")
    assert (row["source"], row["target"]) == ("3", "8")
    outcome = "reached" if row["reached"] == "1" else "not reached"
    assert lines[-3].startswith(f"3 to 8: {outcome} in {row['steps']} steps")
    assert 0 < float(row["l2"]) <= 2 * 0.2 + 1e-4
    assert float(row["linf"]) <= float(row["l2"]) <= float(row["summed_change"])
    paths = [tmp_path / name for name in ("walk-3-8.png", "walk-3-8.csv")]
    assert lines[-2:] == [f"Wrote {path}" for path in paths]
    assert_picture(paths[0])


@pytest.mark.slow
def test_all_pairs(arguments, tmp_path, capsys):
    assert main(*arguments, "--save_dir", tmp_path, "--max_steps", 1) == 0
    rows = read_rows(tmp_path / "walk.csv")
    pairs = [(row["source"], row["target"]) for row in rows]
    assert pairs == [(str(a), str(b)) for a in range(10) for b in range(10) if a != b]
    assert {row["steps"] for row in rows} <= {"0", "1"}
    assert_picture(tmp_path / "walk.png")
    assert len(re.findall(r"^\d to \d: ", capsys.readouterr().out, re.M)) == 90


def tiny_baseline(input_shape, n_class):
    image = keras.Input(input_shape)
    x = keras.layers.Flatten()(image)
    return keras.Model(image, keras.layers.Dense(n_class, activation="softmax")(x))


@pytest.mark.parametrize("attack", ["fgsm", "iterative"])
def test_sign_attacks_beside_a_baseline(
    attack, arguments, network, mnist, tmp_path, capsys, monkeypatch
):
    # The real one takes seconds a batch; it is tested on its own.
    monkeypatch.setattr(adversarial, "Baseline", tiny_baseline)
    save_model(tiny_baseline((28, 28, 1), 10), tmp_path / "baseline.h5", {})
    options = ["--attack", attack, "--epsilons", 0.2, 0, "--count", 20]
    options += ["--steps", 2] if attack == "iterative" else []
    files = ["--baseline", tmp_path / "baseline.h5", "--save_dir", tmp_path]
    assert main(*arguments, *options, *files) == 0
    out = capsys.readouterr().out
    rows = read_rows(tmp_path / f"{attack}.csv")
    kinds = ["margin loss", "gap", "cross-entropy"]
    assert [row["loss"] for row in rows] == [k for k in kinds for _ in range(2)]
    assert [row["epsilon"] for row in rows] == ["0.0", "0.2"] * 3
    assert {row["images"] for row in rows} == {"20"}
    clean = [row["accuracy"] for row in rows[::2]]
    x, y = (a[:20] for a in mnist.test)
    right = network.predict(x, verbose=0).argmax(1) == y.argmax(1)
    assert float(clean[0]) == float(clean[1]) == pytest.approx(right.mean())
    assert float(rows[2]["accuracy"]) > float(rows[3]["accuracy"])  # the gap's
    for after in rows[1::2]:
        line = f"{after['loss']}: epsilon 0.2, accuracy {float(after['accuracy']):.4f}"
        assert line in out
    assert_picture(tmp_path / f"{attack}.png")


def test_a_curve_goes_on_where_it_was_interrupted(
    arguments, tmp_path, capsys, monkeypatch
):
    options = ["--attack", "fgsm", "--epsilons", 0, 0.1, 0.2, "--count", 5]
    options += ["--save_dir", tmp_path]
    path, whole = tmp_path / "fgsm.csv", adversarial.sign_attack
    epsilons = []

    def attack(gradient, x, y, epsilon, *args):
        epsilons.append(epsilon)
        if interrupted and len(epsilons) == 5:
            raise Interrupted(signal.SIGINT)
        return whole(gradient, x, y, epsilon, *args)

    monkeypatch.setattr(adversarial, "sign_attack", attack)
    interrupted = True
    assert main(*arguments, *options) == 130
    first = read_rows(path)
    assert len(first) == 4 and not (tmp_path / "fgsm.png").exists()
    interrupted = False
    assert main(*arguments, *options) == 0
    assert epsilons == [0, 0.1, 0.2, 0, 0.1, 0.1, 0.2]  # 0.1 of the gap once more
    assert read_rows(path)[:4] == first and len(read_rows(path)) == 6
    assert main(*arguments, *options) == 0 and len(epsilons) == 7
    options[options.index(5)] = 6  # other images: nothing of before counts
    assert main(*arguments, *options) == 0 and len(epsilons) == 13
    capsys.readouterr()


# What is refused.


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--source 3", "expected --source and --target, or neither of them"),
        ("--source 3 --target 10", "--target: expected 0 to 9, received 10"),
        ("--source x --target 1", "--source: expected 0 to 9, received x"),
        ("--source 3 --target 3", "--target: expected another class than --source"),
        ("--step_size 0", "--step_size: expected at least 0.0001"),
        ("--count 5", "--count has no effect with --attack walk"),
        ("--attack fgsm --source 3", "--source has no effect with --attack fgsm"),
        ("--attack fgsm --steps 3", "--steps has no effect with --attack fgsm"),
        ("--attack fgsm --epsilons 2", "--epsilons: expected at least 0 and less than"),
    ],
)
def test_bad_arguments(options, complaint, arguments, tmp_path, capsys):
    flags = (*arguments, "--save_dir", tmp_path / "out", *options.split())
    assert complaint in refuse(capsys, *flags, main=main)
    assert not (tmp_path / "out").exists()


def test_a_grid_of_too_many_classes():
    with pytest.raises(UsageError, match="all pairs of 100 classes"):
        adversarial.find_pair([str(i) for i in range(100)], None, None)

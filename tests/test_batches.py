"""batches.py: shifted images, and the batches of an epoch."""

import numpy as np
import pytest

from capsnet.augmentation import Affine
from capsnet.batches import ShiftedBatches, shift
from capsnet.errors import DataError

# shift


def slow_shift(images, offsets):
    shifted = np.zeros_like(images)
    n, height, width, _ = images.shape
    for i in range(n):
        for row in range(height):
            for column in range(width):
                r, c = row - offsets[i][0], column - offsets[i][1]
                if 0 <= r < height and 0 <= c < width:
                    shifted[i, row, column] = images[i, r, c]
    return shifted


@pytest.mark.parametrize(
    "shape", [(9, 6, 6, 1), (9, 5, 8, 3), (9, 8, 5, 2), (1, 1, 1, 1)]
)
@pytest.mark.parametrize("largest", [0, 2, 20])
def test_shift_is_the_obvious_loop(shape, largest):
    rng = np.random.default_rng(0)
    images = rng.random(shape, dtype="float32")
    original = images.copy()
    offsets = rng.integers(-largest, largest, (len(images), 2), endpoint=True)
    shifted = shift(images, offsets)
    np.testing.assert_array_equal(shifted, slow_shift(images, offsets))
    assert shifted.dtype == np.float32 and shifted.flags.c_contiguous
    np.testing.assert_array_equal(images, original)
    assert not np.shares_memory(shifted, images)


# ShiftedBatches


def dots(n=50, side=28):
    """Images with one pixel, in the middle, that holds the image's number."""
    x = np.zeros((n, side, side, 1), "float32")
    x[:, side // 2, side // 2, 0] = np.arange(1, n + 1)
    return x, np.eye(n, dtype="float32")


# Shifts by whole pixels, or affine changes.
either = pytest.mark.parametrize("affine", [None, Affine(20, 0.1, 0.1, 0.1)])


def content(batches):
    items = list(batches)
    return np.concatenate([item[0][0] for item in items]), np.concatenate(
        [item[0][1] for item in items]
    )


@either
def test_the_changed_image_is_both_input_and_target(affine):
    (x, y), (y_target, x_target) = ShiftedBatches(*dots(), 8, affine=affine)[0]
    assert x.shape == (8, 28, 28, 1) and y.shape == (8, 50)
    for array, target in ((x, x_target), (y, y_target)):
        np.testing.assert_array_equal(array, target)
        assert not np.shares_memory(array, target)  # which may be overwritten
        assert array.dtype == np.float32 and array.flags.c_contiguous


def test_shards_of_a_batch_are_its_parts_in_order():
    whole = ShiftedBatches(*dots(50), batch_size=12, drop_remainder=True)
    shards = [
        ShiftedBatches(
            *dots(50), batch_size=12, drop_remainder=True, num_shards=3, shard=i
        )
        for i in range(3)
    ]
    for i, (batch, _) in enumerate(whole):
        assert len(shards[0]) == len(whole)
        assert shards[0].num_samples == whole.num_samples
        parts = [shard[i][0] for shard in shards]
        for array, of_shards in zip(batch, zip(*parts)):
            assert [len(part) for part in of_shards] == [4, 4, 4]
            np.testing.assert_array_equal(array, np.concatenate(of_shards))


@either
def test_order_and_changes_are_a_function_of_seed_and_epoch(affine):
    def epoch(seed, epoch):
        how = {"seed": seed, "epoch": epoch, "affine": affine}
        return content(ShiftedBatches(*dots(), 8, **how))

    for one, again in zip(epoch(3, 5), epoch(3, 5), strict=True):
        np.testing.assert_array_equal(one, again)
    for seed, number in ((3, 6), (4, 5), (5, 3)):
        assert not np.array_equal(epoch(3, 5)[0], epoch(seed, number)[0])
        assert not np.array_equal(epoch(3, 5)[1], epoch(seed, number)[1])


def test_batches_may_be_fetched_in_any_order_and_the_epoch_set_by_hand():
    batches = ShiftedBatches(*dots(), batch_size=8, seed=1)
    first = content(batches)[0]
    np.testing.assert_array_equal(batches[3][0][0], first[24:32])
    np.testing.assert_array_equal(batches[0][0][0], first[:8])
    batches.on_epoch_end()
    assert batches.epoch == 1
    second = content(batches)[0]
    assert not np.array_equal(first, second)
    batches.set_epoch(0)
    np.testing.assert_array_equal(content(batches)[0], first)
    batches.set_epoch(1)
    np.testing.assert_array_equal(content(batches)[0], second)


def test_batch_size_does_not_change_what_is_seen():
    by_8 = content(ShiftedBatches(*dots(), batch_size=8))[0]
    by_25 = content(ShiftedBatches(*dots(), batch_size=25))[0]
    np.testing.assert_array_equal(by_8, by_25)


def test_every_sample_once_an_epoch_with_its_own_label():
    batches = ShiftedBatches(*dots(50), batch_size=8)
    x, y = content(batches)
    assert len(batches) == 7 and len(batches[6][0][0]) == 2
    numbers = x.max(axis=(1, 2, 3))
    assert sorted(numbers) == list(range(1, 51))
    np.testing.assert_array_equal(y.argmax(axis=1) + 1, numbers)


def test_drop_remainder_drops_others_each_epoch():
    batches = ShiftedBatches(*dots(50), batch_size=8, drop_remainder=True)
    dropped = []
    for _ in range(3):
        assert len(batches) == 6
        assert all(len(x) == len(y) == 8 for (x, y), _ in batches)
        numbers = content(batches)[0].max(axis=(1, 2, 3))
        assert len(set(numbers)) == 48
        dropped.append(set(range(1, 51)) - set(numbers))
        batches.on_epoch_end()
    assert len(set(map(frozenset, dropped))) > 1


@pytest.mark.parametrize(("fraction", "side", "largest"), [(0.1, 28, 2), (0.25, 12, 3)])
def test_shifts_are_even_over_all_whole_pixels_within_the_bound(
    fraction, side, largest
):
    rows, columns = [], []
    for epoch in range(40):
        batches = ShiftedBatches(*dots(50, side), 50, fraction, epoch=epoch)
        _, row, column, _ = np.nonzero(batches[0][0][0])
        rows.extend(row - side // 2)
        columns.extend(column - side // 2)
    n = 2 * largest + 1
    pairs = np.array(rows) * n + columns
    kinds, counts = np.unique(pairs, return_counts=True)
    assert len(kinds) == n**2  # rows and columns independently
    assert min(rows) == min(columns) == -largest
    assert max(rows) == max(columns) == largest
    # 2000 draws over n^2 kinds: five standard deviations, with a fixed seed anyway.
    expected = 2000 / n**2
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"batch_size": 51, "drop_remainder": True},
        {"batch_size": 8, "shift_fraction": -0.1},
        {"batch_size": 8, "shift_fraction": 1},
        {"batch_size": 8, "shift_fraction": float("nan")},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(DataError, match="expected .*, got "):
        ShiftedBatches(*dots(50), **arguments)


# What comes in from outside, and how often each class is seen


def test_a_shift_brings_in_the_colour_that_is_asked_for():
    images = np.zeros((1, 4, 4, 3), "float32")
    colour = np.array([0.2, 0.5, 1.0], "float32")
    moved = shift(images, np.array([[1, -2]]), colour)
    outside = np.ones((4, 4), bool)
    outside[1:, :2] = False
    np.testing.assert_array_equal(moved[0, outside], np.tile(colour, (10, 1)))
    assert not moved[0, ~outside].any()


def test_balanced_batches_see_every_class_as_often():
    labels = np.repeat([0, 1, 2], (900, 90, 10))
    x = labels[:, None, None, None] * np.ones((1000, 2, 2, 1), "float32")
    y = np.eye(3, dtype="float32")[labels]
    batches = ShiftedBatches(x, y, 100, 0, seed=3, balance=True)
    seen = np.concatenate([batches[i][0][1] for i in range(len(batches))])
    assert len(seen) == 1000
    assert seen.sum(axis=0).min() > 250 and seen.sum(axis=0).max() < 420
    again = ShiftedBatches(x, y, 100, 0, seed=3, balance=True)
    np.testing.assert_array_equal(batches[4][0][1], again[4][0][1])
    again.set_epoch(1)
    assert (batches[4][0][1] != again[4][0][1]).any()


def test_images_without_a_label_are_balanced_as_a_class():
    y = np.zeros((100, 2), "float32")
    y[:80, 0] = 1
    y[70:90, 1] = 1  # ten of both, ten of none
    batches = ShiftedBatches(np.zeros((100, 2, 2, 1)), y, 100, 0, seed=3, balance=True)
    drawn = []
    for epoch in range(20):
        batches.set_epoch(epoch)
        drawn.append(batches[0][0][1])
    nothing = ~np.concatenate(drawn).any(axis=1)
    assert 0.25 < nothing.mean() < 0.42

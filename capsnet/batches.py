"""Batches of randomly changed images."""

import math

import keras
import numpy as np

from capsnet.augmentation import Affine, transform
from capsnet.errors import DataError

Pair = tuple[np.ndarray, np.ndarray]


def shift(images: np.ndarray, offsets: np.ndarray, fill=0.0) -> np.ndarray:
    """Moves each image by whole pixels.

    Args:
        images: Array of shape `(n, height, width, channels)`.
        offsets: Integers of shape `(n, 2)`: rows down, columns to the right; negative
            ones move up and to the left.
        fill: What comes in from outside: a number, or one for each channel.

    Returns:
        A new array of the shape and dtype of `images`.
    """
    n, height, width, channels = images.shape
    offsets = np.clip(offsets, (-height, -width), (height, width))
    pad = np.abs(offsets).max(initial=0)
    padded = np.empty((n, height + 2 * pad, width + 2 * pad, channels), images.dtype)
    padded[:] = fill
    padded[:, pad : pad + height, pad : pad + width] = images
    # (n, 2 pad + 1, 2 pad + 1, 1, height, width, channels): every shift, as a view.
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (height, width, channels), axis=(1, 2, 3)
    )
    rows, columns = (pad - offsets).T
    return windows[np.arange(n), rows, columns, 0]


class ShiftedBatches(keras.utils.PyDataset):
    """Batches of randomly shifted images for a network that reconstructs its input.

    Item `i` is `((x_batch, y_batch), (y_batch, x_batch))`: the shifted images are both
    the input and what the decoder has to reconstruct. The order of the samples and
    their shifts depend on `(seed, epoch)` and on nothing else.

    `fit` tells a data set when an epoch ends, and does so once before the first one,
    too. So let a callback name the epoch, and turn off `fit`'s own shuffling of the
    batches, which depends on Python's global random state:

    ```python
    batches = ShiftedBatches(x_train, y_train, batch_size=100)
    name_epoch = keras.callbacks.LambdaCallback(on_epoch_begin=batches.set_epoch)
    model.fit(batches, shuffle=False, callbacks=[name_epoch])
    ```

    In a loop of your own, `on_epoch_end` goes to the next epoch.

    Args:
        x: Images, floating point of shape `(n, height, width, channels)`, in memory or
            mapped from a file.
        y: One-hot labels, float32 of shape `(n, n_class)`.
        batch_size: Samples in a batch.
        shift_fraction: Largest shift as a part of the side, rounded down to whole
            pixels (0.1 of 28 is 2). Rows and columns are drawn on their own, each of
            their shifts, in either direction or none, as likely as any other.
        seed: Non-negative integer.
        epoch: Epoch to start with, counted from 0.
        drop_remainder: Whether to leave out the last batch if it has fewer samples;
            they are others in every epoch.
        num_shards: Number of equal parts of a batch; items are one part of it.
        shard: Which part, counted from 0.
        affine: Changes to draw in place of the shifts by whole pixels.
        fill: What comes in from outside: a number, or one for each channel.
        balance: Whether every class is drawn as often in an epoch, on average, whatever
            its number of samples.

    Raises:
        DataError: If there is no batch of that size, or `shift_fraction` is not
            in [0, 1).
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        shift_fraction: float = 0.1,
        seed: int = 0,
        epoch: int = 0,
        drop_remainder: bool = False,
        num_shards: int = 1,
        shard: int = 0,
        affine: Affine | None = None,
        fill: float | np.ndarray = 0.0,
        balance: bool = False,
    ):
        # Keras's default of one worker: a batch takes a fraction of a millisecond, and
        # a queue of workers can carry batches over into the next epoch.
        super().__init__()
        if batch_size < 1 or (drop_remainder and batch_size > len(x)):
            raise DataError(
                f"batch_size: expected at least 1 and, where a smaller last batch is "
                f"dropped, at most {len(x)}, the number of images, got {batch_size}"
            )
        if not 0 <= shift_fraction < 1:
            raise DataError(f"shift_fraction: expected [0, 1), got {shift_fraction}")
        self.x = x
        self.y = np.asarray(y, "float32")
        self.batch_size = batch_size
        self.largest_shift = [int(shift_fraction * side) for side in x.shape[1:3]]
        self.seed = seed
        self.drop_remainder = drop_remainder
        self.num_shards = num_shards
        self.shard = shard
        self.affine = affine
        self.fill = fill
        self.balance = balance
        self.set_epoch(epoch)

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
        return min(len(self) * self.batch_size, len(self.x))

    def set_epoch(self, epoch: int, logs: dict | None = None) -> None:
        """Goes to an epoch. `logs` is there for Keras's `on_epoch_begin`, unused."""
        rng = np.random.default_rng([self.seed, epoch])
        order = self._balanced(rng) if self.balance else rng.permutation(len(self.x))
        low, high = np.negative(self.largest_shift), self.largest_shift
        if self.affine is None:
            offsets = rng.integers(low, high, size=(len(order), 2), endpoint=True)
        else:
            offsets = self.affine.draw(len(order), *self.x.shape[1:3], rng)
        self.epoch = epoch
        # In one assignment, since Keras may fetch batches from another thread.
        self._order_and_offsets = order, offsets

    def _balanced(self, rng: np.random.Generator) -> np.ndarray:
        """As many samples as there are, of all classes alike; large ones lack some.

        Images without a label are a class, too.
        """
        y = np.column_stack([self.y, ~self.y.any(axis=1)])
        weights = (y / np.maximum(y.sum(axis=0), 1)).sum(axis=1)
        return rng.choice(len(self.x), len(self.x), p=weights / weights.sum())

    def on_epoch_end(self) -> None:
        self.set_epoch(self.epoch + 1)

    def __len__(self) -> int:
        batches = len(self.x) / self.batch_size
        return math.floor(batches) if self.drop_remainder else math.ceil(batches)

    def __getitem__(self, index: int) -> tuple[Pair, Pair]:
        order, offsets = self._order_and_offsets
        size = self.batch_size // self.num_shards
        start = index * self.batch_size + self.shard * size
        batch = slice(start, start + size)
        change = shift if self.affine is None else transform
        x = np.asarray(self.x[order[batch]], "float32")
        x = change(x, offsets[batch], self.fill)
        y = self.y[order[batch]]
        # Copies: TensorFlow makes a tensor of each without copying, and may overwrite
        # one that it thinks no other operation needs.
        return (x, y), (y.copy(), x.copy())

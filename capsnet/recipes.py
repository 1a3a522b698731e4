"""How to train: the numbers of each recipe, and the learning rates that they give."""

import dataclasses
import math

import keras
from keras import ops

from capsnet.options import Training

MODERN = Training(
    recipe="modern",
    epochs=20,
    architecture="modern",
    lr=0.003,
    lr_decay=None,
    warmup=200,
    ema=0.999,
    shift_fraction=0.07,  # 2 of MNIST's 28 pixels
    rotation=10.0,
    zoom=0.1,
    shear=0.1,
)
# Data other than MNIST; see also `pictures_batch` and `pictures_epochs`.
PICTURES = dataclasses.replace(
    MODERN, recipe="pictures", architecture="pictures", normalize=True, epochs=50,
    lr=0.002, warmup=100, ema=0.99,
)  # fmt: skip
# `seed` is the older Keras scripts, with the loss of the paper's text.
RECIPES = {"seed": Training(), "modern": MODERN, "pictures": PICTURES}
# What `pictures` does with n images: small batches where there are few, since a network
# needs some thousand steps whatever it learns.
PICTURES_STEPS, PICTURES_EPOCHS = 2000, (10, 100)


def pictures_batch(n: int) -> int:
    """Images in a step, for n training images."""
    return 16 if n < 500 else 32 if n < 20_000 else 100


def pictures_epochs(n: int, batch_size: int) -> int:
    """Passes over n training images."""
    least, most = PICTURES_EPOCHS
    return min(max(least, round(PICTURES_STEPS / math.ceil(n / batch_size))), most)


@keras.saving.register_keras_serializable("capsnet")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that grows linearly, in the first steps, to that of a schedule.

    Args:
        schedule: Another learning rate schedule.
        steps: Until the schedule alone says the rate.
    """

    def __init__(self, schedule, steps: int):
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step):
        grown = (ops.cast(step, "float32") + 1) / max(1, self.steps)
        return self.schedule(step) * ops.minimum(grown, 1.0)

    def get_config(self):
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(**{**config, "schedule": schedule})


def make_schedule(training: Training, steps_per_epoch: int) -> float | WarmUp:
    """The learning rate over the steps of a training.

    Returns:
        A schedule; or `training.lr`, where the rate falls between epochs only.
    """
    schedules = keras.optimizers.schedules
    lr, decay, warmup = training.lr, training.lr_decay, training.warmup
    if decay is None:
        steps = training.epochs * steps_per_epoch
        return WarmUp(schedules.CosineDecay(lr, steps), warmup)
    if not warmup:
        return lr
    return WarmUp(schedules.ExponentialDecay(lr, steps_per_epoch, decay), warmup)

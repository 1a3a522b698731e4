"""How to train: the numbers of each recipe, and the learning rates that they give."""

import dataclasses

import keras
from keras import ops


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train, where the command line does not say otherwise.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in a step.
        lr: Largest learning rate of Adam.
        lr_decay: Factor of the learning rate; None for half a cosine from `lr` to zero
            at the last step.
        decay_steps: Steps in which it falls by that factor, continuously; None for an
            epoch, in steps.
        warmup: First steps, in which the rate grows linearly.
        ema: Factor of the moving average of the weights; 0 for none.
        lam_recon: Weight of the squared error of a pixel.
        shift_fraction: Largest shift as a part of the side; in whole pixels, unless
            images are turned, zoomed or sheared as well.
        rotation, zoom, shear: Those of `augmentation.Affine`.
        network: Arguments of `capsulenet.CapsNet`.
    """

    epochs: int = 50
    batch_size: int = 100
    lr: float = 0.001
    lr_decay: float | None = 0.9
    decay_steps: int | None = None
    warmup: int = 0
    ema: float = 0.0
    lam_recon: float = 0.0005
    shift_fraction: float = 0.1
    rotation: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    network: dict = dataclasses.field(default_factory=dict)


RECIPES = {
    # The older Keras scripts, with the loss of the paper's text.
    "seed": Recipe(),
    "modern": Recipe(
        epochs=20,
        lr=0.002,
        lr_decay=None,
        warmup=200,
        ema=0.999,
        shift_fraction=0.07,  # 2 of MNIST's 28 pixels
        rotation=10.0,
        zoom=0.1,
        shear=0.1,
    ),
    # The code that the authors released. It halves the margin loss and divides it by 10
    # classes, but not the reconstruction loss.
    "paper": Recipe(
        epochs=640,
        batch_size=128,
        lr_decay=0.96,
        decay_steps=2000,
        lam_recon=0.01,
        network={
            "truncated_normal": True,
            "bias": 0.1,
            "routing_bias": True,
            "primary_scale": 1 / 32,
        },
    ),
}
LEAST_RATE = 1e-6  # of a learning rate that falls exponentially


@keras.saving.register_keras_serializable("capsnet")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that grows linearly, in the first steps, to that of a schedule.

    Args:
        schedule: Another learning rate schedule.
        steps: Until the schedule alone says the rate.
        least: Where the rate stops falling.
    """

    def __init__(self, schedule, steps: int, least: float = 0.0):
        self.schedule = schedule
        self.steps = steps
        self.least = least

    def __call__(self, step):
        rate = ops.maximum(self.schedule(step), self.least)
        grown = (ops.cast(step, "float32") + 1) / max(1, self.steps)
        return rate * ops.minimum(grown, 1.0)

    def get_config(self):
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "steps": self.steps, "least": self.least}

    @classmethod
    def from_config(cls, config):
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(**{**config, "schedule": schedule})


def make_schedule(
    lr: float,
    lr_decay: float | None,
    decay_steps: int | None,
    warmup: int,
    steps_per_epoch: int,
    epochs: int,
) -> float | WarmUp:
    """The learning rate over the steps of a training.

    Args:
        lr, lr_decay, decay_steps, warmup: As of `Recipe`.
        steps_per_epoch: Steps in an epoch.
        epochs: Epochs of the whole training.

    Returns:
        A schedule; or `lr`, where the rate falls between epochs only (`epoch_rate`).
    """
    schedules = keras.optimizers.schedules
    if lr_decay is None:
        return WarmUp(schedules.CosineDecay(lr, epochs * steps_per_epoch), warmup)
    if decay_steps is None and not warmup:
        return lr
    decay = schedules.ExponentialDecay(lr, decay_steps or steps_per_epoch, lr_decay)
    return WarmUp(decay, warmup, LEAST_RATE)

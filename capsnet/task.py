"""What a network is trained for, and measured by."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from capsnet.batches import ShiftedBatches
from capsnet.options import ONE_DEVICE, Devices
from capsnet.predict import predict_parts

THRESHOLD = 0.5  # of a capsule's length: a longer one's class is in the image


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is trained for, and measured by.

    Attributes:
        losses: A loss of labels and outputs for each output, by its column in the log.
        loss_weights: A factor for each of them; their sum is the column "loss".
        metrics: Further functions of labels and the first output, by their columns;
            one is "accuracy".
        batches: The class of the training batches.
        arrange: A function of images and labels that returns the model's inputs and
            what to compare its outputs with.
    """

    losses: dict[str, Callable]
    loss_weights: tuple[float, ...]
    metrics: dict[str, Callable]
    batches: type[ShiftedBatches]
    arrange: Callable[[np.ndarray, np.ndarray], tuple[list, list]]

    def compile(self, model: keras.Model, optimizer: keras.Optimizer) -> None:
        """Prepares a model for `fit`."""
        others = [[]] * (len(self.losses) - 1)
        metrics = [*self.metrics.values()]
        model.compile(
            optimizer=optimizer,
            loss=[*self.losses.values()],
            loss_weights=[*self.loss_weights],
            metrics=[metrics, *others] if others else metrics,
        )

    def columns(self, model: keras.Model) -> dict[str, str]:
        """The log's columns beside "loss", by the names that Keras has for them."""
        metrics = {function.__name__: key for key, function in self.metrics.items()}
        if len(self.losses) == 1:
            return metrics
        names = model.output_names
        losses = {f"{name}_loss": key for name, key in zip(names, self.losses)}
        return {
            **losses,
            **{f"{names[0]}_{name}": key for name, key in metrics.items()},
        }

    def evaluate(
        self,
        model: keras.Model,
        inputs: list,
        targets: list,
        batch_size: int = 100,
        devices: Devices = ONE_DEVICE,
    ) -> tuple[dict[str, float], np.ndarray]:
        """Measures a model on a set of any size.

        Args:
            model, inputs, batch_size, devices: As of `predict.predict_parts`.
            targets: What to compare its outputs with.

        Returns:
            The columns of the log, and the first output for all samples.
        """
        measured, first = [], []
        for part, outputs in predict_parts(model, inputs, batch_size, devices):
            expected = [np.asarray(target[part], "float32") for target in targets]
            measured.append(self.measure(outputs, expected))
            first.append(outputs[0])
        return self.average(measured), np.concatenate(first)

    def measure(self, outputs: list, targets: list) -> dict[str, np.ndarray]:
        """The losses and metrics of each sample."""
        functions = zip(self.losses.items(), targets, outputs)
        values = {
            name: loss(target, output) for (name, loss), target, output in functions
        }
        for name, metric in self.metrics.items():
            values[name] = metric(targets[0], outputs[0])
        return {name: ops.convert_to_numpy(value) for name, value in values.items()}

    def average(self, measured: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """The columns of the log, of what `measure` says of all parts of a set."""
        means = {
            name: float(np.mean(np.concatenate([part[name] for part in measured])))
            for name in measured[0]
        }
        total = sum(w * means[name] for w, name in zip(self.loss_weights, self.losses))
        if len(self.losses) == 1:
            del means[next(iter(self.losses))]
        return {"loss": total, **means}


def said(lengths: np.ndarray, multi_label: bool, objects: int = 1) -> np.ndarray:
    """Which classes a network names.

    Args:
        lengths: Lengths of the class capsules, shape (n, n_class).
        multi_label: Whether an image may be of any number of classes: all whose
            capsules are longer than `THRESHOLD`.
        objects: Else how many classes it is of: those of the longest capsules.

    Returns:
        A bool array of the same shape.
    """
    if multi_label:
        return lengths > THRESHOLD
    named = np.zeros(lengths.shape, bool)
    longest = np.argsort(-lengths, axis=1, kind="stable")[:, :objects]
    np.put_along_axis(named, longest, True, axis=1)
    return named


@keras.saving.register_keras_serializable("capsnet")
def accuracy(y_true, y_pred):
    """Whether the largest output is that of the label, 0 or 1 for each sample."""
    return keras.metrics.categorical_accuracy(y_true, y_pred)


@keras.saving.register_keras_serializable("capsnet")
def exact_match(y_true, y_pred):
    """Whether just those classes are named that an image is labelled with."""
    right = ops.equal(y_true > 0.5, y_pred > THRESHOLD)
    return ops.cast(ops.all(right, axis=-1), "float32")

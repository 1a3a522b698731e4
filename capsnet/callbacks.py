"""What happens while a network trains: a callback for each job."""

import contextlib
import dataclasses
import math
import os
import time

import keras
import numpy as np
from keras import ops

import utils
from capsnet import run_folder
from capsnet.batches import ShiftedBatches
from capsnet.interrupts import Interrupted
from capsnet.options import Options
from capsnet.run_folder import RunFolder
from capsnet.task import Task
from capsnet.weights import save_run

STEPS_TO_LEARN = 500  # after so many, a network that says one thing of all is stuck


class DivergedError(RuntimeError):
    """A training that cannot succeed any more; the message says why, what to try."""


@dataclasses.dataclass
class Run:
    """A training: what it is made of, and what it has found so far.

    Attributes:
        options: How, and where to.
        task: What the model is trained for.
        batches: The training data.
        held_out: For each set to evaluate, by the prefix of its columns in the log:
            the model's inputs, and what to compare its outputs with.
        info: What the model file says about itself.
        digest: Of the data, so that a run goes on with what it was begun with.
        rows: Of the log, one for each finished epoch.
        best_epoch: The one with the best accuracy of "val".
        best_weights: Its weights.
        stuck: Whether the last epoch's outputs are alike for all images.
    """

    options: Options
    task: Task
    batches: ShiftedBatches
    held_out: dict[str, tuple[list, list]]
    info: dict
    digest: str
    rows: list[dict] = dataclasses.field(default_factory=list)
    best_epoch: int | None = None
    best_weights: list[np.ndarray] | None = None
    stuck: bool = False

    def reached(self, stop_at: float | None, patience: int | None = None) -> bool:
        """Whether the last finished epoch is the one to stop after.

        Args:
            stop_at: Accuracy of "val" that is enough.
            patience: Epochs without a better one that are.
        """
        if not self.rows:
            return False
        if stop_at is not None and self.rows[-1]["val_accuracy"] >= stop_at:
            return True
        since_best = len(self.rows) - (self.best_epoch or 0)
        return patience is not None and since_best >= patience


@contextlib.contextmanager
def averaged(model: keras.Model):
    """Within it, the model has the moving average of its weights, if there is one.

    Keras's `SwapEMAWeights` swaps by sums, which rounds: the weights would not be what
    they were.
    """
    if not model.optimizer.use_ema:
        yield
        return
    variables = model.trainable_variables
    # Copies: JAX gives the memory of a model's arrays away while it predicts.
    weights = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    averages = model.optimizer._model_variables_moving_average
    for variable, average in zip(variables, averages):
        variable.assign(np.array(ops.convert_to_numpy(average)))
    try:
        yield
    finally:
        for variable, weight in zip(variables, weights):
            variable.assign(weight)


class Progress(keras.callbacks.ProgbarLogger):
    """Keras's bar, or line an epoch.

    If the reader of the output has gone, the epoch is not lost: the next line after
    its state is written ends the run.
    """

    def on_epoch_end(self, epoch, logs=None):
        with contextlib.suppress(BrokenPipeError):
            super().on_epoch_end(epoch, logs)


class Job(keras.callbacks.Callback):
    """A part of what a run does around its steps."""

    def __init__(self, run: Run):
        super().__init__()
        self.run = run


class Evaluate(Job):
    """Makes the log's row of an epoch: its time, its losses, those of other sets."""

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.started
        rate = ops.convert_to_numpy(self.model.optimizer.learning_rate)
        run, task = self.run, self.run.task
        row = {
            "epoch": epoch + 1,
            "seconds": round(seconds, 3),
            "images_per_second": round(run.batches.num_samples / seconds, 1),
            "learning_rate": float(rate),
            "loss": float(logs["loss"]),
            **{
                column: float(logs[name])
                for name, column in task.columns(self.model).items()
            },
        }
        how = run.options.training.batch_size, run.options.devices
        for name, (inputs, expected) in run.held_out.items():
            with averaged(self.model):
                found, outputs = task.evaluate(self.model, inputs, expected, *how)
            row.update({f"{name}_{column}": value for column, value in found.items()})
        for name, value in row.items():
            if not math.isfinite(value):
                fault = f"{name} is {value} after epoch {epoch + 1}"
                raise diverged(fault, run)
        # Seven digits are what float32 holds.
        row = {k: float(f"{v:.7g}") if k != "epoch" else v for k, v in row.items()}
        run.rows.append(row)
        several = (expected[0] != expected[0][0]).any()
        run.stuck = several and all_alike(outputs)


class KeepBest(Job):
    """Keeps the weights of the epoch that does best on "val", if that is there."""

    def on_epoch_end(self, epoch, logs=None):
        *earlier, row = self.run.rows
        if "val_accuracy" in row and all(
            row["val_accuracy"] > other["val_accuracy"] for other in earlier
        ):
            with averaged(self.model):
                self.run.best_weights = self.model.get_weights()
            self.run.best_epoch = epoch + 1


class SaveState(Job):
    """Replaces the run state, from which a run can go on: this finishes an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        run, folder = self.run, self.run.options.folder
        state = {
            "arguments": run.options.to_json(),
            "digest": run.digest,
            "rows": run.rows,
            "best_epoch": run.best_epoch,
            "overwrite": folder.overwrite and len(run.rows) == 1,
        }
        # The file has the averages as its weights, and what was trained beside them.
        trained = self.model.get_weights() if run.options.training.ema else None
        path = folder.file(run_folder.STATE)
        with run_folder.replace_file(path) as temporary, averaged(self.model):
            save_run(self.model, temporary, run.info, state, run.best_weights, trained)
        folder.finished = len(run.rows)
        if state["overwrite"]:  # what this allowed, now that the state is safe
            folder.remove_earlier_run()


class WriteLog(Job):
    """Writes log.csv and log.png, and prints a line."""

    def on_epoch_end(self, epoch, logs=None):
        write_log(self.run.rows, self.run.options.folder)
        row = self.run.rows[-1]
        name = "test" if "test_accuracy" in row else "val"
        error = 100 * (1 - row[f"{name}_accuracy"])
        print(f"epoch {epoch + 1}: {row['seconds']:.0f} s, {name} error {error:.2f} %")


def write_log(rows: list[dict], folder: RunFolder) -> None:
    """Writes log.csv and log.png."""
    run_folder.write_csv(folder.file(run_folder.LOG), rows)
    with run_folder.replace_file(folder.file("log.png")) as temporary:
        utils.plot_log(rows, temporary)


class StopEarly(Job):
    """Ends a training where the accuracy of "val" is enough, or gets no better.

    Also one whose network says the same of all images, once it could learn.
    """

    def on_epoch_end(self, epoch, logs=None):
        training = self.run.options.training
        if self.run.reached(training.stop_at, training.patience):
            self.model.stop_training = True
        steps = int(ops.convert_to_numpy(self.model.optimizer.iterations))
        had_time = steps >= training.warmup + STEPS_TO_LEARN
        if self.run.stuck and epoch > 0 and had_time:
            fault = (
                f"all images get the same outputs after epoch {epoch + 1}: no capsule "
                "has any length, or all are saturated"
            )
            raise diverged(fault, self.run)


class StopOnNaN(Job):
    """Ends a run whose loss is not finite any more.

    The losses may be looked at in other threads and late (`async_safe`); what they say
    is acted on in the next step.
    """

    def __init__(self, run: Run):
        super().__init__(run)
        self.found = {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self.found[batch] = logs["loss"]

    def on_train_batch_begin(self, batch, logs=None):
        self.check()

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def check(self) -> None:
        if self.found:
            batch = min(self.found)
            where = f"in epoch {self.epoch + 1}, step {batch + 1}"
            fault = f"the loss is {self.found[batch]} {where}"
            raise diverged(fault, self.run)


class StopOnSignal(keras.callbacks.Callback):
    """Ends a run after the step, or the writing of files, in which a signal came."""

    def __init__(self):
        super().__init__()
        self.number = None

    def take_note(self, number, frame):
        """Handles a signal."""
        if self.number is not None:
            raise Interrupted(number)
        self.number = number
        message = "\nStopping after this step; the same again stops at once.\n"
        os.write(2, message.encode())  # print is not made for signal handlers

    def on_train_batch_begin(self, batch, logs=None):
        self.check()

    def on_epoch_end(self, epoch, logs=None):
        self.check()

    def check(self) -> None:
        if self.number is not None:
            raise Interrupted(self.number)


def all_alike(outputs: np.ndarray) -> bool:
    """Whether a network is stuck: no capsule has any length, or all are saturated.

    Args:
        outputs: Lengths of the class capsules, shape (n, n_class).
    """
    return bool(outputs.max() < 0.1 or outputs.std(axis=0).max() < 0.01)


def diverged(fault: str, run: Run) -> DivergedError:
    """What is said of a training that cannot succeed: what to try, what is kept."""
    rest = "no epoch was finished"
    if run.rows:
        path = run.options.folder.file(run_folder.STATE)
        rest = f"the weights of epoch {len(run.rows)} are in {path}"
    lower = f"--lr {0.3 * run.options.training.lr:.1g}"
    return DivergedError(f"{fault}; try a lower learning rate, {lower}; {rest}")

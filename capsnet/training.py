"""The training loop: steps, a log, a run state after every epoch, an orderly end."""

import argparse
import contextlib
import csv
import dataclasses
import glob
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

import utils
from capsnet import backend, datasets, run_folder
from capsnet.augmentation import Affine
from capsnet.batches import ShiftedBatches
from capsnet.recipes import RECIPES, make_schedule
from capsnet.weights import ModelFileError, load_run, save_model, save_run

RUN_STATE = "run_state.h5"
# What tells that a folder holds a run.
RUN_FILES = (RUN_STATE, "log.csv", "trained_model.h5")


class DivergedError(RuntimeError):
    """A loss is not a number, or infinite; the message says where, and what to try."""


class Interrupted(BaseException):  # noqa: N818, no more an error than KeyboardInterrupt
    """SIGINT or SIGTERM came.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int):
        super().__init__("interrupted")
        self.status = 128 + number  # the shells' convention

    def explain(self, args: argparse.Namespace) -> None:
        """Adds what is finished of a training, and how to go on with it."""
        if args.testing or args.predict or args.export:
            return
        message = "interrupted; no epoch was finished"
        if args.finished:
            message = (
                f"interrupted; epoch {args.finished} is the last one finished, "
                f"--resume --save_dir {args.save_dir} goes on from there"
            )
        self.args = (message,)


@contextlib.contextmanager
def interruptible():
    """Within it, SIGINT and SIGTERM raise `Interrupted`."""

    def interrupt(number, frame):
        raise Interrupted(number)

    with _handle_signals(interrupt):
        yield


@contextlib.contextmanager
def _handle_signals(handler):
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are for the main thread alone
        return
    previous = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


def make_optimizer(
    args: argparse.Namespace, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """Adam, as the arguments say."""
    rate = make_schedule(
        args.lr,
        args.lr_decay,
        RECIPES[args.recipe].decay_steps,
        args.warmup,
        steps_per_epoch,
        args.epochs,
    )
    return backend.adam(rate, use_ema=bool(args.ema), ema_momentum=args.ema)


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

    def evaluate(self, outputs: list, targets: list) -> dict[str, float]:
        """The columns of the log for all samples of a set."""
        losses = {
            name: _mean(loss, target, output)
            for (name, loss), target, output in zip(
                self.losses.items(), targets, outputs
            )
        }
        total = sum(w * loss for w, loss in zip(self.loss_weights, losses.values()))
        if len(losses) == 1:
            losses = {}
        measures = {
            name: _mean(metric, targets[0], outputs[0])
            for name, metric in self.metrics.items()
        }
        return {"loss": total, **losses, **measures}


def _mean(function: Callable, target: np.ndarray, output: np.ndarray) -> float:
    return float(np.mean(ops.convert_to_numpy(function(target, output))))


@keras.saving.register_keras_serializable("capsnet")
def accuracy(y_true, y_pred):
    """Whether the largest output is that of the label, 0 or 1 for each sample."""
    return keras.metrics.categorical_accuracy(y_true, y_pred)


def train(
    model: keras.Model,
    data: datasets.Dataset,
    task: Task,
    info: dict,
    args: argparse.Namespace,
    stop_at: float | None = None,
) -> None:
    """Trains a model and writes its log and its weights to `args.save_dir`.

    Args:
        model: A model that is not compiled.
        data: A `datasets.Dataset`. The test images are evaluated after each epoch for
            the log and used by nothing.
        task: What the model is trained for.
        info: What the model file says about itself.
        args: The parsed command line.
        stop_at: Accuracy on the validation images at which the training ends.

    Raises: those of `fit`.
    """
    train_set, validation = datasets.split(
        *data.train, args.train_size, args.validation_size
    )
    batches = task.batches(
        *train_set,
        args.batch_size,
        args.shift_fraction,
        args.seed,
        affine=make_affine(args),
        drop_remainder=args.drop_remainder,
        num_shards=args.num_hosts,
        shard=args.host_id,
    )
    sets = {"val": validation, "test": data.test, **data.more_tests}
    held_out = {
        name: task.arrange(*pair)
        for name, pair in sets.items()
        if pair and len(pair[0])
    }
    task.compile(model, make_optimizer(args, len(batches)))
    log = EpochLog(batches, held_out, task, info, data.digest(), args, stop_at)
    fit(model, batches, log, args)


def make_affine(args: argparse.Namespace) -> Affine | None:
    """The random changes of images; None for shifts by whole pixels alone."""
    if not (args.rotation or args.zoom or args.shear):
        return None
    return Affine(args.rotation, args.zoom, args.shear, args.shift_fraction)


def fit(
    model: keras.Model,
    batches: ShiftedBatches,
    log: "EpochLog",
    args: argparse.Namespace,
) -> None:
    """Trains a compiled model, from the start or from where its run ended; saves it.

    The learning rate is the schedule of the model's optimizer or, if that has none,
    `args.lr * args.lr_decay ** epoch`. On return the model has the weights of the last
    epoch or, if the log evaluates a set "val", those of the epoch with the best
    accuracy on it.

    Args:
        model: A compiled model.
        batches: The training data.
        log: What is done after each epoch.
        args: The parsed command line.

    Raises:
        DivergedError: If a loss is not finite.
        Interrupted: After the step in which SIGINT or SIGTERM came.
        ModelFileError: If the run state to go on from does not fit.
        OSError: If a file cannot be written.
    """
    run_folder.remove_leftovers(args.save_dir, (*RUN_FILES, "log.png", *args.results))
    if args.resume:
        log.restore(model)
    log.check_space(model)
    callbacks = [
        keras.callbacks.LambdaCallback(on_epoch_begin=batches.set_epoch),
        Progress(),  # before the log, so that its time is training
        StopOnNaN(log),
        log,
    ]
    for callback in callbacks:
        # Their work after a step may wait until the step's losses are there, while the
        # next steps are under way: else a GPU would wait for each of them. Keras makes
        # use of it on JAX and PyTorch; on TensorFlow each step waits.
        callback.async_safe = True
    if isinstance(model.optimizer._learning_rate, keras.Variable):
        rates = keras.callbacks.LearningRateScheduler(
            lambda epoch: args.lr * args.lr_decay**epoch
        )
        callbacks.insert(0, rates)
    if args.debug:
        folder = os.path.join(args.save_dir, "tensorboard-logs")
        callbacks.append(keras.callbacks.TensorBoard(folder))
    stop = StopOnSignal()
    with _handle_signals(stop.take_note):
        model.fit(
            batches,
            initial_epoch=len(log.rows),
            epochs=len(log.rows) if log.reached_goal() else args.epochs,
            shuffle=False,
            callbacks=[*callbacks, stop],
            # A bar that moves on a terminal, a line an epoch in a file.
            verbose=1 if sys.stdout.isatty() else 2,
        )
    stop.check()  # a signal may have come after the last epoch
    if log.stop_at is not None:
        how = "" if log.reached_goal() else "not "
        n = len(log.rows)
        print(f"Validation accuracy of {log.stop_at:g} {how}reached after epoch {n}.")
    if log.best_weights is not None:
        model.set_weights(log.best_weights)
        print(f"Taking the weights of epoch {log.best_epoch}, the best in validation.")
    path = os.path.join(args.save_dir, "trained_model.h5")
    save_model(model, path, log.info)
    for name in ("log.csv", "log.png", "trained_model.h5"):
        print("Wrote", os.path.join(args.save_dir, name))


class Progress(keras.callbacks.ProgbarLogger):
    """Keras's bar, or line an epoch.

    If the reader of the output has gone, the epoch is not lost: the next line after
    its state is written ends the run.
    """

    def on_epoch_end(self, epoch, logs=None):
        with contextlib.suppress(BrokenPipeError):
            super().on_epoch_end(epoch, logs)


class EpochLog(keras.callbacks.Callback):
    """Evaluates after every epoch; keeps the run's state, its log, its best weights.

    `run_state.h5` in `args.save_dir` is replaced first: it holds all that is needed to
    go on. `log.csv` and `log.png` are made from it.

    Args:
        batches: The training data, a `ShiftedBatches`.
        held_out: For each set to evaluate, by the prefix of its columns in the log:
            the model's inputs, and what to compare its outputs with. The best weights
            are those with the best accuracy of "val", if it is there.
        task: What the model is trained for.
        info: What the model file says about itself.
        digest: Of the data, so that a run goes on with what it was begun with.
        args: The parsed command line.
        stop_at: Accuracy of "val" at which the training ends; None for all epochs.
    """

    def __init__(
        self,
        batches: ShiftedBatches,
        held_out: dict[str, tuple[list, list]],
        task: Task,
        info: dict,
        digest: str,
        args: argparse.Namespace,
        stop_at: float | None = None,
    ):
        super().__init__()
        self.batches = batches
        self.held_out = held_out
        self.task = task
        self.info = info
        self.digest = digest
        self.args = args
        self.stop_at = stop_at
        self.path = os.path.join(args.save_dir, RUN_STATE)
        self.rows = []
        self.best_weights = self.best_epoch = None

    def restore(self, model: keras.Model) -> None:
        """Goes back to the end of the last finished epoch, and rewrites the log.

        Raises:
            ModelFileError: If the run state is damaged, or of other data.
        """
        run, self.best_weights = load_run(model, self.path)
        self.rows, self.best_epoch = run["rows"], run["best_epoch"]
        columns = ["epoch", "seconds", "images_per_second", "learning_rate"]
        for prefix in ("", *(f"{name}_" for name in self.held_out)):
            names = ("loss", *self.task.columns(model).values())
            columns += [prefix + name for name in names]
        if list(self.rows[0]) != columns:
            raise ModelFileError(
                f"{self.path}: expected a log with the columns {', '.join(columns)}, "
                f"found {', '.join(self.rows[0])[:300]}."
            )
        if run != self.args.run:
            raise ModelFileError(
                f"{self.path}: expected the state that was there at the start, another "
                "run has replaced it"
            )
        if run["digest"] != self.digest:
            raise ModelFileError(
                f"{self.path}: expected the images and labels that the run was begun "
                "with, received others."
            )
        self.args.finished = len(self.rows)
        # The run may have ended between its state and what follows.
        if run["overwrite"] and not self.log_is_written():
            remove_run(self.args)
        self.write_log()

    def check_space(self, model: keras.Model) -> None:
        """Finds out before the first epoch whether there is room for its state.

        Raises:
            OSError: If there is not.
        """
        copies = 3 + ("val" in self.held_out)  # weights, Adam's moments, best weights
        copies += 2 * bool(self.args.ema)  # the averages, twice
        files = 1 if self.rows else 2  # the state, and the next one beside it
        needed = files * copies * 4 * model.count_params()
        free = shutil.disk_usage(self.args.save_dir).free
        if free < needed:
            raise OSError(
                f"{self.args.save_dir}: expected {needed / 1e6:.0f} MB of free disk "
                f"space, found {free / 1e6:.0f} MB"
            )

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.started
        columns = self.task.columns(self.model)
        row = {
            "epoch": epoch + 1,
            "seconds": round(seconds, 3),
            "images_per_second": round(self.batches.num_samples / seconds, 1),
            "learning_rate": float(
                ops.convert_to_numpy(self.model.optimizer.learning_rate)
            ),
            "loss": float(logs["loss"]),
            **{column: float(logs[name]) for name, column in columns.items()},
        }
        for name, (inputs, expected) in self.held_out.items():
            with averaged(self.model):
                outputs = predict(self.model, inputs, self.args)
            found = self.task.evaluate(outputs, expected)
            row.update({f"{name}_{column}": value for column, value in found.items()})
        for name, value in row.items():
            if not math.isfinite(value):
                raise self.diverged(f"after epoch {epoch + 1}", name, value)
        # Seven digits are what float32 holds.
        row = {k: float(f"{v:.7g}") if k != "epoch" else v for k, v in row.items()}
        if "val" in self.held_out and all(
            row["val_accuracy"] > earlier["val_accuracy"] for earlier in self.rows
        ):
            with averaged(self.model):
                self.best_weights = self.model.get_weights()
            self.best_epoch = epoch + 1
        self.rows.append(row)
        self.write_state()
        self.write_log()
        name = "test" if "test" in self.held_out else "val"
        error = 100 * (1 - row[f"{name}_accuracy"])
        print(f"epoch {epoch + 1}: {seconds:.0f} s, {name} error {error:.2f} %")
        if len(self.rows) == 2 and all_alike(outputs[0]):
            print(f"All images get the same outputs. Try {self.lower_rate()}.")
        if self.reached_goal():
            self.model.stop_training = True

    def reached_goal(self) -> bool:
        """Whether the last finished epoch has the accuracy to stop at."""
        if self.stop_at is None or not self.rows:
            return False
        return self.rows[-1]["val_accuracy"] >= self.stop_at

    def write_state(self) -> None:
        """Replaces the run state; this is what finishes an epoch."""
        first = len(self.rows) == 1
        run = {
            "arguments": {name: getattr(self.args, name) for name in self.args.of_run},
            "digest": self.digest,
            "rows": self.rows,
            "best_epoch": self.best_epoch,
            "overwrite": self.args.overwrite and first,
        }
        weights = self.model.get_weights() if self.args.ema else None
        with run_folder.replace_file(self.path) as temporary, averaged(self.model):
            save_run(self.model, temporary, self.info, run, self.best_weights, weights)
        self.args.finished = len(self.rows)
        if run["overwrite"]:  # what this allowed, now that the state is safe
            remove_run(self.args)

    def write_log(self) -> None:
        run_folder.write_csv(os.path.join(self.args.save_dir, "log.csv"), self.rows)
        path = os.path.join(self.args.save_dir, "log.png")
        with run_folder.replace_file(path) as temporary:
            utils.plot_log(self.rows, temporary)

    def log_is_written(self) -> bool:
        """Whether log.csv is that of the run state."""
        try:
            with open(os.path.join(self.args.save_dir, "log.csv"), newline="") as file:
                written = list(csv.DictReader(file))
        except (OSError, ValueError, csv.Error):  # none, or not ours
            return False
        return written == [{k: str(v) for k, v in row.items()} for row in self.rows]

    def lower_rate(self) -> str:
        return f"--lr {0.3 * self.args.lr:.1g}"

    def diverged(self, where: str, name: str, value: float) -> DivergedError:
        kept = "no epoch was finished"
        if self.rows:
            kept = f"the weights of epoch {len(self.rows)} are in {self.path}"
        return DivergedError(
            f"{name} is {value} {where}; try a lower learning rate, "
            f"{self.lower_rate()}; {kept}"
        )


def remove_run(args: argparse.Namespace) -> None:
    """Removes what an earlier run of this script left, but for its state."""
    folder = glob.escape(args.save_dir)
    # The log at last: without it, `EpochLog.restore` goes on here.
    for pattern in (*args.results, "log.png", "trained_model.h5", "log.csv"):
        for path in glob.glob(os.path.join(folder, pattern)):
            os.remove(path)


class StopOnNaN(keras.callbacks.Callback):
    """Ends a run whose loss is not finite any more.

    The losses may be looked at in other threads and late (`async_safe`); what they say
    is acted on in the next step.

    Args:
        log: The `EpochLog` of the run.
    """

    def __init__(self, log: EpochLog):
        super().__init__()
        self.log = log
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
            raise self.log.diverged(where, "the loss", self.found[batch])


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


def predict(model: keras.Model, inputs: list, args: argparse.Namespace) -> list:
    """The model's outputs for all samples, computed in batches of one size.

    The last batch is filled up, and what was filled in is cut off: each step has the
    same shape, which several devices share evenly. Each host computes its part of a
    batch, and gets the outputs of all.
    """
    n = len(inputs[0])
    per_device = min(args.batch_size // args.devices, math.ceil(n / args.devices))
    batch_size = per_device * args.devices
    host_size = batch_size // args.num_hosts
    fill = np.arange(-n % batch_size) % n
    filled = [np.concatenate([a, a[fill]]) if len(fill) else a for a in inputs]
    # (samples, ...) -> (batches, hosts, samples of a host, ...) -> ours, in a row
    parts = [a.reshape(-1, args.num_hosts, host_size, *a.shape[1:]) for a in filled]
    parts = [a[:, args.host_id].reshape(-1, *a.shape[3:]) for a in parts]
    inputs = parts if len(parts) > 1 else parts[0]
    outputs = model.predict(inputs, batch_size=host_size, verbose=0)
    return [a[:n] for a in (outputs if isinstance(outputs, list) else [outputs])]

"""The training loop: steps, a log, a run state after every epoch, an orderly end."""

import dataclasses
import math
import os
import shutil
import sys

import keras
import numpy as np

import utils
from capsnet import backend, callbacks, datasets, photos, run_folder
from capsnet.augmentation import Affine
from capsnet.batches import ShiftedBatches
from capsnet.callbacks import Run, StopOnSignal
from capsnet.interrupts import handle_signals
from capsnet.options import Options, Training
from capsnet.recipes import make_schedule
from capsnet.report import name_all
from capsnet.task import Task
from capsnet.weights import ModelFileError, load_run, save_model

SHOWN = 50  # images of `draw_batch`


def train(
    model: keras.Model,
    data: datasets.Dataset,
    task: Task,
    info: dict,
    options: Options,
) -> None:
    """Trains a model and writes its log and its weights to `options.folder`.

    Args:
        model: A model that is not compiled.
        data: The test images are evaluated after each epoch for the log and used by
            nothing.
        task: What the model is trained for.
        info: What the model file says about itself.
        options: How, on what, and where to.

    Raises: those of `fit`.
    """
    weight = options.training.reconstruction_weight(data.train[0].shape[1:])
    training = dataclasses.replace(options.training, lam_recon=weight)
    options = dataclasses.replace(options, training=training)  # for its state
    devices = options.devices
    os.makedirs(options.folder.path, exist_ok=True)
    train_set, validation = datasets.split(
        *data.train, training.train_size, training.validation_size
    )
    batches = task.batches(
        *train_set,
        training.batch_size,
        training.shift_fraction,
        training.seed,
        affine=make_affine(training),
        fill=photos.border_colour(train_set[0]),
        balance=training.balance,
        drop_remainder=training.drop_remainder,
        num_shards=devices.num_hosts,
        shard=devices.host_id,
    )
    sets = {"val": validation, "test": data.test, **data.more_tests}
    held_out = {
        name: task.arrange(*pair)
        for name, pair in sets.items()
        if pair and len(pair[0])
    }
    task.compile(model, make_optimizer(training, len(batches)))
    if options.show_batch:
        draw_batch(batches, data.class_names, options.folder.file("batch.png"))
    fit(model, Run(options, task, batches, held_out, info, data.digest()))


def draw_batch(batches: ShiftedBatches, class_names: list[str], path: str) -> None:
    """Draws images as a network will see them, with the names of their classes.

    Args:
        batches: The training data.
        class_names: A name for each class.
        path: The picture to write.
    """
    images, labels = [], []
    for i in range(min(len(batches), math.ceil(SHOWN / batches.batch_size))):
        (x, y), _ = batches[i]
        images.extend(x)
        labels.extend(y)
    titles = [utils.shorten(name_all(class_names, row > 0.5)) for row in labels[:SHOWN]]
    title = f"The first images of epoch {batches.epoch + 1}, changed as the flags say"
    shown = np.stack(images[:SHOWN])
    run_folder.draw(path, utils.plot_sheet, shown, titles, title)


def make_affine(training: Training) -> Affine | None:
    """The random changes of images; None for shifts by whole pixels alone."""
    t = training
    if not (t.rotation or t.zoom or t.shear or t.flip):
        return None
    return Affine(t.rotation, t.zoom, t.shear, t.shift_fraction, t.flip)


def make_optimizer(training: Training, steps_per_epoch: int) -> keras.Optimizer:
    """With the learning rates and the average of the weights that are asked."""
    make = {"adam": backend.adam, "muon": backend.muon}[training.optimizer]
    rate = make_schedule(training, steps_per_epoch)
    return make(rate, use_ema=bool(training.ema), ema_momentum=training.ema)


def fit(model: keras.Model, run: Run) -> None:
    """Trains a compiled model, from the start or from where its run ended; saves it.

    On return the model has the weights of the last epoch or, if a set "val" is held
    out, those of the epoch with the best accuracy on it.

    Raises:
        DivergedError: If a loss is not finite, or all outputs are alike.
        Interrupted: After the step in which SIGINT or SIGTERM came.
        ModelFileError: If the run state to go on from does not fit.
        OSError: If a file cannot be written.
    """
    training, folder = run.options.training, run.options.folder
    folder.remove_leftovers()
    if run.options.begun is not None:
        restore(model, run)
    check_space(model, run)
    loop = make_callbacks(model, run)
    done = run.reached(training.stop_at, training.patience)
    stop = StopOnSignal()
    with handle_signals(stop.take_note):
        model.fit(
            run.batches,
            initial_epoch=len(run.rows),
            epochs=len(run.rows) if done else training.epochs,
            shuffle=False,
            callbacks=[*loop, stop],
            # A bar that moves on a terminal, a line an epoch in a file.
            verbose=1 if sys.stdout.isatty() else 2,
        )
    stop.check()  # a signal may have come after the last epoch
    if training.stop_at is not None:
        how = "" if run.reached(training.stop_at) else "not "
        print(
            f"Validation accuracy of {training.stop_at:g} {how}reached after epoch "
            f"{len(run.rows)}."
        )
    if run.best_weights is not None:
        model.set_weights(run.best_weights)
        epoch = run.best_epoch
        print(f"Taking the weights of epoch {epoch}, the best in validation.")
    save_model(model, folder.file(run_folder.MODEL), run.info)
    for name in (run_folder.LOG, "log.png", run_folder.MODEL):
        print("Wrote", folder.file(name))


def make_callbacks(model: keras.Model, run: Run) -> list[keras.callbacks.Callback]:
    """What `fit` does around its steps, in this order."""
    training = run.options.training
    made = [
        keras.callbacks.LambdaCallback(on_epoch_begin=run.batches.set_epoch),
        callbacks.Progress(),  # before the evaluation, so that its time is training
        callbacks.StopOnNaN(run),
        callbacks.Evaluate(run),
        callbacks.KeepBest(run),
        callbacks.SaveState(run),
        callbacks.WriteLog(run),
        callbacks.StopEarly(run),
    ]
    for callback in made:
        # Their work after a step may wait until the step's losses are there, while the
        # next steps are under way: else a GPU would wait for each of them. Keras makes
        # use of it on JAX and PyTorch; on TensorFlow each step waits.
        callback.async_safe = True
    if isinstance(model.optimizer._learning_rate, keras.Variable):  # no schedule
        rates = keras.callbacks.LearningRateScheduler(
            lambda epoch: training.lr * training.lr_decay**epoch
        )
        made.insert(0, rates)
    if run.options.debug:
        folder = run.options.folder
        made.append(keras.callbacks.TensorBoard(folder.file("tensorboard-logs")))
    return made


def log_columns(measured: dict[str, str], held_out: dict) -> list[str]:
    """The columns of log.csv."""
    columns = ["epoch", "seconds", "images_per_second", "learning_rate"]
    for prefix in ("", *(f"{name}_" for name in held_out)):
        columns += [prefix + name for name in ("loss", *measured.values())]
    return columns


def restore(model: keras.Model, run: Run) -> None:
    """Goes back to the end of the last finished epoch, and rewrites the log.

    Raises:
        ModelFileError: If the run state is damaged, or of other data.
    """
    folder = run.options.folder
    path = folder.file(run_folder.STATE)
    state, run.best_weights = load_run(model, path)
    rows, run.best_epoch = state["rows"], state["best_epoch"]
    columns = log_columns(run.task.columns(model), run.held_out)
    if list(rows[0]) != columns:
        raise ModelFileError(
            f"{path}: expected a log with the columns {', '.join(columns)}, "
            f"found {', '.join(rows[0])[:300]}."
        )
    if state != run.options.begun:
        raise ModelFileError(
            f"{path}: expected the state that was there at the start, another "
            "run has replaced it"
        )
    if state["digest"] != run.digest:
        raise ModelFileError(
            f"{path}: expected the images and labels that the run was begun "
            "with, received others."
        )
    # The run may have ended between its state and what follows.
    if state["overwrite"]:
        written = run_folder.read_csv(folder.file(run_folder.LOG))
        if written != [{k: str(v) for k, v in row.items()} for row in rows]:
            folder.remove_earlier_run()
    callbacks.write_log(rows, folder)
    run.rows = rows


def check_space(model: keras.Model, run: Run) -> None:
    """Finds out before the first epoch whether there is room for its state.

    Raises:
        OSError: If there is not.
    """
    options = run.options
    copies = 3 + ("val" in run.held_out)  # weights, Adam's moments, best weights
    copies += 2 * bool(options.training.ema)  # the averages, twice
    files = 1 if run.rows else 2  # the state, and the next one beside it
    needed = files * copies * 4 * model.count_params()
    free = shutil.disk_usage(options.folder.path).free
    if free < needed:
        raise OSError(
            f"{options.folder.path}: expected {needed / 1e6:.0f} MB of free disk "
            f"space, found {free / 1e6:.0f} MB"
        )

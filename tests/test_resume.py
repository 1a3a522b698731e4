"""Runs that end before their time, and go on.

`tests/long/kills.py` does at hundreds of moments what is done here at a few.
"""

import contextlib
import errno
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
from conftest import (
    ROOT,
    assert_picture,
    assert_same_run,
    contents,
    environment,
    error_line,
    leave_out_pictures,
    main,
    quiet_main,
    read_log,
    read_weights,
    run,
    without_times,
    write_digits,
)

import capsulenet
from capsnet import callbacks, datasets, report, run_folder, session
from capsnet.callbacks import Evaluate, KeepBest, SaveState, WriteLog
from capsnet.run_folder import RunFolder
from capsnet.weights import read_run

SCRIPT = ROOT / "capsulenet.py"
# The learning rate is right in epoch 1 and far too large in those that follow: the
# first is the best one, and whatever differs by a bit soon differs by much.
OPTIONS = ["--batch_size", 10, "--validation_size", 20, "--lr_decay", 30]
SMALL = ["--image_size", 17, 17]  # where it does not matter what is learned
PICTURES = ("manipulate-5.png", *report.FILES[1:])  # are drawn after a training
RESULTS = (*PICTURES, "test.csv")
REWRITTEN = (".lock", "log.csv", "log.png")  # whenever a run goes on
PATIENCE = 300  # seconds, for a machine that is very busy


def finished_epochs(folder):
    return len(read_run(str(folder / "run_state.h5"))["rows"])


@pytest.fixture(scope="module")
def few(mnist, tmp_path_factory):
    """A --data_dir with few digits."""
    return write_digits(tmp_path_factory.mktemp("few"), mnist, 120, 30)


@pytest.fixture(scope="module")
def two_epochs(few, tmp_path_factory):
    """The folder of a run of two epochs that was never interrupted."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        quiet_main(*OPTIONS, "--epochs", 2, "--data_dir", few, "--save_dir", folder)
    return folder


@pytest.fixture(scope="module")
def first_epoch(few, tmp_path_factory):
    """The folder of a run that was to have one epoch only."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        quiet_main(*OPTIONS, "--epochs", 1, "--data_dir", few, "--save_dir", folder)
    for name in PICTURES:
        (folder / name).write_text("its picture")
    return folder


@pytest.fixture
def finished(first_epoch, tmp_path):
    """A copy of it, to go on with or to damage."""
    return Path(shutil.copytree(first_epoch, tmp_path / "result"))


@pytest.fixture
def begun(first_epoch, tmp_path):
    """A run state without its arrays: what is refused before they are read."""
    folder = tmp_path / "result"
    folder.mkdir()
    with (
        h5py.File(first_epoch / "run_state.h5") as whole,
        h5py.File(folder / "run_state.h5", "w") as file,
    ):
        file.attrs["capsnet"] = whole.attrs["capsnet"]
        file["info"] = whole["info"][()]
        file["run"] = whole["run"][()]
    return folder


# Going on.


def kill(tmp_path, *runs):
    """Starts runs one after the other, each of which kills itself at a point.

    They are forked from a process that has computed nothing so far, as this one may
    have.
    """
    script = (
        "import json, sys\n"
        "from tests.long.processes import Forked, Point\n"
        "for arguments, point in json.loads(sys.argv[1]):\n"
        "    print(Forked(arguments, sys.argv[2], Point(*point)).wait())\n"
    )
    runs = json.dumps([[list(map(str, a)), point] for a, point in runs])
    output = tmp_path / "output.txt"
    process = run(runs, output, program=("-c", script), timeout=PATIENCE)
    return [int(status) for status in process.stdout.split()]


@pytest.mark.usefixtures("no_pictures")
def test_a_run_goes_on_as_if_it_had_never_ended(finished, two_epochs):
    """A finished run gets another epoch."""
    assert main("--resume", "--epochs", 2, "--save_dir", finished) == 0
    assert_same_run(finished, two_epochs)


@pytest.mark.slow
def test_a_run_goes_on_after_kills(finished, two_epochs, tmp_path, capsys):
    """A finished run gets another epoch, and is killed twice in it."""
    more = ["--resume", "--epochs", 2, "--save_dir", finished]
    statuses = kill(
        tmp_path,
        (more, ["run_state.h5", "in the middle of a write", 2]),
        (more, ["", "after a training step", 2, 5]),
    )
    assert statuses == 2 * [-signal.SIGKILL]
    assert finished_epochs(finished) == 1
    assert without_times(read_log(finished)) == without_times(read_log(two_epochs)[:1])

    assert main(*more) == 0
    assert_same_run(finished, two_epochs)
    assert {*os.listdir(finished)} == {*os.listdir(two_epochs), *RESULTS}
    log = (finished / "log.png", two_epochs / "log.png")
    assert log[0].read_bytes() == log[1].read_bytes()
    for name in PICTURES:
        assert_picture(finished / name)

    # The best epoch was before the kills.
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Going on after epoch 1 of 2: CapsNet, ")
    assert "Taking the weights of epoch 1, the best in validation.\n" in out
    best, last = (
        read_weights(finished / name)["conv1/conv1/0/kernel"]
        for name in ("trained_model.h5", "run_state.h5")
    )
    assert not np.array_equal(best, last)


@pytest.mark.usefixtures("no_pictures")
def test_the_log_is_written_anew(finished, first_epoch):
    """A run may end between its state and its log, or in the writing of a file."""
    (finished / "log.csv").unlink()
    for name in ("run_state.h5", "log.csv", "log.png", "trained_model.h5"):
        (finished / f".123.{name}").write_text("cut")
    assert main("--resume", "--save_dir", finished) == 0
    assert sorted(os.listdir(finished)) == sorted(os.listdir(first_epoch))
    assert_same_run(finished, first_epoch)


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    "flags", ["", "--lr 0.001 --batch_size 10 --lam_recon 0.392 -r 3", "--digit 7"]
)
def test_flags_are_those_of_the_run(begun, fails, few, flags):
    message = fails("--resume", "--save_dir", begun, *flags.split())
    assert message == f"loading {few}"


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("flag", "expected", "received"),
    [
        ("--lr_decay", "30.0", "0.9"),
        ("--train_size", "None", "50"),
        ("--dataset", "mnist", "fashion_mnist"),
        ("--weights", "None", "other.h5"),
    ],
)
def test_flags_that_contradict_the_run(begun, fails, flag, expected, received):
    message = fails("--resume", "--save_dir", begun, flag, received)
    assert message == (
        f"{flag}: expected {expected}, with which the run in {begun} was begun, "
        f"received {received}"
    )


@pytest.mark.usefixtures("no_data")
def test_fewer_epochs_than_are_finished(two_epochs, fails):
    message = fails("--resume", "--epochs", 1, "--save_dir", two_epochs)
    expected = "--epochs: expected at least 2, as many are finished, received 1"
    assert message == expected


@pytest.mark.usefixtures("no_data")
def test_a_run_whose_rate_ends_at_zero_keeps_its_length(begun, fails):
    forge(begun, argument(lr_decay=None))
    assert fails("--resume", "--epochs", 2, "--save_dir", begun) == (
        "--epochs: expected 1, at the end of which the learning rate of this run is "
        "zero, received 2"
    )


@pytest.mark.usefixtures("no_pictures")
def test_the_same_data_may_lie_elsewhere(finished, few, tmp_path):
    moved = shutil.copytree(few, tmp_path / "moved")
    assert main("--resume", "--save_dir", finished, "--data_dir", moved) == 0
    run = read_run(str(finished / "run_state.h5"))
    assert finished_epochs(finished) == 1 and run["best_epoch"] == 1


def test_other_data(finished, few, capsys, tmp_path):
    with np.load(few / "mnist.npz") as file:
        arrays = dict(file)
    arrays["x_train"][7, 14, 14] ^= 1  # a pixel is enough
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other" / "mnist.npz", **arrays)
    before = contents(finished)
    flags = ("--resume", "--save_dir", finished, "--data_dir", tmp_path / "other")
    assert main(*flags) == 2
    message = error_line(capsys.readouterr().err)
    assert "expected the images and labels that the run was begun with" in message
    assert contents(finished) == before


# What a folder holds already.


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("name", ["run_state.h5", "log.csv", "trained_model.h5"])
def test_a_run_is_not_replaced_unasked(fails, tmp_path, name):
    (tmp_path / name).write_text("of an earlier run")
    assert fails("--save_dir", tmp_path) == (
        f"--save_dir: {tmp_path} holds a run already ({name}): --resume goes on with "
        "it, --overwrite replaces it"
    )


def test_overwrite(finished, few, on_step, monkeypatch, capsys):
    (finished / "manipulate-7.png").write_text("of the earlier run")
    for name in ("notes.txt", "tests.csv"):
        (finished / name).write_text("of the user")
    earlier = contents(finished)
    seen = []
    on_step(1, 2, lambda: seen.append(contents(finished)))
    # The run ends after the first epoch: a signal comes while the log is written.
    write_csv = run_folder.write_csv

    def interrupt(path, rows):
        os.kill(os.getpid(), signal.SIGTERM)
        write_csv(path, rows)

    monkeypatch.setattr(run_folder, "write_csv", interrupt)
    options = [*SMALL, "--epochs", 2, "--seed", 1, "--data_dir", few]
    assert main("--overwrite", *options, "--save_dir", finished) == 143

    assert seen == [earlier]  # at the last step of the first epoch
    files = ["log.csv", "log.png", "notes.txt", "run_state.h5", "tests.csv"]
    assert sorted(contents(finished)) == files
    run = read_run(str(finished / "run_state.h5"))
    assert run["arguments"]["training"]["seed"] == 1 and len(run["rows"]) == 1
    assert len(read_log(finished)) == 1
    _, err = capsys.readouterr()
    assert "epoch 1 is the last one finished" in err.splitlines()[-1]


AFTER_AN_EPOCH = (Evaluate, KeepBest, SaveState, WriteLog)


def end_epoch(model, *arguments, epochs, callbacks, **options):
    """In the place of `fit`: the end of the last epoch is all that there is of it."""
    names = ["loss", *capsulenet.task(0.392).columns(model)]
    for callback in callbacks:
        if isinstance(callback, AFTER_AN_EPOCH):
            callback.set_model(model)
            callback.on_epoch_begin(epochs - 1)
            callback.on_epoch_end(epochs - 1, dict.fromkeys(names, 0.5))


def no_epoch(*arguments, **options):
    """In the place of `fit`: it is over already."""


def test_overwriting_that_fails_leaves_the_earlier_run(
    finished, few, monkeypatch, capsys
):
    def replace(source, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(keras.Model, "fit", end_epoch)
    monkeypatch.setattr(os, "replace", replace)
    before = contents(finished)
    options = ["--overwrite", "--epochs", 1, "--data_dir", few]
    assert main(*options, "--save_dir", finished) == 2
    message = error_line(capsys.readouterr().err)
    assert message.endswith("cannot be written: Input/output error")
    assert contents(finished) == before


@pytest.mark.usefixtures("no_pictures")
def test_going_on_finishes_what_overwrite_began(finished, first_epoch):
    """A run may end when its first state is there, and the earlier run is, too."""
    forge(finished, lambda run: run.update(overwrite=True))
    for name in ("log.csv", "trained_model.h5", "manipulate-7.png"):
        (finished / name).write_text("of the earlier run")
    assert main("--resume", "--save_dir", finished) == 0
    assert {*os.listdir(finished)} == {*os.listdir(first_epoch)} - {*RESULTS}
    assert_same_run(finished, first_epoch)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("overwrite", [False, True])
def test_going_on_removes_nothing_of_its_own_run(finished, overwrite):
    forge(finished, lambda run: run.update(overwrite=overwrite))
    (finished / "manipulate-7.png").write_text("of this run, or of the user")
    before = os.listdir(finished)
    assert main("--resume", "--save_dir", finished) == 0
    assert sorted(os.listdir(finished)) == sorted(before)


@pytest.mark.usefixtures("no_pictures")
def test_a_first_run_leaves_the_files_of_the_user(few, monkeypatch, tmp_path):
    monkeypatch.setattr(keras.Model, "fit", end_epoch)
    mine = ["manipulate-7.png", "test.csv", "log.png.txt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    assert main(*OPTIONS, "--data_dir", few, "--save_dir", tmp_path) == 0
    assert [(tmp_path / name).read_text() for name in mine] == ["mine"] * 3


@pytest.mark.usefixtures("no_pictures")
def test_a_state_that_is_replaced_at_the_start(
    finished, two_epochs, monkeypatch, capsys
):
    load_data = session.load_data

    def replace_and_load(options):
        shutil.copy(two_epochs / "run_state.h5", finished)
        return load_data(options)

    monkeypatch.setattr(session, "load_data", replace_and_load)
    assert main("--resume", "--epochs", 2, "--save_dir", finished) == 2
    assert "another run has replaced it" in error_line(capsys.readouterr().err)


@pytest.mark.usefixtures("no_data")
def test_there_is_no_run_to_go_on_with(fails, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert fails("--resume", "--save_dir", folder) == (
            f"--resume: there is no run to go on with, no {folder}/run_state.h5"
        )


# Run states that are not what they should be.


def forge(folder, change):
    """Changes the JSON of a run state."""
    with h5py.File(folder / "run_state.h5", "r+") as file:
        run = json.loads(file["run"][()].tobytes())
        change(run)
        del file["run"]
        file["run"] = np.frombuffer(json.dumps(run).encode(), "uint8")


DAMAGED = "damaged run state: "
OTHER_VERSION = "expected a run of this version, found one of another: "
OTHER_VERSION += "they differ in "


def argument(group="training", **values):
    return lambda run: run["arguments"][group].update(values)


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (argument(drop_remainder="yes"), f"{DAMAGED}--drop_remainder: expected true"),
        (argument(momentum=0.9), f"{OTHER_VERSION}[momentum]"),
        (lambda run: run["arguments"]["training"].pop("lr"), f"{OTHER_VERSION}[lr]"),
        (
            argument(lr="fast"),
            f"{DAMAGED}--lr: expected at least 0 and less than 1e+35",
        ),
        (argument(lr=math.nan), f"{DAMAGED}--lr: expected at least 0 and less than"),
        (argument(ema=1), f"{DAMAGED}--ema: expected at least 0 and less than 1"),
        (argument(epochs=None), f"{DAMAGED}--epochs: expected 1 to "),
        (argument(epochs=2.5), f"{DAMAGED}--epochs: expected 1 to "),
        (argument(epochs=True), f"{DAMAGED}--epochs: expected 1 to "),
        (argument(batch_size=0), f"{DAMAGED}--batch_size: expected 1 to "),
        (argument(recipe=["seed"]), f"{DAMAGED}--recipe: expected seed or modern or"),
        (argument(recipe="mine"), f"{DAMAGED}--recipe: expected seed or modern or"),
        (argument(help=True), f"{OTHER_VERSION}[help]"),
        (lambda run: run["arguments"].update(data=3), OTHER_VERSION),
        (argument("data", dataset="x" * 5000), f"{DAMAGED}--dataset: expected a text"),
        (argument("data", dataset=3), f"{DAMAGED}--dataset: expected a text"),
        (argument("data", image_size=[28]), f"{DAMAGED}--image_size: expected two num"),
        (argument("data", image_size=[0, 28]), f"{DAMAGED}--image_size: "),
        (lambda run: run["arguments"].update(weights=3), f"{DAMAGED}--weig"),
        (lambda run: run.update(arguments=[]), "damaged run state"),
        (lambda run: run.update(rows=[]), "damaged run state"),
        (lambda run: run["rows"][0].update(epoch=2), "damaged run state"),
        (lambda run: run["rows"][0].update(loss="low"), "damaged run state"),
        (lambda run: run.update(best_epoch=2), "damaged run state"),
        (lambda run: run.update(digest=None), "damaged run state"),
        (lambda run: run.pop("overwrite"), "damaged run state"),
        (lambda run: run.update(overwrite=1), "damaged run state"),
    ],
)
def test_forged_run_states(begun, fails, change, complaint):
    forge(begun, change)
    message = fails("--resume", "--save_dir", begun)
    assert message.startswith(f"{begun}/run_state.h5: {complaint}")
    assert len(message) < 500 + len(str(begun))


def test_the_log_of_another_kind_of_run(finished, capsys):
    def rename_column(run):
        run["rows"] = [
            {"error" if k == "test_loss" else k: v for k, v in row.items()}
            for row in run["rows"]
        ]

    forge(finished, rename_column)
    before = contents(finished)
    assert main("--resume", "--save_dir", finished) == 2
    message = error_line(capsys.readouterr().err)
    expected = "expected a log with the columns epoch, "
    assert message.startswith(f"{finished}/run_state.h5: {expected}")
    assert contents(finished) == before


# Two runs in one folder.


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_a_second_run_is_refused(first_epoch, few, tmp_path, fails, flags):
    folder = tmp_path / "result"
    if flags:
        shutil.copytree(first_epoch, folder)
    folder.mkdir(exist_ok=True)
    with RunFolder(folder).locked():
        options = [*OPTIONS, "--data_dir", few, "--save_dir", folder]
        assert fails(*flags, *options) == f"{folder}: another run is at work here"
    with RunFolder(folder).locked():  # it is free again
        pass


# SIGINT (Ctrl-C) and SIGTERM.


def start(folder, *arguments, program=(SCRIPT,)):
    """A script in a process of its own, with its output in files."""
    output, errors = folder / "output.txt", folder / "errors.txt"
    with open(output, "wb") as stdout, open(errors, "wb") as stderr:
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=folder,
            env=environment(),
            stdout=stdout,
            stderr=stderr,
        )


def wait_until(condition, process):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_sigint_in_a_process_of_its_own(few, tmp_path):
    options = [*SMALL, "--epochs", 10_000, "--batch_size", 10, "--data_dir", few]
    process = start(tmp_path, *options, "--save_dir", "result")
    try:
        output = tmp_path / "output.txt"
        wait_until(lambda: "Epoch 2/" in output.read_text(), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
        process.wait()
    n = finished_epochs(tmp_path / "result")
    assert (tmp_path / "errors.txt").read_text() == (
        "\nStopping after this step; the same again stops at once.\n"
        f"capsulenet.py: interrupted; epoch {n} is the last one finished, "
        "--resume --save_dir result goes on from there\n"
    )
    files = [".lock", "log.csv", "log.png", "run_state.h5"]
    assert sorted(os.listdir(tmp_path / "result")) == files
    assert len(read_log(tmp_path / "result")) == n


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(
    ("program", "number"),
    [((SCRIPT,), signal.SIGTERM), (("-m", "experiments.baseline"), signal.SIGINT)],
    ids=["script", "study"],
)
def test_signals_while_the_libraries_are_loaded(tmp_path, program, number):
    process = start(tmp_path, "--save_dir", "result", program=program)

    def is_handled():
        text = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(re.search(r"SigCgt:\s*(\w+)", text)[1], 16)
        return caught >> (signal.SIGTERM - 1) & 1

    try:
        wait_until(is_handled, process)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
    finally:
        process.kill()
        process.wait()
    assert sorted(os.listdir(tmp_path)) == ["errors.txt", "output.txt"]
    # Nothing, or one line if the signal came so late that `main` was there.
    errors = (tmp_path / "errors.txt").read_text()
    assert re.fullmatch(r"(\w+\.py: interrupted.*\n)?", errors)


def test_signals_before_the_training(monkeypatch, capsys, tmp_path):
    def load_dataset(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it goes on")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert main("--save_dir", tmp_path / "result") == 143
    assert capsys.readouterr().err.endswith(": interrupted; no epoch was finished\n")
    assert not (tmp_path / "result").exists()
    # Whoever calls `main` has their handlers back.
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_first_epoch(few, on_step, capsys, tmp_path):
    steps = []
    on_step(1, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    on_step(1, 3, lambda: steps.append(3))
    options = [*SMALL, "--batch_size", 10, "--data_dir", few, "--save_dir", tmp_path]
    assert main(*options) == 130
    assert steps == []
    assert capsys.readouterr().err.endswith(": interrupted; no epoch was finished\n")
    assert contents(tmp_path) == {}


def interrupt(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)


def insist(*arguments, **options):
    interrupt()
    interrupt()  # if the first did not stop it at once
    pytest.fail("it goes on")


FIT, SAVE, TEST = (keras.Model, "fit"), (callbacks, "save_run"), (capsulenet, "test")


@pytest.mark.parametrize(
    "places",
    [
        {FIT: insist},
        {FIT: end_epoch, SAVE: insist},
        {FIT: interrupt},
        {FIT: no_epoch, TEST: insist},
    ],
    ids=["in an epoch", "in its writing", "after the last", "in the test"],
)
def test_a_signal_when_an_epoch_is_finished(finished, places, monkeypatch, capsys):
    for place, function in places.items():
        monkeypatch.setattr(*place, function)
    rewritten = (*REWRITTEN, "trained_model.h5")
    before = contents(finished, but=rewritten)
    assert main("--resume", "--epochs", 2, "--save_dir", finished) == 143
    assert contents(finished, but=rewritten) == before
    assert capsys.readouterr().err.endswith(
        ": interrupted; epoch 1 is the last one finished, "
        f"--resume --save_dir {finished} goes on from there\n"
    )


# Losses that are not finite.


def test_a_learning_rate_that_is_far_too_large(few, capsys, tmp_path):
    options = [*SMALL, "--batch_size", 10, "--data_dir", few, "--save_dir", tmp_path]
    assert main(*options, "--lr", 1e30) == 1
    assert re.fullmatch(
        r"the loss is (nan|inf) in epoch 1, step \d+; try a lower learning rate, "
        r"--lr 3e\+29; no epoch was finished",
        error_line(capsys.readouterr().err),
    )
    assert contents(tmp_path) == {}


# Disks.


@contextlib.contextmanager
def mounted(folder, options):
    """A small disk of its own, where the system lets us have one."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    if (
        not shutil.which("mount")
        or subprocess.run(command, capture_output=True).returncode
    ):
        pytest.skip("needs the permission to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def limited_size(megabytes):
    """Writing beyond so much of a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * 10**6, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fit", "name"), [(end_epoch, "run_state.h5"), (no_epoch, "trained_model.h5")]
)
def test_a_write_that_fails_leaves_the_files_of_before(
    finished, fit, name, monkeypatch, capsys
):
    monkeypatch.setattr(keras.Model, "fit", fit)
    before, log = contents(finished, but=REWRITTEN), read_log(finished)
    with limited_size(megabytes=20):
        assert main("--resume", "--epochs", 2, "--save_dir", finished) == 2
    message = f"{finished / name}: cannot be written: File too large"
    assert error_line(capsys.readouterr().err) == message
    assert contents(finished, but=REWRITTEN) == before
    assert read_log(finished) == log


def test_too_little_space_is_said_before_the_first_epoch(
    few, monkeypatch, capsys, tmp_path
):
    usage = SimpleNamespace(free=200_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert main(*OPTIONS, "--data_dir", few, "--save_dir", tmp_path) == 2
    assert re.fullmatch(
        rf"{tmp_path}: expected 2\d\d MB of free disk space, found 200 MB",
        error_line(capsys.readouterr().err),
    )
    assert contents(tmp_path) == {}


def test_a_folder_that_is_read_only(finished, capsys, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o500)
    disk, reason = contextlib.nullcontext(), "Permission denied"
    if os.access(folder, os.W_OK):  # as root, who may write where the disk lets him
        disk, reason = mounted(folder, "size=1m,ro"), "Read-only file system"
    with disk:
        assert main("--save_dir", folder) == 2
    message = f"--save_dir: cannot write to {folder}: {reason}"
    assert error_line(capsys.readouterr().err) == message


def test_a_file_is_safe_before_it_takes_its_name(monkeypatch, tmp_path):
    """What a power cut asks for; a kill does not lose what was written."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        what = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        calls.append(f"fsync {what}")
        fsync(descriptor)

    def noted_replace(source, target):
        calls.append(f"{os.path.basename(target)}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    run_folder.write_csv(str(tmp_path / "log.csv"), [{"epoch": 1}])
    assert calls == ["fsync file", "log.csv", "fsync folder"]

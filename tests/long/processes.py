"""Runs of the command line that can be ended at a moment of choice.

To start TensorFlow takes longer than a tiny run, so they are children, forked after the
imports and before anything is computed. A child tells through a pipe where it is:
"start", "epoch 1", "writing log.csv", "written log.csv" and so on. What it told last
before it died is where it was.
"""

import builtins
import contextlib
import dataclasses
import os
import select
import signal
import sys
import time
import traceback

import capsulenet
from capsnet import callbacks, run_folder

START_UP, FIRST_EPOCH = "start-up", "first epoch"
BETWEEN, WRITING = "between", "while writing"
# What is done to a file, one after the other.
STEPS = (
    "before it is opened",
    "in the middle of a write",
    "before its fsync",
    "before its rename",
    "before the folder's fsync",
    "when it is done",
)
REMOVING = "while the earlier run is removed"
STEPPING = "after a training step"
LONGEST = 300  # seconds that a run may take before something is wrong


class HangError(RuntimeError):
    """A run did not come to an end."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A place where a run kills itself.

    Args:
        file: Name of the file that is being written; empty for what is no step of it.
        step: One of `STEPS`, `REMOVING` or `STEPPING`.
        epoch: In which epoch; 0 is before the first one of this process.
        number: Of the write, of the file that is removed, or of the training step.
    """

    file: str
    step: str
    epoch: int
    number: int = 1


class Forked:
    """A run in a forked child.

    Args:
        arguments: The command line.
        output: Name of the file for what it prints.
        point: Where it kills itself, if it does.
    """

    def __init__(self, arguments: list[str], output: str, point: Point | None = None):
        self.events = []
        self._pipe, write_end = os.pipe()
        self._rest = b""
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _be_child(arguments, output, write_end, point)
        os.close(write_end)

    def wait_for(self, event: str) -> bool:
        """Waits until it tells something; returns False if it ended before."""
        end = time.monotonic() + LONGEST
        while not self.has_told(event):
            if not self._read(end):
                return False
        return True

    def wait(self) -> int:
        """Waits for the end; returns the exit status, or minus the signal."""
        end = time.monotonic() + LONGEST
        while self._read(end):
            pass
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def is_at_work_after(self, seconds: float) -> bool:
        """Waits; returns False as soon as it has ended."""
        end = time.monotonic() + seconds
        while not self.has_told("end") and (left := end - time.monotonic()) > 0:
            if select.select([self._pipe], [], [], left)[0] and not self._receive():
                return False
        return not self.has_told("end")

    def _read(self, end):
        left = max(0, end - time.monotonic())
        if not select.select([self._pipe], [], [], left)[0]:
            os.kill(self.pid, signal.SIGKILL)
            raise HangError(f"no end after {LONGEST} s, at {self.events[-1:]}")
        return self._receive()

    def _receive(self):
        received = os.read(self._pipe, 4096)
        *lines, self._rest = (self._rest + received).split(b"\n")
        self.events += [(line.decode(), time.monotonic()) for line in lines]
        return bool(received)

    def phase(self) -> str:
        """Where it was when it ended."""
        phase = START_UP
        before = phase
        for event, _ in self.events:
            what, _, name = event.partition(" ")
            if what == "epoch":
                phase = before = FIRST_EPOCH if name == "1" else BETWEEN
            elif what == "writing" or name in ("run_state.h5", "log.csv"):
                phase = WRITING  # log.csv follows the state, and log.png log.csv
            elif what == "written":
                # After what is written on resuming, there still is no epoch.
                phase = BETWEEN if before == FIRST_EPOCH else before
                phase = before = phase if name == "log.png" else BETWEEN
        return phase

    def has_told(self, event: str) -> bool:
        return any(name == event for name, _ in self.events)


def _be_child(arguments, output, pipe, point):
    status = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        _Hooks(pipe, point).install()
        status = capsulenet.main(arguments)
        os.write(pipe, b"end\n")
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


class _Hooks:
    """Tells where a run is, and kills it at a point, without a change to its code."""

    def __init__(self, pipe, point):
        self.pipe, self.point = pipe, point
        self.epoch = 0
        self.file = None  # that is being written
        self.writes = self.removed = 0
        self.is_renamed = False

    def install(self):
        # `main` handles signals itself; what comes when it is over is of no interest.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: self.tell("late"))
        replace_file = run_folder.replace_file
        begin = callbacks.Evaluate.on_epoch_begin
        check = callbacks.StopOnNaN.on_train_batch_end
        fsync, replace, remove, open_ = os.fsync, os.replace, os.remove, builtins.open

        def on_epoch_begin(callback, epoch, logs=None):
            self.epoch = epoch + 1
            self.tell(f"epoch {epoch + 1}")
            begin(callback, epoch, logs)

        def on_train_batch_end(callback, batch, logs=None):
            self.reach(STEPPING, batch + 1)
            check(callback, batch, logs)

        @contextlib.contextmanager
        def told_replace_file(path):
            self.file, self.writes, self.is_renamed = os.path.basename(path), 0, False
            name = self.file
            self.tell(f"writing {name}")
            self.reach(STEPS[0])
            with replace_file(path) as temporary:
                yield temporary
            self.reach(STEPS[5])
            self.file = None
            self.tell(f"written {name}")

        def told_open(file, mode="r", *args, **kwargs):
            opened = open_(file, mode, *args, **kwargs)
            is_it = str(file).endswith(f".{self.file}") and "w" in mode
            return _CutFile(opened, self) if is_it else opened

        def told_fsync(descriptor):
            self.reach(STEPS[4] if self.is_renamed else STEPS[2])
            fsync(descriptor)

        def told_replace(source, target):
            self.reach(STEPS[3])
            replace(source, target)
            self.is_renamed = True

        def told_remove(path):
            if not os.path.basename(path).startswith("."):
                self.removed += 1
                self.reach(REMOVING, self.removed)
            remove(path)

        callbacks.Evaluate.on_epoch_begin = on_epoch_begin
        callbacks.StopOnNaN.on_train_batch_end = on_train_batch_end
        run_folder.replace_file = told_replace_file
        builtins.open = told_open
        os.fsync, os.replace, os.remove = told_fsync, told_replace, told_remove
        self.tell("start")

    def tell(self, event):
        os.write(self.pipe, f"{event}\n".encode())

    def reach(self, step, number=1):
        file = self.file if step in STEPS else ""
        if self.point == Point(file, step, self.epoch, number):
            os.kill(os.getpid(), signal.SIGKILL)


class _CutFile:
    """A file that kills its process in the middle of a write."""

    def __init__(self, file, hooks):
        self._file, self._hooks = file, hooks

    def write(self, data):
        self._hooks.writes += 1
        half = len(data) // 2
        written = self._file.write(data[:half])
        self._file.flush()
        self._hooks.reach(STEPS[1], self._hooks.writes)
        return written + self._file.write(data[half:])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

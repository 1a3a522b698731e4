"""What writes into the folder of a run: whole files, one process at a time."""

import contextlib
import csv
import glob
import os
import tempfile
from pathlib import Path

from capsnet.errors import DataError, UsageError

STATE, LOG, MODEL = "run_state.h5", "log.csv", "trained_model.h5"


class RunFolder:
    """The folder that a run writes to.

    Args:
        path: Where it is, or will be.
        results: Names, or patterns, of the files that follow a training.
        overwrite: Whether a training may replace an earlier one.

    Attributes:
        finished: Epochs of this run that are safe in its state.
    """

    def __init__(
        self, path: str, results: tuple[str, ...] = (), overwrite: bool = False
    ):
        self.path = path
        self.results = results
        self.overwrite = overwrite
        self.finished = 0

    def file(self, name: str) -> str:
        """The path of a file in it."""
        return os.path.join(self.path, name)

    def check_is_free(self) -> None:
        """Finds out whether a training may begin here.

        Raises:
            UsageError: If there is another that is neither to go on nor to be replaced.
        """
        for name in (STATE, LOG, MODEL):
            if not self.overwrite and os.path.lexists(self.file(name)):
                raise UsageError(
                    f"--save_dir: {self.path} holds a run already ({name}): --resume "
                    "goes on with it, --overwrite replaces it"
                )

    @contextlib.contextmanager
    def locked(self):
        """Keeps other runs out, until the block or the process ends.

        Raises:
            OSError: If another process has the lock, or there are no locks.
        """
        with open(self.file(".lock"), "ab") as file:  # hidden and empty, it stays
            try:
                if os.name == "posix":
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                else:
                    import msvcrt

                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            except (BlockingIOError, PermissionError) as error:
                raise BlockingIOError(
                    f"{self.path}: another run is at work here"
                ) from error
            yield

    def remove_leftovers(self) -> None:
        """Removes the temporary files of a process that was killed, once locked."""
        for name in (STATE, LOG, MODEL, "log.png", *self.results):
            self._remove(f".[0-9]*.{name}")

    def remove_earlier_run(self) -> None:
        """Removes what an earlier run left, but for its state."""
        # The log at last: without it, `training.restore` goes on here.
        for name in (*self.results, "log.png", MODEL, LOG):
            self._remove(name)

    def _remove(self, pattern: str) -> None:
        for path in glob.glob(os.path.join(glob.escape(self.path), pattern)):
            os.remove(path)


def check_is_writable(folder: str, flag: str = "--save_dir") -> None:
    """Finds out whether files can be written into a folder; leaves none.

    Args:
        folder: It need not be there yet.
        flag: What named it.

    Raises:
        UsageError: If not.
    """
    existing = os.path.abspath(folder)
    # It will be created in the first that exists; on Windows a drive may miss.
    while not os.path.lexists(existing) and existing != os.path.dirname(existing):
        existing = os.path.dirname(existing)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UsageError(
            f"{flag}: cannot write to {folder}: {error.strerror}"
        ) from error


def cache_folder() -> Path:
    """Where what was downloaded or decoded is kept for all runs.

    That is `~/.cache/capsnet`, or what the environment's `CAPSNET_CACHE` names.
    """
    home = os.environ.get("CAPSNET_CACHE") or "~/.cache/capsnet"
    return Path(os.path.expanduser(home))


@contextlib.contextmanager
def replace_file(path: str):
    """Yields a temporary name to write to; on success it becomes `path` at once.

    A reader sees the old file or the new one, never a part, also after a crash.
    The temporary name ends like `path`, since plotting takes the format from there.

    Args:
        path: The file to create or to replace.

    Raises:
        OSError: If it cannot be written; an earlier file is still there.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{os.getpid()}.{name}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # makes the rename last; others open no folders
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise OSError(f"{path}: cannot be written: {reason}") from error
        raise


def draw(path: str, plot, *arguments) -> None:
    """Writes a picture by a function of `utils`, and says so."""
    with replace_file(path) as temporary:
        plot(*arguments, temporary)
    print("Wrote", path)


def is_new_or_empty(folder: str) -> bool:
    """Whether `new_folder` may make a folder there."""
    empty = os.path.isdir(folder) and not os.listdir(folder)
    return empty or not os.path.lexists(folder)


@contextlib.contextmanager
def new_folder(folder: str):
    """Yields the name of a new folder; on success it becomes `folder`, all or nothing.

    Args:
        folder: Must not exist, or be empty.
    """
    folder = os.path.realpath(folder)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as temporary:
        path = os.path.join(temporary, "new")
        os.mkdir(path)
        yield path
        if os.path.isdir(folder):  # Windows renames to names that are free
            os.rmdir(folder)
        os.replace(path, folder)


def write_csv(path: str, rows: list[dict]) -> None:
    """Writes rows that share their columns."""
    utf8 = {"newline": "", "encoding": "utf-8"}  # class names may hold anything
    with replace_file(path) as temporary, open(temporary, "w", **utf8) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: str) -> list[dict[str, str]]:
    """What `write_csv` wrote, as text; no rows of what is missing or damaged."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []


def read_log(folder: str, column: str) -> list[float]:
    """What a run's log says of each epoch; nothing without a log.

    Raises:
        DataError: If it has no numbers there.
    """
    path = os.path.join(folder, LOG)
    try:
        return [float(row[column]) for row in read_csv(path)]
    except (KeyError, TypeError, ValueError):
        message = f"{path}: expected a number in {column} of each row"
        raise DataError(message) from None


def read_test_errors(folder: str) -> list[float]:
    """The test error in % after each epoch of a run, as `read_log`."""
    return [100 * (1 - accuracy) for accuracy in read_log(folder, "test_accuracy")]

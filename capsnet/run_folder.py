"""What writes into the folder of a run: whole files, one process at a time."""

import contextlib
import csv
import glob
import os


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
        _sync_folder(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise OSError(f"{path}: cannot be written: {reason}") from error
        raise


def _sync_folder(folder: str) -> None:
    """Makes a rename last, where the system opens folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: str, names: tuple[str, ...]) -> None:
    """Removes the temporary files of a process that was killed.

    Args:
        folder: A folder that is locked.
        names: Names of files, or patterns, that are written by who holds the lock.
    """
    for name in names:
        for path in glob.glob(os.path.join(glob.escape(folder), f".[0-9]*.{name}")):
            os.remove(path)


@contextlib.contextmanager
def lock_folder(folder: str):
    """Keeps other runs out of a folder, until the block or the process ends.

    Args:
        folder: An existing folder; a hidden empty file stays there.

    Raises:
        OSError: If another process has the lock, or there are no locks.
    """
    with open(os.path.join(folder, ".lock"), "ab") as file:
        try:
            if os.name == "posix":
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError) as error:
            raise BlockingIOError(f"{folder}: another run is at work here") from error
        yield


def write_csv(path: str, rows: list[dict]) -> None:
    """Writes rows that share their columns."""
    utf8 = {"newline": "", "encoding": "utf-8"}  # class names may hold anything
    with replace_file(path) as temporary, open(temporary, "w", **utf8) as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)

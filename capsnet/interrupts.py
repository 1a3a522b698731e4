"""SIGINT and SIGTERM: an orderly end, and what is said of it."""

import contextlib
import shlex
import signal
import threading

from capsnet.run_folder import RunFolder


class Interrupted(BaseException):  # noqa: N818, no more an error than KeyboardInterrupt
    """SIGINT or SIGTERM came.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int):
        super().__init__("interrupted")
        self.status = 128 + number  # the shells' convention

    def explain(self, folder: RunFolder) -> None:
        """Adds what is finished of a training, and how to go on with it."""
        message = "interrupted; no epoch was finished"
        if folder.finished:
            message = (
                f"interrupted; epoch {folder.finished} is the last one finished, "
                f"--resume --save_dir {shlex.quote(folder.path)} goes on from there"
            )
        self.args = (message,)


def raise_interrupted(number, frame):
    """Handles a signal, for `handle_signals`."""
    raise Interrupted(number)


@contextlib.contextmanager
def handle_signals(handler):
    """Within it, a function gets SIGINT and SIGTERM.

    Args:
        handler: As of `signal.signal`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are for the main thread alone
        return
    previous = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)

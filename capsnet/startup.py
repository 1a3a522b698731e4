"""What a script does before anything else, and a module that is imported never does."""

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import tempfile

QUIET = "3"
BACKENDS = ("tensorflow", "jax", "torch")


def begin() -> None:
    """Ends at a signal, and loads Keras and its backend without what they print.

    Until `command_line.main` does better, a signal ends the process at once: a page of
    import lines would tell nobody anything.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    check_backend()
    load()


def check_backend() -> None:
    """Ends with a line if Keras is asked for a backend that it would not find."""
    name = os.environ.get("KERAS_BACKEND")
    if name and (name not in BACKENDS or importlib.util.find_spec(name) is None):
        script = os.path.basename(sys.argv[0])
        print(
            f"{script}: error: KERAS_BACKEND={name}: expected {', '.join(BACKENDS)}, "
            "whichever is installed",
            file=sys.stderr,
        )
        sys.exit(2)


def load() -> None:
    """Loads Keras and its backend without what they print.

    TensorFlow will be silent later, too, and take the memory of a GPU as it needs it,
    unless the environment says otherwise. What is printed to a closed stream is lost.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:  # closed by who started this
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            setattr(sys, name, os.fdopen(descriptor, "w"))
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", QUIET) == QUIET:
        # It warns of each new shape of a batch, which no flag can help.
        logging.getLogger("tensorflow").setLevel("ERROR")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with quiet_start():
        from capsnet import training  # noqa: F401, and with it all that is slow


@contextlib.contextmanager
def quiet_start():
    """Hides what a backend's libraries print while they start, unless that fails.

    The lines about oneDNN, missing CUDA drivers or connections are written by C++ code
    before it reads any setting, so the file descriptors themselves have to point
    elsewhere. Whoever sets TF_CPP_MIN_LOG_LEVEL sees everything that it lets through.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", QUIET) != QUIET:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    stdout, stderr = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 1)
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(stderr, hidden.read())
            raise
        finally:
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            os.close(stdout)
            os.close(stderr)

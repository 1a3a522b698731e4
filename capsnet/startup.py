"""What a script does before it imports Keras."""

import contextlib
import os
import sys
import tempfile

QUIET = "3"


@contextlib.contextmanager
def quiet_start():
    """Hides what a backend's libraries print while they start, unless that fails.

    The lines about oneDNN, missing CUDA drivers or connections are written by C++ code
    before it reads any setting, so the file descriptors themselves have to point
    elsewhere. Whoever sets TF_CPP_MIN_LOG_LEVEL sees everything that it lets through.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", QUIET) != QUIET:
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

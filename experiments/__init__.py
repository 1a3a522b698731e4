"""The studies, a module each."""

import os
import signal
import sys

if sys.argv[0] == "-m":  # while Python looks for a module to run; as in capsulenet.py
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: os._exit(128 + number))

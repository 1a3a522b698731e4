"""capsulenet_multi_gpu.py: N devices compute what one computes, and errors say why."""

import csv
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from test_command_line import write_digits

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def call(script, *arguments):
    return subprocess.run(
        [sys.executable, os.path.join(ROOT, script), *arguments],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
    )


def weights(folder):
    """The arrays of a model file, by name."""
    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(folder / "trained_model.h5") as file:
        file.visititems(visit)
    return arrays


def log(folder):
    with open(folder / "log.csv", newline="") as file:
        return [
            {k: float(v) for k, v in row.items() if "second" not in k}
            for row in csv.DictReader(file)
        ]


def test_two_devices_compute_what_one_computes(mnist, tmp_path):
    data = write_digits(tmp_path, mnist)
    # 3 steps of 50 images
    flags = ("--batch_size", "50", "--epochs", "1", "--data_dir", data, "--save_dir")
    one, two = tmp_path / "one", tmp_path / "two"
    runs = [
        call("capsulenet.py", "--train_size", "150", *flags, str(one)),
        call(
            "capsulenet_multi_gpu.py",
            *("--gpus", "2", "--device", "cpu", "--train_size", "150"),
            *(*flags, str(two)),
        ),
    ]
    for run in runs:
        assert run.returncode == 0, run.stderr
    assert "2 x CPU" in runs[1].stdout
    (a,), (b,) = log(one), log(two)
    assert a.keys() == b.keys()
    for column in a:
        assert b[column] == pytest.approx(a[column], rel=1e-4)
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    for name in a:
        # Adam divides by the size of a gradient: where that is only rounding, single
        # weights may differ by a step, but not the tensor.
        assert np.linalg.norm(a[name] - b[name]) < 1e-3 * (
            np.linalg.norm(a[name]) + 1e-3
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpus", "0"), "expected 1 to"),
        (("--gpus", "2", "--device", "cpu", "--batch_size", "5"), "multiple of 2"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    run = call("capsulenet_multi_gpu.py", *arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert run.stderr.count("\n") == 1

"""What benchmarks write: rows that say where and of which code they are.

They go to result/benchmarks, which git ignores. What is published is in
benchmarks/results, and changes only with `--save_dir benchmarks/results`.
"""

import argparse
import importlib
import os
import platform
import subprocess

import keras

from capsnet import backend, run_folder

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = (":!result", ":!benchmarks/results")  # for git: all but these


def new_parser(doc: str) -> argparse.ArgumentParser:
    """A parser of `--save_dir`.

    Args:
        doc: The benchmark's docstring, whose first paragraph says what it does.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument(
        "--save_dir",
        default=os.path.join("result", "benchmarks"),
        metavar="DIR",
        help="where to write (default: %(default)s; what is published: "
        "benchmarks/results)",
    )
    return parser


def find_commit() -> str:
    """The commit of this code; empty if it is not in a checkout of its own.

    It ends in "-dirty" if there are changes, other than to results.
    """
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", ".", *RESULTS)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit[:12] + ("-dirty" if changes else "")


def _git(*arguments):
    # With the folder said, git does not look for a repository around it.
    command = ["git", "-C", ROOT, "--git-dir=.git", "--work-tree=.", *arguments]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def find_device() -> str:
    """What the backend computes with: cpu or gpu."""
    return "cpu" if backend.runs_on_cpu() else "gpu"


def describe_machine(device: str) -> dict[str, str]:
    """Hardware and versions, the last columns of each row.

    Args:
        device: cpu or gpu.
    """
    hardware = f"{processor()}, {os.cpu_count()} cores"
    if device == "gpu":
        hardware = f"{backend.gpu_name()}; {hardware}"
    name = keras.backend.backend()
    return {
        "device": device,
        "hardware": hardware,
        "backend": f"{name} {importlib.import_module(name).__version__}",
        "keras": keras.version(),
    }


def processor() -> str:
    """The name of the processor."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":")[1].strip()
    return platform.processor()


def gpu_peak_memory() -> int:
    """The most bytes of the first GPU's memory that this process had in use."""
    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    if name == "jax":
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated()


def make_path(save_dir: str, name: str, device: str, end: str = ".csv") -> str:
    """Where the results of a benchmark go, in a folder that is there.

    Args:
        save_dir: The folder.
        name: Of the benchmark.
        device: cpu or gpu.
        end: Of the file's name.
    """
    os.makedirs(save_dir, exist_ok=True)
    return os.path.join(save_dir, f"{name}_{keras.backend.backend()}_{device}{end}")


def write(rows: list[dict], save_dir: str, name: str, device: str, commit: str) -> None:
    """Writes what was measured, with what it was measured on in each row.

    Args:
        rows: That share their columns.
        save_dir: The folder to write to.
        name: Of the benchmark.
        device: cpu or gpu.
        commit: Of `find_commit`, when the measurement began.
    """
    machine = {**describe_machine(device), "commit": commit}
    path = make_path(save_dir, name, device)
    run_folder.write_csv(path, [{**row, **machine} for row in rows])
    print("Wrote", path)


def print_row(row: dict) -> None:
    print(", ".join(f"{key} {value}" for key, value in row.items()))

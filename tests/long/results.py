"""The table of what the long runs found: one line a study, case and outcome."""

import csv
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

PATH = Path(__file__).with_name("results.csv")
COLUMNS = ("study", "case", "outcome", "count", "command", "versions")


def record(study: str, rows: list[tuple], command: str, path: Path = PATH) -> None:
    """Replaces the rows of a study and keeps those of the others.

    Args:
        study: Its name.
        rows: `(case, outcome, count)` each.
        command: What runs it again.
        path: The table.
    """
    kept = []
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if row["study"] != study]
    said = versions()
    new = [dict(zip(COLUMNS, (study, *row, command, said))) for row in rows]
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept + new)
    os.replace(temporary, path)


def versions() -> str:
    """What the results depend on, in one line."""
    import h5py

    packages = {"TensorFlow": "tensorflow", "Keras": "keras", "h5py": "h5py"}
    packages |= {"NumPy": "numpy", "Pillow": "pillow"}
    names = {name: version(package) for name, package in packages.items()}
    names["h5py"] += f" (HDF5 {h5py.version.hdf5_version})"
    python = f"Python {sys.version.split()[0]}"
    rest = [f"{name} {number}" for name, number in names.items()]
    return ", ".join([python, *rest, platform.system()])

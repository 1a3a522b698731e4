"""examples/capsules.ipynb: a notebook in plain Python, whose cells run in their order.

No Jupyter: the cells are a script here.
"""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, environment

NOTEBOOK = ROOT / "examples" / "capsules.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == kind]


def run_python(*arguments, cwd, root=ROOT):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment(root) | {"MPLBACKEND": "Agg"},
        capture_output=True,
        encoding="utf-8",
        timeout=900,
    )


def test_no_outputs_are_stored():
    for cell in CELLS:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_links_lead_to_files():
    links = re.findall(r"\]\(((?!http)[^)]+)\)", "".join(cells("markdown")))
    assert links
    for link in links:
        assert (NOTEBOOK.parent / link).exists(), link


@pytest.mark.slow
def test_the_cells_run_and_the_networks_learn(mnist, tmp_path):
    script = tmp_path / "cells.py"
    script.write_text("\n".join(cells("code")), encoding="utf-8")
    done = run_python(script, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(.+): accuracy of (\S+) on", done.stdout, re.MULTILINE)
    accuracy = {name: float(value) for name, value in found}
    assert accuracy["CapsNet"] > 0.75  # of 2000 digits, each seen once; 0.1 is chance
    assert accuracy["published weights"] > 0.99
    assert accuracy["own model"] > 0.9
    assert accuracy["three layers"] > 0.9
    assert "The loaded model says the same: True" in done.stdout


@pytest.mark.parametrize("folder", [".", "examples"])
def test_the_first_cell_finds_the_code_of_a_clone(folder, tmp_path):
    # Like Jupyter, `-c` looks for modules in the current folder.
    done = run_python("-c", cells("code")[0], cwd=ROOT / folder, root=tmp_path)
    assert done.returncode == 0, done.stderr

"""examples/capsules.ipynb: a notebook in plain Python, whose cells run in their order.

No Jupyter: the cells are a script here.
"""

import json
import re

import pytest
from conftest import ROOT, environment, run

NOTEBOOK = ROOT / "examples" / "capsules.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == kind]


def test_no_outputs_are_stored():
    for cell in CELLS:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
def test_the_cells_run_and_the_networks_learn(mnist, tmp_path):
    script = tmp_path / "cells.py"
    script.write_text("\n".join(cells("code")), encoding="utf-8")
    env = environment() | {"MPLBACKEND": "Agg"}
    done = run(program=(script,), env=env, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(.+): accuracy of (\S+) on", done.stdout, re.MULTILINE)
    accuracy = {name: float(value) for name, value in found}
    assert accuracy["CapsNet"] > 0.75  # of 2000 digits, each seen once; 0.1 is chance
    assert accuracy["published weights"] > 0.99
    assert accuracy["own model"] > 0.9
    assert accuracy["three layers"] > 0.9
    assert "The loaded model says the same: True" in done.stdout


def test_the_first_cell_finds_the_code_of_a_clone(tmp_path):
    # Like Jupyter, `-c` looks for modules in the current folder.
    env = environment(tmp_path) | {"MPLBACKEND": "Agg"}
    done = run(cwd=ROOT / "examples", program=("-c", cells("code")[0]), env=env)
    assert done.returncode == 0, done.stderr

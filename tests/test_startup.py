"""startup.py: scripts start in silence; modules that are imported change nothing."""

import ast
import json
import os
from pathlib import Path

import pytest
from conftest import ROOT, run

from capsnet import startup

MODULES = ["capsulelayers", "capsulenet", "capsulenet_multi_gpu", "utils"]
MODULES += [f"experiments.{p.stem}" for p in (ROOT / "experiments").glob("[!_]*.py")]


def python(*arguments, closed):
    """Runs Python in a process of its own, which finds these descriptors closed."""
    return run(*arguments, program=(), preexec_fn=lambda: [*map(os.close, closed)])


needs_proc = pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")

# Importing.

# Imports modules, and tells what else the process has then.
IMPORT = """
import importlib, json, os, re, signal, sys
path, *names = sys.argv[1:]
for name in names:
    importlib.import_module(name)
import matplotlib
files = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
state = {
    "environment": dict(os.environ),
    "signals": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
    "files": sorted(os.readlink(f) for f in files if os.path.lexists(f)),
    "rcParams": {k: str(v) for k, v in matplotlib.rcParams.copy().items()},
}
with open(path, "w") as file:
    file.write(re.sub(r":\\[[0-9]+\\]|0x[0-9a-f]+", "", json.dumps(state)))
"""
# What these change is theirs.
OTHERS = ["keras", "matplotlib.figure", "h5py", "PIL.Image"]


@pytest.mark.slow
@needs_proc
def test_imports_change_nothing_outside_the_package(tmp_path):
    states = []
    for names in (OTHERS, MODULES):
        path = tmp_path / "state.json"
        # Without standard streams, which the old silence of the start could not do.
        done = python("-c", IMPORT, path, *names, closed=[0, 1, 2])
        assert done.returncode == 0
        states.append(json.loads(path.read_text()))
    assert states[0] == states[1]


# Scripts.

SCRIPTS = [
    path
    for folder in ("", "experiments", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_begin_with_it_and_only_as_scripts(path):
    docstring, first, *others = ast.parse(path.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(first) == (
        "if __name__ == '__main__':\n"
        "    from capsnet import startup\n"
        "    startup.begin()"
    )
    others = "\n".join(map(ast.unparse, others))
    assert "startup.begin" not in others and "startup.load" not in others


@pytest.mark.parametrize("said", [{}, {"TF_FORCE_GPU_ALLOW_GROWTH": "false"}])
def test_scripts_let_tensorflow_take_memory_of_a_gpu_as_it_needs_it(monkeypatch, said):
    environment = said.copy()
    monkeypatch.setattr(os, "environ", environment)
    startup.load()
    default = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    assert environment == {**default, **said}


@needs_proc
@pytest.mark.parametrize("closed", [[0, 1], [1, 2]])
def test_a_script_without_standard_streams(closed):
    done = python(ROOT / "capsulenet.py", "--digit", "10", closed=closed)
    assert done.returncode == 2
    message = "capsulenet.py: error: --digit: expected 0 to 9, received 10\n"
    assert done.stdout + done.stderr == ("" if 2 in closed else message)


@pytest.mark.parametrize("name", ["pytorch", "numpy"])
def test_a_backend_that_is_none(name, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", name)
    done = python(ROOT / "capsulenet.py", closed=())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"capsulenet.py: error: KERAS_BACKEND={name}: expected tensorflow, jax, torch, "
        "whichever is installed\n"
    )


# The quiet start.


def test_what_libraries_print_while_they_load_is_hidden(monkeypatch, capfd):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    with startup.quiet_start():
        os.write(2, b"Could not find cuda drivers\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_what_libraries_print_is_shown_if_loading_fails(monkeypatch, capfd):
    def load():
        with startup.quiet_start():
            os.write(2, b"the reason\n")
            raise ImportError

    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    pytest.raises(ImportError, load)
    assert capfd.readouterr().err == "the reason\n"


def test_who_asks_for_the_messages_sees_them(monkeypatch, capfd):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    with startup.quiet_start():
        os.write(2, b"oneDNN custom operations are on\n")
    assert capfd.readouterr().err == "oneDNN custom operations are on\n"

"""conftest.py: the outcome of the tests does not depend on where and how they run."""

import shutil

import pytest
from conftest import ROOT, environment, run

INNER = """
import os
import sys
from pathlib import Path

import pytest

STARTED = Path.cwd()  # when the tests are collected


@pytest.fixture(scope="session", autouse=True)
def _session(_elsewhere):
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("time", [1, 2])
def test_inner(tmp_path, time, pytestconfig):
    assert Path.cwd() == tmp_path != STARTED
    assert list(Path.cwd().iterdir()) == []
    Path("result").mkdir()  # the other one does not see it
    settings = [n for n in os.environ if n.startswith(("PYTHON", "TF_", "KERAS_"))]
    assert sorted(settings) == ["KERAS_BACKEND", "KERAS_HOME", "PYTHONPATH"]
    assert os.environ["KERAS_BACKEND"] == "jax"
    assert "keras" not in sys.modules  # which would have another backend by now
    assert os.environ["PYTHONPATH"] == "packages"
    for name in ("KERAS_HOME", "CAPSNET_CACHE"):
        assert not os.path.exists(os.environ[name])
    caches = pytestconfig.user_caches
    assert [os.path.basename(caches[name]) for name in caches] == ["cache", ".keras"]
    assert os.environ["COLUMNS"] == "80"
    assert not {"LANG", "MPLBACKEND"} & os.environ.keys()
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_nothing_that_the_user_has_set_is_seen(tmp_path, processes):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "result").mkdir()
    (tmp_path / "home" / ".keras").mkdir(parents=True)
    (tmp_path / "home" / ".keras" / "keras.json").write_text('{"backend": "torch"}')
    (tmp_path / "home" / "cache").mkdir()
    hostile = {
        "HOME": str(tmp_path / "home"),
        "KERAS_BACKEND": "torch",
        "KERAS_HOME": str(tmp_path / "home" / ".keras"),
        "KERAS_TORCH_DEVICE": "meta",
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "TF_USE_LEGACY_KERAS": "1",
        "CAPSNET_CACHE": str(tmp_path / "home" / "cache"),
        "COLUMNS": "20",
        "LANG": "C",
        "MPLBACKEND": "no such backend",
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": "packages",
        "PYTHONUNBUFFERED": "1",
    }
    arguments = ["-p", "no:cacheprovider", "--backend", "jax", "-n", str(processes)]
    env = environment() | hostile
    process = run(*arguments, program=("-m", "pytest"), env=env)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "2 passed" in process.stdout

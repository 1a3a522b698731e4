"""`pip install .`: the layers can be imported elsewhere, whatever else is there."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.network
def test_the_layers_work_where_they_are_installed(tmp_path):
    target, project = tmp_path / "site-packages", tmp_path / "project"
    # from a copy: setuptools builds in the folder itself
    names = subprocess.run(
        ["git", "ls-files", "*.py", "*.toml", "*.txt", "*.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in names:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", target, tmp_path / "source"], check=True)
    # what a user's project may have beside it: Hugging Face's `datasets`, own `utils`
    (project / "datasets").mkdir(parents=True)
    (project / "datasets" / "__init__.py").write_text("raise ImportError('not ours')")
    (project / "utils.py").write_text("")
    code = (
        f"import sys; sys.path.insert(1, {str(target)!r})\n"
        "import keras\n"
        "from capsulelayers import CapsuleLayer, Length, PrimaryCap\n"
        "from capsulenet import CapsNet, margin_loss\n"
        "import capsnet\n"
        f"assert capsnet.__file__.startswith({str(target)!r}), capsnet.__file__\n"
        "print(CapsuleLayer(5, 4)(keras.ops.ones((2, 6, 3))).shape)\n"
        "print(CapsNet((20, 20, 1), 3)[0].output_shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 5, 4)\n[(None, 3), (None, 20, 20, 1)]\n"

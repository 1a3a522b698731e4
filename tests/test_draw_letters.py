"""examples/draw_letters.py: pictures of letters, of the fonts that are there."""

import subprocess
import sys

import matplotlib
import numpy as np
from conftest import ROOT, environment
from PIL import Image

from capsnet.pictures import list_classes

FONTS = matplotlib.get_data_path() + "/fonts/ttf"


def draw(*arguments, cwd):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "draw_letters.py"), *arguments],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_letters_of_matplotlibs_fonts(tmp_path):
    (tmp_path / "no_font.ttf").write_text("text")
    done = draw(FONTS, "letters", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    classes = list_classes(tmp_path / "letters")
    assert list(classes) == list("ABCDEFGHIJ")
    counts = {len(paths) for paths in classes.values()}
    assert len(counts) == 1 and counts.pop() >= 20
    for paths in classes.values():
        pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
        assert pixels.shape[1:] == (28, 28) and pixels.dtype == np.uint8
        assert (pixels[:, 0] == 255).all() and pixels.min(axis=(1, 2)).max() < 128


def test_a_folder_without_fonts(tmp_path):
    (tmp_path / "no_font.TTF").write_text("text")
    done = draw(".", "letters", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "expected a folder with fonts that have A to J, received .\n"


def test_both_folders_have_to_be_named(tmp_path):
    done = draw(FONTS, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"expected two folders, FONTS and where to write, received {FONTS}\n"
    )

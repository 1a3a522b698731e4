"""examples/: pictures to train on, of fonts and of a package."""

import os
import shutil
import subprocess

import matplotlib
import numpy as np
import pytest
from conftest import ROOT, environment, run
from PIL import Image

from capsnet.pictures import list_classes

FONTS = matplotlib.get_data_path() + "/fonts/ttf"
DRAW_LETTERS = (ROOT / "examples" / "draw_letters.py",)


def test_letters_of_matplotlibs_fonts(tmp_path):
    (tmp_path / "no_font.ttf").write_text("text")
    alone = environment(tmp_path)  # as for a reader: our modules are not found
    done = run(FONTS, "letters", program=DRAW_LETTERS, env=alone)
    assert done.returncode == 0, done.stderr
    classes = list_classes(tmp_path / "letters")
    assert list(classes) == list("ABCDEFGHIJ")
    counts = {len(paths) for paths in classes.values()}
    assert len(counts) == 1 and counts.pop() >= 20
    for paths in classes.values():
        pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
        assert pixels.shape[1:] == (28, 28) and pixels.dtype == np.uint8
        assert (pixels[:, 0] == 255).all() and pixels.min(axis=(1, 2)).max() < 128


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((".", "letters"), "a folder with fonts that have A to J, received ."),
        ((FONTS,), f"two folders, FONTS and where to write, received {FONTS}"),
    ],
)
def test_folders_without_which_no_letters_are_drawn(arguments, complaint, tmp_path):
    (tmp_path / "no_font.TTF").write_text("text")
    done = run(*arguments, program=DRAW_LETTERS)
    assert (done.returncode, done.stderr) == (2, f"expected {complaint}\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="a script of bash")
def test_stamps_are_put_into_a_folder_a_class(tmp_path):
    (tmp_path / "bin").mkdir()
    stamps = "$3/usr/share/tuxpaint/stamps"
    for program, lines in {
        "apt-get": "touch $2_1_all.deb",
        "dpkg-deb": f"""
            mkdir -p {stamps}/animals/birds {stamps}/town {stamps}/hobbies
            cd {stamps}
            touch animals/bee.png animals/birds/bee.png animals/birds/bee.txt
            touch town/tower.png town/tower_mirror.png hobbies/piano.png
        """,
    }.items():
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "get_stamps.sh")],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("Wrote 3 pictures to ./stamps\n", "")
    found = sorted(
        p.relative_to(tmp_path / "stamps") for p in tmp_path.glob("stamps/*/*")
    )
    names = ("animals/animals_bee.png", "animals/animals_birds_bee.png")
    assert [path.as_posix() for path in found] == [*names, "town/town_tower.png"]

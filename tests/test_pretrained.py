"""The published model: small enough to clone, and what the README says of it."""

import re

import numpy as np
import pytest
from conftest import ROOT, assert_picture, run
from PIL import Image

import capsulenet

MODEL = ROOT / "result" / "pretrained" / "mnist_v4.h5"


def test_it_is_small_enough_to_clone():
    assert MODEL.stat().st_size <= 35e6


@pytest.mark.slow
def test_it_has_the_error_that_the_readme_states(mnist, tmp_path):
    process = run("-t", "-w", MODEL, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    readme = (ROOT / "README.md").read_text("utf-8")
    (stated,) = re.findall(r"^\| modern \| 20 \| ([\d.]+) % \|", readme, re.MULTILINE)
    measured = re.search(r"Test error: ([\d.]+) %", process.stdout)[1]
    # One image of 10 000, as another machine's rounding may turn one that is undecided.
    assert float(measured) == pytest.approx(float(stated), abs=0.0101)


def test_it_says_what_digits_are(mnist, tmp_path, capsys):
    images, labels = (array[:10] for array in mnist.test)
    for i, image in enumerate(np.rint(255 * images[..., 0]).astype("uint8")):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in range(10)]
    assert capsulenet.main(["--predict", *names, "--explain", "-w", str(MODEL)]) == 0
    out, _ = capsys.readouterr()
    said = re.findall(r"^(\d)\.png: (\d), length", out, re.MULTILINE)
    digits = labels.argmax(axis=1)
    assert said == [(str(i), str(digit)) for i, digit in enumerate(digits)]
    for name in ("predictions.png", "explained.png"):
        assert_picture(tmp_path / "result" / name)

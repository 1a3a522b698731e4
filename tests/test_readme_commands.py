"""The commands of the README and of the pages beside it work, in their order.

They are typed from top to bottom into a fresh copy of the files: no one may be refused
because of what an earlier one left.
"""

import os
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pytest
from conftest import ROOT, environment, run, write_digits
from PIL import Image
from test_own_data import draw_shape
from test_photos import draw_photo

PAGES = [ROOT / "README.md"]
for folder in ("docs", "experiments", "examples"):
    PAGES += sorted((ROOT / folder).glob("*.md"))

# What is not run, by a part of the command.
NOT_RUN = {
    "-m venv .venv": "the tests run in an environment already",
    "pip install": "no installation from within a test; .ci/run does it",
    "-m pytest": "this is a part of it; .ci/run does it",
    "--save_dir result/all_gpus": "needs GPUs",
    "--save_dir result/two_gpus": "needs two GPUs",
    "get_stamps.sh": "downloads 161 MB; test_examples.py runs it with a smaller one",
    "--dataset stamps": "needs what it downloads",
    "--explore": "serves until Ctrl-C; test_page_server.py starts and ends it",
    "# 24 variants": "takes hours; test_recipes.py trains two of them",
    "# the third run": "the same",
    "experiments.recipes --epochs 20": "the same",
    "experiments.recipes --epochs 40": "the same",
    "--cells baseline": "takes minutes; test_mnist_table.py asks for it",
    "--num_hosts 2": "needs two machines; test_multi_gpu.py starts two processes",
}

# How the others are made shorter: flags that the first part which is in a command gives
# it, in place of its own ones of these names. DIGITS is a folder with a few of MNIST's.
FEW = "--data_dir DIGITS --batch_size 10"
SHORTER = {
    "capsulenet.py -h": "",
    "--predict": "",
    "--export_page": "",
    "capsulenet.py -t --dataset my_pictures": "",
    "--dataset my_pictures": "--epochs 2",
    "capsulenet.py -t": "--data_dir DIGITS",
    "--resume --epochs": "--epochs 2",
    "capsulenet.py --resume": "",
    "capsulenet.py": f"--epochs 1 {FEW}",
    "capsulenet_multi_gpu.py": f"--epochs 1 {FEW}",
    "experiments.baseline": f"--epochs 1 {FEW}",
    "--attack iterative": "--data_dir DIGITS --count 5 --steps 2 --epsilons 0 0.1",
    "--attack fgsm": "--data_dir DIGITS --count 5 --epsilons 0 0.1",
    "experiments.adversarial": "--data_dir DIGITS --max_steps 1",
    "experiments.mnist_table --recipe modern": "--data_dir DIGITS --trials 1",
    "experiments.mnist_table": "--data_dir DIGITS --epochs 1",
    "--pairs 5": "--data_dir DIGITS --batch_size 10 --pairs 1",
    "experiments.multimnist": f"--epochs 1 {FEW}",
    "experiments.recipes --table_only": "",
    "experiments.affnist": f"--epochs 1 --validation_size 10 {FEW}",
}


class Command(NamedTuple):
    """A line of a block, or what is between its `&&`.

    Attributes:
        text: As it is written.
        words: Without comment, variables and the program's place.
        variables: Those that are set in front.
    """

    text: str
    words: list[str]
    variables: dict[str, str]


def find_blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def find_commands(block: str) -> list[Command]:
    commands = []
    for part in re.split(r"\n|&&", block.replace("\\\n", " ")):
        words = shlex.split(part, comments=True)
        variables = {}
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, variables[name] = words.pop(0).split("=", 1)
        if words:
            words[0] = words[0].removeprefix(".venv/bin/")
            commands.append(Command(" ".join(part.split()), words, variables))
    return commands


def first_part(command: Command, parts: dict) -> str | None:
    return next((part for part in parts if part in command.text), None)


def shorten(words: list[str], flags: str) -> list[str]:
    """Gives a command other flags, in place of its own of these names."""
    for flag in re.findall(r"--\w+(?: [^-]\S*)*", flags):
        name, *values = flag.split()
        if name in words:
            start = end = words.index(name) + 1
            while end < len(words) and not words[end].startswith("-"):
                end += 1
            words = [*words[:start], *values, *words[end:]]
        else:
            words = [*words, name, *values]
    return words


def all_commands():
    """Each command of all pages; test_readme.py runs what is in Python."""
    for page in PAGES:
        for language, block in find_blocks(page.read_text(encoding="utf-8")):
            if language in ("bash", "sh", "console"):
                yield from find_commands(block)


def test_what_the_tables_say_is_about_a_command():
    rest = list(all_commands())
    for parts in (NOT_RUN, SHORTER):
        found = [first_part(command, parts) for command in rest]
        assert set(parts) <= set(found)
        rest = [command for command, part in zip(rest, found) if part is None]
    assert not rest


def at_hand(variables: dict[str, str]) -> dict[str, str]:
    """Without the name of a backend that is not installed: TensorFlow always is."""
    if find_spec(variables.get("KERAS_BACKEND", "tensorflow")):
        return variables
    return {name: variables[name] for name in variables if name != "KERAS_BACKEND"}


@pytest.fixture
def clone(mnist, tmp_path):
    """The files as in a fresh clone, and the pictures that a reader would have."""
    listing = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others"]
    try:
        files = subprocess.run(
            [*listing, "--exclude-standard"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git, and a checkout")
    folder = tmp_path / "clone"
    for name in filter(None, map(os.fsdecode, files.stdout.split(b"\0"))):
        if (ROOT / name).exists():  # else it was removed, and not committed so far
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)

    rng = np.random.default_rng(0)
    for kind in ("circle", "square"):
        (folder / "my_pictures" / kind).mkdir(parents=True)
        for i in range(10):
            draw_shape(kind, rng).save(folder / "my_pictures" / kind / f"{i}.png")
    draw_shape("circle", rng).save(folder / "new_picture.jpg")
    photo = Image.fromarray(draw_photo(mnist.test[0][0], rng))
    photo.save(folder / "my_photo.jpg")
    write_digits(folder / "DIGITS", mnist, 40, 100)
    return folder


@pytest.mark.slow
def test_commands_can_be_typed_from_top_to_bottom(clone):
    for command in all_commands():
        if first_part(command, NOT_RUN):
            continue
        assert command.words[0] == "python", command.text
        part = first_part(command, SHORTER)
        words = shorten(command.words, SHORTER[part]) if part else command.words
        env = environment(clone) | at_hand(command.variables)
        process = run(*words[1:], cwd=clone, program=(), env=env, timeout=600)
        said = f"$ {shlex.join(words)}\n{process.stdout}{process.stderr}"
        assert process.returncode == 0 and "Traceback" not in said, said

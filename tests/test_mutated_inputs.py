"""Some of the damaged and forged files of `tests/long/mutated_inputs.py`."""

import re

import pytest
from conftest import run

pytest.importorskip("resource")  # and fork, which Windows has neither of


# In a process of its own: this one may have started threads, which do not fork.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "n"),
    [
        (["idx", "npz", "image"], 30),
        (["weights", "run_state"], 6),  # each with a network of 6 million weights
    ],
)
def test_damaged_and_forged_files_load_or_end_in_one_line(kinds, n):
    program = ("-m", "tests.long.mutated_inputs")
    done = run("--kinds", *kinds, "--cases", n, program=program)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(rf"^(\w+): {n} cases, (.*) \(", done.stdout, re.M)
    assert [kind for kind, _ in said] == kinds
    for _, outcomes in said:
        assert re.fullmatch(
            r"\d+ clear error(, \d+ library crash)?, \d+ loaded", outcomes
        )


# Each outcome, and what has to be told apart from the others.
OUTCOMES = """
from capsnet import startup
startup.load()  # as the script does: what TensorFlow says of GPUs is no noise

import os, random, sys, time
from capsnet.errors import DataError
from tests.long import mutated_inputs as m
from tests.long.cases import Case, Kind, WrongLoadError

def fail(error):
    raise error

case = Case({}, ["--dataset", "mnist"])
for what, act in {
    "loaded": lambda: None,
    "clear error": lambda: fail(DataError("x.npz: expected this, got that")),
    "unclear error": lambda: sys.exit("two\\nlines"),
    "late error": lambda: fail(DataError("x.npz: MemoryError")),
    "traceback": lambda: fail(ZeroDivisionError()),
    "code run": lambda: os.system("touch stolen"),
    "library crash": lambda: os.abort(),
    "wrong load": lambda: fail(WrongLoadError("NaN")),
    "loaded, with noise": lambda: print("Warning: all is well"),
    "hang": lambda: time.sleep(60),
    "over 4 GB": lambda: bytearray(10**8),
}.items():
    if what == "over 4 GB":
        m.MEMORY = 10**7
    run = lambda options, own, act=act: act()
    outcome = m.run_case(case, run, 1 if what == "hang" else 30)
    assert outcome.name == what, (what, outcome)
m.MEMORY = 10**10
case.refused = True
assert m.run_case(case, lambda options, own: None).name == "wrong load"
refuse = lambda options, own: fail(DataError("bad"))
assert m.run_case(case, refuse).name == "clear error"

for kind in ("idx", "npz", "image"):  # case 0 of the others is valid
    for i in range(8):
        outcome = m.run_case(m.KINDS[kind].valid(random.Random(i)), m.KINDS[kind].run)
        assert outcome.name == "loaded", (kind, i, outcome)
    first, again = (m.make_case(kind, 3, 5)[1] for _ in range(2))
    assert first.files == again.files and first.what == again.what

def valid(rng):
    return Case({"x": b"abc"}, ["--dataset", "mnist"], target="x")

m.KINDS["idx"] = Kind(valid, [valid], lambda options, own: fail(ZeroDivisionError()))
assert m.main(["--kinds", "idx", "--cases", "3", "--seed", "7"]) == 1
"""


@pytest.mark.slow
def test_each_fault_would_be_noticed():
    done = run(program=("-c", OUTCOMES))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "idx: 3 cases, 3 traceback" in done.stdout
    assert "--kinds idx --seed 7 --only 2" in done.stdout

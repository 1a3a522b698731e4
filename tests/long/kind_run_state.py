"""Run states, from which a training goes on."""

import dataclasses
import io
import json
from functools import partial

import h5py
import numpy as np

from tests.long import forged_hdf5 as forged
from tests.long.cases import Case, Kind, damage, special
from tests.long.forged_hdf5 import UNCHANGED

NAMES = ("run", "run", "best", "paper")


def of_state(rng, data, what="valid", right=UNCHANGED) -> Case:
    argv = ["--resume", "--save_dir", "."]
    argv += rng.choice(([], [], ["--epochs", "5"]))
    files = {**forged.files_around(), "run_state.h5": data}
    if right == UNCHANGED:
        files[UNCHANGED] = b""
    return Case(files, argv, what, right is True, "run_state.h5")


def valid(rng) -> Case:
    name = rng.choice(NAMES)
    return of_state(rng, forged.valid_files()[name], name)


@dataclasses.dataclass
class RunStateKind(Kind):
    def random(self, rng) -> Case:
        name = rng.choice(NAMES)
        data, what = damage(rng, forged.valid_files()[name])
        return of_state(rng, data, f"{name}: {what}", False)


def forgery(forge, rng) -> Case:
    name = rng.choice(NAMES)
    data, what, right = forge(rng, forged.valid_files()[name])
    return of_state(rng, data, f"{name}: {what}", right)


# The JSON in it.


def run_of(name: str) -> dict:
    with h5py.File(io.BytesIO(forged.valid_files()[name])) as file:
        return json.loads(file["run"][()].tobytes())


def of_run(rng, name, text, what, right=False) -> Case:
    """A state with other JSON; either text or an object."""
    if not isinstance(text, (str, bytes)):
        text = json.dumps(text)
    text = text.encode() if isinstance(text, str) else text

    def change(file):
        del file["run"]
        file["run"] = np.frombuffer(text, "u1")

    data = forged.edit(forged.valid_files()[name], change)
    return of_state(rng, data, f"{name}: {what}", right)


def run_text(rng):
    name = rng.choice(NAMES)
    text, what, _ = forged.odd_json(rng, run_of(name))
    return of_run(rng, name, text, what)


def run_value(rng):
    """A value that a key may not have."""
    name = rng.choice(NAMES)
    key, value = rng.choice(list(run_of(name))), rng.choice(forged.ODD_VALUES)
    text = forged.with_value(run_of(name), key, value)
    return of_run(rng, name, text, f"{key}: {value[:60]}")


def argument_value(rng):
    name = rng.choice(NAMES)
    run = run_of(name)
    key = rng.choice(list(run["arguments"]))
    value = rng.choice(forged.ODD_VALUES)
    arguments = forged.with_value(run["arguments"], key, value)
    text = forged.with_value(run, "arguments", arguments)
    return of_run(rng, name, text, f"argument {key}: {value[:60]}")


def argument_names(rng):
    """Flags that are none of a run, missing ones, and values that hold flags."""
    name = rng.choice(NAMES)
    run = run_of(name)
    arguments = run["arguments"]
    what = rng.choice(("more", "more", "missing", "smuggled", "renamed", "data"))
    if what == "more":
        key, value = rng.choice(
            [("help", True), ("h", True), ("he", True), ("predict", ["a.png"])]
            + [("export", "stolen"), ("overwrite", True), ("testing", True), ("", "x")]
            + [("save_dir", "stolen"), ("x y", 1), ("-", 1), ("\n", 1), ("debug", True)]
            + [("no_such", None), ("devices", 8), ("resume", True), ("epochs=9", None)]
        )
        arguments[key] = value
        what = f"more: {key} = {value}"
    elif what == "missing":
        del arguments[rng.choice(list(arguments))]
    elif what == "smuggled":
        key = rng.choice(list(arguments))
        arguments[key] = rng.choice(
            [["-h"], ["1", "--help"], ["-t", 1], ["--export=stolen", "--export=stolen"]]
            + ["--help", "-h", "x --help", [["--help"]], ["-h", "-h"], {"-h": 1}]
        )
        what = f"{key} = {arguments[key]}"
    elif what == "renamed":
        key = rng.choice(list(arguments))
        arguments[rng.choice((key.upper(), key[:-1], f"{key} "))] = arguments.pop(key)
    else:  # another data set than the one that the state is of
        arguments["dataset"] = rng.choice(
            ["pipe", "/dev/zero", "nothing", "..", "a.png", "/etc/passwd", "a\0b"]
            + ["\ud800", "x" * 5000, "x" * 300, "", "run_state.h5", ".", "-"]
        )
        what = f"dataset {arguments['dataset'][:30]!a}"
    return of_run(rng, name, run, f"arguments: {what}", True)


def rows(rng):
    """Epochs that are skipped or repeated, other columns, numbers that are none."""
    name = rng.choice(NAMES)
    run = run_of(name)
    made, best = run["rows"], run["best_epoch"]
    what, right = rng.choice(("order", "columns", "values", "many", "best")), True
    if what == "order":
        epochs = rng.choice(
            ([1, 1], [1, 3], [2, 1], [2, 3], [0, 1], [1.0, 2.0], [True, 2], ["1", 2])
            + ([1, 2, 2], [-1, 0], [1, 10**400], [])
        )
        run["rows"] = [{**made[0], "epoch": epoch} for epoch in epochs]
        what, right = f"epochs {str(epochs)[:60]}", epochs != [1.0, 2.0]
    elif what == "columns":
        i = rng.randrange(2)
        key = rng.choice(list(made[i]))
        change = rng.choice(("less", "more", "renamed", "all", "order", "no object"))
        row = made[i]
        if change == "less":
            del row[key]
        elif change == "more":
            row["x\n"] = 1.0
        elif change == "renamed":
            row[key + " "] = row.pop(key)
        elif change == "order":
            made[i] = dict(reversed(row.items()))
        elif change == "no object":
            made[i] = rng.choice((None, [], "x", 1, list(row), [[k, 1] for k in row]))
        else:  # alike in all rows
            run["rows"] = [{"epoch": 1, "=cmd()": 2.0}, {"epoch": 2, "=cmd()": 2.0}]
        what = f"columns: {change}"
    elif what == "values":
        i, key = rng.randrange(2), rng.choice(list(made[0])[1:])
        value = rng.choice(
            [None, True, "1", [], {}, float("nan"), float("inf"), 10**400, 1e300]
            + [-1e299, 1e299, 10**299, -1, 0, 1e-320, 2, 5e307, 1e200, 1e40]
        )
        made[i][key] = value
        number = type(value) in (int, float) and abs(value) < 1e300
        what, right = f"row {i}, {key}: {str(value)[:30]}", not number
    elif what == "many":
        n = rng.choice((4, 60, 2000, 100_000))
        run["rows"] = [{**made[0], "epoch": i + 1} for i in range(n)]
        run["arguments"]["epochs"] = rng.choice((n, n, 3, 2**31 - 1))
        what, right = f"{n} rows", run["arguments"]["epochs"] < n and n > 5
    else:
        value = rng.choice([0, 3, -1, 1.0, True, "1", [], 10**400, 2**63, 1, None])
        run["best_epoch"] = value
        fine = value is None or (name == "best" and type(value) is int)
        what, right = (
            f"best epoch {str(value)[:30]}, was {best}",
            not fine or value == 0,
        )
        right = right or (value is not None and not 1 <= value <= 2)
    return of_run(rng, name, run, what, right)


def large(rng):
    """Very much JSON."""
    name = rng.choice(NAMES)
    run = json.dumps(run_of(name))
    piece, most = rng.choice((("[],", 20), ('{"":0},', 9), ("1,", 30), ("[0],", 16)))
    n = rng.choice((1, most, 2 * most, 4 * most)) * 10**6
    key = rng.choice(("rows", "arguments", "x"))
    text = f'{run[:-1]}, "{key}": [{piece * n}0]}}'
    what = f"{len(text) / 1e6:.0f} MB of {piece} as {key}"
    return of_run(rng, name, text, what, key != "x" or len(text) > 1 << 26)


def digest(rng):
    name = rng.choice(NAMES)
    run = run_of(name)
    run["digest"] = rng.choice(
        ("", "0" * 64, run["digest"][:-1], "x" * 10**6, "\ud800")
    )
    return of_run(rng, name, run, "another digest", True)


def optimizer(rng):
    """Arrays that are missing, renamed, swapped, or too many."""
    name = rng.choice(NAMES)
    what = rng.choice(("missing", "renamed", "swapped", "more", "no group", "type"))

    def change(file):
        group = file[
            rng.choice([g for g in ("optimizer", "best", "trained") if g in file])
        ]
        i = rng.randrange(len(group) - 1)
        if what == "missing":
            del group[str(i)]
        elif what == "renamed":
            group.move(str(i), rng.choice((f"0{i}", f" {i}", "x", str(-i - 1))))
        elif what == "swapped":
            a, b = ("0", "2") if group.name == "/optimizer" else ("0", "1")
            group.move(a, "x")
            group.move(b, a)
            group.move("x", b)
        elif what == "more":
            group["1000"] = np.zeros(3, "f4")
        elif what == "no group":
            path = group.name
            del file[path]
            if rng.random() < 0.5:
                file[path] = np.zeros(3)
        else:
            shape = group[str(i)].shape
            del group[str(i)]
            group.create_dataset(str(i), shape, "u4")

    data = forged.edit(forged.valid_files()[name], change)
    right = UNCHANGED if what == "more" else True
    return of_state(rng, data, f"{name}, arrays: {what}", right)


def no_run(rng):
    """The state is missing, or of another kind."""
    name = rng.choice(NAMES)

    def change(file):
        del file["run"]
        if kind == "group":
            file.create_group("run")
        elif kind:
            file["run"] = np.zeros((3, 3) if kind == "table" else 3, "u1")

    kind = rng.choice((None, "group", "table", "zeros"))
    data = forged.edit(forged.valid_files()[name], change)
    if rng.random() < 0.3:
        kind, data = "a model file", forged.valid_files()["ours"]
    return of_state(rng, data, f"no run: {kind}", True)


def no_file(rng):
    case = special(rng, valid(rng))
    case.files.pop(UNCHANGED, None)
    return case


RUN_STATE = RunStateKind(
    valid,
    [
        valid,
        *(argument_names, rows, run_value, argument_value, optimizer, run_text, large),
        *(partial(forgery, f) for f in forged.FORGERIES),
        *(rows, argument_names, digest, argument_value, no_run, no_file),
    ],
    forged.read,
)

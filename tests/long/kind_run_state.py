"""Run states, from which a training goes on."""

import json
from functools import partial

import numpy as np

from tests.long import hdf5_files as files
from tests.long.cases import Case, Kind, no_file

NAMES = ("run", "run", "best", "modern")


def of_state(rng, data, what="valid", refused=False, exact=False) -> Case:
    argv = ["--resume", "--save_dir", "."]
    argv += rng.choice(([], [], ["--epochs", "3"]))
    made = {**files.files_around(), "run_state.h5": data}
    return Case(made, argv, what, refused, exact, "run_state.h5")


def valid(rng) -> Case:
    name = rng.choice(NAMES)
    return of_state(rng, files.valid_files()[name], name, exact=True)


def edited(edit, rng) -> Case:
    name = rng.choice(NAMES)
    data, what, refused = edit(rng, files.valid_files()[name])
    return of_state(rng, data, f"{name}: {what}", refused, exact=True)


# The JSON in it.


def choose_run(rng) -> tuple[str, dict]:
    name = rng.choice(NAMES)
    return name, files.json_of(files.valid_files()[name], "run")


def of_run(rng, name, run, what, refused=False) -> Case:
    """A state with other JSON; either text or an object."""
    text = run if isinstance(run, (str, bytes)) else json.dumps(run)
    data = files.put_bytes(files.valid_files()[name], "run", text)
    return of_state(rng, data, f"{name}: {what}", refused)


def run_text(rng):
    name, run = choose_run(rng)
    text, what = files.odd_json(rng, run)
    return of_run(rng, name, text, what, True)


def run_value(rng):
    """A value that a key may not have."""
    name, run = choose_run(rng)
    key, value = rng.choice(list(run)), rng.choice(files.ODD_VALUES)
    text = files.with_value(run, key, value)
    return of_run(rng, name, text, f"{key}: {value[:60]}")


def argument_value(rng):
    """A value that an option may not have, or hardly."""
    name, run = choose_run(rng)
    arguments, value = run["arguments"], rng.choice(files.ODD_VALUES)
    key = group = rng.choice(("training", "training", "data", "weights"))
    text = value
    if group != "weights":
        key = rng.choice(list(arguments[group]))
        text = files.with_value(arguments[group], key, value)
    arguments = files.with_value(arguments, group, text)
    text = files.with_value(run, "arguments", arguments)
    return of_run(rng, name, text, f"argument {key}: {value[:60]}")


def argument_names(rng):
    """Options that are none of a run, missing ones, and values that are flags."""
    name, run = choose_run(rng)
    group = run["arguments"][rng.choice(("training", "data"))]
    what, key = (
        rng.choice(("more", "missing", "smuggled", "renamed")),
        rng.choice([*group]),
    )
    if what == "more":
        key = rng.choice(
            ("help", "predict", "export", "overwrite", "", "-", "architectures")
        )
        group[key] = "stolen"
    elif what == "missing":
        del group[key]
    elif what == "smuggled":
        group[key] = rng.choice(
            (["-h"], ["--export=stolen"], [["-h", "-h"]], {"-h": 1})
        )
    else:
        group[rng.choice((key.upper(), key[:-1], f"{key} "))] = group.pop(key)
    return of_run(rng, name, run, f"arguments: {what} {key}", True)


def dataset(rng):
    """Another data set than the one that the state is of."""
    name, run = choose_run(rng)
    other = rng.choice(
        ["pipe", "/dev/zero", "nothing", "..", "a.png", "/etc/passwd", "a\0b", "\ud800"]
        + ["x" * 5000, "x" * 300, "", "run_state.h5", "."]
    )
    run["arguments"]["data"]["dataset"] = other
    return of_run(rng, name, run, f"dataset {other[:30]!a}", True)


def rows(rng):
    """Epochs that are skipped or repeated, other columns, numbers that are none."""
    name, run = choose_run(rng)
    made = run["rows"]
    what, refused = rng.choice(("order", "columns", "values", "many", "best")), True
    if what == "order":
        epochs = rng.choice(
            ([1, 1], [1, 3], [2, 3], [0, 1], ["1", 2], [1, 10**400], [])
        )
        run["rows"] = [{**made[0], "epoch": epoch} for epoch in epochs]
        what = f"epochs {str(epochs)[:60]}"
    elif what == "columns":
        i = rng.randrange(2)
        key = rng.choice(list(made[i]))
        change = rng.choice(("less", "more", "no object", "all"))
        if change == "less":
            del made[i][key]
        elif change == "more":
            made[i]["x\n"] = 1.0
        elif change == "no object":
            made[i] = rng.choice((None, [], "x", 1, list(made[i])))
        else:  # alike in all rows
            run["rows"] = [{"epoch": n, "=cmd()": 2.0} for n in (1, 2)]
        what = f"columns: {change}"
    elif what == "values":
        i, key = rng.randrange(2), rng.choice(list(made[0])[1:])
        value = rng.choice(
            [None, True, "1", [], float("nan"), float("inf"), 10**400, 1e300]
            + [-1e299, 10**299, -1, 1e-320]
        )
        made[i][key] = value
        refused = type(value) not in (int, float) or not abs(value) < 1e300
        what = f"row {i}, {key}: {str(value)[:30]}"
    elif what == "many":
        n = rng.choice((4, 2000, 100_000))
        run["rows"] = [{**made[0], "epoch": i + 1} for i in range(n)]
        run["arguments"]["training"]["epochs"] = n
        what, refused = f"{n} rows", False
    else:
        value = rng.choice([0, 3, -1, 1.0, True, "1", [], 10**400])
        run["best_epoch"], what = value, f"best epoch {str(value)[:30]}"
    return of_run(rng, name, run, what, refused)


def digest(rng):
    name, run = choose_run(rng)
    run["digest"] = rng.choice(("", "0" * 64, run["digest"][:-1], "\ud800"))
    return of_run(rng, name, run, "another digest", True)


# The arrays beside the weights.


def optimizer(rng):
    """Arrays that are missing, renamed, swapped, or too many."""
    name = rng.choice(NAMES)
    what = rng.choice(("missing", "renamed", "swapped", "more", "no group"))

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
        else:
            del file[group.name]

    data = files.edit(files.valid_files()[name], change)
    return of_state(rng, data, f"{name}, arrays: {what}", what != "more", exact=True)


RUN_STATE = Kind(
    valid,
    [
        valid,
        *(argument_names, rows, run_value, argument_value, optimizer, run_text),
        *(partial(edited, edit) for edit in files.EDITS),
        *(rows, argument_names, digest, argument_value, dataset),
        partial(no_file, valid),
    ],
    files.read,
)

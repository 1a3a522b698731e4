"""What the README says is what the program does, and what the published files say.

README.md may be divided: docs/*.md and experiments/README.md count as parts of it.
"""

import collections
import importlib
import os
import re
import subprocess

import numpy as np
import pytest
from conftest import ROOT, read_log, read_rows

from benchmarks import time_to_accuracy
from capsnet.flags import Parser
from experiments import mnist_table

FILES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FILES += ROOT.glob("experiments/README.md")
TEXTS = {path: path.read_text(encoding="utf-8") for path in FILES}
PUBLISHED = ROOT / "result" / "published"
BENCHMARKS = ROOT / "benchmarks" / "results"
NETWORKS = ("capsnet", "baseline")  # folders of their logs
CNN = "baseline CNN"
SCRIPTS = ("capsulenet", "capsulenet_multi_gpu")
STUDIES = [
    f"{folder}.{path.stem}"
    for folder in ("experiments", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
]


# Commands and flags.


def find_code() -> list[str]:
    """Each line of a block of code, without its comment, and each piece in a line."""
    code = []
    for text in TEXTS.values():
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        code += [line.split(" #")[0] for block in blocks for line in block.split("\n")]
        rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        code += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    return code


def find_flags(code: str) -> set[str]:
    words = {word.partition("=")[0] for word in code.split()}
    return {word for word in words if re.fullmatch(r"--?[a-z]\w*", word)}


def find_commands(module: str) -> list[str]:
    """The arguments of each command that runs a module."""
    program = re.escape(f"{module}.py" if module in SCRIPTS else f"-m {module}")
    parts = (re.split(rf"(?:^|[ /]){program}(?= |$)", code) for code in find_code())
    return [re.split(r" (?:&&|\|) ", p[1])[0] for p in parts if len(p) > 1]


def build_parser(module: str):
    if module == "benchmarks.profile_step":
        pytest.importorskip("tensorflow")
    return importlib.import_module(module).build_parser()


def flags_of(module: str) -> set[str]:
    actions = build_parser(module)._actions
    flags = {flag for action in actions for flag in action.option_strings}
    return {flag for flag in flags if not flag.startswith("--no-")}


@pytest.mark.parametrize("module", SCRIPTS)
def test_every_flag_of_the_command_line_is_explained(module):
    # Those of pip and of the studies are other flags.
    code = [piece for piece in find_code() if piece[:1] == "-"]
    code += [command for script in SCRIPTS for command in find_commands(script)]
    assert flags_of(module) - set().union(*map(find_flags, code)) <= {"--help"}


@pytest.mark.parametrize("module", [*SCRIPTS, *STUDIES])
def test_each_program_has_a_command_whose_flags_exist(module):
    commands = find_commands(module)
    assert commands
    assert set().union(*map(find_flags, commands)) - flags_of(module) == set()


# What is published.


def test_links_lead_to_files():
    notebook = ROOT / "examples" / "capsules.ipynb"
    links = [
        (path, path.parent / link.partition("#")[0])
        for path, text in {**TEXTS, notebook: notebook.read_text("utf-8")}.items()
        for link in re.findall(r"\]\(((?!http)[^)]+)\)", text)
    ]
    assert {path for path, _ in links} >= {FILES[0], notebook}
    assert [target for _, target in links if not target.exists()] == []


def test_commands_leave_what_is_published_alone():
    folders = [
        folder
        for module in (*SCRIPTS, *STUDIES)
        for command in find_commands(module)
        for folder in re.findall(r"--save_dir (\S+)", command)
    ]
    assert folders
    assert [f for f in folders if f.startswith("result/published")] == []


@pytest.mark.parametrize("module", [*SCRIPTS, *STUDIES])
def test_what_is_written_by_default_is_not_published(module):
    parser = build_parser(module)
    ours = isinstance(parser, Parser)
    folder = parser.save_dir if ours else parser.get_default("save_dir")
    folder = folder or "result"
    path = os.path.normpath(os.path.join(folder, "results.csv"))
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", "-q", path]
    try:
        status = subprocess.run(command, capture_output=True).returncode
    except FileNotFoundError:
        pytest.skip("needs git")
    if status == 128:
        pytest.skip("not in a checkout")
    assert status == 0


# The tables, each with the files that its numbers are from.


def find_table(*columns: str) -> list[list[str]]:
    """The cells of the only table whose header begins with these columns."""
    tables = [
        [split_row(line) for line in table.splitlines()]
        for text in TEXTS.values()
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    ]
    (table,) = (t[2:] for t in tables if t[0][: len(columns)] == list(columns))
    return table


def split_row(line: str) -> list[str]:
    """The cells of a row, none of them bold."""
    return [cell.strip(" *") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def check_table(table: list[list[str]], expected: list[list]) -> None:
    """Compares a table with what it must say.

    Args:
        table: Of `find_table`.
        expected: Its rows: a text for a cell that begins with it, a number for one that
            begins with that number, rounded as it is printed, None for any text.
    """
    assert len(table) == len(expected)
    for row, values in zip(table, expected):
        assert len(row) == len(values), row
        for cell, value in zip(row, values):
            if isinstance(value, str):
                assert re.fullmatch(rf"{re.escape(value)}(?: .*)?", cell), (row, value)
            elif value is not None:
                assert is_rounded(cell, value), (row, value)


def is_rounded(cell: str, value: float) -> bool:
    """Whether a cell begins with a number, rounded as it is printed."""
    number = re.match(r"\d{1,3}(?: \d{3})+(?![\d.])|\d+(?:\.(\d+))?", cell)
    if number is None:
        return False
    half = 0.5 * 10 ** -len(number[1] or "")
    return abs(float(number[0].replace(" ", "")) - value) <= half * (1 + 1e-6)


def test_numbers_are_compared_as_they_are_printed():
    assert is_rounded("3.9 times", 3.94) and not is_rounded("3.9", 3.96)
    assert is_rounded("55 000", 55000) and not is_rounded("55", 55000)
    assert is_rounded("0.50", 0.504) and not is_rounded("0.50", 0.5051)
    assert not is_rounded("not run", 1) and not is_rounded("", 0)
    check_table([["a (b)", "1.5", "?"]], [["a", 1.46, None]])
    for wrong in ([["a (b)", "1.5"]], [["a", "1.5", ""], []], [["ab", "1.5", ""]]):
        with pytest.raises(AssertionError):
            check_table(wrong, [["a", 1.46, None]])


def error(row: dict, column: str = "test_accuracy") -> float:
    """A test error in %."""
    return 100 * (1 - float(row[column]))


def test_results_are_those_of_the_log():
    table = PUBLISHED / "mnist_table"
    rows = []
    for recipe, folder, epochs in (
        ("modern", PUBLISHED / "modern_1_epoch", 1),
        ("modern", PUBLISHED / "modern_3_epochs", 3),
        ("modern", PUBLISHED / "modern_6_epochs", 6),
        ("modern", table / "modern" / "v4" / "0", 20),
        ("seed", table / "seed" / "v4" / "0", 10),
        ("seed", table / "seed" / "v4" / "0", 50),
    ):
        log = read_log(folder)
        assert recipe == "seed" or len(log) == epochs
        rows.append([recipe, str(epochs), error(log[epochs - 1]), None])
    check_table(find_table("recipe", "epochs", "test error"), rows)
    text = " ".join(TEXTS[ROOT / "README.md"].split())
    v4 = sorted((table / "modern" / "v4").iterdir())
    errors = [error(read_log(folder)[-1]) for folder in v4]
    *first, last = [f"{e:.2f}" for e in errors]
    each = f"{', '.join(first)} and {last}"
    said = f"leave a test error of {np.mean(errors):.2f} % (three runs: {each} %)"
    assert said in text
    assert f"ends at {first[1]} % with seed 1" in text
    assert f"at {last} % with seed 2" in text
    assert f"mistakes {100 * errors[0]:.0f} digits of 10 000" in text


def test_another_hour():
    first = read_log(PUBLISHED / "mnist_table" / "modern" / "v4" / "0")[-1]
    longer = read_log(PUBLISHED / "longer")[-1]
    losses = [float(row["test_margin_loss"]) for row in (longer, first)]
    text = " ".join(TEXTS[ROOT / "experiments" / "README.md"].split())
    assert f"{losses[0]:.4f} instead of {losses[1]:.4f}" in text
    assert f"the error no better: {error(longer):.2f} %" in text


def test_speed():
    columns = ("train_ms", "train_images_per_second", "train_ratio")
    columns += ("infer_ms", "infer_images_per_second", "infer_ratio", "peak_mb")
    expected = []
    for name, end, names in (
        ("tensorflow_cpu", "", ("plain", "einsum", "ours")),
        ("jax_cpu", ", JAX", ("plain", "ours")),
        ("torch_cpu", ", PyTorch", ("plain", "ours")),
        ("jax_gpu", ", JAX, on a GPU", ("ours",)),
    ):
        rows = read_rows(BENCHMARKS / f"train_step_{name}.csv")
        rows = {row["formulation"]: row for row in rows}
        for name in names:
            values = [float(rows[name][column]) for column in columns]
            expected.append([name + end, *values])
    check_table(find_table("formulation", "train, ms"), expected)


def test_epochs_on_a_gpu():
    expected = []
    for precision in ("float32", "mixed_bfloat16"):
        log = read_log(PUBLISHED / "gpu" / precision)
        seconds = ", ".join(f"{float(row['seconds']):.1f}" for row in log)
        rate = float(log[-1]["images_per_second"])
        expected.append([precision, seconds, rate, error(log[-1])])
    check_table(find_table("precision"), expected)


def test_time_to_an_error():
    rows = read_rows(BENCHMARKS / "time_to_accuracy_tensorflow_cpu.csv")
    numbers = ("step_ms", "minutes", "test_error")
    rows = [row | {name: float(row[name]) for name in numbers} for row in rows]
    expected = []
    for name, (words, _, _) in time_to_accuracy.CURVES.items():
        step = next(row["step_ms"] for row in rows if row["curve"] == name)
        minutes = time_to_accuracy.first_at(rows, name, time_to_accuracy.GOAL)
        first = expected[0][2] if expected else minutes
        words = words.removesuffix(", at the end of each run")
        expected.append([words, step, minutes, first / minutes])
    check_table(find_table("formulation and recipe", "ms a step"), expected)


def test_half_precision_learns_as_well():
    logs = {
        "float32": PUBLISHED / "mnist_table" / "seed" / "v4" / "0",
        "mixed_bfloat16": PUBLISHED / "mixed_bfloat16",
    }
    expected = []
    for name, folder in logs.items():
        first, second, *_ = read_log(folder)
        expected.append([name, error(first), error(second)])
    check_table(find_table("test error, %", "1 epoch"), expected)


def test_one_image():
    expected = []
    for row in read_rows(BENCHMARKS / "one_image_tensorflow_cpu.csv"):
        size = float(row["file_mb"]) if row["file_mb"] else ""
        times = float(row["ms"]), float(row["ms_above_keras"])
        expected.append([row["form"], *times, size])
    check_table(find_table("form", "ms"), expected)


def test_the_parts_of_a_step():
    small, large = (
        {
            row["part"]: row
            for row in read_rows(BENCHMARKS / f"{name}_tensorflow_cpu.csv")
        }
        for name in ("profile", "profile_36")
    )
    parts = {
        "whole step": "whole step",
        "primary capsules": "primary capsules",
        "of these, the products alone": "- - its products",
        "routing": "routing",
        "conv1": "conv1",
        "decoder and losses": "decoder and losses",
        "Adam": "Adam",
    }
    expected = []
    for name, part in parts.items():
        columns = ("ms", "gflop", "mb_moved", "floor_ms")
        values = [float(small[part][column]) for column in columns]
        values += [float(large[part][c]) for c in columns if c != "mb_moved"]
        expected.append([name, *values])
    check_table(find_table("part of a step", "ms"), expected)


def published_profiles():
    """Those that state a floor."""
    paths = BENCHMARKS.glob("profile_*.csv")
    return [path for path in paths if "floor_ms" in read_rows(path)[0]]


@pytest.mark.parametrize("path", published_profiles(), ids=lambda path: path.name)
def test_no_part_of_a_step_beats_its_floor(path):
    rows = read_rows(path)
    assert [r for r in rows if float(r["ms"]) < float(r["floor_ms"])] == []


def test_several_devices():
    names = ("one_device", "two_devices")
    logs = [read_rows(PUBLISHED / "multi_gpu" / f"{name}.csv") for name in names]
    rows = [[None, error(log[1]), None] for log in logs]
    check_table(find_table("2 epochs of MNIST, batch 200"), rows)


def test_what_dividing_costs():
    rows = read_rows(BENCHMARKS / "multi_gpu_tensorflow_cpu.csv")
    columns = ("step_ms", "images_per_second")
    expected = [
        [row["replicas"], *(float(row[column]) for column in columns), "not run"]
        for row in rows
    ]
    check_table(find_table("replicas"), expected)


def test_data_that_it_was_tried_on():
    def of(folder: str, n_class: int, seeds=("",)) -> list:
        logs = [read_log(PUBLISHED / folder / seed) for seed in seeds]
        minutes = np.mean([sum(float(r["seconds"]) for r in log) for log in logs]) / 60
        errors = [error(log[-1]) for log in logs]
        epochs = logs[0][-1]["epoch"]
        return [f"{n_class}", epochs, minutes, np.mean(errors), errors]

    def forest(folder: str) -> tuple[float, list[float], str]:
        rows = read_rows(PUBLISHED / folder / "random_forest.csv")
        errors = [float(row["error"]) for row in rows]
        return np.mean(errors), errors, rows[0]["train"]

    *of_stamps, errors = of("stamps", 7, ("0", "1", "2"))
    *of_letters, _ = of("letters", 10)
    *of_fashion, _ = of("fashion_mnist", 10)
    mean, forests, n_stamps = forest("stamps")
    of_forest, _, n_letters = forest("letters")
    table = find_table("data", "training images")
    expected = [
        [None, n_stamps, *of_stamps, mean],
        [None, n_letters, *of_letters, of_forest],
        ["Fashion-MNIST", "60 000", *of_fashion, "not run"],
        [None, "50 000", "10", "10", "not run: it cannot be fetched here", "", ""],
    ]
    check_table(table, expected)
    for cell, numbers in zip(table[0][-2:], (errors, forests)):
        assert cell.endswith("(" + ", ".join(f"{n:.2f}" for n in numbers) + ")")
    readme = " ".join(TEXTS[ROOT / "README.md"].split())
    assert f"{of_stamps[-1]:.1f} % test error as a mean of three splits" in readme
    assert f"on the same pixels has {mean:.1f} %" in readme


def test_runs_that_were_killed():
    counts = collections.Counter()
    for row in read_rows(ROOT / "tests" / "long" / "results.csv"):
        when = row["case"].partition(",")[0]
        if row["study"] == "kills":
            counts[when] += int(row["count"])
            counts[when, "lost"] += int(row["count"]) * (row["outcome"] != "survived")
    names = {
        "in start-up": "start-up",
        "in the first epoch": "first epoch",
        "at other times": "between",
        "while writing files": "while writing",
    }
    expected = [[name, counts[w], counts[w, "lost"]] for name, w in names.items()]
    check_table(find_table("killed"), expected)


def test_files_that_were_damaged():
    names = {
        "IDX": "idx",
        "pictures": "image",
        "run states": "run_state",
    }
    counts = collections.defaultdict(collections.Counter)
    for row in read_rows(ROOT / "tests" / "long" / "results.csv"):
        if row["study"].startswith("mutated inputs"):
            kind = row["case"].partition(",")[0]
            counts[kind][row["outcome"]] += int(row["count"])
    table = find_table("500 files each")
    expected = []
    for name, *_ in table:
        outcomes = counts.pop(names.get(name, name))
        assert outcomes.total() == 500
        good = [outcomes.pop(outcome, 0) for outcome in ("clear error", "loaded")]
        crashes = outcomes.pop("library crash", 0)
        expected.append([name, *good, outcomes.total(), crashes])
    assert not counts  # no kind is left out
    check_table(table, expected)


def test_the_table_of_the_paper():
    tables = {}
    for recipe, name in (
        ("modern", "table"),
        ("seed", "table_10_epochs"),
        ("seed", "table"),
    ):
        rows = read_rows(PUBLISHED / "mnist_table" / f"{name}.csv")
        of_recipe = {row["network"]: row for row in rows if row["recipe"] == recipe}
        tables[recipe, name] = of_recipe
    expected = []
    for network, row in tables["seed", "table"].items():
        reconstruction = {"True": "yes", "False": "no", "": ""}[row["reconstruction"]]
        ours = [table[network]["mean"] for table in tables.values()]
        ours = [float(mean) if mean else "not run" for mean in ours]
        theirs = [
            m.get(network, "") for m in (mnist_table.PAPER, mnist_table.KERAS_SEED)
        ]
        expected.append([network, row["routings"], reconstruction, *ours, *theirs])
    check_table(find_table("network", "routing"), expected)


def test_attacked_networks():
    folder = PUBLISHED / "adversarial"
    text = " ".join(TEXTS[ROOT / "experiments" / "README.md"].split())
    logs = [read_log(folder / name) for name in NETWORKS]
    a, b = (error(log[-1]) for log in logs)
    assert f"equally good: {a:.2f} and {b:.2f} % test error" in text
    for log in logs:
        minutes = sum(float(epoch["seconds"]) for epoch in log) / 60
        assert f"{minutes:.0f} minutes" in text
    holds = {}  # the lower curve of each network, in %
    for attack, count in (("fgsm", "2000"), ("iterative", "1000")):
        for row in read_rows(folder / f"{attack}.csv"):
            assert row["images"] == count
            at = attack, row["epsilon"], row["network"]
            holds[at] = min(100 * float(row["accuracy"]), holds.get(at, 100))
    for attack, epsilon, network in holds:
        if network == "CapsNet" and float(epsilon) >= 0.05:
            assert holds[attack, epsilon, network] > holds[attack, epsilon, CNN]
    for attack, epsilon, said in (
        ("fgsm", "0.1", "at 0.1 it is {:.1f} against {:.1f} % with one step"),
        ("iterative", "0.1", "and {:.1f} against {:.1f} % with ten"),
        ("fgsm", "0.2", "at 0.2, {:.1f} against {:.1f} %"),
        ("iterative", "0.2", "and {:.1f} against {:.1f} %, of"),
    ):
        pair = (holds[attack, epsilon, network] for network in ("CapsNet", CNN))
        assert said.format(*pair) in text


def test_overlapping_digits():
    expected = []
    for name, text, recipe in (
        ("small/capsnet", "CapsNet of small kernels,", "pictures"),
        ("small_two_epochs/capsnet", "", "pictures"),
        ("modern/capsnet", "CapsNet of the paper's layers,", "modern"),
        ("two_epochs/capsnet", "", "modern"),
        ("capsnet", "", "seed"),
        ("twelve_epochs/baseline", "baseline CNN,", "modern"),
        ("two_epochs/baseline", "", "modern"),
        ("cnn", "", "seed"),
    ):
        log, results = read_pairs(name)
        hours = sum(float(epoch["seconds"]) for epoch in log) / 3600
        expected.append([text, recipe, 60000 * len(log), hours, *results])
    check_table(find_table("network", "recipe", "pairs seen"), expected)
    text = " ".join(TEXTS[ROOT / "experiments" / "README.md"].split())
    a, b = (read_log(PUBLISHED / "multimnist" / "stopped" / n)[27] for n in NETWORKS)
    assert a["epoch"] == b["epoch"] == "28"  # of 60 000 pairs each
    assert f"averages were at {error(a):.1f} % (CapsNet" in text
    assert f"and {error(b):.1f} % ([CNN]" in text
    ours, cnn = (
        read_pairs(name)[1][0]
        for name in ("small_two_epochs/capsnet", "two_epochs/baseline")
    )
    assert f"it is {cnn - ours:.1f} points ahead of the baseline after 120 000" in text
    log, (last, _) = read_pairs("small/capsnet")
    minutes = sum(float(epoch["seconds"]) for epoch in log) / 60
    assert (
        f"ends at {last:.2f} % after 720 000, on two cores in {minutes:.0f} min" in text
    )
    assert (
        f"ends at {read_pairs('twelve_epochs/baseline')[1][0]:.2f} % after as" in text
    )
    rows = [
        read_rows(PUBLISHED / "multimnist" / "more_pairs" / name / "test.csv")[0]
        for name in NETWORKS
    ]
    assert {row["pairs"] for row in rows} == {"50000"}
    ours, cnn = (float(row["error"]) for row in rows)
    assert f"it is {ours:.2f} against {cnn:.2f} %" in text


def read_pairs(name: str) -> tuple[list[dict], list[float]]:
    """The log of a run of multimnist, and its test: both right and one, in %."""
    log = read_log(PUBLISHED / "multimnist" / name)
    (test,) = read_rows(PUBLISHED / "multimnist" / name / "test.csv")
    assert test["pairs"] == "10000"
    assert error(log[-1]) == pytest.approx(float(test["error"]))
    return log, [float(test[column]) for column in ("error", "one_right")]


def test_what_parts_give_for_overlapping_digits():
    expected = []
    for name in ("r1_none", "r1", "r3_none", "r3"):
        log, results = read_pairs(f"equal_pairs/{name}")
        assert len(log) == 5  # of 60 000 pairs each
        reconstruction = "no" if name.endswith("none") else "yes"
        expected.append([name[1], reconstruction, *results])
    check_table(find_table("rounds of routing"), expected)


def test_the_recipe_part_by_part():
    for epochs, column in ((8, "change"), (20, "changes, 20 epochs")):
        rows = read_rows(PUBLISHED / "recipes" / f"{epochs}_epochs" / "recipes.csv")
        expected = []
        for row in (row for row in rows if row["runs"] != "0"):
            numbers = (float(row[name]) for name in ("error", "margin_loss_x1000"))
            expected.append([row["what"], row["runs"], *numbers])
        check_table(find_table(column, "runs"), expected)


def test_a_recipe_twice_as_long():
    found = {}
    for epochs in (20, 40):
        rows = read_rows(PUBLISHED / "recipes" / f"{epochs}_epochs" / "recipes.csv")
        (row,) = (row for row in rows if row["variant"] == "muon_strong")
        assert row["runs"] == "1"
        found[epochs] = row
    long, short = found[40], found[20]
    text = " ".join(TEXTS[ROOT / "experiments" / "README.md"].split())
    assert f"{long['error']} % of the same 40 000 images are wrong" in text
    assert f"wrong instead of {short['error']}, and their margin loss is" in text
    losses = (row["margin_loss_x1000"] for row in (long, short))
    assert "margin loss is {} instead of {}".format(*losses) in text
    # closer than chance alone would put two counts
    counts = [float(row["error"]) / 100 * 40000 for row in (long, short)]
    assert abs(counts[1] - counts[0]) < counts[1] ** 0.5


def test_two_changes_of_the_recipe_with_all_images():
    trials = sorted((PUBLISHED / "mnist_table" / "modern" / "v4").iterdir())
    ends = [read_log(trial)[-1] for trial in trials]
    losses = [float(end["test_margin_loss"]) for end in ends]
    text = " ".join(TEXTS[ROOT / "experiments" / "README.md"].split())
    for name in ("stronger", "muon"):
        log = read_log(PUBLISHED / name)
        minutes = sum(float(row["seconds"]) for row in log) / 60
        loss = float(log[-1]["test_margin_loss"])
        both = f"a test error of {error(log[-1]):.2f} % and a margin loss of {loss:.4f}"
        assert both in text
        assert f"one run, {minutes:.0f} minutes" in text
    assert f"`modern` had {min(losses):.4f} to {max(losses):.4f}" in text
    # Muon: a loss below theirs, an error among theirs, and no better at the end
    assert loss < min(losses)
    assert min(map(error, ends)) < error(log[-1]) < max(map(error, ends))
    before, last = log[-6], log[-5:]
    for row in last:
        assert float(row["test_margin_loss"]) >= float(before["test_margin_loss"])
        assert float(row["test_accuracy"]) <= float(before["test_accuracy"])


def test_new_poses():
    """Each run at its end, and what the text says of their means."""
    expected, curves, synthetic, placed = [], {}, {}, {}
    for name, text, paper in (
        ("small", "CapsNet of small kernels,", ""),
        ("capsnet", "CapsNet of the paper's layers,", "79 (at 99.23)"),
        ("cnn", "CNN with pooling and dropout,", "66 (at 99.22)"),
    ):
        folders = sorted((PUBLISHED / "affnist" / name).iterdir())
        logs = [read_log(folder) for folder in folders]
        assert all(float(log[-1]["val_accuracy"]) >= 0.992 for log in logs)
        curves[name] = [
            [100 * float(r["synthetic_accuracy"]) for r in log] for log in logs
        ]
        synthetic[name] = [curve[-1] for curve in curves[name]]
        placed[name] = [100 * float(log[-1]["test_accuracy"]) for log in logs]
        columns = placed[name], synthetic[name]
        for folder, log, *values in zip(folders, logs, *columns):
            expected.append([text, folder.name, 55000 * len(log), *values, paper])
            text = paper = ""
        means = [f"{np.mean(c):.2f} ({np.std(c, ddof=1):.2f})" for c in columns]
        expected.append(["", "mean (standard deviation)", "", *means, ""])
    check_table(find_table("network", "seed", "images seen"), expected)
    text = " ".join(TEXTS[ROOT / "experiments" / "README.md"].split())
    (difference, error), (small_difference, small_error) = (
        (
            np.mean(synthetic["cnn"]) - np.mean(synthetic[name]),
            np.hypot(*(np.std(synthetic[n], ddof=1) for n in ("cnn", name))) / 3**0.5,
        )
        for name in ("capsnet", "small")
    )
    more = np.mean(placed["cnn"]) - np.mean(placed["capsnet"])
    cnn, paper_layers = curves["cnn"], curves["capsnet"]
    for words in (
        f"layers has {np.mean(synthetic['capsnet']):.1f} % of the synthetic set",
        f"ours is {difference:.1f} points better ({error:.1f})",
        f"with {more:.1f} more of the placed test digits",
        f"is {small_difference:.1f} points behind the CNN ({small_error:.1f})",
        f"had {cnn[0][1]:.2f} % after 110 000 images",
        f"and {cnn[0][3]:.2f} after 220 000",
        f"the other two had {paper_layers[1][4]:.2f} and {paper_layers[2][4]:.2f} %",
        f"the same {np.mean(placed['cnn']):.2f} % of the placed digits",
        f"the same {np.mean(placed['small']):.2f} % of the placed digits",
    ):
        assert words in text, words


# Code in Python.


@pytest.mark.parametrize(
    "path", [p for p, t in TEXTS.items() if "```python" in t], ids=lambda p: p.name
)
def test_code_of_a_page_runs_from_top_to_bottom(path):
    blocks = re.findall(r"^```python\n(.*?)^```", TEXTS[path], re.MULTILINE | re.DOTALL)
    exec("\n".join(blocks), {})

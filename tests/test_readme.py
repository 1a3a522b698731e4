"""What the README says is what the program does."""

import importlib
import pathlib
import re

import pytest
from conftest import read_log, read_rows

import capsulenet

ROOT = pathlib.Path(capsulenet.__file__).parent
README = (ROOT / "README.md").read_text()
TABLE = ROOT / "result" / "published" / "mnist_table"


def flags_of_the_parser(module=capsulenet):
    actions = module.build_parser()._actions
    return {flag for action in actions for flag in action.option_strings}


def test_every_flag_of_the_command_line_is_in_the_readme():
    missing = {f for f in flags_of_the_parser() if f"{f}" not in README}
    assert missing <= {"--help"}


def test_commands_of_the_readme_use_flags_that_exist():
    commands = re.findall(r"capsulenet\.py (-[^#\n`]*)", README)
    flags = {word for command in commands for word in command.split() if word[0] == "-"}
    assert flags
    assert flags <= flags_of_the_parser()


@pytest.mark.parametrize(
    "name",
    ["adversarial", "affnist", "baseline", "mnist_table", "multimnist", "reconstruct"],
)
def test_commands_of_the_studies_use_flags_that_exist(name):
    module = importlib.import_module(f"experiments.{name}")
    commands = re.findall(rf"python -m experiments\.{name}\b([^#|\n`]*)", README)
    assert commands
    words = {word for command in commands for word in command.split()}
    assert {word for word in words if word[0] == "-"} <= flags_of_the_parser(module)


def test_files_and_pictures_of_the_readme_exist():
    links = re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_commands_of_the_readme_leave_what_is_published_alone():
    folders = re.findall(r"python (?:\S+\.py|-m \S+) .*--save_dir (\S+)", README)
    assert folders
    assert [f for f in folders if f.startswith("result/published")] == []


def test_results_are_those_of_the_log():
    log = read_log(TABLE / "seed" / "v4" / "0")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) % \|", README, re.MULTILINE)
    assert [int(epoch) for epoch, _ in rows] == [1, 10, 50]
    for epoch, error in rows:
        accuracy = float(log[int(epoch) - 1]["test_accuracy"])
        assert error == f"{100 * (1 - accuracy):.2f}"


@pytest.mark.parametrize(("column", "name"), [(3, "table_10_epochs"), (4, "table")])
def test_the_table_has_measured_cells_only(column, name):
    measured = {
        row["network"]: f"{float(row['mean']):.2f}" if row["mean"] else "not run"
        for row in read_rows(TABLE / f"{name}.csv")
        if row["recipe"] == "seed"
    }
    lines = re.findall(r"^\| ((?:v\d|baseline) \|.*) \|$", README, re.MULTILINE)
    cells = [line.split(" | ") for line in lines]
    assert {row[0]: row[column] for row in cells} == measured


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r".*pip install -r requirements-dev\.txt &&.*", README)
    assert len(commands) == 1
    assert commands[0].endswith("-m pytest")

"""experiments/mnist_table.py: what is run, what goes on, and what the table says."""

import dataclasses
import re

import pytest
from conftest import ROOT, error_line, read_rows, refuse, write_test_errors

import capsulenet
from capsnet import command_line
from capsnet.interrupts import Interrupted
from capsnet.options import Options, Training
from capsnet.recipes import RECIPES
from capsnet.run_folder import RunFolder
from experiments import baseline, mnist_table

PUBLISHED = ROOT / "result" / "published" / "mnist_table"


def read_table(folder, epochs):
    name = f"table_{epochs}_epochs.csv" if epochs else "table.csv"
    return {(r["recipe"], r["network"]): r for r in read_rows(folder / name)}


def main(*arguments):
    return mnist_table.main([*map(str, arguments)])


def make_table(folder, epochs=None):
    flags = ("--epochs", epochs) if epochs else ()
    assert main("--trials", 0, "--save_dir", folder, *flags) == 0
    name = f"table_{epochs}_epochs.md" if epochs else "table.md"
    return read_table(folder, epochs), (folder / name).read_text()


def test_means_and_deviations_of_what_was_run(tmp_path):
    for trial, error in enumerate((0.30, 0.36, 0.42)):
        write_test_errors(tmp_path / "seed" / "v4" / str(trial), 1.5, error)
    write_test_errors(tmp_path / "seed" / "v1" / "0", 2, 0.5)
    rows, text = make_table(tmp_path, epochs=2)
    row = rows["seed", "v4"]
    assert (row["trials"], row["mean"], row["std"]) == ("3", "0.36", "0.06")
    assert row["errors"] == "0.30 0.36 0.42"
    assert (
        "| seed | 2 | v4 | 3 | yes | 0.360 (0.060) | 3 | 0.5 | 0.25 (0.005) |" in text
    )
    # One trial has no deviation.
    assert "| seed | 2 | v1 | 1 | no | 0.500 | 1 | 0.5 | 0.34 (0.032) |" in text
    assert (tmp_path / "errors_seed.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_is_of_the_epochs_of_each_recipe(tmp_path):
    for recipe, epochs in (("seed", 50), ("modern", 20)):
        errors = [1.0] * (epochs - 1) + [0.5] + [2.0]
        write_test_errors(tmp_path / recipe / "v4" / "0", *errors)
    rows, text = make_table(tmp_path)
    assert rows["seed", "v4"]["errors"] == rows["modern", "v4"]["errors"] == "0.50"
    assert "| seed | 50 | v4 |" in text and "| modern | 20 | v4 |" in text
    assert "not comparable" not in text
    assert (tmp_path / "errors_modern.png").read_bytes().startswith(b"\x89PNG")
    # Another number of epochs has a table of its own, and says so.
    before = (tmp_path / "table.csv").read_bytes()
    _, text = make_table(tmp_path, epochs=10)
    assert "of 10 epochs and not comparable" in text
    assert (tmp_path / "table.csv").read_bytes() == before


@pytest.mark.parametrize(
    "path", sorted(PUBLISHED.glob("table*.csv")), ids=lambda p: p.name
)
def test_published_tables_are_of_the_published_logs(path):
    epochs = re.search(r"\d+", path.name)
    epochs = int(epochs[0]) if epochs else None
    rows = mnist_table.make_rows(str(PUBLISHED), epochs)
    assert read_rows(path) == [{k: str(v) for k, v in row.items()} for row in rows]
    text = path.with_suffix(".md").read_text()
    assert text == mnist_table.to_markdown(rows, epochs)


@pytest.mark.parametrize(
    "log", ["epoch\n1\n", "epoch,test_accuracy\n1,x\n", "epoch,test_accuracy\n1\n"]
)
def test_a_log_that_is_none(log, tmp_path, capsys):
    folder = tmp_path / "seed" / "v4" / "0"
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text(log)
    message = refuse(capsys, "--trials", 0, "--save_dir", tmp_path, main=main)
    assert "expected a number in test_accuracy" in message


def test_a_part_of_a_run_whose_rate_ends_at_zero_is_no_shorter_run(tmp_path, capsys):
    write_test_errors(tmp_path / "modern" / "v4" / "0", *[1.0] * 19, 0.5)
    rows, _ = make_table(tmp_path)
    assert rows["modern", "v4"]["errors"] == "0.50"
    rows, _ = make_table(tmp_path, epochs=10)
    assert rows["modern", "v4"]["trials"] == "0"
    flags = ("--recipe", "modern", "--epochs", 10, "--save_dir", tmp_path)
    assert main(*flags) == 2
    message = error_line(capsys.readouterr().err)
    assert message.startswith("--epochs: expected 20, at the end of which")


def test_what_is_no_trial_is_left_alone(tmp_path):
    write_test_errors(tmp_path / "seed" / "v4" / "0", 1)
    write_test_errors(tmp_path / "seed" / "v4" / "notes", 5)
    write_test_errors(tmp_path / "seed" / "mine" / "0", 5)
    rows, _ = make_table(tmp_path, epochs=1)
    assert rows["seed", "v4"]["errors"] == "1.00" and len(rows) == 10


def test_longer_runs_count_with_the_epoch_that_is_asked_for(tmp_path):
    write_test_errors(tmp_path / "seed" / "v4" / "0", 3, 2, 1)
    write_test_errors(tmp_path / "seed" / "v4" / "1", 4)  # not so far yet
    for epochs, errors in ((1, "3.00 4.00"), (2, "2.00"), (3, "1.00"), (4, "")):
        rows, _ = make_table(tmp_path, epochs)
        assert rows["seed", "v4"]["errors"] == errors


@pytest.fixture
def runs(monkeypatch):
    """The script and the options of each run, none of which is made."""
    made = []
    for script in (capsulenet, baseline):
        name = script.__name__
        monkeypatch.setattr(
            script, "run", lambda options, own, name=name: made.append((name, options))
        )
    return made


def begin(folder, finished, **training):
    """Leaves what a run of the older recipe leaves, but for the weights."""
    write_test_errors(folder, *[1] * finished)
    (folder / "run_state.h5").write_text("")
    settings = Training(**training)
    return Options(RunFolder(str(folder)), training=settings, begun={"rows": []})


def test_each_trial_is_a_run_of_the_scripts(runs, tmp_path):
    flags = ("--trials", 2, "--recipe", "modern", "--save_dir", tmp_path)
    assert main(*flags) == 0
    assert len(runs) == 10
    found = {
        (script, options.folder.path.removeprefix(str(tmp_path))): options.training
        for script, options in runs
    }
    modern = RECIPES["modern"]
    assert found["capsulenet", "/modern/v1/1"] == dataclasses.replace(
        modern, routings=1, lam_recon=0.0, seed=1
    )
    assert found["capsulenet", "/modern/v4/0"] == modern
    cnn = found["experiments.baseline", "/modern/baseline/0"]
    assert cnn == dataclasses.replace(modern, **baseline.WITHOUT_CAPSULES)


def test_only_what_is_missing_is_run(runs, monkeypatch, tmp_path, capsys):
    write_test_errors(tmp_path / "seed" / "v4" / "0", 1, 1)  # finished
    v3 = {"epochs": 2, "lam_recon": 0.0}
    begun = begin(tmp_path / "seed" / "v3" / "0", 1, **v3)  # interrupted
    monkeypatch.setattr(command_line, "read_begun", lambda folder: begun)
    flags = ("--epochs", 2, "--trials", 1, "--cells", "v4", "v3")
    assert main(*flags, "--save_dir", tmp_path) == 0
    ((_, options),) = runs
    assert options == begun
    assert "v4, trial 0: 2 epochs are in" in capsys.readouterr().out


def test_a_run_with_other_numbers_is_not_continued(runs, monkeypatch, tmp_path, capsys):
    begun = begin(tmp_path / "seed" / "v4" / "0", 1, epochs=2, lr=0.1)
    monkeypatch.setattr(command_line, "read_begun", lambda folder: begun)
    flags = ("--epochs", 2, "--trials", 1, "--save_dir", tmp_path)
    assert main(*flags) == 2 and not runs
    message = error_line(capsys.readouterr().err)
    assert message.startswith("--lr: expected 0.1, with which the run in")


def test_a_run_that_ended_before_its_model_was_written_is_finished(
    runs, monkeypatch, tmp_path
):
    folder = tmp_path / "seed" / "v4" / "0"
    # The recipe leaves the weight of the reconstruction open, and a run settles it.
    begun = begin(folder, 3, epochs=3, lam_recon=0.392)
    monkeypatch.setattr(command_line, "read_begun", lambda folder: begun)
    flags = ("--epochs", 2, "--trials", 1, "--cells", "v4")
    assert main(*flags, "--save_dir", tmp_path) == 0
    ((_, options),) = runs
    assert options == begun


def test_a_log_without_its_state_is_not_replaced(runs, tmp_path, capsys):
    write_test_errors(tmp_path / "seed" / "v4" / "0", 1)
    flags = ("--epochs", 2, "--trials", 1, "--save_dir", tmp_path)
    assert main(*flags) == 2 and not runs
    message = error_line(capsys.readouterr().err)
    assert "expected run_state.h5, to go on after the 1 epochs" in message


def test_an_interrupted_run_ends_the_table(monkeypatch, tmp_path, capsys):
    def interrupt(options, own):
        raise Interrupted(2)

    monkeypatch.setattr(capsulenet, "run", interrupt)
    assert main("--save_dir", tmp_path) == 130
    out = capsys.readouterr().out
    assert "The same command goes on" in out
    assert f"Wrote {tmp_path / 'table.md'}" in out  # of what there is
    assert (tmp_path / "table.md").exists()

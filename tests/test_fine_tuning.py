"""A training that starts from a model of other classes."""

import numpy as np
import pytest
from conftest import ROOT, main, read_weights, refuse

import capsulenet
from capsnet import command_line
from capsnet.flags import PRETRAINED
from capsnet.weights import read_info

MODEL = ROOT / PRETRAINED
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def few_classes(mnist, tmp_path_factory):
    """An npz file of 60 digits of 3 classes."""
    path = tmp_path_factory.mktemp("data") / "few.npz"
    (x, y), _ = mnist
    labels = y.argmax(1)
    kept = np.flatnonzero(labels < 3)[:80]
    arrays = {"x_train": x[kept[:60]], "y_train": labels[kept[:60]]}
    arrays |= {"x_test": x[kept[60:]], "y_test": labels[kept[60:]]}
    np.savez(path, **arrays)
    return path


def start(few_classes, folder, *flags):
    model = ("-w", MODEL, "--save_dir", folder)
    rates = ("--recipe", "seed", "--batch_size", 30)
    return main("--dataset", few_classes, *model, *rates, *flags)


def test_layers_that_fit_are_kept(few_classes, tmp_path, capsys):
    assert start(few_classes, tmp_path / "run", "--epochs", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"{MODEL}: starts with conv1, primarycaps, "
        "decoder_2, decoder_out; new: digitcaps, decoder_1"
    )
    before = read_weights(MODEL)
    after = read_weights(tmp_path / "run" / "trained_model.h5")
    distance = np.abs(after["conv1/conv1/0/kernel"] - before["conv1/conv1/0/kernel"])
    assert 0 < distance.max() < 0.01  # two steps of 0.001 from there


@pytest.mark.slow
def test_kept_layers_can_be_frozen(few_classes, tmp_path, capsys):
    folder = tmp_path / "run"
    assert start(few_classes, folder, "--epochs", 1, "--freeze") == 0
    assert ": keeps, unchanged, conv1, primarycaps, " in capsys.readouterr().out
    first = read_weights(folder / "trained_model.h5")
    frozen = ["conv1", "primarycaps", "decoder_2", "decoder_out"]
    assert read_info(folder / "trained_model.h5")["frozen"] == frozen
    # The run knows what is frozen, whatever became of the file.
    resume = ("--resume", "--save_dir", folder, "--epochs", 2)
    assert main(*resume) == 0
    second = read_weights(folder / "trained_model.h5")
    before = read_weights(MODEL)
    for name, weight in before.items():
        inner = name.split("/")[-2:]
        kept = name.startswith(("conv1", "primarycaps")) or (
            name.startswith("decoder") and int(inner[0]) > 1
        )
        if kept:
            kept_as = weight.astype("float32").tobytes()  # in the file it has 16 bits
            assert first[name].tobytes() == kept_as == second[name].tobytes()
        else:
            assert (first[name] != second[name]).any(), name


@pytest.mark.slow
def test_all_layers_of_the_same_classes_fit(digits, tmp_path, capsys):
    model = ("-w", MODEL, "--data_dir", digits)
    flags = ("--train_size", 30, "--epochs", 1, "--save_dir", tmp_path / "run")
    message = refuse(capsys, *model, *flags, "--freeze")
    assert "nothing would be left to train" in message
    assert main(*model, *flags) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith("decoder_1, decoder_2, decoder_out")


def test_freezing_needs_a_file(digits, tmp_path, capsys):
    flags = ("--freeze", "--data_dir", digits, "--save_dir", tmp_path / "run")
    message = refuse(capsys, *flags)
    assert message.startswith("--freeze: expected a training that starts from -w FILE")


@pytest.mark.parametrize(
    ("of_file", "flags", "expected"),
    [
        ("seed", ["-t"], "seed"),  # wherever its images are now
        ("seed", [], "pictures"),  # a training on other images
        ("modern", ["-t"], "modern"),
        ("modern", [], "pictures"),
        ("seed", ["--recipe", "modern"], "modern"),
        ("pictures", ["--recipe", "seed"], "seed"),
    ],
)
def test_which_recipe_follows_a_file(of_file, flags, expected, tmp_path, monkeypatch):
    (tmp_path / "x.h5").touch()
    info = {"recipe": of_file, "dataset": "elsewhere/pictures"}
    networks = {"seed": "paper", "modern": "modern", "pictures": "pictures"}
    if of_file != "seed":
        info["architecture"] = networks[of_file]
    monkeypatch.setattr(command_line, "read_info", lambda path: info)
    argv = ["-w", str(tmp_path / "x.h5"), "--dataset", "pictures", *flags]
    options, _ = command_line.read_options(capsulenet.build_parser(), argv)
    assert options.training.recipe == expected
    # The network stays that of the file, also where earlier versions did not say it.
    assert options.training.architecture == networks[of_file]


@pytest.mark.parametrize(
    ("info", "flags", "expected"),
    [
        ({"input_shape": [30, 20, 3], "image_size": None}, [], (30, 20)),
        ({"input_shape": [30, 20, 3], "image_size": [30, 20]}, [], (30, 20)),
        ({"input_shape": [28, 28, 1]}, ["--image_size", "40", "40"], (40, 40)),
        ({"input_shape": [36, 36, 1]}, ["--dataset", "mnist"], None),
        ({}, [], None),
    ],
)
@pytest.mark.parametrize("mode", [[], ["-t"]])
def test_pictures_are_fitted_to_the_file(
    info, flags, expected, mode, tmp_path, monkeypatch
):
    (tmp_path / "x.h5").touch()
    monkeypatch.setattr(command_line, "read_info", lambda path: info)
    argv = ["-w", str(tmp_path / "x.h5"), "--dataset", "pictures", *mode, *flags]
    options, _ = command_line.read_options(capsulenet.build_parser(), argv)
    assert options.data.image_size == expected

"""The command line: real runs on a few hundred real digits, and what it refuses."""

import contextlib
import io
import os
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
from conftest import (
    ROOT,
    a_run,
    assert_picture,
    main,
    quiet_main,
    read_log,
    read_rows,
    read_weights,
    run,
    write_digits,
)

import capsulenet
from capsnet import backend, callbacks, command_line, datasets, errors, memory, session
from capsnet.batches import ShiftedBatches
from capsnet.flags import PRETRAINED
from capsnet.options import Devices, Options, Training
from capsnet.run_folder import RunFolder
from capsnet.weights import load_weights, read_info, read_run

COLUMNS = ["loss", "margin_loss", "reconstruction_loss", "accuracy"]


# Training.


def test_training_says_what_it_does_and_nothing_else(trained):
    _, process = trained
    assert process.stderr == ""  # no banners of libraries, no warnings
    lines = process.stdout.splitlines()
    assert lines[0].startswith("Training: CapsNet, routings 3, 8.2 M weights")
    assert lines[1].startswith("Data: mnist from ")
    assert lines[1].endswith(
        "300 of 600 training images, 300 test images, 28 x 28 x 1, 10 classes"
    )
    assert lines[2] == (
        "How: recipe seed, 2 epochs of batches of 30, Adam with learning rate 0.001, "
        "then 0.5 an epoch; changes of images: shifts 0.1"
    )
    assert lines[3].startswith("Device: ") and "; Keras 3." in lines[3]
    assert lines[4] == "Epoch 1/2"
    assert lines[5].startswith("10/10 - ")  # Keras's progress, a line without terminal
    assert lines[6].startswith("epoch 1: ") and "test error" in lines[6]
    assert lines[10:13] == [
        f"Wrote out/mnist/{name}" for name in ("log.csv", "log.png", "trained_model.h5")
    ]
    assert lines[13].startswith("Test acc: 0.")
    written = ("test.csv", "real_and_recon.png", "errors.png", "confusion.png")
    assert lines[-5:] == [
        f"Wrote out/mnist/{name}" for name in (*written, "manipulate-5.png")
    ]


def test_training_leaves_its_files_and_no_others(trained):
    save_dir, _ = trained
    pictures = ["log.png", "manipulate-5.png", "real_and_recon.png"]
    pictures += ["confusion.png", "errors.png"]
    state = [".lock", "run_state.h5"]  # for --resume
    files = sorted(["log.csv", "test.csv", "trained_model.h5", *state, *pictures])
    assert sorted(os.listdir(save_dir)) == files
    for name in pictures:
        assert_picture(save_dir / name)


def test_log(trained):
    rows = read_log(trained[0])
    speed = ["epoch", "seconds", "images_per_second", "learning_rate"]
    assert list(rows[0]) == [*speed, *COLUMNS, *(f"test_{name}" for name in COLUMNS)]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["learning_rate"] for row in rows] == ["0.001", "0.0005"]
    rows = [{name: float(value) for name, value in row.items()} for row in rows]
    for row in rows:
        assert row["images_per_second"] * row["seconds"] == pytest.approx(300, rel=0.01)
        for prefix in ("", "test_"):
            loss, margin, reconstruction, _ = (row[prefix + name] for name in COLUMNS)
            assert loss == pytest.approx(margin + 0.392 * reconstruction, rel=1e-5)
    assert rows[1]["loss"] < rows[0]["loss"]
    assert rows[1]["test_accuracy"] > 0.3  # guessing gives 0.1


def test_model_file(trained):
    path = trained[0] / "trained_model.h5"
    assert read_info(path) == {
        "format_version": 2,
        "input_shape": [28, 28, 1],
        "class_names": list("0123456789"),
        "multi_label": False,
        "routings": 3,
        "recipe": "seed",
        "architecture": "paper",
        "scaling": "0 is black, 1 is white",
        "dataset": "mnist",
        "split": None,
        "image_size": None,
        "grayscale": False,
        "normalization": None,
        "frozen": [],
        "border_brightness": 0.0002,
        "digit_box": 20,
        "seed": 1,
    }
    weights = read_weights(path)
    assert len(weights) == 11  # and no optimizer state
    assert all(np.isfinite(weight).all() for weight in weights.values())


@pytest.mark.slow
def test_the_seed_sets_the_first_weights_and_the_shifts(digits, tmp_path):
    # Nothing is learned in this run: the file holds the weights that it started from,
    # and the log their loss on the shifted images. (A fresh network paints all images
    # alike, so the reconstruction loss tells how they were shifted.)
    options = ["--lr", 0, "--epochs", 1, "--train_size", 30, "--seed", 2]
    assert main(*options, "--data_dir", digits, "--save_dir", tmp_path) == 0
    (row,) = read_log(tmp_path)

    def same_weights_and_shifts(seed):
        keras.utils.set_random_seed(seed)
        model = capsulenet.CapsNet((28, 28, 1), 10)[0]
        (x, y), _ = datasets.load_dataset(data_dir=digits)
        x, y = ShiftedBatches(x[:30], y[:30], 30, 0.1, seed)[0][0]
        task = capsulenet.task(0.392)
        found, _ = task.evaluate(model, [x, y], [y, x], batch_size=30)
        loss = found["reconstruction_loss"]
        before = model.get_weights()
        load_weights(model, tmp_path / "trained_model.h5")
        pairs = zip(before, model.get_weights())
        same_weights = all(np.array_equal(w, other) for w, other in pairs)
        same_shifts = float(row["reconstruction_loss"]) == pytest.approx(loss, rel=1e-5)
        return same_weights, same_shifts

    assert same_weights_and_shifts(seed=2) == (True, True)
    assert same_weights_and_shifts(seed=3) == (False, False)


# From weights, with a validation split, with TensorBoard: one run for the three, of two
# epochs: the first has a learning rate so small that nothing changes, the second one
# so large that nothing of use is left.


@pytest.fixture(scope="module")
def continued(trained, digits, tmp_path_factory):
    """The folder that the run left, and what it printed."""
    pytest.importorskip("tensorboard")
    save_dir = tmp_path_factory.mktemp("continued")
    weights = ["-w", trained[0] / "trained_model.h5"]
    rates = ["--epochs", 2, "--lr", 1e-30, "--lr_decay", 1e29]
    sizes = ["--train_size", 100, "--validation_size", 200, "--batch_size", 100]
    files = ["--data_dir", digits, "--save_dir", save_dir]
    return save_dir, quiet_main(*weights, *rates, *sizes, *files, "--debug")


def test_weights_without_t_are_where_training_starts(trained, continued):
    last, first = read_log(trained[0])[-1], read_log(continued[0])[0]
    for name in COLUMNS:
        before, after = (float(row[f"test_{name}"]) for row in (last, first))
        assert before == pytest.approx(after, rel=1e-5)  # in batches of another size


def test_a_validation_split_keeps_the_best_epoch(trained, continued):
    save_dir, output = continued
    rows = read_log(save_dir)
    sets = [name.removesuffix("_accuracy") for name in rows[0] if "accuracy" in name]
    assert sets == ["accuracy", "val", "test"]
    assert set(rows[0]) >= {f"val_{name}" for name in COLUMNS}
    assert float(rows[0]["val_accuracy"]) > float(rows[1]["val_accuracy"])

    assert "Taking the weights of epoch 1, the best in validation.\n" in output
    assert f"Test acc: {float(rows[0]['test_accuracy']):.4f}\n" in output
    before = read_weights(trained[0] / "trained_model.h5")
    kept = read_weights(save_dir / "trained_model.h5")
    for weight, other in zip(before.values(), kept.values(), strict=True):
        np.testing.assert_allclose(weight, other, rtol=0, atol=1e-25)


def test_debug_writes_tensorboard_logs(continued):
    (event_file,) = (continued[0] / "tensorboard-logs").rglob("events.out.tfevents.*")
    assert event_file.stat().st_size > 0


@pytest.mark.parametrize(("name", "best"), [("val", 2), ("test", None)])
def test_best_is_the_first_of_the_best_in_validation(name, best):
    run = a_run()
    keep = callbacks.KeepBest(run)
    for epoch, accuracy in enumerate((0.5, 0.7, 0.7, 0.6)):
        others = {"accuracy": 1 - accuracy, "test_accuracy": 1 - accuracy}
        run.rows.append({**others, f"{name}_accuracy": accuracy})
        weights = partial(str, f"weights of epoch {epoch + 1}")
        optimizer = SimpleNamespace(use_ema=False)
        keep.set_model(SimpleNamespace(get_weights=weights, optimizer=optimizer))
        keep.on_epoch_end(epoch)
    assert run.best_epoch == best
    assert run.best_weights == (f"weights of epoch {best}" if best else None)


# Devices and memory.


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("cpu", f"CPU, {os.cpu_count()} cores"),
        ("gpu", "GPU, NVIDIA H200"),
        ("mps", "MPS"),
    ],
)
def test_the_header_names_the_device(monkeypatch, kind, name):
    monkeypatch.setattr(backend, "device_kind", lambda: kind)
    monkeypatch.setattr(backend, "gpu_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(backend, "missing_gpu_package", lambda: None)
    line = session.describe_device()
    assert line.startswith(f"Device: {name}; Keras {keras.version()} on ")


def test_the_header_says_what_a_gpu_lacks(monkeypatch):
    monkeypatch.setattr(backend, "missing_gpu_package", lambda: "tensorflow[and-cuda]")
    _, line = session.describe_device().splitlines()
    assert line.startswith("An NVIDIA driver is here, but ")
    assert line.endswith(
        'sees no GPU; if it should: pip install "tensorflow[and-cuda]"'
    )
    on_purpose = Devices(kind="cpu")
    assert "\n" not in session.describe_device(on_purpose)


def test_a_thousand_classes_with_little_memory(monkeypatch):
    monkeypatch.setattr(session, "runs_on_cpu", lambda: True)
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * 10**9)
    x, y = np.zeros((200, 28, 28, 1), "float32"), np.eye(1000, dtype="float32")[:200]
    names = list(map(str, range(1000)))
    data = datasets.Dataset((x, y), (x, y), class_names=names, name="mine")

    def check(routings):
        settings = Training(routings=routings, batch_size=100)
        session.check_data(data, Options(RunFolder("run"), training=settings))

    check(routings=1)
    with pytest.raises(errors.DataError, match=r"batches of 100 need about 17\.\d GB"):
        check(routings=3)


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError])
def test_running_out_of_memory(kind, digits, monkeypatch, capsys, tmp_path):
    def fit(*arguments, **options):
        raise kind("of the backend, on\nmany lines")

    monkeypatch.setattr(keras.Model, "fit", fit)
    # Which errors of a backend these are is in test_backend.py.
    monkeypatch.setattr(backend, "is_out_of_memory", lambda e: type(e) is RuntimeError)
    assert main("--data_dir", digits, "--save_dir", tmp_path) == 2
    assert capsys.readouterr().err.endswith(
        ": error: out of memory; try a smaller --batch_size, a smaller --image_size or "
        "fewer images\n"
    )


def test_an_error_of_ours_is_no_line_for_the_user(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(keras.Model, "fit", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main("--data_dir", digits, "--save_dir", tmp_path)


# Testing.


@pytest.fixture(scope="module")
def tested(trained, digits, tmp_path_factory):
    """The folder of a test of that model, the file of its features, what it printed."""
    base = tmp_path_factory.mktemp("tested")
    folder, features = base / "new" / "folder", base / "features.npz"
    model = ["-w", trained[0] / "trained_model.h5", "--data_dir", digits]
    options = ["--digit", 3, "--save_dir", folder, "--features", features]
    with contextlib.redirect_stderr(io.StringIO()) as err:
        output = quiet_main("-t", *model, *options)
    assert err.getvalue() == ""
    return folder, features, output


def test_testing(trained, tested):
    save_dir, process = trained
    folder, _, output = tested
    lines = output.splitlines()
    assert lines[0].startswith(f"Testing {save_dir / 'trained_model.h5'}: CapsNet")

    last = {name: float(value) for name, value in read_log(save_dir)[-1].items()}
    wrong = round(300 * (1 - last["test_accuracy"]))
    assert lines[3:5] == [
        f"Test acc: {last['test_accuracy']:.4f}",
        f"Margin loss: {last['test_margin_loss']:.5f}",
    ]
    # Of the longest capsule, while the log has that of the labelled one.
    assert re.fullmatch(r"Reconstruction loss: 0\.\d{5}", lines[5])
    assert lines[6].startswith(f"Test error: {wrong / 3:.2f} % ({wrong} of 300), ")
    assert lines[7].split() == ["class", "images", "precision", "recall", "F1"]
    right = 0
    for label, line in enumerate(lines[8:18]):
        name, n, _, recall, _ = line.split()
        assert name == str(label)
        right += float(recall) * int(n)
    assert right == pytest.approx(300 - wrong, abs=0.1)  # four digits of each rate

    names = ["confusion.png", "errors.png", "manipulate-3.png", "real_and_recon.png"]
    assert sorted(os.listdir(folder)) == [*names, "test.csv"]
    for name in names:
        assert_picture(folder / name)
        assert f"Wrote {folder / name}" in lines
    # Training ends with the same test.
    assert lines[3:19] == process.stdout.splitlines()[13:29]


def test_the_files_of_a_test_agree_with_the_data_and_each_other(trained, tested, mnist):
    folder, features, output = tested
    rows = read_rows(folder / "test.csv")
    truth = mnist.test[1][:300].argmax(1)
    assert [int(row["image"]) for row in rows] == list(range(300))
    assert [int(row["class"]) for row in rows] == truth.tolist()
    lengths = np.array(
        [[float(row[f"length of {i}"]) for i in range(10)] for row in rows]
    )
    guesses = [int(row["prediction"]) for row in rows]
    assert guesses == lengths.argmax(1).tolist()
    wrong = int((np.array(guesses) != truth).sum())
    assert f"Test error: {wrong / 3:.2f} % ({wrong} of 300), 95 % interval " in output
    accuracy = float(read_log(trained[0])[-1]["test_accuracy"])
    assert accuracy == pytest.approx(1 - wrong / 300, abs=1e-6)

    found = np.load(features)
    assert found["capsules"].shape == (len(found["labels"]), 10, 16)
    is_test = found["part"] == "test"
    assert is_test.sum() == 300 and (found["labels"][is_test].argmax(1) == truth).all()
    np.testing.assert_allclose(found["lengths"][is_test], lengths, atol=6e-5)
    norms = np.linalg.norm(found["capsules"], axis=-1)
    np.testing.assert_allclose(norms, found["lengths"], atol=1e-5)
    assert found["paths"][is_test].tolist() == [str(i) for i in range(300)]


# Readers of the output that go away, and terminals without a sign for a name.


def run_without_reader(*arguments, **how):
    """Runs the script with a pipe as its output that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as output:
        return run(*arguments, stdout=output, **how)


@pytest.mark.slow
def test_a_test_whose_reader_has_gone_ends_without_a_word(digits):
    options = ["-w", ROOT / PRETRAINED, "--data_dir", digits]
    process = run_without_reader("-t", *options, "--save_dir", ".")
    assert process.returncode == 141  # as if SIGPIPE had ended it
    assert process.stderr == ""


def test_an_error_that_nobody_reads():
    process = run_without_reader("--digit", 10, stderr=subprocess.STDOUT)
    assert process.returncode == 2


def test_a_training_whose_reader_goes_keeps_its_last_epoch(
    mnist, tmp_path, monkeypatch, on_step, capfd
):
    digits = write_digits(tmp_path / "digits", mnist, 60, 30)
    reader, writer = os.pipe()
    on_step(2, 1, lambda: os.close(reader))
    options = ["--image_size", 17, 17, "--epochs", 9, "--batch_size", 30]
    options += ["--data_dir", digits, "--save_dir", tmp_path]
    with open(writer, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        assert main(*options) == 141
    assert len(read_log(tmp_path)) == 2
    assert capfd.readouterr().err.endswith(
        ": interrupted; epoch 2 is the last one finished, "
        f"--resume --save_dir {tmp_path} goes on from there\n"
    )
    assert len(read_run(str(tmp_path / "run_state.h5"))["rows"]) == 2


def test_printing_never_fails_for_want_of_a_sign(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "cp1252"))
    assert command_line.guard("script", lambda: print("class 猫")) == 0
    assert output.getvalue().split() == [b"class", b"\\u732b"]


# Help.


def test_help(capsys):
    assert main("--help") == 0
    out, err = capsys.readouterr()
    assert err == ""
    groups = ["what to do (default: train)", "network and loss", "training", "data"]
    places = [out.index(f"\n{group}:\n") for group in [*groups, "files", "examples"]]
    assert places == sorted(places)
    out = " ".join(out.split())
    assert "(PNG, JPEG, BMP, GIF, WebP, TIFF)" in out
    assert "(.png, .jpg, .jpeg, .bmp, .gif, .webp, .tif, .tiff)" in out
    assert "those of your own data are mixed with --seed first" in out


# Where files go, if --save_dir is not said.


@pytest.mark.parametrize(
    ("dataset", "folder"),
    [
        (None, "./result"),
        ("mnist", "./result"),
        ("cifar10", "./result/cifar10"),
        ("my_pictures", "./result/my_pictures"),
        ("data/my_pictures/", "./result/my_pictures"),
        ("/data/mnist", "./result/mnist"),  # files of MNIST's kind
        ("data/train.npz", "./result/train"),
        ("TRAIN.NPZ", "./result/TRAIN"),
        ("photos.2024", "./result/photos.2024"),
        ("cats & dogs", "./result/cats___dogs"),
        ("\u732b", "./result/\u732b"),
        (".hidden", "./result/hidden"),
        ("..npz", "./result/_data"),
        ("/", "./result/_data"),
        # Not where the published results are:
        ("published", "./result/published_data"),
        ("x/Pretrained.npz", "./result/Pretrained_data"),
    ],
)
def test_each_data_set_has_a_folder_of_its_own(dataset, folder):
    assert command_line.default_save_dir(dataset) == folder


def test_the_folder_of_a_data_set_that_is_the_current_one(tmp_path):
    (tmp_path / "fruit" / "apple").mkdir(parents=True)
    os.chdir(tmp_path / "fruit" / "apple")
    assert command_line.default_save_dir(".") == "./result/apple"
    assert command_line.default_save_dir("..") == "./result/fruit"


# What is refused: with status 2 and one line, before anything is written.


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--digit 10", "--digit: expected 0 to 9, received 10"),
        ("--digit -1", "--digit: expected 0 to 9, received -1"),
        ("--routings 0", "-r/--routings: expected 1 to "),
        ("-r 1.5", "-r/--routings: expected a whole number, received 1.5"),
        ("--batch_size -1", "--batch_size: expected 1 to "),
        ("--seed 99999999999999999999", "--seed: expected 0 to "),
        ("--lr nan", "--lr: expected at least 0 and less than 1e+35, received nan"),
        ("--lr inf", "--lr: expected at least 0 and less than 1e+35, received inf"),
        ("--lr 1e39", "--lr: expected at least 0 and less than 1e+35, received 1e39"),
        ("--lr_decay 1e39", "--lr_decay: expected at least 0 and less than 1e+35"),
        ("--lam_recon 1e39", "--lam_recon: expected at least 0 and less than 1000000"),
        ("--lr fast", "--lr: expected a number, received fast"),
        ("--lam_recon -0.1", "--lam_recon: expected at least 0"),
        ("--shift_fraction 1", "at least 0 and less than 1, received 1"),
        ("--learning_rate 1", "unrecognized arguments: --learning_rate 1"),
        ("train", "unrecognized arguments: train"),
        ("-w", "-w/--weights: expected one argument"),
    ],
)
def test_bad_values(fails, arguments, complaint):
    assert complaint in fails(*arguments.split())


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ("--features f.npz", "--predict x.png"),
        ("--digit 3", "--export x.onnx"),
        ("--show_batch", "-t"),
        ("--show_batch", "--predict x.png"),
        ("--debug", "-t"),
    ],
)
def test_flags_of_another_mode(fails, flags, mode):
    mode = [*mode.split(), "-w", ROOT / PRETRAINED]
    message = fails(*flags.split(), *mode)
    assert message.startswith(f"{flags.split()[0]} has no effect with {mode[0][:2]}")


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("flag", ["--dataset", "--export", "--save_dir", "--features"])
def test_empty_values(fails, flag):
    assert fails(flag, "") == f"{flag}: expected a value, received an empty one"


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize("mode", [[], ["-t"]])
def test_weights_that_are_no_weights(fails, tmp_path, mode):
    path = tmp_path / "weights.h5"
    path.write_text("no weights")
    assert f"{path}: expected a weights file" in fails("-w", path, *mode)


@pytest.mark.usefixtures("no_data")
def test_a_save_dir_that_cannot_be_one(fails, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for save_dir in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        message = fails("--save_dir", save_dir)
        assert f"--save_dir: cannot write to {save_dir}: Not a directory" in message


@pytest.mark.usefixtures("no_data")
def test_debug_without_tensorboard(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # import fails from here on
    assert "pip install tensorboard" in fails("--debug")


def test_a_digit_that_the_test_images_do_not_have(fails, mnist, tmp_path):
    folder = write_digits(tmp_path / "digits", mnist, leave_out=5)
    message = fails("--digit", 5, "--data_dir", folder)
    assert "--digit: there is no test image of class 5" in message


@pytest.mark.parametrize(
    ("tested", "drawn"), [([1, 1, 1], 2), ([1, 1, 0], 1), ([0] * 6 + [1, 1], 6)]
)
def test_the_class_nearest_to_5_that_can_be_drawn(tested, drawn):
    labels = np.eye(len(tested))[np.flatnonzero(tested)]
    names = [f"kind {i}" for i in range(len(tested))]
    data = datasets.Dataset(None, (None, labels), names, "mine")
    assert session.find_digit(None, data) == drawn
    assert session.find_digit(names[drawn], data) == drawn
    data.test[1][:] = 0  # of several labels an image, none
    with pytest.raises(errors.UsageError, match="no test image of any class"):
        session.find_digit(None, data)


def test_weights_that_do_not_fit_are_found_out_with_the_data(fails, digits, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w"):
        pass  # without any
    message = fails("-t", "-w", tmp_path / "weights.h5", "--data_dir", digits)
    assert f"{tmp_path / 'weights.h5'}: expected 4 layers with weights" in message

"""The user's own images, through the command line: train, test, predict."""

import dataclasses
import json
import os
import re
import shutil

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, main, quiet_main, refuse
from PIL import Image, ImageDraw
from test_photos import draw_photo

import capsulenet
from capsnet import callbacks, datasets, memory, session
from capsnet.callbacks import all_alike
from capsnet.classify import MAX_ROWS, open_pictures
from capsnet.datasets import Dataset, load_dataset
from capsnet.flags import PRETRAINED
from capsnet.options import Devices, Options
from capsnet.photos import normalization_of
from capsnet.predict import predict
from capsnet.recipes import RECIPES
from capsnet.run_folder import RunFolder
from capsnet.uses import MNIST_INFO
from capsnet.weights import read_info

CLASSES = ("circle", "square", "triangle")
HEIGHT, WIDTH = 20, 24


def draw_shape(name, rng):
    """A coloured shape somewhere on a dark ground."""
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(rng.integers(0, 40, 3).tolist()))
    draw = ImageDraw.Draw(image)
    color = tuple(rng.integers(128, 256, 3).tolist())
    x, y = rng.integers(2, 8), rng.integers(2, 6)
    box = (x, y, x + 12, y + 12)
    if name == "circle":
        draw.ellipse(box, fill=color)
    elif name == "square":
        draw.rectangle(box, fill=color)
    else:
        draw.polygon([(x, y + 12), (x + 12, y + 12), (x + 6, y)], fill=color)
    return image


def write_classes(folder, images):
    """A folder of pictures: those of each class, by its name."""
    for name, pictures in images.items():
        (folder / name).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            picture.save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder with a sub-folder of 10 pictures for each class."""
    rng = np.random.default_rng(0)
    drawn = {name: [draw_shape(name, rng) for _ in range(10)] for name in CLASSES}
    return write_classes(tmp_path_factory.mktemp("shapes"), drawn)


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """A model of the shapes: 24 pictures to train, 6 to test."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ("--epochs", 1, "--batch_size", 8, "--seed", 3, "--save_dir", folder)
    return folder, quiet_main("--dataset", shapes, *flags)


def test_the_network_follows_the_data(trained):
    folder, output = trained
    assert "24 of 24 training images, 6 test images, 20 x 24 x 3, 3 classes" in output
    for name in CLASSES:
        assert re.search(rf"^{name} +2  ", output, re.M)  # of 2 test images
    assert (folder / "manipulate-2.png").exists()  # the last class, as there is no 5
    info = read_info(folder / "trained_model.h5")
    assert info["input_shape"] == [20, 24, 3]
    assert info["class_names"] == list(CLASSES)
    assert info["split"].keys() == {"seed", "fraction", "digest", "contents"}


def test_own_data_has_a_recipe_of_its_own(trained, shapes):
    folder, output = trained
    assert "How: recipe pictures, 1 epoch of batches of 8, " in output  # as was said
    assert "100 steps of warm-up, then a cosine to zero" in output
    assert "images normalized" in output
    x = load_dataset(str(shapes), seed=3).train[0]
    info = read_info(folder / "trained_model.h5")
    assert info["recipe"] == "pictures"
    assert info["normalization"] == normalization_of(x)


def test_the_number_of_images_settles_batches_and_epochs():
    def of_size(n):
        x = np.broadcast_to(np.float32(0), (n, 17, 17, 1))
        return Dataset((x, x), (x, x), ["a", "b"], "mine")

    def settle(n, *given, **training):
        training = dataclasses.replace(RECIPES["pictures"], **training)
        options = Options(RunFolder("run"), training=training, given=frozenset(given))
        found = session.adapt(options, of_size(n)).training
        return found.batch_size, found.epochs

    assert settle(24) == (16, 100)
    assert settle(640) == (32, 100)
    assert settle(5000) == (32, 13)
    assert settle(60_000, validation_size=59_976) == (16, 100)
    assert settle(60_000) == (100, 10)
    assert settle(5000, "epochs", "batch_size", epochs=7, batch_size=9) == (9, 7)
    assert settle(24, recipe="modern") == (100, 50)
    eight = dataclasses.replace(
        Options(RunFolder("run"), training=RECIPES["pictures"]), devices=Devices(8)
    )
    assert session.adapt(eight, of_size(100)).training.batch_size == 96
    assert session.adapt(eight, of_size(5000)).training.batch_size == 8 * 32


def test_a_network_sees_normalized_images_and_draws_them_as_they_are():
    x = np.random.default_rng(0).random((4, 17, 17, 3), "float32")
    numbers = normalization_of(x)
    keras.utils.set_random_seed(0)
    plain = capsulenet.CapsNet((17, 17, 3), 2)
    keras.utils.set_random_seed(0)
    normalizing = capsulenet.CapsNet((17, 17, 3), 2, normalization=numbers)
    seen = (x - numbers["mean"]) / np.sqrt(numbers["variance"])
    (expected, _), (lengths, drawn) = (
        predict(plain[1], [seen.astype("float32")]),
        predict(normalizing[1], [x]),
    )
    np.testing.assert_allclose(lengths, expected, rtol=1e-4, atol=1e-6)
    assert drawn.min() >= 0 and drawn.max() <= 1
    shapes = [weight.shape for weight in plain[0].weights]
    assert [weight.shape for weight in normalizing[0].weights] == shapes


def test_weights_say_whether_images_are_normalized(trained, shapes, tmp_path, capsys):
    weights = ("-w", trained[0] / "trained_model.h5")
    flags = ("--dataset", shapes, "--save_dir", tmp_path)
    message = refuse(capsys, *weights, *flags, "--no-normalize")
    assert "expected --normalize, as " in message
    message = refuse(capsys, "-w", ROOT / PRETRAINED, *flags, "--normalize")
    assert "expected --no-normalize, as " in message
    message = refuse(capsys, *weights, *flags, "--grayscale")
    assert "expected images of 3 channels, as the weights were trained with" in message
    message = refuse(capsys, *flags, "--validation_size", 24)
    assert "validation_size: expected 0 to 23" in message


def test_patience_needs_something_to_watch(shapes, tmp_path, capsys):
    flags = ("--dataset", shapes, "--save_dir", tmp_path, "--patience", 2)
    assert "--patience 2: expected --validation_size" in refuse(capsys, *flags)


def test_lam_recon_grows_with_the_image(trained):
    with open(trained[0] / "log.csv") as file:
        names, values = (line.strip().split(",") for line in file)
    row = dict(zip(names, map(float, values)))
    weight = 0.0005 * 20 * 24 * 3
    expected = row["margin_loss"] + weight * row["reconstruction_loss"]
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_testing_needs_the_path_and_takes_the_rest_from_the_file(
    trained, shapes, tmp_path, capsys
):
    model = ("-w", trained[0] / "trained_model.h5")
    message = refuse(capsys, "-t", *model, "--save_dir", tmp_path)
    assert "say where that is now with --dataset" in message
    flags = ("--digit", "square", "--save_dir", tmp_path)
    assert main("-t", *model, "--dataset", shapes, *flags) == 0
    (error,) = re.findall("Test error: .*", trained[1])
    assert error in capsys.readouterr().out  # the same 6 pictures, without --seed 3
    assert (tmp_path / "manipulate-1.png").exists()


@pytest.mark.usefixtures("no_pictures")
def test_own_data_has_a_folder_of_its_own(trained, shapes, tmp_path, capsys):
    own = f"./result/{shapes.name}"
    message = refuse(capsys, "-t", "--dataset", shapes)
    assert f"there is no {own}/trained_model.h5; train a model first" in message
    message = refuse(capsys, "--resume", "--dataset", shapes)
    assert f"no {own}/run_state.h5" in message

    shutil.copytree(trained[0], own)
    message = refuse(capsys, "--dataset", shapes)
    assert f"--save_dir: {own} holds a run already" in message
    assert main("-t", "--dataset", shapes) == 0
    assert f"Testing {own}/trained_model.h5: " in capsys.readouterr().out
    assert main("--resume", "--dataset", shapes) == 0
    assert "Going on after epoch 1 of 1: " in capsys.readouterr().out

    # A model knows what it was trained on; MNIST's are in ./result itself.
    picture = ("--predict", shapes / "circle" / "0.png")
    assert main(*picture, "-w", f"{own}/trained_model.h5") == 0
    assert f"trained on {shapes}\n" in capsys.readouterr().out
    assert (tmp_path / own / "predictions.png").exists()
    message = refuse(capsys, *picture)
    assert "there is no ./result/trained_model.h5" in message
    assert os.listdir(tmp_path / "result") == [shapes.name]


@pytest.mark.usefixtures("no_pictures")
def test_a_run_is_no_class_of_its_own_data(shapes, tmp_path, capsys, monkeypatch):
    for folder, inside in ((".", "result"), ("test", "test/a/b"), ("train", "train/r")):
        data = tmp_path / folder.strip(".") / "data"
        shutil.copytree(shapes, data if folder == "." else data / "train")
        if folder != ".":
            shutil.copytree(shapes, data / "test")
        monkeypatch.chdir(data)
        message = refuse(capsys, "--dataset", ".", "--save_dir", inside)
        assert message.startswith(
            f"--save_dir: expected a folder that is not in {folder}"
        )
        assert not (data / inside).exists()
    # beside train/ and test/ is no class
    assert main("--dataset", ".", "--epochs", 1, "--train_size", 8) == 0
    assert main("-t", "--dataset", ".") == 0


@pytest.mark.usefixtures("no_pictures")
def test_a_run_goes_on_where_its_data_is_now(trained, shapes, tmp_path, capsys):
    run = shutil.copytree(trained[0], tmp_path / "run")
    moved = shutil.copytree(shapes, tmp_path / "moved")
    flags = ("--resume", "--save_dir", run, "--dataset")
    assert main(*flags, f"{moved}/") == 0
    assert "Going on after epoch 1 of 1: " in capsys.readouterr().out
    shutil.copy(moved / "square" / "0.png", moved / "circle" / "0.png")
    assert main(*flags, moved) == 2
    expected = "expected the images and labels that the run was begun with"
    assert expected in capsys.readouterr().err


@pytest.mark.usefixtures("no_pictures")
def test_training_images_never_leak_into_a_test(trained, shapes, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    flags = ("-t", "-w", trained[0] / "trained_model.h5", "--save_dir", tmp_path / "o")
    assert main(*flags, "--dataset", copy) == 0  # the same files at another place
    capsys.readouterr()
    content = (copy / "circle" / "0.png").read_bytes()
    shutil.copy(copy / "square" / "0.png", copy / "circle" / "0.png")
    expected = "expected the files of the training"
    assert expected in refuse(capsys, *flags, "--dataset", copy)
    (copy / "circle" / "0.png").write_bytes(content)
    assert main(*flags, "--dataset", copy) == 0
    capsys.readouterr()
    (copy / "circle" / "0.png").rename(copy / "circle" / "new.png")
    assert expected in refuse(capsys, *flags, "--dataset", copy)
    message = refuse(capsys, *flags, "--dataset", shapes, "--test_fraction", 0.5)
    assert "expected 0.2" in message and "received 0.5" in message


@pytest.mark.usefixtures("no_pictures")
def test_models_of_earlier_versions_know_the_names_of_the_files_alone(
    trained, shapes, tmp_path, capsys
):
    model = shutil.copy(trained[0] / "trained_model.h5", tmp_path)
    with h5py.File(model, "r+") as file:
        info = json.loads(file["info"][()].tobytes())
        del info["split"]["contents"], file["info"]
        file["info"] = np.frombuffer(json.dumps(info).encode(), "uint8")
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    shutil.copy(copy / "square" / "0.png", copy / "circle" / "0.png")
    flags = ("-t", "-w", model, "--save_dir", tmp_path / "o", "--dataset", copy)
    assert main(*flags) == 0
    capsys.readouterr()
    (copy / "circle" / "0.png").rename(copy / "circle" / "new.png")
    assert "expected the files of the training" in refuse(capsys, *flags)


def test_a_class_that_is_not_there(trained, shapes, tmp_path, capsys):
    flags = ("-t", "-w", trained[0] / "trained_model.h5", "--save_dir", tmp_path)
    message = refuse(capsys, *flags, "--dataset", shapes, "--digit", "star")
    assert "0 to 2 or one of [circle, square, triangle], received star" in message


def test_a_model_of_other_data_says_what_differs(
    trained, shapes, digits, tmp_path, capsys
):
    flags = ("-t", "-w", trained[0] / "trained_model.h5", "--save_dir", tmp_path)
    message = refuse(capsys, *flags, "--dataset", "mnist", "--data_dir", digits)
    assert "input_shape: expected [20, 24, 3] of " in message
    assert "received [20, 24, 1] of mnist" in message  # fitted as the file says
    message = refuse(capsys, *flags, "--dataset", shapes, "--grayscale")
    assert "received [20, 24, 1]" in message


@pytest.mark.usefixtures("no_pictures")
def test_flags_win_over_the_file_and_the_file_over_the_default(
    shapes, tmp_path, capsys
):
    save = ("--save_dir", tmp_path)
    flags = ("--epochs", 1, "--batch_size", 8, "--train_size", 8, "-r", 2)
    size = ("--image_size", 18, 19, "--grayscale")
    assert main("--dataset", shapes, *flags, *size, *save) == 0
    model = (tmp_path / "trained_model.h5").read_bytes()
    capsys.readouterr()
    for flags, routings in (((), 2), (("-r", "1"), 1)):
        assert main("-t", "--dataset", shapes, *flags, *save) == 0
        out = capsys.readouterr().out
        assert f"routings {routings}," in out
        assert "18 x 19 x 1" in out
    assert (tmp_path / "trained_model.h5").read_bytes() == model  # a test leaves it


def test_pictures_too_large_to_train_on_are_not_read(
    shapes, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: 1 / 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 10**10)
    flags = ("--dataset", shapes, "--save_dir", tmp_path / "run")
    message = refuse(capsys, *flags, "--image_size", 10000, 10000)
    assert "training with batches of 1 need about" in message


@pytest.mark.usefixtures("no_pictures")
def test_photos_of_several_sizes_need_no_flag(tmp_path, capsys):
    photos = {
        name: [Image.new("RGB", (40 + 9 * i, 30), colour) for i in range(5)]
        for name, colour in (("night", "navy"), ("noon", "skyblue"))
    }
    folder = write_classes(tmp_path / "photos", photos)
    flags = ("--dataset", folder, "--save_dir", tmp_path / "run")
    assert main(*flags, "--epochs", 1) == 0
    out = capsys.readouterr().out
    assert "Training: CapsNet (pictures), routings 3" in out
    assert ", 32 x 32 x 3, 2 classes" in out
    assert read_info(tmp_path / "run" / "trained_model.h5")["image_size"] == [32, 32]
    # Photos of one size would stay as they are, if the model did not know its own.
    of_one_size = {
        name: [first.resize((50, 50))] for name, (first, *_) in photos.items()
    }
    for part in ("train", "test"):
        write_classes(folder / part, of_one_size)
    assert main("-t", *flags) == 0
    assert "2 test images, 32 x 32 x 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lengths", "stuck"),
    [
        (np.full((4, 3), 0.02), True),  # no length
        (np.full((4, 3), 0.999), True),  # saturated
        (np.array([[0.5, 0.4], [0.4, 0.5]]), False),
    ],
)
def test_networks_that_are_stuck(lengths, stuck):
    assert all_alike(lengths) is stuck


def test_flags_of_the_data_have_no_effect_on_a_prediction(trained, tmp_path, capsys):
    flags = ("--predict", "x.png", "-w", trained[0] / "trained_model.h5")
    for flag in (("--grayscale",), ("--image_size", 20, 20), ("--dataset", "mnist")):
        message = refuse(capsys, *flags, *flag, "--save_dir", tmp_path)
        assert f"{flag[0]} has no effect with --predict" in message


def test_no_more_is_kept_of_photos_than_is_drawn(tmp_path):
    wide = Image.new("RGB", (4000, 30), "navy")
    wide.save(tmp_path / "wide.png")
    info = {**MNIST_INFO, "input_shape": [20, 24, 3], "digit_box": None}
    paths = [tmp_path / "wide.png"] * (MAX_ROWS + 1)
    *drawn, last = open_pictures(paths, info, "auto")
    for _, shown, image, done in drawn:
        assert shown.shape == (3, 400, 3)
        assert shown[0, 0] == pytest.approx([0, 0, 128 / 255], abs=1e-6)
        assert image.shape == (20, 24, 3) and done == "fitted into 20 x 24"
    assert last.drawn is None and np.array_equal(last.image, drawn[0].image)


@pytest.mark.slow
def test_capsules_without_length_end_the_training(
    shapes, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(callbacks, "STEPS_TO_LEARN", 2)
    flags = ("--epochs", 9, "--lr", 1e-9, "--batch_size", 24, "--save_dir", tmp_path)
    assert main("--dataset", shapes, *flags, "--warmup", 0, "--no-normalize") == 1
    err = capsys.readouterr().err
    assert "all images get the same outputs after epoch 2" in err
    assert err.endswith(f"the weights of epoch 2 are in {tmp_path}/run_state.h5\n")
    assert err.count("\n") == 1


def test_predict_needs_the_model_alone(trained, shapes, tmp_path, capsys):
    pictures = [shapes / "circle" / "0.png", shapes / "square" / "1.png"]
    large = tmp_path / "large.jpg"
    Image.open(pictures[0]).resize((300, 200)).save(large)
    empty = tmp_path / "empty.png"
    Image.new("L", (20, 24), 200).save(empty)
    model = ("-w", trained[0] / "trained_model.h5")
    options = (*model, "--save_dir", tmp_path / "out")
    assert main("--predict", *pictures, large, empty, *options) == 0
    lines = capsys.readouterr().out.splitlines()
    for path, line in zip((*pictures, large), lines[2:]):
        assert re.match(
            rf"{re.escape(str(path))}: (circle|square|triangle), length [01]\.\d+, "
            r"then (circle|square|triangle), [01]\.\d+",
            line,
        )
    assert lines[4].endswith("fitted into 20 x 24")
    assert lines[5].endswith("; the picture is of one colour and shows nothing")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.png"]


def test_predict_with_a_picture_that_cannot_be_read(trained, tmp_path, capsys):
    model = ("-w", trained[0] / "trained_model.h5", "--save_dir", tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    for name in ("missing.png", "text.png"):
        assert str(tmp_path / name) in refuse(
            capsys, "--predict", tmp_path / name, *model
        )
    assert os.listdir(tmp_path) == ["text.png"]


def test_images_that_are_too_small(tmp_path, capsys):
    folder = write_classes(
        tmp_path / "data", dict.fromkeys("ab", 5 * [Image.new("L", (30, 8), 99)])
    )
    message = refuse(capsys, "--dataset", folder, "--save_dir", tmp_path / "out")
    assert "at least 9 x 9" in message and "received 8 x 30" in message
    assert not (tmp_path / "out").exists()


def arrays(**changes):
    """An npz's arrays: 6 images of 2 classes to train, 3 to test."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 2**16, (6, 18, 20, 3), "uint16"),
        "y_train": np.array(["cat", "dog"] * 3),
        "x_test": rng.integers(0, 2**16, (3, 18, 20, 3), "uint16"),
        "y_test": np.array(["cat", "dog", "dog"]),
        **changes,
    }


def test_faults_of_arrays(tmp_path, capsys):
    """Two of those in test_datasets.py: of the file, and of the part that is used."""
    path = tmp_path / "pets.npz"
    flags = ("--dataset", path, "--save_dir", tmp_path / "out")
    np.savez(path, **arrays(y_train=np.zeros(5, int)))
    assert f"{path}: y_train: expected 6 labels" in refuse(capsys, *flags)
    np.savez(path, **arrays())
    message = refuse(capsys, *flags, "--train_size", 1)
    assert "expected images of every class to train on, got 1 without any" in message
    assert not (tmp_path / "out").exists()


def test_a_fault_of_a_picture_is_one_line_whatever_its_name(shapes, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(shapes, folder)
    (folder / "square" / "a\nb.png").write_text("no picture")
    message = refuse(capsys, "--dataset", folder, "--save_dir", tmp_path / "out")
    assert message.startswith(f"{folder / 'square' / 'a b.png'}: expected a PNG")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_photos_of_digits(mnist, tmp_path, capsys):
    """60 test digits, dark on unevenly lit light paper: at least 95 % right."""
    _, (x, y) = mnist
    rng = np.random.default_rng(0)
    index = rng.choice(len(x), 60, replace=False)
    for i in index:
        Image.fromarray(draw_photo(x[i], rng)).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in index]
    model = ("-w", ROOT / "result" / "pretrained" / "mnist_v4.h5")
    assert main("--predict", *paths, *model) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ", len" in line]
    assert len(lines) == 60 and all("inverted" in line for line in lines)
    right = [
        line.split(": ")[1].startswith(f"{label},")
        for line, label in zip(lines, y[index].argmax(axis=1))
    ]
    assert np.mean(right) >= 0.95

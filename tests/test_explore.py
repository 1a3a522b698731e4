"""explore.py: the files of the page, and its JavaScript against Keras and Pillow."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, main, refuse
from PIL import Image, ImageDraw
from test_capsulelayers import routing_and_couplings

import capsulenet
from capsnet import explore, uses
from capsnet.architecture import ARCHITECTURES, PAPER
from capsnet.datasets import Dataset
from capsnet.errors import DataError, UsageError
from capsnet.explore import Shown
from capsnet.fields import convolution_layers
from capsnet.flags import PRETRAINED, TWO_DIGITS
from capsnet.photos import prepare_picture
from capsnet.predict import predict

INFO = uses.MNIST_INFO
NORMALIZATION = {"mean": [0.3, 0.5, 0.6], "variance": [0.05, 0.05, 0.05]}


def run_node(*arguments):
    if shutil.which("node") is None:
        pytest.skip("needs node")
    command = ["node", ROOT / "tests" / "page_in_node.mjs", *arguments]
    process = subprocess.run(command, capture_output=True, timeout=300)
    assert process.returncode == 0, process.stderr.decode()
    return np.frombuffer(process.stdout, "<f4")


def write_files(files, folder):
    for name, content in files.items():
        Path(folder, name).write_bytes(content)


# The engine.


def answers_of_node(model, info, images, folder):
    """Lengths, reconstructions and votes, (rounds, classes, places), of the page."""
    write_files(explore.build_page(Shown(model, info, "a model")), folder)
    Path(folder, "images.bin").write_bytes(images.astype("<f4").tobytes())
    numbers = run_node("engine", folder).reshape(len(images), -1)
    n_class, pixels = len(info["class_names"]), images[0].size
    parts = np.split(numbers, [n_class, n_class + pixels], axis=1)
    rounds = model.get_layer("digitcaps").routings
    return *parts[:2], parts[2].reshape(len(images), rounds, n_class, -1)


@pytest.mark.parametrize("n", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_the_engine_reads_and_draws_as_keras_does(n, mnist, published, tmp_path):
    images = mnist.test[0][:n]
    lengths, drawn, _ = answers_of_node(published, INFO, images, tmp_path)
    expected = predict(published, [images])
    assert np.abs(lengths - expected[0]).max() < 1e-3
    assert np.abs(drawn - expected[1].reshape(n, -1)).max() < 2e-3


@pytest.mark.parametrize(
    ("shape", "n_class", "routings", "architecture", "normalization"),
    [
        ((20, 22, 3), 4, 2, PAPER, NORMALIZATION),
        ((22, 20, 1), 3, 1, PAPER, None),
        ((21, 26, 3), 5, 3, ARCHITECTURES["pictures"], NORMALIZATION),
    ],
    ids=["colour", "one round", "pictures"],
)
def test_other_models(shape, n_class, routings, architecture, normalization, tmp_path):
    keras.utils.set_random_seed(3)
    more = {"architecture": architecture, "normalization": normalization}
    _, model, _ = capsulenet.CapsNet(shape, n_class, routings, **more)
    rng = np.random.default_rng(0)
    for layer in convolution_layers(model):  # biases start at one number
        layer.bias.assign(rng.normal(0.1, 0.1, layer.bias.shape))
    for layer in explore.dense_layers(model):  # else all that they draw is grey
        layer.kernel.assign(3 * layer.kernel)
    names = [f"class {i}" for i in range(n_class)]
    info = {**INFO, "input_shape": [*shape], "class_names": names}
    info |= {"normalization": normalization, "digit_box": None}
    images = rng.random((6, *shape)).astype("float32")
    lengths, drawn, _ = answers_of_node(model, info, images, tmp_path)
    expected = predict(model, [images])
    assert np.abs(lengths - expected[0]).max() < 1e-3
    assert np.abs(drawn - expected[1].reshape(6, -1)).max() < 2e-3
    assert np.ptp(lengths) > 0.05 and np.ptp(drawn) > 0.1  # they say something


def test_votes_are_couplings_times_agreements(published, tmp_path, mnist):
    """By the routing as the paper writes it."""
    images = mnist.test[0][:3]
    *_, votes = answers_of_node(published, INFO, images, tmp_path)
    primary = keras.Model(published.inputs, published.get_layer("primarycaps").output)
    u = predict(primary, [images])[0].astype("float64")
    W = published.get_layer("digitcaps").get_weights()[0].astype("float64")
    for i in range(3):
        v, c = routing_and_couplings(u, W, i + 1)
        agreement = np.einsum("bje,jied,bid->bji", v, W, u, optimize=True)
        by_place = (c * agreement).reshape(3, 10, 36, 32).sum(axis=3)
        assert np.abs(votes[:, i] - by_place).max() < 2e-2 * np.abs(by_place).max()


# Pictures in the layout of the training.


def drawing(side, width, ground=0, ink=255, aspect=1.0):
    picture = Image.new("L", (side, round(aspect * side)), ground)
    points = [(0.2, 0.2), (0.8, 0.25), (0.45, 0.85), (0.4, 0.5)]
    points = [(x * side, y * aspect * side) for x, y in points]
    ImageDraw.Draw(picture).line(points, ink, width, joint="curve")
    return np.asarray(picture, "float32")[..., None] / 255


def photo(side):
    """Dark ink on paper that is lit from one side."""
    rng = np.random.default_rng(1)
    light = np.linspace(0.6, 1, side)[None, :, None]
    noise = rng.normal(0, 0.01, (side, side, 1))
    return (drawing(side, side // 12, 230, 40) * light + noise).clip(0, 1)


@pytest.mark.parametrize(
    ("shape", "objects"), [((28, 28), 1), ((36, 36), 1), ((36, 36), 2)]
)
def test_drawings_are_laid_out_as_predict_does(shape, objects, tmp_path):
    pictures = [drawing(120, 10), drawing(120, 2), drawing(60, 4, aspect=0.5)]
    pictures += [drawing(350, 40), photo(160), np.zeros((120, 120, 1)), drawing(28, 3)]
    # of the network's own size: elsewhere than MNIST's digits, like them, and nothing
    corner, like_mnist, nothing = np.zeros((3, *shape, 1))
    corner[2:14, 3:15] = drawing(12, 1)
    like_mnist[-24:-4, -24:-4] = drawing(20, 3)
    pictures += [corner, 1 - corner, like_mnist, nothing]
    info = {**INFO, "input_shape": [*shape, 1], "objects": objects}
    assert differences(pictures, info, tmp_path) < 1e-5


def test_pictures_of_other_models_are_fitted(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [rng.random((h, w, 3)) for h, w in ((50, 31), (12, 40), (22, 20))]
    info = {**INFO, "input_shape": [22, 20, 3], "digit_box": None}
    assert differences(pictures, info, tmp_path) < 1e-5


def differences(pictures, info, folder):
    """The largest between JavaScript and Python."""
    pictures = [np.asarray(picture, "float32") for picture in pictures]
    names = ("height", "width", "channels")
    listed = [
        {**dict(zip(names, p.shape)), "values": p.ravel().tolist()} for p in pictures
    ]
    file = folder / "pictures.json"
    file.write_text(json.dumps({"model": info, "pictures": listed}))
    expected = [prepare_picture(picture, info, "auto")[0] for picture in pictures]
    found = run_node("layout", file).reshape(np.shape(expected))
    return np.abs(found - expected).max()


# The files.


def test_the_files_of_the_page(published, mnist):
    x, y = mnist.test
    wrong = 1 - y[:6]  # labels that no picture has
    images = np.concatenate([x[:80], x[:6]]), np.concatenate([y[:80], wrong])
    files = explore.build_page(Shown(published, INFO, "mine.h5", images))
    names = {path.name for path in (ROOT / "explore").iterdir()}
    assert files.keys() == names | {"model.json", "weights.bin", "test_images.bin"}
    assert {Path(name).suffix for name in files} <= explore.TYPES.keys()
    manifest = json.loads(files["model.json"])
    assert manifest["title"] == "mine.h5"
    assert manifest["class_names"] == INFO["class_names"]
    size = sum(int(np.prod(part["shape"])) for part in manifest["weights"])
    assert size == 8_215_568 and len(files["weights.bin"]) == 2 * size
    described = manifest["test_images"]
    right = [image["class"] for image in described if image["class"] == image["named"]]
    # of each class in turn
    assert right[:10] == INFO["class_names"] and len(right) == explore.PER_KIND
    assert len(described) == len(right) + 6
    pixels = np.frombuffer(files["test_images.bin"], "uint8").reshape(-1, 28, 28, 1)
    assert len(pixels) == len(described)
    np.testing.assert_array_equal(pixels[-6:] / np.float32(255), x[:6])


def test_the_page_asks_for_nothing_elsewhere():
    for path in (ROOT / "explore").iterdir():
        text = path.read_text(encoding="utf-8")
        for link in re.findall(r"https?://[^\s\"')<]+", text):
            # a link that a reader may follow, and a name that is no address
            assert link in (
                "https://arxiv.org/abs/1710.09829",
                "http://www.w3.org/2000/svg",
            )
        assert "innerHTML" not in text  # class names may hold anything


def test_test_images_get_the_margin_of_the_model(monkeypatch):
    x, y = np.ones((3, 28, 28, 1), "float32"), np.eye(10, dtype="float32")[:3]
    data = Dataset((x, y), (x, y), INFO["class_names"], "mnist")
    monkeypatch.setattr(explore, "load_dataset", lambda *arguments: data)
    images, _ = explore.load_test_images({**INFO, "input_shape": [36, 36, 1]}, 9)
    assert images.shape == (3, 36, 36, 1) and images.sum() == x.sum()
    assert images[:, 4:-4, 4:-4].all()
    # not of another kind of model
    for other in ({"input_shape": [28, 28, 3]}, {"class_names": ["a", "b"]}):
        assert explore.load_test_images({**INFO, **other}, 9) is None
    # nor pictures of one's own, wherever the model file says that they are
    assert explore.load_test_images({**INFO, "dataset": "my_pictures"}, 9) is None


def test_without_the_data_there_are_no_test_images(monkeypatch):
    def fail(*arguments):
        raise DataError("no network")

    monkeypatch.setattr(explore, "load_dataset", fail)
    assert explore.load_test_images(INFO, 9) is None


def test_an_installation_has_no_page(monkeypatch, tmp_path, published):
    monkeypatch.setattr(explore, "SOURCES", tmp_path / "explore")
    with pytest.raises(UsageError, match="which a clone of the repository has"):
        explore.build_page(Shown(published, INFO, ""))


# The command line.


def test_export_page(tmp_path, monkeypatch, capsys, mnist):
    monkeypatch.setattr(uses, "LOOKED_AT", 20)
    model = ROOT / PRETRAINED
    assert main("--export_page", tmp_path / "page", "-w", model) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Wrote {tmp_path / 'page'}"
    manifest = json.loads((tmp_path / "page" / "model.json").read_text())
    assert manifest["title"] == "mnist_v4.h5"
    # of one digit; the published model of two is there for part 4
    second = tmp_path / "page" / f"{manifest['two_digits']}model.json"
    manifest = json.loads(second.read_text())
    assert (manifest["title"], manifest["objects"]) == ("multimnist.h5", 2)
    assert len(manifest["test_images"]) >= 10
    message = refuse(capsys, "--export_page", tmp_path / "page", "-w", model)
    assert message.startswith("--export_page: expected a new or empty folder")


@pytest.mark.parametrize(
    ("info", "file"),
    [
        ({}, "none.h5"),  # deleted
        ({"objects": 2}, TWO_DIGITS),
        ({"dataset": "fashion_mnist"}, TWO_DIGITS),
    ],
)
def test_a_page_without_a_second_model(info, file, monkeypatch):
    monkeypatch.setattr(uses, "TWO_DIGITS", file)
    assert uses.find_two_digits(capsulenet.CapsNet, {**INFO, **info}) is None


@pytest.mark.parametrize("flags", [("--explore",), ("--export_page", "page")])
def test_the_published_model_is_the_default(flags, capsys):
    # in a folder without it
    assert refuse(capsys, *flags) == f"{PRETRAINED}: No such file or directory."

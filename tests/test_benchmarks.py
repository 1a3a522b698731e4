"""benchmarks/: what is timed in which order, what rows say, where they are written."""

import dataclasses
import os
import shutil
import subprocess

import keras
import numpy as np
import pytest
from conftest import read_rows, run, write_test_errors

from benchmarks import (
    direct_convolution,
    multi_gpu,
    one_image,
    report,
    time_to_accuracy,
    timing,
    train_step,
)
from capsnet.batches import ShiftedBatches
from capsnet.recipes import RECIPES

BACKEND = keras.backend.backend()
MACHINE = ["device", "hardware", "backend", "keras", "commit"]

needs_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="looks at TensorFlow's graphs"
)


# Where results go, and what they say.


def test_rows_and_names_say_what_was_measured(tmp_path):
    rows = [{"ms": 1.5}, {"ms": 2.5}]
    report.write(rows, str(tmp_path / "new"), "step", "cpu", "0123456789ab-dirty")
    written = read_rows(tmp_path / "new" / f"step_{BACKEND}_cpu.csv")
    assert [row["ms"] for row in written] == ["1.5", "2.5"]
    for row in written:
        assert list(row) == ["ms", *MACHINE]
        assert row["device"] == "cpu"
        assert row["hardware"].endswith(f"{os.cpu_count()} cores")
        assert row["backend"].startswith(f"{BACKEND} ")
        assert row["keras"] == keras.version()
        assert row["commit"] == "0123456789ab-dirty"


@needs_tensorflow
def test_rows_name_the_gpu(monkeypatch):
    import tensorflow as tf

    details = {"device_name": "Some GPU"}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", {"GPU": details}.get
    )
    assert report.describe_machine("gpu")["hardware"].startswith("Some GPU; ")


def git(folder, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    command = ["git", "-C", folder, *who, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_rows_name_the_commit_of_the_code(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "ROOT", str(tmp_path))
    assert report.find_commit() == ""  # no checkout
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1")
    for folder in ("result", os.path.join("benchmarks", "results")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.csv").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert report.find_commit() == commit
    (tmp_path / "benchmarks" / "results" / "a.csv").write_text("2")
    (tmp_path / "result" / "b.csv").write_text("2")
    assert report.find_commit() == commit  # of one benchmark after the other
    (tmp_path / "code.py").write_text("2")
    assert report.find_commit() == f"{commit}-dirty"
    git(tmp_path, "commit", "-a", "-m", "second")
    assert report.find_commit() != commit
    (tmp_path / "new.py").write_text("1")
    assert report.find_commit().endswith("-dirty")
    # A folder inside of somebody's repository is no checkout of ours.
    monkeypatch.setattr(report, "ROOT", str(tmp_path / "result"))
    assert report.find_commit() == ""


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert report.find_commit() == ""


# Time.


def test_functions_take_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = timing.time_in_turn(functions, rounds=2, repeats=3)
    # Each once at first; then blocks of one that does not count and three that do.
    assert "".join(calls) == "ab" + 2 * ("aaaa" + "bbbb")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 6, "b": 6}


def test_products_are_those_of_their_shapes(monkeypatch):
    shapes = ((1, 2, 3, 4), (5, 2, 3, 4))
    monkeypatch.setattr(timing, "PRODUCTS", shapes)
    products = timing.make_products()
    assert [products[shape]().shape for shape in shapes] == [(4,), (4,)]
    # 2 * 24 operations in 3 s, 2 * 120 in 5 s: the most counts.
    seconds = {shapes[0]: [4, 3], shapes[1]: [5, 9]}
    assert timing.product_rate(seconds) == 48


def test_the_products_of_the_primary_capsules_are_among_those_for_the_rate():
    from capsnet import fft_conv

    p = len(fft_conv.plan(20, 9, 2).kernel)
    assert (p, 100, 4 * 256, 256) in timing.PRODUCTS


def test_the_rate_of_a_tensor_is_that_of_a_buffer_that_is_no_larger(monkeypatch):
    monkeypatch.setattr(timing, "BUFFERS", (10, 20, 40))
    monkeypatch.setattr(timing, "PASSED", 60)
    rates = timing.memory_rates({10: [2, 3], 20: [1, 2], 40: [9, 4]})
    # Something disturbed the smallest one, which is as fast as the next.
    assert rates == {10: 120, 20: 120, 40: 30}
    rates = {10: 100, 20: 50, 40: 25}
    sizes = {5: 100, 10: 100, 19: 100, 20: 50, 39: 50, 40: 25, 400: 25}
    for size, rate in sizes.items():
        assert timing.seconds_to_move(size, rates) == size / rate


# The profile.


@pytest.fixture
def count():
    """What `profile_step.count` finds in a function of (100, 50) and (50, 20)."""
    import tensorflow as tf

    from benchmarks import profile_step

    def count(function):
        specs = [tf.TensorSpec(shape, "float32") for shape in ((100, 50), (50, 20))]
        graph = tf.function(function).get_concrete_function(*specs)
        flop, moved = profile_step.count(graph)
        return flop, sorted(moved)

    return count


A, B, C = 4 * 100 * 50, 4 * 50 * 20, 4 * 100 * 20


@needs_tensorflow
def test_products_and_moved_bytes_are_counted(count):
    import tensorflow as tf

    assert count(tf.matmul) == (2 * 100 * 50 * 20, sorted([A, B, C]))
    assert count(lambda a, b: -a) == (0, [A, A])


@needs_tensorflow
def test_what_costs_nothing_is_not_counted(count):
    import tensorflow as tf

    def fused(a, b):
        return tf.nn.relu(tf.nn.bias_add(tf.matmul(a, b), np.zeros(20, "float32")))

    assert count(fused) == count(tf.matmul)
    # Nobody asks for the product, and TensorFlow leaves it out.
    assert count(lambda a, b: [tf.matmul(a, b), tf.identity_n([a])][1]) == (0, [])
    assert count(lambda a, b: a[:100]) == (0, [])
    assert count(lambda a, b: a[:5]) == (0, 2 * [A // 20])  # of the rest, no byte


@needs_tensorflow
def test_adam_reads_four_arrays_and_writes_three():
    import tensorflow as tf

    from benchmarks import profile_step
    from capsnet.backend import adam

    weight, optimizer = keras.Variable(np.ones((30, 10), "float32")), adam(0.1)
    optimizer.build([weight])
    step = tf.ones((30, 10))
    graph = tf.function(lambda: optimizer.apply([step]))
    _, moved = profile_step.count(graph.get_concrete_function())
    assert [size for size in moved if size > 100] == 7 * [4 * 300]


@needs_tensorflow
@pytest.mark.parametrize(("rate", "floor"), [(100, 20), (400, 10)])
def test_the_floor_is_the_longer_time_of_products_and_memory(rate, floor):
    from benchmarks import profile_step

    # 2 operations and a tensor of 3 kB; 300 kB a second: 10 ms
    row = profile_step.describe(2, [3000], 0.05, rate, {1 << 20: 3e5, 2 << 20: 1})
    assert row["products_floor_ms"] == 2000 / rate
    assert row["memory_floor_ms"] == 10
    assert row["floor_ms"] == floor
    assert row["ms"] == 50
    assert row["gb_per_second_1_mb"] == 0.0  # 300 kB


@pytest.mark.slow
@needs_tensorflow
def test_a_profile(tmp_path):
    flags = ("--rounds", 1, "--repeats", 1, "--save_dir", tmp_path)
    done = run(*flags, program=("-m", "benchmarks.profile_step"))
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "profile_tensorflow_cpu.csv")
    assert rows[0]["part"] == "whole step" and len(rows) == 8
    parts = [row for row in rows[1:] if not row["part"].startswith("-")]
    gflop = sum(float(row["gflop"]) for row in parts)
    assert float(rows[0]["gflop"]) == pytest.approx(gflop, abs=0.05)


# The other three.


def test_a_training_step_is_timed_at_all_batch_sizes(monkeypatch, tmp_path):
    def measure(batch_size, side, names, rounds, repeats):
        seconds = dict.fromkeys(names, batch_size / 100)
        return seconds, seconds, {name: [0.9, 0.5] for name in names}

    monkeypatch.setattr(train_step, "measure", measure)
    monkeypatch.setattr(train_step, "peak_memory", lambda name: 1000.0)
    monkeypatch.setattr(train_step, "measure_product_rate", lambda: 1e11)
    train_step.main(["--save_dir", str(tmp_path)])
    end = f"{BACKEND}_{report.find_device()}"
    files = {f"train_step_{end}.csv", f"scaling_{end}.csv", f"scaling_{end}.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    table = read_rows(tmp_path / f"train_step_{end}.csv")
    assert [row["formulation"] for row in table] == ["plain", "einsum", "ours"]
    rows = read_rows(tmp_path / f"scaling_{end}.csv")
    sizes = {int(row["batch_size"]) for row in rows if row["side"] == "28"}
    assert {1, 4, 8, 16, 100} <= sizes


def test_an_epoch_takes_as_long_as_its_steps(monkeypatch, tmp_path, capsys):
    seed = write_test_errors(tmp_path / "seed", 1.5, 0.9, 0.5)
    long = write_test_errors(tmp_path / "long", 1.1, 0.8, 0.6, 0.4)
    short = write_test_errors(tmp_path / "short", 1.0, 0.6)
    seconds = {"older": 1.0, "seed": 0.25, "modern": 0.3}
    monkeypatch.setattr(time_to_accuracy, "SEED_RUN", seed)
    monkeypatch.setattr(time_to_accuracy, "measure_steps", lambda *sizes: seconds)
    monkeypatch.setattr(time_to_accuracy, "MODERN_RUNS", [long, short])
    time_to_accuracy.main(["--save_dir", str(tmp_path / "out")])
    end = f"{BACKEND}_{report.find_device()}"
    rows = read_rows(tmp_path / "out" / f"time_to_accuracy_{end}.csv")
    columns = ("curve", "epochs", "minutes", "test_error")
    # 600 steps an epoch; of a rate that ends at zero, the end of each run alone
    assert [tuple(row[c] for c in columns) for row in rows] == [
        ("older", "1", "10.0", "1.5"),
        ("older", "2", "20.0", "0.9"),
        ("older", "3", "30.0", "0.5"),
        ("seed", "1", "2.5", "1.5"),
        ("seed", "2", "5.0", "0.9"),
        ("seed", "3", "7.5", "0.5"),
        ("modern", "2", "6.0", "0.6"),
        ("modern", "4", "12.0", "0.4"),
    ]
    found = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split(": ")[-1] for line in found] == [
        "30 minutes",
        "8 minutes",
        "12 minutes",
    ]


@pytest.mark.parametrize("name", time_to_accuracy.CURVES)
def test_a_step_of_a_curve_makes_a_batch_and_trains_on_it(monkeypatch, mnist, name):
    _, recipe, is_plain = time_to_accuracy.CURVES[name]
    training = dataclasses.replace(RECIPES[recipe], batch_size=2)
    batches = []
    take = ShiftedBatches.__getitem__

    def spy(self, i):
        batches.append((i, self.affine is not None))
        return take(self, i)

    monkeypatch.setattr(ShiftedBatches, "__getitem__", spy)
    step = time_to_accuracy.make_step(training, is_plain, mnist)
    step()
    step()
    assert batches == [(0, name == "modern"), (1, name == "modern")]


@pytest.mark.slow
@needs_tensorflow
def test_one_image_is_timed_in_all_forms(tmp_path):
    flags = ["--rounds", "1", "--repeats", "2", "--save_dir", str(tmp_path)]
    one_image.main(flags)
    rows = read_rows(tmp_path / "one_image_tensorflow_cpu.csv")
    forms = ["Keras, a model that does nothing", "Keras", *one_image.FORMS]
    assert [row["form"] for row in rows] == forms
    assert all(float(row["ms"]) > 0 for row in rows)
    sizes = [float(row["file_mb"] or 0) for row in rows]
    assert sizes[:2] == [0, 0] and 1.9 < sizes[2] / sizes[3] < 2.1


def test_devices_are_timed_in_turn_and_without_a_strategy(monkeypatch, tmp_path):
    calls = []

    def measure_apart(device, replicas):
        calls.append(replicas)
        return {"none": 0.25, "1": 0.4, "2": 0.8, "4": None}[replicas]

    monkeypatch.setattr(multi_gpu, "measure_apart", measure_apart)
    flags = ["--device", "cpu", "--rounds", "2", "--save_dir", str(tmp_path)]
    multi_gpu.main(flags)
    assert calls == 2 * ["none", "1", "2", "4"]
    rows = read_rows(tmp_path / f"multi_gpu_{BACKEND}_cpu.csv")
    columns = ("replicas", "images_in_a_step", "step_ms", "images_per_second")
    assert [tuple(row[c] for c in columns) for row in rows] == [
        ("none", "100", "250.0", "400.0"),
        ("1", "100", "400.0", "250.0"),
        ("2", "200", "800.0", "250.0"),
        ("4", "400", "not run", "not run"),
    ]


def test_without_a_gpu_nothing_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(multi_gpu, "measure_apart", lambda device, replicas: None)
    with pytest.raises(SystemExit) as exit:
        multi_gpu.main(["--save_dir", str(tmp_path / "new")])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "expected a GPU, found none; or --device cpu\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND == "torch", reason="has one device")
def test_a_step_of_one_device(mnist):
    flags = ("--device", "cpu", "--measure", "1")
    done = run(*flags, program=("-m", "benchmarks.multi_gpu"))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0


def test_the_direct_convolution_has_a_folder_of_its_own(monkeypatch, tmp_path):
    folders = []
    monkeypatch.setattr(direct_convolution, "train", folders.append)
    assert direct_convolution.main(["--save_dir", str(tmp_path)]) == 0
    name = f"direct_convolution_{BACKEND}_{report.find_device()}"
    assert folders == [str(tmp_path / name)]

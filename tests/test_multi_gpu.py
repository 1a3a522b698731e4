"""capsulenet_multi_gpu.py: N devices compute what one computes, and errors say why."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import (
    ROOT,
    environment,
    read_log,
    read_weights,
    run_here,
    without_times,
)
from PIL import Image

import capsulenet
import capsulenet_multi_gpu
from capsnet.options import Options
from capsnet.run_folder import RunFolder

BACKEND = keras.backend.backend()
needs_jax = pytest.mark.skipif(BACKEND != "jax", reason="several hosts need JAX")
needs_devices = pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has one device")


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**environment(), "PYTHONUNBUFFERED": "1"},
    )


def end(process):
    """Waits for a process; returns its exit status, output and errors."""
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def call(script, *arguments):
    return end(start(script, *arguments))


@pytest.fixture
def main(capsys):
    """Runs the script here, up to the point where it would start its devices."""

    def main(*arguments):
        return run_here(capsulenet_multi_gpu, *arguments), *capsys.readouterr()

    return main


def check_error(result, *messages):
    """Exit status 2, and one line on stderr that holds the messages."""
    status, _, errors = result
    assert status == 2, errors
    assert errors.count("\n") == 1
    for message in messages:
        assert message in errors


def read_numbers(folder):
    rows = without_times(read_log(folder))
    return [{k: float(v) for k, v in row.items()} for row in rows]


def check_equal_logs(folder, expected):
    logs = read_numbers(folder), read_numbers(expected)
    assert len(logs[0]) == len(logs[1]) > 0
    for row, expected_row in zip(*logs):
        assert row == pytest.approx(expected_row, rel=1e-4)


def check_equal_weights(folder, expected):
    weights, expected = (
        read_weights(f / "trained_model.h5") for f in (folder, expected)
    )
    assert weights.keys() == expected.keys()
    for name in weights:
        # Adam divides a gradient by its own size. Where that size is rounding, a weight
        # may end up a step away from where it was, but not a whole tensor.
        difference = np.linalg.norm(weights[name] - expected[name])
        assert difference < 1e-3 * (np.linalg.norm(expected[name]) + 1e-3), name


# 4 steps of 48 images an epoch; 8 of the 200 images are left over.
FLAGS = (
    *("--device", "cpu", "--batch_size", "48"),
    *("--train_size", "200", "--epochs", "2"),
)


@pytest.fixture(scope="module")
def one_device(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    script = "capsulenet_multi_gpu.py"
    result = call(script, *FLAGS, "--gpus", "1", *folders(digits, folder))
    assert result[0] == 0, result
    return folder


def folders(digits, folder):
    return "--data_dir", digits, "--save_dir", folder


@needs_devices
@pytest.mark.slow
def test_four_devices_and_then_one_compute_what_one_computes(
    digits, one_device, tmp_path
):
    script = "capsulenet_multi_gpu.py"
    flags = (*FLAGS, "--gpus", 4, "--epochs", 1, *folders(digits, tmp_path))
    status, output, errors = call(script, *flags)
    assert status == 0, errors
    assert "Device: 4 x CPU" in output
    flags = ("--resume", "--epochs", 2, "--save_dir", tmp_path)
    status, output, errors = call(script, *flags, "--device", "cpu", "--gpus", 1)
    assert status == 0, errors
    assert "Going on after epoch 1 of 2" in output
    check_equal_logs(tmp_path, one_device)
    check_equal_weights(tmp_path, one_device)


@needs_devices
@pytest.mark.slow
def test_one_device_is_the_plain_script(digits, tmp_path):
    # 192 images, so that there is no remainder, which only this script drops
    flags = (
        *FLAGS[2:],
        *("--train_size", 192, "--epochs", 1),
        *folders(digits, tmp_path / "plain"),
    )
    plain = call("capsulenet.py", *flags)
    assert plain[0] == 0, plain
    flags = (*FLAGS, *("--gpus", 1, "--train_size", 192, "--epochs", 1))
    one = call("capsulenet_multi_gpu.py", *flags, *folders(digits, tmp_path / "one"))
    assert one[0] == 0, one
    check_equal_logs(tmp_path / "one", tmp_path / "plain")
    check_equal_weights(tmp_path / "one", tmp_path / "plain")
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert {path.name for path in (tmp_path / "one").iterdir()} == names


@needs_devices
@pytest.mark.slow
def test_several_devices_predict_fewer_pictures_than_they_are(one_device, tmp_path):
    picture = np.zeros((28, 28), "uint8")
    picture[4:24, 12:16] = 255
    Image.fromarray(picture).save(tmp_path / "one.png")
    model = ("-w", one_device / "trained_model.h5", "--save_dir", tmp_path)
    flags = ("--predict", tmp_path / "one.png", *model)
    expected = call("capsulenet.py", *flags)
    status, output, errors = call(
        "capsulenet_multi_gpu.py", *FLAGS[:2], "--gpus", 2, *flags
    )
    assert status == 0, errors
    line = re.compile(r"one\.png: \w+, length 0\.\d\d")
    assert line.search(output)[0] == line.search(expected[1])[0]


@needs_devices
@pytest.mark.slow
def test_any_number_of_devices_tests_a_model(digits, one_device, tmp_path):
    flags = ("-t", "-w", one_device / "trained_model.h5", *folders(digits, tmp_path))
    one = call("capsulenet.py", *flags)
    # 300 test images: the last batch of 42 is filled up
    flags = (*flags, "--device", "cpu", "--gpus", 3, "--batch_size", 42)
    three = call("capsulenet_multi_gpu.py", *flags)
    assert one[0] == three[0] == 0, (one, three)
    (accuracy,) = re.findall("Test acc.*", one[1])
    assert accuracy in three[1]


@needs_devices
@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_used_all_images_goes_on_with_one_device(
    main, digits, tmp_path, monkeypatch
):
    # 20 images make a step of 16, and one of 4, which two devices would drop.
    sizes = ("--train_size", 20, "--batch_size", 16, "--epochs", 1)
    sizes = [str(argument) for argument in (*sizes, *folders(digits, tmp_path))]
    assert capsulenet.main(sizes) == 0
    script = capsulenet_multi_gpu
    monkeypatch.setattr(script, "find_devices", lambda *_: ["GPU:0", "GPU:1"])
    monkeypatch.setattr(script, "distribute", lambda *_: contextlib.nullcontext())
    result = main("--resume", "--epochs", 2, "--save_dir", tmp_path)
    check_error(result, "--resume: expected one device", "received 2")
    assert len(read_log(tmp_path)) == 1


@needs_devices
@pytest.mark.parametrize(
    ("flags", "found", "message"),
    [
        ("--gpus 0", 0, "expected 1 to"),
        ("--gpus 2", 0, "found no GPU; to try it on the CPU: --gpus 2 --device cpu"),
        ("--gpus 3", 1, "--gpus: expected at most 1, the number of GPUs found, receiv"),
        ("--gpus 2 --batch_size 5", 2, "--batch_size: expected a multiple of 2"),
    ],
)
def test_devices_that_cannot_work(flags, found, message, main, tmp_path, monkeypatch):
    gpus = [SimpleNamespace(name=f"GPU:{i}", platform="gpu") for i in range(found)]
    if BACKEND == "jax":
        monkeypatch.setattr("jax.local_devices", lambda: gpus)
    else:
        monkeypatch.setattr("tensorflow.config.list_logical_devices", lambda _: gpus)
    check_error(main(*flags.split()), message)
    assert not list(tmp_path.iterdir())


@needs_devices
def test_a_batch_larger_than_the_training_images(digits, tmp_path):
    flags = ("--gpus", 2, "--device", "cpu", "--train_size", 200, "--batch_size", 400)
    result = call("capsulenet_multi_gpu.py", *flags, *folders(digits, tmp_path))
    check_error(result, "--batch_size: expected at most 200")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(BACKEND != "torch", reason="the others have several devices")
def test_pytorch_has_one_device(main):
    check_error(main("--gpus", 3), "several devices need KERAS_BACKEND=tensorflow")


@pytest.mark.skipif(BACKEND == "jax", reason="JAX can")
def test_several_hosts_say_which_backend_to_set(main):
    flags = ["--coordinator", "localhost:1234", "--num_hosts", "2", "--host_id", "0"]
    check_error(main(*flags), "JAX", "KERAS_BACKEND=jax")


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def start_hosts(port, *flags, hosts=(0, 1)):
    flags = ("--coordinator", f"localhost:{port}", "--num_hosts", 2, *flags)
    return [
        start("capsulenet_multi_gpu.py", *flags, "--host_id", host) for host in hosts
    ]


@needs_jax
def test_two_hosts_compute_what_one_computes_and_go_on(digits, one_device, tmp_path):
    flags = (*FLAGS, "--gpus", 2, "--epochs", 1, *folders(digits, tmp_path))
    first = [end(host) for host in start_hosts(free_port(), *flags)]
    assert [status for status, _, _ in first] == [0, 0], first
    assert "Device: 2 hosts, each 2 x CPU" in first[0][1]
    assert "Training" not in first[1][1]  # host 0 speaks for all
    flags = ("--device", "cpu", "--gpus", 2, "--resume", "--epochs", 2)
    hosts = start_hosts(free_port(), *flags, "--save_dir", tmp_path)
    rest = [end(host) for host in hosts]
    assert [status for status, _, _ in rest] == [0, 0], rest
    assert "Going on after epoch 1 of 2" in rest[0][1]
    check_equal_logs(tmp_path, one_device)
    check_equal_weights(tmp_path, one_device)
    names = {path.name for path in one_device.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == names


@needs_jax
@pytest.mark.parametrize("host", [0, 1])
def test_a_host_alone_gives_up(host, digits, tmp_path):
    flags = ("--device", "cpu", "--timeout", 3, *folders(digits, tmp_path))
    started = time.monotonic()
    (alone,) = start_hosts(free_port(), *flags, hosts=[host])
    status, _, errors = end(alone)
    assert status == 1
    assert "expected 2 hosts" in errors
    assert errors.count("\n") == 1
    assert time.monotonic() - started < 60  # the start of Python and JAX included


@needs_jax
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_other_hosts(number, digits, tmp_path):
    flags = ("--device", "cpu", *folders(digits, tmp_path))
    (alone,) = start_hosts(free_port(), *flags, hosts=[0])
    line = alone.stdout.readline()
    assert line.startswith("Waiting for 2 hosts")
    time.sleep(2)  # in which JAX begins to wait
    alone.send_signal(number)
    status, _, errors = end(alone)
    assert status == 128 + number
    assert errors.endswith("interrupted; no epoch was finished\n")
    assert errors.count("\n") == 1


@needs_jax
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_dies_ends_the_others(victim, digits, tmp_path):
    flags = ("--device", "cpu", *("--timeout", 10, "--train_size", 200))
    hosts = start_hosts(free_port(), *flags, *folders(digits, tmp_path))
    try:
        while not (tmp_path / "log.csv").exists():  # 49 epochs are still to come
            assert all(host.poll() is None for host in hosts)
            time.sleep(0.1)
        hosts[victim].kill()
        assert end(hosts[1 - victim])[0] not in (0, 2)
    finally:
        for host in hosts:
            host.kill()
            host.communicate()
    assert len(read_log(tmp_path)) > 0  # what was finished is still there, and whole


@needs_devices
def test_a_host_whose_output_nobody_reads_any_more(monkeypatch):
    import capsulenet_multi_gpu as script

    def run_on_devices(options, own):
        raise BrokenPipeError

    ends = []
    for name in ("check_hosts", "meet_hosts"):
        monkeypatch.setattr(script, name, lambda *_: None)
    monkeypatch.setattr(script, "run_on_devices", run_on_devices)
    monkeypatch.setattr(script, "end_process", lambda *end: ends.append(end))
    own = SimpleNamespace(device="gpu", num_hosts=2)
    script.run(Options(RunFolder("run")), own)
    assert ends == [("the reader of the output has gone", 141)]


@needs_jax
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_hosts 2 --host_id 2 --coordinator localhost:1", "less than --num_host"),
        ("--num_hosts 2", "--coordinator: expected HOST:PORT of host 0"),
        ("--num_hosts 2 --coordinator localhost", "received localhost"),
        ("--num_hosts 2 --coordinator localhost:99999", "received localhost:99999"),
        ("--host_id 1", "less than --num_hosts 1"),
        ("--num_hosts 2 --coordinator h:1 --features a.npz", "--features needs a sing"),
    ],
)
def test_flags_of_hosts_that_cannot_work(flags, message, main):
    check_error(main(*flags.split()), message)


@needs_jax
def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        (host,) = start_hosts(port, "--device", "cpu", hosts=[0])
        check_error(end(host), f"expected a free port, received {port}")


@needs_jax
def test_hosts_with_different_arguments(digits, tmp_path):
    port = free_port()
    flags = ("--device", "cpu", *folders(digits, tmp_path))
    hosts = [
        *start_hosts(port, *flags, hosts=[0]),
        *start_hosts(port, *flags, "--seed", 1, hosts=[1]),
    ]
    for host in hosts:
        check_error(end(host), "the same arguments")

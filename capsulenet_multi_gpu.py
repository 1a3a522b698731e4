"""Trains and tests a capsule network on several devices: capsulenet.py on N of them.

    python capsulenet_multi_gpu.py                            # all GPUs found
    python capsulenet_multi_gpu.py --gpus 2
    python capsulenet_multi_gpu.py --gpus 2 --device cpu      # try it without GPUs
    # two hosts; the same on the second one with --host_id 1
    KERAS_BACKEND=jax python capsulenet_multi_gpu.py --coordinator host0:9000 \\
        --num_hosts 2 --host_id 0

Each device computes its share of every batch, and all take the same step: the result
is that of capsulenet.py with the same batch.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import traceback

import keras
import numpy as np

import capsulenet
from capsnet import command_line
from capsnet.callbacks import DivergedError
from capsnet.errors import UsageError
from capsnet.flags import Parser
from capsnet.interrupts import Interrupted
from capsnet.options import Devices, Integer, Options, Training
from capsnet.run_folder import STATE, RunFolder
from capsnet.startup import quiet_start


def build_parser() -> Parser:
    """The command line of `capsulenet.py`, and what several devices need on top."""
    parser = capsulenet.build_parser(__doc__)
    parser.training["drop_remainder"] = True
    group = parser.add_argument_group("devices of this host")
    group.add_argument(
        "--gpus",
        type=Integer(1),
        default=None,
        metavar="N",
        help="number of devices (default: all GPUs found)",
    )
    group.add_argument(
        "--device",
        choices=("gpu", "cpu"),
        default="gpu",
        help="cpu makes N logical devices of the CPU, to try it without GPUs",
    )
    parser.add_argument(  # in place of the one of a single device
        "--batch_size",
        type=Training.kind_of("batch_size"),
        metavar="N",
        help="images in a step of all devices together, a multiple of their number; "
        "images left over at the end of an epoch, others in each, are not used "
        "(default: as of capsulenet.py, for each device)",
    )

    group = parser.add_argument_group(
        "several hosts, with KERAS_BACKEND=jax",
        "Start the same command on each, with its own --host_id. Host 0 writes the "
        "files; all read the data and -w.",
    )
    group.add_argument(
        "--coordinator",
        default=None,
        metavar="HOST:PORT",
        help="name or address of host 0, and a free port of it",
    )
    group.add_argument(
        "--num_hosts",
        type=Integer(1),
        default=1,
        metavar="N",
        help="number of hosts, each with as many devices",
    )
    group.add_argument(
        "--host_id",
        type=Integer(),
        default=0,
        metavar="I",
        help="which of them this is, 0 to N - 1",
    )
    group.add_argument(
        "--timeout",
        type=Integer(1),
        default=120,
        metavar="SECONDS",
        help="when to give up on a host that does not come up, or is heard no more",
    )
    return parser


def check_hosts(own: argparse.Namespace) -> None:
    """Finds what is wrong with the flags of several hosts.

    Raises:
        UsageError: If something is.
    """
    if own.num_hosts == 1 and own.coordinator is None and own.host_id == 0:
        return
    backend = keras.backend.backend()
    if backend != "jax":
        raise UsageError(
            "several hosts need the JAX backend: set KERAS_BACKEND=jax, "
            f"received KERAS_BACKEND={backend}"
        )
    if own.host_id >= own.num_hosts:
        raise UsageError(
            f"--host_id: expected less than --num_hosts {own.num_hosts}, "
            f"received {own.host_id}"
        )
    host, _, port = (own.coordinator or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(
            "--coordinator: expected HOST:PORT of host 0, "
            f"received {own.coordinator or 'nothing'}"
        )
    for flag in ("features", "export", "export_page", "explore"):
        if getattr(own, flag):  # all hosts would write, or serve, the same
            raise UsageError(f"--{flag} needs a single host, --num_hosts 1")


def use_cpus(n: int) -> None:
    """Makes n logical devices of this host's CPU, and hides its GPUs."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        logical = [tf.config.LogicalDeviceConfiguration()] * n
        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, logical)
        tf.config.set_visible_devices([], "GPU")
    else:
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", n)


def meet_hosts(own: argparse.Namespace) -> None:
    """Waits for the other hosts; ends the process if they do not come up in time.

    Raises:
        UsageError: If host 0 cannot listen at the port.
    """
    import jax

    if own.host_id == 0:
        port = int(own.coordinator.rpartition(":")[2])
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            raise UsageError(
                f"--coordinator: expected a free port, received {port}: "
                f"{error.strerror}"
            ) from error
    print(f"Waiting for {own.num_hosts} hosts at {own.coordinator} ...", flush=True)
    message = (
        f"expected {own.num_hosts} hosts at {own.coordinator} within "
        f"{own.timeout} s (--timeout), not all came up"
    )
    failures = []

    def connect():
        try:
            jax.distributed.initialize(
                own.coordinator,
                own.num_hosts,
                own.host_id,
                initialization_timeout=2 * own.timeout,
                heartbeat_timeout_seconds=own.timeout,
                shutdown_timeout_seconds=own.timeout,
            )
        except Exception as error:
            failures.append(error)

    # Not in this thread, which is the one that signals come to. JAX's own timeout ends
    # the process too, but with a page of C++ frames.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(own.timeout)
    if thread.is_alive():
        end_process(message, 1)
    if failures:
        raise failures[0]


def end_process(message: str, status: int) -> None:
    """Ends the process at once; the usual end would wait for the other hosts."""
    command_line.drop_unwritten()
    print(f"capsulenet_multi_gpu.py: error: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def find_devices(kind: str, n: int | None) -> list:
    """The devices of this host to run on, as the backend names them.

    Args:
        kind: "cpu" or "gpu".
        n: How many; None for all.

    Raises:
        UsageError: If there are fewer than asked for.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_logical_devices(kind.upper())
        devices = [device.name for device in devices]
    else:
        import jax

        devices = [d for d in jax.local_devices() if d.platform == kind]
    if not devices:
        raise UsageError("found no GPU; to try it on the CPU: --gpus 2 --device cpu")
    if (n or 1) > len(devices):
        raise UsageError(
            f"--gpus: expected at most {len(devices)}, the number of GPUs found, "
            f"received {n}"
        )
    return devices[:n]


def check_agreement(options: Options, own: argparse.Namespace) -> None:
    """Makes sure that all hosts do the same.

    Raises:
        UsageError: If they were started with different arguments.
    """
    from jax.experimental import multihost_utils

    values = options.to_json()
    del values["weights"], values["data"]["data_dir"]  # paths may differ
    flags = {k: v for k, v in vars(own).items() if k != "host_id"}
    shared = (values, options.mode, options.devices.count, flags, options.begun)
    given = options.given - {"weights", "data_dir", "save_dir"}
    shared += (sorted(given), options.debug, options.folder.overwrite)
    digest = hashlib.sha256(repr(shared).encode()).digest()
    with quiet_start():
        digests = multihost_utils.process_allgather(np.frombuffer(digest, "uint8"))
    if (digests != digests[0]).any():
        raise UsageError(
            "expected the same arguments and number of devices on all hosts, "
            "received different ones"
        )


def distribute(devices: list, num_hosts: int) -> contextlib.AbstractContextManager:
    """A context in which models are trained on these devices of each host."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.MirroredStrategy(devices).scope()
    if num_hosts == 1:
        return keras.distribution.DataParallel(devices=devices).scope()
    import jax

    hosts = [jax.local_devices(process_index=i) for i in range(num_hosts)]
    devices = [device for host in hosts for device in host[: len(devices)]]
    return DataParallelHosts(devices=devices, auto_shard_dataset=False).scope()


class DataParallelHosts(keras.distribution.DataParallel):
    """Data parallelism in which each host gets the outputs of all."""

    def get_tensor_layout(self, path):
        if path.endswith(("capsnet/output", "decoder/output")):
            return keras.distribution.TensorLayout([], self.device_mesh)
        return None


@contextlib.contextmanager
def one_writer(options: Options):
    """Yields options with which all hosts but the first write to where nobody looks."""
    if options.devices.host_id == 0:
        yield options
        return
    folder = options.folder
    with (
        tempfile.TemporaryDirectory() as path,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        if options.begun is not None:
            shutil.copy(folder.file(STATE), path)
        hidden = RunFolder(path, folder.results)
        hidden.finished = folder.finished
        try:
            yield dataclasses.replace(options, folder=hidden)
        except DivergedError as error:  # it may name what is gone soon
            message = str(error).replace(path, folder.path)
            raise DivergedError(message) from error
        finally:
            folder.finished = hidden.finished  # for messages


def run_on_devices(options: Options, own: argparse.Namespace) -> None:
    """Finds the devices of this host, and does on them what the command line says."""
    with quiet_start():
        found = find_devices(own.device, own.gpus)
    devices = Devices(
        len(found) * own.num_hosts, own.num_hosts, own.host_id, own.device
    )
    training, n = options.training, devices.count
    if "batch_size" not in options.given:
        training = dataclasses.replace(training, batch_size=training.batch_size * n)
    if training.batch_size % n:
        raise UsageError(
            f"--batch_size: expected a multiple of {n}, the number of devices, "
            f"received {training.batch_size}"
        )
    options = dataclasses.replace(options, training=training, devices=devices)
    if devices.num_hosts > 1:
        check_agreement(options, own)
    with distribute(found, devices.num_hosts), one_writer(options) as options:
        capsulenet.run(options, own)


def run(options: Options, own: argparse.Namespace) -> None:
    """Does what the command line says, on several devices of one host or of several."""
    check_hosts(own)
    if keras.backend.backend() not in ("tensorflow", "jax"):
        raise UsageError(
            "several devices need KERAS_BACKEND=tensorflow or jax, "
            f"received KERAS_BACKEND={keras.backend.backend()}"
        )
    if own.device == "cpu":
        with quiet_start():
            use_cpus(own.gpus or 1)
    if own.num_hosts == 1:
        run_on_devices(options, own)
        return
    try:
        with command_line.explained(options):
            meet_hosts(own)
            run_on_devices(options, own)
    except BrokenPipeError:
        end_process("the reader of the output has gone", 128 + command_line.PIPE)
    except Interrupted as interrupt:
        end_process(str(interrupt), interrupt.status)
    except Exception as error:
        known = command_line.explain(error)
        if known is not None:
            status, message = known
            end_process(message, status)
        if re.match("[A-Z_]+: ", str(error)):  # a status of JAX's runtime
            end_process(f"lost another host: {str(error).splitlines()[0]}", 1)
        traceback.print_exc()
        end_process("this host stopped", 1)


if __name__ == "__main__":
    sys.exit(command_line.main(None, build_parser, run))

"""Trains and tests a capsule network on several devices: capsulenet.py on N of them.

    python capsulenet_multi_gpu.py                            # all GPUs found
    python capsulenet_multi_gpu.py --gpus 2
    python capsulenet_multi_gpu.py --gpus 2 --device cpu      # try it without GPUs

Each device computes its share of every batch, and all take the same step: the result
is that of capsulenet.py with the same batch.
"""

import argparse
import contextlib
import sys

import capsulenet  # first, since it silences the backend's start

# isort: split
import keras

from capsulenet import UsageError


def build_parser() -> argparse.ArgumentParser:
    """The command line of `capsulenet.py`, and what several devices need on top."""
    parser = capsulenet.build_parser(__doc__)
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--gpus",
        type=capsulenet.integer(1),
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
        type=capsulenet.integer(1),
        metavar="N",
        help="images in a step of all devices together, a multiple of their number; "
        "images left over at the end of an epoch, others in each, are not used "
        "(default: 100 a device)",
    )
    return parser


def find_devices(args: argparse.Namespace) -> list:
    """The devices to run on, as the backend names them.

    Raises:
        UsageError: If there are fewer than asked for.
    """
    backend = keras.backend.backend()
    n = args.gpus or 1
    if backend == "tensorflow":
        import tensorflow as tf

        if args.device == "cpu":
            tf.config.set_visible_devices([], "GPU")
            logical = [tf.config.LogicalDeviceConfiguration()] * n
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0], logical
            )
        devices = tf.config.list_logical_devices(args.device.upper())
        devices = [device.name for device in devices]
    elif backend == "jax":
        import jax

        if args.device == "cpu":
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", n)
        devices = [d for d in jax.local_devices() if d.platform == args.device]
    else:
        raise UsageError(
            "several devices need KERAS_BACKEND=tensorflow or jax, "
            f"received KERAS_BACKEND={backend}"
        )
    found = f"{len(devices)} GPU{'s' * (len(devices) != 1)}"
    if not devices:
        raise UsageError("found no GPU; to try it on the CPU: --gpus 2 --device cpu")
    if n > len(devices):
        raise UsageError(
            f"--gpus: expected at most {len(devices)}, as {found} were "
            f"found, received {n}"
        )
    return devices[: args.gpus]


def distribute(devices: list) -> contextlib.AbstractContextManager:
    """A context in which models are trained on all devices."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.MirroredStrategy(devices).scope()
    return keras.distribution.DataParallel(
        devices=devices, auto_shard_dataset=False
    ).scope()


def run(args: argparse.Namespace) -> None:
    """Does what the command line says, on several devices."""
    with capsulenet.quiet_start():
        devices = find_devices(args)
    args.devices = n = len(devices)
    if args.batch_size is None:
        args.batch_size = 100 * n
    if args.batch_size % n:
        raise UsageError(
            f"--batch_size: expected a multiple of {n}, the number of devices, "
            f"received {args.batch_size}"
        )
    with distribute(devices):
        capsulenet.run(args)


if __name__ == "__main__":
    sys.exit(capsulenet.main(build_parser=build_parser, run=run))

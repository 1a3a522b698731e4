"""Trains the real CapsNet for 8 steps in one of several ways that have to agree.

    python tests/replicas.py WAY DATA FOLDER

WAY is a number of logical CPUs, `plain` for one device without a distribution, or
`reversed` for that and the images of each batch in the opposite order: what the
rounding of sums alone changes. The weights go to `FOLDER/WAY.npz`, the log to
`FOLDER/WAY/log.csv`.
"""

import contextlib
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import capsulenet
import capsulenet_multi_gpu
import datasets

# isort: split
import keras
import numpy as np


class Reversed(datasets.ShiftedBatches):
    def __getitem__(self, index):
        (x, y), _ = super().__getitem__(index)
        x, y = x[::-1], y[::-1]
        return (x, y), (y, x)


def main(way: str, data_dir: str, folder: str) -> None:
    # 4 steps an epoch; 8 of the 200 images are left over
    flags = "--device cpu --batch_size 48 --train_size 200 --epochs 2 --save_dir"
    save_dir = os.path.join(folder, way)
    os.makedirs(save_dir)
    args = capsulenet_multi_gpu.build_parser().parse_args([*flags.split(), save_dir])
    scope = contextlib.nullcontext()
    if way == "reversed":
        datasets.ShiftedBatches = Reversed
    elif way != "plain":
        args.devices = args.gpus = int(way)
        with capsulenet.quiet_start():
            capsulenet_multi_gpu.use_cpus(args.gpus)
            devices = capsulenet_multi_gpu.find_devices(args)
        scope = capsulenet_multi_gpu.distribute(devices, args.num_hosts)
    keras.utils.set_random_seed(0)
    with scope:
        model, _, _ = capsulenet.CapsNet((28, 28, 1), 10)
        capsulenet.train(model, datasets.load_dataset(data_dir), args)
        weights = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    np.savez(os.path.join(folder, f"{way}.npz"), **weights)


if __name__ == "__main__":
    main(*sys.argv[1:])

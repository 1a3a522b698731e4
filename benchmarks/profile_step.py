"""Shows where the time of a training step goes, and what stands in the way.

    python -m benchmarks.profile_step        # about a minute, needs TensorFlow

Times each part of the step alone, forward and backward, on the batch of
`benchmarks.train_step`, and counts what its graph holds: the floating point operations
of its products, and the bytes that its operations read and write. The floor of a part
is the time of both at the machine's own rates, which are measured in the same run.
Writes benchmarks/results/profile_tensorflow.csv.
"""

import argparse
import math
import os

import capsulenet  # first, since it silences the backend's start

# isort: split
import keras
import tensorflow as tf

from benchmarks import train_step
from capsnet import fft_conv, run_folder

BATCH_SIZE = 100
# Operations that pass a buffer on, or know only its shape.
FREE = {
    "Const", "ExpandDims", "Identity", "NoOp", "Placeholder", "ReadVariableOp",
    "Reshape", "Shape", "Squeeze", "StopGradient", "Unpack",
}  # fmt: skip


def parts_of_step(model: keras.Model, x, y) -> dict:
    """The parts of a training step, as graphs without arguments, by name."""
    layer = model.get_layer
    features = layer("conv1")(x)
    primary = layer("primarycaps")(features)
    digits = layer("digitcaps")(primary)
    kernel = layer("primarycaps").kernel.value

    def losses(digits):
        lengths = layer("capsnet")(digits)
        images = layer("decoder")(layer("mask")([digits, y]))
        error = keras.ops.mean(keras.ops.square(images - x), axis=(1, 2, 3))
        return capsulenet.margin_loss(y, lengths) + train_step.LAM_RECON * error

    def weights(name):
        return [weight.value for weight in layer(name).trainable_weights]

    def convolution(features):
        return fft_conv.conv2d(features, kernel, 2)

    model.optimizer.build(model.trainable_weights)
    steps = [tf.random.normal(w.shape) / 1e9 for w in model.trainable_weights]
    primary_weights = [*weights("primarycaps"), features]
    return {
        "conv1": differentiate(layer("conv1"), x, weights("conv1")),
        "primary capsules": differentiate(
            layer("primarycaps"), features, primary_weights
        ),
        "- their convolution": differentiate(convolution, features, [kernel, features]),
        "- - its products": products_alone(len(x), features.shape[1]),
        "routing": differentiate(
            layer("digitcaps"), primary, [*weights("digitcaps"), primary]
        ),
        "decoder and losses": differentiate(
            losses, digits, [*weights("decoder"), digits]
        ),
        "Adam": tf.function(lambda: model.optimizer.apply(steps)),
    }


def differentiate(function, inputs, sources):
    """A graph of a function and of its gradients for a random direction."""
    direction = tf.random.normal(function(inputs).shape)

    @tf.function
    def graph():
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = function(inputs)
        gradients = tape.gradient(outputs, sources, output_gradients=direction)
        return outputs, gradients  # both, or TensorFlow leaves out what one needs

    return graph


def products_alone(batch_size: int, side: int):
    """The products of the primary capsules, forward and backward, and nothing else."""
    p = len(fft_conv.plan(side, 9, 2).kernel)
    # As in `fft_conv.conv2d`: p rows of p frequencies.
    x = [tf.random.normal((p, batch_size, 4 * 256)) for _ in range(p)]
    w = [tf.random.normal((p, 4 * 256, 256)) for _ in range(p)]
    y = [tf.random.normal((p, batch_size, 256)) for _ in range(p)]

    @tf.function
    def graph():
        return [
            (
                tf.matmul(x_p, w_p),
                tf.matmul(y_p, w_p, transpose_b=True),
                tf.matmul(x_p, y_p, transpose_a=True),
            )
            for x_p, w_p, y_p in zip(x, w, y)
        ]

    return graph


def count(graph) -> tuple[int, int]:
    """Operations in the products of a graph, and bytes that it reads and writes."""
    flop = moved = 0
    for op in graph.get_concrete_function().graph.get_operations():
        if op.type in FREE:
            continue
        if op.type == "ResourceApplyAdam":  # the weight and its two moments change
            moved += 7 * _bytes(op.inputs[-1])
            continue
        moved += sum(_bytes(tensor) for tensor in (*op.inputs, *op.outputs))
        flop += 2 * _multiplications(op)
    return flop, moved


def _bytes(tensor) -> int:
    # The handle of a variable has no size; what reads it has.
    size = 0 if tensor.dtype == tf.resource else tensor.dtype.size
    return size * math.prod(_shape(tensor))


def _shape(tensor) -> list[int]:
    # Only the batch may be unknown, in a function that Keras traced for any batch.
    return [BATCH_SIZE if n is None else n for n in tensor.shape]


def _multiplications(op) -> int:
    if op.type in ("MatMul", "BatchMatMulV2"):
        name = "transpose_a" if op.type == "MatMul" else "adj_x"
        inner = _shape(op.inputs[0])[-2 if op.get_attr(name) else -1]
        return math.prod(_shape(op.outputs[0])) * inner
    if op.type == "Conv2D":
        return math.prod(_shape(op.outputs[0])) * math.prod(_shape(op.inputs[1])[:3])
    if op.type == "Conv2DBackpropFilter":
        return math.prod(_shape(op.inputs[2])) * math.prod(_shape(op.outputs[0])[:3])
    return 0


def memory_rate() -> float:
    """Bytes a second that are read and written by adding two large tensors."""
    x = tf.random.normal((32, 1024, 1024))
    add = {"add": tf.function(lambda: x + x)}
    return 2 * _bytes(x) / train_step.time_in_turn(add, 3, 5)["add"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=6, help="blocks of each part")
    parser.add_argument("--repeats", type=int, default=5, help="times in a block")
    args = parser.parse_args()
    model = train_step.build(["ours"])["ours"]
    x, y = (tf.constant(a) for a in train_step.make_batch(BATCH_SIZE))
    graphs = parts_of_step(model, x, y)
    counts = {name: count(graph) for name, graph in graphs.items()}
    whole = {"whole step": lambda: model.train_on_batch((x, y), (y, x))}
    seconds = train_step.time_in_turn({**whole, **graphs}, args.rounds, args.repeats)
    rates = train_step.matrix_product_rate(), memory_rate()
    parts = [counts[name] for name in counts if not name.startswith("-")]
    counts["whole step"] = tuple(map(sum, zip(*parts)))
    rows = [
        {
            "part": name,
            "ms": round(1e3 * seconds[name], 1),
            "gflop": round(counts[name][0] / 1e9, 2),
            "mb_moved": round(counts[name][1] / 1e6),
            "products_floor_ms": round(1e3 * counts[name][0] / rates[0], 1),
            "memory_floor_ms": round(1e3 * counts[name][1] / rates[1], 1),
            "matmul_gflop_per_second": round(rates[0] / 1e9, 1),
            "memory_gb_per_second": round(rates[1] / 1e9, 1),
            **train_step.describe_machine(),
        }
        for name in seconds
    ]
    for row in rows:
        train_step.print_row(row)
    path = os.path.join(train_step.FOLDER, "profile_tensorflow.csv")
    run_folder.write_csv(path, rows)
    print("Wrote", path)


if __name__ == "__main__":
    main()

"""Shows where the time of a training step goes, and what stands in the way.

    python -m benchmarks.profile_step    # about a minute, needs TensorFlow; on the CPU
    python -m benchmarks.profile_step --side 36    # the images of two digits

Times each part of the step alone, forward and backward, on the batch of
`benchmarks.train_step`, and counts what its graph holds: the floating point operations
of its products, and the bytes that its operations read and write. Both have a least
time, at the best rates that `benchmarks.timing` finds between the parts. The floor of a
part is the longer of the two, since a processor may compute and move at once: nothing
that does these operations is faster. Writes profile_tensorflow_cpu.csv, or
profile_SIDE_tensorflow_cpu.csv.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import math
from statistics import median

import keras
import tensorflow as tf

import capsulenet
from benchmarks import report, timing, train_step
from capsnet import fft_conv

BATCH_SIZE = 100
# Operations that pass a buffer on, or know only its shape.
FREE = {
    "Const", "ExpandDims", "Identity", "IdentityN", "NoOp", "Placeholder",
    "ReadVariableOp", "Reshape", "Shape", "ShapeN", "Squeeze", "StopGradient", "Unpack",
}  # fmt: skip
# TensorFlow makes them a part of the product before.
FREE |= {"BiasAdd", "Relu"}


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


def count(graph) -> tuple[int, list[int]]:
    """What the operations that a graph's outputs need do at least.

    Args:
        graph: A concrete function of TensorFlow.

    Returns:
        Floating point operations of the products, and the bytes of each tensor that is
        read or written.
    """
    flop, moved = 0, []
    for op in _needed(graph):
        if op.type == "ResourceApplyAdam":  # the weight and its two moments change
            moved += 7 * [_bytes(op.inputs[-1])]
        elif op.type in ("Slice", "StridedSlice"):
            size = _bytes(op.outputs[0])
            # A part is copied; all of it is passed on.
            moved += 2 * [size] if size < _bytes(op.inputs[0]) else []
        elif op.type not in FREE:
            moved += map(_bytes, (*op.inputs, *op.outputs))
            flop += 2 * _multiplications(op)
    return flop, moved


def _needed(graph) -> set:
    """The operations without those that TensorFlow leaves out."""
    needed = set()
    left = [tensor.op for tensor in graph.outputs] + graph.graph.control_outputs
    while left:
        op = left.pop()
        if op not in needed:
            needed.add(op)
            left += [tensor.op for tensor in op.inputs] + list(op.control_inputs)
    return needed


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


def describe(flop: int, moved: list[int], seconds: float, rate: float, rates: dict):
    """The columns of a part.

    Args:
        flop: Of `count`.
        moved: Of `count`.
        seconds: That the part took.
        rate: Of `timing.product_rate`.
        rates: Of `timing.memory_rates`.
    """
    products = flop / rate
    memory = sum(timing.seconds_to_move(size, rates) for size in moved)
    return {
        "ms": round(1e3 * seconds, 1),
        "gflop": round(flop / 1e9, 2),
        "mb_moved": round(sum(moved) / 1e6),
        "products_floor_ms": round(1e3 * products, 1),
        "memory_floor_ms": round(1e3 * memory, 1),
        "floor_ms": round(1e3 * max(products, memory), 1),
        "matmul_gflop_per_second": round(rate / 1e9, 1),
        **{
            f"gb_per_second_{size >> 20}_mb": round(rates[size] / 1e9, 1)
            for size in rates
        },
    }


def build_parser() -> argparse.ArgumentParser:
    parser = report.new_parser(__doc__)
    parser.add_argument(
        "--side", type=int, default=28, help="of the images, in pixels (default: 28)"
    )
    parser.add_argument("--rounds", type=int, default=6, help="blocks of each part")
    parser.add_argument("--repeats", type=int, default=5, help="times in a block")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    commit = report.find_commit()
    tf.config.set_visible_devices([], "GPU")
    model = train_step.build(["ours"], args.side)["ours"]
    x, y = (tf.constant(a) for a in train_step.make_batch(BATCH_SIZE, args.side))
    graphs = parts_of_step(model, x, y)
    counts = {name: count(g.get_concrete_function()) for name, g in graphs.items()}
    parts = [counts[name] for name in counts if not name.startswith("-")]
    counts["whole step"] = sum(p[0] for p in parts), sum((p[1] for p in parts), [])
    functions = {
        "whole step": lambda: model.train_on_batch((x, y), (y, x)),
        **graphs,
        **timing.make_products(),
        **timing.make_passes(),
    }
    seconds = timing.time_in_turn(functions, args.rounds, args.repeats)
    rates = timing.product_rate(seconds), timing.memory_rates(seconds)
    rows = []
    for name in ("whole step", *graphs):
        columns = describe(*counts[name], median(seconds[name]), *rates)
        rows.append({"part": name, **columns})
        report.print_row(rows[-1])
    name = "profile" if args.side == 28 else f"profile_{args.side}"
    report.write(rows, args.save_dir, name, "cpu", commit)


if __name__ == "__main__":
    main()

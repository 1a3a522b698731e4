"""What bfloat16 gives on a CPU: the primary capsules' convolution, and a whole step.

    python -m benchmarks.half_precision

At batch 100, on MNIST's size: the convolution as the package computes it, in float32;
directly, in bfloat16; and as the package does, with products in bfloat16 between
transforms in float32, at the usual points and at roots of unity, which are better
conditioned. Errors are those of output and gradients against the direct convolution in
float32, of the largest number. Then a training step with `--precision float32` and
`mixed_bfloat16`. Writes half_precision_BACKEND_DEVICE.csv. TensorFlow alone.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import contextlib
from statistics import median
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from benchmarks import report, train_step
from benchmarks.timing import time_in_turn
from capsnet import fft_conv

SHAPE, KERNEL, STRIDES = (100, 20, 20, 256), (9, 9, 256, 256), 2


def direct(x, kernel):
    return keras.ops.conv(x, kernel, STRIDES, data_format="channels_last")


def direct_in_half(x, kernel):
    half = [keras.ops.cast(tensor, "bfloat16") for tensor in (x, kernel)]
    return keras.ops.cast(direct(*half), "float32")


def transformed(x, kernel):
    return fft_conv.conv2d(x, kernel, STRIDES)


def products_in_half(x, kernel):
    matmul = keras.ops.matmul

    def half(a, b):
        if len(a.shape) != 3:  # a transform
            return matmul(a, b)
        a, b = (keras.ops.cast(tensor, "bfloat16") for tensor in (a, b))
        return keras.ops.cast(matmul(a, b), "float32")

    with mock.patch.object(fft_conv.ops, "matmul", half):
        return transformed(x, kernel)


@contextlib.contextmanager
def roots_of_unity():
    """Within it, these are the points of all transforms."""
    fft_conv.plan.cache_clear()
    with mock.patch.object(fft_conv, "SMALL_POINTS", ()):
        yield
    fft_conv.plan.cache_clear()


def products_at_roots_in_half(x, kernel):
    with roots_of_unity():
        return products_in_half(x, kernel)


def run_convolutions(rounds: int, repeats: int) -> list[dict]:
    """A row for each way to compute the convolution of the primary capsules."""
    tf.random.set_seed(0)
    x = tf.nn.relu(tf.random.normal(SHAPE))
    kernel = tf.random.normal(KERNEL, stddev=0.02)
    factor = tf.random.normal(direct(x, kernel).shape)

    def forward(convolve):
        return tf.function(lambda: convolve(x, kernel), autograph=False)

    def both(convolve):
        @tf.function(autograph=False)
        def compute():
            with tf.GradientTape() as tape:
                tape.watch((x, kernel))
                outputs = convolve(x, kernel)
                loss = tf.reduce_sum(outputs * factor)
            return outputs, *tape.gradient(loss, (x, kernel))

        return compute

    ways = {
        "float32": transformed,
        "bfloat16, direct": direct_in_half,
        "bfloat16 products": products_in_half,
        "bfloat16 products, roots of unity": products_at_roots_in_half,
    }
    exact = [a.numpy() for a in both(direct)()]
    forwards = {name: forward(way) for name, way in ways.items()}
    boths = {name: both(way) for name, way in ways.items()}
    times = [
        time_in_turn(
            # A part becomes an array, to wait for the end.
            {name: lambda f=f: tf.nest.flatten(f())[-1][0].numpy() for name, f in fs},
            rounds,
            repeats,
        )
        for fs in (forwards.items(), boths.items())
    ]
    rows = []
    for name, compute in boths.items():
        found = [a.numpy() for a in compute()]
        errors = [np.abs(a - e).max() / np.abs(e).max() for a, e in zip(found, exact)]
        forward_s, both_s = (median(seconds[name]) for seconds in times)
        rows.append(
            {
                "what": f"convolution, {name}",
                "forward_ms": round(1e3 * forward_s, 1),
                "with_gradients_ms": round(1e3 * both_s, 1),
                "error_of_output": f"{errors[0]:.1e}",
                "error_of_gradients": f"{max(errors[1:]):.1e}",
            }
        )
        report.print_row(rows[-1])
    return rows


def run_steps(rounds: int, repeats: int) -> list[dict]:
    """A row for a training step of each precision."""
    x, y = train_step.make_batch(100)
    steps = {}
    for precision in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(precision)
        model = train_step.build(["ours"])["ours"]
        steps[precision] = lambda m=model: m.train_on_batch((x, y), (y, x))
    keras.config.set_dtype_policy("float32")
    rows = []
    for precision, seconds in time_in_turn(steps, rounds, repeats).items():
        milliseconds = round(1e3 * median(seconds), 1)
        rows.append(
            {
                "what": f"training step, {precision}",
                "forward_ms": "",
                "with_gradients_ms": milliseconds,
                "error_of_output": "",
                "error_of_gradients": "",
            }
        )
        report.print_row(rows[-1])
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = report.new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="blocks of each")
    parser.add_argument("--repeats", type=int, default=3, help="calls in a block")
    args = parser.parse_args(argv)
    commit, device = report.find_commit(), report.find_device()
    rows = run_convolutions(args.rounds, args.repeats)
    rows += run_steps(args.rounds, args.repeats)
    report.write(rows, args.save_dir, "half_precision", device, commit)


if __name__ == "__main__":
    main()

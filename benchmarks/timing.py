"""How benchmarks measure time, and what this machine can do at best.

The best rates bound the time of any work from below, so the fastest of all times
counts, and buffers stay where they are: new pages of memory cost more than writing.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from capsnet import backend

# Batch, rows, inner and columns: squares, and the products of the primary capsules at
# batch 100 with their two gradients.
PRODUCTS = (
    (1, 1024, 1024, 1024),
    (1, 2048, 2048, 2048),
    (11, 100, 1024, 256),
    (11, 100, 256, 1024),
    (11, 1024, 100, 256),
)
GPU_PRODUCT = (1, 16384, 16384, 16384)  # others are too short for one
# Bytes of a buffer, for all cores together: from the caches to the memory.
BUFFERS = tuple(n << 20 for n in (1, 8, 32, 128))
PASSED = 128 << 20  # bytes, in one or more passes


def time_in_turn(functions: dict, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each function's calls, in blocks, one function after the other.

    The first call of a block warms up the caches and is not counted.
    """
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            for _ in range(repeats):
                start = time.perf_counter()
                function()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def make_products() -> dict[tuple, Callable]:
    """Functions that compute float32 matrix products, by their shapes."""

    def product(n, rows, inner, columns):
        a = keras.random.normal((n, rows, inner))
        b = keras.random.normal((n, inner, columns))
        # A part becomes an array, to wait for the end.
        return lambda: keras.ops.convert_to_numpy(keras.ops.matmul(a, b)[0, 0])

    shapes = PRODUCTS if backend.runs_on_cpu() else (*PRODUCTS, GPU_PRODUCT)
    return {shape: product(*shape) for shape in shapes}


def product_rate(seconds: dict) -> float:
    """The most floating point operations a second of matrix products.

    Args:
        seconds: Times of each of `make_products`.
    """
    shapes = [shape for shape in (*PRODUCTS, GPU_PRODUCT) if shape in seconds]
    return max(2 * np.prod(shape) / min(seconds[shape]) for shape in shapes)


def measure_product_rate() -> float:
    """The same, measured now."""
    return product_rate(time_in_turn(make_products(), 3, 5))


def make_passes() -> dict[int, Callable]:
    """Functions that change buffers in place with all cores, by the size in bytes."""
    cores = os.cpu_count()
    pool = ThreadPoolExecutor(cores)

    def passes(size):
        buffers = [np.ones(size // cores // 4, "float32") for _ in range(cores)]

        def negate(buffer):
            for _ in range(PASSED // size):
                np.negative(buffer, out=buffer)

        return lambda: list(pool.map(negate, buffers))

    return {size: passes(size) for size in BUFFERS}


def memory_rates(seconds: dict) -> dict[int, float]:
    """The most bytes a second, read and written, by the size of the buffer.

    Args:
        seconds: Times of each of `make_passes`.
    """
    rates = {size: 2 * PASSED / min(seconds[size]) for size in BUFFERS}
    # A smaller one is not slower, whatever disturbed it.
    return {size: max(rates[s] for s in BUFFERS if s >= size) for size in BUFFERS}


def seconds_to_move(size: int, rates: dict[int, float]) -> float:
    """The least time in which a tensor is read or written once.

    It is read from its start, when its end was written: no more of it is in the caches
    than of a buffer of its size that is passed over again and again.

    Args:
        size: Of the tensor, in bytes.
        rates: Of `memory_rates`.
    """
    below = [s for s in rates if s <= size]
    return size / rates[max(below, default=min(rates))]

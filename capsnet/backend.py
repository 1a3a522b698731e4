"""Every branch on the backend: devices, precision, compiler, gradients, errors."""

import contextlib
import functools
import os
import shutil
import sys
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from capsnet.muon import Muon


def device_kind() -> str:
    """The kind of the backend's default device, as it is called there: "cpu", "gpu".

    Others are "tpu", and with PyTorch "cuda", "mps" and "xpu".
    """
    if keras.backend.backend() == "torch":
        # Not where a new tensor is: while Keras finds out shapes, that is nowhere.
        from keras.src.backend.torch import core

        device = core.DEFAULT_DEVICE
    else:
        device = keras.distribution.list_devices()[0]
    return device.split(":")[0].lower()


def gpu_name() -> str:
    """The name of the first GPU."""
    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        device = tf.config.list_physical_devices("GPU")[0]
        return tf.config.experimental.get_device_details(device)["device_name"]
    if name == "jax":
        import jax

        return jax.devices()[0].device_kind
    import torch

    return torch.cuda.get_device_name()


_portable = False


@contextlib.contextmanager
def portable():
    """Layers that are built and traced within it have the forms that run anywhere.

    What suits a CPU, such as transformed convolutions and compiled functions, other
    machines and converters may not know.
    """
    global _portable
    _portable = True
    try:
        yield
    finally:
        _portable = False


def runs_on_cpu() -> bool:
    """Whether the backend's default device is a CPU, and nothing `portable` is made."""
    return not _portable and device_kind() == "cpu"


def direct_convolution_is_slow() -> bool:
    """Whether a large convolution's gradient takes seconds an image.

    XLA has no fast one for CPUs, and JAX compiles everything with XLA.
    """
    return keras.backend.backend() == "jax"


def missing_gpu_package() -> str | None:
    """What to install for an NVIDIA GPU that is there, but that the backend lacks."""
    packages = {"tensorflow": "tensorflow[and-cuda]", "jax": "jax[cuda12]"}
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    driver = sys.platform == "linux" and shutil.which("nvidia-smi")
    if not driver or hidden or not runs_on_cpu():
        return None
    return packages.get(keras.backend.backend())  # PyTorch's own has all on Linux


@contextlib.contextmanager
def full_precision():
    """Products of float32 within it are computed in float32, also on a GPU.

    The default of some GPUs and backends is TF32, whose fraction has 10 bits. JAX notes
    the precision with each product, and with those of its gradient. TensorFlow has one
    switch for the process, which is read when a graph runs; on a GPU it stays off from
    here on. PyTorch's is off, unless someone asked for less precision.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
        return
    if backend == "tensorflow" and not runs_on_cpu():
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(False)
    yield


def compiled(function):
    """Compiles a function of element-wise operations, where that is not done anyway.

    TensorFlow moves a tensor through memory for each operation; XLA fuses them into
    one pass. On a GPU TensorFlow's own kernels stay, and without a graph (in eager
    mode) there is nothing to compile.
    """

    @functools.cache
    def compile_with_xla():
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*args):
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            if tf.inside_function() and runs_on_cpu():
                return compile_with_xla()(*args)
        return function(*args)

    return call


def adam(learning_rate, **options) -> keras.optimizers.Adam:
    """Adam in the fastest form that the backend and its devices have.

    It is saved as Keras's own, which is what a model file gives back.
    """
    optimizer = keras.optimizers.Adam(learning_rate, **options)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.distribute.has_strategy():
            optimizer.update_step = functools.partial(_fused_step, optimizer)
    return _starting_right(optimizer)


def muon(learning_rate, **options) -> Muon:
    """Muon, whose average starts as that of `adam`."""
    return _starting_right(Muon(learning_rate, **options))


def _starting_right(optimizer):
    if optimizer.use_ema:
        average = functools.partial(_average, optimizer)
        optimizer._update_model_variables_moving_average = average
    return optimizer


def _average(optimizer, variables):
    """Updates the moving average of the weights, so that it starts right.

    With a factor of 0.999 from the start, the average of the first thousand steps would
    be the initial weights for the most part. So the factor of step `t` is at most
    `t / (t + 10)`: an average over the last tenth of the steps.
    """
    t = ops.cast(optimizer.iterations, "float32")
    rate = 1 - ops.minimum(optimizer.ema_momentum, t / (t + 10))
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(variables, averages):
        average.assign_add(ops.cast(rate, variable.dtype) * (variable - average))


def _fused_step(adam, gradient, variable, learning_rate):
    """Keras's `Adam.update_step` as TensorFlow's kernel.

    One pass over the weights instead of ten: on a CPU it takes a third of the time.
    """
    import tensorflow as tf

    i = adam._get_variable_index(variable)
    step = tf.cast(adam.iterations + 1, variable.dtype)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=adam._momentums[i].value.handle,
        v=adam._velocities[i].value.handle,
        beta1_power=adam.beta_1**step,
        beta2_power=adam.beta_2**step,
        lr=tf.cast(learning_rate, variable.dtype),
        beta1=adam.beta_1,
        beta2=adam.beta_2,
        epsilon=adam.epsilon,
        grad=gradient,
    )


def input_gradient(model, loss: Callable, batch_size: int = 100) -> Callable:
    """Compiles the gradient of a loss with respect to images.

    Args:
        model: A function of images that returns tensors (n, n_class), such as a Keras
            model. Its weights may be taken for constants.
        loss: A function of labels (n, n_class) and outputs; returns (n,), and a
            sample's value depends on no other sample.
        batch_size: Images that are computed at a time.

    Returns:
        A function of images and labels, float32 arrays of any number of samples, that
        returns the model's outputs and the gradients, of the shape of the images.
    """
    name = keras.backend.backend()
    if name == "tensorflow":
        import tensorflow as tf

        @tf.function(autograph=False)
        def compute(images, labels):
            with tf.GradientTape() as tape:
                tape.watch(images)
                outputs = model(images)
                values = loss(labels, outputs)
            return outputs, tape.gradient(values, images)

    elif name == "jax":
        import jax

        def summed(images, labels):
            outputs = model(images)
            return ops.sum(loss(labels, outputs)), outputs

        differentiate = jax.jit(jax.grad(summed, has_aux=True))

        def compute(images, labels):
            return differentiate(images, labels)[::-1]

    else:
        import torch

        def compute(images, labels):
            images.requires_grad_(True)
            outputs = model(images)
            values = loss(labels, outputs)
            return outputs, torch.autograd.grad(values.sum(), images)[0]

    def gradient(images, labels):
        parts = []
        for start in range(0, len(images), batch_size):
            batch = [a[start : start + batch_size] for a in (images, labels)]
            tensors = [ops.convert_to_tensor(a, "float32") for a in batch]
            parts.append([ops.convert_to_numpy(t) for t in compute(*tensors)])
        return tuple(np.concatenate(part) for part in zip(*parts))

    return gradient


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the backend could not have the memory it needs."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return isinstance(error, tf.errors.ResourceExhaustedError)
    if backend == "jax":
        import jax

        exhausted = "RESOURCE_EXHAUSTED" in str(error)
        return isinstance(error, jax.errors.JaxRuntimeError) and exhausted
    # A class of its own on some devices only; these are its words and the CPU's.
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(w in str(error) for w in words)
